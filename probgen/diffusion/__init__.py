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
    Cosine,
    CustomSchedule,
    Karras,
    Rectified,
    Schedule,
    SubVariancePreserving,
    Tabulated,
    VarianceExploding,
    VariancePreserving,
    linear_betas,
)

__all__ = [
    "DDIM",
    "DPS",
    "MMPS",
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
    "SubVariancePreserving",
    "Tabulated",
    "UniformGrid",
    "VarianceExploding",
    "VariancePreserving",
    "convert",
    "linear_betas",
    "noise",
]
