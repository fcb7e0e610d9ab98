"""Markov chain Monte Carlo with all chains along one batch axis."""

from .adaptation import Moments, StepSize, TrajectoryLength, warm_up
from .annealed import AnnealedLangevin, AnnealedState
from .diagnostics import ess, ess_tail, mcse, nested_rhat, rhat
from .draws import Draws, Summary
from .elliptical import EllipticalSlice
from .gibbs import BlockGibbs, Gibbs, GibbsInfo, GibbsState
from .hmc import HMC, ChEES, ChEESState, Trajectory
from .kernel import GradientState, Info, Kernel, LogDensity, PositionState, Score
from .langevin import MALA, SGLD, ULA, SGLDState, minibatch
from .metropolis import Metropolis
from .potential import Potential, potential
from .pyro_kernel import BatchedMCMC, PyroKernel
from .run import run
from .tempering import Annealed, ais, smc

__all__ = [
    "HMC",
    "MALA",
    "SGLD",
    "ULA",
    "Annealed",
    "AnnealedLangevin",
    "AnnealedState",
    "BatchedMCMC",
    "BlockGibbs",
    "ChEES",
    "ChEESState",
    "Draws",
    "EllipticalSlice",
    "Gibbs",
    "GibbsInfo",
    "GibbsState",
    "GradientState",
    "Info",
    "Kernel",
    "LogDensity",
    "Metropolis",
    "Moments",
    "PositionState",
    "Potential",
    "PyroKernel",
    "SGLDState",
    "Score",
    "StepSize",
    "Summary",
    "Trajectory",
    "TrajectoryLength",
    "ais",
    "ess",
    "ess_tail",
    "mcse",
    "minibatch",
    "nested_rhat",
    "potential",
    "rhat",
    "run",
    "smc",
    "warm_up",
]
