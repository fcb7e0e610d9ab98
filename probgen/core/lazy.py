"""Lazy distributions and transforms: modules that return Pyro objects.

A distribution built once and trained afterwards goes stale: its cache, its base and its batch
shape keep what the parameters were. A lazy one is a module; called, it builds the distribution
that its parameters and a context describe at that moment.

A subclass defines what is abstract. What follows from that it may define in another way if it is
marked :func:`~probgen.core.derive.derived`; besides, five methods do something by default that a
subclass may replace: here `set_from_data`, which sets nothing, `pyro_model`, which states one site,
and `pyro_guide`, which states none; `at` and `held_out` of
:class:`~probgen.objectives.base.Objective`, which return the same objective. All others are final.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution

from . import contexts
from .cards import Card, Density, Traits, reorder
from .checkpoint import save
from .contexts import ContextShape
from .contracts import HasDensity
from .derive import derived
from .lazy_parts import (
    Probed,
    check_context,
    flat_context,
    get_context,
    initialize,
    initialize_part,
    is_initialized,
    register_flag,
    set_context,
)
from .numerics import floating_like
from .pyro_sites import PyroGuide, PyroModel, unique_name
from .registry import register

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LazyDistribution"]


def shown(distribution: Distribution, *parts: Any) -> str:
    """Write a distribution in one line: what made it, and its shapes.

    Arguments:
        distribution: The distribution.
        parts: The module that made it, or those that it is made of.
    """
    shapes = tuple(distribution.batch_shape), tuple(distribution.event_shape)
    made = [type(part).__name__ for part in parts]
    texts = [*made, f"batch_shape={shapes[0]}", f"event_shape={shapes[1]}"]
    return f"{type(distribution).__name__}({', '.join(texts)})"


@HasDensity.register
@register
class LazyDistribution(nn.Module):
    """A module that, called with an optional context, returns a Pyro distribution.

    Attributes:
        event_shape: The shape of one item.
        support: The support of one item.
        context_shape: The shape of one context, None if it takes none; a tuple or dict of shapes
            for contexts of several tensors.
        context_optional: Whether it may be called without the context that it takes.
    """

    context_shape: ContextShape | None = None
    context_optional: bool = False
    frozen: bool = False
    reparameterized: bool = False  #: whether draws have a derivative
    site_options: ClassVar[dict[str, Any]] = {}  #: what `pyro_model` takes inside another model
    strict_support: bool = True  #: whether validation refuses discrete values out of the support
    traits: Traits = Traits()
    standardizer: Any  #: the location and scale of the data, None if the module keeps none
    context_standardizer: Any  #: those of contexts
    initialized_flag: Tensor
    event_shape: Any = Probed(abstract=True)
    support: Any = Probed(abstract=True)

    context: Any = property(get_context, set_context)
    check_context = check_context
    flat_context = flat_context
    save = save
    initialized = property(is_initialized)
    initialize = initialize

    def __init__(self) -> None:
        super().__init__()
        self.name = unique_name(self)
        self.standardizer, self.context_standardizer = None, None
        if type(self).set_from_data is not LazyDistribution.set_from_data:
            register_flag(self)
        elif type(self).start is not LazyDistribution.start:
            register_flag(self)

    def __setstate__(self, state: dict[str, Any]) -> None:  # after deepcopy and pickle
        super().__setstate__(state)
        self.name = unique_name(self)

    def freeze(self) -> Self:
        """Turn the parameters' gradients off and the module to evaluation; return it."""
        self.frozen = True
        return self.requires_grad_(False).eval()

    if TYPE_CHECKING:

        def __call__(self, context: Any = None) -> TorchDistribution: ...

    @property
    @abstractmethod
    def density(self) -> Density:
        """What the `log_prob` of the returned distribution is."""

    @property
    @abstractmethod
    def objective(self) -> Callable[..., Tensor]:
        """The default training objective, one of :mod:`probgen.objectives`."""

    @abstractmethod
    def forward(self, context: Any = None) -> TorchDistribution:
        """Build the distribution from the current parameters.

        Arguments:
            context: The context, with the shapes of `context_shape` after any batch, if the module
                takes one.

        Returns:
            A distribution whose `batch_shape` is the context's.
        """

    @property
    def card(self) -> Card:
        """The row of the table of models."""
        try:
            training = type(self.objective).__name__
        except AttributeError:
            training = "-"
        return Card(training, self.density.value, *reorder(self.traits))

    def probe(self) -> Any:
        """Return the distribution of a context of zeros, to be asked for shapes and supports."""
        like = floating_like(self)
        with torch.no_grad():
            return self(contexts.zeros(self.context_shape, like))

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        """Set what depends on data; what :meth:`initialize` calls."""
        if type(self).start is not LazyDistribution.start:  # written for version 0.1
            self.start(x, context)

    def start(self, x: Tensor, context: Any = None) -> None:
        """Initialize once, the name of which this was in version 0.1."""
        initialize_part(self, x, context)

    @derived
    def standardized_parts(self, x: Tensor, context: Any) -> list[tuple[Any, Any, str]]:
        """Return the standardisers of data and contexts, each with its input and a name."""
        return [(self.standardizer, x, "data"), (self.context_standardizer, context, "context")]

    def compare(self, x: Tensor, context: Any = None) -> None:
        """Warn if data or contexts are on another scale than those of :meth:`initialize`.

        Warns:
            ScaleWarning: If they are.
        """
        for part, value, name in self.standardized_parts(x, context):
            if part is not None and value is not None:
                part.compare(value, name)

    def pyro_model(
        self, prefix: str, name: str, context: Any, obs: Tensor | None, infer: dict[str, Any]
    ) -> Tensor:
        """State the sites of a model: latents, under names with a prefix, and the data.

        Arguments:
            prefix: What the names of latent sites begin with.
            name: The name of the site of the data.
            context: The contexts, if the module takes them.
            obs: Observed data, if any.
            infer: The `infer` dictionary of the sites.

        Returns:
            The value of the site of the data.
        """
        return pyro.sample(name, self(context), obs=obs, infer=dict(infer))

    def pyro_guide(self, prefix: str, x: Tensor | None, context: Any, infer: dict[str, Any]) -> Any:
        """State the latents as sites of a guide, under the same names, given data."""

    def pyro_site(
        self, name: str, context: Any, obs: Tensor | None, infer: dict[str, Any]
    ) -> Tensor:
        """State the distribution inside a model, in the form in which inference is exact.

        Latents are named as the site, with `_z` and the like.
        """
        return self.pyro_model(f"{name}_", name, context, obs, infer, **self.site_options)

    @property
    def model(self) -> nn.Module:
        """The model of a Pyro pair, which `SVI(module.model, module.guide, ...)` trains."""
        return PyroModel(self)

    @property
    def guide(self) -> nn.Module:
        """The guide of a Pyro pair."""
        return PyroGuide(self)
