r"""Draws of discrete sites that were summed out.

Chains over continuous sites :math:`x` leave discrete sites :math:`z` summed out. Given a draw of
:math:`x` and the data :math:`y`, those follow

.. math:: p(z \mid x, y) = \frac{p(x, z, y)}{\sum_z p(x, z, y)},

which forward filtering and backward sampling draw from exactly, one vector :math:`z` for each draw
of :math:`x`. So :math:`(x, z)` are draws from the posterior of both.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import config_enumerate, discrete
from pyro.ops.rings import SampleRing
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ...core.validation import outside
from ..checks import check_enumerated
from .model_run import Enumerate, nesting_of, structure, unchecked
from .trial import ChainByChainWarning
from .vmapping import Batchable, batchable, rebound

__all__ = ["infer_discrete"]


def infer_discrete(
    model: Callable[..., Any], samples: dict[str, Tensor], *args: Any, **kwargs: Any
) -> dict[str, Tensor]:
    r"""Draws the discrete sites of a model given the data and draws of its other sites.

    Arguments:
        model: The Pyro model, whose discrete sites are those that chains sum out.
        samples: Draws of its continuous latent sites by name, with shape :math:`(S, *event)`.
            Other names, as of deterministic sites, are left aside.
        args: The model's arguments, data included.
        kwargs: Its keyword arguments.

    Returns:
        For each discrete site, values with shape :math:`(S, *)`, one for each draw.

    Raises:
        ValueError: If the model has no discrete site to draw; if a continuous site has no draws, or
            sites have different numbers of draws.

    Warns:
        ChainByChainWarning: If `torch.func.vmap` does not take the model, so that draws come one
            after the other.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(5.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         pyro.sample("y", dist.Normal(mean * z, 1.0), obs=y)
        >>> draws = {"mean": torch.full((100,), 5.0)}
        >>> infer_discrete(model, draws, torch.tensor([-1.0, 6.0]))["z"].mean(0)
        tensor([0., 1.])
    """

    def bound() -> Any:
        return model(*args, **kwargs)

    place, trace = structure(bound)
    if not place.discrete:
        raise ValueError("Expected a model with discrete sites that are summed out, got none.")
    check_enumerated(trace.nodes.items())
    values = {name: samples[name] for name in place.parts if name in samples}
    check_samples(values, list(place.parts))
    shapes = {name: trace.nodes[name]["value"].shape for name in place.discrete}
    first = -1 - nesting_of(trace)

    def one(values: dict[str, Tensor]) -> dict[str, Tensor]:
        found = posterior(bound, values, first, place.discrete)
        return {name: found[name].reshape(shape) for name, shape in shapes.items()}

    with unchecked(), torch.no_grad(), poutine.block():
        try:
            return torch.func.vmap(one, randomness="different", chunk_size=8192)(values)
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).strip().split("\n")[0]
        warnings.warn(
            f"torch.func.vmap does not take this model, so discrete sites are drawn for one draw "
            f"after the other, which is slow: {reason}",
            ChainByChainWarning,
            stacklevel=outside(),
        )
        count = len(next(iter(values.values())))
        rows = [one({name: value[k] for name, value in values.items()}) for k in range(count)]
    return {name: torch.stack([row[name] for row in rows]) for name in shapes}


def posterior(
    bound: Callable[[], Any], values: dict[str, Tensor], first: int, names: list[str]
) -> dict[str, Tensor]:
    """One draw of discrete sites given the values of all others."""
    model = config_enumerate(poutine.condition(bound, values))

    def seen() -> dict[str, Tensor]:
        nodes = poutine.trace(model).get_trace().nodes
        return {name: nodes[name]["value"] for name in names}

    if backward_sample is None:
        own = discrete.infer_discrete(seen, first_available_dim=first, temperature=1)
        return own()
    with contextlib.ExitStack() as stack:
        stack.enter_context(Batchable())
        with poutine.block(), Enumerate(first_available_dim=first):
            trace = prune_subsample_sites(poutine.trace(model).get_trace())
        for node in trace.nodes.values():
            if node["type"] == "sample":
                stack.enter_context(batchable(node["fn"]))
        trace.compute_log_prob()
        trace.pack_tensors()
        return backward_sample(seen, trace, 1, False)


class Sampling(SampleRing):
    """Forward filtering and backward sampling, in operations that `vmap` takes."""

    _backend = "probgen.mcmc.pyro.sample_einsum"


def ring(temperature: int, cache: Any, sizes: Any) -> Sampling:
    return Sampling(cache=cache, dim_to_size=sizes)


own = getattr(discrete, "_sample_posterior_from_trace", None)  # without it, Pyro's own way
backward_sample = None if own is None else rebound(own, _make_ring=ring)


def check_samples(values: dict[str, Tensor], names: list[str]) -> None:
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"Expected `samples` of {names}, got none of {missing}.")
    sizes = {name: len(value) if value.ndim else 0 for name, value in values.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(f"Expected as many draws of each site in `samples`, got {sizes}.")
