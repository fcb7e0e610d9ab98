r"""Guidance: denoisers conditioned on measurements.

Given a measurement :math:`y` the score gains a term, and with it the mean,

.. math:: \nabla \log p(x_t \mid y) = \nabla \log p(x_t) + \nabla \log p(y \mid x_t), \qquad
    \hat x_0 \leftarrow \hat x_0 + \frac{\sigma_t^2}{\alpha_t} \nabla \log p(y \mid x_t).

The likelihood at :math:`x_t` is a mean over :math:`p(x_0 \mid x_t)`, and guides differ in what they
take that for: a point, a normal distribution of a fixed width, or one with its own covariance.
Each is biased where the law is another, as the tests show. A guide is itself a denoiser, which any
sampler takes, and no draw depends on the others of its batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ...core.validation import check_whole
from ..denoisers import Denoiser
from .measurement import (
    GaussianMeasurement,
    check_adjoint,
    check_gradient,
    check_graph,
    check_linear,
    finite,
    like_of,
    positive,
)

__all__ = ["DPS", "MMPS", "ClassifierFree", "ClassifierGuided", "Guided", "PiGDM"]


class Guided(Denoiser):
    """A denoiser that is guided.

    Arguments:
        denoiser: The denoiser to guide.
    """

    differentiable = False

    def __init__(self, denoiser: Denoiser, context: int | None = None) -> None:
        if not isinstance(denoiser, Denoiser):
            raise TypeError(f"Expected a denoiser, got a {type(denoiser).__name__}.")
        size = denoiser.context if context is None else context
        super().__init__(denoiser.schedule, denoiser.shape, size)
        self.denoiser = denoiser

    @abstractmethod
    def mean(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Return the guided :math:`\hat x_0`, with the shape of `x`."""

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> TorchDistribution:
        alpha, sigma = self.signal(t)
        spread = sigma / (alpha.square() + sigma.square()).sqrt()  # of data of variance 1
        mean = self.mean(x, t, context)
        return dist.Normal(mean, spread.expand(mean.shape)).to_event(len(self.shape))

    def pulled(
        self, x: Tensor, t: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor], Tensor]:
        r"""Return the mean, :math:`x_t` with a graph, products with the covariance, and its factor.

        Since :math:`\operatorname{cov}(x_0 \mid x_t) = \frac{\sigma^2}{\alpha} \,
        \partial \hat x_0 / \partial x_t`, such a product is one backward pass.
        """
        alpha, sigma = self.signal(t)
        factor = sigma.square() / alpha
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean = self.denoiser.mean(x, t, context)
        check_graph(mean, self.denoiser)

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

    Raises:
        ValueError: When called, if the likelihood has no gradient or another shape.

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
        whole = torch.is_grad_enabled() and x.requires_grad  # for a guide of this guide
        with torch.enable_grad():
            y = x if whole else x.detach().requires_grad_()
            value = self.log_likelihood(y, t)
            batch = x.shape[: x.ndim - len(self.shape)]
            if value.shape != batch:
                raise ValueError(
                    f"Expected a `log_likelihood` of one number for each item, with shape "
                    f"{tuple(batch)}, got {tuple(value.shape)}."
                )
            if not value.requires_grad:
                raise ValueError("Expected a `log_likelihood` with a gradient, got one without.")
            (slope,) = torch.autograd.grad(value.sum(), y, create_graph=whole)
        return self.denoiser.mean(x, t, context) + self.weight * sigma.square() / alpha * slope


