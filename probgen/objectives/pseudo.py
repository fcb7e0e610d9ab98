r"""Objectives of binary units that look at one unit given the others.

With :math:`g_i(x) = f(x^{(i)}) - f(x)`, :math:`x^{(i)}` being :math:`x` with unit :math:`i`
turned over, the partition function cancels: :math:`p(x_i \mid x_{-i}) = \sigma(-g_i(x))`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["PseudoLikelihood", "RatioMatching"]


def gains(module: Any, x: Tensor | None, context: Tensor | None, name: str) -> Tensor:
    if x is None:
        raise ValueError(f"Expected data, since {name} fits data, got None.")
    if not hasattr(module, "flip_gains"):
        raise TypeError(
            f"Expected a model of binary units for {name}, got a {type(module).__name__}."
        )
    return module.flip_gains(x).flatten(1)


@dataclass(frozen=True)
class PseudoLikelihood:
    r"""The negative log pseudo-likelihood, :math:`-\sum_i \log p(x_i \mid x_{-i})`.

    References:
        | Besag, "Statistical analysis of non-lattice data", 1975, https://doi.org/10.2307/2987782

    Example:
        >>> import torch, probgen as pg
        >>> PseudoLikelihood()(pg.models.BoltzmannMachine(4), torch.ones(5, 4)).shape
        torch.Size([5])
    """

    def __call__(self, module: Any, x: Tensor | None, context: Tensor | None = None) -> Tensor:
        r"""Losses with shape :math:`(N)` of data with shape :math:`(N, *)`."""
        return softplus(gains(module, x, context, type(self).__name__)).sum(-1)


@dataclass(frozen=True)
class RatioMatching:
    r"""Ratio matching, :math:`\sum_i \sigma(g_i(x))^2`.

    References:
        | Hyvarinen, "Some extensions of score matching", 2007,
          https://doi.org/10.1016/j.csda.2006.09.003

    Example:
        >>> import torch, probgen as pg
        >>> RatioMatching()(pg.models.BoltzmannMachine(4), torch.ones(5, 4)).shape
        torch.Size([5])
    """

    def __call__(self, module: Any, x: Tensor | None, context: Tensor | None = None) -> Tensor:
        r"""Losses with shape :math:`(N)` of data with shape :math:`(N, *)`."""
        return gains(module, x, context, type(self).__name__).sigmoid().square().sum(-1)
