"""Identities of values: short descriptions with a digest of their contents.

A run that goes on must have the model, the data and the settings of the run that was interrupted.
Tensors are told apart by their bytes, modules by their parameters, and functions by their code and
the tensors and modules that they refer to.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["differences", "outline"]

FEW = 3  # numbers of a tensor that are shown
WIDTH = 60  # characters of a plain value that are shown
PLAIN = (type(None), bool, int, float, complex, str, bytes)


def outline(value: Any) -> str:
    """Describe a value in a few words, with a digest of all that it holds.

    Plain numbers that a function refers to do not count, such as counters: its arguments do.

    Arguments:
        value: Any value.

    Example:
        >>> outline(0.5), outline(torch.tensor([1.0, 2.0]))
        ('0.5', 'tensor([1., 2.])')
        >>> outline(torch.zeros(9)) == outline(torch.ones(9))
        False
        >>> outline(lambda x: x + 1) == outline(lambda x: x + 2)
        False
    """
    if isinstance(value, PLAIN) and len(repr(value)) <= WIDTH:
        return repr(value)
    if isinstance(value, np.ndarray | np.generic) and value.size <= FEW:
        return repr(value)
    if isinstance(value, Tensor) and value.device.type == "cpu" and value.numel() <= FEW:
        return repr(value.detach())
    reader = DigestReader()
    reader.read(value, True)
    return f"{title(value)} [{reader.hash.hexdigest()[:10]}]"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the entries that differ, each with the old value and the new one.

    Example:
        >>> differences({"a": 1, "b": 2}, {"a": 1, "b": 3})
        {'b': (2, 3)}
    """
    names = [*old, *(name for name in new if name not in old)]
    pairs = {name: (old.get(name, "nothing"), new.get(name, "nothing")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def title(value: Any) -> str:
    """Describe the kind of a value, without its contents."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, functools.partial):
        return f"partial of {title(value.func)}"
    if isinstance(value, str | bytes):
        return repr(value[: WIDTH // 2]) + "..."
    named = value if isinstance(value, type) or callable(value) else type(value)
    return getattr(named, "__qualname__", type(value).__qualname__)


class DigestReader:
    """Reads values into a digest; a value that was read before is not read again."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.seen: dict[int, int] = {}
        self.held: list[Any] = []  # so that no identity is used twice

    def note(self, *parts: Any) -> None:
        for part in parts:
            self.hash.update(f"{part}\0".encode())

    def read(self, value: Any, numbers: bool) -> None:
        """Read a value.

        Arguments:
            value: The value.
            numbers: Whether plain numbers and strings count.
        """
        if isinstance(value, PLAIN):
            if numbers:
                self.note(type(value).__name__, repr(value))
            return
        if id(value) in self.seen:
            self.note("again", self.seen[id(value)])
            return
        self.seen[id(value)] = len(self.seen)
        self.held.append(value)
        if isinstance(value, Tensor):
            self.read_tensor(value)
        elif isinstance(value, nn.Module):
            self.note(type(value).__qualname__)
            for name, parameter in value.named_parameters():
                self.note(name)
                self.read_tensor(parameter)
        elif isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
            self.note(getattr(value, "__qualname__", value.__name__))
        elif isinstance(value, Mapping):
            for key in sorted(value, key=str):
                self.note(key)
                self.read(value[key], numbers)
        elif isinstance(value, list | tuple):
            self.note(*[len(value)] * numbers)
            for part in value:
                self.read(part, numbers)
        elif isinstance(value, set | frozenset):
            self.note(*sorted(map(repr, value)))
        elif not self.read_callable(value):
            self.read_object(value, numbers)

    def read_tensor(self, value: Tensor) -> None:
        self.note(value.dtype, tuple(value.shape))
        if value.device.type != "meta":
            flat = value.detach().to_dense().cpu().reshape(-1).contiguous()
            self.hash.update(flat.view(torch.uint8).numpy().data)

    def read_callable(self, value: Any) -> bool:
        """Read a function, a method or a function with arguments, if it is one."""
        if isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self.read(part, True)
        elif isinstance(value, types.MethodType):
            self.read(value.__func__, False)
            self.read(value.__self__, False)
        elif isinstance(value, types.FunctionType):
            self.note(value.__qualname__)
            self.read([value.__defaults__, value.__kwdefaults__], True)
            names = self.read_code(value.__code__)
            for cell in value.__closure__ or ():
                if cell != types.CellType():
                    self.refer(cell.cell_contents)
            for name in sorted(names & value.__globals__.keys()):
                other = value.__globals__[name]
                if getattr(other, "__globals__", value.__globals__) is value.__globals__:
                    self.refer(other)  # a tensor, or a function of the same file
        else:
            return False
        return True

    def refer(self, value: Any) -> None:
        """Read what a function refers to: no objects that may change for other reasons."""
        kinds = Tensor, np.ndarray, nn.Module, Mapping, list, tuple, types.FunctionType
        if isinstance(value, (*kinds, types.MethodType, functools.partial)):
            self.read(value, False)

    def read_code(self, code: types.CodeType) -> set[str]:
        """Read the instructions of a function; the names of what it refers to."""
        names = set(code.co_names)
        self.note(code.co_code.hex(), *code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                names |= self.read_code(constant)
            else:
                self.read(constant, True)
        return names

    def read_object(self, value: Any, numbers: bool) -> None:
        self.note(type(value).__qualname__)
        if hasattr(value, "__array__"):  # of numpy, pandas and others
            array = np.asarray(value)
            self.note(array.dtype, array.shape)
            if array.dtype.hasobject:
                self.note(array.tolist())
            else:
                self.hash.update(np.ascontiguousarray(array).data)
            return
        call = type(value).__dict__.get("__call__")
        if isinstance(call, types.FunctionType):
            self.read(call, False)
        if dataclasses.is_dataclass(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            self.read(fields, numbers)
        else:
            self.read(getattr(value, "__dict__", {}), numbers)
