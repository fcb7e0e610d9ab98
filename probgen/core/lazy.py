"""Lazy distributions and transforms: modules that return Pyro objects.

A distribution built once and trained afterwards goes stale: its cache, its base and its batch
shape keep what the parameters were. A lazy one is a module; called, it builds the distribution
that its parameters and a context describe at that moment.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from .checkpoint import Recorded, describe, find_class
from .contracts import HasDensity
from .numerics import is_wrapped
from .plates import Guide, Model, unique_name

__all__ = [
    "Constant",
    "Density",
    "Fixed",
    "LazyDistribution",
    "LazyTransform",
    "as_lazy",
    "as_lazy_transform",
]

Self = TypeVar("Self", bound="Lazy")


class Density(Enum):
    """What the `log_prob` of a distribution is, from the strongest to the weakest."""

    EXACT = "exact"  #: the log density
    ODE = "ode"  #: exact up to the error of an ODE solver
    BOUND = "bound"  #: a stochastic lower bound
    UNNORMALIZED = "unnormalized"  #: up to an unknown constant
    PUSHFORWARD = "pushforward"  #: a sampler only, without a density

    @staticmethod
    def weakest(*parts: Density) -> Density:
        """What a composition of parts has.

        Example:
            >>> Density.weakest(Density.EXACT, Density.BOUND)
            <Density.BOUND: 'bound'>
        """
        order = list(Density)
        return order[max(order.index(part) for part in parts)]


class Lazy(Recorded):
    """What lazy distributions and lazy transforms share."""

    #: The number of features of the context, 0 if there is none.
    context: int = 0
    #: The number of dimensions of one context.
    context_dim: int = 1

    def __init__(self) -> None:
        super().__init__()
        self.name = unique_name(self)

    def __setstate__(self, state: dict[str, Any]) -> None:  # after deepcopy and pickle
        super().__setstate__(state)
        self.name = unique_name(self)

    def freeze(self: Self) -> Self:
        """Turns the parameters' gradients off and the module to evaluation; returns it."""
        return self.requires_grad_(False).eval()

    def check_context(self, context: Tensor | None) -> None:
        """Compares a context with what the module was built for.

        Raises:
            ValueError: If it is missing, superfluous, of the wrong size or not finite (read
                under argument validation).
            TypeError: If its dtype is not that of the parameters.
        """
        kind = type(self).__name__
        if context is not None and not isinstance(context, Tensor):
            raise TypeError(
                f"Expected a tensor as context, got a {type(context).__name__}. Convert it with "
                f"torch.as_tensor."
            )
        if self.context == 0:
            if context is not None:
                raise ValueError(
                    f"Expected no context, since this {kind} was built with context=0, got one "
                    f"with shape {tuple(context.shape)}."
                )
            return
        if context is None:
            raise ValueError(
                f"Expected a context with shape (*, {self.context}), since this {kind} was built "
                f"with context={self.context}, got none."
            )
        if context.ndim == 0 or context.shape[-1] != self.context:
            raise ValueError(
                f"Expected a context with shape (*, {self.context}), got {tuple(context.shape)}."
            )
        p = next(self.parameters(), None)
        if p is not None and p.dtype != context.dtype:
            raise TypeError(
                f"Expected a context of {p.dtype}, the dtype of the parameters, got "
                f"{context.dtype}."
            )
        if p is not None and p.device != context.device:
            raise ValueError(
                f"Expected a context on {p.device}, the device of the parameters, got one on "
                f"{context.device}. Move it with .to({str(p.device)!r})."
            )
        if Distribution._validate_args and context.device.type != "meta":
            if not is_wrapped(context) and not context.isfinite().all():
                raise ValueError("Expected a finite context, got one with nan or inf.")


class LazyTransform(Lazy):
    """A module that, called with an optional context, returns a bijective transform."""

    @abstractmethod
    def forward(self, context: Tensor | None = None) -> Transform:
        """Builds the transform from the current parameters."""

    @property
    def inv(self) -> LazyTransform:
        """The lazy transform of the inverse, which shares the parameters."""
        return LazyInverse(self)

    def start(self, y: Tensor, context: Tensor | None = None) -> None:
        """Sets data-dependent starting values from outputs, with shape :math:`(N, *)`."""

    def start_inverse(self, x: Tensor, context: Tensor | None = None) -> None:
        """Sets data-dependent starting values from inputs, with shape :math:`(N, *)`."""


class LazyInverse(LazyTransform):
    """The inverse of a lazy transform.

    Arguments:
        transform: The lazy transform to invert.
    """

    def __init__(self, transform: LazyTransform) -> None:
        super().__init__()
        self.transform = transform
        self.context, self.context_dim = transform.context, transform.context_dim

    def forward(self, context: Tensor | None = None) -> Transform:
        return self.transform(context).inv

    @property
    def inv(self) -> LazyTransform:
        return self.transform

    def start(self, y: Tensor, context: Tensor | None = None) -> None:
        self.transform.start_inverse(y, context)

    def start_inverse(self, x: Tensor, context: Tensor | None = None) -> None:
        self.transform.start(x, context)


