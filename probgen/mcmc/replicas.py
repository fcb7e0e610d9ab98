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

    def __post_init__(self) -> None:
        b = [float(x) for x in self.betas]
        if not b or b[0] < 0 or b[-1] != 1 or any(y <= x for x, y in itertools.pairwise(b)):
            raise ValueError(f"Expected `betas` that rise from 0 or more to 1, got {b}.")

    def at(self, beta: float) -> Kernel:
        return self.kernel if isinstance(self.kernel, Kernel) else self.kernel(beta)

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
            return ReplicaState(position, log_density(position[:, -1]), 0)

    def step(self, state: ReplicaState, log_density: LogDensity) -> tuple[ReplicaState, Info]:
        x = list(state.position.unbind(1))
        paths = [path_of(self.at(float(b)), log_density, float(b)) for b in self.betas]
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


def path_of(kernel: Kernel, log_density: LogDensity, beta: float) -> LogDensity:
    own = getattr(kernel, "log_density", None)
    return own if own is not None else Power(log_density, beta)


class Power:
    r"""The log density :math:`\beta \log \pi`."""

    def __init__(self, log_density: LogDensity, beta: float) -> None:
        self.log_density, self.beta = log_density, beta

    def __call__(self, x: Tensor) -> Tensor:
        return self.log_density(x) * self.beta
