"""Comparison of the arguments of a public class or function with their annotations.

What a constructor says of its own arguments comes first. Where it says nothing, or fails with an
error of torch or Python, the first argument that is not of its annotated type is named.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["checked", "record"]

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**options):  # of Python 3.11, for type checkers alone
        return lambda function: function


P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
EMPTY = inspect.Parameter.empty
WIDER = {TorchDistribution: Distribution}  # Pyro's own Normal is no TorchDistribution
WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}
NAMED = (TypeError, ValueError)
FOREIGN = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError)


def checked(function: Callable[P, R], trusted: bool = False) -> Callable[P, R]:
    """Give a function or constructor errors that name the argument at fault.

    Arguments:
        function: The function, whose parameters are annotated.
        trusted: Whether arguments are compared only after an error, since calls are many.

    Returns:
        A function that does the same. It raises a TypeError for an argument that is not of its
        annotated type, and a ValueError for nan where a number is expected. A constructor raises
        a ValueError for arguments of which torch or Python says that they do not fit together.

    Example:
        >>> @checked
        ... def double(x: float) -> float:
        ...     return x + x
        >>> double("a")
        Traceback (most recent call last):
            ...
        TypeError: Expected `x` to be a number, got 'a'.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            found = function(*args, **kwargs)
        except (*NAMED, *FOREIGN) as error:
            explain(function, args, kwargs, error)
            raise
        if not trusted:
            compare(function, args, kwargs)
        return found

    return call


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make a frozen dataclass whose constructor's errors name the argument at fault."""
    made: Any = dataclass(frozen=True)(cls)
    made.__init__ = checked(made.__init__)
    return made


def is_own(cls: type) -> bool:
    """Whether a class is one of this package, of which every argument is annotated."""
    return cls.__module__.split(".")[0] == "probgen"


@functools.cache
def annotations_of(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Any]]:
    """Return signature of a function, and the types of its parameters as far as they are known."""
    signature = inspect.signature(function)
    names = inspect.unwrap(function).__globals__
    found = {}
    for name, parameter in signature.parameters.items():
        kind = parameter.annotation
        if isinstance(kind, str):
            try:
                kind = eval(kind, names)  # as `typing.get_type_hints`, but one by one
            except (NameError, TypeError):
                continue  # a name for type checkers only
        if kind is not EMPTY and name != "self":
            found[name] = kind
    return signature, found


def compare(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
    """Raise a TypeError or ValueError that names the first argument of a wrong type, or nan."""
    signature, kinds = annotations_of(function)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return  # Python says what is missing or unknown
    for name, value in given.items():
        if name not in kinds or value is signature.parameters[name].default:
            continue
        several = signature.parameters[name].kind
        if several is inspect.Parameter.VAR_KEYWORD:
            continue
        for v in value if several is inspect.Parameter.VAR_POSITIONAL else (value,):
            if not admits(kinds[name], v):
                raise TypeError(f"Expected `{name}` to be {phrase(kinds[name])}, got {v!r:.80}.")
            if is_nan(v):
                raise ValueError(f"Expected `{name}` to be {phrase(kinds[name])}, got {v!r:.80}.")


def explain(
    function: Callable[..., Any], args: Any, kwargs: dict[str, Any], error: Exception
) -> None:
    """Raise an error that names the argument at fault, unless this one does."""
    signature, _ = annotations_of(function)
    try:
        given = dict(signature.bind(*args, **kwargs).arguments)
    except TypeError:
        return
    given.pop("self", None)
    try:
        compare(function, args, kwargs)
    except NAMED as better:
        name = str(better).split("`")[1]
        if isinstance(error, NAMED) and name in str(error):
            return
        raise better from error
    if isinstance(error, NAMED) and any(name in str(error) for name in given):
        return
    if function.__name__ == "__init__" and not isinstance(error, torch.OutOfMemoryError):
        kind = type(error) if isinstance(error, NAMED) else ValueError
        shown = ", ".join(f"{name}={value!r:.80}" for name, value in given.items())
        name = function.__qualname__.split(".")[0]
        raise kind(
            f"Expected arguments of {name} that fit together, got {shown}: {error!s:.400}"
        ) from error


def is_nan(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(is_nan, value))
    return isinstance(value, Real) and not isinstance(value, Integral) and math.isnan(value)


def admits(kind: Any, value: Any) -> bool:
    """Whether a value is of an annotated type, as far as that can be told without using it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(admits(k, value) for k in inner)
    if kind is Any:
        return True
    if origin is Literal:
        return any(value is i or (type(value) is type(i) and value == i) for i in inner)
    if kind is None or kind is types.NoneType:
        return value is None
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))
    if kind is float:
        number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
        return number or (isinstance(value, Tensor) and value.ndim == 0)
    if kind is bool:
        return isinstance(value, (bool, np.bool_))
    if origin is Callable or kind is Callable or origin is type:
        return callable(value)
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return (
            isinstance(value, Sequence)
            and len(value) == len(inner)
            and all(map(admits, inner, value))
        )
    if isinstance(origin, type) and issubclass(origin, (Sequence, Collection)):
        if isinstance(value, str) or not isinstance(value, Collection):
            return False
        if issubclass(origin, Mapping):
            return isinstance(value, Mapping)
        return not isinstance(value, Sequence) or all(admits(inner[0], v) for v in value)
    if isinstance(origin or kind, type) and not getattr(kind, "_is_protocol", False):
        return isinstance(value, WIDER.get(kind, origin or kind))
    return True


def phrase(kind: Any, several: bool = False) -> str:
    """Return an annotated type in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(phrase(k, several) for k in inner)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if kind in WORDS:
        return WORDS[kind].removeprefix("a ") + "s" if several else WORDS[kind]
    if kind is None or kind is types.NoneType:
        return "None"
    if origin is type:
        return "classes" if several else "a class"
    if origin is Callable or kind is Callable:
        return "functions" if several else "a function"
    if isinstance(origin, type) and issubclass(origin, Sequence) and inner:
        return f"{'sequences' if several else 'a sequence'} of {phrase(inner[0], True)}"
    name = getattr(origin or kind, "__name__", str(kind))
    if several:
        return f"{name}s"
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
