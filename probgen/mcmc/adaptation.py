r"""Warm-up: what adapts a kernel to its target.

Three objects, each apart from the kernels and from each other:

- the step size, by dual averaging of :math:`\delta - \alpha`, where :math:`\alpha` is the harmonic
  mean of the acceptance over chains and :math:`\delta` the kernel's target;
- the scale, from all chains: standard deviations that also heed the gradients,
  :math:`s_i^4 = \operatorname{var}(x_i) / \operatorname{var}(\partial_i \log \pi)`, which is exact
  for independent normal variables however few the draws, or the Cholesky factor of the covariance;
- the length of a trajectory, by ascent of the chains' mean square jump per unit of work.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .kernel import LogDensity, shrink, total

__all__ = ["Moments", "StepSize", "TrajectoryLength", "warm_up"]


class StepSize:
    r"""Dual averaging of the logarithm of a step size.

    References:
        Hoffman & Gelman, "The No-U-Turn Sampler", 2014, https://arxiv.org/abs/1111.4246

    Arguments:
        step_size: The first step.
        target: The acceptance :math:`\delta` to reach.

    Example:
        >>> size = StepSize(1.0, target=0.8)
        >>> for _ in range(500):  # an acceptance that falls with the step
        ...     size.update(math.exp(-size.current))
        >>> round(math.exp(-size.average), 2)
        0.8
    """

    def __init__(self, step_size: float, target: float) -> None:
        self.target = target
        self.restart(step_size)

    def restart(self, step_size: float) -> None:
        """Starts anew from a step size."""
        self.center = math.log(10 * step_size)
        self.log_current = self.log_average = math.log(step_size)
        self.gap, self.count = 0.0, 0

    @property
    def current(self) -> float:
        """The step size to try next."""
        return math.exp(self.log_current)

    @property
    def average(self) -> float:
        """The step size to keep."""
        return math.exp(self.log_average)

    def update(self, acceptance: float) -> None:
        """Takes the acceptance of a step into account."""
        self.count += 1
        k = self.count
        self.gap += (self.target - acceptance - self.gap) / (k + 10)
        self.log_current = self.center - math.sqrt(k) / 0.05 * self.gap
        self.log_average += k**-0.75 * (self.log_current - self.log_average)


class Moments:
    """Running means and covariances of positions and gradients over all chains.

    Arguments:
        dense: Whether to keep the covariance of positions, rather than variances.
    """

    def __init__(self, dense: bool) -> None:
        self.dense = dense
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.count = 0
        self.sums: list[Tensor] = []

    def update(self, x: Tensor, gradient: Tensor | None) -> None:
        """Takes the chains' positions, with shape :math:`(C, D)`, and gradients into account."""
        if not self.sums:  # sums about the first mean, which rounding likes
            self.shift = x.mean(0)
        d = x - self.shift
        parts = [d.sum(0), d.mT @ d if self.dense else d.square().sum(0)]
        if gradient is not None:
            parts += [gradient.sum(0), gradient.square().sum(0)]
        self.sums = [a + b for a, b in zip(self.sums, parts)] if self.sums else parts
        self.count += len(x)

    def scale(self) -> Tensor | None:
        """The factor :math:`L`; none of fewer than ten positions, or of chains that stand still."""
        n = self.count
        if n < 10:
            return None
        mean, second = self.sums[0] / n, self.sums[1] / n
        if self.dense:
            covariance = (second - torch.outer(mean, mean)) * (n / (n - 1))
            weight = n / (n + 5 * len(mean))  # towards the diagonal, where draws are few
            diagonal = torch.diag(covariance.diagonal())
            factor, bad = torch.linalg.cholesky_ex(weight * covariance + (1 - weight) * diagonal)
            return None if int(bad) else factor
        variance = second - mean.square()
        if len(self.sums) == 4:
            slope = self.sums[3] / n - (self.sums[2] / n).square()
            variance = (variance / slope).sqrt()
        usable = torch.isfinite(variance) & (variance > 0)
        if not bool(usable.any()):
            return None
        return torch.where(usable, variance, variance[usable].median()).sqrt()


