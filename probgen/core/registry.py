"""The classes that can be saved, by name, and what their instances were built with.

A checkpoint names classes, and loading looks them up here: nothing else is called. A registered
class records the arguments of its constructor; those of a layer of torch, or of a distribution or
transform of Pyro, are read from its attributes.
"""

from __future__ import annotations

import copy
import functools
import inspect
from abc import ABC
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import pyro.distributions.transforms
import torch
from torch import nn
from torch.distributions import Distribution, Transform

from .arguments import checked, is_own
from .bijector import BIJECTORS, Bijector, name_of
from .derive import derive

__all__ = ["MODULES", "RECORDS", "Record", "describe", "find_class", "register"]

MODULES: dict[str, type[nn.Module]] = {}
RECORDS: dict[str, type] = {}  # frozen dataclasses that modules take as arguments, such as kernels
ALIASES = {  # constructor arguments that a class of torch keeps under another name
    "base_distribution": "base_dist",
    "mixture_distribution": "_mixture_distribution",
    "component_distribution": "_component_distribution",
}
PYRO = "pyro.nn.module"  # where Pyro makes classes of ours and torch's, such as `PyroModule[NSF]`

T = TypeVar("T")


class Record(ABC):  # noqa: B024
    """A base of frozen dataclasses that modules take as arguments, such as kernels."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        RECORDS[name_of(cls)] = cls


def register(thing: T, name: str | None = None) -> T:
    """Register a class of modules, so that modules that hold one can be saved and loaded.

    Written above a class, it records the arguments that instances are built with. Subclasses of a
    registered class are registered by being defined. A class of another package is registered by a
    plain call, `pg.register(Net)`, before it is built. Frozen dataclasses that modules take as
    arguments are registered in the same way.

    A module whose arguments cannot be recorded, such as one that a function of another package
    has built, is registered itself, `pg.register(net)`: then its weights are saved, and
    :func:`probgen.load` is told how to build it, `pg.load(path, modules={"Net": build})`.

    Arguments:
        thing: The class, or the module.
        name: The name by which `pg.load` asks for a module; by default that of its class.

    Returns:
        The same class or module.

    Raises:
        TypeError: If it is no class of modules, no dataclass and no module.

    Example:
        >>> import probgen as pg
        >>> @pg.register
        ... class Net(torch.nn.Module):
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(2, width)
        ...
        ...     def forward(self, x):
        ...         return self.layer(x).square().sum(-1)
        >>> energy = pg.distributions.Energy(Net(8), 2)  # which can be saved
    """
    if isinstance(thing, nn.Module):
        thing.__dict__["_given"] = name or type(thing).__qualname__
    elif isinstance(thing, type) and issubclass(thing, nn.Module) and name is None:
        if not any(vars(base).get("_registers") for base in thing.__mro__[1:]):
            add_methods(thing)
        enter(thing)
    elif isinstance(thing, type) and (is_dataclass(thing) or fields_of(thing)) and name is None:
        RECORDS[name_of(thing)] = thing
    else:
        raise TypeError(
            f"Expected a class of modules or a module to register, got {thing!r:.80}. A function "
            f"is registered as the `forward` of a class of modules."
        )
    return thing


def add_methods(cls: Any) -> None:
    """Add methods by which a class and its subclasses are copied, pickled and registered."""
    own = vars(cls).get("__init_subclass__")

    def init_subclass(sub: type, **kwargs: Any) -> None:
        if own is None:
            super(cls, sub).__init_subclass__(**kwargs)
        else:
            own.__func__(sub, **kwargs)
        enter(sub)

    methods = {"__getstate__": get_state, "__deepcopy__": deep_copy}
    for name, method in methods.items():
        if not any(name in vars(b) for b in cls.__mro__ if b not in (object, nn.Module)):
            setattr(cls, name, method)
    cls.__init_subclass__ = classmethod(init_subclass)
    cls._registers = True


def enter(cls: type) -> None:
    """Enters a class in the registry; one with abstract methods left cannot be built.

    Any other is given the members that it leaves to be derived.
    """
    if cls.__module__ == PYRO:
        return
    MODULES[name_of(cls)] = cls
    if left := derive(cls):
        cls.__abstractmethods__ = left  # type: ignore[attr-defined]  # which `object` looks at
    init: Callable[..., None] = cls.__init__  # type: ignore[misc]
    if getattr(init, "records", False):
        return

    if is_own(cls):
        init = checked(init)

    @functools.wraps(init)
    def recorded(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        if "_recorded" not in self.__dict__:  # not by the constructor of a subclass
            self.__dict__["_recorded"] = (args, kwargs)
        init(self, *args, **kwargs)

    recorded.records = True  # type: ignore[attr-defined]
    cls.__init__ = recorded  # type: ignore[misc]


def get_state(self: nn.Module) -> dict[str, Any]:
    for p in self.parameters():  # Pyro's store leaves a weak reference, which no pickle takes
        p.__dict__.pop("unconstrained", None)
    return dict(self.__dict__)


def deep_copy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    new = object.__new__(type(self))
    memo[id(self)] = new
    new.__setstate__(copy.deepcopy(dict(self.__dict__), memo))  # the parameters stay as they are
    return new


def kind_of(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module, without what Pyro has mixed into it."""
    cls = type(module)
    while cls.__module__ == PYRO and len(cls.__bases__) > 1:
        cls = cls.__bases__[0]
    return cls


