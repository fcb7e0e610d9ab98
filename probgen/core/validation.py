"""Checks of what a user gives, shared by several modules, and where their warnings point."""

from __future__ import annotations

import math
import sys
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = [
    "check_event",
    "check_number",
    "check_precision",
    "check_whole",
    "ends",
    "find_device",
    "outside",
]

INSIDE = ("probgen.", "torch.", "contextlib")  # modules whose lines a user did not write


def check_whole(least: int, **values: Any) -> None:
    """Raise a ValueError that names the first value that is no whole number, or too small."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(
                f"Expected `{name}` to be a whole number >= {least}, got {value!r:.80}."
            )


def check_number(above: float = -math.inf, **values: Any) -> None:
    """Raise a ValueError that names the first value that is not finite, or not above a bound."""
    for name, value in values.items():
        if not (isinstance(value, Real) and above < float(value) < math.inf):
            kind = "a positive number" if above == 0 else "a finite number"
            raise ValueError(f"Expected `{name}` to be {kind}, got {value!r:.80}.")


def check_event(value: Tensor, event: tuple[int, ...]) -> None:
    """Raise an error unless a value is a tensor that ends in the shape of an event."""
    if not isinstance(value, Tensor):
        raise TypeError(f"Expected `value` to be a tensor, got {value!r:.80}.")
    shape = value.shape
    if shape[len(shape) - len(event) :] != event:
        wanted = ", ".join(map(str, event))
        raise ValueError(f"Expected a value with shape (*, {wanted}), got {tuple(shape)}.")


def check_precision(x: Tensor, name: str, dtype: torch.dtype) -> None:
    """Raise a ValueError if casting `x` to `dtype` would lose its variation."""
    limits = torch.finfo(dtype)
    if not x.is_floating_point() or torch.finfo(x.dtype).eps >= limits.eps:
        return
    x = x.detach().reshape(len(x), -1)
    largest = x.abs().amax(0)
    if (largest > limits.max).any():
        raise ValueError(f"Expected `{name}` in the range of {dtype}, got {largest.max():.4g}.")
    std = x.std(0, correction=0)
    lost = (std > 0) & (std < 16 * limits.eps * largest)
    if lost.any():
        i = int(lost.nonzero()[0])
        raise ValueError(
            f"Expected `{name}` that {dtype} can tell apart, got feature {i} with mean "
            f"{x[:, i].mean():.6g} and standard deviation {std[i]:.4g}, where numbers are "
            f"{limits.eps * largest[i]:.2g} apart. Subtract a constant first, or use float64."
        )


def find_device(device: str | torch.device) -> torch.device:
    """Return a device by name; raises a ValueError if it is not there."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (AssertionError, RuntimeError, TypeError):
        raise ValueError(f"Expected a `device` that is there, got {device!r:.80}.") from None
    return found


def ends(support: Any) -> tuple[float, float] | None:
    """Return the least and the greatest value of one feature, none where they are not known."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.real:
        return -math.inf, math.inf
    low, high = (getattr(support, f"{end}_bound", None) for end in ("lower", "upper"))
    if (low is None and high is None) or isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    return -math.inf if low is None else low, math.inf if high is None else high


def outside() -> int:
    """Return the level of the first frame outside of this package, for warnings."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(INSIDE):
        frame, level = frame.f_back, level + 1
    return level
