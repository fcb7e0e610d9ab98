"""The contract every family keeps: lazy modules, bijectors, checkpoints and the Pyro bridge."""

from .bijector import (
    Bijector,
    Elementwise,
    Inverse,
    broadcast,
    call_and_ladj,
    detached,
    inverse_and_ladj,
)
from .checkpoint import CheckpointError, load, save
from .lazy import (
    Constant,
    Density,
    Fixed,
    Lazy,
    LazyDistribution,
    LazyTransform,
    as_lazy,
    as_lazy_transform,
)
from .numerics import increasing_root, is_wrapped
from .plates import sample
from .registry import register

__all__ = [
    "Bijector",
    "CheckpointError",
    "Constant",
    "Density",
    "Elementwise",
    "Fixed",
    "Inverse",
    "Lazy",
    "LazyDistribution",
    "LazyTransform",
    "as_lazy",
    "as_lazy_transform",
    "broadcast",
    "call_and_ladj",
    "detached",
    "increasing_root",
    "inverse_and_ladj",
    "is_wrapped",
    "load",
    "register",
    "sample",
    "save",
]
