r"""Guidance: denoisers of what was measured.

Given a measurement :math:`y` the score gains a term, and with it the mean,

.. math:: \nabla \log p(x_t \mid y) = \nabla \log p(x_t) + \nabla \log p(y \mid x_t), \qquad
    \hat x_0 \leftarrow \hat x_0 + \frac{\sigma_t^2}{\alpha_t} \nabla \log p(y \mid x_t).

The likelihood at :math:`x_t` is a mean over :math:`p(x_0 \mid x_t)`, and guides differ in what they
take that for: a point, a normal law of a fixed width, or one with its own covariance. Each is
biased where the law is another, as the tests show. A guide is itself a denoiser, which any sampler
takes, and no draw depends on the others of its batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ..core.checks import check_whole
from .denoisers import Denoiser

__all__ = ["DPS", "MMPS", "ClassifierFree", "ClassifierGuided", "Guided", "PiGDM"]

LogLikelihood = Callable[[Tensor], Tensor]


class Guided(Denoiser):
    """A denoiser that is guided.

    Arguments:
        denoiser: The denoiser to guide.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        if not isinstance(denoiser, Denoiser):
            raise TypeError(f"Expected a denoiser, got a {type(denoiser).__name__}.")
        super().__init__(denoiser.schedule, denoiser.shape, denoiser.context)
        self.denoiser = denoiser

    @abstractmethod
    def mean(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        r"""The guided :math:`\hat x_0`, with the shape of `x`."""

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> TorchDistribution:
        alpha, sigma = self.signal(t)
        spread = sigma / (alpha.square() + sigma.square()).sqrt()  # of data of variance 1
        mean = self.mean(x, t, context)
        return dist.Normal(mean, spread.expand(mean.shape)).to_event(len(self.shape))

    def pulled(
        self, x: Tensor, t: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor], Tensor]:
        r"""The mean, :math:`x_t` with a graph, products with the covariance, and its factor.

        Since :math:`\operatorname{cov}(x_0 \mid x_t) = \frac{\sigma^2}{\alpha} \,
        \partial \hat x_0 / \partial x_t`, such a product is one backward pass.
        """
        alpha, sigma = self.signal(t)
        factor = sigma.square() / alpha
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean = self.denoiser.mean(x, t, context)

        def product(v: Tensor) -> Tensor:
            (out,) = torch.autograd.grad(mean, x, v, retain_graph=True)
            return factor * out

        return mean, x, product, factor


class ClassifierGuided(Guided):
    r"""Guidance by a likelihood of noisy values, such as that of a classifier.

    References:
        | Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021)
        | https://arxiv.org/abs/2105.05233

    Arguments:
        denoiser: The denoiser to guide.
        log_likelihood: Maps :math:`x_t`, with shape :math:`(*, event)`, and times to
            :math:`\log p(y \mid x_t)`, with shape :math:`(*)`.
        weight: What it is multiplied by; 1 is Bayes' rule.

    Example:
        >>> from probgen.diffusion import GaussianDenoiser, VP
        >>> prior = GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())
        >>> guided = ClassifierGuided(prior, lambda x, t: x.sum(-1))
        >>> x, t = torch.zeros(2), torch.tensor(0.5)
        >>> bool((guided.mean(x, t) > prior.mean(x, t)).all())
        True
    """

    def __init__(
        self,
        denoiser: Denoiser,
        log_likelihood: Callable[[Tensor, Tensor], Tensor],
        weight: float = 1.0,
    ) -> None:
        super().__init__(denoiser)
        self.log_likelihood, self.weight = log_likelihood, weight

    def mean(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        alpha, sigma = self.signal(t)
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_likelihood(y, t).sum(), y)
        return self.denoiser.mean(x, t, context) + self.weight * sigma.square() / alpha * slope


