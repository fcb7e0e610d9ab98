"""Diffusions: schedules of noise, denoisers, and samplers."""

from .denoisers import Denoiser, GaussianDenoiser, MixtureDenoiser, NetworkDenoiser, convert
from .discrete import Absorbing, Corruption, DiscretizedGaussian, Uniform
from .grids import Grid, Path, RatioGrid, RhoGrid, UniformGrid
from .guidance import DPS, MMPS, ClassifierFree, ClassifierGuided, Guided, PiGDM
from .samplers import (
    DDIM,
    Ancestral,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    Sampler,
    noise,
)
from .schedules import (
    VE,
    VP,
    Cosine,
    CustomSchedule,
    Karras,
    Rectified,
    Schedule,
    SubVP,
    Tabulated,
    linear_betas,
)

__all__ = [
    "DDIM",
    "DPS",
    "MMPS",
    "VE",
    "VP",
    "Absorbing",
    "Ancestral",
    "ClassifierFree",
    "ClassifierGuided",
    "Corruption",
    "Cosine",
    "CustomSchedule",
    "DPMSolver",
    "Denoiser",
    "DiscretizedGaussian",
    "EulerMaruyama",
    "GaussianDenoiser",
    "Grid",
    "Guided",
    "Heun",
    "Karras",
    "MixtureDenoiser",
    "NetworkDenoiser",
    "Path",
    "PiGDM",
    "PredictorCorrector",
    "RatioGrid",
    "Rectified",
    "RhoGrid",
    "Sampler",
    "Schedule",
    "SubVP",
    "Tabulated",
    "Uniform",
    "UniformGrid",
    "convert",
    "linear_betas",
    "noise",
]
