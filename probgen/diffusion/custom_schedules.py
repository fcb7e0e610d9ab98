r"""Custom schedules: from a table, from functions, and from a linear SDE.

A table gives the variance that each of :math:`T` steps adds, functions :math:`\log \alpha_t` and
:math:`\log \sigma_t`, and an equation :math:`f_t` and :math:`g_t^2`, see
:mod:`probgen.diffusion.schedules`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..core.arguments import checked
from ..core.validation import check_number, check_whole
from .schedules import Schedule

__all__ = ["BetaSchedule", "CustomSchedule", "LinearSDE", "linear_betas"]


class BetaSchedule(Schedule):
    r"""The schedule of given steps, :math:`\alpha_{k/T}^2 = \prod_{i \le k} (1 - \beta_i)`.

    Between steps :math:`\log \alpha` is linear in time; :math:`\alpha_t^2 + \sigma_t^2 = 1`.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239

    Arguments:
        betas: The variances :math:`\beta_k` of the noise that each step adds, in (0, 1), with shape
            :math:`(T)`; by default those of Ho et al., :func:`linear_betas`.

    Raises:
        ValueError: If they are no such numbers.

    Example:
        >>> schedule = BetaSchedule(torch.tensor([0.1, 0.2]))
        >>> schedule(torch.tensor([0.5, 1.0]))[0] ** 2
        tensor([0.9000, 0.7200])
    """

    def __init__(self, betas: Tensor | None = None) -> None:
        super().__init__()
        betas = linear_betas() if betas is None else betas
        if betas.ndim != 1 or not len(betas) or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(
                f"Expected `betas` in (0, 1) with shape (T,), got shape {tuple(betas.shape)}."
            )
        logs = torch.log1p(-betas.double()).cumsum(0) / 2
        self.table = torch.cat([logs.new_zeros(1), logs])  # no buffer: grids are made on the CPU

    def logs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        steps = len(self.table) - 1
        place = t * steps
        before = place.detach().floor().clamp(0, steps - 1)
        index = before.long()
        table = self.table.to(device=t.device, dtype=t.dtype)
        low, high = torch.take(table, index), torch.take(table, index + 1)
        log_alpha = low + (place - before) * (high - low)
        return log_alpha, torch.log(-torch.expm1(2 * log_alpha)) / 2

    def log_snr_slope(self, t: Tensor) -> Tensor:
        steps = len(self.table) - 1
        rises = self.table.diff().to(device=t.device, dtype=t.dtype) * steps
        rise = torch.take(rises, (t * steps).floor().clamp(0, steps - 1).long())
        return 2 * rise / -torch.expm1(2 * self.logs(t)[0])


@checked
def linear_betas(steps: int = 1000, low: float = 1e-4, high: float = 0.02) -> Tensor:
    r"""Variances of steps that rise linearly, by default those of Ho et al. (2020).

    .. math:: \beta_k = \beta_1 + \frac{k - 1}{T - 1} (\beta_T - \beta_1)

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239

    Arguments:
        steps: The number of steps :math:`T`.
        low: The variance :math:`\beta_1` of the first step.
        high: That of the last, :math:`\beta_T`.

    Returns:
        The variances in float64, with shape :math:`(T)`.

    Raises:
        ValueError: If there is less than one step, or a variance is not finite.

    Example:
        >>> linear_betas(3)
        tensor([0.0001, 0.0100, 0.0200], dtype=torch.float64)
    """
    check_whole(1, steps=steps)
    check_number(low=low, high=high)
    return torch.linspace(low, high, steps, dtype=torch.double)


class CustomSchedule(Schedule):
    r"""A schedule by a given function.

    References:
        | Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630

    Arguments:
        function: Maps times to :math:`\log \alpha_t` and :math:`\log \sigma_t`; smooth.
        latest: The latest time at which there is signal.

    Raises:
        ValueError: If :math:`\lambda_t` does not fall.

    Example:
        >>> line = CustomSchedule(lambda t: (0 * t, 4 * t - 2))
        >>> float(line.log_snr(torch.tensor(0.5)))
        0.0
    """

    def __init__(
        self, function: Callable[[Tensor], tuple[Tensor, Tensor]], latest: float = 1.0
    ) -> None:
        super().__init__()
        self.function, self.latest = function, latest
        self.clean = bool(self.logs(torch.zeros(()))[1] == -torch.inf)
        if not 0 < latest <= 1:
            raise ValueError(f"Expected `latest` in (0, 1], got {latest}.")
        t = torch.linspace(0.001, 0.999, 500, dtype=torch.double) * latest
        if not bool((self.log_snr(t).diff() < 0).all()):
            raise ValueError("Expected a schedule whose ratio of signal to noise falls with time.")

    def logs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(t)


class LinearSDE(Schedule):
    r"""The schedule of a linear SDE, :math:`dx = f_t \, x \, dt + g_t \, dw`.

    .. math:: \log \alpha_t = \int_0^t f_s \, ds, \qquad
        \sigma_t^2 = \int_0^t g_s^2 \, \frac{\alpha_t^2}{\alpha_s^2} \, ds,

    by Gauss's rule, which is exact to rounding where both are smooth.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al.,
          2021), https://arxiv.org/abs/2011.13456

    Arguments:
        drift_of: Maps times to :math:`f_t`, with the same shape.
        diffusion_of: Maps times to :math:`g_t^2`, positive, with the same shape.
        nodes: The number of nodes of the rule.

    Raises:
        ValueError: If there is no noise at some time, or no signal at the end.

    Example:
        >>> from probgen.diffusion import VP
        >>> beta = lambda t: 0.1 + 19.9 * t
        >>> own = LinearSDE(lambda t: -beta(t) / 2, beta)
        >>> torch.allclose(own(torch.tensor(0.3))[1], VP()(torch.tensor(0.3))[1])
        True
    """

    def __init__(
        self,
        drift_of: Callable[[Tensor], Tensor],
        diffusion_of: Callable[[Tensor], Tensor],
        nodes: int = 24,
    ) -> None:
        super().__init__()
        check_whole(1, nodes=nodes)
        self.drift_of, self.diffusion_of = drift_of, diffusion_of
        points, weights = np.polynomial.legendre.leggauss(nodes)
        self.rule = torch.from_numpy(np.stack([(points + 1) / 2, weights / 2]))
        t = torch.linspace(0.001, 1, 500, dtype=torch.double)
        if not bool((diffusion_of(t) > 0).all()) or not bool(self.log_snr(t).isfinite().all()):
            raise ValueError("Expected a positive diffusion, and a signal until time 1.")

    def integral(self, f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
        """Integrate a function from 0 to times with shape :math:`(*)`."""
        points, weights = self.rule.to(t)
        return t * (f(t.unsqueeze(-1) * points) * weights).sum(-1)

    def logs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        def log_alpha(t: Tensor) -> Tensor:
            return self.integral(self.drift_of, t)

        def share(s: Tensor) -> Tensor:
            return self.diffusion_of(s) * (-2 * log_alpha(s)).exp()

        a = log_alpha(t)
        return a, a + torch.log(self.integral(share, t)) / 2
