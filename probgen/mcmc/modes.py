r"""Modes of a log density, by Newton's method from the ends of optimisation paths.

The Hessian at :math:`x` is taken by differences of gradients over half a unit of the inverse
Hessian that a path has learned, in whose coordinates it is near the identity: so it is the
curvature of the bulk rather than of a point, and rounding matters little.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .kernels.base import LogDensity
from .paths import ENOUGH, Paths, evaluate_all

__all__ = ["Modes", "find_modes"]

MOST_MODES = 16
FLAT = 1e-3  # the least curvature over the greatest, below which a direction may be improper


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
        if lowest < FLAT:
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
