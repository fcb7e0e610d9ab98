"""Lazy distributions and the Pyro distributions that they return."""

from ..core import Density, Fixed, LazyDistribution
from .codebook import Codebook, Quantization
from .cold import ColdDiffusion, RestorerMLP
from .composed import Energy, ProductOfExperts, Tilted
from .dequantized import Dequantized
from .diffusion import Diffusion, DiffusionDistribution
from .discrete import DiscreteDiffusion, JumpDiffusion
from .embedded import Embedded
from .energy import EnergyBased, Partition
from .energy_distribution import EnergyDistribution
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
from .hierarchy import Hierarchy
from .latent import Latent
from .latent_variable import LatentVariable, Marginal
from .module_distribution import ModuleDistribution
from .parametric import (
    DiagonalNormal,
    FullNormal,
    GaussianMixture,
    StandardNormal,
    UniformAngles,
)
from .pushforward import Pushforward
from .quantized import Quantized
from .rungs import Merge, PrecisionWeighted, Residual, Rung
from .semisupervised import SemiSupervised
from .vamp_prior import VampPrior

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "Codebook",
    "ColdDiffusion",
    "ContinuousBernoulli",
    "Density",
    "Dequantized",
    "DiagonalNormal",
    "Diffusion",
    "DiffusionDistribution",
    "DiscreteDiffusion",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Embedded",
    "Energy",
    "EnergyBased",
    "EnergyDistribution",
    "Fixed",
    "Flow",
    "FlowDistribution",
    "FullNormal",
    "GaussianMixture",
    "Hierarchy",
    "JumpDiffusion",
    "Latent",
    "LatentVariable",
    "LazyDistribution",
    "Marginal",
    "Merge",
    "ModuleDistribution",
    "Partition",
    "Poisson",
    "PrecisionWeighted",
    "ProductOfExperts",
    "Pushforward",
    "Quantization",
    "Quantized",
    "Residual",
    "RestorerMLP",
    "Rung",
    "SemiSupervised",
    "StandardNormal",
    "StudentT",
    "Tilted",
    "UniformAngles",
    "VampPrior",
]
