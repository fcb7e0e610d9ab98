r"""Restricted Boltzmann machines.

Visible units :math:`v` and binary hidden units :math:`h`, without connections within a layer:

.. math:: p(v, h) = \frac{1}{Z} \exp \bigl( r(v) + b^\top s(v) + c^\top h + s(v)^\top W h \bigr).

The hidden ones are summed out, which leaves the free energy

.. math:: F(v) = -r(v) - b^\top s(v) - \sum_j \log \bigl( 1 + e^{(W^\top s(v) + c)_j} \bigr),
    \qquad p(v) = e^{-F(v)} / Z,

with :math:`s` and :math:`r` those of :mod:`probgen.mcmc.kernels.units`. :math:`Z` sums over the
states of the smaller layer, where it is small enough to be enumerated.
"""

from __future__ import annotations

from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import one_hot

from ...core import Standardizer
from ...core.contracts import HasFlips
from ...core.validation import check_whole
from ...mcmc import BinaryUnits, BlockGibbs, CategoricalUnits, GaussianUnits, Units
from ..parametric.base import weighted_mean
from .base import EnergyBased
from .boltzmann import SMALL, SPIN, Spins, states

__all__ = ["RBM"]


@HasFlips.register
class RBM(EnergyBased):
    r"""A restricted Boltzmann machine.

    Its density is exact, and can be trained by maximum likelihood, if one layer has up to 20 binary
    units; else it is unnormalised. The default objective is contrastive divergence.

    References:
        | Hinton, "Training products of experts by minimizing contrastive divergence", 2002,
          https://doi.org/10.1162/089976602760128018
        | Salakhutdinov, Mnih & Hinton, "Restricted Boltzmann machines for collaborative filtering",
          2007, https://doi.org/10.1145/1273496.1273596 (categorical units)

    Arguments:
        visible: The number of visible units :math:`V`.
        hidden: The number of hidden units :math:`H`.
        units: What visible units are: `"binary"` (0 or 1), `"spin"` (-1 or 1, hidden ones too),
            `"gaussian"` (real, of the data's mean and width) or `"categorical"`.
        classes: The number of classes of a categorical unit, whole numbers from 0.
        steps: The number of steps of block Gibbs of a draw.

    Raises:
        ValueError: If a number is impossible, or the units are unknown.

    Example:
        >>> import probgen as pg
        >>> _ = torch.manual_seed(0)
        >>> x = (torch.rand(500, 1) < 0.5).float().expand(500, 4)  # four units that agree
        >>> rbm = RBM(visible=4, hidden=2)
        >>> history = pg.fit(rbm, x, steps=400, lr=0.1, progress=False)
        >>> float(rbm.freeze()().log_prob(torch.ones(4))) > -1  # of the best, -log 2
        True
        >>> rbm.features(x).shape, rbm.log_partition().shape
        (torch.Size([500, 2]), torch.Size([]))
    """

    rates: Tensor

    def __init__(
        self,
        visible: int,
        hidden: int,
        units: Literal["binary", "spin", "gaussian", "categorical"] = "binary",
        classes: int | None = None,
        steps: int = 100,
    ) -> None:
        super().__init__(visible, 0, None, steps)
        self.classes = classes
        check_whole(1, hidden=hidden)
        self.units, self.plain = units, law_of(units, classes)
        size = visible * self.plain.size
        self.weight = nn.Parameter(0.01 * torch.randn(size, hidden))
        self.visible_bias = nn.Parameter(torch.zeros(size))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.register_buffer("rates", torch.zeros(size))  # the base's fields
        if units == "gaussian":
            self.standardizer = Standardizer((visible,))
        elif units == "categorical":
            self.chains = self.chains.long()
        self.tractable = self.smaller is not None

    @property
    def support(self) -> constraints.Constraint:
        inner: Any = {
            "binary": constraints.boolean,
            "spin": SPIN,
            "gaussian": constraints.real,
        }.get(self.units, constraints.integer_interval(0, self.law.size - 1))
        return constraints.independent(inner, 1)

    @property
    def law(self) -> Units:
        """The distribution of visible units."""
        if self.units == "gaussian":
            unit: Any = self.standardizer
            return GaussianUnits(unit.shift, unit.scale)
        return self.plain

    def statistics(self, v: Tensor) -> Tensor:
        return self.law.statistics(v, self.weight)

    def set_base(self, x: Tensor, context: Any, weights: Tensor | None) -> None:
        if self.units == "gaussian":
            return
        if self.units == "categorical":
            classes = one_hot(x.long(), self.law.size).to(self.rates.dtype)
            counts = len(x) * weighted_mean(classes, weights) + 1
            field = counts.log() - counts.log().mean(-1, keepdim=True)
        else:
            up = len(x) * weighted_mean((x == 1).to(self.rates.dtype), weights)
            field = ((up + 1) / (len(x) + 2)).logit() / (1 - self.lower)
        self.rates.copy_(field.flatten())
        self.visible_bias.copy_(self.rates)  # the best machine without hidden units

    @property
    def lower(self) -> int:
        """The lower value of a hidden unit."""
        return self.law.lower if isinstance(self.law, BinaryUnits) else 0

    def base(self, context: Tensor | None = None) -> TorchDistribution:
        if self.units == "gaussian":
            unit: Any = self.standardizer
            return dist.Normal(unit.shift, unit.scale).to_event(1)
        if self.units == "categorical":
            return dist.Categorical(logits=self.rates.unflatten(0, (-1, self.law.size))).to_event(1)
        return Spins(self.rates * (1 - self.lower), self.lower).to_event(1)

    def field(self, v: Tensor) -> Tensor:
        """Return the inputs of hidden units from visible ones, the log odds of one."""
        return self.statistics(v) @ self.weight + self.hidden_bias

    def features(self, v: Tensor) -> Tensor:
        r"""Return the means of the hidden units given visible ones, with shape :math:`(*, H)`."""
        return BinaryUnits(self.lower).mean(self.field(v))

    def hidden(self, v: Tensor) -> TorchDistribution:
        r"""Return the distribution of hidden units given visible ones, shape :math:`(*, V)`."""
        return Spins(self.field(v) * (1 - self.lower), self.lower).to_event(1)

    def visible(self, h: Tensor) -> TorchDistribution:
        r"""Return the distribution of visible units given hidden ones, shape :math:`(*, H)`."""
        field = h @ self.weight.mT + self.visible_bias
        if self.units == "gaussian":
            unit: Any = self.standardizer
            return dist.Normal(unit.shift + unit.scale * field, unit.scale).to_event(1)
        if self.units == "categorical":
            return dist.Categorical(logits=field.unflatten(-1, (-1, self.law.size))).to_event(1)
        return Spins(field * (1 - self.lower), self.lower).to_event(1)

    def free_energy(self, v: Tensor) -> Tensor:
        r"""Return the free energy :math:`F(v)` of visible units with shape :math:`(*, V)`."""
        return -self.log_density(v)

    def log_density(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        law = self.law
        s = law.statistics(x, self.weight)
        field = s @ self.weight + self.hidden_bias
        hidden = BinaryUnits(self.lower).log_normalizer(field)
        return s @ self.visible_bias + law.log_measure(x) + hidden

    def reconstruct(self, v: Tensor, steps: int = 1) -> Tensor:
        """Return the means of the visible units after so many steps up and down without noise.

        Those of categorical units are the probabilities of their classes, along a last axis.
        """
        check_whole(1, steps=steps)
        s = self.statistics(v)
        for _ in range(steps):
            h = BinaryUnits(self.lower).mean(s @ self.weight + self.hidden_bias)
            s = self.law.mean(h @ self.weight.mT + self.visible_bias)
        if self.units == "gaussian":
            unit: Any = self.standardizer
            return unit.shift + unit.scale * s
        return s.unflatten(-1, (-1, self.law.size)) if self.units == "categorical" else s

    def transition(self, beta: float = 1.0) -> BlockGibbs:
        b = self.visible_bias.detach()
        b = b if beta == 1 else beta * b + (1 - beta) * self.rates
        w, c = self.weight.detach(), self.hidden_bias.detach()
        if beta != 1:
            w, c = beta * w, beta * c
        law = self.law.lower if isinstance(self.law, BinaryUnits) else self.law
        return BlockGibbs(w, b, c, law)

    def flip_gains(self, x: Tensor) -> Tensor:
        """Return the changes of the log density if a visible unit is flipped, as `(*, V)`."""
        if not isinstance(self.law, BinaryUnits):
            raise ValueError(f"Expected binary visible units, got {self.units!r}.")
        x = x.to(self.weight.dtype)
        turn = 1 + self.lower - 2 * x
        hear = self.field(x).unsqueeze(-2)
        there = hear + turn.unsqueeze(-1) * self.weight
        law = BinaryUnits(self.lower)
        return turn * self.visible_bias + law.log_normalizer(there) - law.log_normalizer(hear)

    @property
    def flips(self) -> bool:
        """Whether visible units are binary."""
        return isinstance(self.law, BinaryUnits)

    @property
    def smaller(self) -> str | None:
        """The layer whose states are enumerated."""
        v, h = self.event_shape[0], len(self.hidden_bias)
        if isinstance(self.law, BinaryUnits) and v < h and v <= SMALL:
            return "visible"
        return "hidden" if h <= SMALL else None

    def exact_log_partition(self) -> Tensor:
        return self.log_partition_over(self.smaller or "hidden")

    def log_partition_over(self, layer: str) -> Tensor:
        r""":math:`\log Z` by a sum over the states of a layer, `"hidden"` or `"visible"`."""
        parts = []
        if layer == "visible":
            for v in states(self.event_shape[0], self.lower, self.weight):
                parts.append(self.log_density(v).double().logsumexp(0))
        else:
            for h in states(len(self.hidden_bias), self.lower, self.weight):
                field = h @ self.weight.mT + self.visible_bias
                value = self.law.log_normalizer(field) + h @ self.hidden_bias
                parts.append(value.double().logsumexp(0))
        return torch.stack(parts).logsumexp(0)


def law_of(units: str, classes: int | None) -> Units:
    laws = {"binary": BinaryUnits(0), "spin": BinaryUnits(-1), "gaussian": GaussianUnits()}
    if units == "categorical":
        if classes is None:
            raise ValueError("Expected `classes`, the number of classes of categorical units.")
        return CategoricalUnits(classes)
    if units not in laws or classes is not None:
        raise ValueError(
            f"Expected `units` among {sorted([*laws, 'categorical'])}, with `classes` for the "
            f"last alone, got {units!r:.80} and {classes}."
        )
    return laws[units]
