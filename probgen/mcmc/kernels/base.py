r"""The base of kernels, and their states and diagnostics.

A kernel leaves a density :math:`\pi(x)` invariant. It is an immutable description; chains
:math:`x_1, \dots, x_C` lie along the leading axis and advance together:

    state = kernel.init(position, log_density)
    state, info = kernel.step(state, log_density)

`position` has shape :math:`(C, *)`, and `log_density` maps it to values with shape :math:`(C)`, up
to a constant. A factor :math:`L` with :math:`L L^\top \approx \operatorname{cov}_\pi(x)`, the
kernel's `scale`, makes steps in units of the target: standard deviations with the shape of one
position, or a Cholesky factor with shape :math:`(D, D)`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from ...core.derive import derive, derived
from ...core.registry import Record, register

__all__ = ["GradientState", "Info", "Kernel", "LogDensity", "PositionState", "Score"]

LogDensity = Callable[[Any], Tensor]
State = TypeVar("State", bound=tuple)


@register
class LowRank(NamedTuple):
    r"""A factor :math:`L = \operatorname{diag}(d) (I + U (\operatorname{diag}(s) - I) U^\top)`.

    It takes the place of a Cholesky factor where a dense one would be too large.

    Arguments:
        diagonal: The scales :math:`d`, with shape :math:`(D)`.
        vectors: Orthonormal directions :math:`U`, with shape :math:`(D, K)`.
        values: The scales :math:`s` along them, in units of the diagonal, with shape :math:`(K)`.
    """

    diagonal: Tensor
    vectors: Tensor
    values: Tensor

    def to(self, *args: Any) -> LowRank:
        """Return the factor on another device or of another type, as of :meth:`torch.Tensor.to`."""
        return LowRank(*(part.to(*args) for part in self))

    def along(self, v: Tensor, values: Tensor) -> Tensor:
        """Scale `v`, with shape :math:`(C, D)`, along the directions."""
        return v + ((v @ self.vectors) * (values - 1)) @ self.vectors.mT


Scale = Tensor | LowRank


class PositionState(NamedTuple):
    r"""The state of chains under a kernel without gradients.

    Arguments:
        position: The positions :math:`x`, with shape :math:`(C, *)`.
        log_density: The values :math:`\log \pi(x)`, with shape :math:`(C)`.
    """

    position: Tensor
    log_density: Tensor


class GradientState(NamedTuple):
    r"""The state of chains under a kernel with gradients.

    Arguments:
        position: The positions :math:`x`, with shape :math:`(C, *)`.
        log_density: The values :math:`\log \pi(x)`, with shape :math:`(C)`; nan for a
            :class:`Score`.
        gradient: The gradients :math:`\nabla \log \pi(x)`, with shape :math:`(C, *)`.
    """

    position: Tensor
    log_density: Tensor
    gradient: Tensor


class Info(NamedTuple):
    """Diagnostics of one transition.

    Arguments:
        acceptance: The acceptance probabilities, with shape :math:`(C)`.
        accepted: Whether each proposal was taken, with shape :math:`(C)`.
        diverged: Whether the density of a proposal was not a number, or its trajectory gained or
            lost too much energy, with shape :math:`(C)`. Such a proposal is rejected.
    """

    acceptance: Tensor
    accepted: Tensor
    diverged: Tensor


class Score:
    r"""A score :math:`\nabla \log \pi(x)` without a density.

    Only kernels without a test of Metropolis take it: a test against a density that is missing,
    or that belongs to another score, gives wrong draws in silence.

    Arguments:
        function: Maps positions with shape :math:`(C, *)` to scores with the same shape.

    Example:
        >>> from probgen.mcmc import MALA, ULA
        >>> score = Score(lambda x: -x)
        >>> ULA(0.1).init(torch.zeros(3, 2), score).gradient.shape
        torch.Size([3, 2])
        >>> MALA(0.1).init(torch.zeros(3, 2), score)
        Traceback (most recent call last):
            ...
        TypeError: Expected a log density, because MALA tests ...
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """No value, and the score."""
        score = self.function(x)
        return x.new_full(x.shape[:1], torch.nan), score


