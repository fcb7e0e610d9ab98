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
from collections.abc import Callable, Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ..core import Density, LazyDistribution
from ..core.checks import check_event, check_whole, ends
from ..core.lazy import shown
from ..objectives import MaximumLikelihood

__all__ = ["Dequantized", "DequantizedDistribution"]


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

    density = Density.BOUND

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
        self.context = continuous.context
        if noise is not None and noise.context == 0:
            raise ValueError(
                "Expected `noise` that takes the data as its context, got one without."
            )
        if noise is not None:
            like = next(iter(noise.parameters()), torch.zeros(()))
            with torch.no_grad():
                q = noise(like.new_zeros(noise.context))
            if ends(q.support) != (0, 1) or q.event_shape != (noise.context,):
                raise ValueError(
                    f"Expected `noise` on (0, 1) with {noise.context} features, those of its "
                    f"context, got the support {q.support} and shape {tuple(q.event_shape)}."
                )

    @property
    def objective(self) -> Callable[..., Tensor]:
        return MaximumLikelihood()

    def forward(self, context: Tensor | None = None) -> DequantizedDistribution:
        return DequantizedDistribution(
            self.continuous(context), self.levels, self.noise, self.particles
        )

    def start(self, x: Tensor, context: Tensor | None = None) -> None:
        self.continuous.start(x + torch.rand_like(x), context)


class DequantizedDistribution(TorchDistribution):
    """The distribution of the level below a continuous draw; its `log_prob` is a random bound.

    Arguments:
        continuous: The distribution of level plus noise.
        levels: The number of levels.
        noise: The lazy distribution of the noise, or none.
        particles: The number of draws of the noise.
        validate_args: Whether to check arguments; by default as Pyro is set.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    density = Density.BOUND

    def __init__(
        self,
        continuous: TorchDistribution,
        levels: int,
        noise: LazyDistribution | None,
        particles: int,
        validate_args: bool | None = None,
    ) -> None:
        self.continuous, self.levels = continuous, levels
        self.noise, self.particles = noise, particles
        reach = ends(continuous.support)
        if reach is not None and math.inf not in (-reach[0], reach[1]) and reach != (0, levels):
            raise ValueError(
                f"Expected a `continuous` over [0, {levels}), got the support {list(reach)}."
            )
        shapes = continuous.batch_shape, continuous.event_shape
        super().__init__(*shapes, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        levels = constraints.integer_interval(0, self.levels - 1)
        return constraints.independent(levels, len(self.event_shape))

    def __repr__(self) -> str:
        return shown(self, self.continuous)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> TorchDistribution:
        continuous = self.continuous.expand(torch.Size(batch_shape))
        return DequantizedDistribution(continuous, self.levels, self.noise, self.particles)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            y = self.continuous.sample(torch.Size(sample_shape))
        return y.floor().clamp(0, self.levels - 1)  # the last level includes its upper edge

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            check_event(value, self.event_shape)
        shape = self.batch_shape + self.event_shape
        value = value.expand(torch.broadcast_shapes(value.shape, shape))
        inside = self.support.check(value)
        ones = [1] * len(self.event_shape)
        x = torch.where(inside.reshape(*inside.shape, *ones), value, 0)
        if not x.is_floating_point():
            x = x.to(torch.get_default_dtype())
        if self.noise is None:
            u = torch.rand(self.particles, *x.shape, dtype=x.dtype, device=x.device)
            log_q = torch.zeros((), dtype=x.dtype, device=x.device)
        else:
            q = self.noise(x / self.levels)
            u = q.rsample(torch.Size([self.particles]))
            log_q = q.log_prob(u)
        log_p = self.continuous.log_prob(x + u)
        bound = torch.logsumexp(log_p - log_q, 0) - math.log(self.particles)
        return torch.where(inside, bound, -torch.inf)
