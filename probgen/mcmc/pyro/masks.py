r"""Masked data and unused latent values.

A masked term counts as zero, but a density of nan or of a value outside its support is nan, and so
is its gradient, since :math:`0 \cdot \infty` is. Masked data are therefore replaced by a point
inside the support before the density is taken, whatever they are.

With `obs_mask`, Pyro states data and a latent site of the same shape, and takes the latter only
where data are missing. Only those elements are free; the others take the data's values.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import biject_to, constraints

__all__ = ["Free", "free_of", "inside", "mask_of"]


def mask_of(msg: dict[str, Any]) -> Any:
    """Return the mask of a site, which broadcasts over its value, or True or False.

    Arguments:
        msg: The message of the site.
    """
    fn, found = msg["fn"], [(msg["mask"], msg["fn"].event_dim)]
    while isinstance(fn, (Independent, MaskedDistribution)):
        found.append((getattr(fn, "_mask", None), fn.event_dim))
        fn = fn.base_dist
    kept: Any = True
    for mask, dims in found:
        if isinstance(mask, Tensor):
            mask = mask.reshape(mask.shape + (1,) * dims)
        if mask is False:
            return False
        if mask is not None and mask is not True:
            kept = mask if kept is True else kept & mask
    return kept


def inside(value: Tensor, fn: Any, kept: Tensor) -> Tensor:
    """Replace the masked values of data by ones inside the support.

    Arguments:
        value: The data.
        fn: Their distribution.
        kept: What is not masked, as of :func:`mask_of`.
    """
    with torch.no_grad():
        point = interior(fn, broadcast_shape(value.shape, kept.shape), value)
    return value if point is None else torch.where(kept, value, point)


def interior(fn: Any, shape: torch.Size, like: Tensor) -> Tensor | None:
    """Return a value inside a support, or none if there is no telling."""
    support = fn.support
    base = support
    while hasattr(base, "base_constraint"):
        base = base.base_constraint
    zero = torch.zeros(shape, dtype=like.dtype, device=like.device)
    if base is constraints.boolean:
        return zero
    if base is constraints.one_hot:
        return torch.nn.functional.pad(zero[..., 1:], (1, 0), value=1)
    if hasattr(base, "lower_bound") and base.is_discrete:
        return zero + base.lower_bound
    if isinstance(base, constraints.multinomial):
        total = torch.as_tensor(base.upper_bound, dtype=like.dtype, device=like.device)
        return torch.cat([zero[..., :1] + total[..., None], zero[..., 1:]], -1)
    if base.is_discrete:
        return None
    try:
        transform = biject_to(support)
        return transform(torch.zeros(transform.inverse_shape(shape), dtype=like.dtype).to(like))
    except NotImplementedError:
        return None


class Free:
    """The elements of a latent site that are free: those at which `obs_mask` has no data.

    Arguments:
        msg: The message of the site.
        data: The data, of which the other elements are.
        shape: The shape of the site before its transform.
    """

    def __init__(self, msg: dict[str, Any], data: Tensor, shape: torch.Size) -> None:
        fn = msg["fn"]
        self.kept, self.data = msg["mask"].expand(fn.batch_shape), data
        self.kept_events = self.kept.reshape(self.kept.shape + (1,) * fn.event_dim)
        count = int(self.kept.sum())
        self.shape = torch.Size((count, *shape[len(fn.batch_shape) :]))
        flat = self.kept.reshape(-1)
        self.index = torch.where(flat, flat.cumsum(0) - 1, count).reshape(self.kept.shape)

    def fill(self, u: Tensor) -> Tensor:
        """All elements, of which those that are not free are zero."""
        return torch.cat([u, u.new_zeros((1, *self.shape[1:]))])[self.index]

    def take(self, u: Tensor) -> Tensor:
        """Return the free elements of all."""
        return u[self.kept]

    def restrict(self, x: Tensor, ladj: Tensor) -> tuple[Tensor, Tensor]:
        """Return value with data where it is not free, and the Jacobian without these elements."""
        return torch.where(self.kept_events, x, self.data), torch.where(self.kept, ladj, 0)


def free_of(msg: dict[str, Any], data: dict[str, Tensor], shape: torch.Size) -> Free | None:
    """Which elements of a latent site are free; none if all are.

    Arguments:
        msg: The message of the site.
        data: The data of the sites before it, by name.
        shape: The shape of the site before its transform.
    """
    stem, _, rest = msg["name"].rpartition("_unobserved")
    given = data.get(f"{stem}_observed")
    if rest or given is None or not isinstance(msg["mask"], Tensor):
        return None
    return Free(msg, given, shape)
