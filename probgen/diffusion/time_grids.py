r"""Grids of times for samplers.

A grid has :math:`N` falling times with noise, and ends in the item, without noise.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.arguments import record
from ..core.registry import Record
from ..core.validation import check_whole
from .schedules import Schedule

__all__ = [
    "AngleGrid",
    "Grid",
    "InformationGrid",
    "KarrasGrid",
    "LogSNRGrid",
    "Path",
    "UniformGrid",
]

END = 1e-3  # where grids in the noise end if there is none at time 0


class Path(NamedTuple):
    r"""The times of a sampler, and the signal and noise there and after the last step.

    Arguments:
        times: The times, falling, with shape :math:`(N)`.
        alpha: The signal, with shape :math:`(N + 1)`, 1 in the end.
        sigma: The noise, with shape :math:`(N + 1)`, 0 in the end.
    """

    times: Tensor
    alpha: Tensor
    sigma: Tensor


class Grid(Record):
    """Where a sampler puts its times; every grid is a frozen dataclass of it.

    A subclass gives :meth:`times`; :meth:`path` adds signal and noise, and the item at the end.

    Example:
        >>> from probgen.diffusion import VP
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class SquareGrid(Grid):
        ...     def times(self, schedule, steps):
        ...         return torch.linspace(1, 0, steps + 1).double()[:-1] ** 2
        >>> path = SquareGrid().path(VP(), 2)
        >>> path.times, path.sigma.shape
        (tensor([1.0000, 0.2500], dtype=torch.float64), torch.Size([3]))
    """

    @abstractmethod
    def times(self, schedule: Schedule, steps: int) -> Tensor:
        """So many falling times with noise, in float64, with shape :math:`(N)`.

        Arguments:
            schedule: The schedule.
            steps: The number :math:`N` of times.
        """

    def path(self, schedule: Schedule, steps: int) -> Path:
        """Return the times, and what the schedule says of them, in float64."""
        check_whole(1, steps=steps)
        t = self.times(schedule, steps)
        alpha, sigma = schedule(t)
        return Path(t, torch.cat([alpha, alpha.new_ones(1)]), torch.cat([sigma, t.new_zeros(1)]))


def even(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.double)


@record
class UniformGrid(Grid):
    r"""Evenly spaced times: :math:`k / N` if there is no noise at time 0, else from 1 to 0.

    Example:
        >>> from probgen.diffusion import VP
        >>> UniformGrid().times(VP(), 4)
        tensor([1.0000, 0.7500, 0.5000, 0.2500], dtype=torch.float64)
    """

    def times(self, schedule: Schedule, steps: int) -> Tensor:
        last = schedule.latest
        return even(last, last / steps if schedule.clean else 0.0, steps)


@record
class AngleGrid(Grid):
    r"""Times at which the angle :math:`\arctan(\sigma / \alpha)` is evenly spaced.

    The probability flow is smooth in it.

    Arguments:
        cut: The least time, where there is no noise at time 0.

    Raises:
        ValueError: If it is not in (0, 1).

    Example:
        >>> from probgen.diffusion import VP
        >>> alpha, sigma = VP()(AngleGrid().times(VP(), 5))
        >>> torch.atan2(sigma, alpha).diff().std() < 1e-6
        tensor(True)
    """

    cut: float = END

    def __post_init__(self) -> None:
        if not 0 < self.cut < 1:
            raise ValueError(f"Expected `cut` in (0, 1), got {self.cut}.")

    def times(self, schedule: Schedule, steps: int) -> Tensor:
        ends = torch.tensor([schedule.latest, self.cut * schedule.clean], dtype=torch.double)
        angles = (-schedule.log_snr(ends) / 2).exp().atan()
        between = even(float(angles[0]), float(angles[1]), steps)[1:-1]
        inner = schedule.time(-2 * between.tan().log())
        return torch.cat([ends[:1], inner, ends[1:]])[:steps]


@record
class InformationGrid(Grid):
    r"""Times at which the information on normal data of variance 1 is evenly spaced.

    It is :math:`\tfrac{1}{2} \log (1 + \alpha^2 / \sigma^2)`. Of all chains of as many steps its
    evidence lower bound is the tightest for such data. The least time is :math:`1 / N` of the
    latest, or 0 if there is noise then.

    Example:
        >>> from probgen.diffusion import VP
        >>> alpha, sigma = VP()(InformationGrid().times(VP(), 5))
        >>> torch.allclose(sigma.log().diff(), sigma.log().diff().mean(), rtol=1e-3)
        True
    """

    def times(self, schedule: Schedule, steps: int) -> Tensor:
        ends = [schedule.latest, schedule.latest / steps * schedule.clean]
        first, last = torch.nn.functional.softplus(
            schedule.log_snr(torch.tensor(ends, dtype=torch.double))
        )
        between = even(float(first), float(last), steps)[1:-1]
        inner = schedule.time(between + (-(-between).exp()).log1p())  # softplus, inverted
        return torch.cat([inner.new_tensor(ends[:1]), inner, inner.new_tensor(ends[1:])])[:steps]


@record
class LogSNRGrid(Grid):
    r"""Times at which the log of the ratio of signal to noise is evenly spaced.

    Example:
        >>> from probgen.diffusion import VP
        >>> schedule = VP()
        >>> ratios = schedule.log_snr(LogSNRGrid().times(schedule, 5))
        >>> torch.allclose(ratios.diff(), ratios.diff().mean(), rtol=1e-3)
        True
    """

    def times(self, schedule: Schedule, steps: int) -> Tensor:
        ends = torch.tensor([schedule.latest, END * schedule.clean], dtype=torch.double)
        ends = schedule.log_snr(ends)
        return schedule.time(even(float(ends[0]), float(ends[1]), steps))


@record
class KarrasGrid(Grid):
    r"""Times at which the root :math:`(\sigma / \alpha)^{1 / \rho}` is evenly spaced.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Arguments:
        rho: The exponent :math:`\rho`; the greater, the more steps at little noise.

    Raises:
        ValueError: If it is not positive.

    Example:
        >>> from probgen.diffusion import VE
        >>> schedule = VE(0.002, 80.0)
        >>> schedule(KarrasGrid().times(schedule, 3))[1].round(decimals=3)
        tensor([8.0000e+01, 2.5150e+00, 2.0000e-03], dtype=torch.float64)
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"Expected a positive `rho`, got {self.rho}.")

    def times(self, schedule: Schedule, steps: int) -> Tensor:
        ends = torch.tensor([schedule.latest, END * schedule.clean], dtype=torch.double)
        ends = schedule.log_snr(ends)
        roots = (-ends / (2 * self.rho)).exp()
        return schedule.time(-2 * self.rho * even(float(roots[0]), float(roots[1]), steps).log())
