r"""Pushforwards: deterministic maps of a base.

.. math:: x = g(z, c), \qquad z \sim p(z).

Where :math:`g` is not one-to-one, as a decoder of few latents is not, :math:`x` has no density. In
a model the base is the latent site, and :math:`x` follows from it, so that inference over :math:`z`
is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ...core import Density, LazyDistribution, as_lazy
from ...core.cards import Traits
from ...core.contexts import flatten, zeros
from ...networks.dense import along_last
from ..module_distribution import ModuleDistribution
from ..supports import is_real

__all__ = ["Pushforward"]


class Pushforward(LazyDistribution):
    """A deterministic map of a base distribution, such as a trained decoder.

    References:
        | PriorCVAE: Scalable MCMC Parameter Inference with Bayesian Deep Generative Modelling
        | (Semenova et al., 2023), https://arxiv.org/abs/2304.04307

    Arguments:
        base: The base, lazy or one of Pyro.
        network: The map, from :math:`z` flattened, followed by the context, to :math:`x`: a
            network, or a lazy distribution whose mean is taken.
        context: The number of features :math:`C` of the context, or its shape.

    Example:
        >>> import probgen as pg
        >>> vae = pg.models.ConditionalVAE(8, context=1, latent=2, hidden_features=(16,))
        >>> prior = vae.pushforward  # its decoder's mean
        >>> prior(torch.zeros(1)).sample((5,)).shape
        torch.Size([5, 8])
    """

    density = Density.PUSHFORWARD
    traits = Traits("the base's", "one pass")

    def __init__(
        self,
        base: LazyDistribution | TorchDistribution,
        network: nn.Module,
        context: Any = 0,
    ) -> None:
        super().__init__()
        self.base, self.network, self.context = as_lazy(base), network, context
        if self.base.context_shape is not None:
            raise ValueError(
                f"Expected a `base` without context, got one with context={self.base.context}."
            )
        if self.base().batch_shape:
            raise ValueError(
                f"Expected a `base` of one value, got the batch shape "
                f"{tuple(self.base().batch_shape)}. Declare it an event by .to_event."
            )
        self.event_shape = self.find_event_shape()
        self.reparameterized = self.base().has_rsample

    def find_event_shape(self) -> torch.Size:
        """Return the shape of what the map makes of one value."""
        like = next(self.parameters(), torch.zeros(()))
        with torch.no_grad():
            z = self.base().sample(torch.Size([1]))
            return self.push(z, zeros(self.context_shape, like)).shape[1:]

    @property
    def objective(self) -> Callable[..., Tensor]:
        raise AttributeError("A Pushforward has no density to train. Train the model of its map.")

    @property
    def support(self) -> constraints.Constraint:
        if isinstance(self.network, LazyDistribution) and is_real(self.network.support):
            return self.network.support
        return constraints.dependent(is_discrete=False, event_dim=len(self.event_shape))

    def push(self, z: Tensor, context: Any = None) -> Tensor:
        """Map values of the base, with shape :math:`(*, base)`, and contexts to data."""
        event = len(self.base().event_shape)
        flat = z.reshape(*z.shape[: z.ndim - event], -1)
        if context is not None:
            given = flatten(context, self.context_shape)  # type: ignore[arg-type]
            shape = torch.broadcast_shapes(flat.shape[:-1], given.shape[:-1])
            flat = torch.cat([flat.expand(*shape, -1), given.expand(*shape, -1)], -1)
        if isinstance(self.network, LazyDistribution):
            return self.network(flat).mean
        return along_last(self.network, flat)

    def forward(self, context: Any = None) -> ModuleDistribution:
        self.check_context(context)
        return ModuleDistribution(self, context)

    def draw(self, shape: torch.Size, context: Any) -> Tensor:
        return draw_pushed(self, shape, context)

    def log_prob(self, x: Tensor, context: Any = None) -> Tensor:
        raise NotImplementedError(NO_DENSITY)

    def pyro_model(
        self, prefix: str, name: str, context: Any, obs: Tensor | None, infer: dict[str, Any]
    ) -> Tensor:
        """State the base's site, named `base` after the prefix, and what follows from it."""
        return state_pushed(self, prefix, name, context, obs, infer)


NO_DENSITY = (
    "Expected a distribution with a density, got a deterministic map of a base. State it by "
    "pg.sample, which makes the base the latent site."
)


def draw_pushed(module: Any, shape: torch.Size, context: Any) -> Tensor:
    """Draws of a base, with their derivative if it has one, as a map moves them."""
    base = module.base()
    z = base.rsample(shape) if base.has_rsample else base.sample(shape)
    return module.push(z, context)


def state_pushed(
    module: Any,
    prefix: str,
    name: str,
    context: Any,
    obs: Tensor | None,
    infer: dict[str, Any],
) -> Tensor:
    """State the site of a base and what a map makes of it."""
    if obs is not None:
        raise ValueError(
            f"Expected no observed value at {name!r}, since a {type(module).__name__} has no "
            f"density. Observe a site with noise, given its value."
        )
    module.check_context(context)
    z = pyro.sample(f"{prefix}base", module.base(), infer=dict(infer))
    value = module.push(z, context)
    return pyro.deterministic(name, value, event_dim=len(module.event_shape))
