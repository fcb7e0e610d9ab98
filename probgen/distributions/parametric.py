r"""Distributions with learned parameters: bases of flows, priors and conditionals.

Their parameters :math:`\phi` are learned, or given by a network from a context,
:math:`\phi(c) = \phi_0 + g_\theta(c)`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ..core import Density, LazyDistribution, broadcast
from ..core.checks import check_event, check_whole
from ..networks import MLP
from ..objectives import MaximumLikelihood
from ..transforms import CircularRationalQuadratic

__all__ = ["DiagonalNormal", "GaussianMixture", "StandardNormal", "UniformAngles"]


class Parametric(LazyDistribution):
    """A distribution of a fixed form whose parameters are one vector, learned or conditional."""

    density = Density.EXACT

    def __init__(self, phi: Tensor, context: int, hidden_features: Sequence[int]) -> None:
        super().__init__()
        check_whole(0, context=context)
        self.context = context
        self.phi = nn.Parameter(phi)
        self.network = MLP(context, len(phi), 0, hidden_features) if context else None

    @property
    def objective(self) -> Callable[..., Tensor]:
        return MaximumLikelihood()

    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        self.check_context(context)
        phi = self.phi
        if self.network is not None and context is not None:
            phi = phi + self.network(context.movedim(-1, 0)).movedim(0, -1)
        return self.build(phi)

    @abstractmethod
    def build(self, phi: Tensor) -> TorchDistribution:
        r"""The distribution with parameters of shape :math:`(*, P)`."""


class DiagonalNormal(Parametric):
    r"""A normal distribution with independent features, :math:`\mathcal{N}(m, e^{2 s})`.

    Arguments:
        features: The number of features :math:`D`.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each hidden layer of the context's network.

    Example:
        >>> DiagonalNormal(3, context=2)(torch.randn(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self, features: int, context: int = 0, hidden_features: Sequence[int] = (64, 64)
    ) -> None:
        check_whole(1, features=features)
        super().__init__(torch.zeros(2 * features), context, hidden_features)

    def build(self, phi: Tensor) -> TorchDistribution:
        d = phi.shape[-1] // 2
        m, s = phi[..., :d], phi[..., d:]
        return dist.Normal(m, s.exp()).to_event(1)


class GaussianMixture(Parametric):
    r"""A mixture of normal distributions with independent features.

    It draws without a derivative, and so has no `rsample`: neither has a flow on it.

    Arguments:
        features: The number of features :math:`D`.
        components: The number of components :math:`K`.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each hidden layer of the context's network.

    Example:
        >>> GaussianMixture(3, components=4)().sample((10,)).shape
        torch.Size([10, 3])
    """

    def __init__(
        self,
        features: int,
        components: int,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
    ) -> None:
        check_whole(1, features=features, components=components)
        size = components * features
        phi = torch.cat([torch.zeros(components), torch.randn(size), torch.zeros(size)])
        super().__init__(phi, context, hidden_features)
        self.features, self.sizes = features, [components, size, size]

    def build(self, phi: Tensor) -> TorchDistribution:
        weights, m, s = phi.split(self.sizes, -1)
        m, s = m.unflatten(-1, (-1, self.features)), s.unflatten(-1, (-1, self.features))
        return NormalMixture(dist.Categorical(logits=weights), dist.Normal(m, s.exp()).to_event(1))


class NormalMixture(dist.MixtureSameFamily):
    """A mixture that says its support in a form from which Pyro can start a kernel."""

    support = constraints.real_vector


class Standard(LazyDistribution):
    """A distribution without parameters; a buffer holds its size, dtype and device."""

    density = Density.EXACT
    centre: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        check_whole(1, features=features)
        self.register_buffer("centre", torch.zeros(features))

    @property
    def objective(self) -> Callable[..., Tensor]:
        raise TypeError(f"{type(self).__name__} has nothing to train.")

    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        self.check_context(context)
        return self.build()

    @abstractmethod
    def build(self) -> TorchDistribution:
        """The distribution with the shape, dtype and device of the buffer."""


class StandardNormal(Standard):
    r"""The standard normal distribution, the base of most flows.

    Arguments:
        features: The number of features :math:`D`.

    Example:
        >>> round(float(StandardNormal(2)().log_prob(torch.zeros(2))), 4)
        -1.8379
    """

    def build(self) -> TorchDistribution:
        return UnitNormal(self.centre)


class UniformAngles(Standard):
    r"""The uniform distribution of angles in :math:`[-\pi, \pi)`, the base of circular flows.

    Arguments:
        features: The number of angles :math:`D`.

    Example:
        >>> round(float(UniformAngles(1)().log_prob(torch.zeros(1)).exp()), 4)
        0.1592
    """

    def build(self) -> TorchDistribution:
        return Angles(self.centre)


class Centred(TorchDistribution):
    """A distribution about a centre of zeros, with shape :math:`(*, D)`."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(self, centre: Tensor, validate_args: bool | None = None) -> None:
        self.centre = centre
        super().__init__(centre.shape[:-1], centre.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Centred:
        return type(self)(self.centre.expand(*batch_shape, -1), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.centre


class UnitNormal(Centred):
    """The standard normal distribution, with a density of fewer operations than Pyro's."""

    support = constraints.real_vector

    @property
    def variance(self) -> Tensor:
        return torch.ones_like(self.centre)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.randn(shape, dtype=self.centre.dtype, device=self.centre.device)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            check_event(value, self.event_shape)
        value = value.expand(broadcast(value.shape, self.centre.shape))
        constant = value.shape[-1] * math.log(2 * math.pi)
        return ((value * value).sum(-1) + constant) / -2


class Angles(Centred):
    """The uniform distribution of angles."""

    support = constraints.independent(CircularRationalQuadratic.domain, 1)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        turns = torch.rand(shape, dtype=self.centre.dtype, device=self.centre.device)
        return (2 * turns - 1) * math.pi

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            check_event(value, self.event_shape)
        shape = broadcast(value.shape, self.centre.shape)
        inside = self.support.check(value).expand(shape[:-1])
        density = value.new_full((), -shape[-1] * math.log(2 * math.pi))
        return torch.where(inside, density, -torch.inf)
