r"""Spectral regularisation: a price on the largest singular values of convolutions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..core.arguments import record
from ..core.validation import check_whole
from ..networks.spectral import spectral_norm
from .base import Around, as_objective

__all__ = ["SpectralRegularized"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@record
class SpectralRegularized(Around):
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

    objective: Any
    weight: float = 0.01
    squarings: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", as_objective(self.objective))
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"Expected `weight` not to be negative, got {self.weight}.")
        check_whole(0, squarings=self.squarings)

    def losses(self, module: Any, x: Any, context: Any) -> Tensor:
        return self.objective(module, x, context) + self.weight * self.penalty(module)

    def penalty(self, module: nn.Module) -> Tensor:
        r"""Return the sum :math:`\sum_i \sigma_i` over the convolutions of a module."""
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