class Kernel(Record):
    """A transition that leaves a density invariant; every kernel is a frozen dataclass of it."""

    gradient: ClassVar[bool] = True  # whether it uses gradients
    target: ClassVar[float | None] = None  # the acceptance to which a step size is adapted

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        derive(cls)
        if "__repr__" not in vars(cls):
            cls.__repr__ = Kernel.__repr__  # type: ignore[method-assign]  # not that of a dataclass

    def __repr__(self) -> str:
        found = [f"{name}={short(value)}" for name, value in vars(self).items()]
        return f"{type(self).__name__}({', '.join(found)})"

    @property
    @derived
    def exact(self) -> bool:
        """Whether it tests proposals, and so needs a density."""
        return True

    @abstractmethod
    def init(self, position: Any, log_density: LogDensity) -> Any:
        """Start chains at a position, with shape :math:`(C, *)`.

        Raises:
            TypeError: If the kernel needs a density and is given a score.
            ValueError: If the log density is not finite at some position.
        """

    @abstractmethod
    def step(self, state: Any, log_density: LogDensity) -> tuple[Any, Any]:
        """Advances every chain once, and returns its state and what is to be seen of the step."""

    def check(self, log_density: LogDensity) -> None:
        if self.exact and isinstance(log_density, Score):
            raise TypeError(
                f"Expected a log density, because {type(self).__name__} tests proposals against "
                f"it, got a Score. ULA, SGLD and AnnealedULA take a score alone."
            )


def short(value: Any) -> str:
    """Return a value in one line: of large tensors the shape alone."""
    if isinstance(value, LowRank):
        return f"LowRank({len(value.diagonal)} numbers, {len(value.values)} directions)"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name!r}: {short(part)}' for name, part in value.items())}}}"
    if isinstance(value, Tensor) and (value.numel() > 6 or value.ndim > 1):
        return f"tensor of shape {tuple(value.shape)}"
    if callable(value) and not isinstance(value, Kernel):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return " ".join(repr(value).split())


