"""Mixtures of logistic distributions on whole numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from ...core.validation import check_event, check_whole
from ...networks.dense import Activation
from .base import Events, Parametric

__all__ = ["DiscretizedLogistic", "DiscretizedLogisticMixture"]


class DiscretizedLogistic(Parametric):
    r"""Levels :math:`0, \dots, L - 1`, each feature a mixture of binned logistic distributions.

    References:
        | PixelCNN++ (Salimans et al., 2017), https://arxiv.org/abs/1701.05517

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        levels: The number of levels :math:`L`.
        components: The number of logistic distributions :math:`M` of each mixture.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each hidden layer of the context's network.
        activation: The name of its activation function.
        network: Another network instead, which maps contexts with shape :math:`(*, C)` to logits of
            weights, locations and log scales on :math:`[-1, 1]`, with shape :math:`(*, 3 M, D)`.

    Example:
        >>> head = DiscretizedLogistic(3, levels=17, components=2, context=2)
        >>> head(torch.randn(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        levels: int,
        components: int = 1,
        context: Any = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        network: nn.Module | None = None,
    ) -> None:
        check_whole(2, levels=levels)
        check_whole(1, components=components)
        places = [2 * (k + 0.5) / components - 1 for k in range(components)]
        starts = [0.0] * components + places + [-1.0 - math.log(components)] * components
        super().__init__(features, starts, context, hidden_features, activation, network)
        self.levels, self.components = levels, components

    def build(self, phi: Tensor) -> TorchDistribution:
        logits, locations, log_scales = torch.stack(self.split(phi), -1).chunk(3, -1)
        mixture = DiscretizedLogisticMixture(logits, locations, log_scales, self.levels)
        return Events(mixture, len(self.shape))


class DiscretizedLogisticMixture(TorchDistribution):
    r"""A mixture of logistic distributions, cut into the levels :math:`0, \dots, L - 1`.

    On :math:`[-1, 1]` levels are :math:`2 / (L - 1)` apart, and each takes the mass up to half-way
    to its neighbours, the outermost all beyond. With edges :math:`a < b` in units of the scale,

    .. math:: \log (\sigma(b) - \sigma(a)) = \log \sigma(b) + \log \sigma(-a) + \log(1 - e^{a - b}),

    which no scale makes underflow.

    Arguments:
        logits: The logits of the weights, with shape :math:`(*, M)`.
        locations: The locations on :math:`[-1, 1]`, with shape :math:`(*, M)`.
        log_scales: The log scales, with shape :math:`(*, M)`, kept within 15.
        levels: The number of levels :math:`L`.
        validate_args: Whether to check arguments; by default as Pyro is set.

    Example:
        >>> law = DiscretizedLogisticMixture(torch.zeros(2), torch.zeros(2), torch.zeros(2), 16)
        >>> round(float(law.log_prob(torch.arange(16.0)).exp().sum()), 5)
        1.0
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        logits: Tensor,
        locations: Tensor,
        log_scales: Tensor,
        levels: int,
        validate_args: bool | None = None,
    ) -> None:
        parts = torch.broadcast_tensors(logits, locations, log_scales)
        self.logits, self.locations = parts[:2]
        self.log_scales = parts[2].clamp(-15, 15)
        self.levels = levels
        super().__init__(parts[0].shape[:-1], torch.Size(), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.levels - 1)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> TorchDistribution:
        parts = (self.logits, self.locations, self.log_scales)
        a, b, c = (part.expand(*batch_shape, part.shape[-1]) for part in parts)
        return DiscretizedLogisticMixture(a, b, c, self.levels, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            check_event(value, ())
        inside = self.support.check(value)
        x = value.to(self.locations.dtype).unsqueeze(-1)
        step = 2 / (self.levels - 1)
        centre = step * x - 1 - self.locations
        rate = (-self.log_scales).exp()
        low, high = (centre - step / 2) * rate, (centre + step / 2) * rate
        width = torch.log(-torch.expm1(-step * rate))
        below, above = logsigmoid(high), logsigmoid(-low)
        mass = torch.where(
            x <= 0, below, torch.where(x >= self.levels - 1, above, below + above + width)
        )
        log_prob = torch.logsumexp(self.logits.log_softmax(-1) + mass, -1)
        return torch.where(inside, log_prob, -torch.inf)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            component = dist.Categorical(logits=self.logits).sample(torch.Size(sample_shape))
            chosen = [
                part.expand(*shape, -1).gather(-1, component.unsqueeze(-1)).squeeze(-1)
                for part in (self.locations, self.log_scales)
            ]
            u = torch.rand_like(chosen[0]).clamp(1e-7, 1 - 1e-7)
            y = chosen[0] + chosen[1].exp() * u.logit()
            return ((y + 1) * (self.levels - 1) / 2).round().clamp(0, self.levels - 1)

    @property
    def mean(self) -> Tensor:
        """The mean level, the sum of the probabilities to exceed each."""
        edges = (2 * torch.arange(self.levels - 1) + 1) / (self.levels - 1) - 1
        edges = edges.to(self.locations).reshape(-1, *[1] * self.locations.ndim)
        above = torch.sigmoid((self.locations - edges) * (-self.log_scales).exp())
        return (self.logits.softmax(-1) * above).sum(-1).sum(0)
