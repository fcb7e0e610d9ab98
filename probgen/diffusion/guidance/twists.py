r"""Twisting functions: normal approximations of the likelihood at noisy values.

With :math:`\hat y = A(\hat x_0(x_t))` and noise of covariance :math:`\Gamma`,

.. math:: \tilde p_t(y \mid x_t) = \mathcal{N}(y; \hat y, S_t + \Gamma), \qquad
    S_t = \operatorname{E} \bigl[ (A(x_0) - \hat y) (A(x_0) - \hat y)^\top \bigr],

where :math:`x_0` is drawn by the sampler from :math:`x_t` on. The mean is over values of
:math:`x_t` that draws of the prior, or of the posterior, have at that level, so that the twist
depends on :math:`x_t` by :math:`\hat y` alone. If a likelihood is not normal, the twist is its mean
over guesses of :math:`x_0` with measured variances, the same at every call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..samplers import LinearSampler, noise
from .exact import flat
from .measurement import GaussianMeasurement, check_graph

__all__ = ["Twist"]

LEVELS = 21  # at which it is measured; between them it is interpolated


class Twist:
    r"""A twist, to be measured before it is called.

    Arguments:
        denoiser: The denoiser.
        likelihood: The likelihood.
        sampler: The sampler, with noise in all its steps but the last.
        like: A tensor of the dtype and on the device of data.
        context: A context, with shape :math:`(C)`.
        gradient: Whether to give the gradient.
        guesses: The number of guesses where a likelihood is not normal.

    Raises:
        ValueError: If a step of the sampler has no noise.

    Example:
        >>> from probgen.diffusion import Ancestral, GaussianDenoiser, VP
        >>> prior = GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())
        >>> likelihood = GaussianMeasurement(lambda x: x, torch.ones(2), 1.0, 1)
        >>> twist = Twist(prior, likelihood, Ancestral(50, "step"), torch.ones(()))
        >>> twist.measure(twist.prior(512))
        >>> mean, value, slope = twist(torch.zeros(5, 2), 0)
        >>> mean.shape, value.shape, slope.shape
        (torch.Size([5, 2]), torch.Size([5]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        denoiser: Denoiser,
        likelihood: GaussianMeasurement,
        sampler: LinearSampler,
        like: Tensor,
        context: Tensor | None = None,
        gradient: bool = True,
        guesses: int = 16,
    ) -> None:
        self.denoiser, self.likelihood, self.like = denoiser, likelihood, like
        self.context, self.gradient = context, gradient
        path = sampler.grid.path(denoiser.schedule, sampler.steps)
        table = torch.stack(sampler.coefficients(denoiser.schedule, path), 1).tolist()
        if table[-1][2] != 0 or not all(c > 0 for _, _, c in table[:-1]):
            raise ValueError(
                f"Expected a `sampler` with noise in all steps but the last, got {sampler}."
            )
        self.table, self.times = table, path.times.to(like)
        self.signals = list(zip(path.alpha.tolist(), path.sigma.tolist()))
        shape = guesses, *denoiser.shape
        self.guesses = torch.randn(shape, dtype=like.dtype, device=like.device)
        self.floor = 0.0

    def prior(self, count: int) -> Tensor:
        """Draw data from the prior, and note their least likelihood."""
        x, _ = self.finish(noise(self.denoiser, torch.Size([count]), self.like), 0)
        with torch.no_grad():
            values = self.likelihood(x)
        values = values[values > -torch.inf]
        self.floor = float(values.min()) if len(values) else 0.0
        return x

    def finish(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        r"""Take the sampler's steps from level `k` on; return data, and the first :math:`\hat x_0`.

        With shapes :math:`(N, event)`.
        """
        first = None
        with torch.no_grad():
            for (a, b, c), t in zip(self.table[k:], self.times[k:]):
                mean = self.denoiser.mean(x, t, self.context)
                first = mean if first is None else first
                x = a * x + b * mean + c * torch.randn_like(x)
        return x, first  # type: ignore[return-value]

    def measure(self, x: Tensor) -> None:
        """Measure the twist where data, with shape :math:`(N, event)`, are with noise added."""
        last = len(self.table) - 1
        levels = torch.linspace(0, last, min(LEVELS, last + 1)).round().long().tolist()
        spreads = []
        for k in levels:
            alpha, sigma = self.signals[k]
            spreads.append(self.spread(*self.finish(alpha * x + sigma * torch.randn_like(x), k)))
        self.roots = []
        for k in range(last + 1):
            upper = next(i for i, level in enumerate(levels) if level >= k)
            lower = max(upper - 1, 0)
            part = (k - levels[lower]) / max(levels[upper] - levels[lower], 1)
            self.roots.append(self.root(torch.lerp(spreads[lower], spreads[upper], part)))

    def spread(self, x: Tensor, mean: Tensor) -> Tensor:
        """Return the second moments of what is measured, or else of data, about what was denoised.

        A matrix if there are four times as many data as numbers in `y`, else its diagonal.
        """
        likelihood = self.likelihood
        if likelihood.scale is None:
            return (x - mean).square().mean(0)
        with torch.no_grad():
            gap = flat(likelihood.operator(x) - likelihood.operator(mean), 1).double()
        full = 4 * gap.shape[1] <= len(x)
        return gap.mT @ gap / len(x) if full else gap.square().mean(0)

    def root(self, spread: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the whitening matrix of a residual, and its log determinant.

        If the likelihood is not normal, the standard deviations of guesses, and 0.
        """
        y, scale = self.likelihood.y, self.likelihood.scale
        if y is None or scale is None:
            return spread.sqrt(), spread.new_zeros(())
        s = scale.expand(torch.broadcast_shapes(scale.shape, y.shape))
        s = flat(torch.complex(s, s) if y.is_complex() else s, 0).flatten().double()
        if spread.ndim == 1:
            total = (spread + s.square()).sqrt()
            return total.reciprocal().to(self.like), total.log().sum().to(self.like)
        factor = torch.linalg.cholesky(spread + s.square().diag_embed())
        eye = torch.eye(len(s), dtype=factor.dtype, device=factor.device)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        return inverse.to(self.like), factor.diagonal().log().sum().to(self.like)

    def __call__(self, x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        r""":math:`\hat x_0`, the log twist, and its gradient if one is asked for, else zeros.

        Of values at level `k`, with shapes :math:`(*, event)`, :math:`(*)` and :math:`(*, event)`.
        """
        event = self.denoiser.shape
        batch = x.shape[: x.ndim - len(event)]
        with torch.set_grad_enabled(self.gradient):
            x = x.detach().reshape(-1, *event).requires_grad_(self.gradient)
            mean = self.denoiser.mean(x, self.times[k], self.context)
            if self.gradient:
                check_graph(mean, self.denoiser)
            value = self.value(mean, k)
            slope = torch.zeros_like(x)
            if self.gradient:
                if not value.requires_grad:
                    raise ValueError(
                        "Expected a likelihood with a gradient, got one without. Take "
                        "gradient=False."
                    )
                slope = torch.autograd.grad(value.sum(), x)[0].nan_to_num(0.0, 0.0, 0.0)
        value = value.detach()
        # a twist of 0 would forbid what the likelihood may allow
        value = torch.where(value > -torch.inf, value, self.floor)
        return (
            mean.detach().reshape(*batch, *event),
            value.reshape(batch),
            slope.reshape(*batch, *event),
        )

    def value(self, mean: Tensor, k: int) -> Tensor:
        """Return log twist of what was denoised, up to a constant if the likelihood is normal."""
        likelihood, (root, size) = self.likelihood, self.roots[k]
        if likelihood.scale is None:
            guesses = mean + (root * self.guesses).unsqueeze(1)
            return likelihood(guesses).logsumexp(0) - math.log(len(guesses))
        gap = flat(likelihood.operator(mean) - likelihood.y, 1)
        white = gap * root if root.ndim == 1 else gap @ root.mT
        return -white.square().sum(-1) / 2 - size
