r"""Likelihoods of data that are not normal: networks that return distributions.

Each is a distribution with parameters :math:`\phi(c) = \phi_0 + g_\theta(c)`, where
:math:`\phi_0` starts from the data. Logarithms of scales and rates are kept in bounds, so that no
output of a network gives an infinite density.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from ...core.validation import check_event, check_whole
from ...networks.dense import Activation
from .base import Events, Parametric, shape_of, weighted_mean
from .normal import LIMIT

__all__ = ["Bernoulli", "Beta", "Categorical", "ContinuousBernoulli", "Poisson", "StudentT"]

MARGIN = 1e-3  # how far starting probabilities stay from 0 and 1


class Head(Parametric):
    """A parametric distribution whose first parameters start from the data's means."""

    starts: ClassVar[Sequence[float]] = (0.0,)
    counts: ClassVar[bool] = False  # whether data are counts, else fractions
    open_interval: ClassVar[bool] = False  # whether data must lie inside (0, 1)

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        network: nn.Module | None = None,
    ) -> None:
        super().__init__(features, self.starts, context, hidden_features, activation, network)

    def set_parameters(self, x: Tensor, weights: Tensor | None) -> None:
        if self.open_interval and bool(((x <= 0) | (x >= 1)).any()):
            raise ValueError(
                f"Expected data inside (0, 1) for {type(self).__name__}, whose density has no "
                f"bound at the ends, got values in [{float(x.min()):g}, {float(x.max()):g}]. Take "
                f"ContinuousBernoulli."
            )
        mean = weighted_mean(x.to(self.phi.dtype), weights)
        self.phi[: mean.numel()] = self.link(mean).flatten()

    def link(self, mean: Tensor) -> Tensor:
        """Return the parameter of a mean: its logit, or its log."""
        if self.counts:
            return mean.clamp_min(MARGIN).log()
        return mean.clamp(MARGIN, 1 - MARGIN).logit()


