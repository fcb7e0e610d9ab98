r"""Diffusions as distributions.

A denoiser under a schedule is a distribution of data in two ways, whose agreement is that of the
network with a true score: its samplers draw, and the flow of the probability

.. math:: \frac{dx}{dt} = \dot \alpha_t \hat x_0(x, t) + \dot \sigma_t \hat \epsilon(x, t)

maps noise to data one to one, which gives a density. The evidence lower bound is a third.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import AffineTransform

from ...core import Density, LazyDistribution, Standardizer
from ...core.cached_tensor import CachedTensor
from ...core.cards import Traits
from ...core.contexts import is_vector, size_of, spell
from ...core.contracts import HasDenoiser
from ...core.pyro_sites import PyroGuide, PyroModel
from ...core.standardize import Per
from ...core.validation import check_event, check_whole
from ...diffusion import (
    Denoiser,
    DPMSolver,
    Grid,
    InformationGrid,
    NetworkDenoiser,
    Rescheduled,
    Sampler,
    Schedule,
)
from ...diffusion.flow import flow_table, probability_flow
from ...objectives import Denoising
from ...objectives.denoising import spread
from ...transforms.continuous import Method, check_method
from .distribution import DiffusionDistribution
from .pyro_pair import Chain

__all__ = ["Diffusion"]


@HasDenoiser.register
class Diffusion(LazyDistribution):
    r"""A diffusion: a denoiser, with its schedule, and a sampler.

    Called, it is a distribution of Pyro: `sample` runs the sampler, `rsample` and `log_prob` follow
    the probability flow, from the least time on, so that the density is that of data with the noise
    of that time. It is exact up to the solver's error, which `solver_error` shows. The base is
    standard normal under every schedule. A guided denoiser has no such flow: it draws only.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al.,
          2021), https://arxiv.org/abs/2011.13456

    Arguments:
        denoiser: The denoiser, of data of mean 0 and variance 1.
        sampler: The sampler; :class:`~probgen.diffusion.DPMSolver` by default.
        steps: The number of steps of the flow's solver.
        method: Its method, see :class:`~probgen.transforms.Continuous`.
        probes: The number of random directions of the trace, 0 for the exact one, which costs as
            many products as there are features.
        cut: The least time, where there is no noise at time 0.
        objective: The training objective, :class:`~probgen.objectives.Denoising` by default.
        tolerance: The tolerance of a method that chooses its steps.
        chain: Where a chain of steps has its times, for the evidence lower bound and the pair;
            :class:`~probgen.diffusion.InformationGrid` by default.
        context: The shape of a context whose numbers are those that the denoiser takes; a vector by
            default.
        standardize: What of the data has a location and a scale of its own: each `"feature"`, each
            `"channel"`, or `"one"` for all; by default each feature of a vector, and one for all
            of an image. A network that is equivariant needs `"one"`.

    Raises:
        ValueError: If a number is impossible.
        TypeError: If the denoiser or the sampler is none.

    Example:
        >>> from probgen.diffusion import GaussianDenoiser, VP
        >>> _ = torch.manual_seed(0)
        >>> denoiser = GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())
        >>> d = Diffusion(denoiser)()
        >>> x = d.sample((5,))
        >>> exact = dist.Normal(torch.zeros(2), 1.0).to_event(1).log_prob(x)
        >>> torch.allclose(d.log_prob(x), exact, atol=1e-3)
        True
        >>> float(d.solver_error(x).max()) < 1e-4, d.elbo(x).shape
        (True, torch.Size([5]))
    """

    traits = Traits("noise, as large as the data", "network passes, one for each step", True)
    site_options = {"flow": True}

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: Sampler | None = None,
        steps: int = 32,
        method: Method = "rk4",
        probes: int = 0,
        cut: float = 1e-3,
        objective: Callable[..., Tensor] | None = None,
        tolerance: float = 1e-5,
        chain: Grid | None = None,
        context: Any = None,
        standardize: Per | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(denoiser, Denoiser):
            raise TypeError(f"Expected a denoiser, got a {type(denoiser).__name__}.")
        check_whole(1, steps=steps)
        check_whole(0, probes=probes)
        check_method(method, tolerance)
        self.denoiser = denoiser
        self.context = denoiser.context if context is None else context
        if size_of(self.context_shape) != denoiser.context:
            raise ValueError(
                f"Expected a `context` of {denoiser.context} numbers, as the denoiser takes them, "
                f"got {spell(self.context_shape)}."
            )
        self.sampler = DPMSolver() if sampler is None else sampler
        if not isinstance(self.sampler, Sampler):
            raise TypeError(f"Expected a `sampler`, got a {type(sampler).__name__}.")
        self.method, self.probes, self.tolerance = method, probes, tolerance
        self.criterion = objective
        self.chain = InformationGrid() if chain is None else chain
        self.chains: dict[int, CachedTensor] = {}
        self.event_shape = torch.Size(denoiser.shape)
        self.standardizer = Standardizer(self.event_shape, standardize)
        self.table = CachedTensor(flow_table(denoiser.schedule, steps, cut))
        self.tabled = denoiser.schedule, steps, cut

    @property
    def shift(self) -> Tensor:
        """The location of the data, with shape `event_shape`."""
        return self.standardizer.shift

    @property
    def scale(self) -> Tensor:
        """The scale of the data, with shape `event_shape`."""
        return self.standardizer.scale

    def under(self, schedule: Schedule, sampler: Sampler | None = None) -> Diffusion:
        """Return the same diffusion under another schedule, with nothing trained anew.

        Arguments:
            schedule: The schedule.
            sampler: The sampler, by default the same.

        Returns:
            A diffusion that shares the denoiser, with the same shift and scale.
        """
        _, steps, cut = self.tabled
        other = Diffusion(
            Rescheduled(self.denoiser, schedule),
            self.sampler if sampler is None else sampler,
            steps,
            self.method,
            self.probes,
            cut,
            self.criterion,
            self.tolerance,
            self.chain,
            self.context_shape,
            self.standardizer.per,
        )
        other.to(self.shift).standardizer.copy(self.standardizer)
        other.initialized_flag.copy_(self.initialized_flag)
        return other.train(self.training)

    @property
    def density(self) -> Density:
        return Density.ODE if self.denoiser.differentiable else Density.PUSHFORWARD

    @property
    def objective(self) -> Callable[..., Tensor]:
        return Denoising() if self.criterion is None else self.criterion

    def pair(
        self,
        steps: int = 1000,
        times: int | None = 4,
        variance: Literal["law", "posterior"] = "posterior",
    ) -> tuple[nn.Module, nn.Module]:
        """Return a model and its guide, which Pyro's `SVI` trains under its ELBOs.

        Arguments:
            steps: The number of steps of the chain.
            times: The number of times that stand for all, or none to run the whole chain, which is
                for few steps. They are drawn uniformly, which `elbo` does better: evenly over a
                batch.
            variance: That of the model's steps: `"posterior"`, of the posterior given the item, or
                `"law"`, with the covariance of the denoiser's law too, which must be normal. With a
                denoiser that is exact for normal data the bound then is the log density.

        Returns:
            Both, called as `(x=None, context=None, *, size=None, prefix="")`.

        Raises:
            ValueError: If a number is impossible or the variance unknown.
        """
        check_whole(2, steps=steps)
        if variance not in ("law", "posterior"):
            raise ValueError(f"Expected `variance` of 'law' or 'posterior', got {variance!r:.80}.")
        if times is not None:
            check_whole(1, times=times)
            times = min(times, steps - 1)
        options: dict[str, Any] = {"steps": steps, "times": times, "variance": variance}
        return PyroModel(self, **options), PyroGuide(self, **options)

    def pyro_model(
        self,
        prefix: str,
        name: str,
        context: Any,
        obs: Tensor | None,
        infer: dict[str, Any],
        steps: int = 1000,
        times: int | None = 4,
        variance: str = "posterior",
        flow: bool = False,
    ) -> Tensor:
        """State the chain of noisy values, or some times of it, and the data; see :meth:`pair`.

        Inside another model, or with `flow`, it is one site, whose density follows the
        probability flow.
        """
        if flow:
            return pyro.sample(name, self(context), obs=obs, infer=dict(infer))
        chain = Chain(self, steps, self.flat_context(context), variance)
        return chain.model(prefix, name, obs, times, infer)

    def pyro_guide(
        self,
        prefix: str,
        x: Tensor | None,
        context: Any,
        infer: dict[str, Any],
        steps: int = 1000,
        times: int | None = 4,
        variance: str = "posterior",
    ) -> None:
        """State the noisy values given data; see :meth:`pair`."""
        Chain(self, steps, self.flat_context(context)).guide(prefix, x, times, infer)

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        self.standardizer.fit(x, weights)
        if context is not None:
            flat = self.flat_context(context)
            single = isinstance(context, Tensor) and not is_vector(self.context_shape)  # type: ignore[arg-type]
            for part in self.context_standardizers():
                part.fit(flat, weights, "context", "one" if single else "feature")

    def context_standardizers(self) -> list[Standardizer]:
        """Return the standardisers of contexts: parts of the denoiser."""
        parts = (p for p in self.denoiser.modules() if isinstance(p, NetworkDenoiser))
        return [p.context_standardizer for p in parts if p.context_standardizer is not None]

    def standardized_parts(self, x: Tensor, context: Any) -> list[tuple[Any, Any, str]]:
        flat = None if context is None else self.flat_context(context)
        contexts = [(part, flat, "context") for part in self.context_standardizers()]
        return [(self.standardizer, x, "data"), *contexts]

    def standardized(self, x: Tensor) -> Tensor:
        """Standardise data to mean 0 and variance 1, as the denoiser takes them."""
        check_event(x, self.event_shape)
        return self.standardizer(x)

    def noise(self, context: Tensor | None = None) -> TorchDistribution:
        """Return the base, standard normal."""
        batch = torch.Size() if context is None else context.shape[:-1]
        base = dist.Normal(torch.zeros_like(self.scale), torch.ones_like(self.scale))
        return base.expand(batch + self.event_shape).to_event(len(self.event_shape))

    def flow(self, context: Tensor | None = None) -> list[Transform]:
        """Return the transforms from noise to data."""
        if self.denoiser.schedule is not self.tabled[0]:
            raise ValueError(
                "Expected the schedule that the diffusion was made with, got another one. `under` "
                "gives a diffusion of another schedule."
            )
        flow, size = probability_flow(
            self.denoiser,
            self.table(self.scale),
            context,
            self.method,
            self.probes,
            self.tolerance,
        )
        dims = len(self.event_shape)
        return [flow, AffineTransform(self.shift, size * self.scale, event_dim=dims)]

    def forward(self, context: Any = None) -> DiffusionDistribution:
        return DiffusionDistribution(self, context)

    def score(self, x: Tensor, t: Tensor, context: Any = None) -> Tensor:
        r"""Return the score of data with the noise of a time, in units of the data.

        Arguments:
            x: Data times :math:`\alpha_t`, plus noise, with shape :math:`(*, event)`.
            t: The times, which broadcast to :math:`(*)`.
            context: The contexts, with shape :math:`(*, C)`.
        """
        alpha, _ = self.denoiser.signal(t)
        y = (x - alpha * self.shift) / self.scale
        return self.denoiser.score(y, t, self.flat_context(context)) / self.scale

    def levels(self, steps: int, like: Tensor) -> Tensor:
        """Return the times of a chain of so many steps, rising."""
        if steps not in self.chains:
            self.chains[steps] = CachedTensor(
                self.chain.times(self.denoiser.schedule, steps).flip(0)
            )
        return self.chains[steps](like)

    def elbo(self, x: Tensor, context: Any = None, steps: int = 1000) -> Tensor:
        r"""Return an unbiased estimate of the evidence lower bound, from one step for each item.

        Nine in ten steps are drawn as often as they would weigh for data of variance 1, the tenth
        uniformly, and all evenly over the batch.

        With :math:`r_k` the ratio of signal to noise at :math:`t_k`, the bound is that of the chain
        :math:`z_T, \dots, z_1` and its posterior variances,

        .. math:: -\operatorname{KL}(q(z_T \mid x) \,|\, p(z_T)) - \sum_{k=2}^T
            \tfrac{1}{2} (r_{k-1} - r_k) \, \mathbb{E} |x - \hat x_0(z_k)|^2
            + \mathbb{E} \log p(x \mid z_1),

        where the denoiser's distribution is the last one.

        References:
            | Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630

        Arguments:
            x: The data, with shape :math:`(*, event)`.
            context: The contexts, with shape :math:`(*, C)`.
            steps: The number of steps :math:`T`.

        Returns:
            Estimates with shape :math:`(*)`: bounds in expectation, not densities.
        """
        check_whole(2, steps=steps)
        y, schedule = self.standardized(x), self.denoiser.schedule
        context = self.flat_context(context)
        batch = y.shape[: y.ndim - len(self.event_shape)]
        if context is not None:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
            y = y.expand(*batch, *self.event_shape)
        dims = tuple(range(len(batch), y.ndim))
        size, times = self.event_shape.numel(), self.levels(steps, y)
        ratio = schedule.log_snr(times).exp()
        share = -ratio.diff() / (1 + ratio[1:])  # of data of variance 1
        share = 0.9 * share / share.sum() + 0.1 / len(share)  # some where a network may be worse
        points = spread(batch.numel(), y).reshape(batch)
        k = torch.searchsorted(share.cumsum(0), points).clamp(max=steps - 2)
        t = times[k + 1]
        alpha, sigma = self.denoiser.signal(t)
        mean = self.denoiser.mean(alpha * y + sigma * torch.randn_like(y), t, context)
        gain = -ratio.diff()[k] / (2 * share[k])
        middle = gain * (y - mean).square().sum(dims)
        first = times[0].expand_as(t)
        alpha, sigma = self.denoiser.signal(first)
        law = self.denoiser(alpha * y + sigma * torch.randn_like(y), first, context)
        alpha, sigma = schedule(times[-1])
        width = alpha.square() + sigma.square()
        kl = (alpha.square() * y.square().sum(dims) + size * sigma.square()) / width
        kl = (kl - size - size * (sigma.square() / width).log()) / 2
        return law.log_prob(y) - middle - kl - self.standardizer.log_scale()
