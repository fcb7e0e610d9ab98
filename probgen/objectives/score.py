r"""Score matching: objectives of :math:`s_\theta(x) = \nabla_x \log p_\theta(x)`.

The squared distance of the score from that of the data, :math:`\nabla \log p`, is up to a constant

.. math:: \tfrac{1}{2} \mathbb{E}_p | s_\theta(x) - \nabla \log p(x) |^2 =
    \mathbb{E}_p \left[ \operatorname{tr} \nabla s_\theta(x) + \tfrac{1}{2} |s_\theta(x)|^2 \right]
    + \text{const},

which needs no :math:`p` but its draws: integration by parts. No partition function is in it.

A diffusion has a score of noisy data at each time, :math:`s_\theta(x_t, t)`. It is matched at one
time for each item, evenly spread in the angle, and with the weight :math:`\sigma_t^2`, which makes
it the score of :math:`x_t / \sigma_t`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core import Density
from ..core.arguments import checked, record
from ..core.contracts import HasDenoiser, HasDensity, HasEnergy
from ..core.validation import check_whole, ends
from .base import Objective, find
from .denoising import by_angle, spread

__all__ = [
    "DenoisingScoreMatching",
    "ExplicitScoreMatching",
    "ImplicitScoreMatching",
    "SlicedScoreMatching",
    "parzen_score",
]

Score = Callable[[Tensor], Tensor]


def score_of(module: Any, x: Tensor, context: Any, name: str) -> Score:
    """Return the score of a model as a function, through which gradients in parameters flow.

    Raises:
        TypeError: If the model has no density, not even up to a constant.
        ValueError: If data are not real vectors.
    """
    if not x.is_floating_point():
        raise ValueError(f"Expected real data for {name}, got {x.dtype}.")
    energy = find(module, context, HasEnergy)
    if energy is None and module.density not in (Density.EXACT, Density.ODE):
        raise TypeError(
            f"Expected a model with a density for {name}, got a {type(module).__name__}, whose "
            f"log_prob is {module.density.value}."
        )
    if energy is not None:
        module, context = energy
    support = module(context).support if energy is None else module.support
    if energy is not None and support.is_discrete:
        raise ValueError(
            f"Expected a model of real numbers for {name}, got a {type(module).__name__} of "
            f"{support}. PseudoLikelihood and RatioMatching take binary units."
        )
    if ends(support) != (-math.inf, math.inf):
        raise ValueError(
            f"Expected a model of all real numbers for {name}, which integrates by parts and would "
            f"miss what happens at a bound, got a {type(module).__name__} of {support}."
        )

    def total(y: Tensor) -> Tensor:
        exact = energy is None
        value = module(context).log_prob(y) if exact else module.log_density(y, context)
        return value.sum()

    return torch.func.grad(total)


def noisy_score(module: Any, x: Tensor, context: Any, name: str) -> tuple[Score, Tensor]:
    """Return the score of a model and where to match it: of a diffusion that of noisy data."""
    diffusion = find(module, context, HasDenoiser)
    if diffusion is None:
        return score_of(module, x, context, name), x
    inner, given = diffusion
    denoiser: Any = inner.denoiser
    y = inner.standardized(x)
    t = by_angle(denoiser.schedule, spread(len(y), y), CUT)
    alpha, sigma = denoiser.signal(t)
    u = alpha / sigma * y + torch.randn_like(y)
    return lambda u: sigma * denoiser.score(sigma * u, t, given), u


CUT = 1e-3  # the least time of a diffusion that has no noise at time 0


def norm(s: Tensor) -> Tensor:
    return s.flatten(1).square().sum(-1) / 2


@record
class ExplicitScoreMatching(Objective):
    r"""Half the squared distance to a score that is known, or to an estimate of it.

    References:
        | Vincent, "A connection between score matching and denoising autoencoders", 2011,
          https://doi.org/10.1162/NECO_a_00142

    Arguments:
        score: Maps values with shape :math:`(N, *)` to scores of that shape, such as
            :func:`parzen_score`.

    Example:
        >>> import probgen as pg
        >>> x = torch.randn(50, 2)
        >>> model = pg.models.EnergyModel(2, hidden_features=(16,))
        >>> ExplicitScoreMatching(parzen_score(x, 0.5))(model, x).shape
        torch.Size([50])
    """

    score: Score

    requires = (HasDensity,)

    def losses(self, module: HasDensity, x: Tensor, context: Any) -> Tensor:
        s = score_of(module, x, context, type(self).__name__)(x)
        goal = self.score(x).detach()
        if goal.shape != s.shape:
            raise ValueError(
                f"Expected `score` to return shape {tuple(s.shape)}, got {tuple(goal.shape)}."
            )
        return norm(s - goal)


@checked
def parzen_score(data: Tensor, sigma: float) -> Score:
    r"""Return score of a kernel density estimate, :math:`\frac{1}{N} \sum_i N(x; x_i, \sigma^2 I)`.

    Arguments:
        data: The data, with shape :math:`(N, *)`.
        sigma: The width of the kernel, in units of the data.

    Returns:
        A function of values with shape :math:`(M, *)`.

    Example:
        >>> parzen_score(torch.zeros(1, 2), 2.0)(torch.tensor([[4.0, 0.0]]))
        tensor([[-1.,  0.]])
    """
    if not sigma > 0:
        raise ValueError(f"Expected a positive `sigma`, got {sigma}.")
    flat = data.flatten(1)

    def score(x: Tensor) -> Tensor:
        y = x.flatten(1)
        share = (-torch.cdist(y, flat).square() / (2 * sigma**2)).softmax(-1)
        return ((share @ flat - y) / sigma**2).reshape(x.shape)

    return score


@record
class ImplicitScoreMatching(Objective):
    r"""Implicit score matching: :math:`\operatorname{tr} \nabla s(x) + |s(x)|^2 / 2`.

    The trace is exact, from as many products with the Hessian as there are features, each by
    forward over reverse differentiation; :class:`SlicedScoreMatching` takes few of them.

    References:
        | Hyvarinen, "Estimation of non-normalized statistical models by score matching", 2005,
          https://jmlr.org/papers/v6/hyvarinen05a.html

    Example:
        >>> import probgen as pg
        >>> model = pg.models.EnergyModel(2, hidden_features=(16,))
        >>> ImplicitScoreMatching()(model, torch.randn(5, 2)).shape
        torch.Size([5])
    """

    requires = (HasDensity,)

    def losses(self, module: HasDensity, x: Tensor, context: Any) -> Tensor:
        score, x = noisy_score(module, x, context, type(self).__name__)
        size = x[0].numel()
        basis = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, *x.shape[1:])

        def second(e: Tensor) -> Tensor:  # the second derivative along one axis
            change = torch.func.jvp(score, (x,), (e.expand_as(x),))[1]
            return (change * e).flatten(1).sum(-1)

        return torch.func.vmap(second)(basis).sum(0) + norm(score(x))


@record
class SlicedScoreMatching(Objective):
    r"""Sliced score matching: the trace along random directions, :math:`v^\top \nabla s(x) \, v`.

    References:
        | Song et al., "Sliced score matching: a scalable approach to density and score
          estimation", 2019, https://arxiv.org/abs/1905.07088

    Arguments:
        projections: The number of directions per item, of independent signs.

    Raises:
        ValueError: If that is not a whole number of at least 1.

    Example:
        >>> import probgen as pg
        >>> model = pg.models.EnergyModel(2, hidden_features=(16,))
        >>> SlicedScoreMatching()(model, torch.randn(5, 2)).shape
        torch.Size([5])
    """

    projections: int = 1

    requires = (HasDensity,)

    def __post_init__(self) -> None:
        check_whole(1, projections=self.projections)

    def losses(self, module: HasDensity, x: Tensor, context: Any) -> Tensor:
        score, x = noisy_score(module, x, context, type(self).__name__)
        total: Any = 0.0
        for _ in range(self.projections):
            v = torch.randint(2, x.shape, device=x.device).to(x.dtype) * 2 - 1
            s, change, *_ = torch.func.jvp(score, (x,), (v,))
            total = total + (change * v).flatten(1).sum(-1)
        return total / self.projections + norm(s)


@record
class DenoisingScoreMatching(Objective):
    r"""Denoising score matching: :math:`|\sigma s(x + \sigma \epsilon) + \epsilon|^2 / 2`.

    The score learned is that of the data convolved with noise of width :math:`\sigma`.

    References:
        | Vincent, "A connection between score matching and denoising autoencoders", 2011,
          https://doi.org/10.1162/NECO_a_00142

    Arguments:
        sigma: The width of the noise, in units of the data.

    Raises:
        ValueError: If `sigma` is not positive.

    Example:
        >>> import probgen as pg
        >>> model = pg.models.EnergyModel(2, hidden_features=(16,))
        >>> DenoisingScoreMatching(0.1)(model, torch.randn(5, 2)).shape
        torch.Size([5])
    """

    sigma: float

    requires = (HasDensity,)

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"Expected a positive `sigma`, got {self.sigma}.")

    def losses(self, module: HasDensity, x: Tensor, context: Any) -> Tensor:
        score = score_of(module, x, context, type(self).__name__)
        noise = torch.randn_like(x)
        return norm(self.sigma * score(x + self.sigma * noise) + noise)
