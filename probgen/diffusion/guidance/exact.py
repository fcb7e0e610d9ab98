r"""Denoisers that are known exactly: of normal data and of mixtures.

With :math:`x_t = \alpha x_0 + \sigma \epsilon` and :math:`x_0 \sim \mathcal{N}(m, S)` the item
given :math:`x_t` is normal,

.. math:: \mathcal{N} \bigl( m + \alpha S C^{-1} (x_t - \alpha m), \;
    S - \alpha^2 S C^{-1} S \bigr), \qquad C = \alpha^2 S + \sigma^2 I,

and given a linear measurement too. Of a mixture it is a mixture of these, with new weights.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ...core.validation import check_event
from ..denoisers import Denoiser
from ..schedules import Schedule
from .measurement import check_linear, finite, like_of, positive

__all__ = ["ExactMoment", "GaussianDenoiser", "MixtureDenoiser", "NormalDenoiser"]


class NormalDenoiser(Denoiser):
    r"""A denoiser whose distribution is a mixture of normal distributions, known exactly.

    .. math:: p(x_0 \mid x_t) = \sum_k w_k \, \mathcal{N}(x_0; m_k, R_k R_k^\top)

    A subclass gives :meth:`posterior` and :meth:`roots`.

    Arguments:
        schedule: The schedule.
        shape: The shape of an item, :math:`(D)`.
        context: The number of features of the context.

    Example:
        >>> from probgen.diffusion import VP
        >>> denoiser = GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())  # one component
        >>> t = torch.tensor(0.5)
        >>> logits, means = denoiser.posterior(torch.zeros(5, 2), t)
        >>> logits.shape, means.shape, denoiser.roots(t).shape
        (torch.Size([5, 1]), torch.Size([5, 1, 2]), torch.Size([1, 2, 2]))
    """

    @abstractmethod
    def posterior(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the log weights of the components, up to a constant, and their means.

        With shapes :math:`(*, K)` and :math:`(*, K, D)`.
        """

    @abstractmethod
    def roots(self, t: Tensor) -> Tensor:
        r"""Factors :math:`R` of their covariances :math:`R R^\top`, of shape `(*, K, D, D)`."""

    def mean(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        logits, means = self.posterior(x, t)
        return (logits.softmax(-1).unsqueeze(-2) @ means).squeeze(-2)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> TorchDistribution:
        logits, means = self.posterior(x, t)
        factor = triangle(self.roots(t))
        if means.shape[-2] == 1:
            return dist.MultivariateNormal(means[..., 0, :], scale_tril=factor[..., 0, :, :])
        parts = dist.MultivariateNormal(means, scale_tril=factor)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)


