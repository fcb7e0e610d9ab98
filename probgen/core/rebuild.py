"""Turn what a module was built with into JSON, and back into a module.

A module is described by its class, found by name in a registry, and the arguments that its
constructor was called with, among them other modules.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from .bijector import BIJECTORS, Bijector, name_of
from .deprecation import RENAMED
from .registry import (
    MODULES,
    RECORDS,
    describe,
    fields_of,
    find_class,
    is_registered,
    is_torch,
    kind_of,
    layer_arguments,
    named_tuple,
)

__all__ = ["CheckpointError", "ModuleDecoder", "ModuleEncoder"]

LARGEST = 2**22  # whole numbers in a description beyond this need as many numbers in the state
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
DELETED = {"deleted": True}  # an attribute that is gone


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, and why."""


def arguments(module: nn.Module) -> dict[str, Any]:
    """Return the class and all arguments of a module, defaults included, as JSON to compare."""
    cls = kind_of(module)
    if not is_registered(module):
        return {"class": name_of(cls)}
    args, kwargs = vars(module)["_recorded"]
    bound = inspect.signature(cls.__init__).bind(module, *args, **kwargs)
    bound.apply_defaults()
    named = list(bound.arguments.items())[1:]
    return {"class": name_of(cls), **{name: outline(value) for name, value in named}}


def outline(value: Any) -> Any:
    """Reduce an argument to what is compared: shapes of tensors, not their values."""
    if isinstance(value, nn.Module):
        return arguments(value)
    if isinstance(value, (list, tuple)):
        return [outline(v) for v in value]
    if isinstance(value, dict):
        return {str(key): outline(v) for key, v in value.items()}
    if isinstance(value, Tensor):
        return list(value.shape)
    if isinstance(value, Integral):
        return int(value)
    plain = value is None or isinstance(value, (float, str))
    return value if plain else name_of(value if isinstance(value, type) else type(value))


def part_at(root: nn.Module, path: str) -> nn.Module:
    """Return the part at a path of names of parts."""
    for name in path.split(".") if path else ():
        found = root._modules.get(name)
        if found is None:
            raise CheckpointError(f"Expected the path of a part, got {path!r:.80}.")
        root = found
    return root


