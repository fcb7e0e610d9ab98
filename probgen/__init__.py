"""Deep generative models as Pyro distributions."""

from . import (
    core,
    datasets,
    distributions,
    metrics,
    models,
    networks,
    objectives,
    plots,
    transforms,
)
from .core import CheckpointError, Density, LazyDistribution, LazyTransform, load, sample
from .training import History, fit

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Density",
    "History",
    "LazyDistribution",
    "LazyTransform",
    "core",
    "datasets",
    "distributions",
    "fit",
    "load",
    "metrics",
    "models",
    "networks",
    "objectives",
    "plots",
    "sample",
    "transforms",
]
