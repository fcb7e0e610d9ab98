r"""Gibbs kernels.

A block of variables is drawn given all others, one block after the other:

.. math:: x_1 \sim \pi(x_1 \mid x_2, \dots, x_B), \quad \dots, \quad
    x_B \sim \pi(x_B \mid x_1, \dots, x_{B-1}).

A block whose conditional law is not known takes one step of a kernel that leaves it invariant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .kernel import Info, Kernel, LogDensity, PositionState

__all__ = ["BlockGibbs", "Gibbs", "GibbsInfo", "GibbsState"]

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
    """What a person wants to see of a step of :class:`Gibbs`.

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


@dataclass(frozen=True)
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
    def exact(self) -> bool:  # type: ignore[override]
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
    """The log density of one block, the others being fixed."""
    others = dict(position)
    return lambda x: log_density({**others, name: x})


@dataclass(frozen=True)
class BlockGibbs(Kernel):
    r"""Block Gibbs sampling of binary units in two layers, without connections within a layer.

    .. math:: \log \pi(v) = b^\top v + \log \sum_h \exp(c^\top h + v^\top W h) + \text{const}

    Given :math:`v` the hidden units are independent, and given :math:`h` the visible ones. One step
    draws both. It is exact and tests nothing, so `log_density` may be None.

    References:
        Hinton, "Training products of experts by minimizing contrastive divergence", 2002,
        https://doi.org/10.1162/089976602760128018

    Arguments:
        weights: The matrix :math:`W`, with shape :math:`(V, H)`.
        visible: The biases :math:`b`, with shape :math:`(V)`.
        hidden: The biases :math:`c`, with shape :math:`(H)`.
        units: The lower of the two values of a unit, whose upper one is 1: 0 or -1.

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
    units: int = 0

    gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        shapes = tuple(self.visible.shape + self.hidden.shape)
        if tuple(self.weights.shape) != shapes:
            raise ValueError(
                f"Expected `weights` with shape (V, H) = {shapes}, got {tuple(self.weights.shape)}."
            )
        if self.units not in (0, -1):
            raise ValueError(f"Expected `units` of 0 or -1, got {self.units}.")

    def init(self, position: Tensor, log_density: LogDensity | None = None) -> PositionState:
        if position.ndim != 2 or position.shape[1:] != self.visible.shape:
            raise ValueError(
                f"Expected a position with shape (chains, {len(self.visible)}), got "
                f"{tuple(position.shape)}."
            )
        return PositionState(position, self.log_density(position))

    def step(
        self, state: PositionState, log_density: LogDensity | None = None
    ) -> tuple[PositionState, Info]:
        h = self.draw(state.position @ self.weights + self.hidden)
        v = self.draw(h @ self.weights.mT + self.visible)
        value = self.log_density(v)
        ones = torch.ones_like(value)
        return PositionState(v, value), Info(ones, ones > 0, ones < 0)

    def draw(self, field: Tensor) -> Tensor:
        """Units given their field: the difference of the log probabilities of 1 and the other."""
        p = torch.sigmoid((1 - self.units) * field)
        up = (torch.rand_like(p) < p).to(p.dtype)
        return up * (1 - self.units) + self.units

    def log_density(self, v: Tensor) -> Tensor:
        r"""The log density of the visible units, up to a constant, with shape :math:`(C)`."""
        field = v @ self.weights + self.hidden
        both = torch.logaddexp(field, self.units * field)
        return v @ self.visible + both.sum(-1)
