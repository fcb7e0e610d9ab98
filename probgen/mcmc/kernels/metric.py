r"""Metrics: the scale in which a kernel takes its steps, estimated from all chains.

A factor :math:`L` makes :math:`z = L^{-1} x` of unit scale. For a normal target with precision
:math:`A` the covariances :math:`X` of positions and :math:`G = A X A` of gradients satisfy
:math:`C \, G \, C = X` at :math:`C = A^{-1}`, however the positions are spread. So

.. math:: C = X^{1/2} \bigl( X^{1/2} G X^{1/2} \bigr)^{-1/2} X^{1/2}, \qquad C = L L^\top,

the geometric mean of :math:`X` and :math:`G^{-1}`, which minimises the Fisher divergence between
the target and a normal distribution, is exact for normal targets as soon as there are more
positions than dimensions. Both covariances are taken within chains, so that modes far apart do not
stretch it, in the coordinates of the factor so far.

References:
    Seyboldt, Carlson & Carpenter, "Preconditioning Hamiltonian Monte Carlo by minimizing Fisher
    divergence", 2026, https://arxiv.org/abs/2603.18845
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .base import LowRank, Scale, pull, shrink

__all__ = ["METRICS", "Metric", "Moments", "metric_kind"]

Metric = Literal["auto", "diagonal", "dense", "low_rank"]
METRICS = ("auto", "diagonal", "dense", "low_rank")
MOST_DENSE = 100  # dimensions of a dense metric under "auto"
RANK = 20  # directions from positions, and as many from gradients, of a low-rank metric
SNAPSHOTS = 16  # steps whose positions a low-rank metric keeps
WIDEST = 4.0  # times the variance of all positions, beyond which no direction is stretched


def metric_kind(metric: str, size: int) -> str:
    """Resolve `"auto"` for positions of `size` numbers: dense up to 100, low rank above.

    Raises:
        ValueError: If `metric` is unknown.
    """
    if metric not in METRICS:
        raise ValueError(f"Expected `metric` among {', '.join(METRICS)}, got {metric!r}.")
    if metric == "auto":
        return "dense" if size <= MOST_DENSE else "low_rank"
    return metric


class Moments:
    r"""Running covariances of positions and gradients over all chains, and the factor they give.

    Arguments:
        kind: The form of the factor, `"diagonal"`, `"dense"` or `"low_rank"`.
        scale: The factor so far, in whose coordinates moments are taken; the identity by default.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> precision = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> x = torch.randn(50, 2)  # which are not draws from the target
        >>> moments = Moments("dense")
        >>> moments.update(x, -x @ precision)
        >>> factor = moments.scale()
        >>> torch.allclose(factor @ factor.T, precision.inverse(), rtol=0.2)
        True
    """

    def __init__(self, kind: str, scale: Scale | None = None) -> None:
        self.kind, self.base = kind, None if kind == "low_rank" else scale
        self.steps = self.chains = 0
        self.sums: list[Tensor] = []
        self.kept: list[tuple[Tensor, Tensor | None]] = []

    def update(self, x: Tensor, gradient: Tensor | None) -> None:
        """Add one step of all chains.

        Arguments:
            x: Positions, with shape :math:`(C, D)`.
            gradient: Gradients of the log density there, with the same shape, if there are any.
        """
        if not self.steps:  # sums about the first mean, for the sake of rounding
            self.shift = x.mean(0)
            self.push = None if gradient is None else gradient.mean(0)
        z = shrink(self.base, x - self.shift).double()
        slope = None
        if gradient is not None and self.push is not None:
            slope = pull(self.base, gradient - self.push).double()
        if self.kind == "low_rank":
            self.keep(x - self.shift, None if slope is None else slope)
        values = [z] if slope is None else [z, slope]
        parts = [v for value in values for v in (value, self.square(value))]
        self.sums = [a + b for a, b in zip(self.sums, parts)] if self.steps else parts
        self.steps += 1
        self.chains = len(x)

    def square(self, z: Tensor) -> Tensor:
        return z.mT @ z if self.kind == "dense" else z.square().sum(0)

    def keep(self, x: Tensor, slope: Tensor | None) -> None:
        """Keep positions of evenly spaced steps."""
        every = 1 << max(0, (self.steps // SNAPSHOTS).bit_length())
        if self.steps % every == 0:
            full = len(self.kept) >= SNAPSHOTS
            self.kept = [*self.kept[:: 2 if full else 1], (x.double(), slope)]

    def covariance(self, total: Tensor, second: Tensor, within: bool) -> Tensor:
        """Return the covariance of all positions, or the mean of those of each chain."""
        n, c = self.steps, self.chains
        if within and n > 1:
            means = total / n
            return (second / n - self.square(means)) / c * (n / (n - 1))
        mean = total.sum(0) / (n * c)
        outer = torch.outer(mean, mean) if self.kind == "dense" else mean.square()
        return (second / (n * c) - outer) * (n * c / max(n * c - 1, 1))

    def scale(self) -> Scale | None:
        """Return the factor :math:`L`; None for less than ten positions, or still chains."""
        if self.steps * self.chains < 10:
            return None
        total, second, *slopes = self.sums
        x, pooled = (self.covariance(total, second, within) for within in (True, False))
        g = self.covariance(slopes[0], slopes[1], True) if slopes else None
        if self.kind == "dense":
            return self.dense(x, g, pooled)
        diagonal = self.diagonal(x, g, pooled)
        if diagonal is None:
            return None
        diagonal = diagonal.to(self.shift)
        if self.kind == "low_rank":
            return self.low_rank(diagonal)
        return diagonal if self.base is None else diagonal * torch.as_tensor(self.base)

    def diagonal(self, x: Tensor, g: Tensor | None, pooled: Tensor) -> Tensor | None:
        variance = x if g is None else (x / g).sqrt()
        variance = torch.where(torch.isfinite(variance) & (variance > 0), variance, x)
        variance = torch.minimum(variance, WIDEST * pooled)
        usable = torch.isfinite(variance) & (variance > 0)
        if not bool(usable.any()):
            return None
        return torch.where(usable, variance, variance[usable].median()).sqrt()

    def dense(self, x: Tensor, g: Tensor | None, pooled: Tensor) -> Tensor | None:
        count, d = self.steps * self.chains, len(x)
        weight = count / (count + 1 + d * d / count)  # towards the diagonal, where draws are few
        factor, bad = torch.linalg.cholesky_ex(towards_diagonal(x, weight))
        if int(bad) or not bool(torch.isfinite(factor).all()):
            return None
        if g is not None:
            slopes = towards_diagonal(g, weight)
            values, vectors = torch.linalg.eigh(factor.mT @ slopes @ factor)
            flat = values <= 1e-12 * values[-1].clamp(min=1e-300)  # no slope: positions alone
            values = torch.where(flat, 1.0, values.clamp(min=1e-300))
            factor = factor @ vectors * values.pow(-0.25)
        inverse = torch.linalg.inv(factor)
        spread, vectors = torch.linalg.eigh(inverse @ pooled @ inverse.mT)
        factor = factor @ vectors * (WIDEST * spread.clamp(min=0)).clamp(max=1).sqrt()
        if self.base is not None:
            base = torch.as_tensor(self.base).double()
            factor = base @ factor if base.ndim == 2 else base[:, None] * factor
        triangle = torch.linalg.qr(factor.mT).R.mT
        usable = bool(torch.isfinite(triangle).all()) and bool((triangle.diagonal() != 0).all())
        return triangle.to(self.shift) if usable else None

    def low_rank(self, diagonal: Tensor) -> Scale:
        """Return a diagonal, corrected along the directions in which scales differ most from it."""
        d = diagonal.double()
        x = torch.cat([pair[0] for pair in self.kept]) / d
        x = x - x.mean(0)
        slopes = [pair[1] for pair in self.kept if pair[1] is not None]
        rank = min(RANK, len(x) // 4, x.shape[1] // 2)
        if not slopes or rank < 1:
            return diagonal
        g = torch.cat(slopes) * d
        g = g - g.mean(0)
        basis = torch.cat([torch.svd_lowrank(v, rank, niter=4)[2] for v in (x, g)], 1)
        basis = torch.linalg.qr(basis).Q
        n = len(x)
        inner = Moments("dense")
        eye = torch.eye(basis.shape[1], dtype=d.dtype, device=d.device)
        a, b = ((v @ basis).mT @ (v @ basis) / (n - 1) for v in (x, g))
        inner.steps, inner.chains, inner.shift = 1, n, eye[0]
        factor = inner.dense(a, b, a)
        if factor is None:
            return diagonal
        values, vectors = torch.linalg.eigh(factor @ factor.mT)
        apart = (values.log().abs() > math.log(2)) & torch.isfinite(values)
        directions = basis @ vectors[:, apart]
        return LowRank(diagonal, directions.to(diagonal), values[apart].sqrt().to(diagonal))


def towards_diagonal(a: Tensor, weight: float) -> Tensor:
    return weight * a + (1 - weight) * torch.diag(a.diagonal())
