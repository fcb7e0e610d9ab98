"""Lazy distributions and the Pyro distributions that they return."""

from ..core import Density, Fixed, LazyDistribution
from .codebook import Codebook, Quantization
from .cold import ColdDiffusion, RestorerMLP
from .composed import Energy, ProductOfExperts, Tilted
from .dequantized import Dequantized, DequantizedDistribution
from .diffusion import Diffusion, DiffusionDistribution
from .diffusion_pair import DiffusionGuide, DiffusionModel
from .discrete import DiscreteDiffusion, DiscreteDiffusionDistribution, JumpDiffusion
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
from .latent_variable import LatentDistribution, LatentVariable, Marginal
from .parametric import (
    DiagonalNormal,
    FullNormal,
    GaussianMixture,
    StandardNormal,
    UniformAngles,
)
from .pushforward import Pushforward, PushforwardDistribution
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
    "DequantizedDistribution",
    "DiagonalNormal",
    "Diffusion",
    "DiffusionDistribution",
    "DiffusionGuide",
    "DiffusionModel",
    "DiscreteDiffusion",
    "DiscreteDiffusionDistribution",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
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
    "LatentDistribution",
    "LatentVariable",
    "LazyDistribution",
    "Marginal",
    "Merge",
    "Partition",
    "Poisson",
    "PrecisionWeighted",
    "ProductOfExperts",
    "Pushforward",
    "PushforwardDistribution",
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
