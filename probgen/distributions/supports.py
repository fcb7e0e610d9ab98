"""Supports: whether the parts of a flow fit, and values outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Transform, VonMises, biject_to, constraints

from ..core import Bijector, is_wrapped
from ..core.contracts import MadeBy
from ..core.validation import ends


def check_parts(base: TorchDistribution, transforms: Sequence[Transform]) -> list[Any]:
    """Check that the parts of a flow fit; return where a value may leave it half-way.

    For each transform: none, or its support and :func:`interior`, where the next takes more
    values than it gives.
    """
    if base.support.is_discrete:
        made = type(base.module if isinstance(base, MadeBy) else base).__name__
        raise ValueError(f"Expected a continuous base, got a {made}.")
    circular = isinstance(getattr(base, "base_dist", base), VonMises)  # whose support is the line
    shape, given = base.event_shape, None if circular else ends(base.support)
    cuts: list[Any] = [None] * len(transforms)
    reach = given  # exactly what arrives, if known
    for i, t in enumerate(transforms):
        domain, codomain, name = t.domain, t.codomain, type(t).__name__
        if isinstance(t, Bijector):
            own, new = t.shape[-1:], shape
            fits = not shape or own == shape[-1:] or (own in ((), (1,)) and domain.event_dim == 0)
            fits = fits or not own
        else:
            own = new = t.forward_shape(shape)
            new = new[len(new) - len(shape) - codomain.event_dim + domain.event_dim :]
            fits = domain.event_dim > 0 or new == shape
        if not fits:
            raise ValueError(
                f"Expected transforms and a base that fit, got transform {i} (a {name}) of shape "
                f"{tuple(own)} for values of shape {tuple(shape)}."
            )
        takes = ends(domain)
        if takes is not None and reach is not None:
            if reach[0] < takes[0] or reach[1] > takes[1]:
                before = f"transform {i - 1}" if i else "the base"
                raise ValueError(
                    f"Expected transforms whose ranges fit, got transform {i} (a {name}) of values "
                    f"in {list(takes)}, while {before} gives {list(reach)}."
                )
        if i > 0 and takes is not None and given is not None and given != takes:
            last = transforms[i - 1].codomain
            support = constraints.independent(last, len(shape) - last.event_dim)
            cuts[i - 1] = (support, interior(support))
        shape, given = new, ends(codomain)
        reach = given if reach == takes else None
    return cuts


def sum_last(value: Tensor, dims: int) -> Tensor:
    """Return the sum over so many of the last dimensions, which may be none."""
    return value.sum(tuple(range(-dims, 0))) if dims else value


def interior(support: Any) -> Transform | None:
    """Return the map whose value at zero lies inside a support, none if all values do."""
    if is_real(support):
        return None
    try:
        return biject_to(support)
    except NotImplementedError:  # discrete, or a mixture's
        return None


def mask_outside(
    value: Tensor, support: Any, inner: Transform | None, event_dim: int
) -> tuple[Tensor, Tensor | None]:
    """Replace values outside a support by an interior point, and return which lie inside.

    A value with nan counts as inside, so that its log density is nan.
    """
    if inner is None:
        return value, None
    inside = support.check(value)
    inside = inside | (sum_last(value.isnan().to(value.dtype), event_dim) > 0)
    point = inner(value.new_zeros(inner.inverse_shape(value.shape)))
    return torch.where(inside.reshape(*inside.shape, *[1] * event_dim), value, point), inside


def is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def readable(value: Tensor) -> bool:
    """Whether a tensor has values that can be read now."""
    return value.device.type != "meta" and not is_wrapped(value)


def check_support(value: Tensor, support: constraints.Constraint) -> None:
    """Raise a ValueError that names a value outside a support."""
    inner = support.base_constraint if isinstance(support, constraints.independent) else support
    inside = inner.check(value)
    if not inside.all():
        wrong = value[~inside].flatten()[0] if inside.shape == value.shape else value[~inside][0]
        raise ValueError(f"Expected values in the support, {support}, got {wrong.tolist()!r:.80}.")
