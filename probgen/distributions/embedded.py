r"""Embedding networks for the contexts of any family.

.. math:: p(x \mid c) = q(x \mid e_\theta(c)),

where :math:`q` is a distribution given a vector, and the network :math:`e_\theta` makes one of an
image, a set, a series or of several such. Both learn together, under the objective of :math:`q`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..core import Density, LazyDistribution, initialize_part
from ..core.contexts import batch_of, entries, leaves, shape_of, zeros
from ..core.standardize import ContextStandardizer

__all__ = ["Embedded"]


class Embedded(LazyDistribution):
    r"""A distribution whose contexts a network embeds first.

    Contexts are standardised before they reach the network: a vector by features, an image as a
    whole. Every objective of the inner distribution trains both.

    Arguments:
        distribution: The lazy distribution of data given an embedding.
        network: The network, from contexts with one batch dimension to embeddings, with shape
            :math:`(B, C)`. Called with one tensor, or, for contexts of several, with each as an
            argument, by name if they have names.
        context_shape: The shape of one context, such as `(1, 28, 28)`, or a tuple or dict of
            shapes.

    Raises:
        TypeError: If `distribution` is not lazy.
        ValueError: If it takes no context, or the network does not return its contexts.

    References:
        | BayesFlow: Learning complex stochastic models with invertible neural networks (Radev et
          al., 2020), https://arxiv.org/abs/2003.06281

    Example:
        >>> import probgen as pg
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        >>> flow = Embedded(pg.models.NSF(2, context=4), network, context_shape=(1, 8, 8))
        >>> flow(torch.randn(5, 1, 8, 8)).sample((3,)).shape
        torch.Size([3, 5, 2])
    """

    site_options = {"site": True}

    def __init__(
        self, distribution: LazyDistribution, network: nn.Module, context_shape: Any
    ) -> None:
        super().__init__()
        if not isinstance(distribution, LazyDistribution):
            raise TypeError(f"Expected a lazy `distribution`, got a {type(distribution).__name__}.")
        self.context_shape = shape_of(context_shape)
        if self.context_shape is None or distribution.context_shape is None:
            raise ValueError(
                f"Expected a `context_shape`, and a `distribution` that takes a context, got "
                f"{context_shape!r:.80} and context={distribution.context}."
            )
        self.distribution, self.network = distribution, network
        self.traits = distribution.traits
        self.context_standardizer = ContextStandardizer(self.context_shape)
        self.check_network()

    def check_network(self) -> None:
        """Check that the network returns contexts of the distribution."""
        like = next(self.parameters(), torch.zeros(()))
        with torch.no_grad():
            found = self.embed(zeros(self.context_shape, like))
        if found.shape != self.distribution.context_shape:
            raise ValueError(
                f"Expected a `network` to embeddings with shape (B, {self.distribution.context}), "
                f"the context of the distribution, got {(1, *found.shape)}."
            )

    def embed(self, context: Any) -> Tensor:
        """Embed contexts with any batch to the contexts of the inner distribution."""
        self.check_context(context)
        shape: Any = self.context_shape
        batch = batch_of(context, shape)
        flat = [
            leaf.expand(*batch, *entry).reshape(-1, *entry)
            for leaf, entry in zip(
                leaves(self.context_standardizer(context), shape), entries(shape)
            )
        ]
        named = isinstance(shape, dict)
        out = self.network(**dict(zip(shape, flat))) if named else self.network(*flat)
        return out.reshape(*batch, *out.shape[1:])

    @property
    def event_shape(self) -> torch.Size:
        return self.distribution.event_shape

    @property
    def support(self) -> constraints.Constraint:
        return self.distribution.support

    @property
    def density(self) -> Density:
        return self.distribution.density

    @property
    def objective(self) -> Callable[..., Tensor]:
        return self.distribution.objective

    def forward(self, context: Any = None) -> Any:
        return self.distribution(self.embed(context))

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        self.context_standardizer.fit(context, weights)
        initialize_part(self.distribution, x, self.embed(context), weights)

    def standardized_parts(self, x: Tensor, context: Any) -> list[tuple[Any, Any, str]]:
        own = (self.context_standardizer, context, "context")
        return [own, *self.distribution.standardized_parts(x, self.embed(context))]

    def pyro_model(
        self,
        prefix: str,
        name: str,
        context: Any,
        obs: Tensor | None,
        infer: dict[str, Any],
        site: bool = False,
    ) -> Tensor:
        context = self.embed(context)
        if site:
            return self.distribution.pyro_site(name, context, obs, infer)
        return self.distribution.pyro_model(prefix, name, context, obs, infer)

    def pyro_guide(self, prefix: str, x: Tensor | None, context: Any, infer: dict[str, Any]) -> Any:
        return self.distribution.pyro_guide(prefix, x, self.embed(context), infer)
