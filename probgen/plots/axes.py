"""Axes and arrays of plots."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["array", "axes"]


def axes(ax: Any, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """Return the given axes, or new ones.

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
    """Return a tensor as matplotlib takes it."""
    return x.detach().cpu().numpy()
