"""Distributions without parameters, as bases of flows."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ...core import Density, LazyDistribution, broadcast
from ...core.validation import check_event, check_whole
from ...transforms import CircularRationalQuadratic

__all__ = ["StandardNormal", "UniformAngles"]


class Standard(LazyDistribution):
    """A distribution without parameters; a buffer holds its size, dtype and device."""

    density = Density.EXACT
    centre: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        check_whole(1, features=features)
        self.event_shape = torch.Size([features])
        self.register_buffer("centre", torch.zeros(features))

    @property
    def objective(self) -> Callable[..., Tensor]:
        raise AttributeError(f"{type(self).__name__} has nothing to train.")

    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        self.check_context(context)
        return self.build()

    @abstractmethod
    def build(self) -> TorchDistribution:
        """Return the distribution with the shape, dtype and device of the buffer."""


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
