r"""Evidence by annealing.

Between a base density :math:`p_0`, which is normalised, and a target :math:`\tilde p_1` lies a path

.. math:: \log p_\beta(x) = (1 - \beta) \log p_0(x) + \beta \log \tilde p_1(x),
    \qquad 0 = \beta_0 < \dots < \beta_K = 1.

A draw from :math:`p_0` that takes a step of a kernel at each :math:`\beta_k` gains the weight

.. math:: \log w = \sum_k (\beta_k - \beta_{k-1}) \, (\log \tilde p_1 - \log p_0)(x_{k-1}),

whose mean is exactly the evidence, :math:`E[w] = Z = \int \tilde p_1(x) \, dx`, if the kernel
leaves :math:`p_{\beta_k}` invariant, however slowly it mixes. Sequential Monte Carlo also draws the
particles anew by their weights at each temperature.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..core.validation import outside
from .adaptation import crossing
from .arguments import check_kernel
from .kernels.base import Kernel, LogDensity, value_and_gradient
from .kernels.metric import Moments

__all__ = ["Annealed", "ais", "smc"]

KernelAt = Callable[[float], Kernel]


class Annealed(NamedTuple):
    r"""The result of annealing.

    Arguments:
        position: The draws, with shape :math:`(C, *)`.
        log_weights: Their log weights, with shape :math:`(C)`.
        log_z: The log evidence; of a base that is not normalised, the log of the ratio of the
            normalising constants.
        se: Its standard error.
        ess: The effective sample size :math:`(\sum w)^2 / \sum w^2`.
        temperatures: The :math:`\beta_k`, with shape :math:`(K + 1)`.
    """

    position: Any
    log_weights: Tensor
    log_z: float
    se: float
    ess: float
    temperatures: Tensor


class AnnealingPath:
    r"""The log density at :math:`\beta`."""

    def __init__(self, base: LogDensity, target: LogDensity, beta: float) -> None:
        self.base, self.target, self.beta = base, target, beta

    def __call__(self, x: Any) -> Tensor:
        return self.base(x) * (1 - self.beta) + self.target(x) * self.beta

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density and its gradient."""
        a, da = value_and_gradient(x, self.base)
        b, db = value_and_gradient(x, self.target)
        return torch.lerp(a, b, self.beta), torch.lerp(da, db, self.beta)


def ais(
    base: LogDensity,
    target: LogDensity,
    initial: Any,
    kernel: Kernel | KernelAt,
    temperatures: int | Tensor = 1000,
    *,
    progress: bool = False,
) -> Annealed:
    r"""Annealed importance sampling.

    References:
        Neal, "Annealed importance sampling", 2001, https://arxiv.org/abs/physics/9803008

    Arguments:
        base: The log density of the base, normalised if `log_z` is to be the evidence.
        target: The log density of the target.
        initial: Draws from the base, with shape :math:`(C, *)`, or a dictionary of them.
        kernel: A kernel, or a function of :math:`\beta` that gives one. If those have a log
            density of their own, as a :class:`BlockGibbs` with scaled weights has, the path goes
            along theirs.
        temperatures: The number :math:`K` of equal steps in :math:`\beta`, or the rising values
            :math:`0, \dots, 1` themselves.
        progress: Whether to show a progress bar.

    Returns:
        The log evidence, its standard error and the weighted draws.

    Raises:
        TypeError: If `kernel` is neither a kernel nor a function that gives one.
        ValueError: If the temperatures do not rise from 0 to 1.

    Warns:
        UserWarning: If the effective sample size is below a tenth of the chains: the estimate then
            rests on a few of them, and its standard error is too small.

    Example:
        >>> from probgen.mcmc import HMC
        >>> _ = torch.manual_seed(0)
        >>> base = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> target = lambda x: -2 * (x - 1).square().sum(-1)  # whose integral is pi / 2
        >>> result = ais(base.log_prob, target, base.sample((500,)), HMC(0.3, 3), 50)
        >>> abs(result.log_z - math.log(math.pi / 2)) < 4 * result.se
        True
    """
    check_kernel_at(kernel)
    betas = ladder(temperatures)
    position, at = initial, kernel if not isinstance(kernel, Kernel) else lambda beta: kernel
    weights: Any = 0.0
    steps = betas.tolist()
    level: LogDensity = AnnealingPath(base, target, 0.0)
    for last, beta in zip(tqdm(steps[:-1], disable=not progress, leave=False), steps[1:]):
        current = at(beta)
        path = path_at(base, target, current, beta)
        with torch.no_grad():
            if isinstance(path, AnnealingPath) and isinstance(level, AnnealingPath):
                weights = weights + (beta - last) * (target(position) - base(position))
            else:
                weights = weights + path(position) - level(position)
        if beta < 1:
            position = living(position, weights)
            position, level = move(current, position, path, 1)[0], path
    ess = float(2 * weights.logsumexp(0) - (2 * weights).logsumexp(0).double())
    return finish(position, weights, math.exp(ess), betas, weights[:, None])


