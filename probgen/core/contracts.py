"""Contracts: the members that an objective needs of a module.

Families join a contract by registration, `@HasLatents.register` above their class, and not by
inheritance. A class that is registered has every abstract member of the contract.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

__all__ = [
    "Contract",
    "Encodes",
    "HasCodebook",
    "HasCorruption",
    "HasDegradation",
    "HasDenoiser",
    "HasDensity",
    "HasEnergy",
    "HasFlips",
    "HasLabels",
    "HasLatents",
    "HasLayers",
    "HasPrior",
    "HasTilt",
    "MadeBy",
]


class Contract(ABC):  # noqa: B024
    """Members that something has."""

    #: What has them, as messages name it.
    models: ClassVar[str] = "a module"


class HasDensity(Contract):
    """A lazy distribution: called with contexts, it returns a distribution."""

    models = "a model of this package, such as pg.models.NSF,"

    training: bool
    event_shape: Any

    @property
    @abstractmethod
    def density(self) -> Any:
        """What `log_prob` of the returned distribution is."""

    @abstractmethod
    def __call__(self, context: Any = None) -> Any:
        """Return the distribution for contexts."""


class HasLatents(Contract):
    """A model with latent variables."""

    models = "a module with latent variables, such as pg.models.VAE,"

    @property
    @abstractmethod
    def variational(self) -> bool:
        """Whether variational objectives train it."""

    @property
    @abstractmethod
    def objective(self) -> Any:
        """The default objective."""

    @abstractmethod
    def weigh(
        self,
        x: Tensor,
        context: Any = None,
        samples: int = 1,
        *,
        analytic: bool = False,
        stopped: bool = False,
        held: bool = False,
    ) -> Any:
        """Draw latents given data, with the terms of the bound."""


@runtime_checkable
class Encodes(Protocol):
    """Whatever has a method that encodes data, of this package or not."""

    def encode(self, x: Tensor, context: Any = None) -> Any:
        """Return the posterior of latents given data."""


class HasPrior(Contract):
    """A model that consists of a prior and a likelihood."""

    models = "a Latent"

    @property
    @abstractmethod
    def prior(self) -> Any:
        """The distribution of latents."""

    @property
    @abstractmethod
    def likelihood(self) -> Any:
        """The distribution of data given latents."""


class HasCodebook(HasPrior):
    """A model whose latents are nearest vectors of a codebook."""

    models = "a module with a codebook, such as pg.models.VQVAE,"

    @abstractmethod
    def check_context(self, context: Any) -> None:
        """Compare contexts with what the module was built for."""

    @abstractmethod
    def quantize(self, x: Tensor) -> Any:
        """Quantise data, with the losses of encoder and codebook."""

    @abstractmethod
    def likelihood_of(self, vectors: Tensor) -> Any:
        """Return the likelihood of quantised vectors."""


class HasDenoiser(Contract):
    """A diffusion of real data."""

    models = "a diffusion, such as pg.models.EDM,"

    @property
    @abstractmethod
    def denoiser(self) -> Any:
        """The denoiser, with its schedule."""

    @abstractmethod
    def flat_context(self, context: Any) -> Any:
        """Check a context, and flatten it to vectors, as the denoiser takes them."""

    @abstractmethod
    def standardized(self, x: Tensor) -> Tensor:
        """Return data as the denoiser takes them."""

    @abstractmethod
    def elbo(self, x: Tensor, context: Any = None, steps: int = 1000) -> Tensor:
        """Estimate the evidence lower bound of a chain of so many steps."""


class HasEnergy(Contract):
    """A model that is known up to its normaliser, with Markov chains that draw from it."""

    models = "an energy-based model, such as pg.models.EnergyModel,"

    training: bool
    event_shape: Any
    chains: Tensor  # where chains of persistent training stand

    @property
    @abstractmethod
    def density(self) -> Any:
        """What `log_prob` is: exact where the normaliser is known."""

    @property
    @abstractmethod
    def support(self) -> Any:
        """The support of one item."""

    @abstractmethod
    def log_density(self, x: Tensor, context: Any = None) -> Tensor:
        """Return the log density up to a constant."""

    @abstractmethod
    def base(self, context: Any = None) -> Any:
        """Return the normalised distribution from which chains start."""

    @abstractmethod
    def advance(self, x: Tensor, context: Any = None, steps: int = 1, kernel: Any = None) -> Tensor:
        """Move chains by so many steps of a kernel."""

    @abstractmethod
    def transition(self, beta: float = 1.0) -> Any:
        """Return the kernel of the path from the base."""

    @abstractmethod
    def target(self, context: Any) -> Callable[[Tensor], Tensor]:
        """Return the log density of the chains' coordinates."""

    @abstractmethod
    def lift(self, log_density: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Express a log density of values in the chains' coordinates."""

    @abstractmethod
    def pull(self, x: Tensor) -> Tensor:
        """Map values to the chains' coordinates."""

    @abstractmethod
    def push(self, u: Tensor) -> Tensor:
        """Map the chains' coordinates to values."""


class HasTilt(Contract):
    """An energy that tilts a normalised base."""

    models = "a tilted distribution, such as pg.models.EnergyModel,"

    @abstractmethod
    def tilt(self, x: Tensor, context: Any = None) -> Tensor:
        """Return the log density less that of the base."""


class HasFlips(Contract):
    """A model of units of which some kinds are binary."""

    models = "a model of binary units, such as pg.models.BoltzmannMachine,"

    @property
    @abstractmethod
    def flips(self) -> bool:
        """Whether the units are binary."""

    @abstractmethod
    def flip_gains(self, x: Tensor) -> Tensor:
        """Return what the log density gains if one unit is turned over, for each unit."""


class HasLabels(Contract):
    """A model that classifies, its labels being the contexts."""

    models = "a model with labels, such as pg.models.SemiSupervisedVAE,"

    @abstractmethod
    def label_loss(self, x: Tensor, context: Any) -> Tensor:
        """Return the classifier's loss of each item, 0 where the label is unknown."""


class HasCorruption(Contract):
    """A diffusion of discrete data."""

    models = "a discrete diffusion, such as pg.models.D3PM,"

    like: Tensor  # of the dtype and on the device of results

    @property
    @abstractmethod
    def corruption(self) -> Any:
        """The process that makes noise of data."""

    @abstractmethod
    def check_context(self, context: Any) -> None:
        """Compare contexts with what the module was built for."""

    @abstractmethod
    def denoise(self, noisy: Tensor, t: Tensor, context: Any = None) -> Tensor:
        """Return logits of data given noisy ones."""


class HasDegradation(Contract):
    """A cold diffusion."""

    models = "a cold diffusion, such as pg.models.ColdDiffusion,"

    @property
    @abstractmethod
    def degradation(self) -> Any:
        """The degradation, level by level."""

    @abstractmethod
    def check_context(self, context: Any) -> None:
        """Compare contexts with what the module was built for."""

    @abstractmethod
    def restore(self, x: Tensor, s: Tensor, context: Any = None) -> Tensor:
        """Restore data from degraded ones of a level."""


class HasLayers(Contract):
    """A stack of restricted Boltzmann machines."""

    models = "a stack of machines, such as pg.models.DeepBeliefNetwork,"

    training: bool
    up: Sequence[Tensor]  # the weights on the way up

    @property
    @abstractmethod
    def machines(self) -> Any:
        """The machines, that of the data first."""

    @property
    @abstractmethod
    def top(self) -> Any:
        """The last machine."""

    @abstractmethod
    def infer(self, x: Tensor) -> list[Tensor]:
        """Draw all layers but the last given data."""

    @abstractmethod
    def upward(self, layer: int, v: Tensor) -> Any:
        """Return the distribution of a layer given the one below."""

    @abstractmethod
    def downward(self, layer: int, h: Tensor) -> Any:
        """Return the distribution of the layer below given a layer."""


class MadeBy(Contract):
    """A distribution that a module made for contexts."""

    models = "a distribution of a module"

    @property
    @abstractmethod
    def module(self) -> Any:
        """The module."""

    @property
    @abstractmethod
    def context(self) -> Any:
        """The contexts, if the module takes them."""
