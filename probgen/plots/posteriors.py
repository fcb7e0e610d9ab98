"""Plots of posterior draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from .axes import array, axes

__all__ = ["corner", "coverage", "posterior", "ranks", "residuals"]


def corner(
    draws: Tensor | Mapping[str, Tensor],
    axs: Any = None,
    *,
    names: Sequence[str] | None = None,
    truth: Tensor | None = None,
    bins: int = 30,
    points: int = 2000,
) -> Any:
    """Draws all pairs of features as dots and each one as a histogram.

    Arguments:
        draws: The draws, with shape :math:`(N, D)`, or several sets of them by name.
        axs: The axes, an array with shape :math:`(D, D)`; those above the diagonal are hidden.
        names: The names of the features.
        truth: The true values, with shape :math:`(D)`, drawn as lines.
        bins: The number of bins of a histogram.
        points: The greatest number of dots of one set; if there are more draws, every k-th is
            drawn.

    Returns:
        The axes.

    Raises:
        ValueError: If the draws are not a matrix, or differ in their number of features.
    """
    sets = draws if isinstance(draws, Mapping) else {"": draws}
    shapes = {name: tuple(x.shape) for name, x in sets.items()}
    features = next(iter(shapes.values()))[-1:]
    if any(len(shape) != 2 or shape[1:] != features for shape in shapes.values()):
        raise ValueError(f"Expected draws with one shape (N, D), got {shapes}.")
    (d,) = features
    if names is not None and len(names) != d:
        raise ValueError(f"Expected {d} `names`, got {names}.")
    if truth is not None and truth.shape != (d,):
        raise ValueError(f"Expected `truth` with shape ({d},), got {tuple(truth.shape)}.")
    size = (1.9 * d + 0.6, 1.9 * d + 0.3)
    axs = axes(axs, d, d, figsize=size, squeeze=False, sharex="col")
    pooled = torch.cat([x.detach().cpu().double() for x in sets.values()])
    low, high = (pooled.kthvalue(max(round(q * len(pooled)), 1), 0).values for q in (0.001, 0.999))
    for k, (name, x) in enumerate(sets.items()):
        values, dots = array(x), array(x[:: math.ceil(len(x) / points)])
        for i in range(d):
            span = (float(low[i]), float(high[i]))  # which one outlier does not stretch
            line = {"histtype": "step", "color": f"C{k}"}
            axs[i, i].hist(values[:, i], bins, range=span, density=True, **line)
            for j in range(i):
                options = {"s": 3, "alpha": 0.4, "linewidths": 0, "color": f"C{k}"}
                axs[i, j].scatter(dots[:, j], dots[:, i], label=name, **options)
    for i in range(d):
        axs[i, i].set(yticks=[])
        for j in range(d):
            axs[i, j].set_visible(j <= i)
            if truth is not None and j <= i:
                axs[i, j].axvline(float(truth[j]), color="black", lw=0.8)
            if truth is not None and j < i:
                axs[i, j].axhline(float(truth[i]), color="black", lw=0.8)
        if names is not None:
            axs[d - 1, i].set_xlabel(names[i])
        if names is not None and i:
            axs[i, 0].set_ylabel(names[i])
        for j in range(1, i):
            axs[i, j].sharey(axs[i, 0])
            axs[i, j].tick_params(labelleft=False)
    if len(sets) > 1:
        handles = [axs[0, 0].plot([], [], color=f"C{k}")[0] for k in range(len(sets))]
        axs[0, 0].figure.legend(handles, list(sets), loc="upper right")
    return axs


def coverage(draws: Tensor, truth: Tensor, ax: Any = None, *, label: str = "draws") -> Any:
    """Draws the fraction of true values within central intervals, against their probability.

    A band holds 99 % of the fractions of an exact posterior, if the cases are independent.

    Arguments:
        draws: The draws, with shape :math:`(S, *)`.
        truth: The true values, with shape :math:`(*)`.
        ax: The axes; the band is drawn once on them.
        label: The name of the curve.

    Returns:
        The axes.

    Raises:
        ValueError: If the shapes do not match.
    """
    count = metrics.ranks(draws, truth).flatten().double()
    ax = axes(ax)
    # a central interval of probability p holds the truth if its rank is off the middle by p / 2
    level = 2 * ((count + 0.5) / (len(draws) + 1) - 0.5).abs()
    x = torch.linspace(0, 1, 101, dtype=torch.double)
    fraction = (level[:, None] <= x).double().mean(0)
    band = NormalDist().inv_cdf(0.995) * (x * (1 - x) / len(level)).sqrt()
    if not ax.lines:
        edges = map(array, (x, x - band, x + band))
        ax.fill_between(*edges, color="0.85", lw=0, label="99 %, exact")
        ax.plot([0, 1], [0, 1], color="0.5", lw=1)
    ax.plot(array(x), array(fraction), label=label)
    ax.set(xlabel="probability of the interval", ylabel="fraction of truths inside")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.legend()
    return ax


def posterior(draws: Tensor, truth: Tensor, ax: Any = None) -> Any:
    """Draws posterior intervals against true values: thick for 50 %, thin for 90 %.

    Arguments:
        draws: The draws, with shape :math:`(S, *)`.
        truth: The true values, with shape :math:`(*)`.
        ax: The axes.

    Returns:
        The axes.

    Raises:
        ValueError: If the shapes do not match.
    """
    metrics.check(draws, truth)
    ax = axes(ax)
    q = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=draws.dtype, device=draws.device)
    q05, q25, q50, q75, q95 = map(array, torch.quantile(draws.flatten(1), q, dim=0))
    x = array(truth.flatten())
    ax.axline((x.mean(), x.mean()), slope=1, color="0.5", lw=1)
    ax.vlines(x, q05, q95, lw=0.8, label="90 %")
    ax.vlines(x, q25, q75, lw=2.5, label="50 %")
    ax.scatter(x, q50, s=8, color="black", zorder=3, label="median")
    ax.set(xlabel="true value", ylabel="posterior")
    ax.legend()
    return ax


def ranks(ranks: Tensor, draws: int, ax: Any = None, *, bins: int = 20) -> Any:
    """Draws a histogram of ranks of true values among posterior draws.

    Of an exact posterior it is flat: a band holds 99 % of a bin's counts then. A valley says that
    the posterior is too narrow, a hill that it is too wide, a slope that it is biased. Ranks of
    parameters and of the log-likelihood of the data are drawn alike.

    Arguments:
        ranks: The ranks of :func:`probgen.metrics.ranks`, with shape :math:`(N)`.
        draws: The number of draws :math:`S` of each posterior, so that ranks are 0 to :math:`S`.
        ax: The axes.
        bins: The number of bins. Where it does not divide :math:`S + 1`, bins hold unequal
            numbers of ranks, and so does the band.

    Returns:
        The axes.

    Raises:
        ValueError: If a rank is not within 0 to :math:`S`.
    """
    if ranks.numel() == 0 or ranks.min() < 0 or ranks.max() > draws:
        raise ValueError(f"Expected ranks in 0 to {draws}, got {ranks}.")
    ax = axes(ax)
    bins = min(bins, draws + 1)
    edges = torch.arange(bins + 1) * (draws + 1) // bins
    count = torch.bincount(
        torch.bucketize(ranks.flatten().cpu().contiguous(), edges[1:], right=True)
    )
    n, p = ranks.numel(), edges.diff() / (draws + 1)
    count = torch.cat([count, count.new_zeros(bins - len(count))])
    width = NormalDist().inv_cdf(0.995) * (n * p * (1 - p)).sqrt()
    low, high = (n * p - width).clamp(min=0), n * p + width
    steps = [array(torch.cat([x, x[-1:]])) for x in (low, high, n * p)]
    x = array(edges) - 0.5
    ax.fill_between(x, steps[0], steps[1], step="post", color="0.85", lw=0)
    ax.step(x, steps[2], where="post", color="0.5", lw=1)
    wide = array(edges.diff())
    ax.bar((x[1:] + x[:-1]) / 2, array(count), width=0.9 * wide, alpha=0.8)
    ax.set(xlabel=f"rank among {draws} draws", ylabel="count", xlim=(-0.5, draws + 0.5))
    return ax


def residuals(residual: Tensor, noise: Tensor | float, ax: Any = None, *, bins: int = 50) -> Any:
    r"""Draws a histogram of residuals over the noise, with the standard normal density.

    Given a measurement :math:`y = A(x_0) + \sigma \epsilon`, the truth :math:`x_0` and a draw
    :math:`x` of the exact posterior have the same law. So the residuals :math:`y - A(x)` over
    :math:`\sigma` are standard normal, over many measurements. Narrower ones fit the noise, wider
    ones ignore the measurement.

    Arguments:
        residual: The residuals, with shape :math:`(*)`.
        noise: The standard deviation of the noise, broadcast to that shape.
        ax: The axes.
        bins: The number of bins.

    Returns:
        The axes.
    """
    ax = axes(ax)
    z = (residual / noise).flatten()
    ax.hist(array(z), bins, density=True, alpha=0.6, label=f"residuals, sd {float(z.std()):.2f}")
    edge = max(3.5, float(z.abs().max()))
    x = torch.linspace(-edge, edge, 400)
    ax.plot(array(x), array((-x.square() / 2).exp() / math.sqrt(2 * math.pi)), label="noise")
    ax.set(xlabel="residual / noise sd", ylabel="density")
    ax.legend()
    return ax
