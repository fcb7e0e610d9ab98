"""The start of a run: log density, initial points, and a kernel with a scale.

A hierarchical model whose scale can shrink to nothing has a density without a mode, and its chains
would be lost in a funnel. If optimisation finds no mode, sites of an unknown scale are standardised
(:mod:`probgen.mcmc.pyro.reparam`): the posterior is the same, and so are the sites that a run
returns.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .initial import Initial
from .kernels.base import Guarded, Kernel
from .kernels.metric import Metric
from .kernels.parallel_tempering import ParallelTempering
from .modes import Modes
from .pathfinder import prepare
from .pyro.potential import Potential, potential
from .pyro.reparam import funnels, named, noncentered

__all__ = ["COLD", "WARMUP", "Start", "begin", "begin_model"]

WARMUP = 100  # steps of warm-up of chains that start at modes
COLD = 300  # steps of warm-up of others


@dataclasses.dataclass
class Start:
    """The start of a run.

    Arguments:
        target: The log density.
        kernel: The kernel.
        position: The initial points of this process.
        modes: The modes that were found, if any were looked for.
        standardized: The sites that are sampled in standardised form.
    """

    target: Any
    kernel: Any
    position: Any
    modes: Modes | None = None
    standardized: list[str] = dataclasses.field(default_factory=list)

    @property
    def found(self) -> bool:
        """Whether chains start at modes, and need less warm-up."""
        tempered = isinstance(self.kernel, ParallelTempering)
        return self.modes is not None and len(self.modes.position) > 0 and not tempered


def begin(log_density: Any, position: Any, kernel: Any, metric: Metric, optimize: bool) -> Start:
    """Start from positions that are given, where chains stay.

    Arguments:
        log_density: A log density of positions, not that of a Pyro model.
        position: Positions with shape :math:`(C, *)`, or a dictionary of them.
        kernel: The kernel.
        metric: The form of its scale.
        optimize: Whether to look for modes, whose curvature gives the kernel a scale.
    """
    own = hasattr(log_density, "value_and_gradient")
    target = log_density if own else Guarded(log_density)
    modes = None
    if optimize and isinstance(position, Tensor):
        inner, position, modes = prepare(
            kernel_of(kernel), position, target, metric=metric, move=False
        )
        kernel = with_kernel(kernel, inner)
    return Start(target, kernel, replicas(kernel, position), modes)


def begin_model(
    model: Potential | Callable[[], Any],
    kernel: Any,
    init: Initial | dict[str, Tensor],
    *,
    share: int,
    groups: int,
    metric: Metric,
    base: bool,
    noncentered: Iterable[str] | bool | None,
    optimize: bool,
    decide: Callable[[bool], bool],
) -> Start:
    """Start on a Pyro model.

    Arguments:
        model: The model without arguments, or its log density.
        kernel: The kernel.
        init: The initial points, as of :func:`~probgen.mcmc.run`.
        share: The number of chains of this process.
        groups: The number of initial points that they share.
        metric: The form of the scale.
        base: Whether sites with a frozen flow move to its base.
        noncentered: The sites to standardise; None if that is to be found out.
        optimize: Whether to look for modes.
        decide: Makes the decision of the first process that of all.
    """
    free = isinstance(init, str)
    given = None if noncentered is None or isinstance(model, Potential) else noncentered
    names = [] if given is None or isinstance(model, Potential) else named(model, given)
    while True:
        target = target_of(model, names, base)
        position = target.initial(init, share if free else groups, gradient=kernel.gradient)
        inner, modes = kernel_of(kernel), None
        if optimize:
            wide = prior_draws(target, position)
            inner, position, modes = prepare(
                inner, position, target, metric=metric, chains=groups, move=free, wide=wide
            )
        lost = modes is not None and not len(modes.position) and modes.flat is None
        if names or given is not None or not free or not decide(lost):
            break
        names = [] if isinstance(model, Potential) else funnels(model)
        if not names:
            break
    position = position[:groups].repeat_interleave(share // groups, 0)
    kernel = with_kernel(kernel, inner)
    return Start(target, kernel, replicas(kernel, position), modes, names)


def target_of(model: Any, names: list[str], base: bool) -> Potential:
    if isinstance(model, Potential):
        return model
    return potential(noncentered(model, names) if names else model, base=base)


def prior_draws(target: Potential, like: Tensor) -> Tensor | None:
    """Draws from the prior where it can be drawn from and they are finite."""
    with contextlib.suppress(RuntimeError, ValueError, NotImplementedError):
        points = target.draw(len(like), prior=True).to(like)
        usable = torch.isfinite(points).all(1, keepdim=True)
        return torch.where(usable, points, like)
    return None


def kernel_of(kernel: Any) -> Any:
    """Return the kernel that has a scale: of replicas, that of each."""
    return kernel.kernel if isinstance(kernel, ParallelTempering) else kernel


def with_kernel(kernel: Any, inner: Any) -> Any:
    if not isinstance(kernel, ParallelTempering) or not isinstance(inner, Kernel):
        return inner
    return dataclasses.replace(kernel, kernel=inner)


def replicas(kernel: Any, position: Any) -> Any:
    tempered = isinstance(kernel, ParallelTempering) and position.ndim == 2
    return kernel.spread(position) if tempered else position
