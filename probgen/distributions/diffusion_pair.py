r"""The Pyro pair of a diffusion: a Markovian hierarchical VAE with a guide that is not learned.

With :math:`z_k` at time :math:`t_k` of a grid, the model and the guide are

.. math:: p(z_T) \, \prod_{k=2}^T p(z_{k-1} \mid z_k) \; p(x \mid z_1), \qquad
    q(z_T \mid x) \, \prod_{k=2}^T q(z_{k-1} \mid z_k, x),

where :math:`p(z_{k-1} \mid z_k)` is :math:`q(z_{k-1} \mid z_k, x)` with :math:`\hat x_0(z_k)` in
the place of :math:`x`, or its mean over the normal law :math:`p(x \mid z_k)` of the denoiser, which
adds that law's covariance to the variance. A long chain is not run: each divergence depends on
:math:`z_k \sim q(z_k \mid x)` alone, so some of them, in a plate of times, stand for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from ..core.plates import Pair, register

if TYPE_CHECKING:
    from .diffusion import Diffusion

__all__ = ["DiffusionGuide", "DiffusionModel"]


class Chain:
    """The laws of a chain of so many steps.

    Arguments:
        module: The diffusion.
        steps: The number of steps.
        context: The contexts, with shape :math:`(N, C)`.
        variance: That of a step back, `"posterior"` or `"law"`.
    """

    def __init__(
        self,
        module: Diffusion,
        steps: int,
        context: Tensor | None,
        variance: Literal["law", "posterior"] = "posterior",
    ) -> None:
        self.module, self.steps, self.context = module, steps, context
        self.dims, self.variance = len(module.event_shape), variance

    def time(self, k: int | Tensor) -> Tensor:
        return self.module.levels(self.steps, self.module.scale)[k - 1]

    def normal(self, mean: Tensor, spread: Tensor) -> TorchDistribution:
        return dist.Normal(mean, spread.expand(mean.shape)).to_event(self.dims)

    def start(self, shape: tuple[int, ...]) -> TorchDistribution:
        r""":math:`p(z_T)`, of data of mean 0 and variance 1, or that of a law known exactly."""
        known = getattr(self.module.denoiser, "marginal", None)
        if self.variance == "law" and known is not None:
            return known(self.time(self.steps)).expand(shape)
        alpha, sigma = self.module.denoiser.signal(self.time(self.steps))
        like = self.module.scale.expand(*shape, *self.module.event_shape)
        return self.normal(torch.zeros_like(like), (alpha.square() + sigma.square()).sqrt())

    def noisy(self, k: int | Tensor, y: Tensor) -> TorchDistribution:
        r""":math:`q(z_k \mid x)`."""
        alpha, sigma = self.module.denoiser.signal(self.time(k))
        return self.normal(alpha * y, sigma)

    def step(self, k: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""What :math:`q(z_{k-1} \mid z_k, x)` takes of both, and its standard deviation."""
        signal = self.module.denoiser.signal
        (a, s), (b, r) = signal(self.time(k)), signal(self.time(k - 1))
        added = s.square() - (a / b * r).square()
        return a / b * (r / s).square(), b * added / s.square(), added.clamp_min(0).sqrt() * r / s

    def back(self, k: int | Tensor, z: Tensor, y: Tensor) -> TorchDistribution:
        r""":math:`q(z_{k-1} \mid z_k, x)`."""
        of_z, of_y, scale = self.step(k)
        return self.normal(of_z * z + of_y * y, scale)

    def reverse(self, k: int | Tensor, z: Tensor) -> TorchDistribution:
        r""":math:`p(z_{k-1} \mid z_k)`."""
        denoiser = self.module.denoiser
        if self.variance == "posterior":
            return self.back(k, z, denoiser.mean(z, self.time(k), self.context))
        of_z, of_y, scale = self.step(k)
        law: Any = denoiser(z, self.time(k), self.context)
        mean = of_z * z + of_y * law.mean
        if isinstance(law, dist.MultivariateNormal):
            eye = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
            part, own = (v.unsqueeze(-1).square() for v in (of_y, scale))
            return dist.MultivariateNormal(mean, part * law.covariance_matrix + own * eye)
        variance = scale.square() + of_y.square() * law.variance
        return self.normal(mean, variance.sqrt())

    def datum(self, z: Tensor) -> TorchDistribution:
        r""":math:`p(x \mid z_1)`, in units of the data."""
        law = self.module.denoiser(z, self.time(1), self.context)
        move = AffineTransform(self.module.shift, self.module.scale, event_dim=self.dims)
        return dist.TransformedDistribution(law, [move])


class Half(Pair):
    """One half of the pair.

    Arguments:
        distribution: The diffusion.
        steps: The number :math:`T` of steps of the chain.
        times: The number of times in the plate, none for the whole chain.
        variance: That of the model's steps, see :meth:`Diffusion.pair`.
    """

    def __init__(
        self,
        distribution: Diffusion,
        steps: int,
        times: int | None,
        variance: Literal["law", "posterior"] = "posterior",
    ) -> None:
        super().__init__(distribution)
        self.steps, self.times, self.variance = steps, times, variance

    def begin(self, context: Tensor | None) -> tuple[Chain, dict[str, Any]]:
        trained = register(self.distribution)
        part: Any = self.distribution
        return Chain(part, self.steps, context, self.variance), {
            "learned": "trained" if trained else "frozen"
        }

    def plate_of_times(self, prefix: str) -> pyro.plate:
        return pyro.plate(f"{prefix}time", self.steps - 1, subsample_size=self.times, dim=-2)


