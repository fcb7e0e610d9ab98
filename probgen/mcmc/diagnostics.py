r"""Convergence diagnostics of chains.

Draws have shape :math:`(C, S, *)`: chains, then draws, then a shape. Chains are split in halves,
draws are ranked and mapped to normal quantiles, and with the variance within chains :math:`W` and
the pooled one :math:`V`,

.. math:: \hat R = \sqrt{V / W}, \qquad \operatorname{ESS} = \frac{C S}{1 + 2 \sum_t \rho_t},
    \qquad \rho_t = 1 - \frac{W - \bar a_t}{V},

where :math:`\bar a_t` is the chains' mean autocovariance at lag :math:`t`, and the sum ends as soon
as the sum of two neighbours is no longer positive.

References:
    | Vehtari et al., "Rank-normalization, folding, and localization: an improved R-hat", 2021,
      https://arxiv.org/abs/1903.08008
    | Margossian et al., "Nested R-hat: assessing the convergence of Markov chain Monte Carlo when
      running many short chains", 2024, https://arxiv.org/abs/2110.13017
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.arguments import checked

__all__ = ["ess", "ess_tail", "mcse", "nested_rhat", "rhat"]


@checked
def ess(draws: Tensor) -> Tensor:
    """Return the bulk effective sample size.

    Arguments:
        draws: The draws, with shape :math:`(C, S, *)`, where :math:`S \\ge 4`.

    Returns:
        A size for each element, with shape :math:`(*)`; nan for one that never moves.

    Raises:
        ValueError: If there are fewer than four draws of a chain.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> 3000 < float(ess(torch.randn(4, 1000))) < 5000
        True
    """
    return effective(normal_scores(halves(draws)))


@checked
def ess_tail(draws: Tensor) -> Tensor:
    """Return the tail effective sample size: the lesser of those of the 5 % and the 95 % quantile.

    Arguments:
        draws: The draws, with shape :math:`(C, S, *)`, where :math:`S \\ge 4`.
    """
    split, flat = halves(draws), draws.double().flatten(0, 1)
    sizes = [effective((split <= quantile(flat, q)).to(split.dtype)) for q in (0.05, 0.95)]
    return torch.minimum(*sizes)


@checked
def mcse(draws: Tensor) -> Tensor:
    """Return the Monte-Carlo standard error of the mean.

    Arguments:
        draws: The draws, with shape :math:`(C, S, *)`, where :math:`S \\ge 4`.
    """
    return draws.flatten(0, 1).std(0) / effective(halves(draws)).sqrt()


@checked
def rhat(draws: Tensor) -> Tensor:
    r"""Return the rank-normalised split :math:`\hat R`, of location or scale, whichever is greater.

    Arguments:
        draws: The draws, with shape :math:`(C, S, *)`, where :math:`S \ge 4`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(4, 1000)
        >>> float(rhat(x)) < 1.01, float(rhat(x + torch.arange(4.0)[:, None])) > 1.5
        (True, True)
    """
    split = halves(draws)
    return torch.maximum(ratio(normal_scores(split)), ratio(folded_scores(split)))


def folded_scores(split: Tensor) -> Tensor:
    """Return the normal scores of distances from the median."""
    return normal_scores((split - split.flatten(0, 1).median(0).values).abs())


def diagnose(draws: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return split :math:`\hat R`, and the lesser of the bulk and the tail effective sample size.

    It is :func:`rhat`, :func:`ess` and :func:`ess_tail` for the price of less.

    Arguments:
        draws: The draws, with shape :math:`(C, S, *)`, where :math:`S \ge 4`.
    """
    split = halves(draws)
    scores = normal_scores(split)
    worst = torch.maximum(ratio(scores), ratio(folded_scores(split)))
    return worst, torch.fmin(effective(scores), ess_tail(draws))


