r"""Spectral regularisation: a price on the largest singular values of convolutions.

Of a kernel as a matrix :math:`W` with a row for each output channel, the largest singular value is
:math:`\sigma = u^\top W v` for its singular vectors, which power iteration finds:
:math:`u \propto (W W^\top)^n u_0`. Here the matrix itself is squared :math:`k` times, which takes
:math:`n = 2^k` iterations and needs no vector from the step before, so the penalty is a function of
the parameters alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checks import check_whole

__all__ = ["SpectralRegularized", "spectral_norm"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def spectral_norm(weight: Tensor, squarings: int = 5) -> Tensor:
    r"""The largest singular values of matrices with shape :math:`(*, m, n)`, by power iteration.

    The gradient is that of :math:`u^\top W v` with both vectors held.

    Arguments:
        weight: The matrices.
        squarings: The number of squarings :math:`k`, so :math:`2^k` iterations.

    Returns:
        The values, with shape :math:`(*)`.

    Example:
        >>> float(spectral_norm(torch.diag(torch.tensor([3.0, 1.0]))))
        3.0
    """
    if weight.shape[-2] > weight.shape[-1]:
        weight = weight.mT
    tiny = torch.finfo(weight.dtype).tiny
    with torch.no_grad():
        power = weight @ weight.mT
        for _ in range(squarings + 1):
            power = power / power.square().sum((-2, -1), keepdim=True).sqrt().clamp_min(tiny)
            power = power @ power
        column = power.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
        u = power.take_along_dim(column, -1).squeeze(-1)
        u = u / u.square().sum(-1, keepdim=True).sqrt().clamp_min(tiny)
        v = (weight.mT @ u.unsqueeze(-1)).squeeze(-1)
        v = v / v.square().sum(-1, keepdim=True).sqrt().clamp_min(tiny)
    return (u * (weight @ v.unsqueeze(-1)).squeeze(-1)).sum(-1)


@dataclass(frozen=True)
class SpectralRegularized:
    r"""An objective plus :math:`\lambda \sum_i \sigma_i` over the convolutions of a module.

    It keeps outputs from changing sharply with inputs, and so the divergences of a deep hierarchy
    from growing without bound.

    References:
        | NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020)
        | https://arxiv.org/abs/2007.03898
        | Spectral Norm Regularization for Improving the Generalizability of Deep Learning
          (Yoshida & Miyato, 2017), https://arxiv.org/abs/1705.10941

    Arguments:
        objective: The objective.
        weight: The weight :math:`\lambda \ge 0`, in nats per item.
        squarings: The number of squarings :math:`k` of each kernel, so :math:`2^k` iterations.

    Raises:
        TypeError: If the objective cannot be called.
        ValueError: If `weight` is negative or `squarings` no whole number; when called, if the
            module has no convolutions.

    Example:
        >>> import probgen as pg
        >>> vae = pg.models.HierarchicalVAE((1, 8, 8), channels=4, layers=(1, 1))
        >>> loss = SpectralRegularized(pg.objectives.ELBO(), weight=0.1)
        >>> loss(vae, torch.ones(10, 1, 8, 8)).shape
        torch.Size([10])
    """

    objective: Callable[..., Tensor]
    weight: float = 0.01
    squarings: int = 5

    def __post_init__(self) -> None:
        if not callable(self.objective):
            raise TypeError(
                f"Expected an `objective` to call, got a {type(self.objective).__name__}."
            )
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"Expected `weight` not to be negative, got {self.weight}.")
        check_whole(0, squarings=self.squarings)

    def __call__(self, module: Any, x: Tensor | None, context: Tensor | None = None) -> Tensor:
        r"""Losses with shape :math:`(N)` of data with shape :math:`(N, *)`."""
        return self.objective(module, x, context) + self.weight * self.penalty(module)

    def at(self, fraction: float) -> SpectralRegularized:
        """The objective after a fraction of the training."""
        change = getattr(self.objective, "at", None)
        return self if change is None else replace(self, objective=change(fraction))

    def penalty(self, module: nn.Module) -> Tensor:
        r"""The sum :math:`\sum_i \sigma_i` over the convolutions of a module."""
        alike: dict[torch.Size, list[Tensor]] = {}
        for part in module.modules():
            if isinstance(part, CONVOLUTIONS):
                matrix = part.weight.flatten(1)
                alike.setdefault(matrix.shape, []).append(matrix)
        if not alike:
            raise ValueError(
                f"Expected a module with convolutions for SpectralRegularized, got a "
                f"{type(module).__name__} without."
            )
        norms = [spectral_norm(torch.stack(same), self.squarings) for same in alike.values()]
        return torch.cat(norms).sum()