class ClassifierFree(Guided):
    r"""Guidance by the difference that a context makes.

    .. math:: \hat x_0 = \hat x_0(x_t) + w \, \bigl( \hat x_0(x_t, c) - \hat x_0(x_t) \bigr)

    References:
        | Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), https://arxiv.org/abs/2207.12598

    Arguments:
        denoiser: A denoiser that takes a context, trained with zeros in its place on some data, as
            :class:`~probgen.objectives.Denoising` with `drop` does.
        context: The context :math:`c`, with shape :math:`(C)`, or one for each draw, with shape
            :math:`(*, C)`.
        weight: The weight :math:`w`; 1 is the conditional denoiser.

    Raises:
        ValueError: If the denoiser takes no context, or one of another size.

    Example:
        >>> from probgen.diffusion import NetworkDenoiser, VP
        >>> network = lambda x, level, c: c.expand_as(x)
        >>> denoiser = NetworkDenoiser(network, VP(), (2,), 1, "x_0")
        >>> guided = ClassifierFree(denoiser, torch.ones(1), weight=3.0)
        >>> guided.mean(torch.zeros(2), torch.tensor(0.5))
        tensor([3., 3.])
    """

    given: Tensor

    def __init__(self, denoiser: Denoiser, context: Tensor, weight: float = 2.0) -> None:
        super().__init__(denoiser, 0)
        if not denoiser.context or context.shape[-1:] != (denoiser.context,):
            raise ValueError(
                f"Expected a denoiser that takes the `context`, (*, {denoiser.context}), "
                f"got {tuple(context.shape)}."
            )
        self.differentiable = denoiser.differentiable
        self.weight = weight
        self.register_buffer("given", context.detach().clone())

    def mean(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        alone = self.denoiser.mean(x, t, torch.zeros_like(self.given))
        return alone + self.weight * (self.denoiser.mean(x, t, self.given) - alone)


class DPS(Guided):
    r"""Diffusion posterior sampling: :math:`p(y \mid x_t) \approx p(y \mid \hat x_0(x_t))`.

    It takes any likelihood that has a gradient. It treats :math:`x_0` as known, and so trusts
    precise measurements too much while there is much noise: steps that are too few for that run
    away, and a smaller weight tames them at the price of draws that fit the data less.

    References:
        | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023)
        | https://arxiv.org/abs/2209.14687

    Arguments:
        denoiser: The denoiser to guide.
        operator: Maps data with shape :math:`(*, event)` to the mean of a normal distribution of
            :math:`y` if there is a `scale`, else to a distribution of :math:`y`, or without `y` to
            :math:`\log p(y \mid x_0)` itself, with shape :math:`(*)`.
        y: The measurement.
        scale: The standard deviation of its noise, a number or one for each entry of `y`.
        weight: What the gradient is multiplied by.

    Raises:
        ValueError: If the likelihood has no gradient, or one that is zero where it changes, as that
            of a rounded value is; or if it has another shape than that of `y`.

    Example:
        >>> from probgen.diffusion import GaussianDenoiser, VP
        >>> prior = GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())
        >>> guided = DPS(prior, lambda x: x, torch.ones(2), 1.0)
        >>> again = DPS(prior, lambda x: dist.Normal(x, 1.0).to_event(1), torch.ones(2))
        >>> x, t = torch.zeros(2), torch.tensor(0.5)
        >>> torch.allclose(guided.mean(x, t), again.mean(x, t))
        True
    """

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Callable[[Tensor], Any],
        y: Tensor | None = None,
        scale: float | Tensor | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__(denoiser)
        self.likelihood = GaussianMeasurement(operator, y, scale, len(self.shape))
        self.weight = weight
        check_gradient(self.likelihood, self.shape, like_of(denoiser, y))

    def mean(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        mean, y, _, factor = self.pulled(x, t, context)
        with torch.enable_grad():
            value = self.likelihood(mean)
            (slope,) = torch.autograd.grad(value.sum(), y)
        return mean.detach() + self.weight * factor * slope


class LinearGuided(Guided):
    r"""Guidance by a linear measurement with normal noise, :math:`y = A x_0 + n`.

    Arguments:
        denoiser: The denoiser to guide.
        operator: The linear (or affine) map :math:`A`, from :math:`(*, event)` to the shape of `y`.
        y: The measurement, with shape :math:`(*, M)`, or any that the operator gives.
        scale: The standard deviation of the noise, a number or one for each entry of `y`.
        steps: The number of steps of conjugate gradients.
        adjoint: The map :math:`A^\top`; by default that of automatic derivatives.
    """

    y: Tensor
    scale: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Callable[[Tensor], Tensor],
        y: Tensor,
        scale: float | Tensor,
        steps: int = 10,
        adjoint: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(denoiser)
        check_whole(1, steps=steps)
        self.operator, self.steps, self.transpose = operator, steps, adjoint
        self.register_buffer("y", finite(y))
        self.register_buffer("scale", positive(scale, y))
        like = like_of(denoiser, y)
        check_linear(operator, self.shape, y, like)
        check_adjoint(operator, adjoint, self.shape, like)

    def gain(self, mean: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        r"""Return the shift :math:`V A^\top (A V A^\top + \Gamma)^{-1} (y - A \hat x_0)`.

        The inverse is that of conjugate gradients, for each draw by itself, which end where the
        matrix of a network is not positive.
        """
        with torch.enable_grad():
            point = mean.detach().requires_grad_()
            seen = self.operator(point)
        gap = (self.y - seen).detach()
        dims = tuple(range(mean.ndim - len(self.shape), gap.ndim))

        def adjoint(v: Tensor) -> Tensor:
            if self.transpose is not None:
                return self.transpose(v).real
            return torch.autograd.grad(seen, point, v, retain_graph=True)[0]

        with torch.no_grad():
            origin = self.operator(torch.zeros_like(mean))  # 0, or what an affine map adds

        def forward(v: Tensor) -> Tensor:
            moved = self.operator(product(adjoint(v))).detach() - origin
            return moved + self.scale.square() * v

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return (a.conj() * b).real.sum(dims, keepdim=True)

        tiny = torch.finfo(self.scale.dtype).tiny
        v, r = torch.zeros_like(gap), gap
        p, size = r, dot(r, r)
        for _ in range(self.steps):
            moved = forward(p)
            bend, least = dot(p, moved), dot(p, self.scale.square() * p)
            # a covariance of a network may be none in some direction, where a draw goes no further
            step = torch.where(bend >= least * 0.999, size / bend.clamp_min(tiny), 0.0)
            v, r = v + step * p, r - step * moved
            new = dot(r, r)
            p, size = r + new / size.clamp_min(tiny) * p, new
        return product(adjoint(v))


class PiGDM(LinearGuided):
    r"""Pseudo-inverse guidance: a normal posterior as for data of variance 1.

    References:
        | Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023)
        | https://openreview.net/forum?id=9_gsMA8MRKQ

    Arguments:
        denoiser: The denoiser to guide.
        operator: The linear (or affine) map :math:`A`, from :math:`(*, event)` to the shape of `y`.
        y: The measurement, with the shape that the operator gives.
        scale: The standard deviation of the noise, a number or one for each entry of `y`; of a
            complex one, of its real and of its imaginary part.
        steps: The number of steps of conjugate gradients.
        adjoint: The map :math:`A^\top`, or of complex measurements :math:`A^*`, whose real part is
            taken; by default that of automatic derivatives.

    Raises:
        ValueError: If a scale is not positive and finite, `y` has another shape than the operator
            gives or is not finite, the operator is not linear or has neither a gradient nor an
            adjoint, or the adjoint is that of another operator.

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


class MMPS(LinearGuided):
    r"""Moment matching posterior sampling: the covariance of the denoiser itself.

    :math:`p(x_0 \mid x_t)` is taken as normal with the denoiser's mean and its covariance,
    :math:`V = \frac{\sigma^2}{\alpha} \, \partial \hat x_0 / \partial x_t`. For normal data that is
    exact.

    References:
        | Learning Diffusion Priors from Observations by Expectation Maximization
        | (Rozet et al., 2024), https://arxiv.org/abs/2405.13712

    Arguments:
        denoiser: The denoiser to guide.
        operator: The linear (or affine) map :math:`A`, from :math:`(*, event)` to the shape of `y`.
        y: The measurement, with the shape that the operator gives.
        scale: The standard deviation of the noise, a number or one for each entry of `y`; of a
            complex one, of its real and of its imaginary part.
        steps: The number of steps of conjugate gradients.
        adjoint: The map :math:`A^\top`, or of complex measurements :math:`A^*`, whose real part is
            taken; by default that of automatic derivatives.

    Raises:
        ValueError: If a scale is not positive and finite, `y` has another shape than the operator
            gives or is not finite, the operator is not linear or has neither a gradient nor an
            adjoint, or the adjoint is that of another operator.

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
