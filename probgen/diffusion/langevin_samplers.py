"""Samplers with Langevin steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

import torch
from torch import Tensor

from .. import mcmc
from ..core.arguments import record
from ..core.validation import check_whole
from .denoisers import Denoiser
from .samplers import Ancestral, LinearSampler, Sampler
from .time_grids import Grid, LogSNRGrid

__all__ = ["AnnealedLangevin", "PredictorCorrector"]


@record
class PredictorCorrector(Sampler):
    r"""Steps of a predictor, each followed by Langevin steps at the new time.

    .. math:: x \leftarrow x + \epsilon \nabla \log p(x_s) + \sqrt{2 \epsilon} \, \xi, \qquad
        \epsilon = 2 r^2 \sigma_s^2

    The size is that of Song et al. for noise that explodes, under every schedule,
    :math:`2 (r |\xi| / |\nabla \log p(x_s)|)^2`, where the score has the norm that noise alone
    would give it, so that draws depend neither on each other nor on where they stand.

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

    predictor: LinearSampler = field(default_factory=Ancestral)
    corrections: int = 1
    ratio: float = 0.16

    def __post_init__(self) -> None:
        check_whole(1, corrections=self.corrections)
        if not isinstance(self.predictor, LinearSampler):
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
            mean = self.predictor.clean_estimate(denoiser, x, times[k], context)
            x = a * x + b * mean + c * torch.randn_like(x)
            for _ in range(self.corrections if k + 1 < len(table) else 0):
                score, size = denoiser.score(x, times[k + 1], context), sizes[k + 1]
                x = x + size * score + (2 * size) ** 0.5 * torch.randn_like(x)
            yield x


@record
class AnnealedLangevin(Sampler):
    r"""Langevin steps at each of the levels of a grid, by :class:`probgen.mcmc.AnnealedULA`.

    In :math:`y = x / \alpha` and :math:`\varsigma = \sigma / \alpha` a step at a level is

    .. math:: y \leftarrow y + \epsilon \varsigma^2 \nabla \log p(y) + \sqrt{2 \epsilon} \,
        \varsigma \xi.

    After the last level the result is what is denoised. Few moves lag behind levels that fall fast,
    and draws are a little wide then; twice as many moves more than halve it.

    References:
        | Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019)
        | https://arxiv.org/abs/1907.05600

    Arguments:
        steps: The number of levels.
        moves: The number of Langevin steps at each.
        step_size: The step :math:`\epsilon`, in units of the variance of the level's noise.
        grid: The grid of times.

    Raises:
        ValueError: If a number is impossible.

    Example:
        >>> from probgen.diffusion import VE, GaussianDenoiser, noise
        >>> _ = torch.manual_seed(0)
        >>> denoiser = GaussianDenoiser(torch.ones(2), 4 * torch.eye(2), VE(0.01, 20.0))
        >>> start = noise(denoiser, torch.Size([4000]), torch.ones(()))
        >>> x = AnnealedLangevin(50, 20, 0.2).sample(denoiser, start)
        >>> abs(float(x.mean()) - 1) < 0.1, abs(float(x.std()) - 2) < 0.1
        (True, True)
    """

    steps: int = 100
    moves: int = 5
    step_size: float = 0.2
    grid: Grid = field(default_factory=LogSNRGrid)

    def __post_init__(self) -> None:
        check_whole(1, steps=self.steps, moves=self.moves)
        if not self.step_size > 0:
            raise ValueError(f"Expected a positive `step_size`, got {self.step_size}.")

    def walk(self, denoiser: Denoiser, x: Tensor, context: Tensor | None) -> Iterator[Tensor]:
        path = self.grid.path(denoiser.schedule, self.steps)
        times, alphas = path.times.to(x), path.alpha.tolist()
        levels, shape = (path.sigma / path.alpha).to(x), x.shape
        for k, (t, a) in enumerate(zip(times, alphas)):
            kernel = mcmc.AnnealedULA(levels[k : k + 1], self.moves, self.step_size)

            def score(y: Tensor, sigma: Tensor, t: Tensor = t, a: float = a) -> Tensor:
                return a * denoiser.score(a * y.reshape(shape), t, context).reshape(y.shape)

            x = a * kernel.sample((x / a).reshape(-1, *denoiser.shape), score).reshape(shape)
            if k + 1 < len(times):
                x = alphas[k + 1] / a * x
                yield x
        yield denoiser.mean(x, times[-1], context)
