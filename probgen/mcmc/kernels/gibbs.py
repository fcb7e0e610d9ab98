r"""Gibbs kernels.

A block of variables is drawn given all others, one block after the other:

.. math:: x_1 \sim \pi(x_1 \mid x_2, \dots, x_B), \quad \dots, \quad
    x_B \sim \pi(x_B \mid x_1, \dots, x_{B-1}).

A block whose conditional law is not known takes one step of a kernel that leaves it invariant.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...core.arguments import checked, record
from .base import Info, Kernel, LogDensity, PositionState
from .units import BinaryUnits, Units

__all__ = ["BlockGibbs", "Direct", "Gibbs", "GibbsInfo", "GibbsState", "GraphGibbs", "colours"]

Position = dict[str, Tensor]


class GibbsState(NamedTuple):
    r"""The state of :class:`Gibbs`.

    Arguments:
        position: The positions by name, each with shape :math:`(C, *)`.
        log_density: The values :math:`\log \pi(x)`, with shape :math:`(C)`.
    """

    position: Position
    log_density: Tensor


class GibbsInfo(NamedTuple):
    """Diagnostics of one transition of :class:`Gibbs`.

    Arguments:
        acceptance: The mean acceptance probability of the blocks, with shape :math:`(C)`.
        accepted: Whether some proposal was taken, with shape :math:`(C)`.
        diverged: Whether some proposal diverged, with shape :math:`(C)`.
        blocks: What the kernels of blocks say, by name.
    """

    acceptance: Tensor
    accepted: Tensor
    diverged: Tensor
    blocks: dict[str, Info]


@record
class Gibbs(Kernel):
    """Gibbs sampling over named blocks; a position is a dictionary of tensors.

    References:
        Geman & Geman, "Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of
        images", 1984, https://doi.org/10.1109/TPAMI.1984.4767596

    Arguments:
        blocks: For each name, either a function that maps the position, a dictionary, to a draw
            of that block given the others, with shape :math:`(C, *)`; or a kernel.

    Example:
        A normal mean and its precision, the first drawn exactly and the second by Metropolis:

        >>> from probgen.mcmc import Metropolis
        >>> _ = torch.manual_seed(0)
        >>> def log_density(x):
        ...     m, t = x["m"], x["t"]  # t is the log of the precision
        ...     return (-m.square() * t.exp() / 2 + t / 2 - t.square() / 2).sum(-1)
        >>> def draw_m(x):
        ...     return torch.randn_like(x["m"]) * (-x["t"] / 2).exp()
        >>> kernel = Gibbs({"m": draw_m, "t": Metropolis(1.0)})
        >>> start = {"m": torch.zeros(2000, 1), "t": torch.zeros(2000, 1)}
        >>> state = kernel.init(start, log_density)
        >>> for _ in range(30):
        ...     state, info = kernel.step(state, log_density)
        >>> abs(float(state.position["t"].var()) - 1) < 0.1
        True
    """

    blocks: Mapping[str, Callable[[Position], Tensor] | Kernel]

    gradient: ClassVar[bool] = False

    @property
    def exact(self) -> bool:
        """Whether all its kernels are."""
        return all(b.exact for b in self.blocks.values() if isinstance(b, Kernel))

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("Expected at least one block, got none.")

    def init(self, position: Position, log_density: LogDensity) -> GibbsState:
        self.check(log_density)
        if not isinstance(position, dict) or set(position) != set(self.blocks):
            found = sorted(position) if isinstance(position, dict) else type(position).__name__
            raise ValueError(f"Expected a position with names {sorted(self.blocks)}, got {found}.")
        with torch.no_grad():
            return GibbsState(dict(position), log_density(position))

    def step(self, state: GibbsState, log_density: LogDensity) -> tuple[GibbsState, GibbsInfo]:
        position, infos = dict(state.position), {}
        for name, block in self.blocks.items():
            if isinstance(block, Kernel):
                target = conditional(name, position, log_density)
                inner, infos[name] = block.step(block.init(position[name], target), target)
                position[name] = inner.position
            else:
                drawn = block(position)
                if drawn.shape != position[name].shape:
                    raise ValueError(
                        f"Expected draws of {name!r} with shape {tuple(position[name].shape)}, "
                        f"got {tuple(drawn.shape)}."
                    )
                position[name] = drawn
        with torch.no_grad():
            value = log_density(position)
        ones = torch.ones_like(value)
        acceptance = sum((i.acceptance for i in infos.values()), ones * 0) / max(len(infos), 1)
        exact = len(infos) < len(self.blocks)
        accepted = sum((i.accepted for i in infos.values()), ones * exact) > 0
        diverged = sum((i.diverged for i in infos.values()), ones * 0) > 0
        info = GibbsInfo(acceptance if infos else ones, accepted, diverged, infos)
        return GibbsState(position, value), info


def conditional(name: str, position: Position, log_density: LogDensity) -> LogDensity:
    """Return the log density of one block, the others being fixed."""
    others = dict(position)
    return lambda x: log_density({**others, name: x})


class Direct(Kernel):
    """A kernel that draws from conditional distributions, without a log density."""

    gradient: ClassVar[bool] = False

    @abstractmethod
    def move(self, position: Tensor, steps: int = 1) -> Tensor:
        """Take so many steps from positions with shape :math:`(C, *)`."""

    @abstractmethod
    def log_density(self, position: Tensor) -> Tensor:
        """Return the log density, up to a constant, with shape :math:`(C)`."""

    @abstractmethod
    def check_position(self, position: Tensor) -> None:
        """Raise a ValueError if positions do not fit."""

    def init(self, position: Tensor, log_density: LogDensity | None = None) -> PositionState:
        self.check_position(position)
        return PositionState(position, self.log_density(position))

    def step(
        self, state: PositionState, log_density: LogDensity | None = None
    ) -> tuple[PositionState, Info]:
        position = self.move(state.position)
        value = self.log_density(position)
        ones = torch.ones_like(value)
        return PositionState(position, value), Info(ones, ones > 0, ones < 0)


@record
class BlockGibbs(Direct):
    r"""Block Gibbs sampling of units in two layers, without connections within a layer.

    .. math:: \log \pi(v) = r(v) + b^\top s(v) + \log \sum_h \exp(c^\top h + s(v)^\top W h)
        + \text{const}

    Given :math:`v` the hidden units are independent, and given :math:`h` the visible ones. One step
    draws both. It is exact and tests nothing, so `log_density` may be None.

    References:
        Hinton, "Training products of experts by minimizing contrastive divergence", 2002,
        https://doi.org/10.1162/089976602760128018

    Arguments:
        weights: The matrix :math:`W`, with shape :math:`(V, H)`.
        visible: The biases :math:`b`, with shape :math:`(V)`.
        hidden: The biases :math:`c`, with shape :math:`(H)`.
        units: The lower of the two values of a unit, whose upper one is 1: 0 or -1; or the
            distribution of the visible units, hidden ones being 0 or 1 (-1 or 1 if those are).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> kernel = BlockGibbs(torch.zeros(3, 2), torch.tensor([0.0, 9.0, -9.0]), torch.zeros(2))
        >>> state = kernel.init(torch.zeros(1000, 3))
        >>> state, info = kernel.step(state)
        >>> state.position.mean(0).round(decimals=1)
        tensor([0.5000, 1.0000, 0.0000])
    """

    weights: Tensor
    visible: Tensor
    hidden: Tensor
    units: int | Units = 0

    def __post_init__(self) -> None:
        shapes = tuple(self.visible.shape + self.hidden.shape)
        if tuple(self.weights.shape) != shapes:
            raise ValueError(
                f"Expected `weights` with shape (V, H) = {shapes}, got {tuple(self.weights.shape)}."
            )
        self.layers  # noqa: B018 (checks the units)

    @property
    def layers(self) -> tuple[Units, BinaryUnits]:
        """The laws of visible and hidden units."""
        law = self.units if isinstance(self.units, Units) else BinaryUnits(self.units)
        return law, law if isinstance(law, BinaryUnits) else BinaryUnits()

    def check_position(self, position: Tensor) -> None:
        count = len(self.visible) // self.layers[0].size
        if position.ndim != 2 or position.shape[1] != count:
            raise ValueError(
                f"Expected a position with shape (chains, {count}), got {tuple(position.shape)}."
            )

    def field(self, v: Tensor) -> Tensor:
        """Return the inputs of the hidden units, with shape :math:`(C, H)`."""
        s = self.layers[0].statistics(v, self.weights)
        return torch.addmm(self.hidden, s, self.weights)

    def move(self, position: Tensor, steps: int = 1) -> Tensor:
        visible, hidden = self.layers
        for _ in range(steps):
            h = hidden.draw(self.field(position))
            position = visible.draw(torch.addmm(self.visible, h, self.weights.mT))
        return position

    def log_density(self, position: Tensor) -> Tensor:
        r"""Return log density of the visible units, up to a constant, with shape :math:`(C)`."""
        visible, hidden = self.layers
        linear = visible.statistics(position, self.weights) @ self.visible
        linear = linear + visible.log_measure(position)
        return linear + hidden.log_normalizer(self.field(position))


@record
class GraphGibbs(Direct):
    r"""Gibbs sampling of binary units that are connected in any way.

    .. math:: \log \pi(x) = \tfrac{1}{2} x^\top W x + b^\top x + \text{const}

    Units without connections between them are drawn together. One step draws all.

    References:
        | Ackley, Hinton & Sejnowski, "A learning algorithm for Boltzmann machines", 1985,
          https://doi.org/10.1016/S0364-0213(85)80012-4

    Arguments:
        weights: The symmetric matrix :math:`W`, zero on the diagonal, with shape :math:`(N, N)`.
        bias: The biases :math:`b`, with shape :math:`(N)`.
        units: The lower of the two values of a unit, whose upper one is 1: 0 or -1.
        groups: The indices of units to be drawn together, in turn, as :func:`colours` finds them;
            by default one after another.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> pair = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> kernel = GraphGibbs(pair, torch.zeros(2), units=-1)
        >>> x = kernel.move(torch.ones(10000, 2), steps=10)
        >>> abs(float(x.prod(1).mean()) - float(torch.tensor(1.0).tanh())) < 0.03
        True
    """

    weights: Tensor
    bias: Tensor
    units: int = 0
    groups: Sequence[Tensor] | None = None

    def __post_init__(self) -> None:
        BinaryUnits(self.units)
        if tuple(self.weights.shape) != (len(self.bias),) * 2:
            raise ValueError(
                f"Expected `weights` with shape (N, N) = {(len(self.bias),) * 2}, got "
                f"{tuple(self.weights.shape)}."
            )

    def check_position(self, position: Tensor) -> None:
        if position.ndim < 2 or position[0].numel() != len(self.bias):
            raise ValueError(
                f"Expected a position with shape (chains, {len(self.bias)}), got "
                f"{tuple(position.shape)}."
            )

    def move(self, position: Tensor, steps: int = 1) -> Tensor:
        draw = BinaryUnits(self.units).draw
        x = position.flatten(1).mT.contiguous()  # units along rows, which are written whole
        groups = self.groups
        if groups is None:
            groups = [torch.tensor([i], device=x.device) for i in range(len(x))]
        parts = [(g, self.weights[g], self.bias[g, None]) for g in groups]
        for _ in range(steps):
            for group, weights, bias in parts:
                x[group] = draw(torch.addmm(bias, weights, x))
        return x.mT.reshape(position.shape)

    def log_density(self, position: Tensor) -> Tensor:
        x = position.flatten(1)
        return (x @ (self.weights / 2) * x).sum(-1) + x @ self.bias


@checked
def colours(weights: Tensor) -> list[Tensor]:
    """Group units without connections between them, by colouring a graph greedily.

    Arguments:
        weights: The weights, with shape :math:`(N, N)`; zero means no connection.

    Example:
        >>> ring = torch.eye(4).roll(1, 0) + torch.eye(4).roll(-1, 0)
        >>> colours(ring)
        [tensor([0, 2]), tensor([1, 3])]
    """
    near = (weights != 0).cpu()
    found = torch.full((len(near),), -1)
    for i, row in enumerate(near):
        taken = set(found[row].tolist())
        found[i] = next(c for c in range(len(near)) if c not in taken)
    return [(found == c).nonzero()[:, 0].to(weights.device) for c in range(int(found.max()) + 1)]