class DiffusionModel(Half):
    """The model: sites `z_T` to `z_1` and `x`, or some of them in a plate `time`, in a data plate.

    :meth:`Diffusion.pair` makes it. Called as `(x=None, context=None, *, size=None, prefix="")`,
    where `x` has shape :math:`(N, event)`, `context` :math:`(N, C)` and `size` is that of the data
    set if `x` is a mini-batch; without `x` it runs the chain. It returns the value of the site `x`.

    References:
        | Deep Unsupervised Learning using Nonequilibrium Thermodynamics
        | (Sohl-Dickstein et al., 2015), https://arxiv.org/abs/1503.03585

    Arguments:
        distribution: The diffusion.
        steps: The number :math:`T` of steps of the chain.
        times: The number of times in the plate, none for the whole chain.
        variance: That of the model's steps, `"posterior"` or `"law"`, see :meth:`Diffusion.pair`.

    Example:
        >>> from probgen.diffusion import VP, GaussianDenoiser
        >>> from probgen.distributions import Diffusion
        >>> prior = Diffusion(GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())).freeze()
        >>> model = DiffusionModel(prior, steps=10, times=None)
        >>> model(size=5).shape
        torch.Size([5, 2])
    """

    def forward(
        self,
        x: Tensor | None = None,
        context: Tensor | None = None,
        *,
        size: int | None = None,
        prefix: str = "",
    ) -> Tensor:
        chain, infer = self.begin(context)
        part: Any = self.distribution
        with self.plate(prefix, x, context, size) as index:
            z = pyro.sample(f"{prefix}z_{self.steps}", chain.start((len(index),)), infer=infer)
            if x is None or self.times is None:
                for k in range(self.steps, 1, -1):
                    z = pyro.sample(f"{prefix}z_{k - 1}", chain.reverse(k, z), infer=infer)
            else:
                y = part.standardized(x)
                with self.plate_of_times(prefix) as k:
                    k = k[:, None] + 2
                    z = pyro.sample(f"{prefix}z_t", chain.noisy(k, y), infer=infer)
                    pyro.sample(f"{prefix}z_s", chain.reverse(k, z), infer=infer)
                z = pyro.sample(f"{prefix}z_1", chain.noisy(1, y), infer=infer)
            return pyro.sample(f"{prefix}x", chain.datum(z), obs=x, infer=infer)


class DiffusionGuide(Half):
    """The guide: the same latent sites, given data; it has nothing to learn.

    :meth:`Diffusion.pair` makes it. Called as the model, with data.

    References:
        | Deep Unsupervised Learning using Nonequilibrium Thermodynamics
        | (Sohl-Dickstein et al., 2015), https://arxiv.org/abs/1503.03585

    Arguments:
        distribution: The diffusion.
        steps: The number :math:`T` of steps of the chain.
        times: The number of times in the plate, none for the whole chain.
        variance: That of the model's steps, which leaves the guide as it is.

    Raises:
        ValueError: When called, if there are no data.

    Example:
        >>> from probgen.diffusion import VP, GaussianDenoiser
        >>> from probgen.distributions import Diffusion
        >>> prior = Diffusion(GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())).freeze()
        >>> model = DiffusionModel(prior, steps=10, times=None, variance="law")
        >>> x = torch.randn(5, 2)
        >>> loss = pyro.infer.Trace_ELBO().loss(model, DiffusionGuide(prior, 10, None), x)
        >>> exact = dist.Normal(0.0, 1.0).log_prob(x).sum()  # of standard normal data
        >>> abs(loss + float(exact)) < 0.01
        True
    """

    def forward(
        self,
        x: Tensor | None = None,
        context: Tensor | None = None,
        *,
        size: int | None = None,
        prefix: str = "",
    ) -> None:
        if x is None:
            raise ValueError("Expected data `x`, since the guide is a posterior given them.")
        chain, infer = self.begin(context)
        part: Any = self.distribution
        y = part.standardized(x)
        with self.plate(prefix, x, context, size):
            z = pyro.sample(f"{prefix}z_{self.steps}", chain.noisy(self.steps, y), infer=infer)
            if self.times is None:
                for k in range(self.steps, 1, -1):
                    z = pyro.sample(f"{prefix}z_{k - 1}", chain.back(k, z, y), infer=infer)
                return
            with self.plate_of_times(prefix) as k:
                k = k[:, None] + 2
                z = pyro.sample(f"{prefix}z_t", chain.noisy(k, y), infer=infer)
                pyro.sample(f"{prefix}z_s", chain.back(k, z, y), infer=infer)
            pyro.sample(f"{prefix}z_1", chain.noisy(1, y), infer=infer)
