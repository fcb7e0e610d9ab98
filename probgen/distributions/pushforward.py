r"""Pushforwards: deterministic maps of a base.

.. math:: x = g(z, c), \qquad z \sim p(z).

Where :math:`g` is not one-to-one, as a decoder of few latents is not, :math:`x` has no density. In
a model the base is the latent site, and :math:`x` follows from it, so that inference over :math:`z`
is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ..core import Density, LazyDistribution, as_lazy
from ..core.checks import check_whole
from ..core.contracts import MadeBy
from ..networks.dense import along_last

__all__ = ["Pushforward", "PushforwardDistribution"]


class Pushforward(LazyDistribution):
    """A deterministic map of a base distribution, such as a trained decoder.

    References:
        | PriorCVAE: Scalable MCMC Parameter Inference with Bayesian Deep Generative Modelling
        | (Semenova et al., 2023), https://arxiv.org/abs/2304.04307

    Arguments:
        base: The base, lazy or one of Pyro.
        network: The map, from :math:`z` flattened, followed by the context, to :math:`x`: a
            network, or a lazy distribution whose mean is taken.
        context: The number of features :math:`C` of the context.

    Example:
        >>> import probgen as pg
        >>> vae = pg.models.ConditionalVAE(8, context=1, latent=2, hidden_features=(16,))
        >>> prior = vae.pushforward  # its decoder's mean
        >>> prior(torch.zeros(1)).sample((5,)).shape
        torch.Size([5, 8])
    """

    density = Density.PUSHFORWARD

    def __init__(
        self,
        base: LazyDistribution | TorchDistribution,
        network: nn.Module,
        context: int = 0,
    ) -> None:
        super().__init__()
        check_whole(0, context=context)
        self.base, self.network, self.context = as_lazy(base), network, context
        if not self.base.context and self.base().batch_shape:
            raise ValueError(
                f"Expected a `base` of one value, got the batch shape "
                f"{tuple(self.base().batch_shape)}. Declare it an event by .to_event."
            )
        if self.base.context:
            raise ValueError(
                f"Expected a `base` without context, got one of {self.base.context} features."
            )

    @property
    def objective(self) -> Callable[..., Tensor]:
        raise TypeError(
            "Expected a distribution with a density to train, got a Pushforward. Train the model "
            "whose map it is."
        )

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Maps values of the base, with shape :math:`(*, base)`, and contexts to data."""
        event = len(self.base().event_shape)
        flat = z.reshape(*z.shape[: z.ndim - event], -1)
        if context is not None:
            shape = torch.broadcast_shapes(flat.shape[:-1], context.shape[:-1])
            flat = torch.cat([flat.expand(*shape, -1), context.expand(*shape, -1)], -1)
        if isinstance(self.network, LazyDistribution):
            return self.network(flat).mean
        return along_last(self.network, flat)

    def forward(self, context: Tensor | None = None) -> PushforwardDistribution:
        self.check_context(context)
        return PushforwardDistribution(self, context)

    def site(
        self, name: str, context: Tensor | None, obs: Tensor | None, infer: dict[str, Any]
    ) -> Tensor:
        """States the base's site, named as the site with `_base`, and what follows from it."""
        return state_pushed(self, name, context, obs, infer)


def state_pushed(
    module: Any, name: str, context: Tensor | None, obs: Tensor | None, infer: dict[str, Any]
) -> Tensor:
    """States the site of a base and what a map makes of it."""
    if obs is not None:
        raise ValueError(
            f"Expected no observed value at {name!r}, since a {type(module).__name__} has no "
            f"density. Observe a site with noise, given its value."
        )
    module.check_context(context)
    z = pyro.sample(f"{name}_base", module.base(), infer=infer)
    return pyro.deterministic(name, module.push(z, context))


@MadeBy.register
class PushforwardDistribution(TorchDistribution):
    """The distribution of a deterministic map of a base: it draws, and has no density.

    Arguments:
        module: The map and its base; if it says its `event_shape` and `support`, they are those.
        context: The contexts, with shape :math:`(*, C)`, if the map takes them.
        batch_shape: The batch shape; by default the contexts'.
        validate_args: Whether to check arguments; by default as Pyro is set.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    density = Density.PUSHFORWARD

    def __init__(
        self,
        module: Any,
        context: Tensor | None,
        batch_shape: torch.Size | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.module, self.context = module, context
        base = module.base()
        self.has_rsample = base.has_rsample
        if batch_shape is None:
            batch_shape = torch.Size() if context is None else context.shape[:-1]
        event = getattr(module, "event_shape", None)
        if event is None:
            with torch.no_grad():
                one = None if context is None else context.reshape(-1, module.context)[:1]
                event = module.push(base.sample(torch.Size([1])), one).shape[1:]
        super().__init__(batch_shape, event, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        unknown = constraints.dependent(is_discrete=False, event_dim=1)
        return getattr(self.module, "support", unknown)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> TorchDistribution:
        batch = torch.Size(batch_shape)
        context = None if self.context is None else self.context.expand(*batch, -1)
        return PushforwardDistribution(self.module, context, batch)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        base = self.module.base()
        z = base.rsample(shape) if self.has_rsample else base.sample(shape)
        return self.module.push(z, self.context)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError(
            "Expected a distribution with a density, got a Pushforward, a deterministic map of a "
            "base. State it by pg.sample, which makes the base the latent site."
        )
