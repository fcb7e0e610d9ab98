"""Distributions and transforms of Pyro as lazy ones, their tensors held in buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from .cards import Density
from .lazy import LazyDistribution
from .lazy_transform import LazyTransform
from .registry import describe, find_class, register

__all__ = ["Constant", "Fixed", "as_lazy", "as_lazy_transform"]


@register
class Constants(nn.Module):
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
        raise AttributeError("A Fixed distribution has nothing to train.")

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
    """Return a lazy distribution as it is, a Pyro distribution wrapped in :class:`Fixed`."""
    if isinstance(distribution, LazyDistribution):
        return distribution
    if isinstance(distribution, Distribution):
        return Fixed(distribution)
    raise TypeError(
        f"Expected a lazy distribution or one of Pyro, got a {type(distribution).__name__}."
    )


def as_lazy_transform(transform: LazyTransform | Transform) -> LazyTransform:
    """Return a lazy transform as it is, any other wrapped in :class:`Constant`."""
    if isinstance(transform, LazyTransform):
        return transform
    if isinstance(transform, Transform):
        return Constant(transform)
    raise TypeError(f"Expected a transform, lazy or not, got a {type(transform).__name__}.")
