r"""Samplers: from noise to data by a denoiser, in so many steps.

A grid of times :math:`t_0 > \dots > t_{N-1}` ends in a last step to the datum, without noise. Most
steps, from time :math:`t` to :math:`s`, are linear in the value and in what was denoised,

.. math:: x_s = A x_t + B \hat x_0(x_t) + C \xi, \qquad \xi \sim \mathcal{N}(0, I),

with coefficients of the schedule alone, which are computed once before the first step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..core.bijector import name_of
from ..core.checkpoint import RECORDS
from ..core.checks import check_whole
from .denoisers import Denoiser
from .grids import Grid, Path, RatioGrid, RhoGrid, UniformGrid
from .schedules import Schedule

__all__ = [
    "DDIM",
    "Ancestral",
    "DPMSolver",
    "EulerMaruyama",
    "Heun",
    "PredictorCorrector",
    "Sampler",
    "noise",
]


class Sampler(ABC):
    """A way from noise to data; every sampler is a frozen dataclass of it."""

    steps: int
    grid: Grid

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        RECORDS[name_of(cls)] = cls

    @abstractmethod
    def walk(self, denoiser: Denoiser, x: Tensor, context: Tensor | None) -> Iterator[Tensor]:
        """The values after each step."""

    def sample(
        self,
        denoiser: Denoiser,
        x: Tensor,
        context: Tensor | None = None,
        *,
        callback: Callable[[int, Tensor], Any] | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Takes all steps.

        Arguments:
            denoiser: The denoiser, with its schedule.
            x: Noise at the first time, as :func:`noise` draws it, with shape :math:`(*, event)`.
            context: The contexts, with shape :math:`(*, C)`.
            callback: Called after each step with its number and the values.
            progress: Whether to show a progress bar.

        Returns:
            Data, with the shape of `x`.
        """
        steps = tqdm(
            self.walk(denoiser, x, context), total=self.steps, disable=not progress, leave=False
        )
        with torch.no_grad():
            for k, x in enumerate(steps):
                if callback is not None:
                    callback(k, x)
        return x


def noise(denoiser: Denoiser, shape: torch.Size, like: Tensor) -> Tensor:
    """Draws at the latest time, of data of mean 0 and variance 1, with shape `(*shape, event)`."""
    t = torch.tensor(denoiser.schedule.latest, dtype=torch.double)
    alpha, sigma = denoiser.schedule(t)
    spread = float((alpha.square() + sigma.square()).sqrt())
    draws = torch.randn(*shape, *denoiser.shape, dtype=like.dtype, device=like.device)
    return spread * draws


class Linear(Sampler):
    """A sampler whose steps are linear in the value and in what was denoised."""

    @abstractmethod
    def coefficients(self, schedule: Schedule, path: Path) -> tuple[Tensor, Tensor, Tensor]:
        """The coefficients :math:`A`, :math:`B` and :math:`C` of all steps, with shape `(N)`."""

    def walk(self, denoiser: Denoiser, x: Tensor, context: Tensor | None) -> Iterator[Tensor]:
        path = self.grid.path(denoiser.schedule, self.steps)
        table = torch.stack(self.coefficients(denoiser.schedule, path), 1).tolist()
        for t, (a, b, c) in zip(path.times.to(x), table):
            mean = denoiser.mean(x, t, context)
            x = a * x + b * mean
            if c:
                x = x + c * torch.randn_like(x)
            yield x


@dataclass(frozen=True)
class DDIM(Linear):
    r"""Denoising diffusion implicit models: steps without noise, or with a part of it.

    .. math:: x_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - \tau^2} \, \hat \epsilon + \tau \xi,
        \qquad \tau^2 = \eta^2 \frac{\sigma_s^2}{\sigma_t^2}
        \Bigl( \sigma_t^2 - \frac{\alpha_t^2}{\alpha_s^2} \sigma_s^2 \Bigr)

    References:
        | Denoising Diffusion Implicit Models (Song et al., 2020), https://arxiv.org/abs/2010.02502

    Arguments:
        steps: The number of steps.
        eta: The part :math:`\eta` of the noise, in [0, 1]; 0 is a map from noise to data.
        grid: The grid of times.

    Raises:
        ValueError: If a number is impossible.

    Example:
        >>> from probgen.diffusion import GaussianDenoiser, VP, noise
        >>> _ = torch.manual_seed(0)
        >>> denoiser = GaussianDenoiser(torch.ones(2), 4 * torch.eye(2), VP())
        >>> x = DDIM(50).sample(denoiser, noise(denoiser, torch.Size([4000]), torch.ones(())))
        >>> abs(float(x.mean()) - 1) < 0.1, abs(float(x.std()) - 2) < 0.1
        (True, True)
    """

    steps: int = 50
    eta: float = 0.0
    grid: Grid = field(default_factory=UniformGrid)

    def __post_init__(self) -> None:
        check_whole(1, steps=self.steps)
        if not 0 <= self.eta <= 1:
            raise ValueError(f"Expected `eta` in [0, 1], got {self.eta}.")

    def coefficients(self, schedule: Schedule, path: Path) -> tuple[Tensor, Tensor, Tensor]:
        tau = self.eta * posterior_variance(path).sqrt()
        a = (path.sigma[1:].square() - tau.square()).clamp_min(0).sqrt() / path.sigma[:-1]
        return a, path.alpha[1:] - a * path.alpha[:-1], tau