class GaussianDenoiser(NormalDenoiser):
    r"""The denoiser of normal data, exactly.

    .. math:: p(x_0 \mid x_t) = \mathcal{N} \bigl( m + \alpha S C^{-1} (x_t - \alpha m), \;
        S - \alpha^2 S C^{-1} S \bigr), \qquad C = \alpha^2 S + \sigma^2 I

    References:
        | Learning Diffusion Priors from Observations by Expectation Maximization
        | (Rozet et al., 2024), https://arxiv.org/abs/2405.13712

    Arguments:
        mean: The mean :math:`m` of data, with shape :math:`(D)`.
        covariance: The covariance :math:`S`, with shape :math:`(D, D)`.
        schedule: The schedule.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> from probgen.diffusion import VP
        >>> denoiser = GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())
        >>> x, t = torch.randn(5, 2), torch.tensor(0.5)
        >>> torch.allclose(denoiser.score(x, t), -x, atol=1e-5)  # data of variance 1 stay so
        True
    """

    location: Tensor
    covariance: Tensor
    values: Tensor
    vectors: Tensor

    def __init__(self, mean: Tensor, covariance: Tensor, schedule: Schedule) -> None:
        super().__init__(schedule, tuple(mean.shape))
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"Expected `mean` and `covariance` with shapes (D,) and (D, D), got "
                f"{tuple(mean.shape)} and {tuple(covariance.shape)}."
            )
        self.register_buffer("location", mean.detach().clone())
        self.register_buffer("covariance", covariance.detach().clone())
        values, vectors = torch.linalg.eigh(self.covariance)
        room = len(mean) * torch.finfo(values.dtype).eps * values.abs().max()
        if values.device.type != "meta" and bool(values.min() < -room):
            raise ValueError(
                f"Expected a `covariance` without negative eigenvalues, got one of "
                f"{float(values.min()):g}."
            )
        self.register_buffer("values", values)
        self.register_buffer("vectors", vectors)

    def posterior(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        check_event(x, self.shape)
        alpha, sigma = self.signal(t)
        lam, q = self.values, self.vectors
        along = (x - alpha * self.location) @ q
        gain = alpha * lam / (alpha.square() * lam + sigma.square()) * along
        means = (self.location + gain @ q.mT).unsqueeze(-2)
        return means[..., 0] * 0, means

    def marginal(self, t: Tensor) -> TorchDistribution:
        r"""Return the distribution of :math:`x_t`."""
        alpha, sigma = self.signal(t)
        root = self.vectors * (alpha.square() * self.values + sigma.square()).sqrt()
        return dist.MultivariateNormal(alpha * self.location, scale_tril=triangle(root))

    def roots(self, t: Tensor) -> Tensor:
        alpha, sigma = self.signal(t)
        lam, q = self.values, self.vectors
        spread = (lam / (alpha.square() * lam + sigma.square())).sqrt() * sigma
        return (q * spread.unsqueeze(-2)).unsqueeze(-3)


def triangle(root: Tensor) -> Tensor:
    """Return the Cholesky factor of :math:`R R^T`, by an orthogonal transformation."""
    r = torch.linalg.qr(root.mT).R.mT
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(r)
    return r * sign.unsqueeze(-2)


class MixtureDenoiser(NormalDenoiser):
    r"""The denoiser of a mixture of normal distributions, exactly.

    Given :math:`x_t` the component :math:`k` has the probability
    :math:`\propto w_k \mathcal{N}(x_t; \alpha m_k, \alpha^2 S_k + \sigma^2 I)`, and given
    it the item is normal.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Arguments:
        weights: The weights :math:`w_k`, with shape :math:`(K)`.
        means: The means :math:`m_k`, with shape :math:`(K, D)`.
        scales: The standard deviations of all components, a number; of each, with shape
            :math:`(K)`; of each feature, with shape :math:`(K, D)`; or the Cholesky factors of the
            covariances :math:`S_k`, with shape :math:`(K, D, D)`.
        schedule: The schedule.

    Raises:
        ValueError: If shapes do not fit, or numbers are not positive.

    Example:
        >>> from probgen.diffusion import VE
        >>> means = torch.tensor([[-1.0], [1.0]])
        >>> denoiser = MixtureDenoiser(torch.ones(2), means, 0.1, VE())
        >>> abs(float(denoiser.mean(torch.zeros(1), torch.tensor(0.3)))) < 1e-6
        True
    """

    weights: Tensor
    means: Tensor
    scales: Tensor
    values: Tensor
    vectors: Tensor | None

    def __init__(
        self, weights: Tensor, means: Tensor, scales: Tensor | float, schedule: Schedule
    ) -> None:
        super().__init__(schedule, means.shape[1:])
        k, d = len(weights), means.shape[-1]
        s = torch.as_tensor(scales, dtype=means.dtype, device=means.device)
        fits = s.shape in ((), (k,), (k, d), (k, d, d))
        if weights.ndim != 1 or means.ndim != 2 or len(means) != k or not fits:
            raise ValueError(
                f"Expected `weights`, `means` and `scales` with shapes (K,), (K, D) and (K,), "
                f"(K, D) or (K, D, D), got {tuple(weights.shape)}, {tuple(means.shape)} and "
                f"{tuple(s.shape)}."
            )
        widths = s.diagonal(dim1=-2, dim2=-1) if s.ndim == 3 else s
        if not bool((weights > 0).all()) or not bool((widths > 0).all()):
            raise ValueError("Expected positive `weights` and `scales`.")
        self.register_buffer("weights", (weights / weights.sum()).detach().clone())
        self.register_buffer("means", means.detach().clone())
        self.register_buffer("scales", s.detach().clone())
        vectors = None
        if s.ndim == 3:
            values, vectors = torch.linalg.eigh(s @ s.mT)
        else:
            values = s.reshape(*s.shape, *[1] * (2 - s.ndim)).square().expand(k, d).clone()
        self.register_buffer("values", values)
        self.register_buffer("vectors", vectors)

    def posterior(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        check_event(x, self.shape)
        alpha, sigma = (v.unsqueeze(-2) for v in self.signal(t))  # over components and features
        total = alpha.square() * self.values + sigma.square()
        away = x.unsqueeze(-2) - alpha * self.means
        q = self.vectors
        along = away if q is None else torch.einsum("...kd,kde->...ke", away, q)
        logits = (-(along.square() / total + total.log()) / 2).sum(-1) + self.weights.log()
        gain = alpha * self.values / total * along
        return logits, self.means + (
            gain if q is None else torch.einsum("...ke,kde->...kd", gain, q)
        )

    def roots(self, t: Tensor) -> Tensor:
        alpha, sigma = (v.unsqueeze(-2) for v in self.signal(t))
        total = alpha.square() * self.values + sigma.square()
        spread = (self.values / total).sqrt() * sigma
        if self.vectors is None:
            return spread.diag_embed()
        return self.vectors * spread.unsqueeze(-2)


class ExactMoment(NormalDenoiser):
    r"""The exact denoiser given a linear measurement, of a prior that is normal or a mixture.

    Each component of :math:`p(x_0 \mid x_t) = \sum_k w_k \mathcal{N}(m_k, R_k R_k^\top)` is
    conditioned on :math:`y = A x_0 + n`: with :math:`B = A R_k`,
    :math:`C = B B^\top + \Gamma` and the gap :math:`e = y - A m_k`,

    .. math:: w_k \leftarrow w_k \, \mathcal{N}(e; 0, C), \qquad
        m_k \leftarrow m_k + R_k B^\top C^{-1} e, \qquad
        R_k \leftarrow R_k (I + B^\top \Gamma^{-1} B)^{-1/2}.

    Draws are those of the exact posterior, up to the error of a sampler's steps.

    References:
        | Learning Diffusion Priors from Observations by Expectation Maximization
        | (Rozet et al., 2024), https://arxiv.org/abs/2405.13712

    Arguments:
        denoiser: A normal or mixture denoiser.
        operator: The linear map :math:`A`, from :math:`(*, D)` to the shape of `y`.
        y: The measurement, with the shape that the operator gives for one item.
        scale: The standard deviation of the noise, a number or one for each entry of `y`; of a
            complex one, of its real and of its imaginary part.

    Raises:
        TypeError: If the distribution of the denoiser is not known.
        ValueError: If a scale is not positive, or the operator is not linear.

    Example:
        >>> from probgen.diffusion import DDIM, MixtureDenoiser, VP
        >>> _ = torch.manual_seed(0)
        >>> prior = MixtureDenoiser(torch.ones(2), torch.tensor([[-2.0], [2.0]]), 0.3, VP())
        >>> seen = ExactMoment(prior, lambda x: x, torch.ones(1), 1.0)
        >>> x = DDIM(100).sample(seen, torch.randn(4000, 1))
        >>> exact = torch.sigmoid(torch.tensor(2 * 2 / (1 + 0.3**2)))  # the odds of 2 to -2
        >>> bool(((x > 0).float().mean() - exact).abs() < 0.03)
        True
    """

    matrix: Tensor
    gap: Tensor
    precision: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Callable[[Tensor], Tensor],
        y: Tensor,
        scale: float | Tensor,
    ) -> None:
        if not isinstance(denoiser, NormalDenoiser):
            raise TypeError(
                f"Expected a denoiser whose law is known, such as MixtureDenoiser, got a "
                f"{type(denoiser).__name__}. MMPS takes any."
            )
        super().__init__(denoiser.schedule, denoiser.shape)
        self.denoiser = denoiser
        like = like_of(denoiser, None)
        eye = torch.eye(self.shape[0], dtype=like.dtype, device=like.device)
        s = positive(scale, finite(y)).expand(y.shape)
        s = flat(torch.complex(s, s) if y.is_complex() else s, 0)
        check_linear(operator, self.shape, y, like)
        seen, y = flat(operator(torch.cat([torch.zeros_like(eye[:1]), eye])), 1), flat(y, 0)
        if seen.shape[1] != len(y):
            raise ValueError(f"Expected one measurement `y`, got {len(y) // seen.shape[1]}.")
        first, columns = seen[0], (seen[1:] - seen[0]).mT
        self.register_buffer("matrix", columns)
        self.register_buffer("gap", y - first)
        self.register_buffer("precision", s**-2)

    def seen(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the operator's images of the factors, and their Cholesky factor."""
        b = self.matrix @ self.denoiser.roots(t)
        noise = self.precision.reciprocal().diag_embed()
        return b, torch.linalg.cholesky(b @ b.mT + noise)

    def posterior(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        logits, means = self.denoiser.posterior(x, t)
        roots = self.denoiser.roots(t)
        b, factor = self.seen(t)
        eye = torch.eye(len(self.gap), dtype=factor.dtype, device=factor.device)
        inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        white = torch.einsum("...kmn,...kn->...km", inverse, self.gap - means @ self.matrix.mT)
        lift = roots @ (inverse @ b).mT
        size = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        logits = logits - white.square().sum(-1) / 2 - size
        return logits, means + torch.einsum("...kdm,...km->...kd", lift, white)

    def roots(self, t: Tensor) -> Tensor:
        roots = self.denoiser.roots(t)
        b = self.matrix @ roots
        eye = torch.eye(roots.shape[-1], dtype=roots.dtype, device=roots.device)
        factor = torch.linalg.cholesky(eye + b.mT @ (self.precision.unsqueeze(-1) * b))
        return torch.linalg.solve_triangular(factor.mT, roots, upper=True, left=False)


def flat(value: Tensor, dims: int) -> Tensor:
    """Values as rows of real numbers after so many dimensions."""
    value = torch.view_as_real(value) if value.is_complex() else value
    return value.flatten(dims) if value.ndim > dims else value.unsqueeze(-1)
