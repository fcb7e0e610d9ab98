r"""Optimisation paths that climb a log density, all at once.

BFGS keeps an inverse Hessian :math:`H` of :math:`-\log \pi`. After a step :math:`s` that changed
the gradient of :math:`-\log \pi` by :math:`y`, with :math:`s^\top y > 0`,

.. math:: H \leftarrow (I - \rho s y^\top) H (I - \rho y s^\top) + \rho s s^\top, \qquad
    \rho = 1 / s^\top y, \qquad |H| \leftarrow |H| \, \frac{s^\top H^{-1} s}{s^\top y}.

On each path the point of greatest :math:`\log \pi(x) + \tfrac12 \log |H|`, the log mass of the
local normal approximation, is kept: a density without a bound, as that of a funnel, is left where
its mass is.

References:
    Zhang et al., "Pathfinder: parallel quasi-Newton variational inference", 2022,
    https://jmlr.org/papers/v23/21-0889.html
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .kernels.base import LogDensity, value_and_gradient

__all__ = ["ENOUGH", "Paths", "evaluate", "evaluate_all", "optimize"]

ENOUGH = 0.02  # nats still to gain by a Newton step, at which a path has converged


class Paths(NamedTuple):
    r"""Normal approximations at the best points of optimisation paths.

    Arguments:
        position: The points :math:`x_k`, with shape :math:`(K, D)`.
        log_density: The log densities there, with shape :math:`(K)`.
        inverse: The inverse Hessians :math:`H_k`, with shape :math:`(K, D, D)`, in float64.
        log_mass: :math:`\log \pi(x_k) + \tfrac12 \log |H_k|`, with shape :math:`(K)`.
        converged: Whether a path ended at a mode, with shape :math:`(K)`.
    """

    position: Tensor
    log_density: Tensor
    inverse: Tensor
    log_mass: Tensor
    converged: Tensor


def evaluate(x: Tensor, log_density: LogDensity, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the log density, -inf where it or its gradient is not finite, and the gradient."""
    value, gradient = value_and_gradient(x.to(dtype), log_density)
    usable = torch.isfinite(value) & torch.isfinite(gradient).flatten(1).all(-1)
    value = torch.where(usable, value, -torch.inf)
    return value.double(), torch.where(usable[:, None], gradient, 0).double()


def initial_inverse(x: Tensor, g: Tensor) -> Tensor:
    r"""Return the diagonal of a first inverse Hessian, from the spread of positions and gradients.

    It is :math:`\operatorname{sd}(x) / \operatorname{sd}(g)`, exact for independent normal
    variables; where gradients are all the same up to rounding, :math:`1 / g^2`, with which a step
    gains a nat.
    """
    if len(x) < 2:
        return torch.ones_like(x[0]) if len(x) else x.new_ones(x.shape[1])
    spread, slope, mean = x.var(0), g.var(0), g.mean(0)
    alike = slope <= (1e-5 * mean).square()
    diagonal = torch.where(alike, mean.square().reciprocal(), (spread / slope).sqrt())
    usable = torch.isfinite(diagonal) & (diagonal > 0)
    return torch.where(usable, diagonal, torch.where(spread > 0, spread, 1.0))


