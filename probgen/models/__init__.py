"""Recipes: complete models, one call each."""

from ..distributions.diffusion.cold import ColdDiffusion
from ..distributions.energy.boltzmann import BoltzmannMachine
from ..distributions.energy.deep_belief_network import DeepBeliefNetwork
from ..distributions.energy.ising import Ising
from ..distributions.energy.rbm import RBM
from .convolutional import VQVAE, AutoencoderKL, ConvVAE
from .diffusion import CNF, DDPM, EDM, NCSN, FlowMatching, ScoreSDE
from .discrete import CTMC, D3PM
from .energy import EnergyModel, JointEnergyModel
from .flows import IAF, MAF, NICE, NSF, CircularNSF, RealNVP
from .hierarchical import HierarchicalVAE, LadderVAE
from .hopfield import HopfieldNetwork, ModernHopfield
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
