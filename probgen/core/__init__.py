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
from .cards import Card, Density
from .checkpoint import CheckpointError, load, save
from .fixed import Constant, Fixed, as_lazy, as_lazy_transform
from .lazy import LazyDistribution
from .lazy_parts import DataDependentNetwork, initialize_part
from .lazy_transform import LazyTransform
from .numerics import increasing_root, is_wrapped
from .registry import register
from .sample_site import sample
from .standardize import OutlierWarning, ScaleWarning, Standardizer

__all__ = [
    "Bijector",
    "Card",
    "CheckpointError",
    "Constant",
    "DataDependentNetwork",
    "Density",
    "Elementwise",
    "Fixed",
    "Inverse",
    "LazyDistribution",
    "LazyTransform",
    "OutlierWarning",
    "ScaleWarning",
    "Standardizer",
    "as_lazy",
    "as_lazy_transform",
    "broadcast",
    "call_and_ladj",
    "detached",
    "increasing_root",
    "initialize_part",
    "inverse_and_ladj",
    "is_wrapped",
    "load",
    "register",
    "sample",
    "save",
]
