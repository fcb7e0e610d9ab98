"""Diffusions: schedules of noise, denoisers, and samplers."""

from .cold import (
    Blur,
    ColdSampler,
    CustomDegradation,
    Degradation,
    Fade,
    ImprovedCold,
    Mask,
    NaiveCold,
    Pixelate,
)
from .denoisers import Denoiser, LearnedVariance, NetworkDenoiser, Rescheduled, convert
from .discrete import Corruption, DiscretizedGaussian
from .exact import ExactMoment, GaussianDenoiser, MixtureDenoiser, NormalDenoiser
from .grids import AngleGrid, Grid, InformationGrid, Path, RatioGrid, RhoGrid, UniformGrid
from .guidance import DPS, MMPS, ClassifierFree, ClassifierGuided, Guided, PiGDM
from .jumps import Absorbing, Binomial, Jumps, RateMatrix, Uniform
from .own_schedules import CustomSchedule, LinearSDE, Tabulated, linear_betas
from .particle_gibbs import GibbsDraws, ParticleGibbs
from .samplers import (
    DDIM,
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    PredictorCorrector,
    Sampler,
    noise,
)
from .schedules import VE, VP, Cosine, Karras, Rectified, Schedule, SubVP
from .solvers import DPMSolver, Heun, ODESolver
from .twisted import TwistedSMC

__all__ = [
    "DDIM",
    "DPS",
    "MMPS",
    "VE",
    "VP",
    "Absorbing",
    "Ancestral",
    "AngleGrid",
    "AnnealedLangevin",
    "Binomial",
    "Blur",
    "ClassifierFree",
    "ClassifierGuided",
    "ColdSampler",
    "Corruption",
    "Cosine",
    "CustomDegradation",
    "CustomSchedule",
    "DPMSolver",
    "Degradation",
    "Denoiser",
    "DiscretizedGaussian",
    "EulerMaruyama",
    "ExactMoment",
    "Fade",
    "GaussianDenoiser",
    "GibbsDraws",
    "Grid",
    "Guided",
    "Heun",
    "ImprovedCold",
    "InformationGrid",
    "Jumps",
    "Karras",
    "LearnedVariance",
    "LinearSDE",
    "Mask",
    "MixtureDenoiser",
    "NaiveCold",
    "NetworkDenoiser",
    "NormalDenoiser",
    "ODESolver",
    "ParticleGibbs",
    "Path",
    "PiGDM",
    "Pixelate",
    "PredictorCorrector",
    "RateMatrix",
    "RatioGrid",
    "Rectified",
    "Rescheduled",
    "RhoGrid",
    "Sampler",
    "Schedule",
    "SubVP",
    "Tabulated",
    "TwistedSMC",
    "Uniform",
    "UniformGrid",
    "convert",
    "linear_betas",
    "noise",
]
