r"""Contexts: a vector, an image, or a tuple or dict of such, and their shapes.

A context shape describes one context, without its batch: None for no context, a tuple of ints for
one tensor, a tuple of such tuples for several, or a dict of them for several by name. A context has
the structure of its shape, and its leaves are tensors with shape :math:`(*, s_1, \dots, s_k)`,
whose batches :math:`*` broadcast together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from .numerics import is_wrapped

__all__ = [
    "Context",
    "ContextShape",
    "Shape",
    "batch_of",
    "check",
    "entries",
    "expand_context",
    "flatten",
    "flatten_batch",
    "index",
    "is_vector",
    "leaves",
    "map_context",
    "shape_of",
    "size_of",
    "spell",
    "unflatten",
    "zeros",
]

Shape = tuple[int, ...]  #: that of one tensor, without its batch
ContextShape = Shape | tuple[Shape, ...] | dict[str, Shape]
Context = Tensor | tuple[Tensor, ...] | dict[str, Tensor]

C = TypeVar("C", bound="Context | None")


def shape_of(context: int | Sequence[Any] | Mapping[str, Any] | None) -> ContextShape | None:
    """Turn what a user gives as `context` into the shape of one context.

    Arguments:
        context: None or 0 for no context, a number of features, a shape, or a tuple or dict of
            numbers of features and shapes.

    Returns:
        None, a tuple of ints, a tuple of shapes, or a dict of shapes.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is empty, or a size is not positive.

    Example:
        >>> shape_of(0), shape_of(3), shape_of([1, 8, 8])
        (None, (3,), (1, 8, 8))
        >>> shape_of((3, (1, 8, 8)))
        ((3,), (1, 8, 8))
        >>> shape_of({"age": 1, "scan": (1, 8, 8)})
        {'age': (1,), 'scan': (1, 8, 8)}
    """
    if context is None or (is_size(context) and context == 0):
        return None
    if is_size(context):
        return one_shape(context)
    if isinstance(context, Mapping):
        if not context or not all(isinstance(name, str) for name in context):
            raise ValueError(f"Expected `context` with at least one name, got {context!r:.80}.")
        return {name: one_shape(entry) for name, entry in context.items()}
    if isinstance(context, Sequence) and not isinstance(context, str):
        if all(is_size(entry) for entry in context):
            return one_shape(context)
        return tuple(one_shape(entry) for entry in context)
    raise TypeError(
        f"Expected `context` to be a number of features, a shape, or a tuple or dict of shapes, "
        f"got {context!r:.80}."
    )


def is_size(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def one_shape(value: Any) -> Shape:
    sizes = (value,) if is_size(value) else value
    if isinstance(sizes, str) or not isinstance(sizes, Sequence) or not all(map(is_size, sizes)):
        raise TypeError(f"Expected `context` to hold shapes of whole numbers, got {value!r:.80}.")
    if not sizes or min(sizes) < 1:
        raise ValueError(f"Expected `context` with sizes of at least 1, got {value!r:.80}.")
    return tuple(int(size) for size in sizes)


def is_single(shape: ContextShape) -> bool:
    """Whether a context of a shape is one tensor."""
    return isinstance(shape, tuple) and isinstance(shape[0], int)


def is_vector(shape: ContextShape) -> bool:
    """Whether a context of a shape is one vector."""
    return len(shape) == 1 and is_single(shape)


def zeros(shape: ContextShape | None, like: Tensor) -> Any:
    """Make a context of zeros, without a batch, of the dtype and on the device of a tensor.

    Example:
        >>> zeros((3,), torch.ones(()))
        tensor([0., 0., 0.])
    """
    if shape is None:
        return None
    parts = [like.new_zeros(entry) for entry in entries(shape)]
    if isinstance(shape, dict):
        return dict(zip(shape, parts))
    return parts[0] if is_single(shape) else tuple(parts)


def spell(shape: ContextShape | None) -> str:
    """Write a context shape as it is given to a constructor.

    Example:
        >>> spell(None), spell((3,)), spell((1, 8, 8))
        ('0', '3', '(1, 8, 8)')
    """
    if shape is None:
        return "0"
    return str(shape[0] if is_single(shape) and len(shape) == 1 else shape)  # type: ignore[index]


def size_of(shape: ContextShape | None) -> int:
    """Count the numbers of one context.

    Example:
        >>> size_of(None), size_of((3,)), size_of({"age": (1,), "scan": (1, 8, 8)})
        (0, 3, 65)
    """
    if shape is None:
        return 0
    if is_single(shape):
        return math.prod(shape)  # type: ignore[arg-type]
    return sum(math.prod(entry) for entry in entries(shape))


def entries(shape: ContextShape) -> list[Shape]:
    """Return the shapes of the leaves, in order."""
    if isinstance(shape, dict):
        return list(shape.values())
    return [shape] if is_single(shape) else list(shape)  # type: ignore[list-item, arg-type]


def leaves(context: Any, shape: ContextShape) -> list[Tensor]:
    """List the tensors of a context, in the order of its shape.

    Example:
        >>> scan, age = torch.zeros(5, 1, 8, 8), torch.ones(5, 1)
        >>> [tuple(t.shape) for t in leaves((scan, age), ((1, 8, 8), (1,)))]
        [(5, 1, 8, 8), (5, 1)]
    """
    if isinstance(shape, dict):
        return [context[name] for name in shape]
    return [context] if is_single(shape) else list(context)


def map_context(f: Callable[[Tensor], Tensor], context: C) -> C:
    """Apply a function to every tensor of a context; None stays None.

    Example:
        >>> map_context(lambda t: t + 1, {"age": torch.zeros(2)})
        {'age': tensor([1., 1.])}
    """
    if context is None:
        return None  # type: ignore[return-value]
    if isinstance(context, Mapping):
        return {name: f(value) for name, value in context.items()}  # type: ignore[return-value]
    if isinstance(context, (tuple, list)):
        return tuple(f(value) for value in context)  # type: ignore[return-value]
    return f(context)  # type: ignore[return-value]


def index(context: C, rows: Any) -> C:
    """Choose rows of every tensor of a context by anything that indexes a tensor.

    Example:
        >>> index((torch.arange(4), torch.ones(4, 2)), slice(0, 2))
        (tensor([0, 1]), tensor([[1., 1.],
                [1., 1.]]))
    """
    if isinstance(context, Tensor):
        return context[rows]  # type: ignore[return-value]
    return map_context(lambda t: t[rows], context)


def batch_of(context: Any, shape: ContextShape | None) -> torch.Size:
    """Find the batch shape of a context: what the batches of its tensors broadcast to.

    Example:
        >>> batch_of(None, None), batch_of(torch.zeros(5, 3), (3,))
        (torch.Size([]), torch.Size([5]))
        >>> batch_of((torch.zeros(5, 1, 3), torch.zeros(2, 8, 8)), ((3,), (8, 8)))
        torch.Size([5, 2])
    """
    if context is None or shape is None:
        return torch.Size()
    if isinstance(context, Tensor):
        return context.shape[: context.ndim - len(shape)]
    pairs = zip(leaves(context, shape), entries(shape))
    return torch.broadcast_shapes(*(t.shape[: t.ndim - len(entry)] for t, entry in pairs))


def flatten(context: Any, shape: ContextShape) -> Tensor:
    """Concatenate the numbers of a context to vectors.

    Arguments:
        context: The context, with the structure of its shape.
        shape: The context shape.

    Returns:
        The vectors, with shape :math:`(*, C)`, where :math:`C` is :func:`size_of` the shape. A
        context that is a vector is returned as it is.

    Example:
        >>> flatten(torch.zeros(5, 1, 8, 8), (1, 8, 8)).shape
        torch.Size([5, 64])
        >>> flatten((torch.zeros(5, 3), torch.zeros(8, 8)), ((3,), (8, 8))).shape
        torch.Size([5, 67])
    """
    if isinstance(context, Tensor):
        return context if len(shape) == 1 else context.flatten(-len(shape))
    batch = batch_of(context, shape)
    flat = (t.flatten(-len(s)) for t, s in zip(leaves(context, shape), entries(shape)))
    return torch.cat([t.expand(*batch, t.shape[-1]) for t in flat], -1)


def flatten_batch(context: C, shape: ContextShape | None, dims: int) -> C:
    """Flatten the batch of a context, of so many dimensions, to one.

    Example:
        >>> flatten_batch(torch.zeros(5, 2, 3), (3,), 2).shape
        torch.Size([10, 3])
    """
    return map_context(lambda t: t.flatten(0, dims - 1) if dims else t.unsqueeze(0), context)


def unflatten(vector: Tensor, shape: ContextShape) -> Any:
    """Undo :func:`flatten`: cut vectors into the tensors of a context.

    Example:
        >>> scan, age = unflatten(torch.zeros(5, 65), ((8, 8), (1,)))
        >>> scan.shape, age.shape
        (torch.Size([5, 8, 8]), torch.Size([5, 1]))
    """
    shapes = entries(shape)
    parts = vector.split([math.prod(entry) for entry in shapes], -1)
    cut = [part.unflatten(-1, entry) for part, entry in zip(parts, shapes)]
    if isinstance(shape, dict):
        return dict(zip(shape, cut))
    return cut[0] if is_single(shape) else tuple(cut)


def expand_context(context: C, shape: ContextShape | None, batch: Sequence[int]) -> C:
    """Expand every tensor of a context to a batch shape.

    Example:
        >>> expand_context(torch.zeros(3), (3,), (5,)).shape
        torch.Size([5, 3])
        >>> expand_context({"scan": torch.zeros(2, 8, 8)}, {"scan": (8, 8)}, (5, 2))["scan"].shape
        torch.Size([5, 2, 8, 8])
    """
    if context is None or shape is None:
        return context
    if isinstance(context, Tensor):
        return context.expand(*batch, *shape)  # type: ignore[return-value]
    expanded = [t.expand(*batch, *s) for t, s in zip(leaves(context, shape), entries(shape))]
    if isinstance(shape, dict):
        return dict(zip(shape, expanded))  # type: ignore[return-value]
    return tuple(expanded)  # type: ignore[return-value]


def check(context: Any, shape: ContextShape | None, kind: str, like: Tensor | None = None) -> None:
    """Compare a context with the shape that a module was built for.

    Arguments:
        context: The context, or None.
        shape: The context shape.
        kind: What the module is called in the messages.
        like: A parameter of the module, whose dtype and device the context must have.

    Raises:
        ValueError: If it is missing, superfluous, of another shape or structure, on another
            device, or not finite (read under argument validation).
        TypeError: If it is no tensor, tuple or dict of tensors, as the shape says, or its dtype
            is not that of the parameters.

    Example:
        >>> check(torch.zeros(5, 2), (3,), "NSF")
        Traceback (most recent call last):
        ValueError: Expected a context with shape (*, 3), got (5, 2).
    """
    if shape is None:
        if context is not None:
            raise ValueError(
                f"Expected no context, since this {kind} was built with context=0, got "
                f"{describe(context)}."
            )
        return
    if context is None:
        raise ValueError(
            f"Expected {wanted(shape)}, since this {kind} was built with context={spell(shape)}, "
            f"got none."
        )
    if is_single(shape):
        check_leaf(context, shape, "context", like)  # type: ignore[arg-type]
        return
    named = isinstance(shape, dict)
    if not isinstance(context, dict if named else tuple):
        raise TypeError(f"Expected {wanted(shape)}, got {describe(context)}.")
    keys: list[Any] = list(shape if named else range(len(shape)))
    if set(context if named else range(len(context))) != set(keys):
        raise ValueError(f"Expected {wanted(shape)}, got {describe(context)}.")
    for key, t, entry in zip(keys, leaves(context, shape), entries(shape)):
        check_leaf(t, entry, f"context[{key!r}]", like)
    try:
        batch_of(context, shape)
    except RuntimeError:
        raise ValueError(
            f"Expected {wanted(shape)}, of batches that broadcast, got {describe(context)}."
        ) from None


def check_leaf(context: Any, shape: Shape, name: str, like: Tensor | None) -> None:
    if not isinstance(context, Tensor):
        raise TypeError(
            f"Expected a tensor as {name}, got a {type(context).__name__}. Convert it with "
            f"torch.as_tensor."
        )
    if context.ndim < len(shape) or context.shape[context.ndim - len(shape) :] != shape:
        raise ValueError(f"Expected a {name} with {with_shape(shape)}, got {tuple(context.shape)}.")
    if like is not None and like.dtype != context.dtype:
        raise TypeError(
            f"Expected a {name} of {like.dtype}, the dtype of the parameters, got {context.dtype}."
        )
    if like is not None and like.device != context.device:
        raise ValueError(
            f"Expected a {name} on {like.device}, the device of the parameters, got one on "
            f"{context.device}. Move it with .to({str(like.device)!r})."
        )
    if Distribution._validate_args and context.device.type != "meta":
        if not is_wrapped(context) and not context.isfinite().all():
            raise ValueError(f"Expected a finite {name}, got one with nan or inf.")


def with_shape(shape: Shape) -> str:
    return f"shape (*, {', '.join(map(str, shape))})"


def wanted(shape: ContextShape) -> str:
    if is_single(shape):
        return f"a context with {with_shape(shape)}"  # type: ignore[arg-type]
    if isinstance(shape, dict):
        parts = ", ".join(f"{name!r} with {with_shape(entry)}" for name, entry in shape.items())
        return f"a dict of tensors as context, {parts}"
    parts = ", ".join(map(with_shape, shape))  # type: ignore[arg-type]
    return f"a tuple of tensors as context, with {parts}"


def describe(context: Any) -> str:
    """Describe a context for messages."""
    if isinstance(context, Tensor):
        return f"one with shape {tuple(context.shape)}"
    if isinstance(context, Mapping):
        return f"a dict of {', '.join(f'{n!r} ({describe(t)})' for n, t in context.items())}"
    if isinstance(context, (tuple, list)):
        return f"a {type(context).__name__} of {len(context)} ({', '.join(map(describe, context))})"
    return f"a {type(context).__name__}"
