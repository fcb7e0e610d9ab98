r"""Parallel tempering.

Replicas :math:`x_1, \dots, x_K` of a chain, at temperatures :math:`\beta_1 < \dots < \beta_K = 1`,
have the law :math:`\prod_k \pi_k(x_k)`, with :math:`\pi_k \propto \pi^{\beta_k}` unless the kernel
has a law of its own. Each takes a step of a kernel, then neighbours are exchanged with probability

.. math:: \min \Bigl( 1, \frac{\pi_k(x_{k+1}) \, \pi_{k+1}(x_k)}
    {\pi_k(x_k) \, \pi_{k+1}(x_{k+1})} \Bigr),

so that the last replica, whose law is :math:`\pi`, crosses valleys as the first one does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .kernel import Info, Kernel, LogDensity

__all__ = ["ParallelTempering", "ReplicaState"]


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


@dataclass(frozen=True)
class ParallelTempering(Kernel):
    r"""Parallel tempering: replicas at several temperatures, and exchanges of neighbours.

    References:
        | Geyer, "Markov chain Monte Carlo maximum likelihood", 1991
        | Desjardins et al., "Tempered Markov chain Monte Carlo for training of restricted
          Boltzmann machines", 2010, https://proceedings.mlr.press/v9/desjardins10a.html

    Arguments:
        kernel: A kernel, or a function of :math:`\beta` that gives one. If those have a log
            density of their own, as a :class:`BlockGibbs` with scaled weights has, that is the law
            of the replica.
        betas: The temperatures :math:`0 \le \beta_1 < \dots < \beta_K = 1`.
        base: A log density :math:`\log \pi_0`, so that replicas follow the geometric path,
            :math:`\pi_k \propto \pi_0^{1 - \beta_k} \pi^{\beta_k}`.

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

    kernel: Kernel | Callable[[float], Kernel]
    betas: Sequence[float]
    base: LogDensity | None = None

    def __post_init__(self) -> None:
        b = [float(x) for x in self.betas]
        if not b or not b[0] >= 0 or b[-1] != 1 or any(not y > x for x, y in itertools.pairwise(b)):
            raise ValueError(f"Expected `betas` that rise from 0 or more to 1, got {b}.")

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
        """Starts replicas with shape :math:`(C, K, *)`."""
        self.check(log_density)
        count = len(self.betas)
        if position.ndim < 2 or position.shape[1] != count:
            raise ValueError(
                f"Expected a position with shape (chains, {count}, *), a replica for each "
                f"temperature, got {tuple(position.shape)}."
            )
        with torch.no_grad():
            taken = int(torch.randint(2, ()))  # either half of the pairs comes first
            return ReplicaState(position, log_density(position[:, -1]), taken)

    def step(self, state: ReplicaState, log_density: LogDensity) -> tuple[ReplicaState, Info]:
        x = list(state.position.unbind(1))
        paths = [self.path_at(float(b), log_density) for b in self.betas]
        diverged: Tensor | bool = False
        for k, beta in enumerate(self.betas):
            kernel = self.at(float(beta))
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
