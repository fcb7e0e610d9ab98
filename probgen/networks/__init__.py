"""Networks that condition transforms and distributions, along the leading axis."""

from .convolution import Decoder, Encoder
from .dense import MLP, ResidualMLP
from .energy import EnergyNetwork
from .made import MADE
from .residual import InvertedResidual, Pixels
from .time import TimeEmbedding, TimeMLP
from .unet import UNet

__all__ = [
    "MADE",
    "MLP",
    "Decoder",
    "Encoder",
    "EnergyNetwork",
    "InvertedResidual",
    "Pixels",
    "ResidualMLP",
    "TimeEmbedding",
    "TimeMLP",
    "UNet",
]
