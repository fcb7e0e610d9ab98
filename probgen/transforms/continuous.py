r"""Continuous transforms: the flow of a velocity.

A value follows :math:`dx / dt = u(x, t)` from a time to another. The log-determinant of the map is
the integral of the velocity's divergence along the way,

.. math:: \log | \det J | = \int \operatorname{tr} \frac{\partial u}{\partial x} \, dt,

each solved by a Runge-Kutta method on a fixed grid of times, so that the two ways are one grid, or
by one that chooses its steps. The inverse is that of the flow, up to the solver's error. The trace
is exact, from one product per feature, or estimated without bias by random directions :math:`v`, as
the mean of :math:`v^\top (\partial u / \partial x) \, v`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..core import Bijector, Density, LazyTransform
from ..core.validation import check_number, check_whole
from ..networks.dense import check_sizes

__all__ = ["Continuous", "ContinuousTransform"]

# Rows of Butcher's table, then the weights.
METHODS: dict[str, tuple[list[list[float]], list[float]]] = {
    "euler": ([[]], [1.0]),
    "heun": ([[], [1.0]], [0.5, 0.5]),
    "rk4": ([[], [0.5], [0.0, 0.5], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
}

Method = Literal["euler", "heun", "rk4", "adaptive_heun", "bosh3", "dopri5", "dopri8", "fehlberg2"]
ADAPTIVE = ("adaptive_heun", "bosh3", "dopri5", "dopri8", "fehlberg2")  # of torchdiffeq

Velocity = Callable[[Tensor, Tensor], Tensor]


def check_method(method: str, tolerance: float) -> None:
    """Raise a ValueError unless a solver has a method and a tolerance."""
    if method not in METHODS and method not in ADAPTIVE:
        raise ValueError(
            f"Expected `method` among {sorted((*METHODS, *ADAPTIVE))}, got {method!r:.80}."
        )
    check_number(0, tolerance=tolerance)


class Continuous(Bijector):
    r"""The flow of a velocity between the ends of a grid of times.

    References:
        | Neural Ordinary Differential Equations (Chen et al., 2018),
          https://arxiv.org/abs/1806.07366
        | FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models (Grathwohl
          et al., 2019), https://arxiv.org/abs/1810.01367

    Arguments:
        velocity: Maps values with shape :math:`(*, event)` and a time, a number, to velocities of
            that shape.
        times: The grid, rising or falling, with shape :math:`(N + 1)`.
        method: `"euler"`, `"heun"` or `"rk4"`, of order 1, 2 and 4; or a method of torchdiffeq
            that chooses its steps, for all values at once, such as `"dopri5"` or `"dopri8"`.
        probes: The number of random directions of the trace, 0 for the exact one.
        event: The shape of an event.
        shape: The shape that values broadcast with, that of contexts and an event.
        tolerance: The relative and absolute tolerance of a method that chooses its steps.
        adjoint: Gives the parameters of the velocity, and contexts, if such a method is to find
            gradients by solving the adjoint equation backwards, in memory that does not grow with
            its steps.

    Raises:
        ValueError: If the method is unknown or the grid has less than two times.
        ImportError: When called, if a method of torchdiffeq is asked for and that is missing.

    Example:
        >>> grow = Continuous(lambda x, t: x, torch.linspace(0, 1, 17), event=(2,))
        >>> y, ladj = grow.call_and_ladj(torch.ones(2))
        >>> torch.allclose(y, torch.ones(2).exp(), atol=1e-5), round(float(ladj), 4)
        (True, 2.0)
    """

    def __init__(
        self,
        velocity: Velocity,
        times: Tensor,
        method: Method = "rk4",
        probes: int = 0,
        event: Sequence[int] = (1,),
        shape: tuple[int, ...] = (),
        tolerance: float = 1e-5,
        adjoint: Callable[[], Iterable[Tensor]] | None = None,
    ) -> None:
        super().__init__(shape)
        check_method(method, tolerance)
        if times.ndim != 1 or len(times) < 2:
            raise ValueError(f"Expected `times` with shape (N + 1,), got {tuple(times.shape)}.")
        check_whole(0, probes=probes)
        self.velocity, self.times, self.method, self.probes = velocity, times, method, probes
        self.event, self.tolerance, self.adjoint = tuple(event), tolerance, adjoint
        self.domain = self.codomain = constraints.independent(constraints.real, len(self.event))

    def coarser(self) -> Continuous:
        """Return the same flow with half as many steps, or with ten times the tolerance."""
        times, tolerance = self.times, self.tolerance
        if self.method in METHODS:
            times = torch.cat([times[:-1:2], times[-1:]])
        else:
            tolerance = 10 * tolerance
        return Continuous(
            self.velocity,
            times,
            self.method,
            self.probes,
            self.event,
            self.shape,
            tolerance,
            self.adjoint,
        )

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.follow(x, self.times)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, ladj = self.follow(y, self.times.flip(0))
        return x, -ladj

    def _call(self, x: Tensor) -> Tensor:
        return self.path(self.widen(x), self.times, None)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.path(self.widen(y), self.times.flip(0), None)[0]

    def follow(self, x: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value at the last time, and the integral of the divergence."""
        x = self.widen(x)
        size = x[(0,) * (x.ndim - len(self.event))].numel()
        eye = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, *self.event)
        if self.probes:  # the same directions all along the way
            signs = torch.randint(2, (self.probes, *x.shape), device=x.device)
            directions = 2 * signs.to(x.dtype) - 1
        else:
            directions = eye.reshape(size, *[1] * (x.ndim - len(self.event)), *self.event)
        return self.path(x, times, directions)  # type: ignore[return-value]

    def path(
        self, x: Tensor, times: Tensor, directions: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.method not in METHODS:
            return self.solve(x, times, directions)
        rows, weights = METHODS[self.method]
        total: Any = None if directions is None else x.flatten(x.ndim - len(self.event)).sum(-1) * 0
        for t, h in zip(times[:-1], times.diff()):
            slopes: list[Tensor] = []
            for row in rows:
                y = x
                for a, k in zip(row, slopes):
                    if a:
                        y = y + (a * h) * k
                stage = t + sum(row) * h
                slope, divergence = self.slope(y, stage, directions)
                slopes.append(slope)
                if directions is not None:
                    total = total + (weights[len(slopes) - 1] * h) * divergence
            for w, k in zip(weights, slopes):
                x = x + (w * h) * k
        return x, total

    def solve(
        self, x: Tensor, times: Tensor, directions: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Solve by a method of torchdiffeq between the ends of the grid."""
        try:
            from torchdiffeq import odeint, odeint_adjoint
        except ImportError:
            raise ImportError(
                f"Expected torchdiffeq for the method {self.method!r}: pip install probgen[ode]."
            ) from None
        none = x.flatten(x.ndim - len(self.event)).sum(-1) * 0

        def slope(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            velocity, divergence = self.slope(state[0], t, directions)
            return velocity, none + divergence

        options = {"rtol": self.tolerance, "atol": self.tolerance, "method": self.method}
        ends = torch.stack([times[0], times[-1]])
        if self.adjoint is None:
            found = odeint(slope, (x, none), ends, **options)
        else:
            parameters = tuple(p for p in self.adjoint() if p.requires_grad)
            found = odeint_adjoint(slope, (x, none), ends, adjoint_params=parameters, **options)
        return found[0][-1], None if directions is None else found[1][-1]

    def slope(
        self, x: Tensor, t: Tensor, directions: Tensor | None
    ) -> tuple[Tensor, Tensor | float]:
        """Return the velocity, and its divergence."""
        if directions is None:
            return self.velocity(x, t), 0.0
        event = len(self.event)

        def along(v: Tensor) -> tuple[Tensor, Tensor]:
            v = v.expand_as(x)
            found: Any = torch.func.jvp(lambda y: self.velocity(y, t), (x,), (v,))
            return found[0], (found[1] * v).flatten(x.ndim - event).sum(-1)

        values, parts = torch.func.vmap(along)(directions)  # the velocity, once for all of them
        return values[0], parts.mean(0) if self.probes else parts.sum(0)


class ContinuousTransform(LazyTransform):
    r"""The flow of a network's velocity over a unit of time.

    References:
        | FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models (Grathwohl
          et al., 2019), https://arxiv.org/abs/1810.01367

    Arguments:
        network: The velocity, from values with shape :math:`(*, event)`, times with shape
            :math:`(*)`, and contexts with shape :math:`(*, C)` third if there are any.
        features: The number of features, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
        steps: The number of steps of the solver.
        method: Its method, see :class:`Continuous`.
        probes: The number of random directions of the trace, 0 for the exact one.
        tolerance: The tolerance of a method that chooses its steps.
        adjoint: Whether such a method finds gradients by the adjoint equation.

    Raises:
        ValueError: If a number is impossible.

    Example:
        >>> from probgen.networks import TimeMLP
        >>> flow = ContinuousTransform(TimeMLP(3, hidden_features=(16,)), 3)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(flow().inv(flow()(x)), x, atol=1e-5)
        True
    """

    density = Density.ODE

    def __init__(
        self,
        network: nn.Module,
        features: int | Sequence[int],
        context: Any = 0,
        steps: int = 8,
        method: Method = "rk4",
        probes: int = 0,
        tolerance: float = 1e-5,
        adjoint: bool = False,
    ) -> None:
        super().__init__()
        check_whole(1, steps=steps)
        check_whole(0, probes=probes)
        check_sizes(features=features)
        check_number(0, tolerance=tolerance)
        self.event = (features,) if isinstance(features, int) else tuple(features)
        self.network, self.context, self.steps = network, context, steps
        self.method, self.probes, self.tolerance, self.adjoint = method, probes, tolerance, adjoint

    def forward(self, context: Any = None) -> Continuous:
        context = self.flat_context(context)
        p = next(self.parameters())

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            batch = x.shape[: x.ndim - len(self.event)]
            given = () if context is None else (context.expand(*batch, context.shape[-1]),)
            return self.network(x, t.expand(batch), *given)

        def inputs() -> tuple[Tensor, ...]:
            return (*self.parameters(), *(() if context is None else (context,)))

        shape = () if context is None else (*context.shape[:-1], *self.event)
        times = torch.linspace(0, 1, self.steps + 1, dtype=p.dtype, device=p.device)
        return Continuous(
            velocity,
            times,
            self.method,
            self.probes,
            self.event,
            shape,
            self.tolerance,
            inputs if self.adjoint else None,
        )
