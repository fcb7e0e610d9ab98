"""Lazy distributions and the Pyro distributions that they return."""

from ..core import Density, Fixed, LazyDistribution
from ..core.deprecation import former_names
from .diffusion.cold import ColdDiffusion, RestorerMLP
from .diffusion.continuous import Diffusion
from .diffusion.discrete import DiscreteDiffusion, JumpDiffusion
from .diffusion.distribution import DiffusionDistribution
from .embedded import Embedded
from .energy.base import EnergyBased, Partition
from .energy.composed import Energy, ProductOfExperts, Tilted
from .energy.distribution import EnergyDistribution
from .flows.dequantized import Dequantized
from .flows.flow import Flow, FlowDistribution
from .implicit.pushforward import Pushforward
from .latent.base import LatentVariable, Marginal
from .latent.codebook import Codebook, Quantization
from .latent.hierarchical import Hierarchy
from .latent.layers import LatentLayer, PosteriorUpdate, PrecisionWeightedUpdate, ResidualUpdate
from .latent.quantized import Quantized
from .latent.semisupervised import SemiSupervised
from .latent.vae import Latent
from .latent.vamp_prior import VampPrior
from .module_distribution import ModuleDistribution
from .parametric.discretized import DiscretizedLogistic, DiscretizedLogisticMixture
from .parametric.likelihoods import (
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    Poisson,
    StudentT,
)
from .parametric.mixture import GaussianMixture
from .parametric.normal import DiagonalNormal, FullNormal
from .parametric.standard import StandardNormal, UniformAngles

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
    "LatentLayer",
    "LatentVariable",
    "LazyDistribution",
    "Marginal",
    "ModuleDistribution",
    "Partition",
    "Poisson",
    "PosteriorUpdate",
    "PrecisionWeightedUpdate",
    "ProductOfExperts",
    "Pushforward",
    "Quantization",
    "Quantized",
    "ResidualUpdate",
    "RestorerMLP",
    "SemiSupervised",
    "StandardNormal",
    "StudentT",
    "Tilted",
    "UniformAngles",
    "VampPrior",
]

__getattr__ = former_names(__name__)