def added_variance(path: Path) -> Tensor:
    r"""The variance between two times, :math:`\sigma_t^2 - (\alpha_t / \alpha_s)^2 \sigma_s^2`."""
    ratio = path.alpha[:-1] / path.alpha[1:]
    return path.sigma[:-1].square() - ratio.square() * path.sigma[1:].square()


def posterior_variance(path: Path) -> Tensor:
    r"""The variance of :math:`x_s` given :math:`x_t` and :math:`x_0`."""
    return added_variance(path) * (path.sigma[1:] / path.sigma[:-1]).square()


@dataclass(frozen=True)
class Ancestral(Linear):
    r"""The sampler of DDPM: from the posterior given what was denoised.

    .. math:: x_s = \frac{\alpha_t \sigma_s^2}{\alpha_s \sigma_t^2} \, x_t +
        \frac{\alpha_s \sigma_{t \mid s}^2}{\sigma_t^2} \, \hat x_0 + C \xi, \qquad
        \sigma_{t \mid s}^2 = \sigma_t^2 - \frac{\alpha_t^2}{\alpha_s^2} \sigma_s^2

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239

    Arguments:
        steps: The number of steps.
        variance: :math:`C^2`: `"posterior"`, which is right where data are one point, or
            `"step"`, :math:`\sigma_{t \mid s}^2` itself, which is where they are normal of variance
            1; the last step has none.
        grid: The grid of times.

    Raises:
        ValueError: If a number is impossible or the name unknown.

    Example:
        >>> from probgen.diffusion import GaussianDenoiser, VP, noise
        >>> _ = torch.manual_seed(0)
        >>> denoiser = GaussianDenoiser(torch.ones(2), 4 * torch.eye(2), VP())
        >>> x = Ancestral(200).sample(denoiser, noise(denoiser, torch.Size([4000]), torch.ones(())))
        >>> abs(float(x.mean()) - 1) < 0.1, abs(float(x.std()) - 2) < 0.1
        (True, True)
    """

    steps: int = 1000
    variance: str = "posterior"
    grid: Grid = field(default_factory=UniformGrid)

    def __post_init__(self) -> None:
        check_whole(1, steps=self.steps)
        if self.variance not in ("posterior", "step"):
            raise ValueError(
                f"Expected `variance` of 'posterior' or 'step', got {self.variance!r:.80}."
            )

    def coefficients(self, schedule: Schedule, path: Path) -> tuple[Tensor, Tensor, Tensor]:
        added, before, after = added_variance(path), path.sigma[:-1], path.sigma[1:]
        a = path.alpha[:-1] / path.alpha[1:] * (after / before).square()
        b = path.alpha[1:] * added / before.square()
        variance = posterior_variance(path)
        if self.variance == "step":
            variance = added * (after > 0)
        return a, b, variance.clamp_min(0).sqrt()


@dataclass(frozen=True)
class EulerMaruyama(Linear):
    r"""Euler's method for the reverse equation.

    .. math:: x_s = x_t - (t - s) \, \bigl( f_t x_t - g_t^2 \nabla \log p(x_t) \bigr)
        + g_t \sqrt{t - s} \, \xi

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al.,
          2021), https://arxiv.org/abs/2011.13456

    Arguments:
        steps: The number of steps.
        grid: The grid of times.

    Example:
        >>> from probgen.diffusion import GaussianDenoiser, VP, noise
        >>> _ = torch.manual_seed(0)
        >>> denoiser = GaussianDenoiser(torch.ones(2), 4 * torch.eye(2), VP())
        >>> start = noise(denoiser, torch.Size([4000]), torch.ones(()))
        >>> x = EulerMaruyama(500).sample(denoiser, start)
        >>> abs(float(x.mean()) - 1) < 0.1, abs(float(x.std()) - 2) < 0.1
        (True, True)
    """

    steps: int = 1000
    grid: Grid = field(default_factory=UniformGrid)

    def __post_init__(self) -> None:
        check_whole(1, steps=self.steps)

    def coefficients(self, schedule: Schedule, path: Path) -> tuple[Tensor, Tensor, Tensor]:
        t = path.times
        dt, f, g2 = -t.diff(), schedule.drift(t)[:-1], schedule.diffusion(t)[:-1]
        alpha, sigma = path.alpha[:-2], path.sigma[:-2]
        one, none = t.new_ones(1), t.new_zeros(1)  # the last step takes what was denoised
        a = torch.cat([1 - dt * (f + g2 / sigma.square()), none])
        b = torch.cat([dt * g2 * alpha / sigma.square(), one])
        return a, b, torch.cat([(g2 * dt).sqrt(), none])