def optimize(position: Tensor, log_density: LogDensity, steps: int | None = None) -> Paths:
    r"""Climb a log density by BFGS from all points at once.

    Arguments:
        position: The first points, with shape :math:`(K, D)`.
        log_density: The log density.
        steps: The greatest number of evaluations; :math:`50 + 2 D`, at most 300, by default.

    Returns:
        The point of greatest log mass of each path, and its normal approximation.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> scale = torch.tensor([1e-3, 1.0, 1e3])
        >>> log_density = lambda x: -((x - 1) / scale).square().sum(-1) / 2
        >>> paths = optimize(torch.randn(8, 3), log_density)
        >>> bool(paths.converged.all())
        True
    """
    dtype, (paths, d) = position.dtype, position.shape
    steps = min(50 + 2 * d, 300) if steps is None else steps
    x = position.double()
    f, g = evaluate(x, log_density, dtype)
    near = torch.isfinite(f)[: max(1, paths // 2)]  # the rest may be far away
    diagonal = initial_inverse(x[: len(near)][near], g[: len(near)][near])
    h = torch.diag(diagonal).repeat(paths, 1, 1)
    log_det = diagonal.log().sum().repeat(paths)
    fresh = torch.ones_like(f, dtype=torch.bool)  # not yet scaled by a step's curvature
    size = torch.ones_like(f)
    best = [x, f, h.clone(), f + log_det / 2]
    converged = torch.zeros_like(fresh)
    noise = 4 * torch.finfo(dtype).eps
    for k in range(steps):
        p = torch.einsum("kij,kj->ki", h, g)
        rise = (p * g).sum(-1)
        if k % 10 == 9 and bool((rise / 2 < ENOUGH).logical_or(size < 1e-12).all()):
            break
        proposal = (x + size[:, None] * p).to(dtype).double()
        new_f, new_g = evaluate(proposal, log_density, dtype)
        taken = new_f >= f + 1e-4 * size * rise - noise * f.abs()
        taken = taken & torch.isfinite(new_f)
        s, y = proposal - x, g - new_g
        curve = (s * y).sum(-1)
        usable = taken & (curve > 1e-10 * s.norm(dim=-1) * y.norm(dim=-1)) & (curve > 0)
        rose = (size * (s * g).sum(-1)).clamp(min=1e-300)  # s' B s, where B = H^-1
        h, log_det = update(h, log_det, s, y, curve, rose, usable, fresh)
        fresh = fresh & ~usable
        x = torch.where(taken[:, None], proposal, x)
        g = torch.where(taken[:, None], new_g, g)
        # a step that failed is cut to the maximum of the parabola through what is known
        fall = (f + size * rise - new_f).clamp(min=1e-300)
        cut = (size * rise / (2 * fall)).clamp(0.1, 0.5)
        size = torch.where(taken, torch.where(usable, 1.0, 2 * size), size * cut)
        f = torch.where(taken, new_f, f)
        rise = torch.einsum("ki,kij,kj->k", g, h, g)
        at_mode = taken & (rise / 2 < ENOUGH) & ~fresh
        mass = f + log_det / 2
        better = torch.where(at_mode | converged, at_mode & (f >= best[1]), mass > best[3])
        converged = converged | at_mode
        for old, new in zip(best, (x, f, h, mass)):
            old.copy_(torch.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old))
    return Paths(best[0].to(dtype), best[1], best[2], best[3], converged)


def update(
    h: Tensor,
    log_det: Tensor,
    s: Tensor,
    y: Tensor,
    curve: Tensor,
    rose: Tensor,
    usable: Tensor,
    fresh: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Return the inverse Hessians and log determinants after steps that changed slopes.

    Arguments:
        h: The inverse Hessians, with shape :math:`(K, D, D)`.
        log_det: Their log determinants, with shape :math:`(K)`.
        s: The steps, with shape :math:`(K, D)`.
        y: The changes of the slope, with shape :math:`(K, D)`.
        curve: :math:`s^\top y`, with shape :math:`(K)`.
        rose: :math:`s^\top H^{-1} s`, with shape :math:`(K)`.
        usable: Which steps to use, with shape :math:`(K)`.
        fresh: Which inverse Hessians no step has scaled yet, with shape :math:`(K)`.
    """
    curve = torch.where(usable, curve, 1.0)
    hy = torch.einsum("kij,kj->ki", h, y)
    yhy = (y * hy).sum(-1)
    first = usable & fresh & (yhy > 0)  # the first step sets the overall scale
    ratio = torch.where(first, curve / torch.where(first, yhy, 1.0), 1.0)
    h, hy, yhy, rose = ratio[:, None, None] * h, ratio[:, None] * hy, ratio * yhy, rose / ratio
    cross = (s / curve[:, None])[:, :, None] * hy[:, None, :]
    outer = (s * ((1 + yhy / curve) / curve)[:, None])[:, :, None] * s[:, None, :]
    new = h - cross - cross.mT + outer
    usable = usable & torch.isfinite(new).flatten(1).all(-1)
    grown = log_det + h.shape[-1] * ratio.log() + torch.where(usable, rose / curve, 1.0).log()
    return torch.where(usable[:, None, None], new, h), torch.where(usable, grown, log_det)


def evaluate_all(points: Tensor, log_density: LogDensity, like: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`evaluate`, in batches like one, the last of which repeats its last point."""
    rest = -len(points) % len(like)
    batches = torch.cat([points, points[-1:].expand(rest, -1)]).split(len(like))
    found = [evaluate(batch, log_density, like.dtype) for batch in batches]
    value, gradient = (torch.cat(parts)[: len(points)] for parts in zip(*found))
    return value, gradient
