r"""Small tensors as arrays of numpy, for models of many operations.

An operation on a hundred numbers takes torch a microsecond, most of it on the way to them, and
numpy a third of that. The record of a loop over time has tens of thousands of such operations.
Sums, products, square roots and choices of elements give the same numbers in either; all else stays
with torch, on the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["LARGEST", "LEAST", "SCOPE", "array_text", "pays"]

LEAST = 500  # operations
LARGEST = 8192  # numbers in a tensor, beyond which numpy gains nothing
SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


def stack(parts: list[Any], axis: int) -> Any:
    """Arrays along a new axis."""
    out = np.empty((len(parts), *parts[0].shape), parts[0].dtype)
    for k, part in enumerate(parts):
        out[k] = part
    return out if axis == 0 else np.moveaxis(out, 0, axis) if out.ndim > 2 else out.T


def scatter(part: Any, shape: list[int], index: tuple[Any, ...]) -> Any:
    """Return an array of zeros but for some elements."""
    out = np.zeros(shape, part.dtype)
    out[index] = part
    return out


SCOPE: dict[str, Any] = {
    **{"T": torch.from_numpy, "np_sqrt": np.sqrt, "np_stack": stack, "np_scatter": scatter},
    "np_quiet": lambda: np.errstate(all="ignore"),
}


def small(value: Tensor) -> bool:
    """Whether a tensor is one of numbers that numpy treats as torch does."""
    plain = value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64)
    return plain and 0 < value.ndim and value.numel() <= LARGEST


def array_text(
    op: Any, values: list[Tensor], real: Callable[[int], int], name_of: Callable[[int], str | None]
) -> str:
    """Return an operation as text for arrays, or nothing.

    Arguments:
        op: The operation.
        values: The value of each tensor at the time of recording.
        real: Gives the tensor that stands for one.
        name_of: Names a constant as an array or a number; nothing if it is neither, None of what
            is no constant.
    """
    name = op.function._schema.name.removeprefix("aten::")
    if op.several or op.changed or len(op.outputs) != 1:
        return ""
    out = values[op.outputs[0]]
    if not small(out):
        return ""
    operands: list[str] = []
    for arg in op.args:
        number = getattr(arg, "number", None)
        if number is None:
            operands.append(f"({arg!r})" if type(arg) in (int, float) else "")
            continue
        value, constant = values[real(number)], name_of(real(number))
        if value.dtype != out.dtype or constant == "" or (constant is None and not small(value)):
            return ""
        operands.append(f"v{real(number)}" if constant is None else constant)
    return formed(name, op, operands, out, values, real, name_of)


def formed(
    name: str,
    op: Any,
    operands: list[str],
    out: Tensor,
    values: list[Tensor],
    real: Callable[[int], int],
    name_of: Callable[[int], str | None],
) -> str:
    """Return the text, given that of the operands."""
    args = op.args
    if op.kwargs:
        return ""
    if name in SIGNS and len(args) == 2 and all(operands):
        return f"{operands[0]} {SIGNS[name]} {operands[1]}"
    if name == "rsub" and len(args) == 2 and all(operands):
        return f"{operands[1]} - {operands[0]}"
    if name == "neg":
        return f"-{operands[0]}"
    if name == "sqrt":
        return f"np_sqrt({operands[0]})"
    if name == "pow" and len(args) == 2 and type(args[1]) in (int, float) and args[1] == 2:
        return f"{operands[0]} * {operands[0]}"
    if name in ("view", "unsqueeze", "squeeze"):
        return f"{operands[0]}.reshape({list(out.shape)})"
    if name == "select" and len(args) == 3:
        before = ":, " * (args[1] % (out.ndim + 1))
        return f"{operands[0]}[{before}{args[2]}]"
    if name == "select_backward" and len(args) == 4:
        before = "slice(None), " * (args[2] % out.ndim)
        return f"np_scatter({operands[0]}, {list(args[1])}, ({before}{args[3]},))"
    if name == "stack":
        parts = [(real(ref.number), name_of(real(ref.number))) for ref in args[0]]
        if all(constant is None and small(values[n]) for n, constant in parts):
            axis = (args[1] if len(args) > 1 else 0) % out.ndim
            return f"np_stack([{', '.join(f'v{n}' for n, _ in parts)}], {axis})"
    return ""


def pays(x: Tensor, lines: list[Any]) -> bool:
    """Whether operations are better done on arrays."""
    if len(lines) < LEAST or not small(x):
        return False
    if any(line.touched and "as_strided" in line.text for line in lines):
        return False  # which counts from where memory begins
    return sum(bool(line.array) for line in lines) > 0.8 * len(lines)
