r"""Warm-up: adaptation of a kernel to its target.

Three objects, each apart from the kernels and from each other:

- the step size, by stochastic approximation of :math:`E[\alpha] = \delta`, where :math:`\alpha` is
  the mean acceptance over chains and :math:`\delta` the kernel's target;
- the metric, from positions and gradients of all chains (:mod:`probgen.mcmc.kernels.metric`);
- the length of a trajectory, by ascent of the chains' mean square jump per unit of work.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .kernels.base import LogDensity, Scale, shrink, total
from .kernels.metric import Metric, Moments, metric_kind

__all__ = ["StepSize", "TrajectoryLength", "WarmUp", "warm_up"]

WINDOWS = (0.1, 0.25, 0.45, 0.7)  # of warm-up, at whose ends the metric is set
SHORT = 64  # leapfrog steps of a trajectory before the last window
LENGTH = math.pi / 2  # of a trajectory in a good metric: a quarter of a period
WORK = 1.15  # power of the length that a greater jump has to be worth
SHORTEST = 0.5  # length in units of the metric


class StepSize:
    r"""Stochastic approximation of the logarithm of a step size.

    .. math:: \log \epsilon_{k + 1} = \log \epsilon_k + \tfrac32 k^{-0.7} (\alpha_k - \delta)

    With many chains :math:`\alpha_k` has little noise, so that a rule with one gain suffices. What
    is kept is the average of late iterates.

    References:
        Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992,
        https://doi.org/10.1137/0330046

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
        self.target, self.count = target, 0
        self.log_current = self.log_average = math.log(step_size)

    @property
    def current(self) -> float:
        """The step size to try next."""
        return math.exp(self.log_current)

    @property
    def average(self) -> float:
        """The step size to keep."""
        return math.exp(self.log_average)

    def update(self, acceptance: float) -> None:
        """Account for the mean acceptance of a step."""
        self.count += 1
        self.log_current += 1.5 * self.count**-0.7 * (acceptance - self.target)
        self.log_average += min(1.0, 3 / (self.count + 2)) * (self.log_current - self.log_average)

    def limit(self, high: float) -> None:
        """Keep the step size below a bound."""
        self.log_current = min(self.log_current, math.log(high))


