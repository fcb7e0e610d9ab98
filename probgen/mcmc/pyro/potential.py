r"""The log density of a Pyro model, for many chains at once.

A model states sites :math:`x_1, x_2, \dots` with supports, and data :math:`y`. With a bijection
:math:`T_k` from the real vectors onto the support of :math:`x_k`, all sites together are one vector
:math:`u` of :math:`D` real numbers, whose density is

.. math:: \log \pi(u) = \log p(x, y) + \sum_k \log | \det \partial T_k / \partial u_k |,
    \qquad x_k = T_k(u_k).

The support of a site may depend on sites before it. The model is run as it stands, for one chain;
`torch.func.vmap` runs it for all of them, and the operations of the gradient are recorded
(:mod:`probgen.mcmc.pyro.graph`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from ..checks import check_enumerated, check_proper
from ..initial import Initial, draw, initial
from .density_term import DensityTerm
from .evaluation import Evaluation
from .model_run import (
    Enumerate,
    EnumeratedMarginal,
    ReparamToBase,
    Site,
    SiteRecorder,
    nesting_of,
    structure,
    unchecked,
)
from .trial import check
from .vmapping import Batchable, batchable

__all__ = ["Potential", "potential"]


class Potential(Evaluation):
    r"""The log density of a Pyro model's latent sites, as one real vector, for many chains.

    :func:`potential` makes it. It is a snapshot: it does not see parameters and data that change
    later.

    Arguments:
        model: The model, a function without arguments.
        found: A run of it.
        moved: The sites that were moved to the base of their flow.
        nesting: The greatest number of nested plates.
        compile: Whether to record operations.

    Attributes:
        size: The number :math:`D` of real numbers.
        log_prior: The log density of the latent sites, a function like this one.
        log_likelihood: That of the observed sites.
        moved: The sites that were moved to the base of their flow.
    """

    def __init__(
        self,
        model: Callable[[], Any],
        found: SiteRecorder,
        moved: list[str],
        nesting: int,
        compile: bool = True,
    ) -> None:
        self.model, self.nesting = model, nesting
        self.layout, at = {}, 0
        for name, part in found.parts.items():
            value = found.values[name].shape
            self.layout[name] = Site(at, at + part.numel(), part.shape, value)
            at += part.numel()
        self.size = at
        self.discrete = list(found.discrete)
        self.moved = moved
        self.progress = [""]  # how far a run came
        like = torch.cat([part.detach().reshape(-1) for part in found.parts.values()])
        self.dtype, self.device = like.dtype, like.device
        super().__init__(like, compile, bool(found.discrete))
        self.whole = DensityTerm(self, "total", self.total)
        self.log_prior = DensityTerm(self, "prior", lambda u: self.both(u)[0])
        self.log_likelihood = DensityTerm(self, "likelihood", lambda u: self.both(u)[1])
        check(self, like)

    def run(self, place: SiteRecorder) -> Tensor:
        """Run the model, and return its log density."""
        like = place.u[0] if self.room and place.u is not None else None
        with contextlib.ExitStack() as stack:
            stack.enter_context(Batchable(like))
            if not self.discrete:
                with poutine.block(), place:
                    self.model()
                return sum_of(place.terms.values())
            with poutine.block(), place, Enumerate(first_available_dim=-1 - self.nesting):
                trace = poutine.trace(config_enumerate(self.model)).get_trace()
            for node in trace.nodes.values():
                if node["type"] == "sample":
                    stack.enter_context(batchable(node["fn"]))
            jacobian = sum_of(place.terms.values())
            return jacobian + EnumeratedMarginal(trace, True, self.nesting).log_prob(trace)

    def at(self, u: Tensor) -> SiteRecorder:
        """Return a run of the model at one point."""
        place = SiteRecorder(u, layout=self.layout, marginal=bool(self.discrete))
        place.progress = self.progress
        return place

    def total(self, u: Tensor) -> Tensor:
        """Return the log density of one chain."""
        return self.run(self.at(u))

    def both(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density of the latent sites of one chain, and of the observed ones."""
        place = self.at(u)
        self.run(place)
        if self.discrete:
            raise ValueError(
                f"Expected a model without discrete sites, got {', '.join(self.discrete)}: a "
                f"marginal likelihood over them does not split into prior and likelihood."
            )
        prior = sum_of(place.terms[name] for name in place.latent)
        rest = sum_of(term for name, term in place.terms.items() if name not in place.latent)
        return prior, rest if isinstance(rest, Tensor) else prior * 0

    def __call__(self, x: Tensor) -> Tensor:
        r"""Return the log density :math:`\log \pi(u)` at positions with shape :math:`(C, D)`."""
        return self.whole(x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the log density and its gradient at positions with shape :math:`(C, D)`."""
        return self.whole.value_and_gradient(x)

    def gradient(self, x: Tensor) -> Tensor:
        r"""Return the gradient alone."""
        return self.whole.gradient(x)

    def values(self, u: Tensor, sites: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return the values of all sites of one chain, or of some."""
        place = SiteRecorder(u, layout=self.layout, marginal=True)  # no log densities
        with poutine.block(), place, Batchable(u[0] if self.room else None):
            self.model()
        base = {f"{name}_base" for name in self.moved}
        kept = set(place.values) - base
        if self.discrete:  # what follows from a discrete site is not a value but a distribution
            kept &= set(self.layout) | set(self.moved)
        if sites is not None:
            unknown = sorted(set(sites) - kept)
            if unknown:
                raise ValueError(f"Expected `sites` of {sorted(kept)}, got {unknown}.")
            kept = set(sites)
        return {name: value for name, value in place.values.items() if name in kept}

    def unravel(self, x: Tensor, sites: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Give the values of sites, constrained to their supports.

        A site that was moved to the base of a flow has its own values here, not those of the base.

        Arguments:
            x: Positions, with shape :math:`(*, D)`.
            sites: The names of the sites; by default all. The values of others are not kept.

        Returns:
            For each latent and deterministic site, values with shape :math:`(*, *event)`. Where
            `obs_mask` has data, a site takes these.

        Raises:
            ValueError: If a site is not of the model.
        """
        batch, names = x.shape[:-1], None if sites is None else list(sites)
        with unchecked(), torch.no_grad():
            flat = x.reshape(-1, self.size)
            found = self.map(lambda u: self.values(u, names), flat, chunk=8192)
        return {name: value.reshape(batch + value.shape[1:]) for name, value in found.items()}

    def saturated(self, x: Tensor, fraction: float = 0.01) -> list[str]:
        r"""Find sites whose values are at the edge of what their precision can hold.

        A value such as :math:`1 - 10^{-12}` is 1 in single precision: what lies beyond is cut off,
        or piles up there. Such a value does not give back the real number :math:`u` it came from.

        Arguments:
            x: Positions, with shape :math:`(*, D)`.
            fraction: The least part of the positions at which a site must be at the edge.

        Returns:
            The names of the sites.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> def model():
            ...     pyro.sample("p", dist.Uniform(0.0, 1.0))
            >>> log_density = potential(model)
            >>> log_density.saturated(torch.zeros(10, 1))
            []
            >>> log_density.saturated(torch.full((10, 1), 30.0))
            ['p']
        """

        def lost(u: Tensor) -> dict[str, Tensor]:
            place = SiteRecorder(u, layout=self.layout, marginal=True)
            with poutine.block(), place, Batchable(u[0] if self.room else None):
                self.model()
            return {n: ~((t.inv(x) - u).abs() < 0.25).all() for n, (t, u, x) in place.moves.items()}

        with unchecked(), torch.no_grad():
            found = self.map(lost, x.reshape(-1, self.size), chunk=8192)
        at = [name for name, edge in found.items() if float(edge.float().mean()) >= fraction]
        moved = {f"{name}_base": name for name in self.moved}
        return [moved.get(name, name) for name in at]

    def draw(self, chains: int, *, prior: bool = False) -> Tensor:
        r"""Draws points from the prior, or uniformly in -2 to 2.

        Arguments:
            chains: The number of points :math:`C`.
            prior: Whether to draw from the prior.

        Returns:
            Points with shape :math:`(C, D)`.
        """
        return draw(self, chains, prior=prior)

    def initial(
        self,
        how: Initial | dict[str, Tensor] = "uniform",
        chains: int = 1,
        *,
        gradient: bool = True,
    ) -> Tensor:
        """Find initial points at which the log density, and its gradient, are finite.

        Arguments:
            how: `"uniform"`, in -2 to 2 in the real vector; `"prior"`, draws from it; `"median"`,
                of 15 draws from the prior for each chain; `"importance"`, draws from the prior,
                20 for each chain, resampled by their likelihood; or values by name, with the shape
                of the site or with chains before it, the other sites being uniform.
            chains: The number of chains.
            gradient: Whether the gradient must be finite too. A kernel that uses none needs none,
                and so a model without one can be started.

        Returns:
            Points with shape :math:`(C, D)`.

        Raises:
            ValueError: If a chain finds no such point in 100 tries, with the site and its value;
                if the model has no gradient.
        """
        return initial(self, how, chains, gradient)


def sum_of(terms: Any) -> Any:
    total: Any = 0.0
    for term in terms:
        total = total + term
    return total


def potential(
    model: Callable[..., Any],
    *args: Any,
    base: bool = True,
    compile: bool = True,
    **kwargs: Any,
) -> Potential:
    """Turn a Pyro model into a log density for many chains.

    The model stays as it is: plates, constrained sites of every support, deterministic sites,
    factors, masks and scales. Discrete sites that can be enumerated are summed out; in the model,
    they must be in plates as for Pyro's own enumeration. A model that `vmap` does not take, as one
    that branches on values, is run for each chain in turn, after a warning.

    Arguments:
        model: The Pyro model.
        args: Its arguments.
        base: Whether latent sites of :func:`probgen.sample` with a frozen flow move to the base of
            the flow, where their prior is standard normal.
        compile: Whether to record the operations of the log density, rather than running the model
            at each evaluation: much faster, and the same numbers. Recording takes about as long as
            three evaluations.
        kwargs: Its keyword arguments.

    Returns:
        The log density, a function of positions with shape :math:`(C, D)`.

    Raises:
        ValueError: If there is no latent site, a site has no density, or no bijection leads to its
            support; if data are subsampled; if sites or shapes change between runs; if a prior is
            improper and there are no data.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> log_density = potential(model, torch.tensor([0.5, -1.0, 2.0]))
        >>> log_density(torch.zeros(4, 1)).shape
        torch.Size([4])
        >>> log_density.unravel(torch.zeros(4, 1))["scale"]
        tensor([1., 1., 1., 1.])
    """

    def bound() -> Any:
        return model(*args, **kwargs)

    mover = ReparamToBase()
    stated: Callable[[], Any] = poutine.reparam(bound, config=mover) if base else bound
    (first_run, _), (second_run, trace) = structure(stated), structure(stated)
    runs = (first_run, second_run)
    first, second = ({name: part.shape for name, part in run.parts.items()} for run in runs)
    if first != second:
        raise ValueError(
            f"Expected the same sites and shapes in every run of the model, got "
            f"{ {n: tuple(s) for n, s in first.items()} } and then "
            f"{ {n: tuple(s) for n, s in second.items()} }. Inference needs a fixed structure."
        )
    if not first:
        extra = " Its discrete sites are summed out." if runs[0].discrete else ""
        raise ValueError(f"Expected a model with continuous latent sites, got none.{extra}")
    check_proper(trace.nodes.items())
    if runs[1].discrete:
        check_enumerated(trace.nodes.items())
    nesting = nesting_of(trace)
    return Potential(stated, runs[1], list(mover.moved), nesting, compile)
