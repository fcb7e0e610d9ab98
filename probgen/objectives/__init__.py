"""Training objectives, objects to hand to :func:`probgen.fit` and to Pyro's `SVI`."""

from .divergences import ChiSquare, ForwardKL, Renyi
from .likelihood import MaximumLikelihood, ReverseKL
from .quantization import VectorQuantization
from .spectral import SpectralRegularized
from .variational import (
    ELBO,
    IWAE,
    DReG,
    StickingTheLanding,
    Supervised,
    Variational,
    Weights,
)

__all__ = [
    "ELBO",
    "IWAE",
    "ChiSquare",
    "DReG",
    "ForwardKL",
    "MaximumLikelihood",
    "Renyi",
    "ReverseKL",
    "SpectralRegularized",
    "StickingTheLanding",
    "Supervised",
    "Variational",
    "VectorQuantization",
    "Weights",
]
