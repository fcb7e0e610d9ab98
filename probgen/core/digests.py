"""Digests: short texts that differ where two runs do."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import fields, is_dataclass
from numbers import Integral, Number, Real
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .bijector import name_of
from .checkpoint import arguments
from .registry import is_registered

__all__ = ["compare", "describe", "digest"]

WHOLE, ROWS = 1_000_000, 1000  # numbers up to which all are read, and rows that are beyond


def digest(t: Tensor | None) -> str:
    """Return dtype, shape and a hash of a tensor's bytes: beyond a million numbers of some rows.

    Example:
        >>> digest(torch.zeros(2, 3))
        'float32 (2, 3) 9d908ecfb6b2'
    """
    if t is None:
        return "none"
    rows = t.detach()
    if t.numel() > WHOLE and t.ndim and len(t) > ROWS:
        rows = rows[torch.linspace(0, len(t) - 1, ROWS, dtype=torch.double).long().to(t.device)]
    data = rows.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    kind = str(t.dtype).removeprefix("torch.")
    return f"{kind} {tuple(t.shape)} {hashlib.sha256(data).hexdigest()[:12]}"


def describe(name: str, value: Any) -> dict[str, str]:
    """Describe a value as texts to compare, each under a dotted name.

    Objects are told apart by their class and what they hold, tensors by their digests, modules by
    what they were built with (their weights change in training), and functions by their name and
    their code: what a function closes over is not seen, since it may be anything.

    Example:
        >>> describe("options", {"rates": [0.1, 0.2], "name": "x"})
        {'options.rates': '[0.1, 0.2]', 'options.name': 'x'}
    """
    if isinstance(value, Tensor):
        return {name: digest(value)}
    if plain(value):
        return {name: text(value)}
    if isinstance(value, (list, tuple)) and all(plain(v) for v in value):
        return {name: f"[{', '.join(map(text, value))}]"}
    if isinstance(value, (list, tuple)):
        return flat(name, dict(enumerate(value)))
    if isinstance(value, dict):
        return flat(name, value)
    if isinstance(value, nn.Module) and is_registered(value):
        return flat(name, arguments(value))
    if isinstance(value, nn.Module):
        shapes = {key: tuple(t.shape) for key, t in value.state_dict().items()}
        return {name: full_name(type(value)), **flat(name, shapes)}
    if isinstance(value, Distribution):
        shape = tuple(value.batch_shape), tuple(value.event_shape)
        return {name: f"{full_name(type(value))} {shape}"}
    if isinstance(value, functools.partial):
        return flat(name, {"function": value.func, "args": value.args, **value.keywords})
    if isinstance(value, (FunctionType, MethodType)):
        return {name: f"{full_name(value)} {hash_of(value.__code__)}"}
    if isinstance(value, (type, BuiltinFunctionType)):
        return {name: value.__qualname__}
    if is_dataclass(value):
        held = {f.name: getattr(value, f.name) for f in fields(value)}
    else:
        held = {k: v for k, v in vars(value).items() if plain(v) or isinstance(v, Tensor)}
    return {name: name_of(type(value)), **flat(name, held)}


def plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, Number, torch.dtype))


def text(value: Any) -> str:
    """Write equal numbers alike, be they whole or not, of Python or of numpy."""
    if isinstance(value, Real) and not isinstance(value, (bool, Integral)):
        return repr(float(value)).removesuffix(".0")
    return str(int(value)) if isinstance(value, Integral) else str(value)


def flat(name: str, values: dict[Any, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        found.update(describe(f"{name}.{key}", value))
    return found


def full_name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def hash_of(code: CodeType) -> str:
    """Hash what a function does, and not where it is written."""
    parts = [code.co_code.hex(), repr(code.co_names)]
    for value in code.co_consts:
        if isinstance(value, CodeType):
            parts.append(hash_of(value))
        else:  # sets have no order of their own
            parts.append(repr(sorted(map(repr, value)) if type(value) is frozenset else value))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def compare(before: dict[str, str], now: dict[str, str], folder: Any) -> None:
    """Raise a ValueError that names the first value that is not that of a run in a folder.

    Example:
        >>> compare({"lr": "0.1"}, {"lr": "0.1"}, "run")
    """
    for name in [*before, *now]:
        old, new = before.get(name, "none"), now.get(name, "none")
        if old != new:
            raise ValueError(
                f"Expected `{name}` of the run in {folder}, {old:.200}, got {new:.200}. Go on with "
                f"the former, or train in another folder."
            )
