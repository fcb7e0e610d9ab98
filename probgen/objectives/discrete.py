r"""Objectives of diffusions of discrete data.

The evidence lower bound and, of the denoiser at each of the :math:`T` steps, its cross-entropy,

.. math:: \operatorname{KL}(q(x_T \mid x_0) \,|\, p(x_T)) + \sum_{t=1}^T
    \mathbb{E}_{q(x_t \mid x_0)} \bigl[ \operatorname{KL}(q(x_{t-1} \mid x_t, x_0) \,|\,
    p(x_{t-1} \mid x_t)) - \lambda \log p(x_0 \mid x_t) \bigr],

from one step for each item, drawn so that those of a batch are evenly spread.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..core.arguments import record
from ..core.bijector import name_of
from ..core.contracts import HasCorruption
from ..core.registry import RECORDS
from .base import Objective
from .denoising import spread

__all__ = ["DiscreteDenoising"]


@record
class DiscreteDenoising(Objective):
    r"""The bound of a discrete diffusion and the cross-entropy of its denoiser, at one step each.

    References:
        | Structured Denoising Diffusion Models in Discrete State-Spaces (Austin et al., 2021)
        | https://arxiv.org/abs/2107.03006

    Arguments:
        cross_entropy: The weight :math:`\lambda` of the cross-entropy; 0 leaves the bound alone.

    Raises:
        ValueError: If the weight is negative or not finite.
        TypeError: When called, if the model is no discrete diffusion.

    Example:
        >>> import probgen as pg, torch
        >>> model = pg.models.D3PM(4, classes=3, hidden_features=(16,))
        >>> DiscreteDenoising()(model, torch.zeros(5, 4)).shape
        torch.Size([5])
    """

    cross_entropy: float = 0.01

    requires = (HasCorruption,)

    def __post_init__(self) -> None:
        if not 0 <= self.cross_entropy < math.inf:
            raise ValueError(
                f"Expected `cross_entropy` not to be negative, got {self.cross_entropy}."
            )

    def losses(self, module: HasCorruption, x: Tensor, context: Any) -> Tensor:
        module.check_context(context)
        corruption = module.corruption
        x = x.long()
        t = 1 + (spread(len(x), module.like) * corruption.steps).floor().long()
        t = t.clamp_max(corruption.steps)
        noisy = corruption.noisy(x, t)
        logits = module.denoise(noisy, t, context)
        each = corruption.divergence(logits, x, noisy, t)
        if self.cross_entropy:
            log_p = logits.log_softmax(-1).gather(-1, x.unsqueeze(-1)).squeeze(-1)
            each = each - self.cross_entropy * log_p
        ends = corruption.end_divergence(x, module.like)
        return (corruption.steps * each + ends).flatten(1).sum(-1)


RECORDS[name_of(DiscreteDenoising)] = DiscreteDenoising
