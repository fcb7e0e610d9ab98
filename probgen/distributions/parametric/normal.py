r"""Distributions with learned parameters: bases of flows, priors, posteriors and likelihoods.

Their parameters :math:`\phi` are learned, or given by a network from a standardised context,
:math:`\phi(c) = \phi_0 + g_\theta(c)`. Those with a location and a scale hold a shift :math:`a`
and a scale :math:`b` per feature, set from the data before training, so that :math:`x = a + b y`
and :math:`\phi` describes :math:`y`: data may come on any scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ...core.standardize import Per
from ...core.validation import check_whole
from ...networks.dense import Activation
from .base import LIMIT, Events, Parametric, shape_of

__all__ = ["DiagonalNormal", "FullNormal"]

STEEPEST = 1e3  # entry of a row of a triangle, in units of its diagonal


class DiagonalNormal(Parametric):
    r"""A normal distribution with independent features, :math:`\mathcal{N}(m, e^{2 s})`.

    Log scales are kept within 7 of the data's.

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each hidden layer of the context's network.
        activation: The name of its activation function.
        network: Another network instead, which maps contexts with shape :math:`(*, C)` to the
            locations and log scales, with shape :math:`(*, 2 D)`.
        scale: Where the scales come from: `"conditional"` on the context, `"learned"` (one for
            each feature), `"shared"` (learned, one for all), or a number, in units of the data.

    Raises:
        ValueError: If a size is not positive, or `scale` none of these.

    Example:
        >>> DiagonalNormal(3, context=2)(torch.randn(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        network: nn.Module | None = None,
        scale: Literal["conditional", "learned", "shared"] | float = "conditional",
    ) -> None:
        if scale not in ("conditional", "learned", "shared"):
            if not (isinstance(scale, (int, float)) and 0 < scale < math.inf):
                raise ValueError(
                    f"Expected `scale` to be 'conditional', 'learned', 'shared' or a positive "
                    f"number, got {scale!r}."
                )
        starts = (0.0, 0.0) if scale in ("conditional", "learned") else (0.0,)
        free = {"learned": math.prod(shape_of(features)), "shared": 1}.get(str(scale), 0)
        rest = torch.zeros(1) if scale == "shared" else None
        per: Per = "shared" if scale == "shared" else "feature"
        super().__init__(
            features, starts, context, hidden_features, activation, network, rest, free, per
        )
        self.scale = scale

    def build(self, phi: Tensor) -> TorchDistribution:
        m, *s = self.split(phi)
        unit: Any = self.standardizer
        if isinstance(self.scale, str):
            logs = s[0] if s else phi[..., -1:].unflatten(-1, (1,) * len(self.shape))
            scale = unit.scale * logs.clamp(-LIMIT, LIMIT).exp()
        else:
            scale = torch.full_like(unit.scale, self.scale)
        mean = torch.addcmul(unit.shift, unit.scale, m)
        return Events(dist.Normal(mean, scale), len(self.shape))


class FullNormal(Parametric):
    r"""A normal distribution with any covariance, :math:`x = m + L \epsilon`.

    Row :math:`i` of the triangular :math:`L` is :math:`e^{s_i}` times a row with 1 on the diagonal.

    References:
        | An Introduction to Variational Autoencoders (Kingma & Welling, 2019)
        | https://arxiv.org/abs/1906.02691

    Arguments:
        features: The number of features :math:`D`.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each hidden layer of the context's network.
        activation: The name of its activation function.
        network: Another network instead, which maps contexts with shape :math:`(*, C)` to
            locations, log scales and the :math:`D (D - 1) / 2` entries below the diagonal, row by
            row, in units of their row's scale.

    Example:
        >>> FullNormal(3, context=2)(torch.randn(5, 2)).covariance_matrix.shape
        torch.Size([5, 3, 3])
    """

    order: Tensor

    def __init__(
        self,
        features: int,
        context: Any = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        network: nn.Module | None = None,
    ) -> None:
        check_whole(1, features=features)
        below = torch.zeros(features * (features - 1) // 2)
        super().__init__(
            features,
            (0.0, 0.0),
            context,
            hidden_features,
            activation,
            network,
            rest=below,
            per="feature",
        )

        d, k = features, features * (features - 1) // 2  # after k entries come a one and a zero
        order = torch.full((d, d), k + 1).triu(1) + k * torch.eye(d, dtype=torch.long)
        row, column = torch.tril_indices(d, d, -1)
        order[row, column] = torch.arange(k)
        self.register_buffer("order", order, persistent=False)

    def build(self, phi: Tensor) -> TorchDistribution:
        m, s = self.split(phi)
        d = len(self.order)
        ends = phi.new_tensor([1.0, 0.0]).expand(*phi.shape[:-1], 2)
        below = phi[..., 2 * d :].clamp(-STEEPEST, STEEPEST)
        rows = torch.cat([below, ends], -1)[..., self.order]
        unit: Any = self.standardizer
        scale = unit.scale * s.clamp(-LIMIT, LIMIT).exp()
        return dist.MultivariateNormal(
            torch.addcmul(unit.shift, unit.scale, m), scale_tril=scale.unsqueeze(-1) * rows
        )