class TrajectoryLength:
    r"""Stochastic ascent on the logarithm of a trajectory's length :math:`T`.

    In units of the scale, the mean square jump :math:`J = E |x' - x|^2` over chains and over the
    last lengths :math:`t` taken is to be great for the work: :math:`J / T^{0.7}` is climbed, whose
    logarithm has in :math:`\log T` the slope

    .. math:: \frac{2}{J} \, E \left[ t \, (x' - x)^\top r' \right] - 0.7,

    where chains are weighted by acceptance. Lengths are jittered, so that a jump to the antipode
    gains nothing. The paper climbs :math:`C = E[(|x' - m|^2 - |x - m|^2)^2] / 4` alone, whose slope
    is noisier and whose lengths are greater.

    References:
        Hoffman, Radul & Sountsov, 2021, https://proceedings.mlr.press/v130/hoffman21a.html

    Arguments:
        length: The first length.
        rate: The step in :math:`\log T` per unit of slope.
    """

    def __init__(self, length: float, rate: float = 0.05) -> None:
        self.log_length = self.log_average = math.log(length)
        self.rate, self.count = rate, 0
        self.slope = self.jump = 0.0
        self.spread = math.inf  # until there are chains to tell

    @property
    def current(self) -> float:
        """The length to try next."""
        return math.exp(self.log_length)

    @property
    def average(self) -> float:
        """The length to keep."""
        return math.exp(self.log_average)

    def update(self, before: Tensor, info: Any, scale: Tensor | None) -> None:
        """Takes the trajectories of all chains into account."""
        x, y, weight = shrink(scale, before), shrink(scale, info.proposal), info.acceptance
        if len(x) > 1:
            new = spread(x)
            self.spread = new if self.count == 0 else self.spread + 0.1 * (new - self.spread)
        moved = torch.where(weight[:, None] > 0, y - x, 0)  # a diverged trajectory says nothing
        ahead = total(moved * torch.where(weight[:, None] > 0, info.momentum, 0))
        slope = float(2 * info.length * (weight * ahead).sum() / weight.sum())
        jump = float((weight * total(moved.square())).sum() / weight.sum())
        if not (math.isfinite(slope) and math.isfinite(jump) and jump > 0):
            return
        self.slope += 0.1 * (slope - self.slope)
        self.jump += 0.1 * (jump - self.jump)
        self.log_length += self.rate * min(max(self.slope / self.jump - 0.7, -3.0), 3.0)
        self.count += 1
        self.log_average += (self.log_length - self.log_average) / (1 + 0.1 * self.count)

    def limit(self, low: float, high: float) -> None:
        r"""Keeps the length in bounds, and below a quarter of the longest period of a normal law.

        That is :math:`2 \pi \sqrt{\lambda}` for the greatest variance
        :math:`\lambda \le \|\Sigma\|_F`. Beyond it, positions forget where they came from, and
        the slope is noise that grows with the length.
        """
        high = min(high, math.pi / 2 * max(self.spread, 1.0) ** 0.25)
        low = min(low, high)
        self.log_length = min(max(self.log_length, math.log(low)), math.log(high))


def spread(x: Tensor) -> float:
    r"""An estimate of :math:`\|\Sigma\|_F^2` for the covariance of positions from all chains."""
    n, d = len(x), x[0].numel()
    x = (x - x.mean(0)).reshape(n, d)
    products = (x @ x.mT if n < d else x.mT @ x) / (n - 1)
    return float(products.square().sum() - products.trace().square() / n)  # less the noise


