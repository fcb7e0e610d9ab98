"""Markov chain Monte Carlo with all chains along one batch axis."""

from .adaptation import StepSize, TrajectoryLength, warm_up
from .annealed import AnnealedLangevin, AnnealedState
from .convergence import ConvergenceWarning
from .diagnostics import ess, ess_tail, mcse, nested_rhat, rhat
from .discrete_sites import infer_discrete
from .draws import Draws, Summary
from .elliptical import EllipticalSlice
from .gibbs import BlockGibbs, Direct, Gibbs, GibbsInfo, GibbsState, GraphGibbs, colours
from .hmc import HMC, ChEES, ChEESState, Trajectory
from .kernel import GradientState, Info, Kernel, LogDensity, LowRank, PositionState, Score
from .langevin import MALA, SGLD, ULA, SGLDState, minibatch
from .lattice import Checkerboard
from .likelihood import Likelihood, likelihood
from .metric import Moments
from .metropolis import Metropolis
from .potential import Potential, potential
from .pyro_kernel import BatchedMCMC, PyroKernel
from .replicas import ParallelTempering, ReplicaState
from .run import run
from .tempering import Annealed, ais, smc
from .trial import ChainByChainWarning
from .units import BinaryUnits, CategoricalUnits, GaussianUnits, Units

__all__ = [
    "HMC",
    "MALA",
    "SGLD",
    "ULA",
    "Annealed",
    "AnnealedLangevin",
    "AnnealedState",
    "BatchedMCMC",
    "BinaryUnits",
    "BlockGibbs",
    "CategoricalUnits",
    "ChEES",
    "ChEESState",
    "ChainByChainWarning",
    "Checkerboard",
    "ConvergenceWarning",
    "Direct",
    "Draws",
    "EllipticalSlice",
    "GaussianUnits",
    "Gibbs",
    "GibbsInfo",
    "GibbsState",
    "GradientState",
    "GraphGibbs",
    "Info",
    "Kernel",
    "Likelihood",
    "LogDensity",
    "LowRank",
    "Metropolis",
    "Moments",
    "ParallelTempering",
    "PositionState",
    "Potential",
    "PyroKernel",
    "ReplicaState",
    "SGLDState",
    "Score",
    "StepSize",
    "Summary",
    "Trajectory",
    "TrajectoryLength",
    "Units",
    "ais",
    "colours",
    "ess",
    "ess_tail",
    "infer_discrete",
    "likelihood",
    "mcse",
    "minibatch",
    "nested_rhat",
    "potential",
    "rhat",
    "run",
    "smc",
    "warm_up",
]
