r"""The Pyro pair of a diffusion: a Markovian hierarchical VAE with a guide that is not learned.

With :math:`z_k` at time :math:`t_k` of a grid, the model and the guide are

.. math:: p(z_T) \, \prod_{k=2}^T p(z_{k-1} \mid z_k) \; p(x \mid z_1), \qquad
    q(z_T \mid x) \, \prod_{k=2}^T q(z_{k-1} \mid z_k, x),

where :math:`p(z_{k-1} \mid z_k)` is :math:`q(z_{k-1} \mid z_k, x)` with :math:`\hat x_0(z_k)` in
the place of :math:`x`, or its mean over the normal distribution :math:`p(x \mid z_k)` of the
denoiser, which adds that law's covariance to the variance. A long chain is not run: each
divergence depends on
:math:`z_k \sim q(z_k \mid x)` alone, so some of them, in a plate of times, stand for all.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from ..latent.base import check_given

__all__ = ["Chain"]


class Chain:
    """The distributions of a chain of so many steps, and the sites of a Pyro pair.

    Arguments:
        module: The diffusion.
        steps: The number of steps.
        context: The contexts, with shape :math:`(N, C)`.
        variance: That of a step back, `"posterior"` or `"law"`.
    """

    def __init__(
        self, module: Any, steps: int, context: Tensor | None, variance: str = "posterior"
    ) -> None:
        self.module, self.steps, self.context = module, steps, context
        self.dims, self.variance = len(module.event_shape), variance

    def time(self, k: int | Tensor) -> Tensor:
        return self.module.levels(self.steps, self.module.scale)[k - 1]

    def normal(self, mean: Tensor, spread: Tensor) -> TorchDistribution:
        return dist.Normal(mean, spread.expand(mean.shape)).to_event(self.dims)

    def start(self) -> TorchDistribution:
        r""":math:`p(z_T)`, of data of mean 0 and variance 1, or that of a law known exactly."""
        known = getattr(self.module.denoiser, "marginal", None)
        if self.variance == "law" and known is not None:
            return known(self.time(self.steps))
        alpha, sigma = self.module.denoiser.signal(self.time(self.steps))
        zeros = torch.zeros_like(self.module.scale)
        return self.normal(zeros, (alpha.square() + sigma.square()).sqrt())

    def noisy(self, k: int | Tensor, y: Tensor) -> TorchDistribution:
        r""":math:`q(z_k \mid x)`."""
        alpha, sigma = self.module.denoiser.signal(self.time(k))
        return self.normal(alpha * y, sigma)

    def step(self, k: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return the coefficients of :math:`q(z_{k-1} \mid z_k, x)` and its standard deviation."""
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

    def likelihood_of(self, z: Tensor) -> TorchDistribution:
        r""":math:`p(x \mid z_1)`, in units of the data."""
        law = self.module.denoiser(z, self.time(1), self.context)
        move = AffineTransform(self.module.shift, self.module.scale, event_dim=self.dims)
        return dist.TransformedDistribution(law, [move])

    def model(
        self, prefix: str, name: str, x: Tensor | None, times: int | None, infer: dict[str, Any]
    ) -> Tensor:
        """State the sites `z_T` to `z_1` and that of the data, or some times in a plate `time`."""
        z = pyro.sample(f"{prefix}z_{self.steps}", self.start(), infer=dict(infer))
        if x is None or times is None:
            for k in range(self.steps, 1, -1):
                z = pyro.sample(f"{prefix}z_{k - 1}", self.reverse(k, z), infer=dict(infer))
        else:
            y = self.module.standardized(x)
            with self.plate_of_times(prefix, times) as k:
                k = k[:, None] + 2
                z = pyro.sample(f"{prefix}z_t", self.noisy(k, y), infer=dict(infer))
                pyro.sample(f"{prefix}z_s", self.reverse(k, z), infer=dict(infer))
            z = pyro.sample(f"{prefix}z_1", self.noisy(1, y), infer=dict(infer))
        return pyro.sample(name, self.likelihood_of(z), obs=x, infer=dict(infer))

    def guide(
        self, prefix: str, x: Tensor | None, times: int | None, infer: dict[str, Any]
    ) -> None:
        """State the same latent sites given data; there is nothing to learn."""
        y = self.module.standardized(check_given(x))
        last = self.noisy(self.steps, y)
        z = pyro.sample(f"{prefix}z_{self.steps}", last, infer=dict(infer))
        if times is None:
            for k in range(self.steps, 1, -1):
                z = pyro.sample(f"{prefix}z_{k - 1}", self.back(k, z, y), infer=dict(infer))
            return
        with self.plate_of_times(prefix, times) as k:
            k = k[:, None] + 2
            z = pyro.sample(f"{prefix}z_t", self.noisy(k, y), infer=dict(infer))
            pyro.sample(f"{prefix}z_s", self.back(k, z, y), infer=dict(infer))
        pyro.sample(f"{prefix}z_1", self.noisy(1, y), infer=dict(infer))

    def plate_of_times(self, prefix: str, times: int) -> pyro.plate:
        return pyro.plate(f"{prefix}time", self.steps - 1, subsample_size=times, dim=-2)
