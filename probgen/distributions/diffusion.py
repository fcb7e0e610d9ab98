r"""Diffusions as distributions.

A denoiser under a schedule is a distribution of data in two ways, whose agreement is that of the
network with a true score: its samplers draw, and the flow of the probability

.. math:: \frac{dx}{dt} = \dot \alpha_t \hat x_0(x, t) + \dot \sigma_t \hat \epsilon(x, t)

maps noise to data one to one, which gives a density. The evidence lower bound is a third.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform

from ..core import Density, LazyDistribution
from ..core.checks import check_event, check_whole
from ..diffusion import Denoiser, DPMSolver, Sampler, noise
from ..objectives import Denoising
from ..objectives.denoising import spread
from ..transforms import Continuous
from ..transforms.linear import moments
from .diffusion_pair import DiffusionGuide, DiffusionModel
from .flow import FlowDistribution

__all__ = ["Diffusion"]


class Diffusion(LazyDistribution):
    r"""A diffusion: a denoiser, with its schedule, and a sampler.

    Called, it is a distribution of Pyro: `sample` runs the sampler, `rsample` and `log_prob` follow
    the probability flow, from the least time on, so that the density is that of data with the noise
    of that time. It is exact up to the solver's error.

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

    Raises:
        ValueError: If a number is impossible.

    Example:
        >>> from probgen.diffusion import GaussianDenoiser, VP
        >>> _ = torch.manual_seed(0)
        >>> denoiser = GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())
        >>> d = Diffusion(denoiser)()
        >>> x = d.sample((5,))
        >>> exact = dist.Normal(torch.zeros(2), 1.0).to_event(1).log_prob(x)
        >>> torch.allclose(d.log_prob(x), exact, atol=1e-3)
        True
    """

    density = Density.ODE
    shift: Tensor
    scale: Tensor
    times: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: Sampler | None = None,
        steps: int = 32,
        method: str = "rk4",
        probes: int = 0,
        cut: float = 1e-3,
        objective: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        check_whole(1, steps=steps)
        if not 0 < cut < 1:
            raise ValueError(f"Expected `cut` in (0, 1), got {cut}.")
        self.denoiser, self.context = denoiser, denoiser.context
        self.sampler = DPMSolver() if sampler is None else sampler
        self.method, self.probes, self.criterion = method, probes, objective
        self.event_shape = torch.Size(denoiser.shape)
        schedule = denoiser.schedule
        self.cut = cut if schedule.clean else 0.0
        self.register_buffer("shift", torch.zeros(self.event_shape))
        self.register_buffer("scale", torch.ones(self.event_shape))
        ends = schedule.log_snr(torch.tensor([schedule.latest, self.cut], dtype=torch.double))
        angles = (-ends / 2).exp().atan()  # of signal and noise, in which the flow is smooth
        even = torch.linspace(float(angles[0]), float(angles[1]), steps + 1, dtype=torch.double)
        times = schedule.time(-2 * even.tan().log()).float()
        self.register_buffer("times", times, persistent=False)

    @property
    def objective(self) -> Callable[..., Tensor]:
        return Denoising() if self.criterion is None else self.criterion

    def pair(self, steps: int = 1000, times: int | None = 4) -> tuple[nn.Module, nn.Module]:
        """A model and its guide, which Pyro's `SVI` trains under its ELBOs.

        Arguments:
            steps: The number of steps of the chain.
            times: The number of times that stand for all, or none to run the whole chain, which is
                for few steps.

        Returns:
            Both, called as `(x=None, context=None, *, size=None, prefix="")`.
        """
        check_whole(2, steps=steps)
        if times is not None:
            check_whole(1, times=times)
            times = min(times, steps - 1)
        return DiffusionModel(self, steps, times), DiffusionGuide(self, steps, times)

    @property
    def model(self) -> nn.Module:
        return self.pair()[0]

    @property
    def guide(self) -> nn.Module:
        return self.pair()[1]

    def start(self, x: Tensor, context: Tensor | None = None) -> None:
        if not self.training:  # trained before, or frozen
            return
        shift, scale = moments(x.flatten(1))
        self.shift.copy_(shift.reshape(self.event_shape))
        self.scale.copy_(scale.reshape(self.event_shape))

    def standardized(self, x: Tensor) -> Tensor:
        """Data with mean 0 and variance 1, as the denoiser takes them."""
        check_event(x, self.event_shape)
        return (x - self.shift) / self.scale

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        self.check_context(context)
        schedule, event = self.denoiser.schedule, self.event_shape

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return self.denoiser.say("flow", x, t, context)

        batch = torch.Size() if context is None else context.shape[:-1]
        alpha, sigma = schedule(torch.tensor(schedule.latest, dtype=torch.double))
        width = float((alpha.square() + sigma.square()).sqrt())
        base = dist.Normal(torch.zeros_like(self.scale), width * torch.ones_like(self.scale))
        base = base.expand(batch + event).to_event(len(event))
        times = self.times.to(self.scale.dtype)
        flow = Continuous(velocity, times, self.method, self.probes, event)
        scale = AffineTransform(self.shift, self.scale, event_dim=len(event))

        def draw(shape: torch.Size) -> Tensor:
            given = None if context is None else context.expand(*shape, context.shape[-1])
            start = noise(self.denoiser, shape, self.scale)
            found = self.sampler.sample(self.denoiser, start, given)
            return self.shift + self.scale * found

        return FlowDistribution(base, [flow, scale], self.parameters, self.density, sampler=draw)

    def score(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        r"""The score of data with the noise of a time, in units of the data.

        Arguments:
            x: Data times :math:`\alpha_t`, plus noise, with shape :math:`(*, event)`.
            t: The times, which broadcast to :math:`(*)`.
            context: The contexts, with shape :math:`(*, C)`.
        """
        alpha, _ = self.denoiser.signal(t)
        y = (x - alpha * self.shift) / self.scale
        return self.denoiser.score(y, t, context) / self.scale

    def elbo(self, x: Tensor, context: Tensor | None = None, steps: int = 1000) -> Tensor:
        r"""An unbiased estimate of the evidence lower bound, from one step for each datum.

        With :math:`r_k` the ratio of signal to noise at :math:`t_k = k / T`, the bound is that of
        the chain :math:`z_T, \dots, z_1` and its posterior variances,

        .. math:: -\operatorname{KL}(q(z_T \mid x) \,|\, p(z_T)) - \sum_{k=2}^T
            \tfrac{1}{2} (r_{k-1} - r_k) \, \mathbb{E} |x - \hat x_0(z_k)|^2
            + \mathbb{E} \log p(x \mid z_1),

        where the denoiser's distribution is the last one.

        References:
            | Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630

        Arguments:
            x: The data, with shape :math:`(N, event)`.
            context: The contexts, with shape :math:`(N, C)`.
            steps: The number of steps :math:`T`.

        Returns:
            Estimates with shape :math:`(N)`: bounds in expectation, not densities.
        """
        check_whole(2, steps=steps)
        y, schedule = self.standardized(x), self.denoiser.schedule
        dims = tuple(range(1, y.ndim))
        last, size = schedule.latest, y[0].numel()
        k = 2 + (spread(len(y), y) * (steps - 1)).floor()
        t = k / steps * last
        ratio = [schedule.log_snr(v).exp() for v in (t - last / steps, t)]
        alpha, sigma = self.denoiser.signal(t)
        mean = self.denoiser.mean(alpha * y + sigma * torch.randn_like(y), t, context)
        middle = (steps - 1) * (ratio[0] - ratio[1]) / 2 * (y - mean).square().sum(dims)
        first = torch.full_like(t, last / steps)
        alpha, sigma = self.denoiser.signal(first)
        law = self.denoiser(alpha * y + sigma * torch.randn_like(y), first, context)
        alpha, sigma = schedule(torch.as_tensor(last, dtype=y.dtype, device=y.device))
        width = alpha.square() + sigma.square()
        kl = (alpha.square() * y.square().sum(dims) + size * sigma.square()) / width
        kl = (kl - size - size * (sigma.square() / width).log()) / 2
        return law.log_prob(y) - middle - kl - self.scale.log().sum()
