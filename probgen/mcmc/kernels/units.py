r"""Conditional distributions of single units given their field.

A unit with sufficient statistics :math:`s(v)` and base measure :math:`r(v)` has, in a field
:math:`\theta`,

.. math:: p(v \mid \theta) = e^{r(v) + \theta^\top s(v) - A(\theta)}, \qquad
    A(\theta) = \log \int e^{r(v) + \theta^\top s(v)} \, dv.

So one machine of two layers takes binary, real and categorical units.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ...core.arguments import record
from ...core.derive import derive, derived
from ...core.validation import check_whole

__all__ = ["BinaryUnits", "CategoricalUnits", "GaussianUnits", "Units"]


class Units(ABC):
    """A conditional distribution of units; every one is a frozen dataclass of it."""

    #: The number of sufficient statistics of a unit.
    size: int = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        derive(cls)

    @abstractmethod
    def statistics(self, v: Tensor, like: Tensor) -> Tensor:
        r""":math:`s(v)` of units with shape :math:`(*, V)`, with shape :math:`(*, V S)`."""

    @abstractmethod
    def draw(self, field: Tensor) -> Tensor:
        r"""Units given fields with shape :math:`(*, V S)`, with shape :math:`(*, V)`."""

    @abstractmethod
    def mean(self, field: Tensor) -> Tensor:
        r"""Return the means of the statistics given fields, with the same shape."""

    @abstractmethod
    def log_normalizer(self, field: Tensor) -> Tensor:
        r""":math:`\sum A(\theta)` over units, of fields with shape :math:`(*, V S)`."""

    @derived
    def log_measure(self, v: Tensor) -> Tensor | float:
        r""":math:`\sum r(v)` over units with shape :math:`(*, V)`."""
        return 0.0


@record
class BinaryUnits(Units):
    """Units of two values.

    Arguments:
        lower: The lower value, 0 or -1; the upper one is 1.

    Raises:
        ValueError: If it is another number.

    Example:
        >>> BinaryUnits().mean(torch.zeros(3))
        tensor([0.5000, 0.5000, 0.5000])
    """

    lower: int = 0

    def __post_init__(self) -> None:
        if self.lower not in (0, -1):
            raise ValueError(f"Expected `units` of 0 or -1, got {self.lower}.")

    def statistics(self, v: Tensor, like: Tensor) -> Tensor:
        return v.to(like.dtype)

    def draw(self, field: Tensor) -> Tensor:
        p = torch.sigmoid(field if self.lower == 0 else 2 * field)
        up = (torch.rand_like(p) < p).to(p.dtype)
        return up if self.lower == 0 else 2 * up - 1

    def mean(self, field: Tensor) -> Tensor:
        return torch.sigmoid(field) if self.lower == 0 else torch.tanh(field)

    def log_normalizer(self, field: Tensor) -> Tensor:
        if self.lower == 0:
            return torch.nn.functional.softplus(field).sum(-1)
        return torch.logaddexp(field, -field).sum(-1)


@record
class GaussianUnits(Units):
    r"""Real units, normal with mean :math:`a + \sigma \theta` and deviation :math:`\sigma`.

    Their statistic is :math:`(v - a) / \sigma`.

    Arguments:
        location: The location :math:`a`, with shape :math:`(V)` or a number.
        scale: The scale :math:`\sigma`, with shape :math:`(V)` or a number.

    Example:
        >>> GaussianUnits().log_normalizer(torch.tensor([1.0, 2.0]))
        tensor(2.5000)
    """

    location: Tensor | float = 0.0
    scale: Tensor | float = 1.0

    def statistics(self, v: Tensor, like: Tensor) -> Tensor:
        return (v.to(like.dtype) - self.location) / self.scale

    def draw(self, field: Tensor) -> Tensor:
        return self.location + self.scale * (field + torch.randn_like(field))

    def mean(self, field: Tensor) -> Tensor:
        return field

    def log_normalizer(self, field: Tensor) -> Tensor:
        return field.square().sum(-1) / 2

    def log_measure(self, v: Tensor) -> Tensor:
        y = self.statistics(v, v)
        log_scale = torch.as_tensor(self.scale).to(y).log()
        return -(y.square() / 2 + math.log(2 * math.pi) / 2 + log_scale).sum(-1)


@record
class CategoricalUnits(Units):
    """Units of one of several classes, whole numbers from 0.

    Arguments:
        size: The number of classes.

    Raises:
        ValueError: If there are less than two.

    Example:
        >>> CategoricalUnits(3).draw(torch.tensor([0.0, 99.0, 0.0, 99.0, 0.0, 0.0]))
        tensor([1, 0])
    """

    size: int = 2

    def __post_init__(self) -> None:
        check_whole(2, classes=self.size)

    def statistics(self, v: Tensor, like: Tensor) -> Tensor:
        if v.device.type == "meta":
            return like.new_empty(*v.shape, self.size).flatten(-2)
        return one_hot(v.long(), self.size).to(like.dtype).flatten(-2)

    def draw(self, field: Tensor) -> Tensor:
        scores = field.unflatten(-1, (-1, self.size))
        noise = torch.empty_like(scores).exponential_().log()
        return (scores - noise).argmax(-1)

    def mean(self, field: Tensor) -> Tensor:
        return field.unflatten(-1, (-1, self.size)).softmax(-1).flatten(-2)

    def log_normalizer(self, field: Tensor) -> Tensor:
        return field.unflatten(-1, (-1, self.size)).logsumexp(-1).sum(-1)
