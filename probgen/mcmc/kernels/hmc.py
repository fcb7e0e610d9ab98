r"""Hamiltonian kernels.

With a momentum :math:`r \sim \mathcal{N}(0, I)` and :math:`C = L L^\top`, the leapfrog step

.. math:: r \leftarrow r + \tfrac{\epsilon}{2} L^\top \nabla \log \pi(x), \qquad
    x \leftarrow x + \epsilon L r, \qquad
    r \leftarrow r + \tfrac{\epsilon}{2} L^\top \nabla \log \pi(x)

keeps volume and can be undone. After :math:`n` steps :math:`(x', r')` is taken with probability
:math:`\min(1, e^{H(x, r) - H(x', r')})`, where :math:`H = \tfrac12 r^\top r - \log \pi(x)`.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...core.arguments import record
from .base import (
    GradientState,
    Kernel,
    LogDensity,
    Scale,
    check_positive,
    check_scale,
    check_steps,
    choose,
    decide,
    dense,
    over,
    pull,
    start,
    stretch,
    total,
    value_and_gradient,
)

__all__ = ["HMC", "ChEES", "ChEESState", "Trajectory"]

LIMIT = 1000.0  # nats of energy gained, beyond which a trajectory has diverged


class Trajectory(NamedTuple):
    """Diagnostics of one transition; the trajectory length is adapted from them.

    Arguments:
        acceptance: The acceptance probabilities, with shape :math:`(C)`.
        accepted: Whether each proposal was taken, with shape :math:`(C)`.
        diverged: Whether each trajectory gained more than 1000 nats of energy, or was no longer
            finite, with shape :math:`(C)`. One that ends outside the support, where the log
            density is -inf, is rejected but has not diverged.
        proposal: The proposals :math:`x'`, with shape :math:`(C, *)`.
        momentum: The last momenta :math:`r'`, with shape :math:`(C, *)`.
        length: The length of the trajectory, :math:`n \\epsilon`.
        steps: The number of leapfrog steps :math:`n`.
        outside: Whether each trajectory ended outside the support, with shape :math:`(C)`.
    """

    acceptance: Tensor
    accepted: Tensor
    diverged: Tensor
    proposal: Tensor
    momentum: Tensor
    length: float | Tensor
    steps: int
    outside: Tensor


class ChEESState(NamedTuple):
    r"""The state of :class:`ChEES`.

    Arguments:
        position: The positions :math:`x`, with shape :math:`(C, *)`.
        log_density: The values :math:`\log \pi(x)`, with shape :math:`(C)`.
        gradient: The gradients, with shape :math:`(C, *)`.
        taken: The number of steps taken, which chooses the next length for all chains.
    """

    position: Tensor
    log_density: Tensor
    gradient: Tensor
    taken: int


def trajectory(
    state: GradientState,
    log_density: LogDensity,
    step_size: float | Tensor,
    scale: Scale | None,
    steps: int,
) -> tuple[GradientState, Trajectory]:
    """One trajectory of every chain from a fresh momentum, tested at its end."""
    x, start_density, g = state
    pace = over(step_size, x) if isinstance(step_size, Tensor) else x.new_full((), step_size)
    if isinstance(scale, Tensor) and not dense(scale, x):
        pace, scale = pace * scale, None
    first = torch.randn_like(x)
    r = torch.addcmul(first, pull(scale, g), pace, value=0.5)
    value = start_density
    gradient = getattr(log_density, "gradient", None)
    for k in range(steps):
        x = torch.addcmul(x, stretch(scale, r), pace)
        if gradient is not None and k < steps - 1:  # the value matters at the end alone
            g = gradient(x)
        else:
            value, g = value_and_gradient(x, log_density)
        r = torch.addcmul(r, pull(scale, g), pace, value=1.0 if k < steps - 1 else 0.5)
    kinetic = (total(first.square()) - total(r.square())) / 2
    outside = (value == -torch.inf) & (kinetic >= -LIMIT)
    accepted, info = decide(value - start_density + kinetic, LIMIT, outside)
    new = choose(accepted, GradientState(x, value, g), state)
    return new, Trajectory(*info, x, r, step_size * steps, steps, outside)


@record
class HMC(Kernel):
    r"""Hamiltonian Monte Carlo with a fixed number of leapfrog steps.

    References:
        | Duane et al., "Hybrid Monte Carlo", 1987, https://doi.org/10.1016/0370-2693(87)91197-X
        | Neal, "MCMC using Hamiltonian dynamics", 2011, https://arxiv.org/abs/1206.1901

    Arguments:
        step_size: The step :math:`\epsilon > 0` in units of the scale, a number or a tensor with
            shape :math:`(C)`.
        steps: The number of leapfrog steps :math:`n \ge 1`.
        scale: The factor :math:`L`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> normal = lambda x: -x.square().sum(-1) / 2
        >>> kernel = HMC(step_size=0.5, steps=3)
        >>> state = kernel.init(torch.zeros(1000, 2), normal)
        >>> for _ in range(20):
        ...     state, info = kernel.step(state, normal)
        >>> abs(float(state.position.var()) - 1) < 0.1
        True
    """

    step_size: float | Tensor = 0.1
    steps: int = 10
    scale: Scale | None = None

    target: ClassVar[float | None] = 0.7

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_scale(self.scale)
        check_steps("steps", self.steps)

    def init(self, position: Tensor, log_density: LogDensity) -> GradientState:
        return start(self, position, log_density)

    def step(
        self, state: GradientState, log_density: LogDensity
    ) -> tuple[GradientState, Trajectory]:
        return trajectory(state, log_density, self.step_size, self.scale, self.steps)


@record
class ChEES(Kernel):
    r"""Hamiltonian Monte Carlo whose trajectories have one length for all chains.

    The length of step :math:`k` is :math:`2 u_k T`, where :math:`u_k` is the :math:`k`-th number of
    Halton's sequence in base 2, so that no period of the target is met at every step. Warm-up
    adapts :math:`T` from all chains: with one length for all of them no chain waits for another,
    and the derivative of a criterion in :math:`T` is a mean over chains
    (:class:`TrajectoryLength`).

    References:
        Hoffman, Radul & Sountsov, "An adaptive-MCMC scheme for setting trajectory lengths in
        Hamiltonian Monte Carlo", 2021, https://proceedings.mlr.press/v130/hoffman21a.html

    Arguments:
        step_size: The step :math:`\epsilon > 0` in units of the scale.
        length: The mean length :math:`T > 0` of a trajectory, in units of the scale.
        scale: The factor :math:`L`.
        max_steps: The greatest number of leapfrog steps.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> normal = lambda x: -x.square().sum(-1) / 2
        >>> kernel = ChEES(step_size=0.5, length=1.5)
        >>> state = kernel.init(torch.zeros(1000, 2), normal)
        >>> for _ in range(20):
        ...     state, info = kernel.step(state, normal)
        >>> abs(float(state.position.var()) - 1) < 0.1
        True
    """

    step_size: float = 0.1
    length: float = 1.0
    scale: Scale | None = None
    max_steps: int = 1000

    target: ClassVar[float | None] = 0.85

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_scale(self.scale)
        check_positive("length", self.length)
        check_steps("max_steps", self.max_steps)

    def init(self, position: Tensor, log_density: LogDensity) -> ChEESState:
        return ChEESState._make((*start(self, position, log_density), 0))

    def step(self, state: ChEESState, log_density: LogDensity) -> tuple[ChEESState, Trajectory]:
        length = max((0.5 + halton(state.taken + 1)) * self.length, self.step_size)
        steps = min(math.ceil(length / self.step_size - 1e-9), self.max_steps)
        size = min(length / steps, self.step_size)
        old = GradientState(*state[:3])
        new, info = trajectory(old, log_density, size, self.scale, steps)
        return ChEESState._make((*new, state.taken + 1)), info


def halton(k: int) -> float:
    """Return :math:`k`-th number of Halton's sequence in base 2: the bits of :math:`k` mirrored."""
    u, part = 0.0, 0.5
    while k:
        u, k, part = u + part * (k & 1), k >> 1, part / 2
    return u
