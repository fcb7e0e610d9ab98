r"""Langevin kernels.

The diffusion :math:`dx = C \nabla \log \pi(x) \, dt + \sqrt{2} \, L \, dw` with
:math:`C = L L^\top` leaves :math:`\pi` invariant. One Euler step of size :math:`\epsilon`,

.. math:: x' = x + \epsilon C \nabla \log \pi(x) + \sqrt{2 \epsilon} \, L \xi,
    \qquad \xi \sim \mathcal{N}(0, I),

does so up to a bias of order :math:`\epsilon`: for a normal target with precision :math:`A` and
:math:`L = I` its stationary covariance is :math:`(A - \epsilon A^2 / 2)^{-1}`. It is one leapfrog
step of length :math:`\sqrt{2 \epsilon}`, and MALA, which tests it, has no bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...core.arguments import record
from .base import (
    GradientState,
    Info,
    Kernel,
    LogDensity,
    Scale,
    check_positive,
    check_scale,
    over,
    pull,
    start,
    stretch,
    value_and_gradient,
)
from .hmc import Trajectory, trajectory

__all__ = ["MALA", "SGLD", "ULA", "SGLDState", "minibatch"]


@record
class ULA(Kernel):
    r"""Unadjusted Langevin algorithm: biased by :math:`O(\epsilon)`, and able to use a score alone.

    References:
        Roberts & Tweedie, "Exponential convergence of Langevin distributions and their discrete
        approximations", 1996, https://doi.org/10.2307/3318418

    Arguments:
        step_size: The step :math:`\epsilon > 0`, a number or a tensor with shape :math:`(C)`.
        scale: The factor :math:`L`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> normal = lambda x: -x.square().sum(-1) / 2
        >>> kernel = ULA(step_size=0.1)
        >>> state = kernel.init(torch.zeros(1000, 2), normal)
        >>> for _ in range(100):
        ...     state, info = kernel.step(state, normal)
        >>> abs(float(state.position.var()) - 1 / (1 - 0.1 / 2)) < 0.1
        True
    """

    step_size: float | Tensor = 0.01
    scale: Scale | None = None

    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_scale(self.scale)

    def init(self, position: Tensor, log_density: LogDensity) -> GradientState:
        return start(self, position, log_density)

    def step(self, state: GradientState, log_density: LogDensity) -> tuple[GradientState, Info]:
        return langevin(state, log_density, self.step_size, self.scale)


@record
class MALA(Kernel):
    r"""Metropolis-adjusted Langevin algorithm.

    References:
        Roberts & Tweedie, "Exponential convergence of Langevin distributions and their discrete
        approximations", 1996, https://doi.org/10.2307/3318418

    Arguments:
        step_size: The step :math:`\epsilon > 0`, a number or a tensor with shape :math:`(C)`.
        scale: The factor :math:`L`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> normal = lambda x: -x.square().sum(-1) / 2
        >>> kernel = MALA(step_size=0.5)
        >>> state = kernel.init(torch.zeros(1000, 2), normal)
        >>> for _ in range(50):
        ...     state, info = kernel.step(state, normal)
        >>> abs(float(state.position.var()) - 1) < 0.1
        True
    """

    step_size: float | Tensor = 0.1
    scale: Scale | None = None

    target: ClassVar[float | None] = 0.574

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_scale(self.scale)

    def init(self, position: Tensor, log_density: LogDensity) -> GradientState:
        return start(self, position, log_density)

    def step(
        self, state: GradientState, log_density: LogDensity
    ) -> tuple[GradientState, Trajectory]:
        return trajectory(state, log_density, (2 * self.step_size) ** 0.5, self.scale, 1)


class SGLDState(NamedTuple):
    r"""The state of :class:`SGLD`.

    Arguments:
        position: The positions :math:`x`, with shape :math:`(C, *)`.
        log_density: The estimates of :math:`\log \pi(x)`, with shape :math:`(C)`.
        gradient: The estimates of the gradients, with shape :math:`(C, *)`.
        taken: The number of steps taken.
    """

    position: Tensor
    log_density: Tensor
    gradient: Tensor
    taken: int


@record
class SGLD(Kernel):
    r"""Langevin dynamics with estimated gradients, such as those of a mini-batch.

    The step is that of :class:`ULA`, of size :math:`\epsilon_k = \epsilon (1 + k / b)^{-\gamma}`.
    The noise of the gradients adds to the bias unless :math:`\gamma > 0`: with a gradient whose
    covariance is :math:`V`, a normal target of precision :math:`A` and a fixed size, the
    stationary covariance solves
    :math:`\Sigma - (I - \epsilon A) \Sigma (I - \epsilon A) = 2 \epsilon I + \epsilon^2 V`.

    References:
        Welling & Teh, "Bayesian learning via stochastic gradient Langevin dynamics", 2011,
        https://dl.acm.org/doi/10.5555/3104482.3104568

    Arguments:
        step_size: The first step :math:`\epsilon > 0`.
        decay: The exponent :math:`\gamma \ge 0`; 0.33 is the usual choice, 0 keeps the size.
        delay: The number of steps :math:`b > 0` after which the size falls.
        scale: The factor :math:`L`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> noisy = lambda x: -(x + 0.1 * torch.randn_like(x)).square().sum(-1) / 2
        >>> kernel = SGLD(step_size=0.1, decay=0.33)
        >>> state = kernel.init(torch.zeros(1000, 2), noisy)
        >>> for _ in range(100):
        ...     state, info = kernel.step(state, noisy)
        >>> abs(float(state.position.var()) - 1) < 0.1
        True
    """

    step_size: float = 0.001
    decay: float = 0.0
    delay: float = 100.0
    scale: Scale | None = None

    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_scale(self.scale)
        check_positive("delay", self.delay)
        if not 0 <= self.decay < math.inf:
            raise ValueError(f"Expected a `decay` of at least 0, got {self.decay}.")

    def init(self, position: Tensor, log_density: LogDensity) -> SGLDState:
        return SGLDState._make((*start(self, position, log_density), 0))

    def step(self, state: SGLDState, log_density: LogDensity) -> tuple[SGLDState, Info]:
        size = self.step_size * (1 + state.taken / self.delay) ** -self.decay
        new, info = langevin(GradientState(*state[:3]), log_density, size, self.scale)
        return SGLDState._make((*new, state.taken + 1)), info


def langevin(
    state: GradientState, log_density: LogDensity, size: float | Tensor, scale: Scale | None
) -> tuple[GradientState, Info]:
    """One Euler step, which is not tested; a chain that leaves the numbers stays where it is."""
    x, _, g = state
    size = over(size, x) if isinstance(size, Tensor) else size
    noise = (2 * size) ** 0.5 * torch.randn_like(x)
    proposal = x + stretch(scale, size * pull(scale, g) + noise)
    new = GradientState(proposal, *value_and_gradient(proposal, log_density))
    kept = torch.isfinite(new.gradient).flatten(1).all(-1)
    chosen = (torch.where(over(kept, a), a, b) for a, b in zip(new, state))
    return GradientState(*chosen), Info(torch.ones_like(new.log_density), kept, ~kept)


def minibatch(
    log_prior: LogDensity,
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    data: Tensor,
    batch_size: int,
) -> LogDensity:
    r"""Return an unbiased estimate of a log density, from other data at each call.

    .. math:: \log p(\theta) + \frac{N}{n} \sum_{i \in B} \log p(x_i \mid \theta)

    Arguments:
        log_prior: Maps parameters with shape :math:`(C, *)` to values with shape :math:`(C)`.
        log_likelihood: Maps parameters and a batch of data, with shape :math:`(n, *)`, to values
            with shape :math:`(C, n)`.
        data: The data, with shape :math:`(N, *)`.
        batch_size: The number :math:`n` of data at each call, drawn with replacement and shared
            by all chains, which are therefore not independent of each other.

    Raises:
        ValueError: If the size is not in 1 to :math:`N`.

    Example:
        >>> data = torch.randn(100)
        >>> log_density = minibatch(
        ...     lambda m: -m.square().sum(-1) / 2, lambda m, x: -(x - m).square() / 2, data, 10
        ... )
        >>> log_density(torch.zeros(5, 1)).shape
        torch.Size([5])
    """
    count = len(data)
    if not 1 <= batch_size <= count:
        raise ValueError(f"Expected a `batch_size` in 1 to {count}, got {batch_size}.")

    def log_density(theta: Tensor) -> Tensor:
        batch = data[torch.randint(count, (batch_size,), device=data.device)]
        return log_prior(theta) + log_likelihood(theta, batch).mean(-1) * count

    return log_density
