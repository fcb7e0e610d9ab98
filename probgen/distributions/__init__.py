"""Lazy distributions and the Pyro distributions that they return."""

from ..core import Density, Fixed, LazyDistribution
from .dequantized import Dequantized, DequantizedDistribution
from .flow import Flow, FlowDistribution
from .parametric import DiagonalNormal, GaussianMixture, StandardNormal, UniformAngles

__all__ = [
    "Density",
    "Dequantized",
    "DequantizedDistribution",
    "DiagonalNormal",
    "Fixed",
    "Flow",
    "FlowDistribution",
    "GaussianMixture",
    "LazyDistribution",
    "StandardNormal",
    "UniformAngles",
]
