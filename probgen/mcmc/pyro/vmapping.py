r"""Replacements of operations and densities that `torch.func.vmap` does not take.

Under `vmap`, a function of one chain cannot write into a tensor of zeros what depends on the chain,
choose elements by a mask, or call an operation that looks at values first. Each has an equivalent
that gives the same numbers. A few densities of Pyro branch on values or call an
`autograd.Function`; they are stated here without.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType
from typing import Any

import torch
from pyro.distributions import CoalescentTimesWithRate, DiscreteHMM, Stable, StableWithLogProb
from pyro.distributions import stable_log_prob as stable
from torch import Tensor
from torch.distributions import Dirichlet
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from torch.overrides import TorchFunctionMode

__all__ = ["Batchable", "batchable"]

ROOM = {
    *(torch.zeros, torch.ones, torch.empty, torch.full, torch.zeros_like, torch.ones_like),
    *(torch.empty_like, torch.full_like, torch.clone, torch.Tensor.clone, torch.eye),
    torch.Tensor.new,
    *(getattr(torch.Tensor, f"new_{kind}") for kind in ("zeros", "ones", "empty", "full")),
}
PARTS = (
    *("base_dist", "_component_distribution", "observation_dist", "component0", "component1"),
    *("_dirichlet", "_beta"),  # of which beta variables and Cholesky factors are drawn
)
NEAR = stable.alpha_near_one_tolerance


class Batchable(TorchFunctionMode):
    """Replaces operations of a model that `vmap` does not take.

    Arguments:
        like: A tensor of the chain. If given, fresh tensors become tensors of the chain too, so
            that a model can write into them.
    """

    def __init__(self, like: Tensor | None = None) -> None:
        super().__init__()
        self.like = like

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is binary_cross_entropy_with_logits and len(args) == 2:
            if {k: v for k, v in kwargs.items() if v is not None} == {"reduction": "none"}:
                logits, value = args  # in one operation rather than ten
                return softplus(logits, threshold=37) - value * logits  # then rounding is coarser
        elif function is torch.mvlgamma or function is torch.Tensor.mvlgamma:
            return mvlgamma(*args, **kwargs)
        elif function is torch.Tensor.__setitem__:
            target, mask, value = args
            if isinstance(mask, Tensor) and mask.dtype == torch.bool and number(value):
                target.masked_fill_(
                    mask.reshape(mask.shape + (1,) * (target.ndim - mask.ndim)), value
                )
                return None
        elif function is torch.Tensor.clamp_:  # which vmap does for one chain after the other
            return args[0].copy_(args[0].clamp(*args[1:], **kwargs))
        elif function is torch.isclose or function is torch.Tensor.isclose:
            return isclose(*args, **kwargs)
        elif getattr(function, "__self__", None) is torch.Tensor.data and len(args) == 1:
            return args[0].detach()
        elif function is torch.Tensor.__bool__ and validates():
            return verdict(args[0])
        result = function(*args, **kwargs)
        if self.like is not None and function in ROOM and isinstance(result, Tensor):
            return result + torch.zeros_like(self.like, dtype=result.dtype)
        return result


def number(value: Any) -> bool:
    return isinstance(value, (int, float, bool)) or (isinstance(value, Tensor) and value.ndim == 0)


def validates() -> bool:
    """Whether a distribution's constructor asks, as it does for warnings and assertions."""
    frame = sys._getframe(2)
    module = frame.f_globals.get("__name__", "")
    return frame.f_code.co_name == "__init__" and ".distributions." in module


def verdict(value: Tensor) -> bool:
    """Whether a condition holds for a chain, or for most chains under `vmap`."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(value):
        value = functorch.get_unwrapped(value)
    return bool(value.detach().cpu().numpy().mean() > 0.5)


def mvlgamma(x: Tensor, p: int) -> Tensor:
    """Return the log of the multivariate gamma function, without a look at the values."""
    steps = torch.arange(p, dtype=x.dtype, device=x.device) / 2
    return (x[..., None] - steps).lgamma().sum(-1) + p * (p - 1) / 4 * math.log(math.pi)


def isclose(
    a: Tensor, b: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Tensor:
    both = equal_nan & a.isnan() & b.isnan()
    return (a == b) | both | (((a - b).abs() <= atol + rtol * b.abs()) & b.isfinite())


def safe_log(x: Tensor) -> Tensor:
    """Return logarithm, with a gradient of at most one over the machine's precision, as Pyro's."""
    slope = x / x.detach().clamp(min=torch.finfo(x.dtype).eps)
    return x.detach().log() + (slope - slope.detach())


def rebound(function: Any, **others: Any) -> Callable[..., Any]:
    """Return a function whose module's functions call others instead."""
    scope = dict(function.__globals__)
    for name, value in scope.copy().items():
        if isinstance(value, FunctionType) and value.__globals__ is function.__globals__:
            scope[name] = again(value, scope)
    scope.update(others)
    return again(function, scope)


