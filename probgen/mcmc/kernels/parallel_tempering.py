r"""Parallel tempering.

Replicas :math:`x_1, \dots, x_K` of a chain, at inverse temperatures
:math:`\beta_1 < \dots < \beta_K = 1`, have the distribution :math:`\prod_k \pi_k(x_k)`, with
:math:`\pi_k \propto \pi^{\beta_k}` unless the kernel has a density of its own. Each takes a step of
a kernel, then neighbours are exchanged, even and odd pairs in turn, with probability

.. math:: \min \Bigl( 1, \frac{\pi_k(x_{k+1}) \, \pi_{k+1}(x_k)}
    {\pi_k(x_k) \, \pi_{k+1}(x_{k+1})} \Bigr),

so that the last replica, whose distribution is :math:`\pi`, crosses valleys as the first one does.
With :math:`r_k` the rejection rate of pair :math:`k`, the best ladder has equal rates: warm-up
places temperatures at equal steps of the communication barrier :math:`\sum_k r_k`.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core.arguments import record
from ..adaptation import WINDOWS, StepSize
from .base import Info, Kernel, LogDensity, value_and_gradient
from .hmc import HMC

__all__ = ["ParallelTempering", "ReplicaState"]

LEVELS = 12  # temperatures of a ladder that warm-up adapts
HOTTEST = 0.01


class ReplicaState(NamedTuple):
    r"""The state of :class:`ParallelTempering`.

    Arguments:
        position: The replicas, the coldest last, with shape :math:`(C, K, *)`.
        log_density: The log densities of the coldest, with shape :math:`(C)`.
        taken: The number of steps taken, whose parity says which pairs are due.
    """

    position: Tensor
    log_density: Tensor
    taken: int


class LadderInfo(NamedTuple):
    """Diagnostics of one transition of all replicas.

    Arguments:
        acceptance: The mean swap acceptance of the pairs that were due, with shape :math:`(C)`.
        accepted: Whether some pair was exchanged, with shape :math:`(C)`.
        diverged: Whether some replica diverged, with shape :math:`(C)`.
        levels: The acceptance of the kernel at each temperature, with shape :math:`(K)`.
        swaps: The mean swap acceptance of each pair, nan if not due, with shape :math:`(K - 1)`.
    """

    acceptance: Tensor
    accepted: Tensor
    diverged: Tensor
    levels: Tensor
    swaps: Tensor


class Tempered:
    r"""The log densities of replicas in one batch, with shape :math:`(C K)`."""

    def __init__(self, target: LogDensity, base: LogDensity | None, betas: Tensor) -> None:
        self.target, self.base, self.betas = target, base, betas

    def __call__(self, x: Tensor) -> Tensor:
        value = self.betas * self.target(x)
        return value if self.base is None else value + (1 - self.betas) * self.base(x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log densities and their gradients."""
        value, gradient = value_and_gradient(x, self.target)
        value, gradient = self.betas * value, self.betas[:, None] * gradient
        if self.base is None:
            return value, gradient
        more, slope = value_and_gradient(x, self.base)
        return value + (1 - self.betas) * more, gradient + (1 - self.betas)[:, None] * slope