class Bernoulli(Head):
    """Independent binary features.

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each hidden layer of the context's network.
        activation: The name of its activation function.
        network: Another network instead, which maps contexts with shape :math:`(*, C)` to the
            logits, with shape :math:`(*, D)`.

    Example:
        >>> Bernoulli(3, context=2)(torch.randn(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def build(self, phi: Tensor) -> TorchDistribution:
        (logits,) = self.split(phi)
        if len(self.shape) != 1:
            return Events(dist.Bernoulli(logits=logits), len(self.shape))
        return Bits(dist.Bernoulli(logits=logits), 1)


class Bits(dist.Independent):
    r"""A vector of independent binary features, with a density of fewer operations than Pyro's.

    .. math:: \log p(x) = x^\top \ell - \sum_i \log(1 + e^{\ell_i}).
    """

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Bits:
        base = self.base_dist.expand(torch.Size((*batch_shape, *self.event_shape)))
        return Bits(base, 1, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args or self.base_dist._validate_args:
            check_event(value, self.event_shape)
            self.base_dist._validate_sample(value)
        logits = self.base_dist.logits
        value = value.to(logits.dtype)
        return torch.linalg.vecdot(value, logits) - softplus(logits, threshold=40.0).sum(-1)


class ContinuousBernoulli(Head):
    r"""Independent features in :math:`[0, 1]`, density :math:`\propto \lambda^x (1-\lambda)^{1-x}`.

    References:
        | The Continuous Bernoulli (Loaiza-Ganem & Cunningham, 2019)
        | https://arxiv.org/abs/1907.06845

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each hidden layer of the context's network.
        activation: The name of its activation function.
        network: Another network instead, which maps contexts with shape :math:`(*, C)` to the
            logits of :math:`\lambda`, with shape :math:`(*, D)`.

    Example:
        >>> ContinuousBernoulli(3, context=2)(torch.randn(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def build(self, phi: Tensor) -> TorchDistribution:
        (logits,) = self.split(phi)
        return Events(dist.ContinuousBernoulli(logits=logits.clamp(-15, 15)), len(self.shape))


class Beta(Head):
    r"""Independent features in :math:`(0, 1)`, with mean :math:`m` and concentration :math:`a + b`.

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each hidden layer of the context's network.
        activation: The name of its activation function.
        network: Another network instead, which maps contexts with shape :math:`(*, C)` to the
            logits of :math:`m` and the logarithms of :math:`a + b`, with shape :math:`(*, 2 D)`.

    Example:
        >>> Beta(3, context=2)(torch.randn(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    starts: ClassVar[Sequence[float]] = (0.0, math.log(2.0))
    open_interval: ClassVar[bool] = True

    def build(self, phi: Tensor) -> TorchDistribution:
        logits, log_total = self.split(phi)
        total = log_total.clamp(-LIMIT, LIMIT).exp()
        m = logits.clamp(-LIMIT, LIMIT).sigmoid()
        return Events(dist.Beta(m * total, (1 - m) * total), len(self.shape))


class Poisson(Head):
    """Independent counts.

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each hidden layer of the context's network.
        activation: The name of its activation function.
        network: Another network instead, which maps contexts with shape :math:`(*, C)` to the
            logarithms of rates, with shape :math:`(*, D)`; they are kept within 20.

    Example:
        >>> Poisson(3, context=2)(torch.randn(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    counts = True

    def build(self, phi: Tensor) -> TorchDistribution:
        (log_rate,) = self.split(phi)
        return Events(dist.Poisson(log_rate.clamp(-20, 20).exp()), len(self.shape))


class Categorical(Parametric):
    """Independent features of several classes, numbered from 0.

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        classes: The number of classes :math:`K` of each.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each hidden layer of the context's network.
        activation: The name of its activation function.
        network: Another network instead, which maps contexts with shape :math:`(*, C)` to the
            logits, with shape :math:`(*, K, D)`.

    Example:
        >>> Categorical(3, classes=4, context=2)(torch.randn(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        classes: int,
        context: Any = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        network: nn.Module | None = None,
    ) -> None:
        check_whole(2, classes=classes)
        starts = (0.0,) * classes
        super().__init__(features, starts, context, hidden_features, activation, network)
        self.classes = classes

    def set_parameters(self, x: Tensor, weights: Tensor | None) -> None:
        fractions = [
            weighted_mean((x == k).to(self.phi.dtype), weights) for k in range(self.classes)
        ]
        self.phi.copy_(torch.stack(fractions).clamp_min(MARGIN).log().flatten())

    def build(self, phi: Tensor) -> TorchDistribution:
        logits = torch.stack(self.split(phi), -1)
        return Events(dist.Categorical(logits=logits), len(self.shape))


class StudentT(Parametric):
    r"""Independent features with heavy tails, :math:`x = m + e^s t_\nu`.

    The degrees of freedom :math:`\nu > 1` of each feature are learned, without the context.

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each hidden layer of the context's network.
        activation: The name of its activation function.
        network: Another network instead, which maps contexts with shape :math:`(*, C)` to the
            locations and log scales, with shape :math:`(*, 2 D)`.

    Example:
        >>> StudentT(3, context=2)(torch.randn(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        network: nn.Module | None = None,
    ) -> None:
        starts, shape = (0.0, 0.0, math.log(9.0)), shape_of(features)
        super().__init__(
            features,
            starts,
            context,
            hidden_features,
            activation,
            network,
            free=math.prod(shape),
            per="feature",
        )

    def build(self, phi: Tensor) -> TorchDistribution:
        m, s, f = self.split(phi)
        unit: Any = self.standardizer
        scale = unit.scale * s.clamp(-LIMIT, LIMIT).exp()
        nu = 1 + f.clamp(-LIMIT, LIMIT).exp()
        mean = torch.addcmul(unit.shift, unit.scale, m)
        return Events(dist.StudentT(nu, mean, scale), len(self.shape))