def value_and_gradient(x: Tensor, log_density: LogDensity) -> tuple[Tensor, Tensor]:
    """Return a log density and its gradient, in one pass for all chains.

    A log density may bring its own `value_and_gradient`, and a `gradient` for the steps of a
    trajectory whose value nobody reads: :class:`~probgen.mcmc.Potential` does.
    """
    own = getattr(log_density, "value_and_gradient", None)
    if own is not None:
        return own(x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = log_density(x)
        check_value(value, x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def check_value(value: Tensor, x: Tensor) -> None:
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"Expected a log density with shape {tuple(x.shape[:1])}, one value per chain, got "
            f"{tuple(value.shape)} at positions with shape {tuple(x.shape)}."
        )


def start(kernel: Kernel, position: Tensor, log_density: LogDensity) -> Any:
    """Return the first state, of a kernel with or without gradients.

    Raises:
        ValueError: If the log density is not finite at some position.
    """
    kernel.check(log_density)
    if not isinstance(position, Tensor) or position.ndim == 0 or len(position) == 0:
        shape = tuple(position.shape) if isinstance(position, Tensor) else type(position).__name__
        raise ValueError(f"Expected a position with shape (chains, *), got {shape}.")
    if kernel.gradient:
        state: Any = GradientState(position, *value_and_gradient(position, log_density))
    else:
        with torch.no_grad():
            value = log_density(position)
        check_value(value, position)
        state = PositionState(position, value)
    if position.device.type != "meta" and not isinstance(log_density, Score):
        bad = ~torch.isfinite(state.log_density)
        if bad.any():
            chain = int(bad.nonzero()[0])
            raise ValueError(
                f"Expected a finite log density at every initial position, got "
                f"{float(state.log_density[chain])} for chain {chain}."
            )
    return state


def decide(
    log_ratio: Tensor, limit: float = torch.inf, outside: Tensor | None = None
) -> tuple[Tensor, Info]:
    r"""Accept with probability :math:`\min(1, e^r)`; nan, and losses beyond a limit, diverge.

    Proposals outside the support are rejected, and do not count as diverged.
    """
    diverged = torch.isnan(log_ratio) | (log_ratio == torch.inf) | (log_ratio < -limit)
    if outside is not None:
        diverged = diverged & ~outside
    acceptance = log_ratio.clamp(max=0).exp().masked_fill(diverged, 0)
    accepted = torch.rand_like(acceptance) < acceptance
    return accepted, Info(acceptance, accepted, diverged)


def choose(accepted: Tensor, new: State, old: State) -> State:
    """Return the new state of the chains that accepted, the old one of the others."""
    pairs = zip(new, old, strict=True)
    return type(old)(*(torch.where(over(accepted, a), a, b) for a, b in pairs))


def over(value: Tensor, like: Tensor) -> Tensor:
    """Values per chain, with shape :math:`(C)`, made to broadcast over positions."""
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def total(value: Tensor) -> Tensor:
    """Return the sum of all but the chains' axis."""
    return value.sum(-1) if value.ndim == 2 else value.flatten(1).sum(-1)


def dense(scale: Scale | None, like: Tensor) -> bool:
    return isinstance(scale, Tensor) and scale.ndim == 2 and like.ndim == 2


def stretch(scale: Scale | None, v: Tensor) -> Tensor:
    """:math:`L v`, for each chain."""
    if scale is None:
        return v
    if isinstance(scale, LowRank):
        return scale.diagonal * scale.along(v, scale.values)
    return v @ scale.mT if dense(scale, v) else scale * v


def pull(scale: Scale | None, v: Tensor) -> Tensor:
    r""":math:`L^\top v`, for each chain."""
    if scale is None:
        return v
    if isinstance(scale, LowRank):
        return scale.along(scale.diagonal * v, scale.values)
    return v @ scale if dense(scale, v) else scale * v


def shrink(scale: Scale | None, v: Tensor) -> Tensor:
    """:math:`L^{-1} v`, for each chain."""
    if scale is None:
        return v
    if isinstance(scale, LowRank):
        return scale.along(v / scale.diagonal, 1 / scale.values)
    if dense(scale, v):
        return torch.linalg.solve_triangular(scale.mT, v, upper=True, left=False)
    return v / scale


def check_positive(name: str, value: Any) -> None:
    """Refuse what is not a positive number, or a tensor of them.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not positive or not finite.
    """
    if isinstance(value, Tensor):
        if value.device.type == "cpu" and not bool((torch.isfinite(value) & (value > 0)).all()):
            raise ValueError(f"Expected a positive `{name}`, got {value}.")
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"Expected a number as `{name}`, got {value!r}.")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"Expected a positive `{name}`, got {value}.")


def check_steps(name: str, value: Any) -> None:
    """Refuse what is not a whole number of at least 1."""
    check_positive(name, value)
    if value != int(value):
        raise ValueError(f"Expected a whole number as `{name}`, got {value}.")


def check_scale(scale: Any) -> None:
    """Refuse what is no factor of a covariance.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is not finite.
    """
    if scale is None or isinstance(scale, LowRank):
        return
    if not isinstance(scale, Tensor):
        raise TypeError(
            f"Expected `scale` as a tensor of standard deviations or a Cholesky factor, got "
            f"{scale!r}. A factor for all dimensions belongs in `step_size`."
        )
    if scale.device.type == "cpu" and not bool(torch.isfinite(scale).all()):
        raise ValueError(f"Expected a finite `scale`, got {scale}.")


class Guarded:
    """A user's log density, in which a value outside a validated support has density zero.

    Arguments:
        function: Maps positions with shape :math:`(C, *)` to values with shape :math:`(C)`.
    """

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        self.function = function

    def __call__(self, x: Any) -> Tensor:
        try:
            return self.function(x)
        except ValueError as error:
            if not isinstance(x, Tensor) or "within the support" not in str(error):
                raise
        rows = [self.one(row) for row in x.split(1)]
        return torch.cat(rows)

    def one(self, row: Tensor) -> Tensor:
        """Return the log density of one chain."""
        try:
            return self.function(row)
        except ValueError as error:
            if "within the support" not in str(error):
                raise
            return row.flatten(1).sum(-1) * 0 - torch.inf
