"""Markov chain Monte Carlo with all chains along one batch axis."""

from .adaptation import StepSize, TrajectoryLength, warm_up
from .adapters import BatchedMCMC, PyroKernel
from .annealing import Annealed, ais, smc
from .convergence import ConvergenceWarning
from .diagnostics import ess, ess_tail, mcse, nested_rhat, rhat
from .draws import Draws, Summary
from .kernels.annealed_langevin import AnnealedState, AnnealedULA
from .kernels.base import GradientState, Info, Kernel, LogDensity, LowRank, PositionState, Score
from .kernels.elliptical_slice import EllipticalSlice
from .kernels.gibbs import BlockGibbs, Direct, Gibbs, GibbsInfo, GibbsState, GraphGibbs, colours
from .kernels.hmc import HMC, ChEES, ChEESState, Trajectory
from .kernels.langevin import MALA, SGLD, ULA, SGLDState, minibatch
from .kernels.lattice import Checkerboard
from .kernels.metric import Moments
from .kernels.metropolis import Metropolis
from .kernels.parallel_tempering import ParallelTempering, ReplicaState
from .kernels.units import BinaryUnits, CategoricalUnits, GaussianUnits, Units
from .pyro.discrete_sites import infer_discrete
from .pyro.likelihood import Likelihood, likelihood
from .pyro.potential import Potential, potential
from .pyro.trial import ChainByChainWarning
from .sampling import run

__all__ = [
    "HMC",
    "MALA",
    "SGLD",
    "ULA",
    "Annealed",
    "AnnealedState",
    "AnnealedULA",
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