class ClassifierFree(Guided):
    r"""Guidance by the difference that the context makes.

    .. math:: \hat x_0 = \hat x_0(x_t) + w \, \bigl( \hat x_0(x_t, c) - \hat x_0(x_t) \bigr)

    References:
        | Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), https://arxiv.org/abs/2207.12598

    Arguments:
        denoiser: A denoiser that takes a context, trained with the empty one on some data.
        weight: The weight :math:`w`; 1 is the conditional denoiser.
        empty: The context that says nothing, with shape :math:`(C)`; zeros by default.

    Raises:
        ValueError: If the denoiser takes no context.

    Example:
        >>> from probgen.diffusion import NetworkDenoiser, VP
        >>> network = lambda x, level, c: c.expand_as(x)
        >>> denoiser = NetworkDenoiser(network, VP(), (2,), 1, "x_0")
        >>> guided = ClassifierFree(denoiser, weight=3.0)
        >>> guided.mean(torch.zeros(2), torch.tensor(0.5), torch.ones(1))
        tensor([3., 3.])
    """

    empty: Tensor

    def __init__(
        self, denoiser: Denoiser, weight: float = 2.0, empty: Tensor | None = None
    ) -> None:
        super().__init__(denoiser)
        if not denoiser.context:
            raise ValueError("Expected a denoiser that takes a context, got one without.")
        self.weight = weight
        self.register_buffer("empty", torch.zeros(denoiser.context) if empty is None else empty)

    def mean(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        alone = self.denoiser.mean(x, t, self.empty)
        return alone + self.weight * (self.denoiser.mean(x, t, context) - alone)


class DPS(Guided):
    r"""Diffusion posterior sampling: :math:`p(y \mid x_t) \approx p(y \mid \hat x_0(x_t))`.

    It takes any likelihood that has a gradient. It treats :math:`x_0` as known, and so trusts
    precise measurements too much while there is much noise.

    References:
        | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023)
        | https://arxiv.org/abs/2209.14687

    Arguments:
        denoiser: The denoiser to guide.
        log_likelihood: Maps data with shape :math:`(*, event)` to :math:`\log p(y \mid x_0)`, with
            shape :math:`(*)`.
        weight: What its gradient is multiplied by.

    Raises:
        ValueError: When called, if the likelihood has no gradient or another shape.

    Example:
        >>> from probgen.diffusion import GaussianDenoiser, VP
        >>> prior = GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())
        >>> guided = DPS(prior, dist.Normal(torch.ones(2), 1.0).to_event(1).log_prob)
        >>> bool((guided.mean(torch.zeros(2), torch.tensor(0.5)) > 0).all())
        True
    """

    def __init__(
        self, denoiser: Denoiser, log_likelihood: LogLikelihood, weight: float = 1.0
    ) -> None:
        super().__init__(denoiser)
        self.log_likelihood, self.weight = log_likelihood, weight

    def mean(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        mean, y, _, factor = self.pulled(x, t, context)
        with torch.enable_grad():
            value = self.log_likelihood(mean)
            batch = x.shape[: x.ndim - len(self.shape)]
            if value.shape != batch or not value.requires_grad:
                raise ValueError(
                    f"Expected `log_likelihood` to return shape {tuple(batch)} with a gradient, "
                    f"got {tuple(value.shape)}{'' if value.requires_grad else ' without'}."
                )
            (slope,) = torch.autograd.grad(value.sum(), y)
        return mean.detach() + self.weight * factor * slope


class Linear(Guided):
    r"""Guidance by a linear measurement with normal noise, :math:`y = A x_0 + n`.

    Arguments:
        denoiser: The denoiser to guide.
        operator: The linear map :math:`A`, from :math:`(*, event)` to the shape of `y`.
        y: The measurement, with shape :math:`(*, M)`, or any that the operator gives.
        noise: The standard deviation of the noise, a number or one for each entry of `y`.
        steps: The number of steps of conjugate gradients.
    """

    y: Tensor
    noise: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Callable[[Tensor], Tensor],
        y: Tensor,
        noise: float | Tensor,
        steps: int = 10,
    ) -> None:
        super().__init__(denoiser)
        check_whole(1, steps=steps)
        self.operator, self.steps = operator, steps
        self.register_buffer("y", y)
        self.register_buffer("noise", torch.as_tensor(noise, dtype=y.real.dtype))
        if not bool((self.noise > 0).all()):
            raise ValueError("Expected positive `noise`, got some that is not.")

    def gain(self, mean: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        r"""What the mean gains, :math:`V A^\top (A V A^\top + \Gamma)^{-1} (y - A \hat x_0)`.

        The inverse is that of conjugate gradients, for each draw by itself, which end where the
        matrix of a network is not positive.
        """
        with torch.enable_grad():
            point = mean.detach().requires_grad_()
            seen = self.operator(point)
        gap = (self.y - seen).detach()
        dims = tuple(range(mean.ndim - len(self.shape), gap.ndim))

        def adjoint(v: Tensor) -> Tensor:
            return torch.autograd.grad(seen, point, v, retain_graph=True)[0]

        def forward(v: Tensor) -> Tensor:
            return self.operator(product(adjoint(v))).detach() + self.noise.square() * v

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return (a.conj() * b).real.sum(dims, keepdim=True)

        tiny = torch.finfo(self.noise.dtype).tiny
        v, r = torch.zeros_like(gap), gap
        p, size = r, dot(r, r)
        for _ in range(self.steps):
            moved = forward(p)
            bend, least = dot(p, moved), dot(p, self.noise.square() * p)
            # a covariance of a network may be none in some direction, where a draw goes no further
            step = torch.where(bend >= least * 0.999, size / bend.clamp_min(tiny), 0.0)
            v, r = v + step * p, r - step * moved
            new = dot(r, r)
            p, size = r + new / size.clamp_min(tiny) * p, new
        return product(adjoint(v))


class PiGDM(Linear):
    r"""Pseudo-inverse guidance: a normal law of the width that data of variance 1 would have.

    References:
        | Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023)
        | https://openreview.net/forum?id=9_gsMA8MRKQ

    Arguments:
        denoiser: The denoiser to guide.
        operator: The linear map :math:`A`, from :math:`(*, event)` to the shape of `y`.
        y: The measurement, with the shape that the operator gives.
        noise: The standard deviation of the noise, a number or one for each entry of `y`.
        steps: The number of steps of conjugate gradients.

    Example:
        >>> from probgen.diffusion import GaussianDenoiser, VP
        >>> prior = GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())
        >>> guided = PiGDM(prior, lambda x: x[..., :1], torch.ones(1), 0.1)
        >>> bool(guided.mean(torch.zeros(2), torch.tensor(0.5))[0] > 0.5)
        True
    """

    def mean(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        alpha, sigma = self.signal(t)
        width = sigma.square() / (alpha.square() + sigma.square())
        mean, _, product, _ = self.pulled(x, t, context)
        # the gain in the measurement's space, carried back by the covariance
        plain = self.gain(mean, lambda v: width * v) / width
        return (mean + product(plain)).detach()


class MMPS(Linear):
    r"""Moment matching posterior sampling: the covariance of the denoiser itself.

    :math:`p(x_0 \mid x_t)` is taken as normal with the denoiser's mean and its covariance,
    :math:`V = \frac{\sigma^2}{\alpha} \, \partial \hat x_0 / \partial x_t`. For normal data that is
    exact.

    References:
        | Learning Diffusion Priors from Observations by Expectation Maximization
        | (Rozet et al., 2024), https://arxiv.org/abs/2405.13712

    Arguments:
        denoiser: The denoiser to guide.
        operator: The linear map :math:`A`, from :math:`(*, event)` to the shape of `y`.
        y: The measurement, with the shape that the operator gives.
        noise: The standard deviation of the noise, a number or one for each entry of `y`.
        steps: The number of steps of conjugate gradients.

    Example:
        >>> from probgen.diffusion import DDIM, GaussianDenoiser, VP
        >>> prior = GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())
        >>> guided = MMPS(prior, lambda x: x[..., :1], torch.ones(1), 1.0)
        >>> x = DDIM(50, eta=1.0).sample(guided, torch.randn(2000, 2))
        >>> abs(float(x[:, 0].mean()) - 0.5) < 0.1, abs(float(x[:, 1].std()) - 1) < 0.1
        (True, True)
    """

    def mean(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        mean, _, product, _ = self.pulled(x, t, context)
        return (mean + self.gain(mean, product)).detach()
