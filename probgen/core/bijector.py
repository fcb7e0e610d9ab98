r"""Bijectors: invertible transforms that give their Jacobian in the same pass.

A bijector :math:`f` maps :math:`x` to :math:`y`. Whoever evaluates a density needs both the
value and :math:`\log |\det J_f(x)|`, and computes most of the second on the way to the first,

.. math:: x \mapsto \bigl( f(x), \, \log |\det J_f(x)| \bigr), \qquad
    y \mapsto \bigl( f^{-1}(y), \, \log |\det J_f(f^{-1}(y))| \bigr).

Each bijector here is a :class:`torch.distributions.Transform`, hence usable alone in any Pyro
``TransformedDistribution``; these two maps are what a subclass writes.
"""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from .arguments import checked, is_own
from .derive import derive, derived
from .validation import check_event

__all__ = ["Bijector", "Elementwise", "Inverse", "call_and_ladj", "detached", "inverse_and_ladj"]

BIJECTORS: dict[str, type[Bijector]] = {}


def name_of(cls: type) -> str:
    """Return name under which a class is saved: short for ours, with its module for a user's."""
    if cls.__module__.split(".")[0] == "probgen":
        return cls.__qualname__
    return f"{cls.__module__}:{cls.__qualname__}"


def broadcast(wide: torch.Size, narrow: torch.Size) -> torch.Size:
    """Return common shape of two, at once where the second ends the first, as it mostly does."""
    if wide[len(wide) - len(narrow) :] == narrow:
        return wide
    return torch.broadcast_shapes(wide, narrow)


