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
from .custom_schedules import CustomSchedule, LinearSDE, Tabulated, linear_betas
from .denoisers import Denoiser, LearnedVariance, NetworkDenoiser, Rescheduled, convert
from .discrete.continuous_time import Absorbing, Binomial, Jumps, RateMatrix, Uniform
from .discrete.corruptions import Corruption, DiscretizedGaussian
from .guidance.exact import ExactMoment, GaussianDenoiser, MixtureDenoiser, NormalDenoiser
from .guidance.guides import DPS, MMPS, ClassifierFree, ClassifierGuided, Guided, PiGDM
from .guidance.particle_gibbs import GibbsDraws, ParticleGibbs
from .guidance.twisted_smc import TwistedSMC
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
from .time_grids import AngleGrid, Grid, InformationGrid, Path, RatioGrid, RhoGrid, UniformGrid

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
