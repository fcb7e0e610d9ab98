r"""Samplers: from noise to data by a denoiser, in so many steps.

A grid of times :math:`t_0 > \dots > t_{N-1}` ends in a last step to the item, without noise. Most
steps, from time :math:`t` to :math:`s`, are linear in the value and in what was denoised,

.. math:: x_s = A x_t + B \hat x_0(x_t) + C \xi, \qquad \xi \sim \mathcal{N}(0, I),

with coefficients of the schedule alone, which are computed once before the first step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import field
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..core.arguments import record
from ..core.registry import Record
from ..core.validation import check_whole
from .denoisers import Denoiser
from .schedules import Schedule
from .time_grids import Grid, Path, UniformGrid

__all__ = ["DDIM", "Ancestral", "EulerMaruyama", "Sampler", "noise"]


class Sampler(Record):
    """A way from noise to data; every sampler is a frozen dataclass of it.

    A subclass gives :meth:`walk`, and as fields `steps`, the number of its steps, and `grid`, the
    grid of times.

    Example:
        >>> from probgen.diffusion import VP, GaussianDenoiser
        >>> from dataclasses import dataclass, field
        >>> @dataclass(frozen=True)
        ... class OneStep(Sampler):
        ...     steps: int = 1
        ...     grid: Grid = field(default_factory=UniformGrid)
        ...     def walk(self, denoiser, x, context):
        ...         yield denoiser.mean(x, torch.tensor(denoiser.schedule.latest), context)
        >>> denoiser = GaussianDenoiser(torch.ones(2), 4 * torch.eye(2), VP())
        >>> OneStep().sample(denoiser, torch.zeros(3, 2)).shape
        torch.Size([3, 2])
    """

    steps: int
    grid: Grid

    @abstractmethod
    def walk(self, denoiser: Denoiser, x: Tensor, context: Tensor | None) -> Iterator[Tensor]:
        """Return the values after each step, as :meth:`sample` takes them."""

    def sample(
        self,
        denoiser: Denoiser,
        x: Tensor,
        context: Tensor | None = None,
        *,
        callback: Callable[[int, Tensor], Any] | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Take all steps.

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
    r"""Draws at the latest time, of data of mean 0 and variance 1.

    .. math:: x_T \sim \mathcal{N} \bigl( 0, \; (\alpha_T^2 + \sigma_T^2) I \bigr)

    Arguments:
        denoiser: The denoiser, with its schedule.
        shape: The shape :math:`(*)` of the draws.
        like: A tensor of their dtype and device.

    Returns:
        Draws with shape :math:`(*, event)`.

    Example:
        >>> from probgen.diffusion import VP, GaussianDenoiser
        >>> denoiser = GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())
        >>> noise(denoiser, torch.Size([5]), torch.ones(())).shape
        torch.Size([5, 2])
    """
    t = torch.tensor(denoiser.schedule.latest, dtype=torch.double)
    alpha, sigma = denoiser.schedule(t)
    spread = float((alpha.square() + sigma.square()).sqrt())
    draws = torch.randn(*shape, *denoiser.shape, dtype=like.dtype, device=like.device)
    return spread * draws


class LinearSampler(Sampler):
    """A sampler whose steps are linear in the value and in what was denoised.

    Attributes:
        draws: Whether a step takes a draw of the denoiser's distribution, and not its mean.
    """

    draws: bool = False

    @abstractmethod
    def coefficients(self, schedule: Schedule, path: Path) -> tuple[Tensor, Tensor, Tensor]:
        """Return coefficients :math:`A`, :math:`B` and :math:`C` of all steps, with shape `(N)`."""

    def walk(self, denoiser: Denoiser, x: Tensor, context: Tensor | None) -> Iterator[Tensor]:
        path = self.grid.path(denoiser.schedule, self.steps)
        table = torch.stack(self.coefficients(denoiser.schedule, path), 1).tolist()
        for t, (a, b, c) in zip(path.times.to(x), table):
            x = a * x + b * self.clean_estimate(denoiser, x, t, context)
            if c:
                x = x + c * torch.randn_like(x)
            yield x

    def clean_estimate(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, context: Tensor | None
    ) -> Tensor:
        r"""Return the estimate of :math:`\hat x_0` that a step uses."""
        if self.draws:
            return denoiser(x, t, context).sample()
        return denoiser.mean(x, t, context)


@record
class DDIM(LinearSampler):
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
    r"""Return the variance :math:`\sigma_t^2 - (\alpha_t / \alpha_s)^2 \sigma_s^2`."""
    ratio = path.alpha[:-1] / path.alpha[1:]
    return path.sigma[:-1].square() - ratio.square() * path.sigma[1:].square()


def posterior_variance(path: Path) -> Tensor:
    r"""Return the variance of :math:`x_s` given :math:`x_t` and :math:`x_0`."""
    return added_variance(path) * (path.sigma[1:] / path.sigma[:-1]).square()


@record
class Ancestral(LinearSampler):
    r"""The sampler of DDPM: from the posterior given what was denoised.

    .. math:: x_s = \frac{\alpha_t \sigma_s^2}{\alpha_s \sigma_t^2} \, x_t +
        \frac{\alpha_s \sigma_{t \mid s}^2}{\sigma_t^2} \, \hat x_0 + C \xi, \qquad
        \sigma_{t \mid s}^2 = \sigma_t^2 - \frac{\alpha_t^2}{\alpha_s^2} \sigma_s^2

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239

    Arguments:
        steps: The number of steps.
        variance: :math:`C^2`: `"posterior"`, which is right where data are one point; `"step"`,
            :math:`\sigma_{t \mid s}^2` itself, which is where they are normal of variance 1, the
            last step having none; or `"law"`, that of the posterior, where :math:`\hat x_0` is
            drawn from the denoiser's distribution, which is right for any that is exact, however
            few the steps.
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
    variance: Literal["law", "posterior", "step"] = "posterior"
    grid: Grid = field(default_factory=UniformGrid)

    def __post_init__(self) -> None:
        check_whole(1, steps=self.steps)
        if self.variance not in ("law", "posterior", "step"):
            raise ValueError(
                f"Expected `variance` of 'law', 'posterior' or 'step', got {self.variance!r:.80}."
            )
        object.__setattr__(self, "draws", self.variance == "law")

    def coefficients(self, schedule: Schedule, path: Path) -> tuple[Tensor, Tensor, Tensor]:
        added, before, after = added_variance(path), path.sigma[:-1], path.sigma[1:]
        a = path.alpha[:-1] / path.alpha[1:] * (after / before).square()
        b = path.alpha[1:] * added / before.square()
        variance = posterior_variance(path)
        if self.variance == "step":
            variance = added * (after > 0)
        return a, b, variance.clamp_min(0).sqrt()


@record
class EulerMaruyama(LinearSampler):
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
