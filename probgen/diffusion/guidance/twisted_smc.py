r"""Twisted sequential Monte Carlo: guidance corrected by importance weights.

Particles take the steps of a sampler, :math:`x_s = A x_t + B \hat x_0(x_t) + C \xi`, moved by the
gradient of a twist :math:`\tilde p_t(y \mid x_t)`, a guess of the likelihood at :math:`x_t`, and
gain the weight

.. math:: w = \frac{p(x_s \mid x_t)}{r(x_s \mid x_t, y)} \,
    \frac{\tilde p_s(y \mid x_s)}{\tilde p_t(y \mid x_t)}, \qquad
    r = \mathcal{N}\bigl( A x_t + B \hat x_0 + C^2 \nabla \log \tilde p_t(y \mid x_t), \; C^2 I
    \bigr).

The last twist is the likelihood itself, so that any others only decide how many particles it takes:
the weighted draws are those of the posterior under the sampler's own prior, and the mean weight is
the evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...core.arguments import record
from ...core.validation import check_whole
from ...mcmc.annealing import Annealed, finish, resample
from ..denoisers import Denoiser
from ..samplers import Ancestral, LinearSampler, noise
from .measurement import GaussianMeasurement, check_graph, like_of

__all__ = ["TwistedSMC"]

PROBES = 256  # draws that tell how an operator spreads data


@record
class TwistedSMC:
    r"""Twisted sequential Monte Carlo, exact in the limit of many particles.

    The twist takes :math:`x_0` to have the variance :math:`\sigma^2 / (\alpha^2 + \sigma^2)` about
    :math:`\hat x_0`: a normal likelihood gains what the operator makes of it, any other is a mean
    over guesses. Where weights have become uneven, particles are drawn anew by them,
    systematically, within islands that never meet.

    References:
        | Practical and Asymptotically Exact Conditional Sampling in Diffusion Models
        | (Wu et al., 2023), https://arxiv.org/abs/2306.17775

    Arguments:
        sampler: The sampler, a linear one with noise in its steps; by default
            `Ancestral(200, "step")`, whose draws without a measurement are not too narrow.
        gradient: Whether particles follow the gradient of the twist. Without it any likelihood will
            do, at the price of more particles.
        guesses: The number of guesses of :math:`x_0` where a likelihood is not normal.
        threshold: The fraction of the particles, in (0, 1), to which the effective sample size
            falls before they are drawn anew.
        islands: The number of islands, at least 2, whose spread is the error of the evidence.

    Raises:
        ValueError: If a number is impossible.
        TypeError: If the sampler is no linear one.

    Example:
        >>> import pyro.distributions as dist
        >>> from probgen.diffusion import GaussianDenoiser, VP
        >>> _ = torch.manual_seed(0)
        >>> prior = GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())
        >>> smc = TwistedSMC(Ancestral(100))
        >>> found = smc.sample(prior, 1000, lambda x: x[..., :1], torch.ones(1), 1.0)
        >>> mean = found.log_weights.softmax(0) @ found.position
        >>> bool((mean - torch.tensor([0.5, 0.0])).abs().max() < 0.1)
        True
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(1.0))
        >>> abs(found.log_z - float(exact)) < 4 * found.se + 0.01
        True
    """

    sampler: LinearSampler = field(default_factory=lambda: Ancestral(200, "step"))
    gradient: bool = True
    guesses: int = 16
    threshold: float = 0.5
    islands: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, LinearSampler) or self.sampler.draws:
            raise TypeError(
                f"Expected a `sampler` with linear steps, such as Ancestral(100), got "
                f"{self.sampler}."
            )
        check_whole(2, islands=self.islands)
        check_whole(1, guesses=self.guesses)
        if not 0 < self.threshold < 1:
            raise ValueError(f"Expected a `threshold` in (0, 1), got {self.threshold}.")

    def sample(
        self,
        denoiser: Denoiser,
        particles: int,
        operator: Callable[[Tensor], Any],
        y: Tensor | None = None,
        scale: float | Tensor | None = None,
        context: Tensor | None = None,
        *,
        callback: Callable[[int, Tensor], Any] | None = None,
        progress: bool = False,
    ) -> Annealed:
        r"""Draws from the posterior.

        Arguments:
            denoiser: The denoiser.
            particles: The number :math:`N` of particles, a multiple of the islands.
            operator: The measurement, as in :class:`~probgen.diffusion.DPS`: with `y` and `scale` a
                mean, with `y` a distribution, else a log likelihood.
            y: What was measured.
            scale: The standard deviation of its noise.
            context: A context, with shape :math:`(C)`.
            callback: Called after each step with its number and the particles.
            progress: Whether to show a progress bar.

        Returns:
            The draws, with shape :math:`(N, event)`, their log weights, and the log evidence with
            its standard error; `temperatures` are the times.

        Raises:
            ValueError: If the islands do not divide the particles, or the likelihood has no
                gradient but one is asked for, or vanishes at all particles.

        Warns:
            UserWarning: If the effective sample size is below a tenth of the particles.
        """
        check_whole(1, particles=particles)
        if particles % self.islands:
            raise ValueError(
                f"Expected `particles` that the {self.islands} islands divide, got {particles}."
            )
        likelihood = GaussianMeasurement(operator, y, scale, len(denoiser.shape))
        x = noise(denoiser, torch.Size([particles]), like_of(denoiser, y))
        likelihood.to(x.device)
        path = self.sampler.grid.path(denoiser.schedule, self.sampler.steps)
        table = torch.stack(self.sampler.coefficients(denoiser.schedule, path), 1).tolist()
        times = path.times.to(x)
        likelihood.widen(torch.randn(PROBES, *x.shape[1:]).to(x))
        mean, twist, slope = self.twist(denoiser, likelihood, x, times[0], context)
        weights, log_z = twist, x.new_zeros(self.islands)
        for k, (a, b, c) in enumerate(tqdm(table, disable=not progress, leave=False)):
            weights, log_z, chosen = self.drawn(weights, log_z)
            x, mean, twist, slope = (v[chosen] for v in (x, mean, twist, slope))
            xi = torch.randn_like(x)
            push = c * slope
            x = a * x + b * mean + c * (push + xi)
            # log p(x_s | x_t) - log r(x_s | x_t, y)
            weights = weights - twist - (push * xi + push.square() / 2).flatten(1).sum(-1)
            if k + 1 < len(table):
                mean, twist, slope = self.twist(denoiser, likelihood, x, times[k + 1], context)
            else:
                with torch.no_grad():
                    twist = likelihood(x)
            weights = weights + twist
            if callback is not None:
                callback(k, x)
        if not bool((weights > -torch.inf).any()):
            raise ValueError("Expected a likelihood that does not vanish at all particles.")
        groups = log_z + grouped(weights, self.islands)
        weights = weights + log_z.repeat_interleave(particles // self.islands)
        ess = float((2 * weights.logsumexp(0) - (2 * weights).logsumexp(0)).exp())
        return finish(
            x, weights, ess, times, groups[:, None], "particles", "of them, or of the steps"
        )

    def drawn(self, weights: Tensor, log_z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Resample if the ESS is low; return weights, log evidence and ancestors."""
        w = weights.double()
        size = (2 * w.logsumexp(0) - (2 * w).logsumexp(0)).exp()
        anew = size <= self.threshold * len(weights)
        same = torch.arange(len(weights), device=weights.device)
        chosen = torch.where(anew, resample(weights.reshape(self.islands, -1)), same)
        log_z = log_z + torch.where(anew, grouped(weights, self.islands), 0.0)
        return torch.where(anew, 0.0, weights), log_z, chosen

    def twist(
        self,
        denoiser: Denoiser,
        likelihood: GaussianMeasurement,
        x: Tensor,
        t: Tensor,
        context: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        r""":math:`\hat x_0`, the log twist, and its gradient if one is asked for, else zeros."""
        alpha, sigma = denoiser.schedule(t)
        spread = sigma / (alpha.square() + sigma.square()).sqrt()
        with torch.set_grad_enabled(self.gradient):
            x = x.detach().requires_grad_(self.gradient)
            mean = denoiser.mean(x, t, context)
            if self.gradient:
                check_graph(mean, denoiser)
            if likelihood.scale is not None:
                value = likelihood(mean, spread)
            else:
                shape = self.guesses, *mean.shape
                guesses = mean + spread * torch.randn(shape, dtype=x.dtype, device=x.device)
                value = likelihood(guesses).logsumexp(0) - math.log(self.guesses)
            if not self.gradient:
                return mean, value, torch.zeros_like(x)
            if not value.requires_grad:
                raise ValueError(
                    "Expected a likelihood with a gradient, got one without. Take gradient=False."
                )
            (slope,) = torch.autograd.grad(value.sum(), x)
        return mean.detach(), value.detach(), slope


def grouped(weights: Tensor, islands: int) -> Tensor:
    """Return the log of the mean weight of each island."""
    rows = weights.reshape(islands, -1)
    return rows.logsumexp(1) - math.log(rows.shape[1])
