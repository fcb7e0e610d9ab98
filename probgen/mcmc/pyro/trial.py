"""Trial runs: whether a model takes vmap and gradients."""

from __future__ import annotations

import gc
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core.validation import outside
from .evaluation import Evaluation
from .model_run import unchecked

__all__ = ["ChainByChainWarning", "check"]


MOST = 100  # numbers whose gradient is checked against differences


class ChainByChainWarning(UserWarning):
    """Warns that a model runs for one chain after the other, which is slow."""


def check(potential: Evaluation, u: Tensor) -> None:
    """Find how a model runs for many chains, and compare with single chains.

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
    reasons = []
    for potential.inner, potential.room in itertools.product((False, True), (False, True)):
        reasons.append(trial(potential, points, single, slopes=True))
        if not reasons[-1]:
            return
    potential.room = potential.inner = potential.batched = False
    potential.slopeless = slopeless(potential, points)
    if potential.slopeless:
        potential.batched = True
        if not trial(potential, points, single, slopes=False):
            return
        potential.batched = False
    warnings.warn(
        f"torch.func.vmap does not take this model, so chains are evaluated one after the other, "
        f"which is slow: {reasons[0]}. It takes models made of torch's operations that do "
        f"not branch on values: torch.where in place of `if`, and no .item() or numpy.",
        ChainByChainWarning,
        stacklevel=outside(),
    )


def trial(potential: Evaluation, points: Tensor, single: Tensor, slopes: bool) -> str:
    """Why a model does not run for many chains at once, or nothing."""
    value, failed = attempt(potential, points, slopes)
    if value is None:
        where = potential.progress[0]
        check_escaped(lambda: attempt(potential, points, slopes), where)
        return f"{failed} ({where})"
    same = torch.allclose(value, single, rtol=1e-3, atol=1e-3, equal_nan=True)
    return "" if same else "its values there differ from those of one chain"


def attempt(potential: Evaluation, points: Tensor, slopes: bool) -> tuple[Tensor | None, str]:
    """Return the values for many chains at once, or none and why."""
    try:
        with unchecked():
            if slopes:
                return potential.slopes(potential.total, points)["value"], ""
            with torch.no_grad():
                return potential.map(potential.total, points), ""
    except Exception as error:  # which is of vmap, since one chain ran at these points
        return None, str(error).strip().split("\n")[0] or type(error).__name__


def slopeless(potential: Evaluation, points: Tensor) -> str:
    """Why one chain has no gradient, or nothing."""
    try:
        with unchecked():
            slopes = potential.slopes(potential.total, points[:1])["gradient"][0]
    except Exception as error:
        return str(error).strip().split("\n")[0] or type(error).__name__
    lost = lost_slopes(potential, points[0], slopes)
    if not lost:
        return ""
    return f"that in {', '.join(lost)} is lost, as where .item(), .detach() or numpy is called"


def lost_slopes(potential: Evaluation, u: Tensor, slopes: Tensor) -> list[str]:
    """Sites whose gradient differs from finite differences, of two widths."""
    lost = torch.zeros_like(u, dtype=torch.bool)
    eps = torch.finfo(u.dtype).eps
    with unchecked(), torch.no_grad():
        rounding = 20 * eps * float(potential.total(u).abs())
        for k in torch.randperm(len(u))[:MOST].tolist():
            wrong = []
            for width in (0.01, 0.04):
                step = torch.zeros_like(u)
                step[k] = width * max(1.0, abs(float(u[k])))
                rise = float(potential.total(u + step) - potential.total(u - step))
                slope = rise / (2 * float(step[k]))
                size = max(abs(slope), abs(float(slopes[k])))
                wrong.append(abs(slope - float(slopes[k])) > 0.1 * size + rounding / float(step[k]))
            lost[k] = all(wrong)
    layout = potential.layout.items()
    return [name for name, s in layout if bool(lost[s.start : s.stop].any())]


def check_escaped(again: Callable[[], Any], where: str) -> None:
    """Refuses a model that keeps a tensor of a run that failed: to touch it ends the process.

    Arguments:
        again: Runs the model.
        where: How far it came.
    """
    before = wrapped()
    again()
    known = {id(x) for x in before}
    if any(id(x) not in known for x in wrapped()):
        raise ValueError(
            f"Expected a model that keeps nothing of its runs, got one that stores a tensor which "
            f"depends on its sites, as on a module or in a global list ({where}). Return it, or "
            f"state it by pyro.deterministic."
        )


def wrapped() -> list[Tensor]:
    """All tensors of torch.func's transforms that something holds on to."""
    test = getattr(torch._C._functorch, "is_functorch_wrapped_tensor", None)
    gc.collect()
    return [] if test is None else [x for x in gc.get_objects() if type(x) is Tensor and test(x)]
