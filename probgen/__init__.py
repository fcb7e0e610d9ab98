"""Deep generative models as Pyro distributions."""

from . import (
    core,
    datasets,
    diffusion,
    distributions,
    inference,
    mcmc,
    metrics,
    models,
    networks,
    objectives,
    plots,
    transforms,
)
from .core import CheckpointError, Density, LazyDistribution, LazyTransform, load, sample
from .inference import posterior
from .training import CheckpointWarning, History, fit

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "CheckpointWarning",
    "Density",
    "History",
    "LazyDistribution",
    "LazyTransform",
    "core",
    "datasets",
    "diffusion",
    "distributions",
    "fit",
    "inference",
    "load",
    "mcmc",
    "metrics",
    "models",
    "networks",
    "objectives",
    "plots",
    "posterior",
    "sample",
    "transforms",
]
