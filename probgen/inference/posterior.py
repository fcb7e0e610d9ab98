r"""The posterior under a learned prior, without a Pyro model.

.. math:: p(x \mid y) = \frac{p(x) \, \ell(x)}{Z}, \qquad Z = \int p(x) \, \ell(x) \, dx.

Sequential Monte Carlo leads from prior to posterior, in the base space of a flow where the prior is
standard normal, and gives the evidence :math:`Z` on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ..core import LazyDistribution, as_lazy, sample
from ..core.processes import mix
from ..mcmc import HMC, Kernel, potential, smc

__all__ = ["Posterior", "posterior"]


class Posterior(NamedTuple):
    """Weighted draws of a posterior.

    Arguments:
        draws: The draws, with shape :math:`(N, *)`.
        log_weights: Their log weights, with shape :math:`(N)`.
        ess: The effective sample size of the weights.
        log_evidence: The log evidence :math:`\\log Z`.
        se: Its standard error.
    """

    draws: Tensor
    log_weights: Tensor
    ess: float
    log_evidence: float
    se: float

    def resampled(self, count: int) -> Tensor:
        """Draws of equal weight, with shape :math:`(count, *)`."""
        chosen = torch.multinomial(self.log_weights.softmax(0), count, replacement=True)
        return self.draws[chosen]


def posterior(
    prior: LazyDistribution | TorchDistribution,
    log_likelihood: Callable[[Tensor], Tensor],
    context: Tensor | None = None,
    *,
    draws: int = 1024,
    kernel: Kernel | None = None,
    steps: int = 5,
    islands: int = 8,
    seed: int | None = None,
    progress: bool = True,
) -> Posterior:
    """Draws from the posterior of a learned prior and a log likelihood.

    Arguments:
        prior: The prior: a lazy distribution or one of Pyro, for one value.
        log_likelihood: Maps one value, with the prior's event shape, to a number. It is vectorised
            by `torch.func.vmap`.
        context: The prior's context, with shape :math:`(C)`, if it takes one.
        draws: The number of draws :math:`N`, a multiple of the islands.
        kernel: The kernel that moves draws; by default :class:`~probgen.mcmc.HMC` with 5 steps,
            adapted.
        steps: The number of its steps at each temperature.
        islands: The number of groups of draws that never meet, whose spread gives `se`.
        seed: The seed; by default drawn from torch's generator, whose state is left alone.
        progress: Whether to show a progress bar.

    Returns:
        The draws, their weights and the log evidence.

    Raises:
        ValueError: If the prior has no density, or the likelihood vanishes at all prior draws.

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
    """
    module = as_lazy(prior)

    def model() -> None:
        x = sample("x", module, context)
        pyro.factor("likelihood", log_likelihood(x))

    seed = int(torch.randint(2**31, ())) if seed is None else seed
    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, 0))
        target = potential(model)
        kernel = HMC(step_size=0.5, steps=5) if kernel is None else kernel
        first = target.draw(draws, prior=True)
        result = smc(
            target.log_prior, target, first, kernel, steps=steps, islands=islands, progress=progress
        )
    values = target.unravel(result.position)["x"]
    return Posterior(values, result.log_weights, result.ess, result.log_z, result.se)
