r"""The objective of models with quantised latents.

With the encoder's vectors :math:`z(x)`, the nearest codes :math:`k(x)` and their vectors
:math:`e_k`, an item's loss is

.. math:: -\log p(x \mid e_k) - \log p(k) + \| \mathrm{sg}(z) - e_k \|^2
    + \beta \, \| z - \mathrm{sg}(e_k) \|^2,

where :math:`\mathrm{sg}` stops gradients, and the likelihood's gradient in :math:`e_k` goes to
:math:`z` instead. The first two terms are a bound on :math:`-\log p(x)`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.arguments import record
from ..core.contracts import HasCodebook
from .base import Objective

__all__ = ["VectorQuantization"]


@record
class VectorQuantization(Objective):
    r"""The bound on the likelihood, the codebook's loss and the encoder's commitment.

    The codebook says how codes learn and how much commitment :math:`\beta` weighs; where it
    follows a moving average, its own loss is left out. Vanilla `SVI` on the pair `model` and
    `guide` minimises the same.

    References:
        | Neural Discrete Representation Learning (van den Oord et al., 2017)
        | https://arxiv.org/abs/1711.00937

    Example:
        >>> import torch
        >>> import probgen as pg
        >>> vq = pg.models.VQVAE((1, 8, 8), codes=16, code_features=4, channels=(8,))
        >>> VectorQuantization()(vq, torch.ones(10, 1, 8, 8)).shape
        torch.Size([10])
    """

    requires = (HasCodebook,)

    def losses(self, module: HasCodebook, x: Tensor, context: Any) -> Tensor:
        module.check_context(context)
        quantized = module.quantize(x)
        fitted = module.likelihood_of(quantized.values).log_prob(x)
        return quantized.loss - fitted - module.prior().log_prob(quantized.codes)