@record
class ParallelTempering(Kernel):
    r"""Parallel tempering: replicas at several temperatures, and exchanges of neighbours.

    Without temperatures :func:`~probgen.mcmc.run` adapts a ladder of 12, from :math:`\beta = 0.01`
    to 1, and a step size at each. Take it where a posterior has modes between which chains do not
    cross: ``run(model, kernel=ParallelTempering(), chains=32)``.

    References:
        | Geyer, "Markov chain Monte Carlo maximum likelihood", 1991
        | Desjardins et al., "Tempered Markov chain Monte Carlo for training of restricted
          Boltzmann machines", 2010, https://proceedings.mlr.press/v9/desjardins10a.html
        | Syed et al., "Non-reversible parallel tempering: a scalable highly parallel MCMC scheme",
          2022, https://arxiv.org/abs/1905.02939

    Arguments:
        kernel: A kernel, or a function of :math:`\beta` that gives one. If those have a log
            density of their own, as a :class:`BlockGibbs` with scaled weights has, that is the
            distribution of the replica. :class:`HMC` of 5 steps by default.
        betas: The inverse temperatures :math:`0 \le \beta_1 < \dots < \beta_K = 1`; by default
            warm-up adapts them.
        base: A log density :math:`\log \pi_0`, so that replicas follow the geometric path,
            :math:`\pi_k \propto \pi_0^{1 - \beta_k} \pi^{\beta_k}`.
        step_sizes: The step sizes of the kernel at each temperature, with shape :math:`(K)`;
            by default the kernel's own, until warm-up adapts them.

    Raises:
        ValueError: If the temperatures do not rise to 1.

    Example:
        Two modes that a random walk does not leave within these steps:

        >>> from probgen.mcmc import Metropolis
        >>> _ = torch.manual_seed(0)
        >>> def log_density(x):
        ...     return torch.logaddexp(-(x - 5).square(), -(x + 5).square()).sum(-1)
        >>> kernel = ParallelTempering(Metropolis(1.5), (0.02, 0.1, 0.4, 1.0))
        >>> state = kernel.init(torch.full((500, 4, 1), 5.0), log_density)
        >>> for _ in range(200):
        ...     state, info = kernel.step(state, log_density)
        >>> abs(float((state.position[:, -1] > 0).float().mean()) - 0.5) < 0.1
        True
    """

    kernel: Kernel | Callable[[float], Kernel] = dataclasses.field(
        default_factory=lambda: HMC(0.5, 5)
    )
    betas: Sequence[float] | None = None
    base: LogDensity | None = None
    step_sizes: Tensor | None = None

    def __post_init__(self) -> None:
        if self.betas is None:
            return
        b = [float(x) for x in self.betas]
        if not b or not b[0] >= 0 or b[-1] != 1 or any(not y > x for x, y in itertools.pairwise(b)):
            raise ValueError(f"Expected `betas` that rise from 0 or more to 1, got {b}.")

    def ladder(self) -> list[float]:
        """Return the inverse temperatures."""
        if self.betas is not None:
            return [float(b) for b in self.betas]
        return [HOTTEST ** (1 - k / (LEVELS - 1)) for k in range(LEVELS)]

    def spread(self, position: Tensor) -> Tensor:
        """Replicas with shape :math:`(C, K, *)` of positions with shape :math:`(C, *)`."""
        return position[:, None].repeat(1, len(self.ladder()), *[1] * (position.ndim - 1))

    def at(self, beta: float) -> Kernel:
        return self.kernel if isinstance(self.kernel, Kernel) else self.kernel(beta)

    def path_at(self, beta: float, log_density: LogDensity) -> LogDensity:
        own = getattr(self.at(beta), "log_density", None)
        if own is not None:
            return own
        base = self.base
        if base is None:
            return lambda x: log_density(x) * beta
        return lambda x: log_density(x) * beta + base(x) * (1 - beta)

    def init(self, position: Tensor, log_density: LogDensity) -> ReplicaState:
        """Start replicas with shape :math:`(C, K, *)`."""
        self.check(log_density)
        count = len(self.ladder())
        if position.ndim < 2 or position.shape[1] != count:
            raise ValueError(
                f"Expected a position with shape (chains, {count}, *), a replica for each "
                f"temperature, got {tuple(position.shape)}."
            )
        with torch.no_grad():
            taken = int(torch.randint(2, ()))  # either half of the pairs comes first
            return ReplicaState(position, log_density(position[:, -1]), taken)

    def batched(self, position: Tensor) -> bool:
        """Whether all replicas take one step of one kernel in one batch."""
        if not isinstance(self.kernel, Kernel) or position.ndim != 3 or self.ladder()[0] <= 0:
            return False
        kernel: Any = self.kernel
        return kernel.target is not None and "step_size" in {f.name for f in fields(kernel)}

    def step(self, state: ReplicaState, log_density: LogDensity) -> tuple[ReplicaState, Any]:
        if self.batched(state.position):
            return self.together(state, log_density)
        return self.apart(state, log_density)

    def together(
        self, state: ReplicaState, log_density: LogDensity
    ) -> tuple[ReplicaState, LadderInfo]:
        """One transition of all replicas in one batch."""
        x = state.position
        (chains, count), betas = x.shape[:2], torch.tensor(self.ladder()).to(x)
        kernel: Any = self.kernel
        if self.step_sizes is not None:
            sizes = self.step_sizes.to(x).repeat(chains)
            kernel = dataclasses.replace(kernel, step_size=sizes)
        path = Tempered(log_density, self.base, betas.repeat(chains))
        flat = x.reshape(chains * count, -1)
        new, info = kernel.step(kernel.init(flat, path), path)
        x = new.position.reshape(x.shape)
        value = new.log_density.reshape(chains, count)
        if self.base is not None:  # what a change of temperature multiplies
            with torch.no_grad():
                base = self.base(new.position).reshape(chains, count)
            own = (value - (1 - betas) * base) / betas
            value = own - base
        else:
            own = value = value / betas
        order, rates = torch.arange(count, device=x.device).repeat(chains, 1), []
        swaps = value.new_full((count - 1,), torch.nan)
        for k in range(state.taken % 2, count - 1, 2):
            ratio = (betas[k + 1] - betas[k]) * (value[:, k] - value[:, k + 1])
            rates.append(ratio.clamp(max=0).exp())
            low = torch.where(torch.rand_like(ratio) < rates[-1], k + 1, k)
            order[:, k], order[:, k + 1] = low, 2 * k + 1 - low
            swaps[k] = rates[-1].mean()
        x = x.gather(1, order[..., None].expand_as(x))
        own = own.gather(1, order)
        swapped = (order != torch.arange(count, device=x.device)).any(1)
        mean = torch.stack(rates).mean(0) if rates else torch.ones_like(own[:, 0])
        levels = info.acceptance.reshape(chains, count).mean(0)
        diverged = info.diverged.reshape(chains, count)[:, -1]
        new_state = ReplicaState(x, own[:, -1], state.taken + 1)
        return new_state, LadderInfo(mean, swapped, diverged, levels, swaps)

    def warm_up(
        self, state: ReplicaState, log_density: LogDensity, steps: int
    ) -> Iterator[tuple[ParallelTempering, ReplicaState, Any]]:
        """Adapt the temperatures, unless they are given, and the step size at each.

        Arguments:
            state: The state.
            log_density: The log density.
            steps: The number of steps.

        Yields:
            After each step the kernel for the next one, the state, and its diagnostics.
        """
        warm = LadderWarmUp.begin(self, state, steps)
        for _ in range(steps):
            warm, state, info = warm.step(state, log_density)
            yield warm.kernel, state, info

    def apart(self, state: ReplicaState, log_density: LogDensity) -> tuple[ReplicaState, Info]:
        """One transition, one replica after the other."""
        x = list(state.position.unbind(1))
        paths = [self.path_at(b, log_density) for b in self.ladder()]
        diverged: Tensor | bool = False
        for k, beta in enumerate(self.ladder()):
            kernel = self.at(beta)
            new, info = kernel.step(kernel.init(x[k], paths[k]), paths[k])
            x[k], diverged = new.position, info.diverged | diverged
        rates, swapped = [], torch.zeros_like(state.log_density, dtype=torch.bool)
        with torch.no_grad():
            for k in range(state.taken % 2, len(x) - 1, 2):
                cold, hot = paths[k + 1], paths[k]
                ratio = cold(x[k]) - cold(x[k + 1]) + hot(x[k + 1]) - hot(x[k])
                rate = ratio.clamp(max=0).exp()
                swap = torch.rand_like(rate) < rate
                where = swap.reshape(-1, *[1] * (x[k].ndim - 1))
                x[k], x[k + 1] = (
                    torch.where(where, x[k + 1], x[k]),
                    torch.where(where, x[k], x[k + 1]),
                )
                rates.append(rate)
                swapped = swapped | swap
            value = log_density(x[-1])
        mean = torch.stack(rates).mean(0) if rates else torch.ones_like(value)
        new_state = ReplicaState(torch.stack(x, 1), value, state.taken + 1)
        return new_state, Info(mean, swapped, torch.as_tensor(diverged))


