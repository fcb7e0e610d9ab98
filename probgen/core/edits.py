"""Changes of a module since it was built, as they are saved.

The module is built again, without its weights, and compared with the living one: public
attributes, parts, settings. What differs is an *edit*, the path of an attribute and its value.
The edits are applied and all is compared again, until nothing differs; what cannot be described is
refused by name, before anything is written.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
import types
from collections.abc import Callable, Iterable, Mapping
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.overrides import TorchFunctionMode

from .cached_tensor import CachedTensor
from .rebuild import CONTAINERS, DELETED, LARGEST, CheckpointError, ModuleDecoder, ModuleEncoder
from .registry import describe, fields_of, is_torch, kind_of, layer_arguments

__all__ = [
    "SMALL",
    "build",
    "check_dtypes",
    "check_finite",
    "check_state",
    "plan",
    "size_of",
    "sketch",
]

SMALL = 2**24  # numbers in the state of modules that are built to compare them
ROUNDS = 8  # edits within edits
UNIQUE = re.compile(r".+-\d+-[0-9a-f]{8}")  # the name of one instance in Pyro's store
MISSING = object()


# functions of torch that take the shape of a new tensor, and how many leading arguments tell it
SHAPED = dict.fromkeys((torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn), None)
SHAPED |= {torch.full: 1, torch.eye: 2}


class Budget(TorchFunctionMode):
    """Bounds the calls and the memory in which a module is built, by the size of its state.

    Arguments:
        state: The state.
        sketch: Whether memory that is not yet filled, such as that of the weights of layers, is
            put on the `meta` device. What is computed stays on the CPU, where it can be read.
    """

    def __init__(self, state: Mapping[str, Tensor], sketch: bool) -> None:
        super().__init__()
        self.sketch, size = sketch, size_of(state)
        self.calls = 20_000 + 500 * len(state)
        self.numbers, self.weights = 3 * 10**8 + 1000 * size, 10**7 + 64 * size

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, made = kwargs or {}, None
        if func in SHAPED and kwargs.get("device") is None:
            with contextlib.suppress(RuntimeError, TypeError):  # which the call itself will raise
                shape = args[: SHAPED[func]] * (2 if func is torch.eye and len(args) == 1 else 1)
                dtype, size = kwargs.get("dtype"), {k: kwargs[k] for k in ("size",) if k in kwargs}
                made = torch.empty(*shape, **size, dtype=dtype, device="meta")
                self.spend(made, func is torch.empty)
        if made is None or not (self.sketch and func is torch.empty):
            made = func(*args, **kwargs)
        self.spend(made)
        return made

    def spend(self, made: Any, weight: bool = False) -> None:
        size = made.numel() if isinstance(made, Tensor) else 0
        self.calls, self.numbers = self.calls - 1, self.numbers - size
        self.weights -= size * weight
        if min(self.calls, self.numbers, self.weights) < 0:
            raise CheckpointError(
                "Expected a module about as large as its state, got a description of one that is "
                "far larger."
            )


def size_of(state: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in state.values())


def build(
    content: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    modules: Mapping[str, Callable[..., Any]] | None = None,
    sketch: bool = False,
) -> nn.Module:
    """Return module that was described, in float32, with no more work than its state is worth."""
    largest = max(LARGEST, 16 * size_of(state))
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), Budget(state, sketch):
            decoder = ModuleDecoder(tensors, modules, largest)
            module = decoder.decode(content["module"])
            if not isinstance(module, nn.Module):
                raise CheckpointError(f"Expected a module, got {content['module']!r:.80}.")
            for path, value in content.get("edits", ()):
                decoder.edit(module, path, value)
    finally:
        torch.set_default_dtype(default)
    return module


def sketch(
    content: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    modules: Mapping[str, Callable[..., Any]] | None = None,
) -> nn.Module:
    """Build the module; on the `meta` device if it is large and its constructor allows it.

    Arithmetic on `meta` would import a compiler, for seconds, which small modules do without.
    """
    if size_of(state) > SMALL:
        try:
            return build(content, tensors, state, modules, True)
        except CheckpointError:
            raise
        except Exception:  # of any kind: a constructor may do anything
            return build(content, tensors, state, modules)
    return build(content, tensors, state, modules)


def check_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise a RuntimeError or ValueError unless a state fits a module, which it spoils."""
    check_dtypes(module, state)
    empty = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    module.load_state_dict(empty, strict=True, assign=True)


