"""Pictures, with matplotlib, which is imported only when one is drawn.

Every function takes `Axes` and returns them; without any it makes its own. Needs an extra:
``pip install "probgen[plots]"``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .core import LazyDistribution

__all__ = ["density", "images", "training"]


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


def density(
    module: LazyDistribution,
    data: Tensor | None = None,
    ax: Any = None,
    *,
    limits: tuple[float, float, float, float] = (-3.0, 3.0, -3.0, 3.0),
    points: int = 200,
) -> Any:
    """Draws a density of two features as an image, with data as dots.

    Arguments:
        module: The lazy distribution, without context.
        data: The data, with shape :math:`(N, 2)`.
        ax: The axes.
        limits: The least and greatest first feature, then second.
        points: The number of pixels per axis.

    Returns:
        The axes.

    Raises:
        ValueError: If the distribution is not of two features.
    """
    shape = tuple(module().event_shape)
    if shape != (2,):
        raise ValueError(f"Expected a distribution of two features, got the event shape {shape}.")
    ax = axes(ax)
    left, right, bottom, top = limits
    p = next(module.parameters())
    x = torch.linspace(left, right, points, dtype=p.dtype, device=p.device)
    y = torch.linspace(bottom, top, points, dtype=p.dtype, device=p.device)
    with torch.no_grad():
        value = module().log_prob(torch.cartesian_prod(x, y)).exp()
    picture = value.reshape(points, points).T.cpu().numpy()
    ax.imshow(picture, extent=limits, origin="lower", aspect="auto", cmap="viridis")
    if data is not None:
        ax.scatter(*data.T.cpu().numpy(), s=2, color="white", alpha=0.4, linewidths=0)
        ax.set(xlim=(left, right), ylim=(bottom, top))
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
