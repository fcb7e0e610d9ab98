r"""Samplers that solve the equation of the probability flow.

With half the log ratio of signal to noise, :math:`\ell = \log(\alpha / \sigma)`, the flow is

.. math:: \frac{d}{d\ell} \frac{x}{\sigma} = \frac{\alpha}{\sigma} \, \hat x_0(x, \ell),

or in :math:`y = x / \alpha` and :math:`\varsigma = \sigma / \alpha`,
:math:`dy / d\varsigma = (y - \hat x_0) / \varsigma`. Methods differ in the variable in which they
are of second order or more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import record
from ..core.validation import check_whole
from ..transforms.continuous import Method, check_method
from .denoisers import Denoiser
from .flow import flow_table, probability_flow
from .samplers import Sampler
from .schedules import Schedule
from .time_grids import AngleGrid, Grid, KarrasGrid, LogSNRGrid, Path

__all__ = ["DPMSolver", "Heun", "ODESolver"]


@record
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
    grid: Grid = field(default_factory=LogSNRGrid)

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


@record
class Heun(Sampler):
    r"""The second-order method of EDM, with fresh noise on the way if asked.

    In :math:`y = x / \alpha` and :math:`\varsigma = \sigma / \alpha` the flow is
    :math:`dy / d\varsigma = (y - \hat x_0) / \varsigma`, which Heun's method follows. Before a step
    the noise may be raised to :math:`(1 + \gamma) \varsigma`, at most to that of the latest time.

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
    grid: Grid = field(default_factory=KarrasGrid)

    def __post_init__(self) -> None:
        check_whole(1, steps=self.steps)
        if not self.churn >= 0 or not self.inflate > 0:
            raise ValueError(
                f"Expected `churn` >= 0 and a positive `inflate`, got {self.churn} and "
                f"{self.inflate}."
            )
        if not 0 <= self.low <= self.high:
            raise ValueError(f"Expected 0 <= `low` <= `high`, got {self.low} and {self.high}.")

    def raised(self, schedule: Schedule, path: Path) -> tuple[Path, Tensor]:
        """Return the path with raised noise, and the increments of its steps in units of y."""
        level = path.sigma[:-1] / path.alpha[:-1]
        gamma = min(self.churn / self.steps, 2**0.5 - 1)
        chosen = (level >= self.low) & (level <= self.high)
        most = (-schedule.log_snr(torch.tensor(schedule.latest, dtype=torch.double)) / 2).exp()
        high = torch.where(chosen, (level * (1 + gamma)).clamp(max=float(most)), level)
        if gamma == 0:
            return path, torch.zeros_like(level)
        high = torch.where(high > level * (1 + 1e-6), high, level)  # not by rounding alone
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


@record
class ODESolver(Sampler):
    r"""A solver of ordinary equations along the probability flow.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al.,
          2021), https://arxiv.org/abs/2011.13456

    Arguments:
        steps: The number of steps of a method with fixed steps.
        method: The method, see :class:`~probgen.transforms.Continuous`.
        tolerance: The tolerance of a method that chooses its steps.
        grid: The grid of times, one of even angles; after the last the result is what is denoised.

    Raises:
        ValueError: If a number is impossible.

    Example:
        >>> from probgen.diffusion import VP, GaussianDenoiser, noise
        >>> _ = torch.manual_seed(0)
        >>> denoiser = GaussianDenoiser(torch.ones(2), 4 * torch.eye(2), VP())
        >>> x = ODESolver(16).sample(denoiser, noise(denoiser, torch.Size([4000]), torch.ones(())))
        >>> abs(float(x.mean()) - 1) < 0.1, abs(float(x.std()) - 2) < 0.1
        (True, True)
    """

    steps: int = 32
    method: Method = "rk4"
    tolerance: float = 1e-5
    grid: AngleGrid = field(default_factory=AngleGrid)

    def __post_init__(self) -> None:
        check_whole(1, steps=self.steps)
        check_method(self.method, self.tolerance)

    def walk(self, denoiser: Denoiser, x: Tensor, context: Tensor | None) -> Iterator[Tensor]:
        table = flow_table(denoiser.schedule, self.steps, self.grid.cut).to(x)
        for k in range(self.steps):
            part = table[:, 2 * k : 2 * k + 3]
            flow, size = probability_flow(
                denoiser, part, context, self.method, tolerance=self.tolerance
            )
            alpha, sigma = denoiser.schedule(part[0, 0])
            x = size * flow(x / (alpha.square() + sigma.square()).sqrt())
            yield x if k + 1 < self.steps else denoiser.mean(x, table[0, -1], context)
