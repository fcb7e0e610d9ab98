"""Members that follow from others, given to classes that do not define them.

A base class marks such a member :func:`derived`. It is abstract there, and each class that has
defined all else is given it, as :func:`functools.total_ordering` gives comparisons. So no class
overrides what another one does: a member is abstract, derived or final.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["derive", "derived", "is_abstract"]

F = TypeVar("F", bound=Callable[..., Any])


def derived(function: F) -> F:
    """Mark a method that a class is given unless it defines it.

    Arguments:
        function: The method; that of a property, class or static method is marked first.

    Returns:
        The method as an abstract one.

    Example:
        >>> class Shape:
        ...     def __init_subclass__(cls):
        ...         derive(cls)
        ...     @property
        ...     @derived
        ...     def corners(self):
        ...         return 4
        >>> class Square(Shape):
        ...     pass
        >>> "corners" in vars(Square), Square().corners
        (True, 4)
    """

    @functools.wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    marked.__isabstractmethod__ = True  # type: ignore[attr-defined]
    marked.derived = function  # type: ignore[attr-defined]
    return marked  # type: ignore[return-value]


def derive(cls: type) -> frozenset[str]:
    """Give a class the derived members that it does not define, if that is all it lacks.

    Arguments:
        cls: The class.

    Returns:
        The names of the abstract members that it still has to define.
    """
    names = {n for base in cls.__mro__ for n, v in vars(base).items() if is_abstract(v)}
    found = {name: inspect.getattr_static(cls, name) for name in names}
    left = {name: value for name, value in found.items() if is_abstract(value)}
    given = {name: plain for name, value in left.items() if (plain := derivation(value))}
    if len(given) == len(left):
        for name, plain in given.items():
            setattr(cls, name, plain)
    return frozenset(left) - frozenset(given)


def derivation(value: Any) -> Any:
    """Return what replaces an abstract member of a class, or None if it must define one."""
    kind = type(value)
    if kind is property:
        inner = value.fget
    elif kind in (classmethod, staticmethod):
        inner = value.__func__
    else:
        return getattr(value, "derived", None)
    plain = getattr(inner, "derived", None)
    return None if plain is None else kind(plain)


def is_abstract(value: Any) -> bool:
    return bool(getattr(value, "__isabstractmethod__", False))
