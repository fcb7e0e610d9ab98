"""Distributions whose parameters are learned, or predicted from a context."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ...core import Density, LazyDistribution, Standardizer
from ...core.contexts import flatten, size_of
from ...core.derive import derived
from ...core.standardize import ContextStandardizer, Per
from ...core.validation import check_event, check_whole
from ...networks import MLP
from ...networks.dense import Activation, along_last
from ...objectives import MaximumLikelihood

__all__ = ["Events", "Parametric", "shape_of", "weighted_mean"]

LIMIT = 7.0  # of log scales and other logarithms, in units of the data's


class Parametric(LazyDistribution):
    """A distribution of a fixed form whose parameters are one vector, learned or conditional.

    Arguments:
        features: The number of features, or the shape of an event.
        starts: The starting values of the parameters of one feature, in as many rows.
        context: The number of features of the context, or its shape.
        hidden_features: The width of each hidden layer of the context's network.
        activation: The name of its activation function.
        network: Another network instead, which maps contexts with shape :math:`(*, C)` to as many
            numbers per item, rows first.
        rest: The starting values of what does not belong to a feature.
        free: How many of the last numbers do not depend on the context.
        per: Whether there are a location and a scale in units of the data, and of what, see
            :class:`~probgen.core.Standardizer`.
    """

    density = Density.EXACT

    def __init__(
        self,
        features: int | Sequence[int],
        starts: Sequence[float],
        context: Any,
        hidden_features: Sequence[int],
        activation: Activation = "relu",
        network: nn.Module | None = None,
        rest: Tensor | None = None,
        free: int = 0,
        per: Per | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = self.shape = shape_of(features)
        self.context = context
        self.standardizer = Standardizer(self.shape, per) if per is not None else None
        size = math.prod(self.shape)
        phi = torch.tensor([float(s) for s in starts]).repeat_interleave(size)
        self.phi = nn.Parameter(phi if rest is None else torch.cat([phi, rest]))
        self.rows, self.free = len(starts), free
        outputs = len(self.phi) - free
        if network is not None and self.context_shape is None:
            raise ValueError("Expected a `context`, since a `network` was given, got 0.")
        self.network: Any = network
        if self.context_shape is not None:
            self.context_standardizer = ContextStandardizer(self.context_shape)
            if network is None:
                size = size_of(self.context_shape)
                self.network = MLP(size, outputs, 0, hidden_features, activation)

    @property
    def objective(self) -> Callable[..., Tensor]:
        return MaximumLikelihood()

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        check_event(x, self.shape)
        if context is not None:
            self.context_standardizer.fit(context, weights)
        x = x.reshape(-1, *self.shape)
        if self.standardizer is not None:
            self.standardizer.fit(x, weights)
        self.set_parameters(x, weights)

    @derived
    def set_parameters(self, x: Tensor, weights: Tensor | None) -> None:
        """Set the first parameters from data, with shape :math:`(N, *event)`."""

    def forward(self, context: Any = None) -> TorchDistribution:
        self.check_context(context)
        phi: Tensor = self.phi
        if context is not None:
            context = flatten(self.context_standardizer(context), self.context_shape)  # type: ignore[arg-type]
            wanted = len(phi) - self.free
            if not self.free and isinstance(self.network, MLP) and self.network.outputs == wanted:
                return self.build(along_last(self.network, context, phi))
            out = along_last(self.network, context).reshape(*context.shape[:-1], -1)
            if out.shape[-1] != wanted:
                raise ValueError(
                    f"Expected a `network` that returns {wanted} numbers per item, since a "
                    f"{type(self).__name__} of shape {tuple(self.shape)} takes so many, got "
                    f"{out.shape[-1]}."
                )
            fixed = phi[wanted:].expand(*out.shape[:-1], -1)
            phi = torch.cat([phi[:wanted] + out, fixed], -1) if self.free else phi + out
        return self.build(phi)

    @abstractmethod
    def build(self, phi: Tensor) -> TorchDistribution:
        r"""Return the distribution with parameters of shape :math:`(*, P)`."""

    def split(self, phi: Tensor) -> tuple[Tensor, ...]:
        """Return the parameters of features, a tensor for each row."""
        size = self.rows * math.prod(self.shape)
        phi = phi if phi.shape[-1] == size else phi[..., :size]
        return phi.unflatten(-1, (self.rows, *self.shape)).unbind(-1 - len(self.shape))


def shape_of(features: int | Sequence[int]) -> torch.Size:
    """Return the shape of an event of so many features, or of that shape."""
    shape = tuple(features) if isinstance(features, Sequence) else (features,)
    for n in shape or (0,):
        check_whole(1, features=n)
    return torch.Size(shape)


def weighted_mean(x: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean over the first axis, with weights of shape :math:`(N)` if there are any."""
    if weights is None:
        return x.mean(0)
    return torch.tensordot(weights.to(x.dtype) / weights.sum(), x, 1)


class Events(dist.Independent):
    """Independent features of one event, whose values are not broadcast to its shape."""

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args or self.base_dist._validate_args:
            check_event(value, self.event_shape)
        return super().log_prob(value)
