r"""Dequantisation: discrete data under a continuous density.

For :math:`x \in \{0, \dots, L - 1\}^D` and noise :math:`u \in [0, 1)^D` with density :math:`q`,

.. math:: \log P(x) = \log \int_{[0, 1)^D} p(x + u) \, du \ge
    \mathbb{E}_{q(u \mid x)} \left[ \log p(x + u) - \log q(u \mid x) \right].

With uniform :math:`q` this is uniform dequantisation; with a conditional flow, trained with
:math:`p`, it is variational and the bound tighter. Without noise a continuous density would grow
without limit at the levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ...core import Density, LazyDistribution, initialize_part
from ...core.cards import Traits
from ...core.numerics import floating_like
from ...core.validation import check_whole, ends
from ...objectives import MaximumLikelihood
from ..module_distribution import ModuleDistribution

__all__ = ["Dequantized"]


class Dequantized(LazyDistribution):
    r"""A discrete distribution made of a continuous one over :math:`[0, L)^D`.

    References:
        | A Note on the Evaluation of Generative Models (Theis et al., 2016)
        | https://arxiv.org/abs/1511.01844
        | Flow++: Improving Flow-Based Generative Models (Ho et al., 2019)
        | https://arxiv.org/abs/1902.00275

    Arguments:
        continuous: The lazy distribution of :math:`x + u`, best bounded to :math:`[0, L)`.
        levels: The number of levels :math:`L`.
        noise: The lazy distribution :math:`q(u \mid x)` on :math:`(0, 1)^D`, given the context
            :math:`x / L`; uniform if none.
        particles: The number of draws of the noise in the bound, which grows tighter with it.

    Raises:
        ValueError: If there are fewer than 2 levels or less than one particle, the noise is not
            on :math:`(0, 1)^D`, or `continuous` is bounded elsewhere.

    Example:
        >>> import probgen as pg
        >>> flow = pg.distributions.Flow([pg.transforms.NormalCDF(0.0, 16.0)], pg.models.NSF(4))
        >>> digits = Dequantized(flow, levels=16)
        >>> digits().sample((3,)).shape, digits().log_prob(torch.zeros(4)).shape
        (torch.Size([3, 4]), torch.Size([]))
    """

    traits = Traits("the continuous distribution's", "one draw of it")
    strict_support = False

    def __init__(
        self,
        continuous: LazyDistribution,
        levels: int,
        noise: LazyDistribution | None = None,
        particles: int = 1,
    ) -> None:
        super().__init__()
        check_whole(2, levels=levels)
        check_whole(1, particles=particles)
        self.continuous, self.noise = continuous, noise
        self.levels, self.particles = levels, particles
        self.context_shape = continuous.context_shape
        self.context_optional = continuous.context_optional
        self.check_noise()
        p = continuous.probe()
        self.event_shape = p.event_shape
        reach = ends(p.support)
        if reach is not None and math.inf not in (-reach[0], reach[1]) and reach != (0, levels):
            raise ValueError(
                f"Expected a `continuous` over [0, {levels}), got the support {list(reach)}."
            )

    def check_noise(self) -> None:
        """Check that the noise is of the data's features, on (0, 1)."""
        if self.noise is None:
            return
        if self.noise.context_shape is None:
            raise ValueError(
                "Expected `noise` that takes the data as its context, got one without."
            )
        q = self.noise.probe()
        if ends(q.support) != (0, 1) or q.event_shape != self.noise.context_shape:
            raise ValueError(
                f"Expected `noise` on (0, 1) with the shape of its context, "
                f"{self.noise.context_shape}, got the support {q.support} and shape "
                f"{tuple(q.event_shape)}."
            )

    @property
    def density(self) -> Density:
        return Density.weakest(Density.BOUND, self.continuous.density)

    @property
    def objective(self) -> Callable[..., Tensor]:
        return MaximumLikelihood()

    @property
    def support(self) -> constraints.Constraint:
        levels = constraints.integer_interval(0, self.levels - 1)
        return constraints.independent(levels, len(self.event_shape))

    def forward(self, context: Any = None) -> ModuleDistribution:
        self.check_context(context)
        return ModuleDistribution(self, context)

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        y = self.real(x)
        initialize_part(self.continuous, y + torch.rand_like(y), context, weights)

    def standardized_parts(self, x: Tensor, context: Any) -> list[tuple[Any, Any, str]]:
        return self.continuous.standardized_parts(self.real(x), context)

    def real(self, x: Tensor) -> Tensor:
        """Values in the dtype of the parameters."""
        return x.to(floating_like(self).dtype)

    def draw(self, shape: torch.Size, context: Any) -> Tensor:
        y = self.continuous(context).expand(shape).sample()
        return y.floor().clamp(0, self.levels - 1)  # the last level includes its upper edge

    def log_prob(self, x: Tensor, context: Any = None) -> Tensor:
        """Return a random lower bound of the log probabilities, from so many draws of the noise."""
        x = self.real(x)
        if self.noise is None:
            u = torch.rand(self.particles, *x.shape, dtype=x.dtype, device=x.device)
            log_q = torch.zeros((), dtype=x.dtype, device=x.device)
        else:
            q = self.noise(x / self.levels)
            u = q.rsample(torch.Size([self.particles]))
            log_q = q.log_prob(u)
        log_p = self.continuous(context).log_prob(x + u)
        return torch.logsumexp(log_p - log_q, 0) - math.log(self.particles)