def smc(
    base: LogDensity,
    target: LogDensity,
    initial: Any,
    kernel: Kernel | KernelAt,
    *,
    threshold: float = 0.5,
    steps: int = 5,
    islands: int = 8,
    progress: bool = False,
) -> Annealed:
    r"""Sequential Monte Carlo with temperatures that follow from the weights.

    The next :math:`\beta` is the one at which the effective sample size of the new weights falls to
    a fraction of the particles. They are then drawn anew, systematically, within each of several
    islands that never meet, so that the spread of the islands' evidence is an honest standard
    error. A kernel with a step size and a scale is adapted to the particles at each temperature.

    References:
        | Del Moral, Doucet & Jasra, "Sequential Monte Carlo samplers", 2006,
          https://arxiv.org/abs/cond-mat/0212648
        | Jasra et al., "Inference for Levy-driven stochastic volatility models via adaptive
          sequential Monte Carlo", 2011, https://doi.org/10.1111/j.1467-9469.2010.00723.x

    Arguments:
        base: The log density of the base, normalised if `log_z` is to be the evidence.
        target: The log density of the target.
        initial: Draws from the base, with shape :math:`(C, *)`, or a dictionary of them.
        kernel: A kernel, or a function of :math:`\beta` that gives one.
        threshold: The fraction of the particles, in (0, 1).
        steps: The number of steps of the kernel at each temperature.
        islands: The number of islands, which divides :math:`C`.
        progress: Whether to show a progress bar.

    Returns:
        The log evidence, its standard error and the draws; the weights are those of the islands.

    Raises:
        TypeError: If `kernel` is neither a kernel nor a function that gives one.
        ValueError: If the islands do not divide the chains, the threshold is no fraction, or
            `steps` is less than 1.

    Warns:
        UserWarning: If the effective sample size is below a tenth of the chains.

    Example:
        >>> from probgen.mcmc import HMC
        >>> _ = torch.manual_seed(0)
        >>> base = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> target = lambda x: -2 * (x - 1).square().sum(-1)  # whose integral is pi / 2
        >>> result = smc(base.log_prob, target, base.sample((800,)), HMC(0.3, 3))
        >>> abs(result.log_z - math.log(math.pi / 2)) < 4 * result.se
        True
    """
    check_kernel_at(kernel)
    position, chains = initial, size_of(initial)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"Expected `steps` of at least 1, got {steps!r}.")
    if not 0 < threshold < 1:
        raise ValueError(f"Expected a `threshold` in (0, 1), got {threshold}.")
    if islands < 2 or chains % islands:
        raise ValueError(f"Expected `islands` >= 2 that divide {chains}, got {islands}.")
    betas, log_z = [0.0], torch.zeros(())
    fixed = isinstance(kernel, Kernel)
    at = kernel if not isinstance(kernel, Kernel) else lambda beta: kernel
    with tqdm(total=1.0, disable=not progress, leave=False) as bar:
        while betas[-1] < 1:
            weigh = gains(base, target, at, betas[-1], position)
            beta = next_beta(weigh, betas[-1], threshold)
            weights = weigh(beta).reshape(islands, -1)
            log_z = log_z + weights.logsumexp(1) - math.log(chains // islands)
            position = chosen(position, resample(weights))
            current: Any = at(beta)
            path = path_at(base, target, current, beta)
            if fixed:
                current = adapted(current, position, path)
            position, acceptance = move(current, position, path, steps)
            if fixed and hasattr(current, "step_size") and current.target is not None:
                change = math.exp(harmonic(acceptance) - current.target)
                kernel = dataclasses.replace(current, step_size=current.step_size * change)
            bar.update(beta - betas[-1])
            betas.append(beta)
    spread = log_z.repeat_interleave(chains // islands)
    ess = chains * float((2 * log_z.logsumexp(0) - (2 * log_z).logsumexp(0)).exp()) / islands
    return finish(position, spread, ess, torch.tensor(betas), log_z[:, None])


def check_kernel_at(kernel: Any) -> None:
    """Refuses what is neither a kernel nor a function that gives one."""
    if isinstance(kernel, (type, str)) or not callable(kernel):
        check_kernel(kernel)


def ladder(temperatures: int | Tensor) -> Tensor:
    if isinstance(temperatures, bool) or not isinstance(temperatures, (int, Tensor)):
        raise TypeError(f"Expected an integer or a tensor as `temperatures`, got {temperatures!r}.")
    if isinstance(temperatures, int):
        if temperatures < 1:
            raise ValueError(f"Expected at least one temperature, got {temperatures}.")
        return torch.linspace(0, 1, temperatures + 1, dtype=torch.double)
    t = temperatures
    if t.ndim != 1 or len(t) < 2 or t[0] != 0 or t[-1] != 1 or not bool((t.diff() > 0).all()):
        raise ValueError(f"Expected `temperatures` that rise from 0 to 1, got {t}.")
    return t.double()


def move(kernel: Kernel, position: Any, path: LogDensity, steps: int) -> tuple[Any, Tensor]:
    """Take steps, and return the positions and the mean acceptance of each chain."""
    state, acceptance = kernel.init(position, path), 0.0
    for _ in range(steps):
        state, info = kernel.step(state, path)
        acceptance = acceptance + info.acceptance / steps
    return state.position, acceptance  # type: ignore[return-value]


def adapted(kernel: Any, position: Any, path: LogDensity) -> Any:
    """Return the kernel with the scale of the particles, and a first step size."""
    if kernel.target is None or not isinstance(position, Tensor) or position.ndim != 2:
        return kernel
    first = kernel.scale is None
    dense = isinstance(kernel.scale, Tensor) and kernel.scale.ndim == 2
    moments = Moments("dense" if dense else "diagonal")
    moments.update(position, None)
    scale = moments.scale()
    kernel = kernel if scale is None else dataclasses.replace(kernel, scale=scale)
    if not first:
        return kernel
    state = kernel.init(position, path)
    return crossing(kernel, state, path, lambda info: harmonic(info.acceptance), 0.8)


def harmonic(acceptance: Tensor) -> float:
    """Return the harmonic mean over particles, in which one that is stuck counts as 0.01.

    Particles have few steps at each temperature, so that none may stay behind.
    """
    return 1 / float((1 / acceptance.clamp(min=0.01)).mean())


def living(position: Any, weights: Tensor) -> Any:
    """Return the positions, in which chains without weight stand where one with weight does."""
    alive = weights > -torch.inf
    if bool(alive.all()):
        return position
    if not bool(alive.any()):
        raise ValueError("Expected a target that is positive at some draw of the base, got none.")
    index = torch.arange(len(weights), device=weights.device)
    return chosen(position, torch.where(alive, index, index[alive][0]))


def path_at(base: LogDensity, target: LogDensity, kernel: Kernel, beta: float) -> LogDensity:
    """Return the log density at a temperature: the kernel's own, else that of the path."""
    own = getattr(kernel, "log_density", None) if beta < 1 else target
    return own if own is not None else AnnealingPath(base, target, beta)


def gains(
    base: LogDensity, target: LogDensity, at: KernelAt, last: float, position: Any
) -> Callable[[float], Tensor]:
    """Return the log weights that positions gain on the way from one temperature to another."""
    with torch.no_grad():
        if not hasattr(at(last), "log_density"):
            ratio = target(position) - base(position)
            return lambda beta: (beta - last) * ratio
        before = base(position) if last == 0 else at(last).log_density(position)  # type: ignore[attr-defined]

    def weigh(beta: float) -> Tensor:
        with torch.no_grad():
            return path_at(base, target, at(beta), beta)(position) - before

    return weigh


def next_beta(weigh: Callable[[float], Tensor], last: float, threshold: float) -> float:
    """Return the temperature at which the effective sample size falls to a fraction, by bisection.

    The fraction is of the particles at which the target is positive.
    """
    full = weigh(1.0)
    alive = int((full > -torch.inf).sum())
    if alive == 0:
        raise ValueError("Expected a target that is positive at some draw of the base, got none.")

    def size(w: Tensor) -> float:
        return float((2 * w.logsumexp(0) - (2 * w).logsumexp(0)).exp()) / alive

    low, high = last, 1.0
    if size(full) >= threshold:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if size(weigh(middle)) >= threshold else (low, middle)
        if high - low < 1e-6 * (high - last):  # fine enough for a step of that length
            break
    if low == last:
        raise ValueError(
            f"Expected weights that vary little over a small step at temperature {last}, got log "
            f"weights from {float(full.min())} to {float(full.max())}. Is the target finite "
            f"where the base has its draws?"
        )
    return low


def size_of(position: Any) -> int:
    return len(next(iter(position.values())) if isinstance(position, dict) else position)


def resample(weights: Tensor) -> Tensor:
    """Systematic resampling within each island, as indices of all particles."""
    islands, n = weights.shape
    cumulative = weights.double().softmax(1).cumsum(1)
    points = (torch.arange(n, device=weights.device) + torch.rand_like(cumulative[:, :1])) / n
    index = torch.searchsorted(cumulative, points.contiguous()).clamp(max=n - 1)
    return (index + n * torch.arange(islands, device=weights.device)[:, None]).flatten()


def chosen(position: Any, index: Tensor) -> Any:
    if isinstance(position, dict):
        return {name: value[index] for name, value in position.items()}
    return position[index]


def finish(
    position: Any,
    weights: Tensor,
    ess: float,
    betas: Tensor,
    groups: Tensor,
    few: str = "chains",
    more: str = "temperatures",
) -> Annealed:
    """Return the evidence from independent groups of log weights, with shape :math:`(G, 1)`.

    A warning names the `few` that carry it, and `more` of what to take.
    """
    parts = groups[:, 0].double()
    log_z = float(parts.logsumexp(0)) - math.log(len(parts))
    se = float((parts - log_z).exp().std()) / math.sqrt(len(parts))
    if ess < len(weights) / 10:
        warnings.warn(
            f"The effective sample size is {ess:.1f} of {len(weights)}: the log evidence rests on "
            f"a few {few}, and its standard error is too small. Take more {more}.",
            stacklevel=outside(),
        )
    return Annealed(position, weights, log_z, se, ess, betas)
