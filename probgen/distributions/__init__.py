"""Lazy distributions and the Pyro distributions that they return."""

from ..core import Density, Fixed, LazyDistribution
from .dequantized import Dequantized, DequantizedDistribution
from .flow import Flow, FlowDistribution
from .heads import (
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Poisson,
    StudentT,
)
from .latent import Latent, LatentDistribution, LatentVariable, Marginal, VampPrior
from .parametric import (
    DiagonalNormal,
    FullNormal,
    GaussianMixture,
    StandardNormal,
    UniformAngles,
)

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "ContinuousBernoulli",
    "Density",
    "Dequantized",
    "DequantizedDistribution",
    "DiagonalNormal",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Fixed",
    "Flow",
    "FlowDistribution",
    "FullNormal",
    "GaussianMixture",
    "Latent",
    "LatentDistribution",
    "LatentVariable",
    "LazyDistribution",
    "Marginal",
    "Poisson",
    "StandardNormal",
    "StudentT",
    "UniformAngles",
    "VampPrior",
]
