"""Pictures, with matplotlib, which is imported only when one is drawn.

Every function takes `Axes` and returns them; without any it makes its own. Needs an extra:
``pip install "probgen[plots]"``. Calibration has four of them: :func:`posterior`, :func:`coverage`,
:func:`ranks` and :func:`residuals`.

References:
    Talts et al., "Validating Bayesian inference algorithms with simulation-based calibration",
    2018, https://arxiv.org/abs/1804.06788
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from . import metrics
from .core import LazyDistribution
from .core.numerics import floating_like

__all__ = [
    "corner",
    "coverage",
    "density",
    "images",
    "manifold",
    "posterior",
    "ranks",
    "residuals",
    "training",
]


def axes(ax: Any, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """The given axes, or new ones.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError(
            'Expected matplotlib, which is not installed. Try: pip install "probgen[plots]"'
        ) from None
    return plt.subplots(rows, columns, layout="constrained", **options)[1]


def array(x: Tensor) -> Any:
    """A tensor as matplotlib takes it."""
    return x.detach().cpu().numpy()


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


def density(
    module: LazyDistribution,
    data: Tensor | None = None,
    ax: Any = None,
    *,
    context: Tensor | None = None,
    limits: Sequence[float] | None = None,
    points: int = 200,
) -> Any:
    """Draws a density of one feature as a curve, of two as an image, with data.

    Arguments:
        module: The lazy distribution.
        data: The data, with shape :math:`(N, 1)` or :math:`(N, 2)`, drawn as a histogram or as
            dots.
        ax: The axes.
        context: A context, with shape :math:`(C)`.
        limits: The least and greatest value of each feature. Default: -3 and 3.
        points: The number of pixels per axis.

    Returns:
        The axes.

    Raises:
        ValueError: If the distribution is not one distribution of one or two features.
    """
    p = module() if context is None else module(context)
    shape = tuple(p.batch_shape + p.event_shape)
    if shape not in ((1,), (2,)):
        raise ValueError(f"Expected a distribution of one or two features, got the shape {shape}.")
    limits = [-3.0, 3.0] * shape[0] if limits is None else limits
    if len(limits) != 2 * shape[0]:
        raise ValueError(f"Expected {2 * shape[0]} `limits`, got {limits}.")
    ax = axes(ax)
    like = floating_like(module)
    grid = torch.cartesian_prod(
        *(
            torch.linspace(low, high, points, dtype=like.dtype, device=like.device)
            for low, high in zip(limits[::2], limits[1::2])
        )
    ).reshape(-1, *shape)
    with torch.no_grad():
        value = p.log_prob(grid).exp()
    if shape == (1,):
        if data is not None:
            ax.hist(array(data.flatten()), 50, density=True, color="0.8", label="data")
        ax.plot(array(grid[:, 0]), array(value), label="density")
        ax.set(xlim=limits, ylim=(0, None), ylabel="density")
        return ax
    picture = array(value.reshape(points, points).T)
    ax.imshow(picture, extent=limits, origin="lower", aspect="auto", cmap="viridis")
    if data is not None:
        ax.scatter(*array(data.T), s=2, color="white", alpha=0.4, linewidths=0)
        ax.set(xlim=limits[:2], ylim=limits[2:])
    return ax


def images(
    columns: dict[str, Tensor], shape: tuple[int, int], axs: Any = None, *, high: float = 1.0
) -> Any:
    """Draws a table of grey-scale images: a row per case, a column per name.

    Arguments:
        columns: The images by name, each with shape :math:`(N, D)`; nan is drawn blue.
        shape: The height and width of an image.
        axs: The axes, an array with shape :math:`(N, len(columns))`.
        high: The value drawn black; 0 is white.

    Returns:
        The axes.
    """
    rows = len(next(iter(columns.values())))
    size = (len(columns), rows)
    axs = axes(axs, rows, len(columns), figsize=size, squeeze=False)
    from matplotlib import colormaps

    cmap = colormaps["gray_r"].with_extremes(bad="#9ecae1")
    for j, (name, column) in enumerate(columns.items()):
        axs[0, j].set_title(name, fontsize=8)
        for i, image in enumerate(column):
            axs[i, j].imshow(image.reshape(shape).cpu().numpy(), cmap=cmap, vmin=0, vmax=high)
            axs[i, j].set(xticks=[], yticks=[])
    return axs


def manifold(
    module: Any,
    shape: tuple[int, int],
    ax: Any = None,
    *,
    count: int = 15,
    context: Tensor | None = None,
) -> Any:
    """Draws the images that a grid of two latents decodes to.

    The grid is even in the prior's probability: its points are quantiles of a normal law.

    References:
        Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, https://arxiv.org/abs/1312.6114

    Arguments:
        module: A latent-variable model with a standard normal prior of two latents.
        shape: The height and width of an image.
        ax: The axes.
        count: The number of images along each side.
        context: One context, with shape :math:`(C)`, if the module takes it.

    Returns:
        The axes.

    Raises:
        ValueError: If there are not two latents.
    """
    if tuple(module.latent_shape) != (2,):
        raise ValueError(
            f"Expected a model of two latents, got latents with shape {tuple(module.latent_shape)}."
        )
    like = floating_like(module)
    points = [NormalDist().inv_cdf((k + 0.5) / count) for k in range(count)]
    z = like.new_tensor(points)
    grid = torch.cartesian_prod(-z, z).flip(-1)  # the first latent to the right, the second up
    with torch.no_grad():
        x = module.decode(grid, context).mean
    height, width = shape
    tiles = x.reshape(count, count, height, width).transpose(1, 2)
    ax = axes(ax, figsize=(6, 6))
    ax.imshow(array(tiles.reshape(count * height, count * width)), cmap="gray_r")
    middle = [(k + 0.5) * width for k in range(count)][:: max(count // 5, 1)]
    labels = [f"{p:.1f}" for p in points][:: max(count // 5, 1)]
    up = [(k + 0.5) * height for k in range(count)][:: max(count // 5, 1)]
    ax.set(xticks=middle, yticks=up, xlabel="$z_1$", ylabel="$z_2$")
    ax.set_xticklabels(labels)
    ax.set_yticklabels([f"{-p:.1f}" for p in points][:: max(count // 5, 1)])
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


def training(history: Any, ax: Any = None) -> Any:
    """Draws the losses of a training, and those on held-out data.

    Arguments:
        history: What :func:`probgen.fit` returned.
        ax: The axes.

    Returns:
        The axes.
    """
    ax = axes(ax)
    ax.plot(range(1, len(history.losses) + 1), history.losses, lw=0.7, alpha=0.6, label="training")
    if history.validation:
        steps, values = zip(*history.validation)
        ax.plot(steps, values, lw=2, label="held out")
    if history.best_step is not None:
        ax.axvline(history.best_step, color="black", ls=":", label="kept")
    ax.set(xlabel="step", ylabel="loss")
    ax.legend()
    return ax
