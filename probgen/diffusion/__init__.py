"""Diffusions: schedules of noise, denoisers, and samplers."""

from .denoisers import Denoiser, GaussianDenoiser, MixtureDenoiser, NetworkDenoiser, convert
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
    "Ancestral",
    "ClassifierFree",
    "ClassifierGuided",
    "Cosine",
    "CustomSchedule",
    "DPMSolver",
    "Denoiser",
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
    "UniformGrid",
    "convert",
    "linear_betas",
    "noise",
]
