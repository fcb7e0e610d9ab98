"""Initial points of chains: from the prior, from given values, or uniform ones."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch
from pyro import poutine
from torch import Tensor

from .pyro.evaluation import Evaluation
from .pyro.model_run import RADIUS, SiteRecorder, unchecked
from .pyro.vmapping import Batchable

__all__ = ["Initial", "initial"]

Initial = Literal["uniform", "prior", "median", "importance"]  # how points are found

TRIES = 100  # of initial points for a chain


def initial(
    potential: Evaluation, how: Initial | dict[str, Tensor], chains: int, gradient: bool
) -> Tensor:
    """Find initial points at which the log density, and its gradient, are finite.

    Arguments:
        potential: The log density.
        how: As of :meth:`~probgen.mcmc.Potential.initial`.
        chains: The number of chains.
        gradient: Whether the gradient must be finite too.

    Returns:
        Points with shape :math:`(C, D)`.
    """
    if chains < 1:
        raise ValueError(f"Expected at least one chain, got {chains}.")
    draws = guess(potential, how, chains)
    for _ in range(TRIES):
        if gradient:
            value, slope = potential.value_and_gradient(draws)
            bad = ~(torch.isfinite(value) & torch.isfinite(slope).all(-1))
        else:
            bad = ~torch.isfinite(potential(draws.detach()))
        if not bool(bad.any()):
            return draws
        again = guess(potential, how, chains)
        if torch.equal(again[bad], draws[bad]):  # all sites are given
            break
        draws = torch.where(bad[:, None], again, draws)
    raise ValueError(explain(potential, draws[bad.nonzero()[0, 0]]))


def guess(potential: Evaluation, how: Initial | dict[str, Tensor], chains: int) -> Tensor:
    if isinstance(how, dict):
        return draw(potential, chains, values=given(potential, how, chains))
    if how == "uniform":
        like = potential.point.expand(chains, -1)
        return torch.empty_like(like, memory_format=torch.contiguous_format).uniform_(
            -RADIUS, RADIUS
        )
    if how == "prior":
        return draw(potential, chains, prior=True)
    if how == "median":
        return draw(potential, 15 * chains, prior=True).reshape(15, chains, -1).median(0).values
    if how == "importance":
        many = draw(potential, 20 * chains, prior=True)
        weight = torch.nan_to_num(potential.log_likelihood(many), nan=-torch.inf).softmax(0)
        if not bool(torch.isfinite(weight).all()):
            return many[:chains]
        return many[torch.multinomial(weight, chains, replacement=True)]
    raise ValueError(
        f"Expected 'uniform', 'prior', 'median', 'importance' or values by name as initial "
        f"points, got {how!r}."
    )


def draw(potential: Evaluation, chains: int, **options: Any) -> Tensor:
    """Points from the prior, from given values, or uniform ones, with shape :math:`(C, D)`."""

    def point(given: dict[str, Tensor]) -> Tensor:
        place = SiteRecorder(values=given, **options)
        with poutine.block(), place, Batchable(given.get("")):
            potential.model()
        return torch.cat([place.parts[name].reshape(-1) for name in potential.layout])

    given = options.pop("values", {})
    with unchecked(), torch.no_grad():
        if potential.batched:
            with contextlib.suppress(RuntimeError, NotImplementedError):
                return torch.func.vmap(point, randomness="different")(
                    {"": torch.zeros(chains, device=potential.device), **given}
                )
        rows = ({name: value[k] for name, value in given.items()} for k in range(chains))
        return torch.stack([point(row) for row in rows])


def given(potential: Evaluation, values: dict[str, Tensor], chains: int) -> dict[str, Tensor]:
    """Return the given values, with chains before their shape."""
    place = potential.at(draw(potential, 1)[0])
    with unchecked(), torch.no_grad():
        potential.run(place)
    shapes = {name: place.values[name].shape for name in potential.layout}
    unknown = sorted(set(values) - set(shapes))
    if unknown:
        raise ValueError(f"Expected initial values of {list(shapes)}, got {unknown}.")
    full = {}
    for name, value in values.items():
        value = torch.as_tensor(value, device=potential.device)
        if value.shape not in (shapes[name], (chains, *shapes[name])):
            raise ValueError(
                f"Expected initial values of {name!r} with shape {tuple(shapes[name])}, or "
                f"with {chains} chains before it, got {tuple(value.shape)}."
            )
        full[name] = value.to(potential.dtype).expand(chains, *shapes[name])
    return full


def explain(potential: Evaluation, u: Tensor) -> str:
    """Names a site whose log density, or its gradient, is not finite at a point."""
    place = potential.at(u)
    with unchecked(), torch.no_grad():
        value = potential.run(place)
    for name, term in place.terms.items():
        if not bool(torch.isfinite(term)):
            at: Any = place.values.get(name, place.data.get(name))
            stated = "" if at is None else f", whose value is {short(torch.as_tensor(at))}"
            if name in place.data and not bool(torch.as_tensor(at).isfinite().all()):
                stated += ". Data that are missing take a mask, as by poutine.mask"
            return (
                f"Expected a finite log density at the initial points, got {float(term)} at "
                f"site {name!r}{stated}, in {TRIES} tries. Check its support and its data, or "
                f"give other initial points with `init`."
            )
    what = "its gradient is not" if bool(torch.isfinite(value)) else f"it is {float(value)}"
    return f"Expected a finite log density and gradient at the initial points, but {what}."


def short(x: Tensor) -> str:
    return str(x.tolist()) if x.numel() <= 5 else f"{x.flatten()[:5].tolist()[:-1]} and more"