@dataclass(frozen=True)
class DPMSolver(Sampler):
    r"""DPM-Solver++(2M): the exact linear part and a line through what was denoised last.

    With half the log ratio :math:`\ell = \lambda / 2`, :math:`h = \ell_s - \ell_t` and the ratio
    :math:`r` of the step before to this one,

    .. math:: x_s = \frac{\sigma_s}{\sigma_t} x_t + \alpha_s (1 - e^{-h}) D, \qquad
        D = \Bigl( 1 + \frac{1}{2r} \Bigr) \hat x_0 - \frac{1}{2r} \hat x_0^{\text{before}}.

    The first and the last step take :math:`D = \hat x_0`.

    References:
        | DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models
        | (Lu et al., 2022), https://arxiv.org/abs/2211.01095

    Arguments:
        steps: The number of steps.
        grid: The grid of times.

    Example:
        >>> from probgen.diffusion import GaussianDenoiser, VP, noise
        >>> _ = torch.manual_seed(0)
        >>> denoiser = GaussianDenoiser(torch.ones(2), 4 * torch.eye(2), VP())
        >>> x = DPMSolver(20).sample(denoiser, noise(denoiser, torch.Size([4000]), torch.ones(())))
        >>> abs(float(x.mean()) - 1) < 0.1, abs(float(x.std()) - 2) < 0.1
        (True, True)
    """

    steps: int = 20
    grid: Grid = field(default_factory=RatioGrid)

    def __post_init__(self) -> None:
        check_whole(1, steps=self.steps)

    def walk(self, denoiser: Denoiser, x: Tensor, context: Tensor | None) -> Iterator[Tensor]:
        path = self.grid.path(denoiser.schedule, self.steps)
        half = path.alpha.log() - path.sigma.log()
        h = half.diff()
        keep, gain = path.sigma[1:] / path.sigma[:-1], path.alpha[1:] * -torch.expm1(-h)
        slope = torch.zeros_like(h)
        slope[1:-1] = h[1:-1] / h[:-2] / 2  # 1 / (2 r)
        table = torch.stack([keep, gain, slope], 1).tolist()
        before: Any = None
        for t, (a, b, c) in zip(path.times.to(x), table):
            mean = denoiser.mean(x, t, context)
            x = a * x + b * (mean + c * (mean - before) if c else mean)
            before = mean
            yield x


