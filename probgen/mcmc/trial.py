"""How a model runs for many chains: at once, or one after the other, with a gradient or without."""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .place import Place, unchecked

if TYPE_CHECKING:
    from .potential import Potential

__all__ = ["ChainByChainWarning", "check"]


class ChainByChainWarning(UserWarning):
    """Says that a model runs for one chain after the other, which is slow."""


def check(potential: Potential, u: Tensor) -> None:
    """Finds out how a model runs for many chains, and that it gives what one chain gives.

    Arguments:
        potential: The log density of the model, whose attributes are set.
        u: A point.

    Raises:
        ValueError: If the model draws random numbers outside its sites, or keeps a tensor of a run
            that failed.

    Warns:
        ChainByChainWarning: If the model runs for one chain after the other.
    """
    points = torch.stack([u, u + 0.001])
    with unchecked(), torch.no_grad():
        single = torch.stack([potential.total(point) for point in points])
        again = potential.total(points[1])
    if not torch.equal(torch.nan_to_num(single[1]), torch.nan_to_num(again)):
        raise ValueError(
            "Expected a model that gives one log density at one point, got two. It draws random "
            "numbers, or keeps state, outside its sample sites."
        )
    reason = trial(potential, points, single, slopes=True)
    if not reason:
        return
    potential.room = True
    if not trial(potential, points, single, slopes=True):
        return
    potential.room = potential.batched = False
    potential.slopeless = slopeless(potential, points)
    if potential.slopeless:
        potential.batched = True
        if not trial(potential, points, single, slopes=False):
            return
        potential.batched = False
    warnings.warn(
        f"torch.func.vmap does not take this model, so chains are evaluated one after the other, "
        f"which is slow: {reason}. It takes models made of torch's operations that do "
        f"not branch on values: torch.where in place of `if`, and no .item() or numpy.",
        ChainByChainWarning,
        stacklevel=5,
    )


def trial(potential: Potential, points: Tensor, single: Tensor, slopes: bool) -> str:
    """Why a model does not run for many chains at once, or nothing."""
    failed = ""
    try:
        with unchecked():
            if slopes:
                value = potential.slopes(potential.total, points)["value"]
            else:
                with torch.no_grad():
                    value = potential.map(potential.total, points)
    except Exception as error:  # which is of vmap, since one chain ran at these points
        failed = str(error).strip().split("\n")[0] or type(error).__name__
    if failed:
        where = potential.place.where
        potential.place = Place()  # which kept its values
        check_escaped(where)
        return f"{failed} ({where})"
    same = torch.allclose(value, single, rtol=1e-3, atol=1e-3, equal_nan=True)
    return "" if same else "its values there differ from those of one chain"


def slopeless(potential: Potential, points: Tensor) -> str:
    """Why one chain has no gradient, or nothing."""
    try:
        with unchecked():
            potential.slopes(potential.total, points[:1])
    except Exception as error:
        return str(error).strip().split("\n")[0] or type(error).__name__
    return ""


def check_escaped(where: str) -> None:
    """Refuses a model that keeps a tensor of a run that failed: to touch it ends the process."""
    wrapped = getattr(torch._C._functorch, "is_functorch_wrapped_tensor", None)
    if wrapped is None:
        return
    gc.collect()
    if any(type(x) is Tensor and wrapped(x) for x in gc.get_objects()):
        raise ValueError(
            f"Expected a model that keeps nothing of its runs, got one that stores a tensor which "
            f"depends on its sites, as on a module or in a global list ({where}). Return it, or "
            f"state it by pyro.deterministic."
        )
