r"""Initial points and a metric from optimisation paths.

From each of :math:`K` points BFGS climbs :math:`\log \pi` and learns an inverse Hessian
:math:`H_k`. On each path the point of greatest :math:`\log \pi(x) + \tfrac12 \log |H|`, the log
mass of the local normal approximation, is kept: a density without a bound, as that of a funnel, is
left where its mass is. The approximations :math:`q_k = \mathcal{N}(x_k, H_k)` give draws, and

.. math:: w = \frac{\pi(z)}{\frac{1}{K} \sum_k q_k(z)}, \qquad z \sim q_k,

truncated at :math:`\bar w \sqrt{K}`, resamples them, so that modes have chains by their mass.

References:
    | Zhang et al., "Pathfinder: parallel quasi-Newton variational inference", 2022,
      https://jmlr.org/papers/v23/21-0889.html
    | Ionides, "Truncated importance sampling", 2008, https://doi.org/10.1198/106186008X320456
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .kernel import LogDensity, LowRank, Scale, value_and_gradient
from .metric import RANK, Metric, metric_kind

__all__ = ["Modes", "Paths", "optimize", "pathfinder", "prepare"]

ENOUGH = 0.02  # nats still to gain by a Newton step, at which a path has converged
ELEMENTS = 2_000_000  # of the inverse Hessians of all paths
LARGEST = 2000  # dimensions of an inverse Hessian
MOST_MODES = 16


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
    """The log density, -inf where it or its gradient is not finite, and the gradient."""
    value, gradient = value_and_gradient(x.to(dtype), log_density)
    usable = torch.isfinite(value) & torch.isfinite(gradient).flatten(1).all(-1)
    value = torch.where(usable, value, -torch.inf)
    return value.double(), torch.where(usable[:, None], gradient, 0).double()


def initial_inverse(x: Tensor, g: Tensor) -> Tensor:
    r"""The diagonal of a first inverse Hessian, from the spread of positions and gradients.

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
        h, log_det = update(h, log_det, s, y, curve, usable, fresh)
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
    h: Tensor, log_det: Tensor, s: Tensor, y: Tensor, curve: Tensor, usable: Tensor, fresh: Tensor
) -> tuple[Tensor, Tensor]:
    """The inverse Hessians and log determinants after steps `s` that changed slopes by `y`."""
    curve = torch.where(usable, curve, 1.0)
    hy = torch.einsum("kij,kj->ki", h, y)
    yhy = (y * hy).sum(-1)
    first = usable & fresh & (yhy > 0)  # the first step sets the overall scale
    ratio = torch.where(first, curve / torch.where(first, yhy, 1.0), 1.0)
    h, hy, yhy = ratio[:, None, None] * h, ratio[:, None] * hy, ratio * yhy
    cross = (s / curve[:, None])[:, :, None] * hy[:, None, :]
    outer = (s * ((1 + yhy / curve) / curve)[:, None])[:, :, None] * s[:, None, :]
    new = h - cross - cross.mT + outer
    # |B'| = |B| (y's) / (s'Bs), where B = H^-1
    bs = torch.linalg.solve_ex(h, s[..., None])[0][..., 0]
    sbs = (s * bs).sum(-1)
    usable = usable & (sbs > 0) & torch.isfinite(new).flatten(1).all(-1)
    grown = log_det + h.shape[-1] * ratio.log() + torch.where(usable, sbs / curve, 1.0).log()
    return torch.where(usable[:, None, None], new, h), torch.where(usable, grown, log_det)


class Modes(NamedTuple):
    r"""Modes of a log density, and the normal approximations there.

    Arguments:
        position: The modes, with shape :math:`(M, D)`.
        log_density: The log densities there, with shape :math:`(M)`.
        factor: Cholesky factors of the inverse Hessians, with shape :math:`(M, D, D)`.
        flat: A direction along which the density does not fall, with shape :math:`(D)`, if any.
    """

    position: Tensor
    log_density: Tensor
    factor: Tensor
    flat: Tensor | None

    @property
    def log_mass(self) -> Tensor:
        r"""The log masses :math:`\log \pi(x) + \tfrac12 \log |H|`, with shape :math:`(M)`."""
        return self.log_density + torch.linalg.slogdet(self.factor).logabsdet


def curvature(x: Tensor, factor: Tensor, log_density: LogDensity, like: Tensor) -> Tensor:
    r"""Minus the Hessian at :math:`x` in the coordinates of a factor, by central differences.

    Differences are taken over half a unit of the factor, so that it is the curvature of the bulk
    rather than of a point, and rounding matters little.
    """
    d, h = len(x), 0.5
    moves = h * factor.mT
    points = torch.cat([x + moves, x - moves])
    gradients = evaluate_all(points, log_density, like)[1]
    slopes = (gradients[d:] - gradients[:d]) @ factor / (2 * h)
    return (slopes + slopes.mT) / 2