@dataclass(frozen=True)
class Heun(Sampler):
    r"""The second-order method of EDM, with fresh noise on the way if asked.

    In :math:`y = x / \alpha` and :math:`\varsigma = \sigma / \alpha` the flow is
    :math:`dy / d\varsigma = (y - \hat x_0) / \varsigma`, which Heun's method follows. Before a step
    the noise may be raised to :math:`(1 + \gamma) \varsigma`.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Arguments:
        steps: The number of steps, each of two evaluations but the last.
        churn: The noise that all steps together add, :math:`\gamma = \min(S / N, \sqrt 2 - 1)`.
        low: The least noise :math:`\varsigma` at which it is added.
        high: The greatest.
        inflate: What the added noise is multiplied by.
        grid: The grid of times.

    Raises:
        ValueError: If a number is impossible.

    Example:
        >>> from probgen.diffusion import GaussianDenoiser, Karras, noise
        >>> _ = torch.manual_seed(0)
        >>> denoiser = GaussianDenoiser(torch.ones(2), 4 * torch.eye(2), Karras())
        >>> x = Heun(18).sample(denoiser, noise(denoiser, torch.Size([4000]), torch.ones(())))
        >>> abs(float(x.mean()) - 1) < 0.1, abs(float(x.std()) - 2) < 0.1
        (True, True)
    """

    steps: int = 18
    churn: float = 0.0
    low: float = 0.0
    high: float = torch.inf
    inflate: float = 1.0
    grid: Grid = field(default_factory=RhoGrid)

    def __post_init__(self) -> None:
        check_whole(1, steps=self.steps)
        if not self.churn >= 0 or not self.inflate > 0:
            raise ValueError(
                f"Expected `churn` >= 0 and a positive `inflate`, got {self.churn} and "
                f"{self.inflate}."
            )

    def raised(self, schedule: Schedule, path: Path) -> tuple[Path, Tensor]:
        """The path with raised noise before each step, and what each step adds, in units of y."""
        level = path.sigma[:-1] / path.alpha[:-1]
        gamma = min(self.churn / self.steps, 2**0.5 - 1)
        chosen = (level >= self.low) & (level <= self.high)
        most = (-schedule.log_snr(torch.tensor(schedule.latest).double()) / 2).exp()
        high = torch.where(chosen, (level * (1 + gamma)).clamp(max=float(most)), level)
        if gamma == 0:
            return path, torch.zeros_like(level)
        t = torch.where(high > level, schedule.time(-2 * high.log()), path.times)
        alpha, sigma = schedule(t)
        added = (high.square() - level.square()).clamp_min(0).sqrt() * self.inflate
        return Path(t, torch.cat([alpha, path.alpha[-1:]]), torch.cat([sigma, path.sigma[-1:]])), (
            added
        )

    def walk(self, denoiser: Denoiser, x: Tensor, context: Tensor | None) -> Iterator[Tensor]:
        path = self.grid.path(denoiser.schedule, self.steps)
        start, added = self.raised(denoiser.schedule, path)
        table = torch.stack(
            [
                path.alpha[:-1],
                start.alpha[:-1],
                start.sigma[:-1],
                path.alpha[1:],
                path.sigma[1:],
                added,
            ],
            1,
        ).tolist()
        times = zip(start.times.to(x), torch.cat([path.times[1:], path.times[-1:]]).to(x))
        for (t, s), (old, alpha, sigma, alpha_s, sigma_s, more) in zip(times, table):
            if more:
                x = alpha / old * x + alpha * more * torch.randn_like(x)
            mean = denoiser.mean(x, t, context)
            eps = (x - alpha * mean) / sigma
            x = alpha_s * mean + sigma_s * eps
            if sigma_s:
                new = (x - alpha_s * denoiser.mean(x, s, context)) / sigma_s
                x = x + (sigma_s - alpha_s * sigma / alpha) / 2 * (new - eps)
            yield x


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    r"""Steps of a predictor, each followed by Langevin steps at the new time.

    .. math:: x \leftarrow x + \epsilon \nabla \log p(x_s) + \sqrt{2 \epsilon} \, \xi, \qquad
        \epsilon = 2 r^2 \sigma_s^2

    The size is that of Song et al., :math:`2 (r |\xi| / |\nabla \log p(x_s)|)^2`, where the score
    has the norm that noise alone would give it, so that draws depend neither on each other nor
    on where they stand.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al.,
          2021), https://arxiv.org/abs/2011.13456

    Arguments:
        predictor: The predictor, one of the linear samplers.
        corrections: The number of Langevin steps after each of its steps but the last.
        ratio: The ratio :math:`r` of signal to noise of a correction.

    Raises:
        ValueError: If a number is impossible.
        TypeError: If the predictor is no linear sampler.

    Example:
        >>> from probgen.diffusion import GaussianDenoiser, VP, noise
        >>> _ = torch.manual_seed(0)
        >>> denoiser = GaussianDenoiser(torch.ones(2), 4 * torch.eye(2), VP())
        >>> start = noise(denoiser, torch.Size([4000]), torch.ones(()))
        >>> x = PredictorCorrector(Ancestral(100)).sample(denoiser, start)
        >>> abs(float(x.mean()) - 1) < 0.1, abs(float(x.std()) - 2) < 0.15
        (True, True)
    """

    predictor: Linear = field(default_factory=Ancestral)
    corrections: int = 1
    ratio: float = 0.16

    def __post_init__(self) -> None:
        check_whole(1, corrections=self.corrections)
        if not isinstance(self.predictor, Linear):
            raise TypeError(
                f"Expected a `predictor` such as Ancestral, got a {type(self.predictor).__name__}."
            )
        if not self.ratio > 0:
            raise ValueError(f"Expected a positive `ratio`, got {self.ratio}.")

    @property
    def steps(self) -> int:  # type: ignore[override]
        """The number of steps of the predictor."""
        return self.predictor.steps

    @property
    def grid(self) -> Grid:  # type: ignore[override]
        """That of the predictor."""
        return self.predictor.grid

    def walk(self, denoiser: Denoiser, x: Tensor, context: Tensor | None) -> Iterator[Tensor]:
        path = self.grid.path(denoiser.schedule, self.steps)
        table = torch.stack(self.predictor.coefficients(denoiser.schedule, path), 1).tolist()
        times = path.times.to(x)
        sizes = (2 * self.ratio**2 * path.sigma.square()).tolist()
        for k, (a, b, c) in enumerate(table):
            x = a * x + b * denoiser.mean(x, times[k], context) + c * torch.randn_like(x)
            for _ in range(self.corrections if k + 1 < len(table) else 0):
                score, size = denoiser.score(x, times[k + 1], context), sizes[k + 1]
                x = x + size * score + (2 * size) ** 0.5 * torch.randn_like(x)
            yield x
