r"""Hierarchical latent-variable models.

Latents in layers, each given those above it, :math:`z_{>l} = (z_{l+1}, \dots, z_L)`:

.. math:: p(x, z) = p(x \mid h_1) \prod_{l=1}^L p(z_l \mid z_{>l}), \qquad
    q(z \mid x) = \prod_{l=1}^L q(z_l \mid z_{>l}, x).

Features :math:`d_l = r_l(d_{l-1})` rise from the data :math:`d_0 = x`; states
:math:`h_l = f_l(h_{l+1}, z_l)` descend. The prior of a layer, :math:`\mathcal{N}(\mu, \sigma^2)`,
comes from the state above it, standard normal at the top, and a rule merges it with the statistics
:math:`(a, b)`, which comes from that state and from :math:`d_l`, into the posterior. Both share
the way down, so one pass draws all latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint as recomputed

from ...core import LazyDistribution, Standardizer, initialize_part
from ...core.validation import check_event, check_whole
from ...objectives import ELBO, Weights
from ..supports import is_real
from .base import LatentVariable, check_given
from .layers import LatentLayer, Moments, PosteriorUpdate
from .vae import divergence

__all__ = ["Hierarchy"]

LIMIT = 5.0  # of log scales
STARTING = 1000  # how many data the layers' starting values see

Choice = Callable[[int, Any, Any], Tensor]  # the latents of a layer, given prior and posterior


class Hierarchy(LatentVariable):
    r"""A latent-variable model with layers of normal latents.

    Log scales are kept within 5, by a hyperbolic tangent. :func:`probgen.fit`, or `initialize`,
    sets the location and scale by which data are standardised, as :class:`Latent` does, and the
    starting values of the layers.

    Objectives see the divergence of each layer, exact given the draws above it, so free bits count
    by layer.

    References:
        | Ladder Variational Autoencoders (Sonderby et al., 2016), https://arxiv.org/abs/1602.02282
        | NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020)
        | https://arxiv.org/abs/2007.03898

    Arguments:
        rungs: The layers, from that next to the data to the top.
        likelihood: The lazy likelihood, called with the last state :math:`h_1`, flattened.
        merge: The rule that makes the posterior.
        checkpoint: Whether to keep no activations within a layer's networks for the backward pass,
            but to compute them again there.
        samples: The number of draws :math:`K` of the bound that `log_prob` is.

    Raises:
        TypeError: If a part is of another type.
        ValueError: If the parts do not fit.

    Example:
        >>> import probgen as pg
        >>> model = pg.models.LadderVAE(5, latents=(3, 2), hidden_features=(8, 8))
        >>> x = model().sample((4,))
        >>> [tuple(z.shape) for z in model.encode(x)], model().log_prob(x).shape
        ([(4, 3), (4, 2)], torch.Size([4]))
    """

    unit: Tensor

    def __init__(
        self,
        rungs: Sequence[LatentLayer],
        likelihood: LazyDistribution,
        merge: PosteriorUpdate,
        checkpoint: bool = False,
        samples: int = 1,
    ) -> None:
        super().__init__()
        check_whole(1, samples=samples, depth=len(rungs))
        for name, part, kind in (
            *((f"rungs[{i}]", rung, LatentLayer) for i, rung in enumerate(rungs)),
            ("likelihood", likelihood, LazyDistribution),
            ("merge", merge, PosteriorUpdate),
        ):
            if not isinstance(part, kind):
                raise TypeError(
                    f"Expected a {kind.__name__} as `{name}`, got a {type(part).__name__}."
                )
        self.rungs: Any = nn.ModuleList(rungs)
        self.likelihood, self.merge = likelihood, merge
        self.checkpoint, self.samples = bool(checkpoint), samples
        self.latent_shapes = [tuple(rung.shape) for rung in rungs]
        self.rank = len(self.latent_shapes[-1])
        like = next(likelihood.parameters(), torch.zeros(()))
        with torch.no_grad():
            self.event_shape = likelihood(like.new_zeros(likelihood.context)).event_shape
        self.standardizer = Standardizer(self.event_shape)
        self.register_buffer("unit", torch.zeros(self.latent_shapes[-1]))
        self.fit_parts()

    def fit_parts(self) -> None:
        """Check that the parts fit."""
        with torch.no_grad():
            features = self.bottom_up(self.unit.new_zeros(1, *self.event_shape))
            h: Any = None
            for i, (rung, d) in reversed(list(enumerate(zip(self.rungs, features)))):
                shape = self.latent_shapes[i]
                outputs = {"statistics": rung.statistics(h, d)}
                if h is not None:
                    outputs["prior"] = rung.prior(h)
                for name, out in outputs.items():
                    if out.shape[1:] != (2 * shape[0], *shape[1:]):
                        raise ValueError(
                            f"Expected `{name}` of `rungs[{i}]`, with latents of shape {shape}, to "
                            f"have shape (B, {', '.join(map(str, (2 * shape[0], *shape[1:])))}), "
                            f"got {tuple(out.shape)}."
                        )
                h = rung.top_down(h, self.unit.new_zeros(1, *shape))
        if h.numel() != self.likelihood.context:
            raise ValueError(
                f"Expected a `likelihood` with context={h.numel()}, for the last state of shape "
                f"{tuple(h.shape[1:])}, got context={self.likelihood.context}."
            )

    @property
    def support(self) -> constraints.Constraint:
        return self.likelihood.support

    @property
    def objective(self) -> Callable[..., Tensor]:
        return ELBO()

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        check_event(x, self.event_shape)
        vector = is_real(self.support) and len(self.event_shape) == 1
        self.standardizer.fit(x, weights, per="feature" if vector else "shared")
        initialize_part(self.likelihood, x, None, weights)
        if weights is not None:
            x = x[weights > 0]
        self.start_rungs(x[:: 1 + len(x) // STARTING])

    def start_rungs(self, x: Tensor) -> None:
        """Set the starting values of layers, on the way up and on the way down, once."""
        d, features, h = self.standard(x), [], None
        for rung in self.rungs:
            rung.initialize_bottom_up(d)
            d = rung.bottom_up(d)
            features.append(d)
        for i, rung in reversed(list(enumerate(self.rungs))):
            if h is not None:
                rung.initialize_prior(h)
            h = rung.top_down(h, self.laws(i, h, features[i])[1].sample())

    def run(self, function: Callable[..., Tensor], *parts: Tensor | None) -> Tensor:
        """Return the output of a network, whose activations are kept or not."""
        if self.checkpoint and torch.is_grad_enabled():
            return recomputed(function, *parts, use_reentrant=False, preserve_rng_state=False)
        return function(*parts)

    def apply_flat(self, function: Callable[..., Tensor], *parts: Tensor | None) -> Tensor:
        """Return the output of a network for tensors with any batch dimensions, which broadcast."""
        n = self.rank
        batch = torch.broadcast_shapes(*(t.shape[:-n] for t in parts if t is not None))
        flat = [
            None if t is None else t.expand(*batch, *t.shape[-n:]).reshape(-1, *t.shape[-n:])
            for t in parts
        ]
        out = self.run(function, *flat)
        return out.reshape(*batch, *out.shape[1:])

    def bottom_up(self, x: Tensor) -> list[Tensor]:
        r"""Return the features :math:`d_1, \dots, d_L` of data with shape :math:`(*, event)`."""
        check_event(x, self.event_shape)
        batch = x.shape[: x.ndim - len(self.event_shape)]
        d, features = self.standard(x), []
        for rung in self.rungs:
            d = self.run(rung.bottom_up, d)
            features.append(d.reshape(*batch, *d.shape[1:]))
        return features

    def standard(self, x: Tensor) -> Tensor:
        """Standardise data, with shape :math:`(B, event)`."""
        return self.standardizer(x.reshape(-1, *self.event_shape).to(self.unit.dtype))

    def laws(self, i: int, h: Tensor | None, d: Tensor | None) -> tuple[Any, Any]:
        """Return the prior of a layer and, given features, its posterior."""
        rung = self.rungs[i]
        prior = (self.unit, self.unit) if h is None else self.split(self.apply_flat(rung.prior, h))
        if d is None:
            return self.normal(prior), None
        statistics = self.split(self.apply_flat(rung.statistics, h, d))
        return self.normal(prior), self.normal(self.merge(prior, statistics))

    def split(self, out: Tensor) -> Moments:
        mean, log_scale = out.chunk(2, -self.rank)
        return mean, LIMIT * torch.tanh(log_scale / LIMIT)

    def normal(self, parts: Moments) -> Any:
        mean, log_scale = parts
        return dist.Normal(mean, log_scale.exp()).to_event(self.rank)

    def walk(self, features: Sequence[Tensor] | None, choose: Choice) -> Any:
        """Return the likelihood at the end of the way down, on which latents are chosen."""
        h = None
        for i in reversed(range(len(self.rungs))):
            p, q = self.laws(i, h, None if features is None else features[i])
            h = self.apply_flat(self.rungs[i].top_down, h, choose(i, p, q))
        return self.given(h)

    def given(self, h: Any) -> Any:
        return self.likelihood(h.flatten(h.ndim - self.rank))

    def encode(self, x: Tensor, context: Tensor | None = None) -> list[Tensor]:
        r"""Draws of the posterior, :math:`z_1, \dots, z_L`, given data with shape
        :math:`(*, event)`."""
        self.check_context(context)
        latents: dict[int, Tensor] = {}

        def choose(i: int, p: Any, q: Any) -> Tensor:
            latents[i] = q.rsample()
            return latents[i]

        self.walk(self.bottom_up(x), choose)
        return [latents[i] for i in range(len(self.rungs))]

    def decode(self, latents: Sequence[Tensor], context: Tensor | None = None) -> Any:
        r"""Return the likelihood :math:`p(x \mid z)` of latents :math:`z_1, \dots, z_L`."""
        self.check_context(context)
        if len(latents) != len(self.rungs):
            raise ValueError(
                f"Expected `latents` of {len(self.rungs)} layers, got {len(latents)} of them."
            )
        h = None
        for rung, z in reversed(list(zip(self.rungs, latents))):
            check_event(z, rung.shape)
            h = self.apply_flat(rung.top_down, h, z)
        return self.given(h)

    def reconstruct(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the mean of the likelihood at the means of the posterior, layer by layer."""
        self.check_context(context)
        return self.walk(self.bottom_up(x), lambda i, p, q: q.mean).mean

    def weigh(
        self,
        x: Tensor,
        context: Tensor | None = None,
        samples: int = 1,
        *,
        analytic: bool = False,
        stopped: bool = False,
        held: bool = False,
    ) -> Weights:
        self.check_context(context)
        top = len(self.rungs) - 1
        latents: list[Tensor] = []
        log_p: Any = []
        log_q: Any = []
        known: list[Tensor] = []

        def choose(i: int, p: Any, q: Any) -> Tensor:
            shape = torch.Size([samples] if i == top else [])
            z = q.sample(shape) if held else q.rsample(shape)
            latents.append(z)
            log_p.append(p.log_prob(z))
            if not stopped:
                log_q.append(q.log_prob(z))
            if analytic:
                kl: Any = divergence(q, p)
                known.append(kl.sum(-1) if i == top else kl.sum(-1).mean(0))
            return z

        fitted = self.walk(self.bottom_up(x), choose).log_prob(x)
        if stopped:
            fixed = {f"part.{name}": p.detach() for name, p in self.named_parameters()}
            log_q = functional_call(HierarchicalPosterior(self), fixed, (x, latents))
        kls = torch.stack(known[::-1], -1) if analytic and not held and not stopped else None
        return Weights(fitted, sum(log_p), sum(log_q), kls, None, tuple(latents[::-1]))

    def draw(self, shape: torch.Size, context: Tensor | None) -> Tensor:
        def choose(i: int, p: Any, q: Any) -> Tensor:
            return p.sample(shape if i == len(self.rungs) - 1 else torch.Size())

        return self.walk(None, choose).sample()

    def pyro_model(
        self, prefix: str, name: str, context: Any, obs: Tensor | None, infer: dict[str, Any]
    ) -> Tensor:
        self.check_context(context)

        def choose(i: int, p: Any, q: Any) -> Tensor:
            return pyro.sample(f"{prefix}z_{i + 1}", p, infer=dict(infer))

        return pyro.sample(name, self.walk(None, choose), obs=obs, infer=dict(infer))

    def pyro_guide(
        self, prefix: str, x: Tensor | None, context: Any, infer: dict[str, Any]
    ) -> None:
        x = check_given(x)
        self.check_context(context)

        def choose(i: int, p: Any, q: Any) -> Tensor:
            return pyro.sample(f"{prefix}z_{i + 1}", q, infer=dict(infer))

        self.walk(self.bottom_up(x), choose)


class HierarchicalPosterior(nn.Module):
    """The log densities of given latents under the posterior of each layer, from the top down."""

    def __init__(self, part: Hierarchy) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, latents: Sequence[Tensor]) -> list[Tensor]:
        # To compute anything again, later, would be to do it with other parameters.
        kept, self.part.checkpoint = self.part.checkpoint, False
        try:
            features, h, log_q = self.part.bottom_up(x), None, []
            for i, z in zip(reversed(range(len(latents))), latents):
                q = self.part.laws(i, h, features[i])[1]
                log_q.append(q.log_prob(z))
                h = self.part.apply_flat(self.part.rungs[i].top_down, h, z)
        finally:
            self.part.checkpoint = kept
        return log_q