def evaluate_all(points: Tensor, log_density: LogDensity, like: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`evaluate`, in batches like one, the last of which repeats its last point."""
    rest = -len(points) % len(like)
    batches = torch.cat([points, points[-1:].expand(rest, -1)]).split(len(like))
    found = [evaluate(batch, log_density, like.dtype) for batch in batches]
    value, gradient = (torch.cat(parts)[: len(points)] for parts in zip(*found))
    return value, gradient


def newton(
    x: Tensor, factor: Tensor, log_density: LogDensity, like: Tensor, steps: int = 8
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Climb to a mode by Newton's method, and tell the factor of its inverse Hessian.

    Arguments:
        x: The first point, with shape :math:`(D)`, in float64.
        factor: A factor of a guess of the inverse Hessian, with shape :math:`(D, D)`.
        log_density: The log density.
        like: Positions whose shape evaluations have.
        steps: The greatest number of steps.

    Returns:
        The point, its log density, the factor, which is nan unless the point is a mode, and a
        direction of no curvature, if there is one.
    """
    lengths = torch.tensor([1.0, 0.5, 0.2, 0.05, 0.01, -0.1], dtype=x.dtype, device=x.device)
    for _ in range(steps):
        value, gradient = evaluate_all(x[None], log_density, like)
        curve = curvature(x, factor, log_density, like)
        size = curve.diagonal().abs().clamp(min=1e-300).rsqrt()
        if not bool(torch.isfinite(curve).all()):
            break
        values, vectors = torch.linalg.eigh(size[:, None] * curve * size)
        lowest = float(values[0])
        absolute = values.abs().clamp(min=1e-7 * float(values[-1].abs()))
        new = factor @ (size[:, None] * vectors) * absolute.rsqrt()  # its square: |Hessian|^-1
        slope = gradient[0] @ new
        step = new @ slope
        if lowest < 1e-6 and float(slope[1:].square().sum()) / 2 < ENOUGH:
            direction = factor @ (size * vectors[:, 0])
            if improper(x, direction, log_density, like):
                return x, value[0], torch.full_like(factor, torch.nan), direction
        if lowest > 0 and float(slope.square().sum()) / 2 < ENOUGH:
            return x, value[0], new, None
        trial = (x + lengths[:, None] * step).to(like.dtype).double()
        values_there = evaluate_all(trial, log_density, like)[0]
        top = int(values_there.argmax())
        if not float(values_there[top]) > float(value[0]):
            if lowest > 0 and float(slope.square().sum()) < 1.0:  # as near as rounding allows
                return x, value[0], new, None
            break
        x, factor = trial[top], torch.linalg.qr(new.mT).R.mT
    return x, value[0], torch.full_like(factor, torch.nan), None


def improper(x: Tensor, direction: Tensor, log_density: LogDensity, like: Tensor) -> bool:
    """Whether a density falls by less than a nat along a direction, however far one goes."""
    far = torch.tensor([1e2, 1e3, 1e4, 1e5, 1e6], dtype=x.dtype, device=x.device)
    unit = direction / direction.abs().max() * x.abs().max().clamp(min=1)
    points = torch.cat([x[None], x + far[:, None] * unit, x - far[:, None] * unit])
    value = evaluate_all(points, log_density, like)[0]
    sides = (value[1:] - value[0]).reshape(2, -1)
    return bool((sides > -1).all(1).any())


def find_modes(paths: Paths, log_density: LogDensity, like: Tensor) -> Modes:
    """Follow paths to their modes, each of which is found once.

    Arguments:
        paths: The ends of optimisation paths.
        log_density: The log density.
        like: Positions whose shape evaluations have.
    """
    factors, bad = torch.linalg.cholesky_ex(paths.inverse)
    position, value = paths.position.double(), paths.log_density
    left = (bad == 0) & torch.isfinite(value)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    flat, failures = None, 0
    d = position.shape[1]
    while len(found) < MOST_MODES and failures < 3 and bool(left.any()):
        k = int(torch.where(left, value, -torch.inf).argmax())
        if found and value[k] < max(float(v) for _, v, _ in found) - 20 - d:
            break
        x, top, factor, direction = newton(position[k], factors[k], log_density, like)
        left[k] = False
        flat = direction if flat is None else flat
        if not bool(torch.isfinite(factor).all()):
            failures += 1
            continue
        distance = torch.linalg.solve(factor, (position - x).mT).square().sum(0)
        left = left & (distance / 2 > 2 * (top - value).clamp(min=0) + d)
        known = any(float(torch.linalg.solve(f, (x - m)).square().sum()) < d for m, _, f in found)
        if not known:
            found.append((x, top, factor))
    if not found:
        return Modes(position[:0], value[:0], factors[:0], flat)
    position, value, factor = (torch.stack(parts) for parts in zip(*found))
    return Modes(position, value, factor, flat)


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
    """A Cholesky factor in the form of a metric."""
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
    """The log density of a mixture of normal distributions, with shape :math:`(N)`."""
    terms = []
    for m, factor, weight in zip(centers, factors, share):
        solved = torch.linalg.solve_triangular(factor, (z - m).mT, upper=False)
        log_det = factor.diagonal().abs().log().sum()
        terms.append(weight.log() - solved.square().sum(0) / 2 - log_det)
    return torch.stack(terms).logsumexp(0) - z.shape[1] / 2 * math.log(2 * math.pi)