@HasDensity.register
class LazyDistribution(Lazy):
    """A module that, called with an optional context, returns a Pyro distribution."""

    @property
    @abstractmethod
    def density(self) -> Density:
        """What the `log_prob` of the returned distribution is."""

    @property
    @abstractmethod
    def objective(self) -> Callable[..., Tensor]:
        """The default training objective, one of :mod:`probgen.objectives`."""

    @abstractmethod
    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        """Builds the distribution from the current parameters.

        Arguments:
            context: The context, with shape :math:`(*, C)`, if the module takes one.

        Returns:
            A distribution whose `batch_shape` is the context's, without its last dimension.
        """

    def site(
        self, name: str, context: Tensor | None, obs: Tensor | None, infer: dict[str, Any]
    ) -> Tensor:
        """States the distribution inside a Pyro model, in the form in which inference is exact."""
        return pyro.sample(name, self(context), obs=obs, infer=infer)

    def start(self, x: Tensor, context: Tensor | None = None) -> None:
        """Sets data-dependent starting values from data, with shape :math:`(N, *)`."""

    @property
    def model(self) -> nn.Module:
        """The model of a Pyro pair, which `SVI(module.model, module.guide, ...)` trains."""
        return Model(self)

    @property
    def guide(self) -> nn.Module:
        """The guide of a Pyro pair."""
        return Guide(self)


class Constants(Recorded):
    """The tensors of a distribution or transform, as buffers, and how to rebuild it."""

    def __init__(self, thing: Distribution | Transform) -> None:
        super().__init__()
        self.plan = self.store(thing)

    def store(self, value: Any) -> Any:
        if isinstance(value, (Distribution, Transform)):
            name, arguments = describe(value)
            return find_class(name), {k: self.store(v) for k, v in arguments.items()}
        if isinstance(value, Tensor):
            if value.requires_grad:
                raise TypeError(
                    "Expected a distribution or transform without parameters to learn, got a "
                    "tensor that requires a gradient. Use Learned or DiagonalNormal, write a "
                    "LazyDistribution or LazyTransform, or detach the tensor."
                )
            name = f"tensor_{len(self._buffers)}"
            self.register_buffer(name, value.detach().clone())
            return name
        if isinstance(value, (list, tuple)) and any(isinstance(v, Transform) for v in value):
            return [self.store(v) for v in value]
        if value is None or isinstance(value, (bool, int, float, torch.Size)):
            return value
        raise TypeError(
            f"Expected arguments that are tensors, numbers, distributions or transforms, so that "
            f"they can be moved and saved, got a {type(value).__name__}."
        )

    def build(self, plan: Any) -> Any:
        if isinstance(plan, str):
            return self._buffers[plan]
        if isinstance(plan, list):
            return [self.build(p) for p in plan]
        if isinstance(plan, tuple) and plan and isinstance(plan[0], type):
            return plan[0](**{k: self.build(v) for k, v in plan[1].items()})
        return plan

    def forward(self) -> Any:
        return self.build(self.plan)


class Fixed(LazyDistribution):
    """A Pyro distribution as a lazy one, its tensors held in buffers.

    So it moves between devices and dtypes, saves and loads with the rest; it has nothing to
    train, and takes no context.

    Arguments:
        distribution: The distribution.

    Raises:
        TypeError: If the distribution does not keep its constructor's arguments.

    Example:
        >>> import pyro.distributions as dist
        >>> base = Fixed(dist.Normal(torch.zeros(3), 1.0).to_event(1)).double()
        >>> base().sample().dtype
        torch.float64
    """

    density = Density.EXACT

    def __init__(self, distribution: TorchDistribution) -> None:
        super().__init__()
        self.constants = Constants(distribution)
        self.__dict__["_recorded"] = ((self.constants(),), {})  # the user's may change

    @property
    def objective(self) -> Callable[..., Tensor]:
        raise TypeError("A Fixed distribution has nothing to train.")

    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        self.check_context(context)
        return self.constants()


class Constant(LazyTransform):
    """A transform as a lazy one, its tensors held in buffers.

    Arguments:
        transform: The transform, ours or one of Pyro's.

    Raises:
        TypeError: If the transform does not keep its constructor's arguments.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.constants = Constants(transform)
        self.__dict__["_recorded"] = ((self.constants(),), {})

    def forward(self, context: Tensor | None = None) -> Transform:
        return self.constants()


def as_lazy(distribution: LazyDistribution | TorchDistribution) -> LazyDistribution:
    """A lazy distribution as it is, a Pyro distribution wrapped in :class:`Fixed`."""
    if isinstance(distribution, LazyDistribution):
        return distribution
    if isinstance(distribution, Distribution):
        return Fixed(distribution)
    raise TypeError(
        f"Expected a lazy distribution or one of Pyro, got a {type(distribution).__name__}."
    )


def as_lazy_transform(transform: LazyTransform | Transform) -> LazyTransform:
    """A lazy transform as it is, any other wrapped in :class:`Constant`."""
    if isinstance(transform, LazyTransform):
        return transform
    if isinstance(transform, Transform):
        return Constant(transform)
    raise TypeError(f"Expected a transform, lazy or not, got a {type(transform).__name__}.")
