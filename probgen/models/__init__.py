"""Recipes: complete models, one call each."""

from .flows import IAF, MAF, NICE, NSF, CircularNSF, RealNVP
from .residual import PlanarFlow, RadialFlow, SylvesterFlow
from .vae import VAE, ConditionalVAE

__all__ = [
    "IAF",
    "MAF",
    "NICE",
    "NSF",
    "VAE",
    "CircularNSF",
    "ConditionalVAE",
    "PlanarFlow",
    "RadialFlow",
    "RealNVP",
    "SylvesterFlow",
]
