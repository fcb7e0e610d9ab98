"""Mixtures of normal distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ...core.validation import check_event, check_whole
from .base import LIMIT, Parametric

__all__ = ["GaussianMixture"]

SMALLEST = 1e-2  # first scale of a component, in units of the data's


class GaussianMixture(Parametric):
    r"""A mixture of normal distributions with independent features.

    It draws without a derivative, and so has no `rsample`: neither has a flow on it. Data set its
    location and scale, and its components, by a few steps of expectation maximisation.

    Arguments:
        features: The number of features :math:`D`.
        components: The number of components :math:`K`.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each hidden layer of the context's network.

    Example:
        >>> GaussianMixture(3, components=4)().sample((10,)).shape
        torch.Size([10, 3])
    """

    def __init__(
        self,
        features: int,
        components: int,
        context: Any = 0,
        hidden_features: Sequence[int] = (64, 64),
    ) -> None:
        check_whole(1, features=features, components=components)
        size = components * features
        phi = torch.cat([torch.zeros(components), torch.randn(size), torch.zeros(size)])
        super().__init__(features, (), context, hidden_features, rest=phi, per="feature")
        self.features, self.components = features, components
        self.sizes = [components, size, size]

    def set_parameters(self, x: Tensor, weights: Tensor | None) -> None:
        unit: Any = self.standardizer
        logits, means, log_scales = expectation_maximization(unit(x), weights, self.components)
        self.phi.copy_(torch.cat([logits, means.flatten(), log_scales.flatten()]))

    def build(self, phi: Tensor) -> TorchDistribution:
        weights, m, s = phi.split(self.sizes, -1)
        m, s = m.unflatten(-1, (-1, self.features)), s.unflatten(-1, (-1, self.features))
        unit: Any = self.standardizer
        scale = unit.scale * s.clamp(-LIMIT, LIMIT).exp()
        mean = torch.addcmul(unit.shift, unit.scale, m)
        return NormalMixture(dist.Categorical(logits=weights), dist.Normal(mean, scale).to_event(1))


def expectation_maximization(
    x: Tensor, weights: Tensor | None, components: int, steps: int = 20
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a mixture of normals to standardised data, from far apart data as first means.

    References:
        | Arthur & Vassilvitskii, "k-means++: the advantages of careful seeding", 2007

    Arguments:
        x: The data, with shape :math:`(N, D)`.
        weights: Their weights, with shape :math:`(N)`.
        components: The number of components :math:`K`.
        steps: The number of steps.

    Returns:
        Logits of the weights, with shape :math:`(K)`, means and log scales, with shape
        :math:`(K, D)`.
    """
    w = torch.ones_like(x[:, 0]) if weights is None else weights.to(x.dtype)
    means = x[torch.multinomial(w, 1)]
    for _ in range(components - 1):
        near = w * torch.cdist(x, means).square().amin(1)
        far = near if bool(near.sum() > 0) else w
        means = torch.cat([means, x[torch.multinomial(far, 1)]])
    logits, scales = x.new_zeros(components), torch.ones_like(means)
    for _ in range(steps):
        log_joint = dist.Normal(means, scales).to_event(1).log_prob(x.unsqueeze(1)) + logits
        r = w.unsqueeze(1) * log_joint.softmax(1)
        total = r.sum(0).clamp_min(torch.finfo(x.dtype).tiny)
        means = r.mT @ x / total.unsqueeze(1)
        squares = torch.einsum("nk,nkd->kd", r, (x.unsqueeze(1) - means).square())
        scales = (squares / total.unsqueeze(1)).sqrt().clamp_min(SMALLEST)
        logits = (total / total.sum()).clamp_min(1e-3).log()
    return logits, means, scales.log()


class NormalMixture(dist.MixtureSameFamily):
    """A mixture whose declared support lets Pyro start a kernel."""

    support = constraints.real_vector

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            check_event(value, self.event_shape)
        return super().log_prob(value)