@dataclass(frozen=True)
class LadderWarmUp:
    """The state of the warm-up of replicas between two steps.

    A step makes a new one and leaves the old one as it is.

    Arguments:
        kernel: The kernel of the last step; the first one before it.
        steps: The number of steps of warm-up.
        taken: The number of steps that were taken.
        sizes: The approximations of the step sizes; None if the kernel is only run.
        refused: The sum of rejection rates of each pair since the last window.
        due: How often each pair was due since then.
        given: Whether the temperatures were given, and stay.
    """

    kernel: ParallelTempering
    steps: int
    taken: int = 0
    sizes: list[StepSize] | None = None
    refused: Tensor | None = None
    due: Tensor | None = None
    given: bool = False

    @classmethod
    def begin(cls, kernel: ParallelTempering, state: ReplicaState, steps: int) -> LadderWarmUp:
        """Start warm-up: a first step size at each temperature."""
        if not kernel.batched(state.position):
            return cls(kernel, steps)
        inner: Any = kernel.kernel
        betas = kernel.ladder()
        sizes = [StepSize(float(inner.step_size) / b**0.5, inner.target) for b in betas]
        none = torch.zeros(len(betas) - 1)
        return cls(kernel, steps, 0, sizes, none, none, kernel.betas is not None)

    def step(
        self, state: ReplicaState, log_density: LogDensity
    ) -> tuple[LadderWarmUp, ReplicaState, Any]:
        """Take one step, and adapt."""
        kernel, taken = self.kernel, self.taken + 1
        if self.sizes is None or self.refused is None or self.due is None:
            state, info = kernel.step(state, log_density)
            return dataclasses.replace(self, taken=taken), state, info
        now = [s.average if taken == self.steps else s.current for s in self.sizes]
        kernel = dataclasses.replace(kernel, step_sizes=torch.tensor(now))
        state, info = kernel.step(state, log_density)
        sizes = [copy.copy(size) for size in self.sizes]
        for size, alpha in zip(sizes, info.levels.tolist()):
            size.update(alpha)
        seen = ~torch.isnan(info.swaps)
        refused = self.refused + torch.where(seen, 1 - info.swaps, 0).to(self.refused)
        due = self.due + seen.to(self.due)
        if taken in {round(part * self.steps) for part in WINDOWS}:
            if not self.given and bool((due > 0).all()):
                old = kernel.ladder()
                betas = even(old, refused / due)
                kernel = dataclasses.replace(kernel, betas=tuple(betas))
                now = between(old, [s.average for s in sizes], betas)
            sizes = [StepSize(s, size.target) for s, size in zip(now, sizes)]
            refused, due = torch.zeros_like(refused), torch.zeros_like(due)
        new = LadderWarmUp(kernel, self.steps, taken, sizes, refused, due, self.given)
        return new, state, info


def even(betas: list[float], refused: Tensor) -> list[float]:
    """Temperatures between which swaps are refused equally often."""
    barrier = [0.0, *refused.clamp(min=0.01).cumsum(0).tolist()]
    steps = [barrier[-1] * k / (len(betas) - 1) for k in range(len(betas))]
    new = between(barrier, betas, steps)
    return [*new[:-1], 1.0]


def between(x: list[float], y: list[float], new: list[float]) -> list[float]:
    """Interpolate positive values linearly in their logarithms."""
    found = []
    for point in new:
        k = next((k for k in range(1, len(x) - 1) if point <= x[k]), len(x) - 1)
        part = min(max((point - x[k - 1]) / max(x[k] - x[k - 1], 1e-300), 0.0), 1.0)
        found.append(math.exp(math.log(y[k - 1]) * (1 - part) + math.log(y[k]) * part))
    return found
