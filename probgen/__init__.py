"""Deep generative models as Pyro distributions."""

from . import core, distributions, models, networks, objectives, transforms
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
    "distributions",
    "fit",
    "load",
    "models",
    "networks",
    "objectives",
    "sample",
    "transforms",
]
