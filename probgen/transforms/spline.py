r"""Monotone rational-quadratic splines.

On the unit interval, :math:`K` bins have widths :math:`w_k` and heights :math:`h_k` that sum to
one, and knots :math:`u_k, v_k` with slopes :math:`d_k > 0`. With :math:`s = h_k / w_k` and
:math:`t = (u - u_k) / w_k` the spline is

.. math:: v = v_k + \frac{h_k \left( s t^2 + d_k t (1 - t) \right)}{r}, \qquad
    r = s + (d_k + d_{k+1} - 2 s) \, t (1 - t),

.. math:: \frac{dv}{du} = \frac{s^2 \left( d_{k+1} t^2 + 2 s t (1 - t) + d_k (1 - t)^2
    \right)}{r^2}.

The inverse solves a quadratic in :math:`t`. The bins lie along the leading axis: then the
search is a sum of comparisons and each of the four look-ups reads memory in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import pad, softplus

from ..core import Elementwise
from ..core.validation import check_whole

__all__ = ["CircularRationalQuadratic", "RationalQuadratic"]

PI = 3.1415927410125732  # pi in float32, so that angles rounded to it are inside
SMALLEST = 1e-3  # the least width, height (as fractions) and slope
UNIT = math.log(math.expm1(1 - SMALLEST))  # the raw value that stands for slope 1

Slopes = Callable[[Tensor], tuple[Tensor, Tensor]]  # of bin k, at its two ends


def fractions(raw: Tensor) -> Tensor:
    """Positive fractions that sum to one along the leading axis."""
    share = torch.softmax(raw, 0)
    return torch.add(share.new_full((), SMALLEST), share, alpha=1 - SMALLEST * len(raw))


def slope(raw: Tensor) -> Tensor:
    return softplus(raw + UNIT) + SMALLEST


def locate(u: Tensor, sizes: Tensor, others: Tensor) -> tuple[Tensor, ...]:
    """Return the bin of each `u`, its start and size, and the start and size of its partner."""
    ends = sizes.cumsum(0)
    k = (u >= ends[:-1]).sum(0, keepdim=True)
    size, other = sizes.gather(0, k)[0], others.gather(0, k)[0]
    return k, ends.gather(0, k)[0] - size, size, others.cumsum(0).gather(0, k)[0] - other, other


def forward(u: Tensor, widths: Tensor, heights: Tensor, slopes: Slopes) -> tuple[Tensor, Tensor]:
    """Evaluate the spline and the log of its slope on the unit interval."""
    k, u_k, w, v_k, h = locate(u, widths, heights)
    d, e = slopes(k)
    s, t = h / w, (u - u_k) / w
    ladj, rise = evaluate(s, d, e, t)
    return torch.addcmul(v_k, h, rise), ladj


def inverse(v: Tensor, widths: Tensor, heights: Tensor, slopes: Slopes) -> tuple[Tensor, Tensor]:
    """Inverts the spline on the unit interval, with the log of its slope there."""
    k, v_k, h, u_k, w = locate(v, heights, widths)
    d, e = slopes(k)
    s, rise = h / w, (v - v_k) / h
    bend = torch.sub(d + e, s, alpha=2) * rise
    a, b, c = s - d + bend, d - bend, s * rise  # a t^2 + b t - c = 0
    root = torch.addcmul(b * b, a, c, value=4).clamp_min(torch.finfo(v.dtype).tiny).sqrt()
    t = 2 * c / (b + root)
    return torch.addcmul(u_k, w, t), evaluate(s, d, e, t)[0]


def evaluate(s: Tensor, d: Tensor, e: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log slope at the fraction `t` of a bin, and the fraction of its height."""
    f = 1 - t
    bump, square = t * f, t * t
    r = torch.addcmul(s, torch.sub(d + e, s, alpha=2), bump)
    rise = torch.addcmul(s * square, d, bump) / r
    ratio = s / r
    slope = torch.addcmul(torch.addcmul(e * square, s, bump, value=2), d, f * f)
    return torch.log(ratio * ratio * slope), rise


