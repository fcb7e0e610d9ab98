r"""Elementwise transforms.

Each maps every element by the same increasing function :math:`y = f(x)`, with slope
:math:`f'(x) > 0`, and so has one log-determinant :math:`\log f'(x)` per element.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import hardtanh, softplus

from ..core import Elementwise, broadcast

__all__ = ["Affine", "Bounded", "NormalCDF", "Shift", "SoftClip"]

LOG_SCALE = 7.0  # learned slopes stay within exp(-7) and exp(7)


class Affine(Elementwise):
    r"""The affine transform :math:`y = e^{s} x + m`.

    The log scale is held between -7 and 7, so that no network output makes the slope vanish or
    overflow; beyond, its gradient is zero.

    Arguments:
        shift: The shift :math:`m`, with shape :math:`(*)`.
        scale: The log scale :math:`s`, with shape :math:`(*)`.

    Example:
        >>> f = Affine(shift=torch.tensor(1.0), scale=torch.tensor(0.0))
        >>> f(torch.tensor(2.0))
        tensor(3.)
    """

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__(broadcast(shift.shape, scale.shape), scale=scale)
        self.shift = shift
        self.log_scale = hardtanh(scale, -LOG_SCALE, LOG_SCALE)

    @classmethod
    def initial(cls, features: int) -> dict[str, Tensor]:
        return {"shift": torch.zeros(()), "scale": torch.zeros(())}

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.addcmul(self.shift, x, self.log_scale.exp())
        return y, self.log_scale if self.shape == y.shape else self.log_scale.expand_as(y)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = (y - self.shift) / self.log_scale.exp()
        return x, self.log_scale if self.shape == x.shape else self.log_scale.expand_as(x)


class Shift(Elementwise):
    r"""The additive transform :math:`y = x + m`, which keeps volume.

    Arguments:
        shift: The shift :math:`m`, with shape :math:`(*)`.

    Example:
        >>> Shift(torch.tensor(1.0)).inv(torch.tensor(3.0))
        tensor(2.)
    """

    def __init__(self, shift: Tensor) -> None:
        super().__init__(shift.shape)
        self.shift = shift

    @classmethod
    def initial(cls, features: int) -> dict[str, Tensor]:
        return {"shift": torch.zeros(())}

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + self.shift
        return y, torch.zeros_like(y)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = y - self.shift
        return x, torch.zeros_like(x)


class SoftClip(Elementwise):
    r"""The transform :math:`y = x / (1 + |x| / B)` from the line to :math:`(-B, B)`.

    Its inverse saturates: a value within rounding of :math:`\pm B` comes back as the largest
    :math:`x` that the floating type can tell apart, about :math:`10^7 B` in float32.

    Arguments:
        bound: The bound :math:`B > 0`.

    Raises:
        ValueError: If the bound is not positive.

    Example:
        >>> SoftClip(bound=5.0)(torch.tensor([-1e6, 0.0, 5.0]))
        tensor([-5.0000,  0.0000,  2.5000])
    """

    def __init__(self, bound: float = 5.0) -> None:
        super().__init__()
        if not 0 < bound < math.inf:
            raise ValueError(f"Expected a positive, finite `bound`, got {bound}.")
        self.bound = float(bound)
        self.codomain = constraints.interval(-self.bound, self.bound)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = 1 + x.abs() / self.bound
        return x / r, -2 * r.log()

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        r = (1 - y.abs() / self.bound).clamp_min(torch.finfo(y.dtype).eps / 2)
        return y / r, 2 * r.log()


class Bounded(Elementwise):
    r"""The logistic transform :math:`y = a + (b - a) / (1 + e^{-x})` to :math:`(a, b)`.

    Its inverse is the logit. At the bounds, where rounding puts values beyond :math:`x = 17` in
    float32 and 37 in float64, the inverse is finite: the largest :math:`x` below saturation.

    Arguments:
        low: The bound :math:`a`.
        high: The bound :math:`b > a`.

    Raises:
        ValueError: If the bounds are not finite and ordered.

    Example:
        >>> Bounded(0.0, 10.0)(torch.tensor(0.0))
        tensor(5.)
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.low, self.high = interval(low, high)
        self.codomain = constraints.interval(self.low, self.high)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        width = self.high - self.low
        y = torch.where(
            x < 0, self.low + width * torch.sigmoid(x), self.high - width * torch.sigmoid(-x)
        )
        return y, math.log(width) - softplus(x) - softplus(-x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        u, v = fractions(y, self.low, self.high)
        log_u, log_v = u.log(), v.log()
        return log_u - log_v, math.log(self.high - self.low) + log_u + log_v


class NormalCDF(Elementwise):
    r"""The transform :math:`y = a + (b - a) \Phi(x)` from the line to :math:`(a, b)`.

    :math:`\Phi` is the distribution function of the standard normal, so that a uniform
    distribution on :math:`(a, b)` is *exactly* a standard normal in :math:`x`: the choice for
    dequantised data, which is uniform within each level. It saturates at :math:`x = 5` in
    float32 and 8 in float64; at the bounds the inverse is the largest value below that.

    Arguments:
        low: The bound :math:`a`.
        high: The bound :math:`b > a`.

    Raises:
        ValueError: If the bounds are not finite and ordered.

    Example:
        >>> NormalCDF(0.0, 10.0).inv(torch.tensor(5.0))
        tensor(0.)
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.low, self.high = interval(low, high)
        self.codomain = constraints.interval(self.low, self.high)

    def log_slope(self, x: Tensor) -> Tensor:
        return math.log((self.high - self.low) / math.sqrt(2 * math.pi)) - x.square() / 2

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        width = self.high - self.low
        tail = width * torch.special.ndtr(-x.abs())  # accurate on either side
        return torch.where(x < 0, self.low + tail, self.high - tail), self.log_slope(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        u, v = fractions(y, self.low, self.high)
        tail = torch.special.ndtri(torch.minimum(u, v))
        x = torch.where(u <= v, tail, -tail)
        return x, self.log_slope(x)


def interval(low: float, high: float) -> tuple[float, float]:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"Expected finite bounds `low` < `high`, got {low} and {high}.")
    return float(low), float(high)


def fractions(y: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """How far `y` lies from either bound, as positive fractions of the width."""
    smallest = torch.finfo(y.dtype).eps / 2
    u, v = (y - low) / (high - low), (high - y) / (high - low)
    return u.clamp_min(smallest), v.clamp_min(smallest)
