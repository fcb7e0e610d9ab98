r"""Objectives of latent-variable models for any Pyro model and guide.

A run of the guide gives draws :math:`z`, a run of the model their densities. Sites lie in plates;
the plates common to all sites hold independent items :math:`i`, whose log weights are the sums of
their sites' log densities,

.. math:: \log w_{k i} = \sum_{\text{sites}} \log p_{k i} - \sum_{\text{latent sites}} \log q_{k i}.

What a mini-batch stands for multiplies the losses of its items.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.util import detach, is_identically_zero, scale_and_mask
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import is_validation_enabled, torch_item
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.util import check_if_enumerated, warn_if_nan
from torch import Tensor

from ..core.pyro_sites import Pair
from .weights import Weights

__all__ = ["TraceObjective"]

PARTICLES = "num_particles_vectorized"  # Pyro's name of the plate of draws


class TraceObjective(ELBO):
    """A variational objective as an ELBO of Pyro.

    Arguments:
        objective: The objective.
        max_plate_nesting: The greatest number of nested plates.
        vectorize_particles: Whether all draws are taken in one plate.
    """

    def __init__(self, objective: Any, max_plate_nesting: float, vectorize_particles: bool) -> None:
        super().__init__(
            num_particles=objective.samples,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
        )
        self.objective = objective

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        held = self.objective.held
        if held:
            guide = Held()(guide)
        pair = get_importance_trace(
            "flat", self.max_plate_nesting, model, guide, args, kwargs, detach=held
        )
        if is_validation_enabled():
            check_if_enumerated(pair[1])
        return pair

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        with OneBatch():
            return list(super()._get_traces(model, guide, args, kwargs))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a tensor with a gradient."""
        if isinstance(model, Pair):
            self.objective.check_frozen(model.distribution)
        runs = [self.weights(*traces) for traces in self._get_traces(model, guide, args, kwargs)]
        if len(runs) == 1:
            weights, scale = runs[0]
        else:
            scale = runs[0][1]
            columns = zip(*(run[0][:3] for run in runs))
            parts = [torch.cat(column) for column in columns]
            scores = [run[0].score for run in runs]
            score = None if scores[0] is None else torch.cat(scores)  # type: ignore[arg-type]
            latents = () if self.objective.stopped else runs[0][0].latents
            weights = runs[0][0]._replace(
                log_likelihood=parts[0],
                log_prior=parts[1],
                log_posterior=parts[2],
                score=score,
                latents=latents,
            )
        return scale * self.objective.bound_losses(weights).sum()

    def weights(self, model_trace: Trace, guide_trace: Trace) -> tuple[Weights, float]:
        """Return the weights of items, with shape (draws, items), and what each item stands for."""
        q = {n: s for n, s in guide_trace.nodes.items() if stated(s)}
        p = {n: s for n, s in model_trace.nodes.items() if stated(s)}
        stacks = [
            {f for f in site["cond_indep_stack"] if f.vectorized}
            for site in (*p.values(), *q.values())
        ]
        frames = set.intersection(*stacks)
        common = {f for f in frames if f.name != PARTICLES}
        scale = 1.0
        for f in common:
            scale *= (f.full_size or f.size) / f.size
        sizes = {f.dim: f.size for f in frames}
        first = [f.dim for f in frames if f.name == PARTICLES]

        self.check(p, q, model_trace, guide_trace, common)
        like = next(s["value"] for s in (*p.values(), *q.values()))

        def total(sites: list[Any], stop: bool = False) -> Tensor:
            values = [self.reduced(s, sizes, scale, first, stop) for s in sites]
            return sum_of(values) if values else like.new_zeros(1, 1)

        scores = [s["score_parts"].score_function for s in q.values()]
        score = [self.placed(s / scale, sizes, first) for s in scores if not is_identically_zero(s)]
        return (
            Weights(
                total([s for n, s in p.items() if n not in q]),
                total([s for n, s in p.items() if n in q]),
                total(list(q.values()), self.objective.stopped),
                None,
                sum_of(score) if score else None,
                tuple(s["value"] for s in q.values()),
            ),
            scale,
        )

    def check(self, p: Any, q: Any, model_trace: Trace, guide_trace: Trace, common: Any) -> None:
        """Refuses what the objective would get wrong."""
        name = type(self.objective).__name__
        if self.objective.stopped and len(q) > 1:
            raise ValueError(
                f"Expected a guide with one latent site for {name}, got {', '.join(q)}. IWAE and "
                f"ELBO take any."
            )
        if self.objective.stopped and common:
            inner = {f for s in q.values() for f in s["cond_indep_stack"] if f.vectorized}
            last = max(f.dim for f in common)
            wrong = [f.name for f in inner - common if f.name != PARTICLES and f.dim < last]
            if wrong:
                raise ValueError(
                    f"Expected the plates of items left of all others for {name}, got "
                    f"{wrong[0]!r} left of them. Give the plates their `dim`."
                )
        if self.objective.upper:
            own = [n for n, s in guide_trace.nodes.items() if s["type"] == "param"]
            for n, site in model_trace.nodes.items():
                if site["type"] == "param" and n not in own and site["value"].requires_grad:
                    raise ValueError(
                        f"Expected a model without parameters that learn for {name}, an upper "
                        f"bound that would lower the evidence, got {n!r}."
                    )

    def reduced(
        self, site: Any, sizes: dict[int, int], scale: float, first: list[int], stop: bool
    ) -> Tensor:
        """Return the log density of a site, of each draw and item."""
        fn = detach(site["fn"]) if stop else site["fn"]
        value = fn.log_prob(site["value"])
        value = scale_and_mask(value, site["scale"] / scale, site["mask"])
        return self.placed(value, sizes, first)

    def placed(self, value: Tensor, sizes: dict[int, int], first: list[int]) -> Tensor:
        """Return a log density summed over what is no draw or item, with shape (draws, items)."""
        depth = max(value.ndim, *(-dim for dim in sizes), 1) if sizes else max(value.ndim, 1)
        value = value.reshape((1,) * (depth - value.ndim) + value.shape)
        for dim in range(-depth, 0):
            if dim not in sizes:
                value = value.sum(dim, keepdim=True)
            elif value.shape[dim] != sizes[dim]:
                value = value.expand(
                    *value.shape[:dim], sizes[dim], *value.shape[depth + dim + 1 :]
                )
        kept = sorted(sizes)
        value = value.reshape([sizes[dim] for dim in kept])
        if not first:
            return value.reshape(1, -1)
        return (
            value.movedim(kept.index(first[0]), 0).flatten(1) if value.ndim > 1 else value[:, None]
        )

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the loss as a number."""
        with torch.no_grad():
            return torch_item(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the loss as a number, its gradients added to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        value = torch_item(loss)
        warn_if_nan(value, "loss")
        return value


class Held(Messenger):
    """Cuts the gradient of draws as a guide gets them, and so of all that it makes of them."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and isinstance(msg["value"], torch.Tensor):
            msg["value"] = msg["value"].detach()


class OneBatch(Messenger):
    """Gives all runs the mini-batch of the first, whose items their weights compare."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.kept:
            msg["value"], msg["done"] = self.kept[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            self.kept[msg["name"]] = msg["value"]


def stated(site: Any) -> bool:
    """Whether a node is a sample site of a density."""
    return site["type"] == "sample" and not isinstance(site["fn"], _Subsample)


def sum_of(values: list[Tensor]) -> Tensor:
    return sum(values[1:], values[0])