def check_dtypes(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise a ValueError unless dtypes are those of a module, or one floating-point type."""
    one = len({v.dtype for v in state.values() if v.is_floating_point()}) == 1
    for name, built in module.state_dict().items():
        value = state.get(name, built)
        if value.dtype == built.dtype or (
            one and value.is_floating_point() and built.is_floating_point()
        ):
            continue
        raise ValueError(
            f"Expected `{name}` to be of {built.dtype}, or all of one floating-point type, got "
            f"{value.dtype}. Cast the whole module with .to(dtype)."
        )


def check_finite(module: nn.Module, state: Mapping[str, Tensor], built: Callable[[], Any]) -> None:
    """Raise a ValueError if a state has nan or inf where a module that was just built has none."""
    parameters, fresh = dict(module.named_parameters(remove_duplicate=False)), None
    for name, value in state.items():
        if not value.is_floating_point() or bool(value.isfinite().all()):
            continue
        if name not in parameters:
            fresh = fresh or built().state_dict()
            other = fresh.get(name)
            if other is not None and not bool(other.isfinite().all()):
                continue
        bad = value[~value.isfinite()].flatten()[0]
        raise ValueError(f"Expected finite numbers in `{name}`, got {float(bad)}.")


def plan(module: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describe a module, so that it can be rebuilt.

    Returns:
        What to write as JSON, and the tensors that this names.

    Raises:
        TypeError: If it cannot be rebuilt; the attribute is named.
        ValueError: If its parameters are not finite.
    """
    encoder, state = ModuleEncoder(), module.state_dict()
    name = kind_of(module).__name__
    content: dict[str, Any] = {"module": encoder.encode(module, f"the {name}"), "edits": []}

    def given(device: str | None = None) -> dict[str, Callable[[], nn.Module]]:
        return {n: functools.partial(imitate, m, device) for n, m in encoder.given.items()}

    seen: list[list[str]] = []
    while True:
        try:
            rebuilt = sketch(content, encoder.tensors, state, given("meta"))
        except Exception as error:
            raise TypeError(
                f"Expected a {name} that can be rebuilt from the arguments it was built with and "
                f"what was changed since, but: {error}"
            ) from error
        comparison = Comparison()
        comparison.walk(module, rebuilt, "")
        paths = [path for path, _ in comparison.found]
        if not paths:
            break
        if paths in seen or len(seen) > ROUNDS:
            raise TypeError(
                f"Expected a {name} whose `{paths[0]}` can be set after it is built, but it is not "
                f"the same then. Build the {name} with it."
            )
        seen.append(paths)
        encoder.parts = comparison.places
        for path, value in comparison.found:
            new = DELETED if value is MISSING else encoder.encode(value, f"`{path}` of {name}")
            content["edits"].append([path, new])
    try:
        check_state(rebuilt, state)
    except Exception as error:  # of any kind: modules may read states as they like
        raise TypeError(
            f"Expected a {name} with the parameters and buffers that it was built with, but: "
            f"{error}"
        ) from error
    check_finite(module, state, lambda: build(content, encoder.tensors, state, given()))
    return content, encoder.tensors


def imitate(module: nn.Module, device: str | None) -> nn.Module:
    """Return a copy of a module; on a device, with numbers that are not its."""
    tensors: Iterable[Tensor] = [*module.parameters(), *module.buffers()]
    if device is None:
        return copy.deepcopy(module)
    memo: dict[int, Any] = {}
    for t in tensors:
        new = torch.empty_like(t, device=device)
        memo[id(t)] = nn.Parameter(new, t.requires_grad) if isinstance(t, nn.Parameter) else new
    return copy.deepcopy(module, memo)


class Comparison:
    """The differences between a module and one that was rebuilt.

    Attributes:
        found: Paths, and the living values there, `MISSING` if they are gone.
        places: Where living modules are that the rebuilt one has too.
    """

    def __init__(self) -> None:
        self.found: list[tuple[str, Any]] = []
        self.places: dict[int, str] = {}
        self.pairs: dict[int, nn.Module] = {}
        self.taken: set[int] = set()

    def walk(self, living: nn.Module, rebuilt: nn.Module, path: str) -> None:
        """Compare the parts of two modules, then their attributes."""
        self.pairs[id(living)] = rebuilt
        self.places[id(living)] = path
        self.taken.add(id(rebuilt))
        prefix = f"{path}." if path else ""
        for name in {**living._modules, **rebuilt._modules}:
            a, b = (m._modules.get(name, MISSING) for m in (living, rebuilt))
            self.compare_parts(a, b, prefix + name)
        ours, others = (public(m) for m in (living, rebuilt))
        for name in {**ours, **others}:
            if name in living._modules or name in rebuilt._modules:
                continue
            a, b = ours.get(name, MISSING), others.get(name, MISSING)
            if not self.same(a, b):
                self.found.append((prefix + name, a))

    def compare_parts(self, a: Any, b: Any, path: str) -> None:
        if a is b:  # both none
            return
        if not isinstance(a, nn.Module) or not isinstance(b, nn.Module):
            self.found.append((path, a))
        elif id(a) in self.pairs or id(b) in self.taken:
            if self.pairs.get(id(a)) is not b:
                self.found.append((path, a))
        elif not self.alike(a, b):
            self.found.append((path, a))
        else:
            self.walk(a, b, path)

    def alike(self, a: nn.Module, b: nn.Module) -> bool:
        """Whether two modules are of one class and were built with the same arguments."""
        cls = kind_of(a)
        if cls is not kind_of(b) or vars(a).get("_given") != vars(b).get("_given"):
            return False
        if isinstance(a, CONTAINERS):
            return list(a._modules) == list(b._modules)
        if is_torch(cls):
            return self.same(layer_arguments(a), layer_arguments(b))
        first, second = (vars(m).get("_recorded") for m in (a, b))
        return self.same(first, second, True)

    def same(self, a: Any, b: Any, built: bool = False) -> bool:
        """Whether two values are the same; of modules, or only their arguments, if `built`."""
        if a is b:
            return True
        if isinstance(a, Number) and isinstance(b, Number):
            one = isinstance(a, bool) is isinstance(b, bool)
            return one and (a == b or (a != a and b != b))
        if built and isinstance(a, (Distribution, Transform)):  # whose tensors are in the state
            return type(a).__name__ == type(b).__name__
        if type(a) is not type(b) and not isinstance(a, (nn.Module, Tensor)):
            return False
        if isinstance(a, nn.Module):
            if not isinstance(b, nn.Module):
                return False
            pair = None if built else self.pairs.get(id(a))
            return self.alike(a, b) if pair is None else pair is b
        if isinstance(a, Tensor):
            return same_tensor(a, b)
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(self.same(v, w, built) for v, w in zip(a, b))
        if isinstance(a, dict):
            a, b = ({k: v for k, v in d.items() if not isinstance(v, CachedTensor)} for d in (a, b))
            return a.keys() == b.keys() and all(self.same(a[k], b[k], built) for k in a)
        if isinstance(a, CachedTensor):  # a cache
            return True
        if isinstance(a, (Distribution, Transform)):
            return self.same(described(a), described(b))
        if callable(a) and not fields_of(a):
            return self.same_function(a, b)
        inner = {n: getattr(a, n) for n in fields_of(a)} or vars_of(a)
        if not inner:
            return bool(a == b)
        other = {n: getattr(b, n) for n in fields_of(b)} or vars_of(b)
        return self.same(inner, other, built)

    def same_function(self, a: Any, b: Any) -> bool:
        """Whether two functions are of one definition, with the same values bound to it."""
        if isinstance(a, types.MethodType):
            return a.__func__ is b.__func__ and self.same(a.__self__, b.__self__)
        if isinstance(a, functools.partial):
            return self.same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
        if not isinstance(a, types.FunctionType):
            return self.same(vars_of(a), vars_of(b)) and bool(vars_of(a))
        ours, others = (tuple(c.cell_contents for c in f.__closure__ or ()) for f in (a, b))
        return a.__code__ is b.__code__ and self.same(ours, others)


def public(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that are part of what a module is."""
    found = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
    if isinstance(found.get("name"), str) and UNIQUE.fullmatch(found["name"]):
        del found["name"]
    return found


def vars_of(value: Any) -> dict[str, Any]:
    found = getattr(value, "__dict__", {})
    return {k: v for k, v in found.items() if not k.startswith("__")}


def same_tensor(a: Tensor, b: Any) -> bool:
    if not isinstance(b, Tensor) or a.shape != b.shape:
        return False
    if a.is_meta or b.is_meta:
        return True
    b = b.to(a.device)
    return a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def described(thing: Distribution | Transform) -> Any:
    """Return the arguments of a distribution or transform, or else its attributes."""
    try:
        return describe(thing)
    except TypeError:
        return vars_of(thing)
