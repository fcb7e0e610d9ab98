r"""A batched log density and its gradient as one list of tensor operations.

`torch.func.vmap` gives a function of one chain for all chains, but runs every layer of Python anew
at each call. Here the operations that reach the tensors are noted once, with the gradient's, on a
tape; replayed (:mod:`probgen.mcmc.pyro.replay`), they give the same numbers without the layers.
Noting them costs about as much as two evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .replay import Operation, Recording, Ref

__all__ = ["record"]

aten = torch.ops.aten
SAME = (aten.detach.default, aten.alias.default, aten.lift_fresh.default)
NOTHING: frozenset[int] = frozenset()
WRITTEN: dict[Any, list[str | int]] = {}  # the arguments that an operation changes in place


class Tape(TorchDispatchMode):
    """Notes each operation that reaches tensors, and keeps their values.

    Arguments:
        x: The tensor on which the operations depend.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.values: list[Tensor] = [x]  # kept, so that no two of them share an address
        self.numbers = {id(x): 0}
        self.made = {storage(x)}  # by operations: any other tensor is a constant
        self.outside: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether to load torch's compiler so as to keep out of it, which takes half a second."""
        return False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is aten._linalg_check_errors.default:
            return None  # a chain outside the domain gets nan, and stays alone
        inputs: list[int] = []
        noted = [self.note(value, inputs) for value in args]
        options = {name: self.note(value, inputs) for name, value in kwargs.items()}
        places = WRITTEN[function] if function in WRITTEN else written(function)
        changed = frozenset(storage(t) for t in chosen(places, args, kwargs)) if places else NOTHING
        if changed & self.outside:
            raise RuntimeError(f"{function} changes a tensor that was there before")
        result = function(*args, **kwargs)
        if function in SAME:
            self.numbers[id(result)] = inputs[0]
            self.values.append(result)
            return result
        several = isinstance(result, (tuple, list))
        outputs = [self.add(value) for value in (result if several else (result,))]
        operation = Operation(function, noted, options, inputs, outputs, several, changed)
        self.operations.append(operation)
        return result

    def note(self, value: Any, found: list[int]) -> Any:
        """Return argument, with references in place of tensors, whose numbers are put on a list."""
        if isinstance(value, Tensor):
            number = self.numbers.get(id(value))
            number = self.constant(value) if number is None else number
            found.append(number)
            return Ref(number)
        if isinstance(value, (list, tuple)):
            return [self.note(inner, found) for inner in value]
        return value

    def constant(self, value: Tensor) -> int:
        if storage(value) in self.made:
            raise RuntimeError("an operation was not seen")
        self.outside.add(storage(value))
        return self.keep(value)

    def add(self, value: Any) -> int | None:
        """Return the number of a result; none of what is no tensor."""
        if not isinstance(value, Tensor):
            return None
        if id(value) in self.numbers:  # of an operation in place
            return self.numbers[id(value)]
        if storage(value) not in self.outside:
            self.made.add(storage(value))
        return self.keep(value)

    def keep(self, value: Tensor) -> int:
        self.numbers[id(value)] = len(self.values)
        self.values.append(value)
        return len(self.values) - 1


def storage(value: Tensor) -> int:
    """Return a number of the memory of a tensor, which its views share."""
    return value.untyped_storage().data_ptr() or -id(value)


def written(function: Any) -> list[str | int]:
    """Return the arguments that an operation changes in place, by position or name."""
    found = enumerate(function._schema.arguments)
    writes = [(k, a) for k, a in found if a.alias_info is not None and a.alias_info.is_write]
    WRITTEN[function] = [a.name if a.kwarg_only else k for k, a in writes]
    return WRITTEN[function]


def chosen(places: list[str | int], args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors among some arguments."""
    given = [kwargs.get(p) if isinstance(p, str) else args[p] for p in places]
    flat = [v for value in given for v in (value if isinstance(value, (list, tuple)) else [value])]
    return [value for value in flat if isinstance(value, Tensor)]


def record(function: Callable[[Tensor], dict[str, Tensor]], x: Tensor) -> Recording:
    """Record a function's operations at positions of one shape.

    Arguments:
        function: A function of a tensor that returns tensors by name. Its operations must not
            depend on values, and it keeps no state. Tensors that it closes over are read once.
        x: An example of its argument.

    Returns:
        The operations, which give each of the tensors alone, or several.

    Raises:
        RuntimeError: If the operations depend on values, change a tensor that was there before, or
            are not all seen.

    Example:
        >>> def function(x):
        ...     y = (x * 1.0 + torch.zeros(3)).sin()
        ...     return {"y": y, "z": y.exp()}
        >>> recording = record(function, torch.zeros(3))
        >>> recording(torch.ones(3), "y")
        {'y': tensor([0.8415, 0.8415, 0.8415])}
        >>> recording.size("y"), recording.size("y", "z")
        (1, 2)
    """
    tape = Tape(x)
    with tape:
        found = function(x)
    outputs = {name: tape.note(value, []) for name, value in found.items()}
    return Recording(tape.operations, tape.values, outputs)
