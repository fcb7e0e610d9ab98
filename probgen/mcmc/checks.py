"""Checks that the log density of a Pyro model is that of the posterior."""

from __future__ import annotations

from typing import Any

from pyro.distributions import Delta, ImproperUniform
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import broadcast_shape
from pyro.poutine.subsample_messenger import _Subsample

from ..core import Density

__all__ = ["check_enumerated", "check_proper", "check_site", "is_value"]


def check_site(msg: dict[str, Any]) -> None:
    """Refuses what would be silently wrong."""
    fn, name = msg["fn"], msg["name"]
    for frame in msg["cond_indep_stack"]:
        if frame.full_size is not None and frame.full_size != frame.size:
            raise ValueError(
                f"Expected all data in plate {frame.name!r}, got {frame.size} of "
                f"{frame.full_size}. A density of a subsample is not the posterior's; SGLD with "
                f"probgen.mcmc.minibatch takes mini-batches."
            )
    while not hasattr(fn, "density") and hasattr(fn, "base_dist"):  # in to_event or mask
        fn = fn.base_dist
    density = getattr(fn, "density", Density.EXACT)
    if density is Density.BOUND:
        raise ValueError(
            f"Expected a density at site {name!r}, got a stochastic bound, which has no fixed "
            f"value for a kernel to test. State its latent variables as sites, or use SVI."
        )
    if density is Density.PUSHFORWARD:
        raise ValueError(
            f"Expected a density at site {name!r}, got a sampler without one. State its base as a "
            f"site, as pg.sample does."
        )


def is_value(fn: Any) -> bool:
    """Whether a site states the value of one that was reparameterised."""
    masked = isinstance(fn, MaskedDistribution) and fn._mask is False
    return masked and isinstance(fn.base_dist, Delta)


def check_proper(nodes: Any) -> None:
    """Refuses an improper prior without data, which has no posterior."""
    improper = []
    for name, node in nodes:
        if node["type"] != "sample" or isinstance(node["fn"], _Subsample):
            continue
        fn = node["fn"]
        if node["is_observed"]:
            if not is_value(fn):
                return
            continue
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        if isinstance(fn, ImproperUniform):
            improper.append(name)
    if improper:
        raise ValueError(
            f"Expected a posterior, got an improper one: site {', '.join(map(repr, improper))} "
            f"has an ImproperUniform prior, and there are no data. State observed sites, factors "
            f"or a proper prior."
        )


def check_enumerated(nodes: Any) -> None:
    """Refuses models whose discrete sites cannot be summed out as they stand."""
    for name, node in nodes:
        if node["type"] != "sample" or isinstance(node["fn"], _Subsample):
            continue
        covered = {frame.dim for frame in node["cond_indep_stack"]}
        value = node["value"].shape[: node["value"].ndim - node["fn"].event_dim]
        batch = broadcast_shape(node["fn"].batch_shape, value)
        for dim, size in enumerate(reversed(batch), 1):
            if size > 1 and -dim not in covered:
                raise ValueError(
                    f"Expected plates around site {name!r} with batch shape {tuple(batch)}, since "
                    f"discrete sites are summed out, got none for its dimension {-dim}. State it "
                    f"in a plate, or as .to_event(1)."
                )
        if not (isinstance(node["scale"], (int, float)) and node["scale"] == 1):
            raise ValueError(
                f"Expected no scale at site {name!r}, since a sum over discrete sites is not "
                f"scaled by scaling its terms. Sum the sites out by hand."
            )