class Bijector(Transform):
    r"""An invertible transform of vectors, with shape :math:`(*, D)`.

    A subclass writes :meth:`call_and_ladj` and :meth:`inverse_and_ladj`. One that can be
    learned also writes :meth:`initial`, whose entries are its constructor's tensor arguments.

    Arguments:
        shape: The shape of the parameters, which broadcasts with that of the inputs.
        given: The constructor's tensors by name, where they are not kept as attributes, so that
            the bijector can be saved and moved as a part of a flow.
    """

    domain: constraints.Constraint = constraints.real_vector
    codomain: constraints.Constraint = constraints.real_vector
    bijective = True

    #: The names of the constructor's arguments.
    accepted: ClassVar[frozenset[str]] = frozenset()
    #: Whether the parameters of an element lie along the leading axis, else all along the last.
    leading: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        derive(cls)
        BIJECTORS[name_of(cls)] = cls
        if is_own(cls) and "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__, trusted=True)  # type: ignore[method-assign]
        cls.accepted = frozenset(inspect.signature(cls.__init__).parameters)

    def __init__(self, shape: tuple[int, ...] = (), **given: Tensor) -> None:
        super().__init__()
        self.shape = shape if isinstance(shape, torch.Size) else torch.Size(shape)
        self.given = given

    @classmethod
    @derived
    def initial(cls, features: int, *args: Any, **options: Any) -> dict[str, Tensor]:
        """Return the initial tensor arguments by name; of *one* element if elementwise.

        Raises:
            TypeError: If the transform has nothing to learn.
        """
        raise TypeError(f"{cls.__name__} has no parameters to learn.")

    @classmethod
    def flat(cls, features: int, **options: Any) -> tuple[Tensor, dict[str, torch.Size]]:
        """Return the values of :meth:`initial` as one vector, and their shapes by name."""
        initial = cls.initial(features, **options)
        vector = torch.cat([value.reshape(-1) for value in initial.values()])
        return vector, {name: value.shape for name, value in initial.items()}

    @classmethod
    def settings(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Return options that the constructor takes; the others are sizes, which shapes tell."""
        return {name: value for name, value in options.items() if name in cls.accepted}

    @classmethod
    def from_flat(cls, phi: Tensor, shapes: dict[str, torch.Size], **options: Any) -> Bijector:
        r"""Build the transform from a vector of all its parameters.

        Arguments:
            phi: The unconstrained parameters, with shape :math:`(*, P)`, or :math:`(P, *)` of an
                elementwise transform.
            shapes: The shapes of what :meth:`initial` gives, by name.
            options: What :meth:`initial` and the constructor take besides.
        """
        tensors = split_leading(phi, shapes) if cls.leading else split_last(phi, shapes)
        return cls(**tensors, **(cls.settings(options) if options else {}))  # type: ignore[arg-type]

    @abstractmethod
    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Map :math:`x` to :math:`y = f(x)` and :math:`\log |\det J_f(x)|`."""

    @abstractmethod
    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""Map :math:`y` to :math:`x = f^{-1}(y)` and :math:`\log |\det J_f(x)|`."""

    def widen(self, x: Tensor) -> Tensor:
        """Broadcasts a value to the shape of the parameters."""
        shape = broadcast(x.shape, self.shape)
        return x if shape == x.shape else x.expand(shape)

    def check_features(self, x: Tensor) -> None:
        """Compare a value with the parameters of a transform that is not elementwise."""
        if self.shape and self.domain.event_dim:
            check_event(x, self.shape[-1:])

    @derived
    def _call(self, x: Tensor) -> Tensor:
        self.check_features(x)
        return self.call_and_ladj(x)[0]

    @derived
    def _inverse(self, y: Tensor) -> Tensor:
        self.check_features(y)
        return self.inverse_and_ladj(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        self.check_features(x)
        return self.call_and_ladj(x)[1]

    @property
    def inv(self) -> Bijector:
        return self.transform if isinstance(self, Inverse) else Inverse(self)

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return broadcast(torch.Size(shape), self.shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return broadcast(torch.Size(shape), self.shape)


class Elementwise(Bijector):
    r"""An invertible transform of each element on its own, with any shape.

    Its log-determinant has one entry per element. The parameters of one element lie along the
    *leading* axis, with shape :math:`(P, *)`, so that each is contiguous.
    """

    domain: constraints.Constraint = constraints.real
    codomain: constraints.Constraint = constraints.real

    #: How many numbers represent one element where a network reads it.
    embedding: ClassVar[int] = 1
    leading: ClassVar[bool] = True

    @staticmethod
    @derived
    def embed(x: Tensor) -> Tensor:
        """Embed `x` for a network, from :math:`(D, *)` to :math:`(D E, *)`."""
        return x


def split_last(phi: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Return the parts of vectors, in their shapes, by name."""
    tensors, start = {}, 0
    for name, shape in shapes.items():
        stop = start + shape.numel()
        tensors[name] = phi[..., start:stop].reshape(phi.shape[:-1] + shape)
        start = stop
    return tensors


def split_leading(phi: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Return the parts along the leading axis, by name."""
    if any(shapes.values()):
        parts = phi.split([shape.numel() for shape in shapes.values()])
        parts = [part if shape else part[0] for part, shape in zip(parts, shapes.values())]
    else:
        parts = rows(phi)
    return dict(zip(shapes, parts))


def rows(phi: Tensor) -> list[Tensor]:
    """Return slices along the leading axis, whose gradients are joined in the order of memory."""
    if phi.ndim < 3 or not torch.is_grad_enabled() or phi.is_contiguous():
        return list(phi.unbind())
    order = sorted(range(phi.ndim), key=phi.stride().__getitem__, reverse=True)
    place = order.index(0)
    rest = [axis - 1 for axis in order if axis]
    back = [rest.index(axis) for axis in range(phi.ndim - 1)]
    return [part.permute(back) for part in phi.permute(order).unbind(place)]


class Inverse(Bijector):
    """The inverse of a bijector, itself a bijector.

    Arguments:
        transform: The bijector to invert.

    Example:
        >>> from probgen.transforms import SoftClip
        >>> f = SoftClip(bound=5.0).inv
        >>> round(float(f(torch.tensor(2.5))), 6)
        5.0
    """

    def __init__(self, transform: Bijector) -> None:
        super().__init__(transform.shape)
        self.transform = transform
        self.domain, self.codomain = transform.codomain, transform.domain

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, ladj = self.transform.inverse_and_ladj(x)
        return y, -ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, ladj = self.transform.call_and_ladj(y)
        return x, -ladj


def call_and_ladj(transform: Transform, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value and log-determinant of any transform, in one pass where it can."""
    if isinstance(transform, Bijector):
        return transform.call_and_ladj(x)
    y = transform(x)
    return y, transform.log_abs_det_jacobian(x, y)


def inverse_and_ladj(transform: Transform, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return inverse of any transform and the log-determinant there, in one pass where it can."""
    if isinstance(transform, Bijector):
        return transform.inverse_and_ladj(y)
    x = transform.inv(y)
    return x, transform.log_abs_det_jacobian(x, y)


def detached(thing: Any) -> Any:
    """Detach the tensors of a distribution or transform, so that it can be copied."""
    if isinstance(thing, Tensor):
        return thing if thing.is_leaf else thing.detach()
    if isinstance(thing, (list, tuple)) and not isinstance(thing, torch.Size):
        return type(thing)(detached(v) for v in thing)
    if isinstance(thing, dict):
        return {name: detached(value) for name, value in thing.items()}
    if isinstance(thing, partial):
        return partial(thing.func, *detached(thing.args), **thing.keywords)
    if isinstance(thing, (Distribution, Transform)):
        new = copy.copy(thing)
        if type(thing).__name__ != "_InverseTransform":
            new.__dict__.pop("_inv", None)  # a memo of torch's, which refers back
        new.__dict__.update({k: detached(v) for k, v in vars(new).items()})
        new.__dict__.setdefault("_inv", None)
        return new
    return thing
