"""Recipes: complete models, one call each."""

from ..distributions.belief import DeepBeliefNetwork
from ..distributions.boltzmann import BoltzmannMachine, Ising
from ..distributions.cold import ColdDiffusion
from ..distributions.rbm import RBM
from ..networks.hopfield import HopfieldNetwork, ModernHopfield
from .convolutional import VQVAE, AutoencoderKL, ConvVAE
from .diffusion import CNF, DDPM, EDM, NCSN, FlowMatching, ScoreSDE
from .discrete import CTMC, D3PM
from .energy import EnergyModel, JointEnergyModel
from .flows import IAF, MAF, NICE, NSF, CircularNSF, RealNVP
from .hierarchical import HierarchicalVAE, LadderVAE
from .residual import PlanarFlow, RadialFlow, SylvesterFlow
from .vae import VAE, ConditionalVAE, SemiSupervisedVAE

__all__ = [
    "CNF",
    "CTMC",
    "D3PM",
    "DDPM",
    "EDM",
    "IAF",
    "MAF",
    "NCSN",
    "NICE",
    "NSF",
    "RBM",
    "VAE",
    "VQVAE",
    "AutoencoderKL",
    "BoltzmannMachine",
    "CircularNSF",
    "ColdDiffusion",
    "ConditionalVAE",
    "ConvVAE",
    "DeepBeliefNetwork",
    "EnergyModel",
    "FlowMatching",
    "HierarchicalVAE",
    "HopfieldNetwork",
    "Ising",
    "JointEnergyModel",
    "LadderVAE",
    "ModernHopfield",
    "PlanarFlow",
    "RadialFlow",
    "RealNVP",
    "ScoreSDE",
    "SemiSupervisedVAE",
    "SylvesterFlow",
]
