r"""Runs a tape of tensor operations, shortened.

What does not depend on the position is computed once, equal operations are merged, and those that
do nothing or that nobody reads are left out. All of it is exact. What is left becomes the text of
one Python function, which Python runs fastest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..arrays import LARGEST, LEAST, SCOPE, array_text, pays

__all__ = ["Operation", "Recording", "Ref"]

aten = torch.ops.aten
FILLS = (aten.zeros_like.default, aten.ones_like.default, aten.full_like.default)
SUMS = (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
VIEWS = (aten.view.default, aten.expand.default, aten._to_copy.default)
REFERENCE = re.compile(r"\bv\d+\b")
BY_VALUE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
SIGNS = {
    **{"add": "+", "sub": "-", "mul": "*", "div": "/"},
    **{"lt": "<", "le": "<=", "gt": ">", "ge": ">="},
}
FUNCTIONS = frozenset(
    "exp log log1p expm1 sqrt rsqrt sigmoid tanh abs lgamma digamma sin cos reciprocal sum mm bmm "
    "unsqueeze squeeze permute transpose where clone clamp_min clamp_max masked_fill select cat "
    "pow stack logsumexp cumsum maximum minimum erf flip mv matmul".split()
)
PLAIN = (
    *(type(None), bool, int, float, str),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
WORDS = {"torch": torch, "device": torch.device, "inf": math.inf, "nan": math.nan}  # of texts


class Ref:
    """A tensor of the tape, by its number."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


@dataclass
class Operation:
    """An operation of the tape.

    Arguments:
        function: What was called.
        args: Its arguments, with references in place of tensors.
        kwargs: Its keyword arguments.
        inputs: The numbers of the tensors among them.
        outputs: The numbers of its results.
        several: Whether it returns several.
        changed: The memory that it changes in place.
    """

    function: Any
    args: list[Any]
    kwargs: dict[str, Any]
    inputs: list[int]
    outputs: list[int | None]
    several: bool
    changed: frozenset[int]


@dataclass
class Line:
    """An operation of the shortened tape, as text."""

    text: str
    array: str  # the same for arrays, or nothing
    inputs: list[int]
    outputs: list[int | None]
    several: bool
    touched: frozenset[int] = frozenset()  # memory that some operation changes in place
    changes: bool = False

    def left(self) -> str:
        names = ", ".join("_" if n is None else f"v{n}" for n in self.outputs)
        return f"({names},)" if self.several else names

    def in_tensors(self) -> str:
        return f"{self.left()} = {self.text}"

    def in_arrays(self) -> str:
        """Return the line with all values as arrays, which torch wraps for its own part."""
        if self.array:
            return f"{self.left()} = {self.array}"
        own = REFERENCE.sub(r"T(\g<0>)", self.text)
        moved = f"[y.numpy() for y in {own}]" if self.several else f"({own}).numpy()"
        return f"{self.left()} = {moved}"


class Recording:
    """Operations on a tensor that give others by name.

    Arguments:
        operations: The tape.
        values: The value of each tensor at the time of recording; that at 0 is the argument's.
        outputs: The tensors that are given.
    """

    def __init__(
        self, operations: list[Operation], values: list[Tensor], outputs: dict[str, Ref]
    ) -> None:
        short = Shortening(operations, values)
        self.lines, self.scope = short.lines, short.scope
        self.outputs = {name: short.real(ref.number) for name, ref in outputs.items()}
        self.known = {n: values[n] for n in self.outputs.values() if n in short.known}
        self.memory = {n: short.touch([n]) for n in self.outputs.values()}
        self.example = values[0]
        self.programs: dict[tuple[str, ...], Callable[[Tensor], Any]] = {}

    def __call__(self, x: Tensor, *names: str) -> dict[str, Tensor]:
        """Return the tensors, or some by name, at another argument of the same shape."""
        names = names or tuple(self.outputs)
        program = self.programs.get(names)
        if program is None:
            program = self.programs[names] = self.compile(names)
        return dict(zip(names, program(x.contiguous())))

    def size(self, *names: str) -> int:
        """Return the number of operations that give some of the tensors."""
        return len(self.needed(names))

    def needed(self, names: tuple[str, ...]) -> list[Line]:
        """Return the operations on which some of the tensors depend."""
        live = {self.outputs[name] for name in names}
        touched = frozenset().union(*(self.memory[n] for n in live)) if live else frozenset()
        memory, kept = set(touched), []
        for line in reversed(self.lines):
            read = any(n in live for n in line.outputs)
            if not read and not (line.changes and memory & line.touched):
                continue
            live.update(line.inputs)
            memory |= line.touched
            kept.append(line)
        return kept[::-1]

    def compile(self, names: tuple[str, ...]) -> Callable[[Tensor], Any]:
        """Return the operations as one Python function."""
        lines, wanted = self.needed(names), [self.outputs[name] for name in names]
        last: dict[int | None, int] = {}
        for k, line in enumerate(lines):
            last.update(dict.fromkeys((*line.inputs, *line.outputs), k))
        last.update(dict.fromkeys(wanted, len(lines)))
        ends: dict[int, list[int]] = {}
        for n, k in last.items():
            if n:
                ends.setdefault(k, []).append(n)
        arrays, scope = pays(self.example, lines), {**self.scope, **SCOPE}
        text = ["def program(v0):"]
        if arrays:
            text += [" v0 = v0.detach().numpy()", " with np_quiet():", "  pass"]
        for k, line in enumerate(lines):  # values are let go of where they are read last
            done = "".join(f"; v{n} = None" for n in ends.get(k, ()))
            text.append(f"  {line.in_arrays()}{done}" if arrays else f" {line.in_tensors()}{done}")
        given = []
        for n in wanted:
            if n in self.known:
                scope[f"k{n}"] = self.known[n].detach().clone()
            own = f"T(v{n})" if arrays else f"v{n}"
            given.append(f"k{n}.clone()" if n in self.known else own)
        text.append(f" return ({', '.join(given)},)")
        exec(compile("\n".join(text), "<probgen.mcmc>", "exec"), scope)
        return scope["program"]


