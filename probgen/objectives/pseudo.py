r"""Objectives of binary units that look at one unit given the others.

With :math:`g_i(x) = f(x^{(i)}) - f(x)`, :math:`x^{(i)}` being :math:`x` with unit :math:`i`
turned over, the partition function cancels: :math:`p(x_i \mid x_{-i}) = \sigma(-g_i(x))`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import softplus

from ..core.arguments import record
from ..core.contracts import HasFlips
from .base import Objective

__all__ = ["PseudoLikelihood", "RatioMatching"]


@record
class PseudoLikelihood(Objective):
    r"""The negative log pseudo-likelihood, :math:`-\sum_i \log p(x_i \mid x_{-i})`.

    References:
        | Besag, "Statistical analysis of non-lattice data", 1975, https://doi.org/10.2307/2987782

    Example:
        >>> import torch, probgen as pg
        >>> PseudoLikelihood()(pg.models.BoltzmannMachine(4), torch.ones(5, 4)).shape
        torch.Size([5])
    """

    requires = (HasFlips,)

    def losses(self, module: HasFlips, x: Tensor, context: Any) -> Tensor:
        return softplus(module.flip_gains(x).flatten(1)).sum(-1)


@record
class RatioMatching(Objective):
    r"""Ratio matching, :math:`\sum_i \sigma(g_i(x))^2`.

    References:
        | Hyvarinen, "Some extensions of score matching", 2007,
          https://doi.org/10.1016/j.csda.2006.09.003

    Example:
        >>> import torch, probgen as pg
        >>> RatioMatching()(pg.models.BoltzmannMachine(4), torch.ones(5, 4)).shape
        torch.Size([5])
    """

    requires = (HasFlips,)

    def losses(self, module: HasFlips, x: Tensor, context: Any) -> Tensor:
        return module.flip_gains(x).flatten(1).sigmoid().square().sum(-1)
