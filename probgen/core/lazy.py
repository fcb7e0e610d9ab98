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
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from . import contexts
from .checkpoint import save
from .contexts import ContextShape
from .contracts import HasDensity
from .derive import derived
from .numerics import floating_like
from .pyro_sites import PyroGuide, PyroModel, unique_name
from .registry import register
from .standardize import Standardizer

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Card",
    "DataDependentNetwork",
    "Density",
    "LazyDistribution",
    "LazyTransform",
    "Traits",
    "initialize_part",
    "register_flag",
]


class Density(Enum):
    """What the `log_prob` of a distribution is, from the strongest to the weakest."""

    EXACT = "exact"  #: the log density
    ODE = "ode"  #: exact up to the error of an ODE solver
    BOUND = "bound"  #: a stochastic lower bound
    UNNORMALIZED = "unnormalized"  #: up to an unknown constant
    PUSHFORWARD = "pushforward"  #: a sampler only, without a density

    @staticmethod
    def weakest(*parts: Density) -> Density:
        """Return the card of a composition of parts.

        Example:
            >>> Density.weakest(Density.EXACT, Density.BOUND)
            <Density.BOUND: 'bound'>
        """
        order = list(Density)
        return order[max(order.index(part) for part in parts)]


class Card(NamedTuple):
    """A family in one row of the table of models.

    Arguments:
        training: How it is trained: the default objective, or `"-"` if there is nothing to train.
        likelihood: What its `log_prob` is, a value of :class:`Density`.
        invertible: Whether data map to latents one to one.
        latent: What its latent variables are.
        draw: What a draw costs.
    """

    training: str
    likelihood: str
    invertible: bool
    latent: str
    draw: str


class Traits(NamedTuple):
    """What a family declares for its :class:`Card`."""

    latent: str = "none"
    draw: str = "one pass"
    invertible: bool = False


class Probed:
    """An attribute read off the distribution that a module returns, where it declares none.

    Arguments:
        abstract: Whether a class must declare it, or is given one that is not abstract.
    """

    def __init__(self, abstract: bool = False) -> None:
        self.__isabstractmethod__ = abstract
        self.derived = Probed() if abstract else None

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        if self.derived is not None:
            self.derived.name = name

    def __get__(self, module: Any, owner: type) -> Any:
        return self if module is None else getattr(module.probe(), self.name)


def get_context(self: Any) -> Any:
    """Return the context as `context=` takes it: 0, a number of features, or a shape."""
    shape = self.context_shape
    if shape is None:
        return 0
    return shape[0] if contexts.is_vector(shape) else shape


def set_context(self: Any, context: Any) -> None:
    if self.context_shape is None:
        self.context_shape = contexts.shape_of(context)


def check_context(self: Any, context: Any) -> None:
    """Compare a context with what the module was built for.

    Raises:
        ValueError: If it is missing, superfluous, of the wrong shape or not finite (read under
            argument validation).
        TypeError: If its dtype is not that of the parameters.
    """
    if context is None and self.context_optional:
        return
    like = next(self.parameters(), None)
    contexts.check(context, self.context_shape, type(self).__name__, like)


def flat_context(self: Any, context: Any) -> Any:
    """Check a context, and flatten it to vectors, with shape :math:`(*, C)`."""
    self.check_context(context)
    return None if context is None else contexts.flatten(context, self.context_shape)


def is_initialized(self: Any) -> bool:
    """Whether data-dependent values were set; true where there are none."""
    flag = self._buffers.get("initialized_flag")
    return flag is None or flag.device.type == "meta" or bool(flag)


