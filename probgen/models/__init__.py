"""Recipes: complete models, one call each."""

from .flows import IAF, MAF, NICE, NSF, CircularNSF, RealNVP
from .residual import PlanarFlow, RadialFlow, SylvesterFlow

__all__ = [
    "IAF",
    "MAF",
    "NICE",
    "NSF",
    "CircularNSF",
    "PlanarFlow",
    "RadialFlow",
    "RealNVP",
    "SylvesterFlow",
]
