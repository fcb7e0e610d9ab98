r"""The likelihood of a Pyro model given one of its sites.

A model with one latent site :math:`x` and data :math:`y` states :math:`p(x) \, p(y \mid x)`. Here
the second factor is found alone, for many values of :math:`x` at once, so that the first may be one
that draws without a density. Where all data are normal given :math:`x`,

.. math:: y = A(x) + n, \qquad n \sim \mathcal{N}(0, \operatorname{diag}(s^2)),

the map :math:`A`, the data and the scales :math:`s` are found too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Independent, Normal
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ...core.numerics import floating_like
from ..checks import check_site, is_value
from .model_run import unchecked

__all__ = ["Likelihood", "likelihood"]


class Given(Messenger):
    """Runs a model with a value of its latent site, and notes the observed ones.

    Arguments:
        value: The value; by default zeros.
    """

    def __init__(self, value: Tensor | None = None) -> None:
        super().__init__()
        self.value = value
        self.latent: list[tuple[str, Any]] = []
        self.observed: list[dict[str, Any]] = []

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn = msg["fn"]
        if isinstance(fn, _Subsample) or is_value(fn) or (msg["infer"] or {}).get("_deterministic"):
            return
        if msg["is_observed"]:
            check_site(msg)
            self.observed.append(msg)
            return
        self.latent.append((msg["name"], fn))
        if self.value is None or len(self.latent) > 1:
            own = getattr(fn, "module", None)  # of a learned law, whose draws are dear
            like = fn.sample() if own is None else floating_like(own)
            self.value = torch.zeros(fn.shape(), dtype=like.dtype, device=like.device)
        msg["value"], msg["done"] = self.value, True


class Likelihood:
    """The likelihood of a model with one latent site, for many values of it.

    :func:`likelihood` makes it.

    Arguments:
        model: The model, a function without arguments.
        found: A run of it.
    """

    def __init__(self, model: Callable[[], Any], found: Given) -> None:
        self.model, self.zero = model, found.value
        self.name, self.prior = found.latent[0]

    def observed(self, x: Tensor) -> list[dict[str, Any]]:
        place = Given(x)
        with poutine.block(), place:
            self.model()
        return place.observed

    def __call__(self, x: Tensor) -> Tensor:
        r"""Return the log likelihood of values, :math:`(*, event)` to :math:`(*)`."""

        def one(x: Tensor) -> Tensor:
            total: Any = x.sum() * 0
            for msg in self.observed(x):
                term = msg["fn"].log_prob(msg["value"])
                total = total + scale_and_mask(term, msg["scale"], msg["mask"]).sum()
            return total

        return self.each(one, x)

    def each(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - len(self.prior.event_shape)]
        with unchecked():
            found = torch.func.vmap(function)(x.reshape(-1, *x.shape[len(batch) :]))
        return found.reshape(batch + found.shape[1:])

    def means(self, x: Tensor) -> Tensor:
        r""":math:`A(x)` as rows, 0 where data are masked, with shape :math:`(*, M)`."""
        return self.each(lambda v: self.rows(v)[0], x)

    def normal(self) -> tuple[Tensor, Tensor]:
        """Return the data and their scales as one row each, with shape :math:`(M)`.

        Raises:
            ValueError: If a site is not normal, or its scale depends on the latent site.
        """
        zero: Any = self.zero
        with unchecked(), torch.no_grad():
            (_, y, scale), (_, _, other) = self.rows(zero), self.rows(zero + 1)
        if not torch.equal(scale, other):
            raise ValueError(
                f"Expected noise that does not depend on site {self.name!r}, got one that does. "
                f"DPS and TwistedSMC take any likelihood."
            )
        return y, scale

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the means, data and scales of all observed sites at one value."""
        found = [normal_of(msg, x) for msg in self.observed(x)]
        means, data, scales = (torch.cat(parts) for parts in zip(*found))
        return means, data, scales


def normal_of(msg: dict[str, Any], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, value and scale of a normal site, as rows; a masked item equals its mean, 0."""
    fn, masks = msg["fn"], [(msg["mask"], msg["fn"].event_dim)]
    while isinstance(fn, (Independent, MaskedDistribution)):
        masks.append((getattr(fn, "_mask", None), fn.event_dim))
        fn = fn.base_dist
    if not isinstance(fn, Normal):
        raise ValueError(
            f"Expected normal data at site {msg['name']!r}, got a {type(fn).__name__}. DPS and "
            f"TwistedSMC take any likelihood."
        )
    y: Tensor = msg["value"]
    shape = torch.broadcast_shapes(fn.batch_shape, y.shape)
    kept = torch.ones(shape, dtype=torch.bool, device=like.device)
    for mask, dims in masks:
        if mask is not None:
            part = torch.as_tensor(mask, device=like.device)
            kept = kept & part.reshape(*part.shape, *[1] * dims)
    weight = torch.as_tensor(msg["scale"], dtype=like.dtype, device=like.device)
    rows = (torch.where(kept, fn.loc, 0), torch.where(kept, y, 0), fn.scale / weight.sqrt())
    return tuple(row.expand(shape).reshape(-1) for row in rows)  # type: ignore[return-value]


def likelihood(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Likelihood:
    """Find the likelihood of a Pyro model with one latent site.

    Arguments:
        model: The Pyro model. `torch.func.vmap` must take it.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Returns:
        The log likelihood, a function of values with shape :math:`(*, event)`.

    Raises:
        ValueError: If there is another number of latent sites than one, or of observed ones none;
            if the latent site is in a plate; if data are subsampled.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(x.sum(), 0.5), obs=y)
        >>> found = likelihood(model, torch.tensor(1.0))
        >>> found(torch.zeros(3, 2)).shape, found.means(torch.ones(3, 2)).tolist()
        (torch.Size([3]), [[2.0], [2.0], [2.0]])
        >>> found.normal()
        (tensor([1.]), tensor([0.5000]))
    """

    def bound() -> Any:
        return model(*args, **kwargs)

    place = Given()
    with unchecked(), torch.no_grad(), poutine.block(), place:
        bound()
    names = [name for name, _ in place.latent]
    if len(names) != 1:
        raise ValueError(
            f"Expected a model with one latent site, got {len(names)}: {', '.join(names) or 'none'}"
            f". Those with more take probgen.mcmc.run."
        )
    name, prior = place.latent[0]
    if prior.batch_shape:
        raise ValueError(
            f"Expected one value at site {name!r}, got the batch shape {tuple(prior.batch_shape)}. "
            f"Take the posterior of each by itself."
        )
    if not place.observed:
        raise ValueError("Expected a model with observed sites, got none.")
    return Likelihood(bound, place)