def warm_up(
    kernel: Any, state: Any, log_density: LogDensity, steps: int, *, dense: bool = False
) -> Iterator[tuple[Any, Any, Any]]:
    """Adapts what a kernel has of a step size, a scale and a length of trajectories.

    A kernel without a target acceptance is only run. Step sizes per chain become one for all. The
    scale is set from the first positions and at the ends of four growing windows, of 10, 15, 25 and
    30 % of the steps.

    Arguments:
        kernel: The kernel.
        state: The chains' state.
        log_density: The target.
        steps: The number of steps.
        dense: Whether the scale is a Cholesky factor rather than standard deviations.

    Yields:
        After each step the kernel for the next one, the state, and what the step says. The last
        kernel is the adapted one.

    Example:
        >>> from probgen.mcmc import HMC
        >>> _ = torch.manual_seed(0)
        >>> normal = lambda x: -(x / torch.tensor([1.0, 100.0])).square().sum(-1) / 2
        >>> kernel = HMC(steps=5)
        >>> state = kernel.init(torch.randn(64, 2), normal)
        >>> for kernel, state, info in warm_up(kernel, state, normal, steps=100):
        ...     acceptance = info.acceptance.mean()
        >>> kernel.scale.round()
        tensor([  1., 100.])
    """
    fields = {field.name for field in dataclasses.fields(kernel)}
    if kernel.target is None or "step_size" not in fields:
        for _ in range(steps):
            state, info = kernel.step(state, log_density)
            yield kernel, state, info
        return

    if isinstance(kernel.step_size, Tensor):  # one per chain, of which one for all is made
        mean = float(kernel.step_size.log().mean().exp())
        kernel = dataclasses.replace(kernel, step_size=mean)
    scales = "scale" in fields and state.position.ndim == 2
    moments = Moments(dense)
    ends = {round(part * steps) for part in (0.1, 0.25, 0.5, 0.8)} if scales else set()
    if scales:
        moments.update(state.position, getattr(state, "gradient", None))
        kernel = rescaled(kernel, moments)
    kernel = crossing(kernel, state, log_density)
    size = StepSize(kernel.step_size, kernel.target)
    length = TrajectoryLength(kernel.length) if "length" in fields else None
    for k in range(steps):
        old = state.position
        state, info = kernel.step(state, log_density)
        size.update(harmonic(info.acceptance))
        if length is not None:
            length.update(old, info, kernel.scale)
        if scales:
            moments.update(state.position, getattr(state, "gradient", None))
        if k + 1 in ends:
            kernel = crossing(rescaled(kernel, moments), state, log_density)
            size.restart(kernel.step_size)
        last = k == steps - 1
        kernel = dataclasses.replace(kernel, step_size=size.average if last else size.current)
        if length is not None:
            length.limit(size.current, size.current * kernel.max_steps)
            kernel = dataclasses.replace(kernel, length=length.average if last else length.current)
        yield kernel, state, info


def rescaled(kernel: Any, moments: Moments) -> Any:
    """The kernel with the scale of the moments, which are cleared, if they have one."""
    scale = moments.scale()
    moments.clear()
    return kernel if scale is None else dataclasses.replace(kernel, scale=scale)


def crossing(kernel: Any, state: Any, log_density: LogDensity) -> Any:
    """The kernel with the step size, among powers of 2, where acceptance falls below 0.8."""
    probe = {"steps": 1, "length": 1e-12}
    fields = {field.name for field in dataclasses.fields(kernel)}
    single = dataclasses.replace(
        kernel, **{name: value for name, value in probe.items() if name in fields}
    )
    size, up = float(kernel.step_size), None
    for _ in range(50):
        single = dataclasses.replace(single, step_size=size)
        accepts = harmonic(single.step(state, log_density)[1].acceptance) > 0.8
        if up is None:
            up = accepts
        if accepts != up:
            break
        size = size * 2 if up else size / 2
    return dataclasses.replace(kernel, step_size=size)


def harmonic(acceptance: Tensor) -> float:
    """The harmonic mean over chains, in which a chain that is stuck counts as 0.01."""
    return 1 / float((1 / acceptance.clamp(min=0.01)).mean())
