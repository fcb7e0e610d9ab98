"""Training objectives, objects to hand to :func:`probgen.fit` and to Pyro's `SVI`."""

from ..core.deprecation import former_names
from .base import Objective, Player
from .belief import GreedyLayerwise, UpDown
from .contrastive import ContrastiveDivergence, JointEnergy, NoiseContrastive
from .denoising import Denoising, EvidenceBound
from .discrete import DiscreteDenoising
from .divergences import ChiSquare, ForwardKL, Renyi
from .likelihood import MaximumLikelihood, ReverseKL
from .pseudo import PseudoLikelihood, RatioMatching
from .quantization import VectorQuantization
from .restoration import Restoration
from .score import (
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    ImplicitScoreMatching,
    SlicedScoreMatching,
    parzen_score,
)
from .spectral import SpectralRegularized
from .variational import ELBO, IWAE, DReG, StickingTheLanding, Supervised, Variational
from .weights import Weights

__all__ = [
    "ELBO",
    "IWAE",
    "ChiSquare",
    "ContrastiveDivergence",
    "DReG",
    "Denoising",
    "DenoisingScoreMatching",
    "DiscreteDenoising",
    "EvidenceBound",
    "ExplicitScoreMatching",
    "ForwardKL",
    "GreedyLayerwise",
    "ImplicitScoreMatching",
    "JointEnergy",
    "MaximumLikelihood",
    "NoiseContrastive",
    "Objective",
    "Player",
    "PseudoLikelihood",
    "RatioMatching",
    "Renyi",
    "Restoration",
    "ReverseKL",
    "SlicedScoreMatching",
    "SpectralRegularized",
    "StickingTheLanding",
    "Supervised",
    "UpDown",
    "Variational",
    "VectorQuantization",
    "Weights",
    "parzen_score",
]

__getattr__ = former_names(__name__)
