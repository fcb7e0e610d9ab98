"""Diffusions: schedules of noise, denoisers, and samplers."""

from ..core.deprecation import former_names
from .cold import (
    BlurDegradation,
    ColdSampler,
    CustomDegradation,
    Degradation,
    FadeDegradation,
    MaskDegradation,
    NaiveCold,
    PixelateDegradation,
    TACoS,
)
from .custom_schedules import BetaSchedule, CustomSchedule, LinearSDE, linear_betas
from .denoisers import Denoiser, LearnedVariance, NetworkDenoiser, Rescheduled
from .discrete.continuous_time import (
    AbsorbingCorruption,
    ContinuousTimeCorruption,
    UniformCorruption,
)
from .discrete.corruptions import Corruption, GaussianCorruption
from .discrete.rate_matrices import BinomialCorruption, RateMatrix
from .guidance.exact import ExactMoment, GaussianDenoiser, MixtureDenoiser, NormalDenoiser
from .guidance.guides import DPS, MMPS, ClassifierFree, ClassifierGuided, Guided, PiGDM
from .guidance.particle_gibbs import GibbsDraws, ParticleGibbs
from .guidance.twisted_smc import TwistedSMC
from .langevin_samplers import AnnealedLangevin, PredictorCorrector
from .parameterizations import convert
from .samplers import DDIM, Ancestral, EulerMaruyama, Sampler, noise
from .schedules import VE, VP, Cosine, Karras, Rectified, Schedule, SubVP
from .solvers import DPMSolver, Heun, ODESolver
from .time_grids import AngleGrid, Grid, InformationGrid, KarrasGrid, LogSNRGrid, Path, UniformGrid

__all__ = [
    "DDIM",
    "DPS",
    "MMPS",
    "VE",
    "VP",
    "AbsorbingCorruption",
    "Ancestral",
    "AngleGrid",
    "AnnealedLangevin",
    "BetaSchedule",
    "BinomialCorruption",
    "BlurDegradation",
    "ClassifierFree",
    "ClassifierGuided",
    "ColdSampler",
    "ContinuousTimeCorruption",
    "Corruption",
    "Cosine",
    "CustomDegradation",
    "CustomSchedule",
    "DPMSolver",
    "Degradation",
    "Denoiser",
    "EulerMaruyama",
    "ExactMoment",
    "FadeDegradation",
    "GaussianCorruption",
    "GaussianDenoiser",
    "GibbsDraws",
    "Grid",
    "Guided",
    "Heun",
    "InformationGrid",
    "Karras",
    "KarrasGrid",
    "LearnedVariance",
    "LinearSDE",
    "LogSNRGrid",
    "MaskDegradation",
    "MixtureDenoiser",
    "NaiveCold",
    "NetworkDenoiser",
    "NormalDenoiser",
    "ODESolver",
    "ParticleGibbs",
    "Path",
    "PiGDM",
    "PixelateDegradation",
    "PredictorCorrector",
    "RateMatrix",
    "Rectified",
    "Rescheduled",
    "Sampler",
    "Schedule",
    "SubVP",
    "TACoS",
    "TwistedSMC",
    "UniformCorruption",
    "UniformGrid",
    "convert",
    "linear_betas",
    "noise",
]

__getattr__ = former_names(__name__)