def initialize(self: Any, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
    r"""Set data-dependent values from weighted data: locations and scales, first parameters.

    :func:`probgen.fit` calls it once, before the first step. Parts that were initialized before
    stay as they are, unless the module itself was: then all but frozen parts are set anew.

    Arguments:
        x: The data, with shape :math:`(N, *event)`.
        context: Their contexts, with batch shape :math:`(N)`, if the module takes them.
        weights: Their weights, with shape :math:`(N)`; equal by default.
    """
    with torch.no_grad():
        if self.initialized:
            reset(self)
        self.set_from_data(x, context, weights)
        flag = self._buffers.get("initialized_flag")
        if flag is not None:
            flag.fill_(True)


def initialize_part(
    part: Any, x: Tensor, context: Any = None, weights: Tensor | None = None
) -> None:
    """Initialize a part of a model, unless that was done before or the part is frozen."""
    if not part.initialized and not is_frozen(part):
        part.initialize(x, context if part.context_shape is not None else None, weights)


def is_frozen(module: nn.Module) -> bool:
    """Whether :meth:`freeze` was called, and no parameter was set free since."""
    frozen = isinstance(module, (LazyDistribution, LazyTransform)) and module.frozen
    return frozen and not any(p.requires_grad for p in module.parameters())


def reset(module: nn.Module) -> None:
    """Forget that data were seen, but in frozen parts."""
    if isinstance(module, Standardizer):
        module.reset()
    flag = module._buffers.get("initialized_flag")
    if flag is not None:
        flag.zero_()
    for part in module.children():
        if not is_frozen(part):
            reset(part)


def register_flag(module: nn.Module) -> None:
    """Add the flag that says whether data-dependent values were set."""
    module.register_buffer("initialized_flag", torch.zeros(1, dtype=torch.bool))


@register
class DataDependentNetwork(nn.Module):
    """A network some of whose values are set from data, once."""

    initialized = property(is_initialized)

    def __init__(self) -> None:
        super().__init__()
        register_flag(self)

    @abstractmethod
    def set_from_data(self, x: Tensor, weights: Tensor | None, *options: Any) -> None:
        """Set values from weighted data, with shape :math:`(N, *event)`."""

    def initialize(self, x: Tensor, weights: Tensor | None = None, *options: Any) -> None:
        """Set values from data, unless that was done before."""
        if not self.initialized:
            with torch.no_grad():
                self.set_from_data(x, weights, *options)
                self._buffers["initialized_flag"].fill_(True)  # type: ignore[union-attr]


@register
class LazyTransform(nn.Module):
    """A module that, called with an optional context, returns a bijective transform.

    Attributes:
        context_shape: The shape of one context, None if it takes none.
    """

    context_shape: ContextShape | None = None
    context_optional: bool = False
    frozen: bool = False
    density: Density = Density.EXACT  #: what a density through it is
    traits: Traits = Traits("as large as the data", "one pass", True)

    context: Any = property(get_context, set_context)
    check_context = check_context
    flat_context = flat_context
    save = save

    def freeze(self) -> Self:
        """Turn the parameters' gradients off and the module to evaluation; return it."""
        self.frozen = True
        return self.requires_grad_(False).eval()

    if TYPE_CHECKING:  # what torch says of every module is that a call gives anything

        def __call__(self, context: Any = None) -> Transform: ...

    @abstractmethod
    def forward(self, context: Any = None) -> Transform:
        """Build the transform from the current parameters."""

    @property
    def inv(self) -> LazyTransform:
        """The lazy transform of the inverse, which shares the parameters."""
        return self.transform if isinstance(self, LazyInverse) else LazyInverse(self)

    @property
    def card(self) -> Card:
        """The row of the table of models."""
        return Card("as part of a flow", self.density.value, *reorder(self.traits))

    @property
    @derived
    def initialized(self) -> bool:
        """Whether data-dependent values were set; true where there are none."""
        return is_initialized(self)

    @derived
    def initialize(
        self, y: Tensor, context: Any = None, weights: Tensor | None = None, inverse: bool = False
    ) -> None:
        """Set data-dependent values, so that outputs are as the data.

        Arguments:
            y: Outputs, with shape :math:`(N, *)`.
            context: Their contexts, with batch shape :math:`(N)`.
            weights: Their weights, with shape :math:`(N)`.
            inverse: Whether `y` are inputs instead.
        """


class LazyInverse(LazyTransform):
    """The inverse of a lazy transform.

    Arguments:
        transform: The lazy transform to invert.
    """

    def __init__(self, transform: LazyTransform) -> None:
        super().__init__()
        self.transform = transform
        self.context_shape = transform.context_shape
        self.density, self.traits = transform.density, transform.traits

    def forward(self, context: Any = None) -> Transform:
        return self.transform(context).inv

    @property
    def initialized(self) -> bool:
        return self.transform.initialized

    def initialize(
        self, y: Tensor, context: Any = None, weights: Tensor | None = None, inverse: bool = False
    ) -> None:
        self.transform.initialize(y, context, weights, not inverse)


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


def reorder(traits: Traits) -> tuple[bool, str, str]:
    return traits.invertible, traits.latent, traits.draw


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
