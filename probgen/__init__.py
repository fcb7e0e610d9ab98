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
from .core import (
    CheckpointError,
    Density,
    LazyDistribution,
    LazyTransform,
    OutlierWarning,
    ScaleWarning,
    load,
    register,
    sample,
)
from .inference import posterior
from .training.fitting import CheckpointWarning, History, fit
from .training.levels import DiscreteDataWarning
from .training.streams import LengthWarning

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "CheckpointWarning",
    "Density",
    "DiscreteDataWarning",
    "History",
    "LazyDistribution",
    "LazyTransform",
    "LengthWarning",
    "OutlierWarning",
    "ScaleWarning",
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
    "register",
    "sample",
    "transforms",
]