@checked
def nested_rhat(draws: Tensor, superchains: int) -> Tensor:
    r"""Return the nested :math:`\hat R`, for many short chains.

    Chains of one superchain have started at one point, so that the variance between superchains
    shows what is left of the start, however short the chains. The variance between is that of
    superchains, the one within is that of draws and of the chains of a superchain.

    Arguments:
        draws: The draws, with shape :math:`(C, S, *)`; chains of a superchain are neighbours.
        superchains: The number of superchains :math:`K \ge 2`, which divides :math:`C`.

    Raises:
        ValueError: If it does not.
    """
    chains = len(draws)
    if superchains < 2 or chains % superchains:
        raise ValueError(f"Expected `superchains` >= 2 that divide {chains}, got {superchains}.")
    x = draws.double().reshape(superchains, chains // superchains, *draws.shape[1:])
    means = x.mean(2)
    between = means.mean(1).var(0)
    within = x.var(2).mean(1) if x.shape[2] > 1 else torch.zeros_like(means[:, 0])
    if x.shape[1] > 1:
        within = within + means.var(1)
    return (1 + between / within.mean(0)).sqrt()


def halves(draws: Tensor) -> Tensor:
    """Return the two halves of each chain as chains, in double precision."""
    if draws.ndim < 2 or draws.shape[1] < 4:
        raise ValueError(
            f"Expected draws with shape (chains, draws, *) and 4 draws or more, got "
            f"{tuple(draws.shape)}."
        )
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]]).double()


def normal_scores(x: Tensor) -> Tensor:
    """Ranks among all draws, ties by their mean, as quantiles of a standard normal."""
    flat = x.flatten(0, 1)
    n = len(flat)
    values, order = flat.movedim(0, -1).sort(-1)
    place = torch.arange(n, device=x.device).expand(values.shape)
    new = torch.ones_like(values, dtype=torch.bool)
    new[..., 1:] = values[..., 1:] != values[..., :-1]
    first = place.masked_fill(~new, 0).cummax(-1).values
    last = new.roll(-1, -1)  # the end of a group of ties is before the start of the next
    end = place.masked_fill(~last, n - 1).flip(-1).cummin(-1).values.flip(-1)
    rank = (first + end).double() / 2 + 1
    z = torch.special.ndtri((rank - 0.375) / (n + 0.25))
    return torch.empty_like(z).scatter_(-1, order, z).movedim(-1, 0).reshape(x.shape)


def quantile(flat: Tensor, q: float) -> Tensor:
    """Return a quantile along the leading axis, of any number of values: the one below it."""
    return flat.kthvalue(math.floor(q * (len(flat) - 1)) + 1, 0).values


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variance within chains and the pooled one."""
    s = x.shape[1]
    within = x.var(1).mean(0)
    between = x.mean(1).var(0) if len(x) > 1 else torch.zeros_like(within)
    return within, within * (s - 1) / s + between


def ratio(x: Tensor) -> Tensor:
    within, pooled = moments(x)
    return (pooled / within).sqrt()


def effective(x: Tensor) -> Tensor:
    """Return the effective sample size of chains, by Geyer's initial monotone sequence."""
    c, s = x.shape[:2]
    within, pooled = moments(x)
    rho = 1 - (within - autocovariance(x) * s / (s - 1)) / pooled
    rho[0] = 1
    pairs = rho[: s - s % 2].reshape(s // 2, 2, *rho.shape[1:]).sum(1)
    # the sum of neighbours stays positive and falls
    alive = (pairs > 0).to(torch.int8).cummin(0).values.bool()
    falling = pairs.cummin(0).values
    next_even = (2 * alive.sum(0, keepdim=True)).clamp(max=s - 1)
    tau = -1 + 2 * (falling * alive).sum(0) + rho.gather(0, next_even)[0].clamp(min=0)
    tau = torch.maximum(tau, tau.new_tensor(1 / math.log10(c * s)))
    return torch.where(pooled > 0, c * s / tau, torch.nan)


def autocovariance(x: Tensor) -> Tensor:
    """Return the autocovariance at every lag, the mean over chains, with shape :math:`(S, *)`."""
    s = x.shape[1]
    d = x - x.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(d, n=2 * s, dim=1)
    return torch.fft.irfft(spectrum.abs().square().mean(0), n=2 * s, dim=0)[:s] / s
