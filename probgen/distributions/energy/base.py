r"""Energy-based models.

An energy :math:`E(x)` is a density up to its normaliser, the partition function,

.. math:: p(x) = \frac{e^{-E(x)}}{Z}, \qquad Z = \int e^{-E(x)} \, dx.

Ratios :math:`\log p(x) - \log p(y) = E(y) - E(x)` and the score :math:`-\nabla E(x)` need no
:math:`Z`, and so neither does a prior in a Markov chain. A gradient in the energy's parameters
does: :math:`\nabla_\theta \log p = -\nabla_\theta E - \nabla_\theta \log Z`. Without the last term
it is wrong, and here it raises an error.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, biject_to

from ...core import Density, LazyDistribution, Standardizer
from ...core.cards import Traits
from ...core.contexts import batch_of, expand_context, flatten, flatten_batch, index
from ...core.contracts import HasEnergy
from ...core.derive import derived
from ...core.standardize import ContextStandardizer
from ...core.validation import check_whole
from ...mcmc import MALA, Annealed, Direct, Gibbs, Kernel, ParallelTempering, ais
from ...objectives import ContrastiveDivergence
from ..parametric.base import shape_of
from ..supports import is_real, readable
from .distribution import EnergyDistribution
from .gradient_guard import guarded
from .partition import Partition

__all__ = ["EnergyBased"]

OWN = ("chains", "log_z", "log_z_mark", "step_size")  # buffers that do not shape the energy
LEAST = 32  # chains of a draw whose step size is adapted
GAIN = 0.05  # of the logarithm of a step size in training


def has_step(kernel: Any) -> bool:
    """Whether a kernel has a step size."""
    return dataclasses.is_dataclass(kernel) and "step_size" in {
        f.name for f in dataclasses.fields(kernel)
    }


@HasEnergy.register
class EnergyBased(LazyDistribution):
    """A lazy distribution that is known up to its normaliser.

    Arguments:
        features: The number of features, or the shape of an event.
        context: The number of features of the context, or its shape.
        kernel: The kernel that draws; its step size is adapted in training and in draws.
        steps: The number of steps of a draw.
        located: Whether there are a location and a scale, which data set.

    Attributes:
        chains: Where chains of persistent training stand, with shape :math:`(M, *)`; draws start
            from them if there are any.
        log_z: The estimate of :math:`\\log Z` and its standard error; empty if there is none.
        tractable: Whether :math:`\\log Z` is known exactly.
        log_z_mark: The mark of the parameters that it belongs to.
        step_size: The kernel's step size, with shape :math:`(1)`.
    """

    traits = Traits("none", "steps of a Markov chain")
    tractable: bool = False
    criterion: Any = None  # the default objective, where it is another
    standardize_contexts: bool = False  #: whether the network takes contexts of any scale
    chains: Tensor
    log_z: Tensor
    log_z_mark: Tensor
    step_size: Tensor

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        kernel: Kernel | None = None,
        steps: int = 100,
        located: bool = False,
    ) -> None:
        super().__init__()
        self.event_shape = shape_of(features)
        check_whole(1, steps=steps)
        self.context, self.steps = context, steps
        self.kernel = MALA(0.1) if kernel is None and located else kernel
        self.standardizer = Standardizer(self.event_shape) if located else None
        if self.standardize_contexts and self.context_shape is not None:
            self.context_standardizer = ContextStandardizer(self.context_shape)
        self._kept: Any = None
        if kernel is not None and not isinstance(kernel, Kernel):
            raise TypeError(f"Expected a `kernel` of pg.mcmc, got a {type(kernel).__name__}.")
        if isinstance(kernel, (Direct, Gibbs, ParallelTempering)):
            raise ValueError(
                f"Expected a `kernel` of one real vector per chain, such as MALA or HMC, got a "
                f"{type(kernel).__name__}."
            )
        self.register_buffer("chains", torch.empty(0, *self.event_shape))
        self.register_buffer("log_z", torch.empty(0, dtype=torch.double))
        self.register_buffer("log_z_mark", torch.empty(0, dtype=torch.long))
        size: Any = 1.0
        if has_step(self.kernel):
            size = self.kernel.step_size  # type: ignore[union-attr]
        self.register_buffer("step_size", torch.as_tensor(size).reshape(1).clone())

    @abstractmethod
    def log_density(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Return the log density up to a constant, :math:`-E(x)`.

        Arguments:
            x: Values, with shape :math:`(*, event)`.
            context: Contexts, with shape :math:`(*, C)`.

        Returns:
            Values with shape :math:`(*)`.
        """

    @abstractmethod
    def base(self, context: Tensor | None = None) -> TorchDistribution:
        """Return a normalised distribution from which chains start and annealing goes out."""

    @derived
    def exact_log_partition(self) -> Tensor:
        r""":math:`\log Z` with its gradient, in float64, where the model is tractable."""
        raise ValueError(
            f"Expected a model whose partition function is known exactly, got a "
            f"{type(self).__name__} that is not. Estimate it by .estimate()."
        )

    def scale(self) -> Tensor | None:
        """Return the standard deviations of features, in units of which the kernel steps."""
        return None if self.standardizer is None else self.standardizer.scale

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        if self.standardizer is not None:
            self.standardizer.fit(self.pull(x), weights)
        if context is not None and self.context_standardizer is not None:
            self.context_standardizer.fit(context, weights)
        self.set_base(x, context, weights)

    def network_context(self, context: Any) -> Any:
        """Contexts as the network takes them: standardised vectors, or those of the user."""
        if context is None or self.context_standardizer is None:
            return context
        return flatten(self.context_standardizer(context), self.context_shape)  # type: ignore[arg-type]

    @derived
    def set_base(self, x: Tensor, context: Any, weights: Tensor | None) -> None:
        """Set the base from data."""

    @derived
    def transition(self, beta: float = 1.0) -> Any:
        r"""Return the kernel that draws, or that of the path from the base at :math:`\beta`.

        Kernels without a log density of their own take that of the geometric path.
        """
        options: dict[str, Any] = {}
        names = {f.name for f in dataclasses.fields(self.kernel)}  # type: ignore[arg-type]
        if "step_size" in names:
            options["step_size"] = self.step_size
        if "scale" in names and self.kernel.scale is None:  # type: ignore[union-attr]
            options["scale"] = self.scale()
        return dataclasses.replace(self.kernel, **options)  # type: ignore[type-var]

    @property
    def density(self) -> Density:
        return Density.EXACT if self.tractable else Density.UNNORMALIZED

    @property
    def objective(self) -> Callable[..., Tensor]:
        return ContrastiveDivergence() if self.criterion is None else self.criterion

    def forward(self, context: Any = None) -> EnergyDistribution:
        self.check_context(context)
        return EnergyDistribution(self, context)

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the energy of values with shape :math:`(*, event)`, with shape :math:`(*)`."""
        return -self.log_density(x, context)

    def score(self, x: Tensor, context: Tensor | None = None, create_graph: bool = False) -> Tensor:
        """Return the gradient of the log density in :math:`x`, with its shape."""
        with torch.enable_grad():
            if not (create_graph and x.requires_grad):
                x = x.detach().requires_grad_()
            value = self.log_density(x, context).sum()
            return torch.autograd.grad(value, x, create_graph=create_graph)[0]

    def log_partition(self) -> Tensor:
        r""":math:`\log Z`, exact where it is known, else as :meth:`estimate` found it.

        It carries no gradient; :meth:`exact_log_partition` does.

        Raises:
            ValueError: If it is not known, or was estimated before the parameters changed.
        """
        if self.tractable:
            with torch.no_grad():
                return self.normalizer()
        if not len(self.log_z):
            raise ValueError(
                f"Expected a known partition function, but that of this {type(self).__name__} is "
                f"not: estimate it by .estimate(), which anneals."
            )
        return self.estimated()

    def normalizer(self) -> Tensor:
        """Return the exact log Z, kept while the model is frozen and nothing of it changes."""
        if any(p.requires_grad for p in self.parameters()):
            self._kept = None
            return self.exact_log_partition()
        mark = self.mark()
        if mark.device.type == "meta" or mark.is_inference():
            return self.exact_log_partition()
        stamp = int(mark)
        if self._kept is None or self._kept[0] != stamp:
            self._kept = stamp, self.exact_log_partition()
        return self._kept[1].to(mark.device)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        self._kept = None
        return super().__deepcopy__(memo)  # type: ignore[misc]  # which `register` gives

    def estimated(self) -> Tensor:
        """Return the estimate of log Z; nan, or an error, if the parameters changed since."""
        fits = self.mark() == self.log_z_mark[0]
        if Distribution._validate_args and readable(fits) and not bool(fits):
            raise ValueError(
                f"Expected an estimate of the partition function of the parameters as they are, "
                f"got one of this {type(self).__name__} before they changed. Estimate it again, "
                f"or .forget() it."
            )
        return torch.where(fits, self.log_z[0], torch.nan)

    def forget(self) -> None:
        """Drop the estimate of the partition function."""
        self.log_z, self.log_z_mark = self.log_z[:0], self.log_z_mark[:0]

    def keep(self, log_z: float, se: float) -> None:
        r"""Note :math:`\log Z` of the parameters as they are, with its standard error."""
        self.log_z = self.log_z.new_tensor([log_z, se])
        self.log_z_mark = self.mark()[None]

    def mark(self) -> Tensor:
        """Return a whole number that changes with any bit of what shapes the energy."""
        own = {id(getattr(self, name)) for name in OWN}
        total = torch.zeros((), dtype=torch.long, device=self.log_z.device)
        for t in (*self.parameters(), *self.buffers()):
            if id(t) in own or not t.is_floating_point():
                continue
            bits = t.detach().double().flatten().view(torch.long)
            odd = 2 * torch.arange(len(bits), device=bits.device) + 1
            total = total * 1_000_003 + ((bits ^ (bits >> 29)) * odd).sum()
        return total

    def estimate(
        self, chains: int = 1000, annealing: Callable[..., Annealed] = ais, **options: Any
    ) -> Partition:
        r"""Estimates :math:`\log Z` by annealing from the base and back, and keeps it.

        From draws of the base, weights have the mean :math:`Z`, so that the log of theirs is a
        lower bound in expectation. From draws of the model to the base, they have the mean
        :math:`1 / Z`, which gives an upper one, as far as chains have reached the model's law.

        References:
            | Neal, "Annealed importance sampling", 2001, https://arxiv.org/abs/physics/9803008
            | Salakhutdinov & Murray, "On the quantitative analysis of deep belief networks", 2008,
              https://doi.org/10.1145/1390156.1390266
            | Burda, Grosse & Salakhutdinov, "Accurate and conservative estimates of MRF
              log-likelihood using reverse annealing", 2015, https://arxiv.org/abs/1412.8566

        Arguments:
            chains: The number of chains of each direction.
            annealing: :func:`~probgen.mcmc.ais` or :func:`~probgen.mcmc.smc`.
            **options: What it takes, such as `temperatures` of the former.

        Returns:
            Both estimates. Later `log_prob` subtracts the first.

        Raises:
            ValueError: If the model takes a context, so that there is a partition function of each.

        Warns:
            UserWarning: If the effective sample size is below a tenth of the chains.
        """
        if self.context:
            raise ValueError(
                f"Expected a model without context, got one of {self.context} features: each has a "
                f"partition function of its own."
            )
        q = self.base()
        with torch.no_grad():
            draws = self.pull(q.sample(torch.Size([chains])))
        model, kernel = self.run(self.initial(chains), None, self.steps, None, True)
        model = self.pull(model)
        target, base = self.target(None), self.lift(lambda x: q.log_prob(x))
        own = isinstance(kernel, Direct)
        there = annealing(base, target, draws, self.transition if own else kernel, **options)
        back = annealing(
            target, base, model, (lambda b: self.transition(1 - b)) if own else kernel, **options
        )
        self.keep(there.log_z, there.se)
        return Partition(there.log_z, there.se, there.ess, -back.log_z, back.se, back.ess)

    def unnormalized(self, x: Tensor, context: Any = None) -> Tensor:
        """Return the log density up to a constant, without gradients that would be wrong."""
        return self.log_density(x, context) if self.tractable else guarded(self, x, context)

    def log_prob(self, x: Tensor, context: Any = None) -> Tensor:
        """Return the log density, less the log of the partition function if it is known."""
        f = self.unnormalized(x, context)
        if self.tractable:
            return f - self.normalizer().to(f.dtype)
        return f - self.estimated().to(f.dtype) if len(self.log_z) else f

    def draw(self, shape: torch.Size, context: Any) -> Tensor:
        """Draw values, with shape :math:`(*shape, *event)`, by so many steps of the kernel."""
        n = math.prod(shape)
        context = expand_context(context, self.context_shape, shape)
        if n == 0:
            return self.base(context).sample(shape if context is None else torch.Size())
        count = max(n, LEAST) if self.adapts(self.transition()) else n
        if context is not None:
            rows = torch.arange(count, device=self.log_z.device) % n
            context = index(flatten_batch(context, self.context_shape, len(shape)), rows)
        x = self.initial(count, context)
        x, _ = self.run(x, context, self.steps, None, True)
        return x[:n].reshape(*shape, *self.event_shape)

    @derived
    def initial(self, count: int, context: Tensor | None = None) -> Tensor:
        """Where chains start: some of those of training, else draws of the base."""
        if len(self.chains) and context is None:
            index = torch.randint(len(self.chains), (count,), device=self.chains.device)
            found = self.chains[index]
            replicas = found.ndim > 1 + len(self.event_shape)
            return found[:, -1] if replicas else found
        shape = torch.Size([count]) if context is None else torch.Size()
        return self.base(context).sample(shape)

    @staticmethod
    def adapts(kernel: Kernel) -> bool:
        return kernel.target is not None and has_step(kernel)

    def advance(
        self,
        x: Tensor,
        context: Tensor | None = None,
        steps: int = 1,
        kernel: Any = None,
    ) -> Tensor:
        """Move chains by so many steps of a kernel, whose step size is adapted in training.

        Arguments:
            x: Where they are, with shape :math:`(M, *event)`.
            context: Their contexts, with shape :math:`(M, C)`.
            steps: The number of steps.
            kernel: The kernel, by default the model's.

        Returns:
            Where they went, without a gradient.
        """
        return self.run(x, context, steps, kernel, False)[0]

    def run(
        self, x: Tensor, context: Tensor | None, steps: int, kernel: Any, adapt: bool
    ) -> tuple[Tensor, Any]:
        """Move chains; return the kernel, adapted in the first half of the steps if asked."""
        kernel = self.transition() if kernel is None else kernel
        adapts = self.adapts(kernel)
        with torch.no_grad():
            if isinstance(kernel, Direct):
                return kernel.move(x, steps), kernel
            if context is not None:
                dims = len(batch_of(context, self.context_shape))
                context = flatten_batch(context, self.context_shape, dims)
            target = self.target(context)
            state = kernel.init(self.pull(x), target)
            rates: list[Tensor] = []
            for k in range(steps):
                state, info = kernel.step(state, target)
                rates.append(info.acceptance.mean())
                if adapt and adapts and 2 * k < steps:
                    change = (rates[-1] - kernel.target) * (4 / (1 + k) ** 0.5)
                    size = kernel.step_size * change.exp().to(x.dtype)
                    kernel = dataclasses.replace(kernel, step_size=size)
            if self.training and not adapt and adapts:
                change = torch.stack(rates).mean() - kernel.target
                self.step_size.mul_((GAIN * change).exp().to(self.step_size.dtype))
            return self.push(state.position), kernel

    def target(self, context: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Return log density of the chains' coordinates, real numbers in the support's place."""
        return self.lift(lambda x: self.log_density(x, context))

    def lift(self, log_density: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        t = self.bijection
        if t is None:
            return log_density

        def lifted(u: Tensor) -> Tensor:
            x = t(u)
            return log_density(x) + t.log_abs_det_jacobian(u, x)

        return lifted

    @property
    def bijection(self) -> Any:
        """From real numbers onto the support, none if it is discrete or real itself."""
        support = self.support
        return None if support.is_discrete or is_real(support) else biject_to(support)

    def pull(self, x: Tensor) -> Tensor:
        t = self.bijection
        return x if t is None else t.inv(x)

    def push(self, u: Tensor) -> Tensor:
        t = self.bijection
        return u if t is None else t(u)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("chains", "log_z", "log_z_mark"):  # whose size depends on what was done
            value = state_dict.get(prefix + name)
            if value is not None:
                old = getattr(self, name)
                setattr(self, name, torch.empty_like(value, dtype=old.dtype, device=old.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
