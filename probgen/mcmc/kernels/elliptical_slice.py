r"""Elliptical slice sampling.

A density :math:`\pi(x) = \mathcal{N}(x; m, L L^\top) \, \ell(x)` is sampled on ellipses

.. math:: x(\theta) = m + (x - m) \cos \theta + (v - m) \sin \theta,
    \qquad v \sim \mathcal{N}(m, L L^\top),

along which the normal distribution stays: :math:`\theta` is drawn uniformly, and its bracket
shrinks towards 0 until :math:`\log \ell(x(\theta)) > \log \ell(x) + \log u`. Any density has
that form, with :math:`\ell = \pi / \mathcal{N}`; the closer :math:`\ell` is to a constant, the
better.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ...core.arguments import record
from .base import Info, Kernel, LogDensity, PositionState, over, shrink, start, stretch, total

__all__ = ["EllipticalSlice"]


@record
class EllipticalSlice(Kernel):
    r"""Elliptical slice sampling, for normal priors. It has no step size and needs no gradient.

    In base space, where a flow prior is standard normal, it needs no tuning at all.

    References:
        Murray, Adams & MacKay, "Elliptical slice sampling", 2010,
        https://proceedings.mlr.press/v9/murray10a.html

    Arguments:
        mean: The mean :math:`m` of the normal distribution, with the shape of one position; 0 by
            default.
        scale: Its factor :math:`L`; 1 by default.
        shrinks: The greatest number of points tried on an ellipse; a chain that accepts none,
            which happens at far less than one step in a million unless the density is almost
            nowhere positive, stays where it is and counts as diverged.

    Raises:
        TypeError: If `mean` or `scale` is no tensor, or `shrinks` no integer.
        ValueError: If `mean` or `scale` is not finite, `scale` is singular, or `shrinks` is less
            than 1.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> posterior = lambda x: -x.square().sum(-1) / 2 - (x - 1).square().sum(-1) / 2
        >>> kernel = EllipticalSlice()
        >>> state = kernel.init(torch.zeros(1000, 2), posterior)
        >>> for _ in range(50):
        ...     state, info = kernel.step(state, posterior)
        >>> abs(float(state.position.mean()) - 0.5) < 0.1
        True
    """

    mean: Tensor | None = None
    scale: Tensor | None = None
    shrinks: int = 100

    gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_finite("mean", self.mean)
        check_finite("scale", self.scale)
        if self.scale is not None and self.scale.device.type != "meta":
            diagonal = self.scale if self.scale.ndim < 2 else self.scale.diagonal()
            if not bool((diagonal != 0).all()):
                raise ValueError(f"Expected a `scale` without zeros, got {self.scale}.")
        if not isinstance(self.shrinks, int) or isinstance(self.shrinks, bool):
            raise TypeError(f"Expected an integer as `shrinks`, got {self.shrinks!r}.")
        if self.shrinks < 1:
            raise ValueError(f"Expected `shrinks` of at least 1, got {self.shrinks}.")

    def init(self, position: Tensor, log_density: LogDensity) -> PositionState:
        return start(self, position, log_density)

    def step(self, state: PositionState, log_density: LogDensity) -> tuple[PositionState, Info]:
        x = state.position
        offset = x if self.mean is None else x - self.mean
        other = stretch(self.scale, torch.randn_like(x))
        level = state.log_density + self.normal(offset)
        level = level - torch.empty_like(level).exponential_()  # log u
        angle = 2 * math.pi * torch.rand_like(level)
        low, high = angle - 2 * math.pi, angle
        found, position, value = torch.zeros_like(level, dtype=torch.bool), x, state.log_density
        for _ in range(self.shrinks):
            point = offset * over(angle.cos(), x) + other * over(angle.sin(), x)
            proposal = point if self.mean is None else point + self.mean
            with torch.no_grad():
                density = log_density(proposal)
            hit = (density + self.normal(point) > level) & ~found
            position = torch.where(over(hit, x), proposal, position)
            value = torch.where(hit, density, value)
            found = found | hit
            if level.device.type != "meta" and bool(found.all()):
                break  # the rest would change nothing
            low, high = torch.where(angle < 0, angle, low), torch.where(angle < 0, high, angle)
            angle = low + (high - low) * torch.rand_like(level)
        info = Info(found.to(level.dtype), found, ~found)
        return PositionState(position, value), info

    def normal(self, offset: Tensor) -> Tensor:
        """Minus the log of the normal density, up to a constant."""
        return total(shrink(self.scale, offset).square()) / 2


def check_finite(name: str, value: Tensor | None) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"Expected a tensor as `{name}`, got {value!r}.")
    if value.device.type != "meta" and not bool(torch.isfinite(value).all()):
        raise ValueError(f"Expected a finite `{name}`, got {value}.")