def check_bins(bins: int, bound: float) -> None:
    """Raise a ValueError unless a spline can have so many bins, and the bound."""
    most = int(1 / SMALLEST) - 1
    check_whole(2, bins=bins)
    if bins > most:
        raise ValueError(f"Expected `bins` to be a whole number from 2 to {most}, got {bins}.")
    if not (isinstance(bound, Real) and 0 < float(bound) < math.inf):
        raise ValueError(f"Expected a positive, finite `bound`, got {bound!r:.80}.")


def shape_of(widths: Tensor, heights: Tensor, slopes: Tensor, extra: int) -> torch.Size:
    """Return the shape of the elements; raises if the numbers of bins disagree."""
    bins = len(widths)
    if bins < 2 or bins * SMALLEST >= 1:
        check_bins(bins, 1.0)
    if len(heights) != bins or len(slopes) != bins + extra:
        raise ValueError(
            f"Expected {bins} widths and heights and {bins + extra} slopes along the leading "
            f"axis, got shapes {tuple(widths.shape)}, {tuple(heights.shape)} and "
            f"{tuple(slopes.shape)}."
        )
    return torch.broadcast_shapes(widths.shape[1:], heights.shape[1:], slopes.shape[1:])


class RationalQuadratic(Elementwise):
    r"""A monotone rational-quadratic spline on :math:`[-B, B]`, the identity outside.

    References:
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032

    Arguments:
        widths: The unconstrained widths, with shape :math:`(K, *)`.
        heights: The unconstrained heights, with shape :math:`(K, *)`.
        slopes: The unconstrained slopes at the inner knots, with shape :math:`(K - 1, *)`;
            zero stands for slope 1, which is that of the outer knots.
        bound: The bound :math:`B > 0`.

    Raises:
        ValueError: If the shapes disagree or the bound is not positive.

    Example:
        >>> f = RationalQuadratic(torch.randn(8, 3), torch.randn(8, 3), torch.randn(7, 3))
        >>> x = torch.tensor([-1000.0, 0.5, 3.0])
        >>> torch.allclose(f.inv(f(x)), x, atol=1e-4)
        True
    """

    def __init__(
        self,
        widths: Tensor,
        heights: Tensor,
        slopes: Tensor,
        bound: float = 5.0,
    ) -> None:
        shape = shape_of(widths, heights, slopes, extra=-1)
        super().__init__(shape, widths=widths, heights=heights, slopes=slopes)
        if not 0 < bound < math.inf:
            check_bins(len(widths), bound)
        self.widths, self.heights, self.raw = fractions(widths), fractions(heights), slopes
        self.bound = float(bound)

    @classmethod
    def initial(cls, features: int, bound: float = 5.0, bins: int = 8) -> dict[str, Tensor]:
        check_bins(bins, bound)
        zeros = torch.zeros(bins)
        return {"widths": zeros, "heights": zeros, "slopes": zeros[1:]}

    def between(
        self, function: Callable[..., tuple[Tensor, Tensor]], x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Apply a map of the unit interval from :math:`-B` to :math:`B`."""
        x, widths, heights, raw = expand(x, self.widths, self.heights, self.raw)
        outside = ~(x.abs() < self.bound)  # and nan
        u = (x / (2 * self.bound) + 0.5).masked_fill(outside, 0.5)
        v, ladj = function(u, widths, heights, partial(line_slopes, raw))
        y = torch.where(outside, x, (2 * v - 1) * self.bound)
        return y, ladj.masked_fill(outside, 0)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.between(forward, x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.between(inverse, y)


class CircularRationalQuadratic(Elementwise):
    r"""A monotone rational-quadratic spline of angles, followed by a rotation.

    Both ends of the interval :math:`[-\pi, \pi]` are one point and share their slope.

    References:
        | Normalizing Flows on Tori and Spheres (Rezende et al., 2020)
        | https://arxiv.org/abs/2002.02428

    Arguments:
        widths: The unconstrained widths, with shape :math:`(K, *)`.
        heights: The unconstrained heights, with shape :math:`(K, *)`.
        slopes: The unconstrained slopes at the knots, with shape :math:`(K, *)`; zero stands
            for slope 1.
        rotation: The angle of the rotation, in radians, with shape :math:`(*)`.

    Raises:
        ValueError: If the shapes disagree.

    Example:
        >>> f = CircularRationalQuadratic(*torch.randn(3, 8), rotation=torch.tensor(1.0))
        >>> f(torch.linspace(-3.0, 3.0, 100)).abs().max() <= torch.pi
        tensor(True)
    """

    domain = constraints.interval(-PI, PI)
    codomain = constraints.interval(-PI, PI)
    embedding: ClassVar[int] = 2

    def __init__(self, widths: Tensor, heights: Tensor, slopes: Tensor, rotation: Tensor) -> None:
        shape = shape_of(widths, heights, slopes, extra=0)
        shape = torch.broadcast_shapes(shape, rotation.shape)
        super().__init__(shape, widths=widths, heights=heights, slopes=slopes)
        self.widths, self.heights, self.raw = fractions(widths), fractions(heights), slopes
        self.rotation = rotation

    @staticmethod
    def embed(x: Tensor) -> Tensor:
        """Return the cosine and sine of each angle, from :math:`(D, *)` to :math:`(2 D, *)`."""
        return torch.stack([x.cos(), x.sin()], 1).flatten(0, 1)

    @classmethod
    def initial(cls, features: int, bins: int = 8) -> dict[str, Tensor]:
        check_bins(bins, 1.0)
        zeros = torch.zeros(bins)
        return {"widths": zeros, "heights": zeros, "slopes": zeros, "rotation": torch.zeros(())}

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, widths, heights, raw = expand(x, self.widths, self.heights, self.raw)
        u = wrap(x / (2 * math.pi) + 0.5)
        v, ladj = forward(u, widths, heights, partial(circle_slopes, raw))
        turns = wrap(v + self.rotation / (2 * math.pi))
        return (2 * turns - 1) * math.pi, ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        y, widths, heights, raw = expand(y, self.widths, self.heights, self.raw)
        v = wrap((y - self.rotation) / (2 * math.pi) + 0.5)
        u, ladj = inverse(v, widths, heights, partial(circle_slopes, raw))
        return (2 * u - 1) * math.pi, ladj


def line_slopes(raw: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slopes at both ends of bin `k`: 1 at the outer knots."""
    return both_ends(pad(raw, (0,) * (2 * raw.ndim - 2) + (1, 1)), k)


def circle_slopes(raw: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slopes at both ends of bin `k`: the last knot is the first."""
    return both_ends(torch.cat([raw, raw[:1]]), k)


def both_ends(raw: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    d, e = slope(raw.gather(0, torch.cat([k, k + 1]))).unbind(0)
    return d, e


def wrap(turns: Tensor) -> Tensor:
    """Return the fraction of a turn, in [0, 1) whatever the rounding."""
    part = turns - turns.floor()
    return torch.where(part < 1, part, 0.0)


def expand(x: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
    """Broadcasts elements, with shape :math:`(*)`, and tables, with shape :math:`(K, *)`."""
    if all(table.shape[1:] == x.shape for table in tables):
        return x, *tables
    shape = torch.broadcast_shapes(x.shape, *(table.shape[1:] for table in tables))
    return x.expand(shape), *(spread(table, shape) for table in tables)


def spread(table: Tensor, shape: torch.Size) -> Tensor:
    missing = len(shape) - (table.ndim - 1)
    return table.reshape(len(table), *[1] * missing, *table.shape[1:]).expand(-1, *shape)