class TrajectoryLength:
    r"""Stochastic ascent on the logarithm of a trajectory's length :math:`T`.

    In units of the scale, the mean square jump :math:`J = E |x' - x|^2` over chains and over the
    last lengths :math:`t` taken is to be great for the work: :math:`J / T^{1.15}` is climbed,
    whose logarithm has in :math:`\log T` the slope

    .. math:: \frac{2}{J} \, E \left[ t \, (x' - x)^\top r' \right] - 1.15,

    where chains are weighted by acceptance. The odds of a trajectory that ends
    outside the support, which shorter ones leave less often, are taken from the slope. Lengths are
    jittered, so that a jump to the antipode
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

    def update(self, before: Tensor, info: Any, scale: Scale | None) -> None:
        """Take the trajectories of all chains into account."""
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
        left = float(info.outside.double().mean())
        climb = self.slope / self.jump - WORK - left / max(1 - left, 0.01)
        self.log_length += self.rate * min(max(climb, -3.0), 3.0)
        self.count += 1
        self.log_average += (self.log_length - self.log_average) / (1 + 0.1 * self.count)

    def limit(self, low: float, high: float) -> None:
        r"""Keep the length in bounds, below a quarter of the longest period of a normal target.

        That is :math:`2 \pi \sqrt{\lambda}` for the greatest variance
        :math:`\lambda \le \|\Sigma\|_F`. Beyond it, positions forget where they came from, and
        the slope is noise that grows with the length.
        """
        high = min(high, math.pi / 2 * max(self.spread, 1.0) ** 0.25)
        low = min(low, high)
        self.log_length = min(max(self.log_length, math.log(low)), math.log(high))


def spread(x: Tensor) -> float:
    r"""Estimate :math:`\|\Sigma\|_F^2` of the covariance of positions from all chains."""
    n, d = len(x), x[0].numel()
    x = (x - x.mean(0)).reshape(n, d)
    products = (x @ x.mT if n < d else x.mT @ x) / (n - 1)
    return float(products.square().sum() - products.trace().square() / n)  # less the noise


def warm_up(
    kernel: Any,
    state: Any,
    log_density: LogDensity,
    steps: int,
    *,
    metric: Metric = "auto",
) -> Iterator[tuple[Any, Any, Any]]:
    """Adapt the step size, the scale and the trajectory length that a kernel has.

    A kernel without a target acceptance is only run. Step sizes per chain become one for all. The
    scale is set from the first positions, unless the kernel has one, and at the ends of four
    growing windows, of 10, 15, 20 and 25 % of the steps. At the ends of the first two, chains that
    have accepted nothing move to the place of others that have.

    Arguments:
        kernel: The kernel.
        state: The chains' state.
        log_density: The target.
        steps: The number of steps.
        metric: The form of the scale: `"diagonal"`, `"dense"`, `"low_rank"`, or `"auto"`, which is
            dense up to 100 dimensions and of low rank above.

    Yields:
        After each step the kernel for the next one, the state, and its diagnostics. The last
        kernel is the adapted one.

    Example:
        >>> from probgen.mcmc import HMC
        >>> _ = torch.manual_seed(0)
        >>> normal = lambda x: -(x / torch.tensor([1.0, 100.0])).square().sum(-1) / 2
        >>> kernel = HMC(steps=5)
        >>> state = kernel.init(torch.randn(64, 2), normal)
        >>> for kernel, state, info in warm_up(kernel, state, normal, steps=100):
        ...     acceptance = info.acceptance.mean()
        >>> kernel.scale.diagonal().abs().round()
        tensor([  1., 100.])
    """
    warm = WarmUp.begin(kernel, state, log_density, steps, metric)
    for _ in range(steps):
        warm, state, info = warm.step(state, log_density)
        yield warm.kernel, state, info


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """The state of warm-up between two steps.

    A step makes a new one and leaves the old one as it is.

    Arguments:
        kernel: The kernel of the next step.
        steps: The number of steps of warm-up.
        taken: The number of steps that were taken.
        size: The approximation of the step size; None if the kernel is only run.
        length: The ascent on the length of trajectories, if the kernel has one.
        moments: The moments that give the scale, if the kernel has one.
        moved: The chains that accepted a proposal since the last window.
        longest: The kernel's own greatest number of leapfrog steps, if it has one.
    """

    kernel: Any
    steps: int
    taken: int = 0
    size: StepSize | None = None
    length: TrajectoryLength | None = None
    moments: Moments | None = None
    moved: Tensor | None = None
    longest: int | None = None

    @classmethod
    def begin(
        cls, kernel: Any, state: Any, log_density: LogDensity, steps: int, metric: Metric
    ) -> WarmUp:
        """Start warm-up: a first scale and a first step size."""
        fields = {field.name for field in dataclasses.fields(kernel)}
        if kernel.target is None or "step_size" not in fields:
            return cls(kernel, steps)
        if isinstance(kernel.step_size, Tensor):  # one per chain, of which one for all is made
            mean = float(kernel.step_size.log().mean().exp())
            kernel = dataclasses.replace(kernel, step_size=mean)
        kind = metric_kind(metric, state.position[0].numel())
        moments = None
        if "scale" in fields and state.position.ndim == 2:
            if kernel.scale is None:
                moments = Moments(kind)
                moments.update(state.position, getattr(state, "gradient", None))
                kernel = rescaled(kernel, moments)
            moments = Moments(kind, kernel.scale)
        longest = getattr(kernel, "max_steps", None)
        if longest is not None:
            kernel = dataclasses.replace(kernel, max_steps=min(longest, SHORT))
        kernel = crossing(kernel, state, log_density)
        size = StepSize(kernel.step_size, kernel.target)
        length = TrajectoryLength(kernel.length) if "length" in fields else None
        moved = torch.zeros_like(state.log_density, dtype=torch.bool)
        return cls(kernel, steps, 0, size, length, moments, moved, longest)

    def step(self, state: Any, log_density: LogDensity) -> tuple[WarmUp, Any, Any]:
        """Take one step, and adapt."""
        kernel, taken, old = self.kernel, self.taken + 1, state.position
        state, info = kernel.step(state, log_density)
        if self.size is None or self.moved is None:
            return dataclasses.replace(self, taken=taken), state, info
        size, length = copy.copy(self.size), copy.copy(self.length)
        moments, moved = copy.copy(self.moments), self.moved | info.accepted
        size.update(mean_acceptance(info.acceptance) if length is None else usable_acceptance(info))
        if length is not None:
            length.update(old, info, kernel.scale)
        if moments is not None:
            moments.update(state.position, getattr(state, "gradient", None))
            window = self.window(taken)
            if window is not None:
                if window < 2:
                    state = relocated(state, moved)
                moved = torch.zeros_like(moved)
                kernel = crossing(rescaled(kernel, moments), state, log_density)
                moments = Moments(moments.kind, kernel.scale)
                size = StepSize(kernel.step_size, kernel.target)
                if length is not None:  # which is in units of the metric
                    length = TrajectoryLength(LENGTH if window == 0 else length.average)
        kernel = adapted(kernel, size, length, info, taken == self.steps)
        if taken == self.steps and self.longest is not None:
            kernel = dataclasses.replace(kernel, max_steps=self.longest)
        new = WarmUp(kernel, self.steps, taken, size, length, moments, moved, self.longest)
        return new, state, info

    def window(self, taken: int) -> int | None:
        """Return the window that ends after so many steps, if one does."""
        ends = {round(part * self.steps): k for k, part in enumerate(WINDOWS)}
        return ends.get(taken)


def adapted(
    kernel: Any, size: StepSize, length: TrajectoryLength | None, info: Any, last: bool
) -> Any:
    """Return the kernel with the step size and the length of the next step, or those to keep."""
    if length is not None:
        size.limit(1.5 * length.current)
    kernel = dataclasses.replace(kernel, step_size=size.average if last else size.current)
    if length is not None:
        low = SHORTEST / 100 if bool(info.outside.any()) else SHORTEST
        length.limit(low, size.current * kernel.max_steps)
        kernel = dataclasses.replace(kernel, length=length.average if last else length.current)
    return kernel


def rescaled(kernel: Any, moments: Moments) -> Any:
    """Return the kernel with the scale of the moments, if they have one."""
    scale: Scale | None = moments.scale()
    return kernel if scale is None else dataclasses.replace(kernel, scale=scale)


def relocated(state: Any, moved: Tensor) -> Any:
    """Return state, in which chains that have not moved take the place of random ones that have."""
    stuck = ~moved
    if not bool(stuck.any()) or 2 * int(stuck.sum()) > len(moved):
        return state
    healthy = moved.nonzero()[:, 0]
    index = torch.arange(len(moved), device=moved.device)
    index[stuck] = healthy[torch.randint(len(healthy), (int(stuck.sum()),), device=moved.device)]
    return type(state)(*(v[index] if isinstance(v, Tensor) else v for v in state))


def crossing(
    kernel: Any,
    state: Any,
    log_density: LogDensity,
    measure: Callable[[Any], float] | None = None,
    level: float | None = None,
) -> Any:
    """Return the kernel with the step size, among powers of 2, where acceptance crosses a level.

    Arguments:
        kernel: The kernel.
        state: The state.
        log_density: The log density.
        measure: The acceptance over chains, from the diagnostics; their mean by default.
        level: The level; the kernel's target by default.
    """
    measure, level = measure or usable_acceptance, kernel.target if level is None else level
    probe = {"steps": 1, "length": 1e-12}
    fields = {field.name for field in dataclasses.fields(kernel)}
    single = dataclasses.replace(
        kernel, **{name: value for name, value in probe.items() if name in fields}
    )
    size, up = float(kernel.step_size), None
    for _ in range(50):
        single = dataclasses.replace(single, step_size=size)
        accepts = measure(single.step(state, log_density)[1]) > level
        if up is None:
            up = accepts
        if accepts != up:
            break
        size = size * 2 if up else size / 2
    return dataclasses.replace(kernel, step_size=size)


def mean_acceptance(acceptance: Tensor) -> float:
    """Return the mean over chains."""
    return float(acceptance.mean())


def usable_acceptance(info: Any) -> float:
    """Return mean acceptance, for trajectories of an adapted length of those within the support.

    A trajectory that ends outside is too long rather than too coarse.
    """
    outside = getattr(info, "outside", None)
    if outside is None or bool(outside.all()):
        return mean_acceptance(info.acceptance)
    return float(info.acceptance.sum() / (~outside).sum())
