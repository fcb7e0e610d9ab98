"""Networks that condition transforms and distributions, along the leading axis."""

from .convolution import Decoder, Encoder
from .dense import MLP, ResidualMLP
from .hopfield import HopfieldNetwork, ModernHopfield
from .made import MADE
from .residual import InvertedResidual, Pixels

__all__ = [
    "MADE",
    "MLP",
    "Decoder",
    "Encoder",
    "HopfieldNetwork",
    "InvertedResidual",
    "ModernHopfield",
    "Pixels",
    "ResidualMLP",
]
