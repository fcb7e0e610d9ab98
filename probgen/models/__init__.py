"""Recipes: complete models, one call each."""

from .convolutional import VQVAE, AutoencoderKL, ConvVAE
from .flows import IAF, MAF, NICE, NSF, CircularNSF, RealNVP
from .hierarchical import HierarchicalVAE, LadderVAE
from .residual import PlanarFlow, RadialFlow, SylvesterFlow
from .vae import VAE, ConditionalVAE, SemiSupervisedVAE

__all__ = [
    "IAF",
    "MAF",
    "NICE",
    "NSF",
    "VAE",
    "VQVAE",
    "AutoencoderKL",
    "CircularNSF",
    "ConditionalVAE",
    "ConvVAE",
    "HierarchicalVAE",
    "LadderVAE",
    "PlanarFlow",
    "RadialFlow",
    "RealNVP",
    "SemiSupervisedVAE",
    "SylvesterFlow",
]