class ModuleEncoder:
    """Turns values into JSON, and collects the tensors among them."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.seen: dict[int, int] = {}
        self.parts: dict[int, str] = {}  # where modules are that are built with their owner
        self.owners: list[str] = []  # the modules whose arguments are being encoded
        self.given: dict[str, nn.Module] = {}  # those whose class is not known

    def encode(self, value: Any, where: str) -> Any:
        """Return the value, which an error says to be `where`."""
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": repr(float(value))}
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, Real):  # of numpy too
            return int(value) if isinstance(value, Integral) else float(value)
        if isinstance(value, torch.Size):
            return {"size": list(value)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if RECORDS.get(name_of(type(value))) is type(value):
            given = {n: self.encode(getattr(value, n), where) for n in fields_of(value)}
            return {"record": name_of(type(value)), "fields": given}
        if isinstance(value, (list, tuple)) and not named_tuple(value):
            parts = [self.encode(v, where) for v in value]
            return {"list" if isinstance(value, list) else "tuple": parts}
        if isinstance(value, dict):
            pairs = [[self.encode(k, where), self.encode(v, where)] for k, v in value.items()]
            return {"dict": pairs}
        if isinstance(value, Tensor):
            name = f"argument.{len(self.tensors)}"
            self.tensors[name] = value
            return {"tensor": name}
        if isinstance(value, type) and issubclass(value, Bijector):
            return {"bijector": name_of(value)}
        if isinstance(value, nn.Module):
            return self.encode_module(value, where)
        if isinstance(value, (Distribution, Transform)):
            name, arguments = describe(value)
            return {"object": name, "arguments": self.encode(arguments, where)}
        raise TypeError(
            f"Expected {where} to be what can be saved (numbers, strings, tuples, tensors, "
            f"bijector classes, Pyro distributions, kernels, modules), got a "
            f"{type(value).__name__} in {' > '.join(self.owners)}: {value!r:.80}. Write a function "
            f"as the `forward` of a class of modules, or an object as a frozen dataclass, with the "
            f"line `@pg.register` above the class."
        )

    def encode_module(self, module: nn.Module, where: str) -> dict[str, Any]:
        if id(module) in self.parts:
            return {"part": self.parts[id(module)]}
        if id(module) in self.seen:
            return {"shared": self.seen[id(module)]}
        cls = kind_of(module)
        if "_given" in module.__dict__:
            name = module.__dict__["_given"]
            if self.given.setdefault(name, module) is not module:
                raise TypeError(
                    f"Expected {where} to have a name of its own, got a second module {name!r}. "
                    f"Give one, pg.register(module, name=...)."
                )
            entry = {"given": name}
        elif is_registered(module):
            args, kwargs = module.__dict__["_recorded"]
            names = list(inspect.signature(cls.__init__).parameters)[1:]
            places = [*names, *["arguments"] * len(args)]
            self.owners.append(name_of(cls))
            entry = {
                "class": name_of(cls),
                "args": [self.encode(v, f"`{n}` of {cls.__name__}") for n, v in zip(places, args)],
                "kwargs": {
                    k: self.encode(v, f"`{k}` of {cls.__name__}") for k, v in kwargs.items()
                },
            }
        elif is_torch(cls):
            arguments = layer_arguments(module)
            inside = f"{where} > {cls.__name__}"
            entry = {
                "torch": cls.__name__,
                "kwargs": {k: self.encode(v, inside) for k, v in arguments.items()},
                "children": [[n, self.encode(m, inside)] for n, m in module._modules.items()]
                if isinstance(module, CONTAINERS)
                else [],
            }
        else:
            raise TypeError(
                f"Expected {where} to be a module that can be saved, got a "
                f"{cls.__module__}.{cls.__qualname__}. Write the line `@pg.register` above `class "
                f"{cls.__name__}`, or call pg.register({cls.__name__}) before it is built. If it "
                f"is not yours to build, call pg.register(module), and load it with "
                f'pg.load(path, modules={{"{cls.__qualname__}": build}}).'
            )
        self.seen[id(module)] = len(self.seen)
        return {**entry, "number": self.seen[id(module)]}


class ModuleDecoder:
    """Turns JSON back into values, by looking names up and calling nothing else.

    Arguments:
        tensors: The tensors, by name.
        modules: Classes and functions that build modules, by name, besides those registered.
        largest: The greatest whole number that can be meant.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        modules: Mapping[str, Callable[..., Any]] | None = None,
        largest: int = LARGEST,
    ) -> None:
        self.tensors, self.modules, self.largest = tensors, modules or {}, largest
        self.seen: dict[int, nn.Module] = {}
        self.root: nn.Module | None = None

    def decode(self, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > self.largest:
            raise CheckpointError(
                f"Expected whole numbers up to {self.largest} for such a state, got {value}."
            )
        if not isinstance(value, dict):
            if isinstance(value, list):
                raise CheckpointError(f"Expected a value, got the list {value!r:.80}.")
            return value
        for key in value:
            if key in READERS:
                return READERS[key](self, value)
        raise CheckpointError(f"Expected a value, got {value!r:.80}.")

    def decode_object(self, value: Any) -> Any:
        cls = find_class(value["object"]) or self.look_up(BIJECTORS, value["object"])
        return cls(**self.decode(value["arguments"]))

    def decode_record(self, value: Any) -> Any:
        cls = self.look_up(RECORDS, value["record"])
        return cls(**{k: self.decode(v) for k, v in value["fields"].items()})

    def decode_class(self, value: Any) -> nn.Module:
        cls = self.look_up(MODULES, value["class"])
        kwargs = {k: self.decode(v) for k, v in value["kwargs"].items()}
        return self.keep(cls(*[self.decode(v) for v in value["args"]], **kwargs), value)

    def decode_given(self, value: Any) -> nn.Module:
        return self.keep(self.look_up({}, value["given"])(), value)

    def decode_torch(self, value: Any) -> nn.Module:
        cls = getattr(nn, value["torch"], None)
        if not isinstance(cls, type) or not is_torch(cls):
            raise CheckpointError(f"Expected a layer of torch.nn, got {value['torch']!r:.80}.")
        module = cls(**{k: self.decode(v) for k, v in value["kwargs"].items()})
        for name, child in value["children"]:
            module.add_module(name, self.decode(child))
        return self.keep(module, value)

    def keep(self, module: Any, value: Any) -> nn.Module:
        if not isinstance(module, nn.Module):
            raise CheckpointError(f"Expected a module, got a {type(module).__name__}.")
        self.seen[value["number"]] = module
        return module

    def edit(self, root: nn.Module, path: str, value: Any) -> None:
        """Set what is at a path, such as `posterior.network`, or deletes it."""
        self.root = root
        *owners, name = path.split(".")
        owner = part_at(root, ".".join(owners))
        if not name or name.startswith("_"):
            raise CheckpointError(f"Expected the path of an attribute, got {path!r:.80}.")
        new = None if value == DELETED else self.decode(value)
        places: list[dict[str, Any]] = [owner._modules, vars(owner)]
        if name not in owner._modules and not isinstance(new, nn.Module):
            places.reverse()
        places[1].pop(name, None)
        if value == DELETED:
            places[0].pop(name, None)
        else:
            places[0][name] = new

    def look_up(self, registry: Mapping[str, Any], name: str) -> Any:
        name = RENAMED.get(name, name)
        short = re.split(r"[:.]", name)[-1]
        if name in registry and name not in self.modules:
            return registry[name]
        for key in (name, short):
            if key in self.modules:
                return self.modules[key]
        raise CheckpointError(
            f"Expected a class that is defined, got {name!r:.200}. Import the module that defines "
            f"it before loading, or give what builds it, pg.load(path, modules={{{short!r}: ...}})."
        )


READERS: dict[str, Callable[[ModuleDecoder, Any], Any]] = {
    "float": lambda d, v: float(v["float"]),
    "size": lambda d, v: torch.Size(v["size"]),
    "dtype": lambda d, v: {str(t): t for t in vars(torch).values() if isinstance(t, torch.dtype)}[
        f"torch.{v['dtype']}"
    ],
    "tuple": lambda d, v: tuple(d.decode(w) for w in v["tuple"]),
    "list": lambda d, v: [d.decode(w) for w in v["list"]],
    "dict": lambda d, v: {d.decode(k): d.decode(w) for k, w in v["dict"]},
    "tensor": lambda d, v: d.tensors[v["tensor"]],
    "bijector": lambda d, v: d.look_up(BIJECTORS, v["bijector"]),
    "shared": lambda d, v: d.seen[v["shared"]],
    "part": lambda d, v: part_at(d.root, v["part"]),  # type: ignore[arg-type]
    "object": ModuleDecoder.decode_object,
    "record": ModuleDecoder.decode_record,
    "given": ModuleDecoder.decode_given,
    "torch": ModuleDecoder.decode_torch,
    "class": ModuleDecoder.decode_class,
}
