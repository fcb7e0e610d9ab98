r"""Noise schedules.

At time :math:`t`, from 0 (data) to 1 (noise), an item is seen as

.. math:: x_t = \alpha_t x_0 + \sigma_t \epsilon, \qquad \epsilon \sim \mathcal{N}(0, I),

with the signal :math:`\alpha_t` and the noise :math:`\sigma_t`. All that matters of the two, up to
the scale of :math:`x_t`, is the log of the ratio of signal to noise,
:math:`\lambda_t = \log (\alpha_t^2 / \sigma_t^2)`, which falls. The process is that of the equation

.. math:: dx = f_t \, x \, dt + g_t \, dw, \qquad f_t = \frac{d \log \alpha_t}{dt}, \quad
    g_t^2 = -\sigma_t^2 \, \frac{d \lambda_t}{dt}.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import softplus

from ..core import is_wrapped, register
from ..core.derive import derived
from ..core.validation import check_whole

__all__ = [
    "VE",
    "VP",
    "Cosine",
    "Karras",
    "Rectified",
    "Schedule",
    "SubVP",
]


@register
class Schedule(nn.Module):
    """Signal and noise levels as functions of time, without parameters to train.

    A subclass gives :meth:`logs`, smooth in time. The rest follows by automatic derivatives and
    bisection; it may give :meth:`time` in closed form. It sets `latest` below 1 if nothing is left
    of the signal at time 1, and `clean` to false if there is noise at time 0.

    References:
        | Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630

    Example:
        >>> class Geometric(Schedule):
        ...     clean = False
        ...     def logs(self, t):
        ...         return 0 * t, 4 * t - 2
        >>> alpha, sigma = Geometric()(torch.tensor(0.5))
        >>> float(alpha), float(sigma), round(float(Geometric().time(torch.tensor(-2.0))), 6)
        (1.0, 1.0, 0.75)
    """

    #: The latest time at which there is signal, where samplers start.
    latest: float = 1.0
    #: Whether there is no noise at time 0.
    clean: bool = True

    @abstractmethod
    def logs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\log \alpha_t` and :math:`\log \sigma_t` at times with shape :math:`(*)`."""

    def extra_repr(self) -> str:
        numbers = {n: v for n, v in vars(self).items() if type(v) in (int, float)}
        return ", ".join(f"{name}={value:g}" for name, value in numbers.items())

    @derived
    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\alpha_t` and :math:`\sigma_t` at times in [0, 1], with shape :math:`(*)`."""
        check_times(t)
        log_alpha, log_sigma = self.logs(t)
        return log_alpha.exp(), log_sigma.exp()

    def log_snr(self, t: Tensor) -> Tensor:
        r""":math:`\lambda_t`."""
        log_alpha, log_sigma = self.logs(t)
        return 2 * (log_alpha - log_sigma)

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`d \alpha_t / dt` and :math:`d \sigma_t / dt`."""
        alpha, sigma = slope(lambda t: torch.stack(self(t)), t)
        return alpha, sigma

    @derived
    def log_snr_slope(self, t: Tensor) -> Tensor:
        r""":math:`d \lambda_t / dt`, below zero."""
        return slope(self.log_snr, t)

    def drift(self, t: Tensor) -> Tensor:
        r""":math:`f_t`."""
        return slope(lambda t: self.logs(t)[0], t)

    def diffusion(self, t: Tensor) -> Tensor:
        r""":math:`g_t^2`."""
        return -(2 * self.logs(t)[1]).exp() * self.log_snr_slope(t)

    @derived
    def time(self, log_snr: Tensor) -> Tensor:
        r"""Return times at which :math:`\lambda_t` has given values; by bisection where need be."""
        low, high = torch.zeros_like(log_snr), torch.full_like(log_snr, self.latest)
        for _ in range(torch.finfo(log_snr.dtype).bits):
            middle = (low + high) / 2
            before = self.log_snr(middle) > log_snr  # still more signal than that
            low, high = torch.where(before, middle, low), torch.where(before, high, middle)
        return (low + high) / 2

    def betas(self, steps: int) -> Tensor:
        r"""Return view in so many steps, :math:`\beta_k = 1 - \alpha_{k/T}^2 / \alpha_{(k-1)/T}^2`.

        Arguments:
            steps: The number of steps :math:`T`.

        Returns:
            The variances of the noise that each step adds, with shape :math:`(T)`.
        """
        check_whole(1, steps=steps)
        t = torch.linspace(0, 1, steps + 1, dtype=torch.double)
        return -torch.expm1(2 * self.logs(t)[0].diff())


def check_times(t: Tensor) -> None:
    if Distribution._validate_args and t.device.type != "meta" and not is_wrapped(t):
        wrong = ~((t >= 0) & (t <= 1))
        if wrong.any():
            raise ValueError(f"Expected times in [0, 1], got {float(t[wrong].flatten()[0]):g}.")


def slope(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Return the derivative at times with shape `(*)`; torch casts `()` to float64."""
    u = t.unsqueeze(0).contiguous()  # a dual number needs memory of its own
    return torch.func.jvp(function, (u,), (torch.ones_like(u),))[1].squeeze(-t.ndim - 1)


class LinearRate(Schedule):
    """A signal that falls at a rate that rises linearly.

    Arguments:
        low: The rate at the data.
        high: The rate at the noise.
    """

    def __init__(self, low: float = 0.1, high: float = 20.0) -> None:
        super().__init__()
        if not 0 < low <= high < math.inf:
            raise ValueError(f"Expected rates 0 < `low` <= `high`, got {low} and {high}.")
        self.low, self.high = low, high

    def log_alpha(self, t: Tensor) -> Tensor:
        r""":math:`\log \alpha_t` at times with shape :math:`(*)`."""
        return -t.square() * ((self.high - self.low) / 4) - t * (self.low / 2)

    def time_of(self, log_alpha: Tensor) -> Tensor:
        r"""Return the times at which :math:`\log \alpha_t` has given values."""
        twice, slope = -4 * log_alpha, self.high - self.low  # of a square of t and t itself
        return 2 * twice / (2 * self.low + (4 * self.low**2 + 4 * slope * twice).sqrt())


class VP(LinearRate):
    r"""Noise at a rate that rises linearly, with :math:`\alpha_t^2 + \sigma_t^2 = 1`.

    .. math:: \log \alpha_t = -\tfrac{1}{4} (\beta_1 - \beta_0) t^2 - \tfrac{1}{2} \beta_0 t

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al.,
          2021), https://arxiv.org/abs/2011.13456

    Arguments:
        low: The rate :math:`\beta_0` at the data.
        high: The rate :math:`\beta_1` at the noise.

    Raises:
        ValueError: If the rates are not positive, or fall.

    Example:
        >>> alpha, sigma = VP()(torch.tensor(0.5))
        >>> round(float(alpha), 4), round(float(alpha**2 + sigma**2), 4)
        (0.2812, 1.0)
    """

    def logs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = self.log_alpha(t)
        return log_alpha, torch.log(-torch.expm1(2 * log_alpha)) / 2

    def time(self, log_snr: Tensor) -> Tensor:
        return self.time_of(-softplus(-log_snr) / 2)


class SubVP(LinearRate):
    r"""The signal of :class:`VP` with less noise, :math:`\sigma = 1 - \alpha^2`.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al.,
          2021), https://arxiv.org/abs/2011.13456

    Arguments:
        low: The rate :math:`\beta_0` at the data.
        high: The rate :math:`\beta_1` at the noise.

    Example:
        >>> alpha, sigma = SubVP()(torch.tensor(0.5))
        >>> round(float(alpha**2 + sigma), 4)
        1.0
    """

    def logs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = self.log_alpha(t)
        return log_alpha, torch.log(-torch.expm1(2 * log_alpha))

    def time(self, log_snr: Tensor) -> Tensor:
        half = (-log_snr / 2).exp()  # (1 - alpha^2) / alpha
        log_alpha = torch.log(2 / (half + (half.square() + 4).sqrt()))
        return self.time_of(log_alpha)


class Cosine(Schedule):
    r"""A signal that falls like a cosine, with :math:`\alpha_t^2 + \sigma_t^2 = 1`.

    .. math:: \alpha_t = \frac{\cos \theta_t}{\cos \theta_0}, \qquad
        \theta_t = \frac{t + s}{1 + s} \, \frac{\pi}{2}

    At the end nothing is left of the signal, so that samplers start at 0.999.

    References:
        | Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021)
        | https://arxiv.org/abs/2102.09672

    Arguments:
        offset: The offset :math:`s`.

    Raises:
        ValueError: If it is negative.

    Example:
        >>> round(float(Cosine()(torch.tensor(0.5))[0]), 4)
        0.7027
    """

    latest = 0.999

    def __init__(self, offset: float = 0.008) -> None:
        super().__init__()
        if not 0 <= offset < math.inf:
            raise ValueError(f"Expected `offset` not to be negative, got {offset}.")
        self.offset = offset

    def logs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        start = self.offset / (1 + self.offset) * math.pi / 2
        turn = t * (math.pi / 2 / (1 + self.offset))
        cos, sin = (turn + start).cos().clamp_min(0), turn.sin() * (turn + 2 * start).sin()
        scale = math.log(math.cos(start))  # cos(a)^2 - cos(b)^2 = sin(b - a) sin(a + b)
        return torch.log(cos) - scale, torch.log(sin) / 2 - scale

    def time(self, log_snr: Tensor) -> Tensor:
        start = self.offset / (1 + self.offset) * math.pi / 2
        sigma = torch.sigmoid(-log_snr).sqrt()  # and sin^2 = sin(start)^2 + (sigma cos(start))^2
        sin = (math.sin(start) ** 2 + (math.cos(start) * sigma).square()).sqrt()
        cos = math.cos(start) * torch.sigmoid(log_snr).sqrt()
        return (torch.atan2(sin, cos) - start) / (math.pi / 2 / (1 + self.offset))


class VE(Schedule):
    r"""Noise that grows geometrically over data that stay, :math:`\sigma_t = a (b / a)^t`.

    References:
        | Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019)
        | https://arxiv.org/abs/1907.05600

    Arguments:
        low: The noise :math:`a` at the data, in their units.
        high: The noise :math:`b` at the end.

    Raises:
        ValueError: If the noise does not grow.

    Example:
        >>> round(float(VE(0.01, 100.0)(torch.tensor(0.5))[1]), 4)
        1.0
    """

    clean = False

    def __init__(self, low: float = 0.01, high: float = 50.0) -> None:
        super().__init__()
        if not 0 < low < high < math.inf:
            raise ValueError(f"Expected noise 0 < `low` < `high`, got {low} and {high}.")
        self.low, self.high = low, high

    def logs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        slope = math.log(self.high / self.low)
        return torch.zeros_like(t), math.log(self.low) + t * slope

    def time(self, log_snr: Tensor) -> Tensor:
        slope = math.log(self.high / self.low)
        return (-log_snr / 2 - math.log(self.low)) / slope


class Karras(Schedule):
    r"""Noise whose root grows evenly, so that a uniform grid is that of EDM.

    .. math:: \alpha_t = 1, \qquad
        \sigma_t = \bigl( a^{1/\rho} + t \, (b^{1/\rho} - a^{1/\rho}) \bigr)^\rho

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Arguments:
        low: The noise :math:`a` at the data.
        high: The noise :math:`b` at the end.
        rho: The exponent :math:`\rho`.

    Raises:
        ValueError: If the noise does not grow or the exponent is not positive.

    Example:
        >>> Karras()(torch.tensor([0.0, 1.0]))[1]
        tensor([2.0000e-03, 8.0000e+01])
    """

    clean = False

    def __init__(self, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> None:
        super().__init__()
        if not (0 < low < high < math.inf and rho > 0):
            raise ValueError(
                f"Expected noise 0 < `low` < `high` and a positive `rho`, got {low}, {high} and "
                f"{rho}."
            )
        self.low, self.high, self.rho = low, high, rho

    def logs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        return torch.zeros_like(t), torch.log(a + t * (b - a)) * self.rho

    def time(self, log_snr: Tensor) -> Tensor:
        a, b = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        return ((-log_snr / (2 * self.rho)).exp() - a) / (b - a)


class Rectified(Schedule):
    r"""Straight lines from data to noise, :math:`\alpha_t = 1 - t, \sigma_t = t`.

    References:
        | Flow Matching for Generative Modeling (Lipman et al., 2023)
        | https://arxiv.org/abs/2210.02747
        | Flow Straight and Fast (Liu et al., 2023), https://arxiv.org/abs/2209.03003

    Example:
        >>> Rectified()(torch.tensor(0.25))
        (tensor(0.7500), tensor(0.2500))
    """

    latest = 0.999

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        check_times(t)
        return 1 - t, t

    def logs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.log1p(-t), torch.log(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)