@dataclass
class Shortening:
    """Folds constants, merges equal operations and leaves out those that do nothing.

    Arguments:
        operations: The tape.
        values: The value of each tensor.
    """

    operations: list[Operation]
    values: list[Tensor]
    lines: list[Line] = field(default_factory=list)
    scope: dict[str, Any] = field(default_factory=lambda: dict(WORDS))
    known: dict[int, Tensor] = field(default_factory=dict)  # what does not depend on the argument

    def __post_init__(self) -> None:
        self.same: dict[int, int] = {}
        self.changed = frozenset().union(*(op.changed for op in self.operations))
        self.long = len(self.operations) >= LEAST
        self.numbers: dict[Any, str] = {}
        self.seen: dict[str, list[int | None]] = {}
        made = {n for op in self.operations for n in op.outputs}
        self.fixed = set(range(1, len(self.values))) - made  # tensors that were there before
        for op in self.operations:
            self.take(op)

    def real(self, number: int) -> int:
        """Return the tensor of the same value, since operations that do nothing are left out."""
        return self.same.get(number, number)

    def touch(self, numbers: Any) -> frozenset[int]:
        """Memory that some operation changes, of some tensors."""
        if not self.changed:
            return frozenset()
        pointers = (self.values[n].untyped_storage().data_ptr() for n in numbers if n is not None)
        return frozenset(pointers) & self.changed

    def constant(self, number: int) -> bool:
        return number in self.known or number in self.fixed

    def take(self, op: Operation) -> None:
        inputs = list(dict.fromkeys(self.same.get(n, n) for n in op.inputs))
        touched = self.touch([*inputs, *op.outputs])
        fixed = op.function in FILLS or all(map(self.constant, inputs))
        if fixed and not touched:
            self.known.update({n: self.values[n] for n in op.outputs if n is not None})
            return
        if not BY_VALUE.isdisjoint(op.function.tags) and not self.chosen(op):
            raise RuntimeError(f"{op.function} depends on values")
        if not touched:
            kept = self.unchanged(op)
            if kept is not None:
                self.same[op.outputs[0]] = kept  # type: ignore[index]
                return
        text = self.text(op, bool(touched))
        inputs = [n for n in inputs if not self.constant(n)]
        if not touched:
            before = self.seen.setdefault(text, op.outputs)
            if before is not op.outputs:
                self.same.update({a: b for a, b in zip(op.outputs, before) if a is not None})  # type: ignore[misc]
                return
        array = ""
        if self.long and not touched:
            array = array_text(op, self.values, self.real, self.array)
        changes = bool(op.changed)
        self.lines.append(Line(text, array, inputs, op.outputs, op.several, touched, changes))

    def array(self, number: int) -> str | None:
        """Return name of a constant as an array or a number, empty if it is neither, or None."""
        if not self.constant(number):
            return None
        value, name = self.values[number].detach(), f"a{number}"
        if name not in self.scope:
            if value.numel() > LARGEST or value.device.type != "cpu":
                return ""
            self.scope[name] = value.numpy() if value.ndim else value.item()
        return name

    def chosen(self, op: Operation) -> bool:
        """Whether elements are chosen by constants or integers, and so as many each time."""
        if op.function not in (aten.index.Tensor, aten.masked_select.default):
            return False
        choices = [self.real(n) for n in op.inputs[1:]]
        return all(self.constant(n) or self.values[n].dtype == torch.long for n in choices)

    def unchanged(self, op: Operation) -> int | None:
        """Return the input that an operation gives back as it is, or None."""
        function, args = op.function, op.args
        if op.kwargs.get("alpha", 1) != 1 or op.kwargs.get("rounding_mode") is not None:
            return None
        candidates: list[tuple[Any, Any, float]] = []
        if function in SUMS + PRODUCTS and len(args) == 2:
            neutral = 0.0 if function in SUMS else 1.0
            candidates.append((args[0], args[1], neutral))
            if function in (aten.add.Tensor, aten.mul.Tensor):
                candidates.append((args[1], args[0], neutral))
        elif function is aten.pow.Tensor_Scalar:
            candidates.append((args[0], args[1], 1.0))
        elif function in VIEWS:
            candidates.append((args[0], 0.0, 0.0))
        elif function is aten.permute.default and list(args[1]) == list(range(len(args[1]))):
            candidates.append((args[0], 0.0, 0.0))
        for kept, other, neutral in candidates:
            if isinstance(kept, Ref) and self.neutral(kept, other, neutral, op):
                return self.real(kept.number)
        return None

    def neutral(self, kept: Ref, other: Any, neutral: float, op: Operation) -> bool:
        value, out = self.values[kept.number], self.values[op.outputs[0]]  # type: ignore[index]
        if (value.shape, value.dtype, value.device) != (out.shape, out.dtype, out.device):
            return False
        if isinstance(other, Ref):
            if not self.constant(self.real(other.number)):
                return False
            other = self.values[self.real(other.number)]
            return bool((other == neutral).all())
        return bool(other == neutral)

    def text(self, op: Operation, touched: bool) -> str:
        """Return an operation as Python calls it fastest."""
        function, args = op.function, op.args
        name = function._schema.name.removeprefix("aten::")
        if function is aten.linalg_solve_triangular.default and self.shared(op):
            self.scope["solve"] = solve
            upper = op.kwargs["upper"]
            return f"solve({self.source(args[0])}, {self.source(args[1])}, {upper})"
        if not op.kwargs and not op.changed:
            if name in SIGNS and len(args) == 2:
                return f"{self.source(args[0])} {SIGNS[name]} {self.operand(*args)}"
            if name == "neg":
                return f"-{self.source(args[0])}"
            if name == "view" and not touched:  # strides may differ from those of the recording
                return f"{self.source(args[0])}.reshape({self.source(args[1])})"
            if name == "expand" and len(args) == 2:
                return f"{self.source(args[0])}.expand({self.source(args[1])})"
            if name == "slice" and len(args) == 4 and not touched:
                return self.narrow(op)
            if name in FUNCTIONS:
                self.scope[name] = getattr(torch, name)
                return f"{name}({', '.join(map(self.source, args))})"
        call = f"{name}_{function._overloadname}"
        self.scope[call] = function
        options = [f"{key}={self.source(value)}" for key, value in op.kwargs.items()]
        return f"{call}({', '.join([*map(self.source, args), *options])})"

    def operand(self, first: Any, value: Any) -> str:
        """Return number as a tensor of the first operand's type, which is read in half the time."""
        if type(value) not in (int, float) or not isinstance(first, Ref):
            return self.source(value)
        like = self.values[first.number]
        if not like.dtype.is_floating_point or not like.ndim:
            return self.source(value)
        number = torch.tensor(value, dtype=like.dtype)
        name = self.numbers.setdefault((repr(value), like.dtype), f"n{len(self.numbers)}")
        self.scope.setdefault(name, number)
        return name

    def narrow(self, op: Operation) -> str:
        """Elements next to each other, which Python asks for faster than for a slice."""
        first, dim, start = op.args[:3]
        whole, size = (self.values[n].shape[dim] for n in (op.inputs[0], op.outputs[0]))  # type: ignore[index]
        start = 0 if start is None else max(start + whole, 0) if start < 0 else min(start, whole)
        self.scope["narrow"] = torch.narrow
        return f"narrow({self.source(first)}, {dim}, {start}, {size})"

    def shared(self, op: Operation) -> bool:
        """Whether a triangle is the same for all chains."""
        number = self.real(op.args[0].number)
        one = self.values[number].shape[:-2].numel() == 1
        return one and self.constant(number) and {"upper"} == set(op.kwargs)

    def source(self, value: Any) -> str:
        """Return a value as text, which may be the name of what holds it."""
        if isinstance(value, Ref):
            number = self.real(value.number)
            if not self.constant(number):
                return f"v{number}"
            name, tensor = f"c{number}", self.values[number]
            if name not in self.scope:
                self.scope[name] = smallest(tensor) if number in self.known else tensor
            return name
        if isinstance(value, list):
            return f"[{', '.join(map(self.source, value))}]"
        if isinstance(value, PLAIN):
            text = repr(value)
            return f"({text})" if text.startswith("-") else text
        name = f"o{id(value)}"
        self.scope[name] = value
        return name


def solve(triangle: Tensor, b: Tensor, upper: bool) -> Tensor:
    """Solves with one triangle for all chains, as columns of one right-hand side."""
    n, columns = b.shape[-2], b.movedim(-2, 0)
    flat = columns.reshape(n, -1)
    solved = torch.linalg.solve_triangular(triangle.reshape(n, n), flat, upper=upper)
    return solved.reshape(columns.shape).movedim(0, -2)


def smallest(value: Tensor) -> Tensor:
    """Store a constant once along each axis on which it repeats, with strides of 0."""
    kept = value
    for axis, size in enumerate(value.shape):
        first = kept.narrow(axis, 0, 1) if size else kept
        if size > 1 and bool((kept == first).all()):
            kept = first
    return kept.contiguous().expand(value.shape)