def again(function: FunctionType, scope: dict[str, Any]) -> FunctionType:
    new = FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
    new.__kwdefaults__ = function.__kwdefaults__
    return new


def parts(fn: Any) -> Iterator[Any]:
    """Return a distribution and those that it is made of."""
    yield fn
    for name in PARTS:
        inner = vars(fn).get(name)
        if inner is not None:
            yield from parts(inner)


@contextlib.contextmanager
def batchable(fn: Any) -> Iterator[None]:
    """Replace what `vmap` does not take of a distribution or its parts."""
    replaced = []
    for part, name in itertools.product(parts(fn), ("log_prob", "rsample")):
        other = OTHERS.get(getattr(type(part), name, None))
        if other is not None and name not in vars(part):
            setattr(part, name, partial(other, part))
            replaced.append((part, name))
    try:
        yield
    finally:
        for part, name in replaced:
            delattr(part, name)


def dirichlet_rsample(fn: Any, shape: Any = ()) -> Tensor:
    """Return a draw from a Dirichlet distribution, by gamma variables."""
    alpha = fn.concentration.expand(fn._extended_shape(torch.Size(shape)))
    draw = torch._standard_gamma(alpha).clamp(min=torch.finfo(alpha.dtype).tiny)
    return draw / draw.sum(-1, keepdim=True)


def stable_log_prob(alpha: Tensor, beta: Tensor, value: Tensor, coords: str) -> Tensor:
    """Pyro's density of a stable distribution, with both sides of each branch."""
    if coords == "S":
        value = torch.where(alpha == 1, value, value - beta * (math.pi / 2 * alpha)).tan()
    elif coords != "S0":
        raise ValueError(f"Unknown coords: {coords}")
    near = (alpha - 1).abs() < NEAR
    above = around_zero(torch.where(near, 1 + NEAR, alpha), beta, value)
    below = around_zero(torch.full_like(alpha, 1 - NEAR), beta, value)
    weight = torch.where(near, (alpha - 1) / (2 * NEAR) + 0.5, 0.5)
    return torch.where(near, mean(above, below, weight), above)


def around_zero(alpha: Tensor, beta: Tensor, value: Tensor) -> Tensor:
    z = value + beta * (math.pi / 2 * alpha).tan()
    top = stable._unsafe_alpha_stable_log_prob_at_zero(alpha, 0).exp().reciprocal()
    width = stable.value_near_zero_tolerance_alpha * alpha / (1 - alpha).abs()
    width = torch.minimum(width, stable.value_near_zero_tolerance_density * top)
    near = z.abs() < width
    above = stable._unsafe_stable_log_prob(alpha, beta, torch.where(near, width, z))
    below = stable._unsafe_stable_log_prob(alpha, beta, -width)
    weight = torch.where(near, z / (2 * width) + 0.5, 0.5)
    return torch.where(near, mean(above, below, weight), above)


def mean(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return torch.logaddexp(a + weight.log(), b + (1 - weight).log())


OTHERS: dict[Any, Callable[..., Any]] = {
    DiscreteHMM.log_prob: rebound(DiscreteHMM.log_prob, safe_log=safe_log),
    CoalescentTimesWithRate.log_prob: rebound(CoalescentTimesWithRate.log_prob, safe_log=safe_log),
    Dirichlet.rsample: dirichlet_rsample,
    Stable.log_prob: rebound(Stable.log_prob, _stable_log_prob=stable_log_prob),
}
OTHERS[StableWithLogProb.log_prob] = OTHERS[Stable.log_prob]
