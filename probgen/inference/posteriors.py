r"""The posterior under a learned prior, with or without a Pyro model.

.. math:: p(x \mid y) = \frac{p(x) \, \ell(x)}{Z}, \qquad Z = \int p(x) \, \ell(x) \, dx.

Sequential Monte Carlo leads from prior to posterior, in the base space of a flow where the prior is
standard normal, and gives the evidence :math:`Z` on the way. A diffusion may be guided instead, by
the likelihood that is found in the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution

from ..core import LazyDistribution, as_lazy, sample
from ..core.distributed import mix
from ..diffusion import DPS, Denoiser, ParticleGibbs, Sampler, TwistedSMC, noise
from ..distributions import DiffusionDistribution
from ..mcmc import HMC, Kernel, Likelihood, likelihood, potential, smc

__all__ = ["Posterior", "posterior"]

Method = ParticleGibbs | TwistedSMC | Callable[..., Denoiser]


class Posterior(NamedTuple):
    """Weighted draws of a posterior.

    Arguments:
        draws: The draws, with shape :math:`(N, *)`; of a model, those of each site by its name.
        log_weights: Their log weights, with shape :math:`(N)`.
        ess: The effective sample size of the weights.
        log_evidence: The log evidence :math:`\\log Z`, which guidance leaves unknown, as nan.
        se: Its standard error.
    """

    draws: Tensor | dict[str, Tensor]
    log_weights: Tensor
    ess: float
    log_evidence: float
    se: float

    def resampled(self, count: int) -> Any:
        """Draws of equal weight, with shape :math:`(count, *)`, by name if there are names."""
        chosen = torch.multinomial(self.log_weights.softmax(0), count, replacement=True)
        if isinstance(self.draws, dict):
            return {name: value[chosen] for name, value in self.draws.items()}
        return self.draws[chosen]


def posterior(
    prior: LazyDistribution | TorchDistribution | Callable[..., Any],
    *args: Any,
    method: Method | None = None,
    sampler: Sampler | None = None,
    draws: int = 1024,
    kernel: Kernel | None = None,
    steps: int = 5,
    islands: int = 8,
    seed: int | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> Posterior:
    """Draws from the posterior of a prior and a log likelihood, or of a Pyro model.

    By default sequential Monte Carlo draws from it exactly, up to the error of its draws. For a
    model whose one latent site is a diffusion, a `method` guides the diffusion's sampler by the
    likelihood, which is found in the model: faster, and biased but for
    :class:`~probgen.diffusion.TwistedSMC` and :class:`~probgen.diffusion.ParticleGibbs`, which are
    also the better choice where the data of the diffusion are of separate modes, since kernels mix
    badly in its base space then.

    Arguments:
        prior: The prior, a lazy distribution or one of Pyro, for one value; or a Pyro model.
        args: Of a prior, the log likelihood, which maps one value, with the prior's event shape, to
            a number, and the prior's context, with shape :math:`(C)`, if it takes one; of a model,
            its arguments. Both are vectorised by `torch.func.vmap`.
        method: How the diffusion in a model is guided: :class:`~probgen.diffusion.MMPS`,
            :class:`~probgen.diffusion.PiGDM` or :class:`~probgen.diffusion.ExactMoment` for normal
            data, :class:`~probgen.diffusion.DPS`, a :class:`~probgen.diffusion.TwistedSMC` or a
            :class:`~probgen.diffusion.ParticleGibbs` for any; options of classes are given by
            `functools.partial`.
        sampler: The sampler of a guided diffusion; by default its own.
        draws: The number of draws :math:`N`, a multiple of the islands, or of a method's chains.
        kernel: The kernel that moves draws; by default :class:`~probgen.mcmc.HMC` with 5 steps,
            adapted.
        steps: The number of its steps at each temperature.
        islands: The number of groups of draws that never meet, whose spread gives `se`.
        seed: The seed; by default drawn from torch's generator, whose state is left alone.
        progress: Whether to show a progress bar.
        kwargs: Of a model, its keyword arguments; of a prior, its `context`.

    Returns:
        The draws, their weights and the log evidence.

    Raises:
        ValueError: If the prior has no density, or the likelihood vanishes at all prior draws; if
            a method is given and the model's latent site is no diffusion, or not the only one.

    References:
        Del Moral, Doucet & Jasra, "Sequential Monte Carlo samplers", 2006,
        https://arxiv.org/abs/cond-mat/0212648

    Example:
        >>> import pyro.distributions as dist
        >>> prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> result = posterior(
        ...     prior, lambda x: dist.Normal(x.sum(), 1.0).log_prob(torch.tensor(3.0)),
        ...     seed=0, progress=False,
        ... )
        >>> abs(float(result.draws.mean()) - 1.0) < 0.1  # exactly 1
        True
        >>> exact = dist.Normal(0.0, 3**0.5).log_prob(torch.tensor(3.0))
        >>> abs(result.log_evidence - float(exact)) < 4 * result.se
        True

        A model with a diffusion as its prior:

        >>> import probgen as pg
        >>> from probgen.diffusion import MMPS, VP, GaussianDenoiser
        >>> prior = pg.distributions.Diffusion(GaussianDenoiser(torch.zeros(2), torch.eye(2), VP()))
        >>> def model(y):
        ...     x = pg.sample("x", prior)
        ...     pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=y)
        >>> result = posterior(
        ...     model, torch.tensor(3.0), method=MMPS, seed=0, progress=False
        ... )
        >>> abs(float(result.draws["x"].mean()) - 1.0) < 0.1
        True
    """
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    alone = isinstance(prior, (LazyDistribution, Distribution))
    if alone and method is not None:
        raise ValueError(
            "Expected a Pyro model for a `method`, got a prior. State prior and data in a model."
        )
    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, 0))
        if method is not None:
            found = likelihood(prior, *args, **kwargs)
            return guided(found, method, sampler, draws, progress)
        target = potential(model_of(prior) if alone else prior, *args, **kwargs)
        kernel = HMC(step_size=0.5, steps=5) if kernel is None else kernel
        first = target.draw(draws, prior=True)
        result = smc(
            target.log_prior, target, first, kernel, steps=steps, islands=islands, progress=progress
        )
    values = target.unravel(result.position)
    return Posterior(
        values["x"] if alone else values,
        result.log_weights,
        result.ess,
        result.log_z,
        result.se,
    )


def model_of(prior: Any) -> Callable[..., None]:
    """Return the Pyro model of a prior, called with a log likelihood and a context."""
    module = as_lazy(prior)

    def model(log_likelihood: Callable[[Tensor], Tensor], context: Tensor | None = None) -> None:
        x = sample("x", module, context)
        pyro.factor("likelihood", log_likelihood(x))

    return model


def guided(
    found: Likelihood, method: Method, sampler: Sampler | None, draws: int, progress: bool
) -> Posterior:
    """Draws of a diffusion, guided by the likelihood of a model."""
    law = found.prior
    if not isinstance(law, DiffusionDistribution):
        raise ValueError(
            f"Expected a diffusion at site {found.name!r} for a `method`, got a "
            f"{type(law).__name__}. Without one, posterior takes any model with densities."
        )
    module, context = law.module, law.given
    shift, scale = module.shift, module.scale

    def means(u: Tensor) -> Tensor:
        return found.means(shift + scale * u)

    def log_likelihood(u: Tensor) -> Tensor:
        return found(shift + scale * u)

    def measured() -> tuple[Any, Tensor | None, Tensor | None]:
        try:
            y, noises = found.normal()
        except ValueError:
            if isinstance(method, (ParticleGibbs, TwistedSMC)):
                return log_likelihood, None, None
            raise
        return means, y, noises

    if isinstance(method, (ParticleGibbs, TwistedSMC)):
        parts = measured()
        result = method.sample(module.denoiser, draws, *parts, context=context, progress=progress)
        x = {found.name: shift + scale * result.position}
        constant = left_out(found, parts)
        return Posterior(x, result.log_weights, result.ess, result.log_z + constant, result.se)
    any_law = (method.func if isinstance(method, partial) else method) is DPS
    guide = method(module.denoiser, *((log_likelihood,) if any_law else measured()))
    start = noise(guide, torch.Size([draws]), module.scale)
    given = None if context is None else context.expand(draws, -1)
    sampler = module.sampler if sampler is None else sampler
    u = sampler.sample(guide, start, given, progress=progress)
    x = {found.name: shift + scale * u}
    return Posterior(x, u.new_zeros(draws), float(draws), math.nan, math.nan)


def left_out(found: Likelihood, parts: tuple[Any, Tensor | None, Tensor | None]) -> float:
    """Return the constant that masks and scales add to the log likelihood of the rows."""
    _, y, scale = parts
    if y is None or scale is None:
        return 0.0
    with torch.no_grad():
        zero: Any = found.zero
        rows = torch.distributions.Normal(found.means(zero), scale, validate_args=False)
        return float(found(zero) - rows.log_prob(y).sum())
