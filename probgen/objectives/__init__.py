"""Training objectives, objects to hand to :func:`probgen.fit` and to Pyro's `SVI`."""

from .likelihood import MaximumLikelihood, ReverseKL
from .variational import (
    ELBO,
    IWAE,
    ChiSquare,
    DReG,
    ForwardKL,
    Renyi,
    StickingTheLanding,
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
    "StickingTheLanding",
    "Variational",
    "Weights",
]
