"""Run a Pyro model at one unconstrained point and record the log density of each site.

This file, `checks`, `discrete_sites`, `likelihood`, `masks`, `potential`, `pyro_kernel`,
`sample_einsum` and `vmapping` alone know Pyro's internals.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.distributions import Beta, Independent
from pyro.distributions.util import broadcast_shape, scale_and_mask
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.infer.reparam import TransformReparam
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Transform, TransformedDistribution, biject_to, constraints
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    IndependentTransform,
    SigmoidTransform,
)
from torch.nn.functional import logsigmoid

from ...core import Density
from ..checks import check_site, is_value
from .masks import free_of, inside, mask_of
from .vmapping import batchable

__all__ = [
    "Enumerate",
    "EnumeratedMarginal",
    "ReparamToBase",
    "Site",
    "SiteRecorder",
    "nesting_of",
    "structure",
    "unchecked",
]

MIXTURES: Any = getattr(constraints, "MixtureSameFamilyConstraint", ())
RADIUS = 2.0  # of the uniform initial points, as in Stan
TRIES = 100  # of points at which a model can be run


class Site(NamedTuple):
    """Where a site's numbers are in the vector."""

    start: int
    stop: int
    shape: torch.Size  # of the unconstrained value
    value: torch.Size  # of the constrained one


class SiteRecorder(Messenger):
    """Runs a model at a point, and sums the log densities of its sites.

    Arguments:
        u: The point, with shape :math:`(D)`; without it each site draws its own numbers, from its
            prior or uniformly, which are then found in `parts`.
        prior: Whether a site without numbers draws from its prior.
        values: Constrained values by name, from which numbers follow.
        layout: Where the numbers of each site are; required with `u`.
        marginal: Whether log densities are left to the caller, who sums discrete sites out.
    """

    def __init__(
        self,
        u: Tensor | None = None,
        *,
        prior: bool = False,
        values: dict[str, Tensor] | None = None,
        layout: dict[str, Site] | None = None,
        marginal: bool = False,
    ) -> None:
        super().__init__()
        self.marginal = marginal
        self.u, self.prior, self.given, self.layout = u, prior, values or {}, layout
        if u is not None and layout is not None:  # split at once, so that gradients are joined once
            self.pieces = dict(zip(layout, u.split([w.stop - w.start for w in layout.values()])))
        self.parts: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}  # of latent and deterministic sites
        self.terms: dict[str, Tensor] = {}  # log densities, with the Jacobian's
        self.moves: dict[str, tuple[Transform, Tensor, Tensor]] = {}  # numbers to values
        self.data: dict[str, Any] = {}  # of observed sites
        self.latent: list[str] = []
        self.discrete: list[str] = []
        self.progress = [""]  # how far the run is

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn, name = msg["fn"], msg["name"]
        if isinstance(fn, _Subsample):
            return
        self.progress[0] = f"at or after site {name!r}, a {type(fn).__name__}"
        check_site(msg)
        if msg["is_observed"]:
            self.data[name] = msg["value"]
            return
        if fn.has_enumerate_support:
            self.discrete.append(name)
            return
        transform = bijection(name, fn)
        shape = shape_before(transform, fn.shape())
        free = free_of(msg, self.data, shape)
        shape = shape if free is None else free.shape
        x = self.given.get(name)
        if self.u is not None:
            where = self.find(name, shape)
            u = self.pieces[name].reshape(where.shape)
        elif x is not None or self.prior:
            if x is None:
                with batchable(fn):
                    x = fn()
            whole = transform.inv(x)
            u = whole if free is None else free.take(whole)
        else:
            u = uniform(fn, shape)
        whole = u if free is None else free.fill(u)
        x = transform(whole) if x is None else x
        if self.u is not None and x.shape != where.value:
            raise ValueError(
                f"Expected a support of site {name!r} that depends on no discrete site, got one "
                f"for each of its values."
            )
        ladj = transform.log_abs_det_jacobian(whole, x)
        self.parts[name], self.moves[name] = u, (transform, whole, x)
        if free is not None:
            x, ladj = free.restrict(x, ladj)
        msg["value"], msg["done"] = x, True
        self.terms[name] = ladj.sum() if ladj.ndim else ladj
        self.latent.append(name)
        msg["infer"] = {**(msg["infer"] or {}), "_placed": True, "_free": free}

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        """Read a parameter, without the store's own bookkeeping, which `vmap` does not take."""
        name, *rest = msg["args"]
        store = pyro.get_param_store()
        if name in store and rest and isinstance(rest[0], Tensor):
            msg["value"], msg["done"] = store[name], True

    def find(self, name: str, shape: torch.Size) -> Site:
        """Where a site's numbers are.

        Raises:
            ValueError: If the model's structure has changed.
        """
        where = self.layout.get(name) if self.layout is not None else None
        enumerated = bool(self.discrete)  # a site after one has the shape of all its values
        if where is None or (where.shape != shape and not enumerated):
            found = "no such site" if where is None else f"the shape {tuple(where.shape)}"
            raise ValueError(
                f"Expected the same sites and shapes in every run of the model, got {name!r} with "
                f"{tuple(shape)}, after {found}. Inference needs a fixed structure."
            )
        return where

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        fn, name = msg["fn"], msg["name"]
        if isinstance(fn, _Subsample):
            return
        infer = msg["infer"] or {}
        if infer.get("_placed"):
            self.values[name] = msg["value"]
        elif infer.get("_deterministic") or is_value(fn):
            self.values[name] = msg["value"]
            return
        if name in self.discrete or self.marginal:
            return
        if infer.get("_placed") and plain(msg):
            joint = joint_of(fn, *self.moves[name])
            if joint is not None:
                self.terms[name] = joint
                return
        kept, value = mask_of(msg), msg["value"]
        if isinstance(kept, Tensor) and (msg["is_observed"] or infer.get("_free") is not None):
            value = inside(value, fn, kept)
        try:
            with batchable(fn):
                log_prob = fn.log_prob(value)
        except (ValueError, NotImplementedError) as error:
            raise ValueError(f"Expected a log density at site {name!r}: {error}") from error
        log_prob = scale_and_mask(log_prob, msg["scale"], msg["mask"])
        log_prob = log_prob.sum() if log_prob.ndim else log_prob
        self.terms[name] = self.terms[name] + log_prob if name in self.terms else log_prob


