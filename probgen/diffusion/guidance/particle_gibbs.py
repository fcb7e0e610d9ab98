r"""Particle Gibbs: exact posteriors under a diffusion, for any number of particles.

A sampler's noisy steps :math:`x_s = A x_t + B \hat x_0(x_t) + C \xi` are a prior of whole paths
:math:`x_{t_0}, \dots, x_{t_{N-1}}`, from noise to the last level before the item
:math:`x_0 = A x_{t_{N-1}} + B \hat x_0(x_{t_{N-1}})`. Their posterior is

.. math:: p(x_{t_0}, \dots, x_{t_{N-1}} \mid y) \propto
    p(x_{t_0}) \prod_k p(x_{t_{k+1}} \mid x_{t_k}) \; p(y \mid x_0).

One sweep of a chain keeps its path as the first of :math:`n` particles and moves the others anew by
twisted sequential Monte Carlo, as in :mod:`probgen.diffusion.guidance.twisted_smc`. Wherever
particles are resampled, the kept path gets a new ancestor :math:`i`, with probability

.. math:: \propto w_i \, p(x_s' \mid x_t^i) \, / \, \tilde p_t(y \mid x_t^i),

:math:`x_s'` being its next value, and at the end a path is drawn by the final weights. The
posterior is invariant under this, whatever the twist :math:`\tilde p_t` and however few the
particles, which decide only how fast chains mix.

The twist is a normal distribution of :math:`y` about :math:`\hat y = A(\hat x_0(x_t))`, whose
covariance is measured: that of :math:`y - \hat y` where :math:`x_0` is drawn by the sampler, from
values
:math:`x_t` of draws of the prior first, then of draws of the posterior.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...core.arguments import record
from ...core.validation import check_whole, outside
from ...mcmc import diagnostics
from ..denoisers import Denoiser
from ..samplers import Ancestral, LinearSampler, noise
from ..time_grids import AngleGrid
from .measurement import GaussianMeasurement, like_of
from .twists import Twist

__all__ = ["GibbsDraws", "ParticleGibbs"]

RHAT, RENEWALS = 1.1, 3.0  # the most, and the least of a chain, without a warning


class GibbsDraws(NamedTuple):
    r"""Draws of particle Gibbs.

    Arguments:
        position: The draws, with shape :math:`(N, event)`, those of the first chain first.
        log_weights: Zeros, with shape :math:`(N)`, since the draws have equal weights.
        log_z: The log evidence, estimated by the particles from which the chains start.
        se: Its standard error.
        ess: The effective sample size, of the number for which it is least.
        rhat: The greatest :math:`\hat R` of any number.
        renewal: How often a sweep renewed the path, a fraction for each level, with shape
            :math:`(levels)`, the noisiest first.
    """

    position: Tensor
    log_weights: Tensor
    log_z: float
    se: float
    ess: float
    rhat: float
    renewal: Tensor


@record
class ParticleGibbs:
    r"""Particle Gibbs with ancestor sampling: Markov chains of whole paths of a sampler.

    Each sweep of a chain is conditional sequential Monte Carlo with systematic resampling where
    weights are uneven. Its draws are exact for any number of particles as it goes on. They are
    those of the posterior under the sampler's own prior, so that the sampler must be good without
    a measurement: its steps fine enough, and its last level close to the data. Chains start from
    twisted particles, in proportion to the evidence, and so are over all modes that those found.

    References:
        | Particle Markov chain Monte Carlo methods (Andrieu et al., 2010)
        | https://doi.org/10.1111/j.1467-9868.2009.00736.x
        | Particle Gibbs with Ancestor Sampling (Lindsten et al., 2014)
        | https://arxiv.org/abs/1401.0604
        | On Particle Gibbs Sampling (Chopin & Singh, 2015), https://arxiv.org/abs/1304.1887
        | Practical and Asymptotically Exact Conditional Sampling in Diffusion Models
        | (Wu et al., 2023), https://arxiv.org/abs/2306.17775
        | Conditioning diffusion models by explicit forward-backward bridging
        | (Corenflos et al., 2024), https://arxiv.org/abs/2405.13794

    Arguments:
        sampler: The sampler, a linear one with noise in its steps; by default
            `Ancestral(100, "step", AngleGrid())`.
        chains: The number of chains, at least 2, which share all calls of the denoiser.
        particles: The number of particles of each chain, at least 2, the kept one included.
        warmup: The number of sweeps before the first draw.
        pilots: The number of draws that measure the twist. It has a full covariance up to a quarter
            as many numbers in `y`, else a diagonal one.
        gradient: Whether particles follow the gradient of the twist. Without it any likelihood will
            do, at the price of more particles.
        guesses: The number of guesses of :math:`x_0` where a likelihood is not normal.
        threshold: The fraction of the particles, in (0, 1), to which the effective sample size
            falls before they are resampled.

    Raises:
        ValueError: If a number is impossible.
        TypeError: If the sampler is not a linear one.

    Example:
        >>> from probgen.diffusion import GaussianDenoiser, VP
        >>> _ = torch.manual_seed(0)
        >>> prior = GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())
        >>> gibbs = ParticleGibbs(Ancestral(50, "step"), particles=4)
        >>> found = gibbs.sample(prior, 640, lambda x: x[..., :1], torch.ones(1), 1.0)
        >>> bool((found.position.mean(0) - torch.tensor([0.5, 0.0])).abs().max() < 0.15)
        True
        >>> found.rhat < 1.1, found.renewal.shape
        (True, torch.Size([50]))
    """

    sampler: LinearSampler = field(default_factory=lambda: Ancestral(100, "step", AngleGrid()))
    chains: int = 32
    particles: int = 32
    warmup: int = 4
    pilots: int = 512
    gradient: bool = True
    guesses: int = 16
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, LinearSampler) or self.sampler.draws:
            raise TypeError(
                f"Expected a `sampler` with linear steps, such as Ancestral(100), got "
                f"{self.sampler}."
            )
        check_whole(2, chains=self.chains, particles=self.particles, pilots=self.pilots)
        check_whole(0, warmup=self.warmup)
        check_whole(1, guesses=self.guesses)
        if not 0 < self.threshold < 1:
            raise ValueError(f"Expected a `threshold` in (0, 1), got {self.threshold}.")

    def sample(
        self,
        denoiser: Denoiser,
        draws: int,
        operator: Callable[[Tensor], Any],
        y: Tensor | None = None,
        scale: float | Tensor | None = None,
        context: Tensor | None = None,
        *,
        callback: Callable[[int, Tensor], Any] | None = None,
        progress: bool = False,
    ) -> GibbsDraws:
        r"""Draw from the posterior.

        Arguments:
            denoiser: The denoiser.
            draws: The number :math:`N` of draws, a multiple of the chains, at least 4 of each.
            operator: The measurement, as in :class:`~probgen.diffusion.DPS`: with `y` and `scale` a
                mean, with `y` a distribution, else a log likelihood.
            y: What was measured.
            scale: The standard deviation of its noise.
            context: A context, with shape :math:`(C)`.
            callback: Called after each sweep with its number and the value of each chain.
            progress: Whether to show a progress bar.

        Returns:
            The draws with their diagnostics, and the log evidence with its standard error.

        Raises:
            ValueError: If the number of draws is impossible, a step of the sampler has no noise, or
                the likelihood has no gradient but one is asked for, or vanishes at all particles.

        Warns:
            UserWarning: If chains have not mixed: :math:`\hat R` is above 1.1, the effective sample
                size is below a tenth of the draws, or the mean chain has renewed its path at the
                noisiest level fewer than three times.
        """
        check_whole(1, draws=draws)
        if draws % self.chains or draws < 4 * self.chains:
            raise ValueError(
                f"Expected `draws` that the {self.chains} chains divide, at least 4 of each, got "
                f"{draws}."
            )
        likelihood = GaussianMeasurement(operator, y, scale, len(denoiser.shape))
        like = like_of(denoiser, y)
        likelihood.to(like.device)
        options = context, self.gradient, self.guesses
        twist = Twist(denoiser, likelihood, self.sampler, like, *options)
        twist.measure(twist.prior(self.pilots))
        start = sweep(self, twist, likelihood)
        rows = torch.multinomial(start.overall().softmax(0), self.pilots, replacement=True)
        twist.measure(start.x.flatten(0, 1)[rows])
        start = sweep(self, twist, likelihood)
        kept, x = start.starts()
        sweeps, found, renewed = self.warmup + draws // self.chains, [], []
        for k in tqdm(range(sweeps), disable=not progress, leave=False):
            kept, x, new = sweep(self, twist, likelihood, kept).draw()
            if k >= self.warmup:
                found.append(x)
                renewed.append(new)
            if callback is not None:
                callback(k, x)
        position = torch.stack(found, 1)
        numbers = position.flatten(2)
        result = GibbsDraws(
            position.flatten(0, 1),
            position.new_zeros(draws),
            *start.evidence(),
            ess=float(diagnostics.ess(numbers).min()),
            rhat=float(diagnostics.rhat(numbers).max()),
            renewal=torch.stack(renewed).mean(0),
        )
        warn(result, self)
        return result


def warn(found: GibbsDraws, method: ParticleGibbs) -> None:
    """Warn if chains have not mixed."""
    draws = len(found.position)
    rate = float(found.renewal[0])
    wrong = []
    if not found.rhat <= RHAT:
        wrong.append(f"R-hat is {found.rhat:.2f}, above {RHAT}")
    if not found.ess >= draws / 10:
        wrong.append(f"the effective sample size is {found.ess:.0f} of {draws} draws")
    if rate * (draws // method.chains) < RENEWALS:
        wrong.append(f"a sweep renews the noisiest level of {100 * rate:.0f} % of the chains")
    if wrong:
        warnings.warn(
            f"Chains of particle Gibbs have not mixed: {', and '.join(wrong)}. Take more "
            f"`particles` than {method.particles}, or more `draws` than {draws}.",
            stacklevel=outside(),
        )


class Swept(NamedTuple):
    """Particles after a sweep of :math:`C` chains with :math:`n` particles each.

    Arguments:
        path: Their values at each level, each with shape :math:`(C, n, event)`.
        ancestors: Their ancestors at the level before, each with shape :math:`(C, n)`.
        x: The data, with shape :math:`(C, n, event)`.
        weights: Their log weights, with shape :math:`(C, n)`.
        log_z: The log evidence up to the last resampling, with shape :math:`(C)`.
    """

    path: list[Tensor]
    ancestors: list[Tensor]
    x: Tensor
    weights: Tensor
    log_z: Tensor

    def overall(self) -> Tensor:
        """Return the log weights of all particles as one population."""
        weights = (self.weights + self.log_z[:, None]).flatten().double()
        if not bool((weights > -torch.inf).any()):
            raise ValueError("Expected a likelihood that does not vanish at all particles.")
        return weights

    def evidence(self) -> tuple[float, float]:
        """Return the log evidence and its standard error, from chains that never met."""
        chains, n = self.weights.shape
        parts = self.overall().reshape(chains, n).logsumexp(1) - math.log(n)
        log_z = float(parts.logsumexp(0)) - math.log(chains)
        return log_z, float((parts - log_z).exp().std()) / math.sqrt(chains)

    def starts(self) -> tuple[Tensor, Tensor]:
        """Return a path and an item for each chain, drawn systematically from all particles."""
        chains, n = self.weights.shape
        total = self.overall().softmax(0).cumsum(0)
        points = torch.arange(chains, dtype=total.dtype, device=total.device)
        points = (points + torch.rand_like(points[:1])) / chains
        chosen = torch.searchsorted(total, points).clamp(max=chains * n - 1)
        path, _ = self.traced(chosen // n, chosen % n)
        return path, self.x.flatten(0, 1)[chosen]

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return path and the item that each chain moves to, and the fraction renewed by level.

        Another particle than the kept one is proposed by weight, and accepted by Metropolis' rule.
        """
        weights = self.weights.double().softmax(1)
        others = weights.clone()
        others[:, 0] = 0
        alone = others.sum(1) == 0  # all others have underflowed
        safe = torch.where(alone[:, None], 1.0, others)
        j = torch.multinomial(safe, 1)
        odds = others.sum(1) / (1 - weights.gather(1, j)[:, 0])
        chosen = torch.where(~alone & (torch.rand_like(odds) < odds), j[:, 0], 0)
        rows = torch.arange(len(chosen), device=chosen.device)
        path, places = self.traced(rows, chosen)
        return path, self.x[rows, chosen], (places != 0).double().mean(1)

    def traced(self, rows: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return the whole paths of particles, and their places at each level."""
        path, places = [self.path[-1][rows, chosen]], [chosen]
        for value, ancestors in zip(self.path[-2::-1], self.ancestors[::-1]):
            chosen = ancestors[rows, chosen]
            path.append(value[rows, chosen])
            places.append(chosen)
        return torch.stack(path[::-1]), torch.stack(places[::-1])


def sweep(
    method: ParticleGibbs, twist: Twist, likelihood: GaussianMeasurement, kept: Tensor | None = None
) -> Swept:
    """Twisted sequential Monte Carlo, conditional on a path of each chain if any is kept."""
    chains, n = method.chains, method.particles
    x = noise(twist.denoiser, torch.Size([chains, n]), twist.like)
    rows = torch.arange(chains, device=x.device)[:, None]
    same = torch.arange(n, device=x.device).expand(chains, n)
    if kept is not None:
        x[:, 0] = kept[0]
    mean, value, slope = twist(x, 0)
    weights, log_z, path, ancestors = value, torch.zeros_like(value[:, 0]), [x], []
    for k, (a, b, c) in enumerate(twist.table[:-1]):
        own = None
        if kept is not None:
            gap = (kept[k + 1].unsqueeze(1) - a * x - b * mean) / c
            own = weights - value - gap.square().flatten(2).sum(-1) / 2
        size = (2 * weights.logsumexp(1, True) - (2 * weights).logsumexp(1, True)).exp()
        anew = size <= method.threshold * n
        chosen = torch.where(anew, resampled(weights, own), same)
        log_z = log_z + torch.where(anew[:, 0], weights.logsumexp(1) - math.log(n), 0.0)
        weights = torch.where(anew, 0.0, weights)
        x, mean, slope, value = (v[rows, chosen] for v in (x, mean, slope, value))
        push, xi = c * slope, torch.randn_like(x)
        if kept is not None:
            xi[:, 0] = (kept[k + 1] - a * x[:, 0] - b * mean[:, 0]) / c - push[:, 0]
        x = a * x + b * mean + c * (push + xi)
        # log p(x_s | x_t) - log r(x_s | x_t, y)
        weights = weights - value - (push * xi + push.square() / 2).flatten(2).sum(-1)
        mean, value, slope = twist(x, k + 1)
        weights = weights + value
        path.append(x)
        ancestors.append(chosen)
    a, b, _ = twist.table[-1]
    x = a * x + b * mean
    with torch.no_grad():
        weights = weights - value + likelihood(x)
    return Swept(path, ancestors, x, weights, log_z)


def resampled(weights: Tensor, own: Tensor | None) -> Tensor:
    r"""Ancestors by systematic resampling within each chain, with shape :math:`(C, n)`.

    The ancestor of the kept path, the first particle, is drawn by log weights of its own; the
    others are then drawn given it: its point lies uniformly in the interval of its ancestor, and
    theirs follow at equal distances around the circle.
    """
    part = weights.double().softmax(1)
    total = part.cumsum(1)
    first = torch.rand_like(total[:, :1])
    if own is not None:
        kept = torch.multinomial(own.double().softmax(1), 1)
        first = total.gather(1, kept) - first * part.gather(1, kept)
    n = weights.shape[1]
    points = (first + torch.arange(n, dtype=first.dtype, device=first.device) / n) % 1
    chosen = torch.searchsorted(total, points).clamp(max=n - 1)
    if own is not None:
        chosen[:, :1] = kept
    return chosen
