r"""Runs a tape of tensor operations, shortened.

What does not depend on the position is computed once, equal operations are merged, and those that
do nothing or that nobody reads are left out. Products are fused with the sums that take them, and
gradients of elements are gathered before they are spread, which changes the rounding of sums and
nothing else. What is left becomes the text of one Python function, which Python runs fastest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Operation", "Recording", "Ref"]

aten = torch.ops.aten
FILLS = (aten.zeros_like.default, aten.ones_like.default, aten.full_like.default)
SUMS = (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
VIEWS = (aten.view.default, aten.expand.default, aten._to_copy.default)
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


NONE: frozenset[int] = frozenset()


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
    inputs: list[int]
    outputs: list[int | None]
    several: bool
    touched: frozenset[int] = frozenset()  # memory that some operation changes in place
    changes: bool = False
    factors: tuple[str, str] | None = None  # of a product
    terms: tuple[int, int] | None = None  # of a sum, or of a difference
    sign: int = 1  # of the second term
    negated: int | None = None  # of what this is the negative


@dataclass
class Gathered:
    """A sum of a tensor and of elements along a dimension, which is formed when it is read.

    Arguments:
        plain: The tensor, by its number, if there is one.
        elements: The elements by their place, each by its number.
        dim: The dimension.
        size: Its size.
        sizes: The shape of the sum.
    """

    plain: int | None
    elements: dict[int, int]
    dim: int
    size: int
    sizes: list[int]


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
        for ref in outputs.values():
            short.form(short.real(ref.number))
        self.lines, self.scope = short.lines, short.scope
        self.outputs = {name: short.real(ref.number) for name, ref in outputs.items()}
        self.known = {n: values[n] for n in self.outputs.values() if n in short.known}
        self.memory = {n: short.touch([n]) for n in self.outputs.values()}
        self.programs: dict[tuple[str, ...], Callable[[Tensor], Any]] = {}

    def __call__(self, x: Tensor, *names: str) -> dict[str, Tensor]:
        """The tensors, or some by name, at another argument of the same shape."""
        names = names or tuple(self.outputs)
        program = self.programs.get(names)
        if program is None:
            program = self.programs[names] = self.compile(names)
        return dict(zip(names, program(x.contiguous())))

    def size(self, *names: str) -> int:
        """The number of operations that give some of the tensors."""
        return len(self.needed(names))

    def needed(self, names: tuple[str, ...]) -> list[Line]:
        """The operations on which some of the tensors depend."""
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
        """The operations as one Python function."""
        wanted = [self.outputs[name] for name in names]
        lines = fused(self.needed(names), wanted)
        last: dict[int | None, int] = {}
        for k, line in enumerate(lines):
            last.update(dict.fromkeys((*line.inputs, *line.outputs), k))
        last.update(dict.fromkeys(wanted, len(lines)))
        text, scope = ["def program(v0):"], {**self.scope, "addcmul": torch.addcmul}
        ends: dict[int, list[int]] = {}
        for n, k in last.items():
            if n:
                ends.setdefault(k, []).append(n)
        for k, line in enumerate(lines):  # values are let go of where they are read last
            left = ", ".join("_" if n is None else f"v{n}" for n in line.outputs)
            left = f"({left},)" if line.several else left
            done = "".join(f"; v{n} = None" for n in ends.get(k, ()))
            text.append(f" {left} = {line.text}{done}")
        given = []
        for n in wanted:
            if n in self.known:
                scope[f"k{n}"] = self.known[n].detach().clone()
            given.append(f"k{n}.clone()" if n in self.known else f"v{n}")
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
        self.seen: dict[str, list[int | None]] = {}
        self.gathered: dict[int, Gathered] = {}
        self.numbers: dict[Any, str] = {}  # names of tensors of numbers
        self.changed = frozenset().union(*(op.changed for op in self.operations))
        made = {n for op in self.operations for n in op.outputs}
        self.fixed = set(range(1, len(self.values))) - made  # tensors that were there before
        for op in self.operations:
            self.take(op)

    def real(self, number: int) -> int:
        """The tensor whose value another one has, since operations that do nothing are left out."""
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
        if not touched and self.gather(op, inputs):
            return
        for number in inputs:
            self.form(number)
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
        line = Line(text, inputs, op.outputs, op.several, touched, bool(op.changed))
        if not touched and self.alike(op):
            refs = [self.real(a.number) for a in op.args if isinstance(a, Ref)]
            if op.function is aten.mul.Tensor:
                line.factors = (self.source(op.args[0]), self.operand(op.args[1], op))
            elif op.function is aten.neg.default:
                line.negated = refs[0]
            elif op.function in (aten.add.Tensor, aten.sub.Tensor) and not op.kwargs:
                if len(refs) == 2:
                    line.terms = (refs[0], refs[1])
                    line.sign = 1 if op.function is aten.add.Tensor else -1
        self.lines.append(line)

    def alike(self, op: Operation) -> bool:
        """Whether all tensors of an operation have one type, with decimal places."""
        number = op.outputs[0]
        if number is None:
            return False
        dtype = self.values[number].dtype
        return dtype.is_floating_point and all(self.values[n].dtype == dtype for n in op.inputs)

    def gather(self, op: Operation, inputs: list[int]) -> bool:
        """Put off a gradient of an element, or a sum with one, until it is read."""
        number = op.outputs[0]
        if number is None or all(map(self.constant, inputs)):
            return False
        if op.function is aten.select_backward.default:
            element, sizes, dim, index = op.args
            dim %= len(sizes)
            source = self.real(element.number)
            self.form(source)
            places = {index % sizes[dim]: source}
            self.gathered[number] = Gathered(None, places, dim, sizes[dim], sizes)
            return True
        pair = [self.real(a.number) for a in op.args if isinstance(a, Ref)]
        if op.function is not aten.add.Tensor or op.kwargs or len(pair) != 2:
            return False
        if not any(n in self.gathered for n in pair) or pair[0] == pair[1]:
            return False
        shape = self.values[number].shape
        if any(self.values[n].shape != shape for n in pair):
            return False
        first, second = (self.gathered.get(n) for n in pair)
        one = first or second
        if first and second and (first.dim, first.sizes) != (second.dim, second.sizes):
            return False
        sides = [
            one and Gathered(n, {}, one.dim, one.size, one.sizes) if part is None else part
            for n, part in zip(pair, (first, second))
        ]
        self.gathered[number] = self.joined(*sides)  # type: ignore[arg-type]
        return True

    def joined(self, a: Gathered, b: Gathered) -> Gathered:
        """The sum of two."""
        plain = self.sum(a.plain, b.plain)
        places = {**a.elements}
        for k, number in b.elements.items():
            total = self.sum(places.get(k), number)
            places[k] = number if total is None else total
        return Gathered(plain, places, a.dim, a.size, a.sizes)

    def sum(self, a: int | None, b: int | None) -> int | None:
        """A line that adds two tensors, or the one that there is."""
        if a is None or b is None:
            return b if a is None else a
        self.values.append(self.values[a])
        return self.add(Ref(a), Ref(b), len(self.values) - 1)

    def add(self, a: Ref, b: Ref, number: int) -> int:
        self.take(
            Operation(aten.add.Tensor, [a, b], {}, [a.number, b.number], [number], False, NONE)
        )
        return self.real(number)

    def form(self, number: int) -> None:
        """Compute a sum that was put off."""
        part = self.gathered.pop(number, None)
        if part is None:
            return
        refs = {k: Ref(n) for k, n in part.elements.items()}
        inputs = list(part.elements.values())
        if len(refs) == part.size:
            args: list[Any] = [[refs[k] for k in range(part.size)], part.dim]
            spread = [Operation(aten.stack.default, args, {}, inputs, [None], False, NONE)]
        else:
            spread = [
                Operation(
                    aten.select_backward.default,
                    [ref, part.sizes, part.dim, k],
                    {},
                    [ref.number],
                    [None],
                    False,
                    NONE,
                )
                for k, ref in refs.items()
            ]
        total = part.plain
        for k, op in enumerate(spread):
            self.values.append(self.values[number])
            made = len(self.values) - 1
            last = k == len(spread) - 1 and total is None
            op.outputs = [number if last else made]
            text = self.text(op, False)
            self.lines.append(Line(text, op.inputs, op.outputs, False))
            if not last:
                if total is None:
                    total = made
                elif k < len(spread) - 1:
                    total = self.sum(total, made)
                else:
                    self.lines.append(Line(f"v{total} + v{made}", [total, made], [number], False))

    def chosen(self, op: Operation) -> bool:
        """Whether elements are chosen by constants or integers, and so as many each time."""
        if op.function not in (aten.index.Tensor, aten.masked_select.default):
            return False
        choices = [self.real(n) for n in op.inputs[1:]]
        return all(self.constant(n) or self.values[n].dtype == torch.long for n in choices)

    def unchanged(self, op: Operation) -> int | None:
        """The input that an operation gives back as it is, or None."""
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
        """An operation as Python calls it fastest."""
        function, args = op.function, op.args
        name = function._schema.name.removeprefix("aten::")
        if function is aten.linalg_solve_triangular.default and self.shared(op):
            self.scope["solve"] = solve
            upper = op.kwargs["upper"]
            return f"solve({self.source(args[0])}, {self.source(args[1])}, {upper})"
        if not op.kwargs and not op.changed:
            if name in SIGNS and len(args) == 2:
                return f"{self.source(args[0])} {SIGNS[name]} {self.operand(args[1], op)}"
            if name == "neg":
                return f"-{self.source(args[0])}"
            if name == "view" and not touched:  # strides may differ from those of the recording
                return f"{self.source(args[0])}.reshape({self.source(args[1])})"
            if name == "expand" and len(args) == 2:
                return f"{self.source(args[0])}.expand({self.source(args[1])})"
            if name == "slice" and len(args) == 4 and not touched:
                size = self.values[op.outputs[0]].shape[args[1]]  # type: ignore[index]
                first, dim, start = (self.source(value) for value in args[:3])
                self.scope[name] = torch.narrow
                return f"{name}({first}, {dim}, {start}, {size})"
            if name in FUNCTIONS:
                self.scope[name] = getattr(torch, name)
                return f"{name}({', '.join(map(self.source, args))})"
        call = f"{name}_{function._overloadname}"
        self.scope[call] = function
        options = [f"{key}={self.source(value)}" for key, value in op.kwargs.items()]
        return f"{call}({', '.join([*map(self.source, args), *options])})"

    def operand(self, value: Any, op: Operation) -> str:
        """A number as a tensor, which operations take in faster, if that changes nothing."""
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not self.alike(op):
            return self.source(value)
        tensor = self.values[op.outputs[0]]  # type: ignore[index]
        if not tensor.ndim:
            return self.source(value)
        name = f"n{len(self.scope)}"
        known = self.numbers.setdefault((value, tensor.dtype, tensor.device), name)
        if known == name:
            self.scope[name] = torch.tensor(value, dtype=tensor.dtype, device=tensor.device)
        return known

    def shared(self, op: Operation) -> bool:
        """Whether a triangle is the same for all chains."""
        number = self.real(op.args[0].number)
        one = self.values[number].shape[:-2].numel() == 1
        return one and self.constant(number) and {"upper"} == set(op.kwargs)

    def source(self, value: Any) -> str:
        """A value as text, which may be the name of what holds it."""
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


def fused(lines: list[Line], wanted: list[int]) -> list[Line]:
    """Lines, in which a product that one sum alone reads is formed with it."""
    uses: dict[int, int] = dict.fromkeys(wanted, 2)
    for line in lines:
        for n in line.inputs:
            uses[n] = uses.get(n, 0) + 1
    single = {n for n, count in uses.items() if count == 1}
    inner = {
        line.outputs[0]: line
        for line in lines
        if (line.factors or line.negated is not None) and line.outputs[0] in single
    }
    gone, kept = set(), []
    for line in lines:
        orders = [] if line.terms is None else [(*line.terms, line.sign)]
        if orders and line.sign == 1:
            orders.append((orders[0][1], orders[0][0], 1))
        for a, b, sign in orders:
            part = inner.get(b)
            if part is None or a == b or a not in line.inputs:
                continue
            if part.factors:
                value = ", value=-1" if sign < 0 else ""
                text = f"addcmul(v{a}, {part.factors[0]}, {part.factors[1]}{value})"
            elif sign > 0 and part.negated in part.inputs:
                text = f"v{a} - v{part.negated}"
            else:
                continue
            gone.add(b)
            line = Line(text, list(dict.fromkeys([a, *part.inputs])), line.outputs, False)
            break
        kept.append(line)
    return [line for line in kept if line.outputs[0] not in gone]


def solve(triangle: Tensor, b: Tensor, upper: bool) -> Tensor:
    """Solves with one triangle for all chains, as columns of one right-hand side."""
    n, columns = b.shape[-2], b.movedim(-2, 0)
    flat = columns.reshape(n, -1)
    solved = torch.linalg.solve_triangular(triangle.reshape(n, n), flat, upper=upper)
    return solved.reshape(columns.shape).movedim(0, -2)


def smallest(value: Tensor) -> Tensor:
    """A constant, kept once along each axis on which it repeats itself, so that strides are 0."""
    kept = value
    for axis, size in enumerate(value.shape):
        first = kept.narrow(axis, 0, 1) if size else kept
        if size > 1 and bool((kept == first).all()):
            kept = first
    return kept.contiguous().expand(value.shape)
