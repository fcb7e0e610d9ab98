"""Recipes: complete models, one call each."""

from .flows import (
    IAF,
    MAF,
    NICE,
    NSF,
    CircularNSF,
    PlanarFlow,
    RadialFlow,
    RealNVP,
    SylvesterFlow,
)

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
