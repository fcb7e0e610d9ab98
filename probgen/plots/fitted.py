"""Plots of densities, images, latents and trainings."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ..core import LazyDistribution
from ..core.numerics import floating_like
from .axes import array, axes

__all__ = ["density", "images", "manifold", "training"]


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

    The grid is even in the prior's probability: its points are quantiles of a normal distribution.

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