def is_registered(module: nn.Module) -> bool:
    cls = kind_of(module)
    return MODULES.get(name_of(cls)) is cls and "_recorded" in module.__dict__


def is_torch(cls: type) -> bool:
    """Whether a class is one of torch's own layers and containers."""
    own = cls.__module__.startswith("torch.nn.modules.")
    return own and getattr(nn, cls.__name__, None) is cls


def fields_of(value: Any) -> tuple[str, ...]:
    """Return the names of the fields of a dataclass or named tuple, or of its class."""
    if is_dataclass(value):
        return tuple(f.name for f in fields(value) if f.init)
    return tuple(getattr(value, "_fields", ())) if named_tuple(value) else ()


def named_tuple(value: Any) -> bool:
    cls = value if isinstance(value, type) else type(value)
    return issubclass(cls, tuple) and "_fields" in vars(cls)


def layer_arguments(module: nn.Module) -> dict[str, Any]:
    """Return the constructor's arguments of a layer of torch, read from its attributes."""
    cls, found = kind_of(module), {}
    recurrent = issubclass(cls, nn.RNNBase)
    for name in inspect.signature(nn.RNNBase if recurrent else cls).parameters:
        if name in vars(module) and not (recurrent and name == "mode"):
            found[name] = vars(module)[name]
        elif name in module._parameters:
            found[name] = module._parameters[name] is not None
    return found


def describe(thing: Distribution | Transform) -> tuple[str, dict[str, Any]]:
    """Return the class and constructor arguments of a distribution or transform.

    Raises:
        TypeError: If the class does not keep its constructor's arguments where they can be read.
    """
    cls = type(thing)
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name in ("self", "validate_args", "cache_size") or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            continue
        if isinstance(thing, Bijector) and name in thing.given:
            arguments[name] = thing.given[name]
            continue
        key = ALIASES.get(name, name)
        if parameter.default is None and key not in thing.__dict__:
            continue  # one of several parameterisations, not the one in use
        try:
            arguments[name] = getattr(thing, key)
        except AttributeError:
            raise TypeError(
                f"Expected a {cls.__name__} that keeps its argument `{name}`, so that it can be "
                f"moved and saved. Write a LazyDistribution or LazyTransform instead."
            ) from None
    if "probs" in arguments and "logits" in arguments:
        del arguments["probs"]
    takes = inspect.signature(cls.__init__).parameters
    if "logits" in takes and not {"probs", "logits"} & arguments.keys():
        arguments["logits"] = thing.logits  # type: ignore[union-attr]  # kept in a part
    if "validate_args" in takes and "_validate_args" in vars(thing):
        arguments["validate_args"] = vars(thing)["_validate_args"]
    if isinstance(thing, torch.distributions.MultivariateNormal):
        for name in ("covariance_matrix", "precision_matrix", "scale_tril"):
            arguments.pop(name, None)
        arguments["scale_tril"] = thing.scale_tril
    return find_name(cls), arguments


def find_name(cls: type) -> str:
    name = name_of(cls) if issubclass(cls, Bijector) else cls.__name__
    found = find_class(name)
    if found is None or not issubclass(found, cls):  # Pyro's Normal is a torch Normal
        raise TypeError(
            f"Expected a distribution or transform of Pyro or of this package, got a "
            f"{cls.__module__}.{cls.__qualname__}. Write a LazyDistribution or LazyTransform."
        )
    return name


def find_class(name: str) -> type | None:
    """Return a distribution or transform by name: ours, a user's, or one of Pyro and torch."""
    if name in BIJECTORS:
        return BIJECTORS[name]
    for place in (
        pyro.distributions,
        pyro.distributions.transforms,
        torch.distributions,
        torch.distributions.transforms,
    ):
        found = getattr(place, name, None)
        if isinstance(found, type) and issubclass(found, (Distribution, Transform)):
            return found
    return None
