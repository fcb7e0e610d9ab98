r"""Boltzmann machines: binary units, connected in any way.

.. math:: p(x) = \frac{1}{Z} \exp \Bigl( \tfrac{1}{2} x^\top W x + b^\top x \Bigr), \qquad
    W = W^\top, \quad W_{ii} = 0.

Units are 0 or 1, or spins :math:`\pm 1`. On a lattice whose neighbours have one coupling :math:`K`
and no others are connected, spins are an Ising model. :math:`Z` is known for few units, by
enumeration, and for an Ising model on a torus without field.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ...core.contracts import HasFlips
from ...mcmc import GraphGibbs
from ..parametric.base import weighted_mean
from .base import EnergyBased

__all__ = ["BinaryEnergy", "BoltzmannMachine", "Spins"]

SMALL = 20  # units of which all states are enumerated
CHUNK = 2**16  # states at once


class SpinConstraint(constraints.Constraint):
    """The values -1 and 1."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        return (value == 1) | (value == -1)


SPIN = SpinConstraint()


class Spins(TorchDistribution):
    """Independent units of two values.

    Arguments:
        logits: The log odds of the upper value, with shape :math:`(*)`.
        lower: The lower value, 0 or -1; the upper one is 1.
        validate_args: Whether to check arguments; by default as Pyro is set.

    Example:
        >>> Spins(torch.tensor([50.0, -50.0]), lower=-1).sample()
        tensor([ 1., -1.])
    """

    arg_constraints = {"logits": constraints.real}

    def __init__(self, logits: Tensor, lower: int = 0, validate_args: bool | None = None) -> None:
        self.logits, self.lower = logits, lower
        super().__init__(logits.shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return SPIN if self.lower else constraints.boolean

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Spins:
        return Spins(self.logits.expand(torch.Size(batch_shape)), self.lower)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        p = self.logits.detach().sigmoid().expand(torch.Size(sample_shape) + self.batch_shape)
        up = (torch.rand_like(p) < p).to(p.dtype)
        return up * (1 - self.lower) + self.lower

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        sign = value if self.lower else 2 * value - 1
        return torch.nn.functional.logsigmoid(sign * self.logits)


@HasFlips.register
class BinaryEnergy(EnergyBased):
    """An energy of binary units; its base draws them independently, at rates set from data.

    Arguments:
        shape: The shape of the units.
        lower: The lower value of a unit, 0 or -1; the upper one is 1.
        steps: The number of steps of a draw.
    """

    rates: Tensor
    flips = True

    def __init__(self, shape: int | Sequence[int], lower: int, steps: int) -> None:
        super().__init__(shape, 0, None, steps)
        if lower not in (0, -1):
            raise ValueError(f"Expected `lower` of 0 or -1, got {lower!r:.80}.")
        self.lower = lower
        self.register_buffer("rates", torch.zeros(self.event_shape))

    @property
    def support(self) -> constraints.Constraint:
        inner = SPIN if self.lower else constraints.boolean
        return constraints.independent(inner, len(self.event_shape))

    def base(self, context: Tensor | None = None) -> TorchDistribution:
        return Spins(self.rates, self.lower).to_event(len(self.event_shape))

    def set_base(self, x: Tensor, context: Any, weights: Tensor | None) -> None:
        up = weighted_mean((x == 1).to(self.rates.dtype), weights)
        p = (up * len(x) + 1) / (len(x) + 2)  # the mean under a uniform prior: none is 0 or 1
        self.rates.copy_(p.logit())

    @property
    def field_of_base(self) -> Tensor:
        """The base's field: its log odds, halved for spins."""
        return self.rates / (1 - self.lower)

    @abstractmethod
    def flip_gains(self, x: Tensor) -> Tensor:
        """Return the change of the log density if a unit is flipped, for each unit."""

    def turn(self, x: Tensor) -> Tensor:
        """By how much each unit changes when it is turned over."""
        return 1 + self.lower - 2 * x


def states(units: int, lower: int, like: Tensor, chunk: int = CHUNK) -> Iterator[Tensor]:
    """All states of so many binary units, in parts with shape :math:`(S, N)`."""
    places = torch.arange(units, device=like.device)
    for first in range(0, 2**units, chunk):
        number = torch.arange(first, min(first + chunk, 2**units), device=like.device)
        up = (number[:, None] >> places) & 1
        yield (up * (1 - lower) + lower).to(like.dtype)


class BoltzmannMachine(BinaryEnergy):
    r"""A Boltzmann machine of visible units, each connected with each.

    Few units (up to 20) are enumerated, so that the density is exact and maximum likelihood trains
    it; else it is unnormalised, and contrastive divergence, pseudo-likelihood or ratio matching do.

    References:
        | Ackley, Hinton & Sejnowski, "A learning algorithm for Boltzmann machines", 1985,
          https://doi.org/10.1016/S0364-0213(85)80012-4
        | Information Theory, Inference, and Learning Algorithms, chapter 43 (MacKay, 2003)

    Arguments:
        units: The number of units :math:`N`.
        lower: The lower value of a unit, 0 or -1; the upper one is 1.
        steps: The number of sweeps of a draw.

    Raises:
        ValueError: If a number is impossible.

    Example:
        >>> import probgen as pg
        >>> _ = torch.manual_seed(0)
        >>> x = (torch.rand(500, 1) < 0.5).float().expand(500, 3)  # three units that agree
        >>> machine = BoltzmannMachine(3)
        >>> history = pg.fit(machine, x, steps=400, lr=0.1, progress=False)
        >>> float(machine.freeze()().log_prob(torch.ones(3))) > -1  # of the best, -log 2
        True
    """

    row: Tensor
    column: Tensor

    def __init__(self, units: int, lower: int = 0, steps: int = 100) -> None:
        super().__init__(units, lower, steps)
        self.coupling = nn.Parameter(torch.zeros(units * (units - 1) // 2))
        self.bias = nn.Parameter(torch.zeros(units))
        self.tractable = units <= SMALL
        row, column = torch.triu_indices(units, units, 1)
        self.register_buffer("row", row, persistent=False)
        self.register_buffer("column", column, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The symmetric weights :math:`W`, with shape :math:`(N, N)`."""
        n = len(self.bias)
        upper = self.coupling.new_zeros(n, n).index_put((self.row, self.column), self.coupling)
        return upper + upper.mT

    def couple(self, weight: Tensor, bias: Tensor | None = None) -> BoltzmannMachine:
        """Set the weights and biases, and return the machine.

        Arguments:
            weight: The symmetric weights, with shape :math:`(N, N)`, zero on the diagonal.
            bias: The biases, with shape :math:`(N)`.

        Raises:
            ValueError: If shapes do not fit, weights are not symmetric, or a unit has one to
                itself.
        """
        weight = torch.as_tensor(weight)
        check_weights(weight, len(self.bias))
        with torch.no_grad():
            self.coupling.copy_(weight[self.row, self.column])
            if bias is not None:
                bias = torch.as_tensor(bias)
                if bias.shape != self.bias.shape:
                    raise ValueError(
                        f"Expected `bias` with shape {tuple(self.bias.shape)}, got "
                        f"{tuple(bias.shape)}."
                    )
                self.bias.copy_(bias)
        return self

    def log_density(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x.to(self.bias.dtype)
        return (x @ (self.weight / 2) * x).sum(-1) + x @ self.bias

    def flip_gains(self, x: Tensor) -> Tensor:
        x = x.to(self.bias.dtype)
        return self.turn(x) * (x @ self.weight + self.bias)

    def transition(self, beta: float = 1.0) -> GraphGibbs:
        bias = beta * self.bias + (1 - beta) * self.field_of_base
        return GraphGibbs(beta * self.weight.detach(), bias.detach(), self.lower)

    def exact_log_partition(self) -> Tensor:
        parts = [
            self.log_density(x).double().logsumexp(0)
            for x in states(len(self.bias), self.lower, self.bias)
        ]
        return torch.stack(parts).logsumexp(0)


def check_weights(weight: Tensor, units: int) -> None:
    if tuple(weight.shape) != (units, units):
        raise ValueError(
            f"Expected weights with shape {(units, units)}, got {tuple(weight.shape)}."
        )
    if not torch.equal(weight, weight.mT):
        gap = float((weight - weight.mT).abs().max())
        raise ValueError(f"Expected symmetric weights, got some that differ by {gap:g}.")
    if bool(weight.diagonal().any()):
        raise ValueError("Expected no self-connections, got weights on the diagonal.")


def symmetric(weight: Tensor) -> Tensor:
    """Return the symmetric part of a matrix, without its diagonal."""
    even = (weight + weight.mT) / 2
    return even - torch.diag_embed(even.diagonal())
