"""Recipes: complete models, one call each."""

from ..distributions.belief import DeepBeliefNetwork
from ..distributions.boltzmann import BoltzmannMachine, Ising
from ..distributions.rbm import RBM
from ..networks.hopfield import HopfieldNetwork, ModernHopfield
from .convolutional import VQVAE, AutoencoderKL, ConvVAE
from .energy import EnergyModel, JointEnergyModel
from .flows import IAF, MAF, NICE, NSF, CircularNSF, RealNVP
from .hierarchical import HierarchicalVAE, LadderVAE
from .residual import PlanarFlow, RadialFlow, SylvesterFlow
from .vae import VAE, ConditionalVAE, SemiSupervisedVAE

__all__ = [
    "IAF",
    "MAF",
    "NICE",
    "NSF",
    "RBM",
    "VAE",
    "VQVAE",
    "AutoencoderKL",
    "BoltzmannMachine",
    "CircularNSF",
    "ConditionalVAE",
    "ConvVAE",
    "DeepBeliefNetwork",
    "EnergyModel",
    "HierarchicalVAE",
    "HopfieldNetwork",
    "Ising",
    "JointEnergyModel",
    "LadderVAE",
    "ModernHopfield",
    "PlanarFlow",
    "RadialFlow",
    "RealNVP",
    "SemiSupervisedVAE",
    "SylvesterFlow",
]
