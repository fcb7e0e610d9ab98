r"""Initial points and a metric from optimisation paths.

From each of :math:`K` points a path climbs :math:`\log \pi` to a mode :math:`x_k` with inverse
Hessian :math:`H_k`. The normal approximations :math:`q_k = \mathcal{N}(x_k, H_k)` there, or along
the paths if there is no mode, give draws, and

.. math:: w = \frac{\pi(z)}{\sum_k a_k q_k(z)}, \qquad z \sim \sum_k a_k q_k,

truncated at :math:`\bar w \sqrt{K}`, resamples them, so that modes have chains by their mass.

References:
    | Zhang et al., "Pathfinder: parallel quasi-Newton variational inference", 2022,
      https://jmlr.org/papers/v23/21-0889.html
    | Ionides, "Truncated importance sampling", 2008, https://doi.org/10.1198/106186008X320456
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from .kernels.base import LogDensity, LowRank, Scale
from .kernels.metric import RANK, Metric, metric_kind
from .modes import Modes, find_modes
from .paths import evaluate, optimize

__all__ = ["pathfinder", "prepare"]

ELEMENTS = 2_000_000  # of the inverse Hessians of all paths
LARGEST = 2000  # dimensions of an inverse Hessian


def pathfinder(
    position: Tensor,
    log_density: LogDensity,
    chains: int | None = None,
    wide: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Modes | None]:
    r"""Draw initial points from normal approximations along optimisation paths.

    Arguments:
        position: Dispersed points at which the log density is finite, with shape :math:`(C, D)`.
        log_density: The log density.
        chains: The number of points to draw; :math:`C` by default.
        wide: Points from which half of the paths start, with shape :math:`(C, D)`, so that modes
            far away are found; by default those at `position`, ten times as far from their mean.

    Returns:
        Points with shape :math:`(\text{chains}, D)` and the Cholesky factor of the best inverse
        Hessian, with shape :math:`(D, D)`, both None if no approximation meets the density; and
        the modes.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> scale = torch.tensor([1e-3, 1.0, 1e3])
        >>> log_density = lambda x: -((x - 1) / scale).square().sum(-1) / 2
        >>> x, factor, modes = pathfinder(torch.randn(256, 3), log_density)
        >>> bool(((x.std(0) / scale).log().abs() < 0.3).all()), len(modes.position)
        (True, 1)
    """
    d = position.shape[1]
    chains = len(position) if chains is None else chains
    if d > LARGEST:
        return None, None, None
    count = max(4, min(len(position), ELEMENTS // d**2))
    if wide is None:
        center = position.mean(0)
        wide = center + 10 * (position - center)
    half = (count + 1) // 2
    paths = optimize(torch.cat([position[:half], wide[: count - half]]), log_density)
    modes = find_modes(paths, log_density, position)
    if len(modes.position):
        centers, factors = modes.position, torch.linalg.qr(modes.factor.mT).R.mT
        mass = modes.log_mass
    else:
        factors, bad = torch.linalg.cholesky_ex(paths.inverse)
        usable = (bad == 0) & torch.isfinite(paths.log_mass)
        if not bool(usable.any()):
            return None, None, modes
        centers, factors = paths.position[usable].double(), factors[usable]
        mass = torch.zeros_like(centers[:, 0])
    share = 0.75 * mass.softmax(0) + 0.25 / len(mass)
    of = torch.multinomial(share, len(position), replacement=True)
    z = centers[of] + torch.einsum("nij,nj->ni", factors[of], torch.randn_like(centers[of]))
    z = z.to(position.dtype)
    value = evaluate(z, log_density, z.dtype)[0]
    log_weights = value - mixture(z.double(), centers, factors, share)
    top = log_weights.max()
    if not bool(torch.isfinite(top)):
        return None, None, modes
    weights = (log_weights - top).exp()
    weights = weights.clamp(max=float(weights.mean() * math.sqrt(len(weights))))
    chosen = torch.multinomial(weights, chains, replacement=True)
    best = mass.argmax() if len(modes.position) else of[log_weights.argmax()]
    return z[chosen], factors[best].to(position.dtype), modes


def prepare(
    kernel: Any,
    position: Tensor,
    log_density: LogDensity,
    *,
    metric: Metric = "auto",
    chains: int | None = None,
    move: bool = True,
    wide: Tensor | None = None,
) -> tuple[Any, Tensor, Modes | None]:
    """Find initial points and a scale for a kernel that adapts one, by :func:`pathfinder`.

    Arguments:
        kernel: The kernel.
        position: Points at which the log density is finite, with shape :math:`(C, D)`.
        log_density: The log density. One without a gradient leaves everything as it is.
        metric: The form of the scale.
        chains: The number of points to return; :math:`C` by default.
        move: Whether chains may start elsewhere than at `position`.
        wide: Points far apart, as of :func:`pathfinder`.

    Returns:
        The kernel with a scale, the points, and the modes that were found.
    """
    chains = len(position) if chains is None else chains
    fields = {field.name for field in dataclasses.fields(kernel)}
    points: Tensor | None = None
    factor: Tensor | None = None
    modes: Modes | None = None
    slopes = kernel.gradient or not getattr(log_density, "slopeless", "")
    if kernel.target is not None and "scale" in fields and position.ndim == 2 and slopes:
        try:
            points, factor, modes = pathfinder(position, log_density, chains, wide)
        except (RuntimeError, TypeError, NotImplementedError):
            if kernel.gradient:  # otherwise the density may lack a gradient, which nobody needs
                raise
    if factor is not None and kernel.scale is None:
        scale = reduced(factor, metric_kind(metric, position.shape[1]))
        kernel = dataclasses.replace(kernel, scale=scale)
    if points is None or not move:
        points = position[:chains]
    return kernel, points, modes


def reduced(factor: Tensor, kind: str) -> Scale:
    """Return a Cholesky factor in the form of a metric."""
    if kind == "dense":
        return factor
    sd = factor.square().sum(-1).sqrt()
    if kind == "diagonal":
        return sd
    vectors, values, _ = torch.linalg.svd(factor / sd[:, None])
    rank = min(2 * RANK, len(sd) // 2)
    apart = values.log().abs().argsort(descending=True)[:rank]
    return LowRank(sd, vectors[:, apart], values[apart])


def mixture(z: Tensor, centers: Tensor, factors: Tensor, share: Tensor) -> Tensor:
    """Return the log density of a mixture of normal distributions, with shape :math:`(N)`."""
    terms = []
    for m, factor, weight in zip(centers, factors, share):
        solved = torch.linalg.solve_triangular(factor, (z - m).mT, upper=False)
        log_det = factor.diagonal().abs().log().sum()
        terms.append(weight.log() - solved.square().sum(0) / 2 - log_det)
    return torch.stack(terms).logsumexp(0) - z.shape[1] / 2 * math.log(2 * math.pi)