def plain(msg: dict[str, Any]) -> bool:
    """Whether a site has no mask and no scale."""
    scale = msg["scale"]
    return msg["mask"] is None and isinstance(scale, (int, float)) and scale == 1


def joint_of(fn: Any, transform: Transform, u: Tensor, x: Tensor) -> Tensor | None:
    """Return log density of a beta variable by its logit, which is exact where the value is 1."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    if type(fn) is not Beta or not isinstance(transform, SigmoidTransform):
        return None
    a, b = fn.concentration1, fn.concentration0
    log_prob = a * logsigmoid(u) + b * logsigmoid(-u) + (a + b).lgamma() - a.lgamma() - b.lgamma()
    return log_prob.sum() if log_prob.ndim else log_prob


class Enumerate(EnumMessenger):
    """Enumerates discrete sites, under `vmap` too."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if isinstance(value, Tensor):  # of which only the shape is read, by way of `.data`
            msg = {**msg, "value": torch.zeros(()).expand(value.shape)}
        super()._pyro_post_sample(msg)


class LogSums(LogRing):
    """Sums of products of log densities, in operations that `vmap` takes."""

    _backend = "probgen.mcmc.pyro.log_einsum"


class EnumeratedMarginal(TraceEinsumEvaluator):
    """The log density of a trace whose discrete sites are summed out."""

    def log_prob(self, model_trace: Any) -> Tensor:
        factors = self._get_log_factors(model_trace)
        with shared_intermediates() as cache:
            ring = LogSums(cache=cache)
            return contract_to_tensor(factors, self._enum_dims, cache=cache, ring=ring)


def bounds_differ(support: Any) -> bool:
    """Whether the components of a mixture have bounds of their own."""
    bounds = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    return any(isinstance(b, Tensor) and b.ndim > 0 for b in bounds)


def bijection(name: str, fn: Any) -> Transform:
    """Return the bijection from real vectors onto a site's support."""
    support = fn.support
    if isinstance(support, MIXTURES) and not bounds_differ(support.base_constraint):
        support = support.base_constraint
    try:
        return biject_to(support)
    except NotImplementedError:
        kind = "discrete and cannot be enumerated" if fn.support.is_discrete else str(fn.support)
        raise ValueError(
            f"Expected a support with a bijection from real vectors at site {name!r}, got one "
            f"that is {kind}. Reparameterise the site, or marginalise it by hand."
        ) from None


def shape_before(transform: Transform, shape: torch.Size) -> torch.Size:
    """Return the shape that a transform makes into a shape.

    Torch's own `inverse_shape` loads a library of symbols, which takes longer than a short run.
    """
    if isinstance(transform, ComposeTransform):
        for part in reversed(transform.parts):
            shape = shape_before(part, shape)
        return shape
    if isinstance(transform, IndependentTransform):
        return shape_before(transform.base_transform, shape)
    if isinstance(transform, AffineTransform):
        sizes = [getattr(value, "shape", ()) for value in (transform.loc, transform.scale)]
        return broadcast_shape(shape, *sizes)
    return transform.inverse_shape(shape)


def uniform(fn: Any, shape: torch.Size) -> Tensor:
    """Numbers in -2 to 2, of the dtype and on the device of a site."""
    try:
        with torch.no_grad():
            like = fn.sample()
    except NotImplementedError:  # an improper law
        like = torch.empty(())
    return torch.empty(shape, dtype=like.dtype, device=like.device).uniform_(-RADIUS, RADIUS)


class ReparamToBase:
    """Moves latent sites with a frozen flow to the flow's base, and notes which."""

    def __init__(self) -> None:
        self.moved: dict[str, None] = {}

    def __call__(self, msg: dict[str, Any]) -> TransformReparam | None:
        learned = (msg["infer"] or {}).get("learned") == "frozen"
        fn = msg["fn"]
        while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
            fn = fn.base_dist
        if msg["is_observed"] or not learned or not isinstance(fn, TransformedDistribution):
            return None
        if getattr(fn, "density", None) is Density.PUSHFORWARD:  # refused where it stands
            return None
        self.moved[msg["name"]] = None
        return TransformReparam()


def nesting_of(trace: Any) -> int:
    """Return the greatest number of nested plates."""
    frames = [f for node in trace.nodes.values() for f in node.get("cond_indep_stack", ())]
    return max((-frame.dim for frame in frames if frame.dim is not None), default=0)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Without validation, whose setting is put back."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*performance drop.*")
        yield


def structure(model: Callable[[], Any]) -> tuple[SiteRecorder, Any]:
    """Return run at a random point, for its sites and shapes; some points may be out of bounds."""
    for k in range(TRIES):
        place = SiteRecorder(marginal=True)
        try:
            with poutine.block(), place, unchecked(), torch.no_grad():
                return place, poutine.trace(model).get_trace()
        except torch.linalg.LinAlgError:
            if k == TRIES - 1:
                raise
    raise RuntimeError  # never reached
