r"""Random-walk Metropolis.

A normal step is proposed and taken with the probability that keeps :math:`\pi` invariant,

.. math:: x' = x + \epsilon L \xi, \quad \xi \sim \mathcal{N}(0, I), \qquad
    \min \left( 1, \frac{\pi(x')}{\pi(x)} \right).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...core.arguments import record
from .base import (
    Info,
    Kernel,
    LogDensity,
    PositionState,
    Scale,
    check_positive,
    check_scale,
    choose,
    decide,
    over,
    start,
    stretch,
)

__all__ = ["Metropolis"]


@record
class Metropolis(Kernel):
    r"""Random-walk Metropolis with normal steps. It needs no gradient.

    References:
        Gelman et al., "Weak convergence and optimal scaling of random walk Metropolis algorithms",
        1997, https://doi.org/10.1214/aoap/1034625254

    Arguments:
        step_size: The step :math:`\epsilon > 0` in units of the scale, a number or a tensor with
            shape :math:`(C)`.
        scale: The factor :math:`L`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> normal = lambda x: -x.square().sum(-1) / 2
        >>> kernel = Metropolis(step_size=1.5)
        >>> state = kernel.init(torch.zeros(1000, 2), normal)
        >>> for _ in range(50):
        ...     state, info = kernel.step(state, normal)
        >>> abs(float(state.position.var()) - 1) < 0.1
        True
    """

    step_size: float | Tensor = 0.5
    scale: Scale | None = None

    gradient: ClassVar[bool] = False
    target: ClassVar[float | None] = 0.234

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_scale(self.scale)

    def init(self, position: Tensor, log_density: LogDensity) -> PositionState:
        return start(self, position, log_density)

    def step(self, state: PositionState, log_density: LogDensity) -> tuple[PositionState, Info]:
        x = state.position
        size = self.step_size
        size = over(size, x) if isinstance(size, Tensor) else size
        proposal = x + size * stretch(self.scale, torch.randn_like(x))
        with torch.no_grad():
            new = PositionState(proposal, log_density(proposal))
        accepted, info = decide(new.log_density - state.log_density)
        return choose(accepted, new, state), info
