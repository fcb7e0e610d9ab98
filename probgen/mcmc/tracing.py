r"""A batched log density and its gradient as one list of tensor operations.

`torch.func` gives the gradient of a function of one chain for all chains, but runs every layer of
it anew at each call. `make_fx` records the operations once; replayed, they give the same numbers
without the layers. What does not depend on the position is then computed once, equal operations
are merged, and those that do nothing are left out. All of it is exact.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["record"]

aten = torch.ops.aten
FILLS = (aten.zeros_like.default, aten.ones_like.default, aten.full_like.default)
SUMS = (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
OPERATORS = ("add", "sub", "mul", "neg", "pow", "lt", "le", "gt", "ge")
FUNCTIONS = (
    *("exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "sigmoid", "tanh", "abs", "lgamma"),
    *("sum", "mm", "bmm", "unsqueeze", "squeeze", "permute", "transpose", "where", "clone"),
    *("clamp_min", "clamp_max", "masked_fill", "digamma"),
)
NATIVE: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in OPERATORS},
    **{name: getattr(torch, name) for name in FUNCTIONS},
    "div": operator.truediv,
}
VIEWS = (aten.view.default, aten.expand.default, aten._to_copy.default, aten.alias.default)


def record(function: Callable[[Tensor], Any], x: Tensor) -> Callable[[Tensor], Any]:
    """Records a function's operations at positions of one shape, and shortens the list.

    Arguments:
        function: A function of a tensor without side effects, whose operations do not depend on
            values, and which keeps no state. Tensors that it closes over are read once.
        x: An example of its argument.

    Returns:
        A function that takes tensors of the shape, dtype and device of `x` only.

    Example:
        >>> def function(x):
        ...     return (x * 1.0 + torch.zeros(3)).sin()
        >>> recorded = record(function, torch.zeros(3))
        >>> [node.name for node in recorded.graph.nodes]
        ['x_1', 'sin', 'output']
    """
    pure = torch.func.functionalize(function)
    module = make_fx(lambda x: pure(x))(x)  # which reads the number of arguments
    values = Interpreter(module).collect(x)
    shorten(module, values)
    return module


class Interpreter(fx.Interpreter):
    """Runs the operations once and keeps their results."""

    def collect(self, x: Tensor) -> dict[fx.Node, Any]:
        self.garbage_collect_values = False
        with torch.no_grad():
            self.run(x)
        return dict(self.env)


def shorten(module: fx.GraphModule, values: dict[fx.Node, Any]) -> None:
    """Folds constants, merges equal operations and removes those that do nothing."""
    graph = module.graph
    seen: dict[Any, fx.Node] = {}
    known: dict[fx.Node, Any] = {}  # the value of each node that does not depend on the position
    for node in list(graph.nodes):
        if node.op == "get_attr":
            known[node] = values[node]
            continue
        if node.op != "call_function":
            continue
        if node.target is aten._linalg_check_errors.default:
            graph.erase_node(node)  # a chain outside the domain gets nan, and stays alone
            continue
        inputs = node.all_input_nodes
        if node.target in FILLS or all(i in known for i in inputs):
            known[node] = values[node]
            continue
        same = unchanged(node, known, values)
        if same is None:
            key = (node.target, str(node.args), str(node.kwargs))
            same = seen.setdefault(key, node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    for number, (node, value) in enumerate(known.items()):
        if node.op == "call_function" and isinstance(value, Tensor):
            name = f"_constant_{number}"
            module.__dict__[name] = smallest(value)  # read faster than a buffer
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.create_node("get_attr", name))
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if node.op == "call_function":
            quicken(node, module, values)
    module.recompile()


def quicken(node: Any, module: Any, values: dict[fx.Node, Any]) -> None:
    """Calls what Python calls fastest, and solves for all chains at once."""
    target, args = node.target, node.args
    if target is aten.linalg_solve_triangular.default and args[0].op == "get_attr":
        triangle, plain = getattr(module, args[0].target), {"upper"} == set(node.kwargs)
        if plain and triangle.shape[:-2].numel() == 1:
            node.target = solve
        return
    if node.kwargs or not isinstance(target, torch._ops.OpOverload):
        return
    name = target._schema.name.removeprefix("aten::")
    if name in NATIVE:
        node.target = NATIVE[name]
    elif name == "view":  # strides may differ from those at the time of recording
        node.op, node.target = "call_method", "reshape"
    elif name == "slice" and len(args) == 4:
        size = values[node].shape[args[1]]
        node.target, node.args = torch.narrow, (args[0], args[1], args[2], size)


def solve(triangle: Tensor, b: Tensor, upper: bool) -> Tensor:
    """Solves with one triangle for all chains, as columns of one right-hand side."""
    n, columns = b.shape[-2], b.movedim(-2, 0)
    flat = columns.reshape(n, -1)
    solved = torch.linalg.solve_triangular(triangle.reshape(n, n), flat, upper=upper)
    return solved.reshape(columns.shape).movedim(0, -2)


def unchanged(node: fx.Node, known: dict[fx.Node, Any], values: dict[fx.Node, Any]) -> Any:
    """The input that an operation gives back as it is, or None."""
    args: Any = node.args
    out = values[node]
    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode") is not None:
        return None
    candidates: list[tuple[Any, Any, float]] = []
    if node.target in SUMS + PRODUCTS and len(args) == 2:
        neutral = 0.0 if node.target in SUMS else 1.0
        candidates.append((args[0], args[1], neutral))
        if node.target in (aten.add.Tensor, aten.mul.Tensor):
            candidates.append((args[1], args[0], neutral))
    elif node.target is aten.pow.Tensor_Scalar:
        candidates.append((args[0], args[1], 1.0))
    elif node.target in VIEWS:
        candidates.append((args[0], 0.0, 0.0))
    elif node.target is aten.permute.default and list(args[1]) == list(range(out.ndim)):
        return args[0]
    for kept, other, neutral in candidates:
        if not isinstance(kept, fx.Node):
            continue
        value = values[kept]
        like = (value.shape, value.dtype) == (out.shape, out.dtype)
        if isinstance(other, fx.Node):
            if other not in known:
                continue
            other = known[other]
        if like and bool(torch.as_tensor(other == neutral).all()):
            return kept
    return None


def smallest(value: Tensor) -> Tensor:
    """A constant, kept once along each axis on which it repeats itself, so that strides are 0."""
    kept = value
    for axis, size in enumerate(value.shape):
        first = kept.narrow(axis, 0, 1) if size else kept
        if size > 1 and bool((kept == first).all()):
            kept = first
    return kept.contiguous().expand(value.shape)
