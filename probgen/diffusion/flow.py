r"""The probability flow, in the variable in which it is smooth for every schedule.

With the angle :math:`\theta = \arctan(\sigma / \alpha)` and
:math:`u = x / \sqrt{\alpha^2 + \sigma^2}` noise and data mix as
:math:`u = \cos \theta \, x_0 + \sin \theta \, \epsilon` under any schedule,
so that the flow is

.. math:: \frac{du}{d\theta} = \cos \theta \, \hat \epsilon - \sin \theta \, \hat x_0
    = \frac{\cos \theta \, u - \hat x_0}{\sin \theta},

the v of Salimans & Ho, and :math:`u` is standard normal at the latest time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import is_wrapped
from ..transforms import Continuous
from ..transforms.continuous import Method
from .denoisers import Denoiser
from .schedules import Schedule
from .time_grids import AngleGrid

__all__ = ["flow_table", "probability_flow"]


def flow_table(schedule: Schedule, steps: int, cut: float = 1e-3) -> Tensor:
    """Return times and angles at the ends and middles of all steps, with shape (2, 2 N + 1)."""
    t = AngleGrid(cut).times(schedule, 2 * steps + 1)
    return torch.stack([t, (-schedule.log_snr(t) / 2).exp().atan()])


def probability_flow(
    denoiser: Denoiser,
    table: Tensor,
    context: Tensor | None = None,
    method: Method = "rk4",
    probes: int = 0,
    tolerance: float = 1e-5,
) -> tuple[Continuous, Tensor]:
    r"""Return the flow of :math:`u` from the latest time to the least.

    Arguments:
        denoiser: The denoiser.
        table: What :func:`flow_table` gives.
        context: The contexts, with shape :math:`(*, C)`.
        method: The solver's method, see :class:`~probgen.transforms.Continuous`.
        probes: The number of random directions of the trace.
        tolerance: The tolerance of a method that chooses its steps.

    Returns:
        The transform, and :math:`\sqrt{\alpha^2 + \sigma^2}` at the least time.

    Example:
        >>> from probgen.diffusion import VE, GaussianDenoiser
        >>> denoiser = GaussianDenoiser(torch.zeros(2), torch.eye(2), VE())
        >>> flow, size = probability_flow(denoiser, flow_table(VE(), 8).float())
        >>> u = torch.randn(5, 2)
        >>> torch.allclose(flow(u), u, atol=1e-2)  # of data of variance 1
        True
    """
    steps = table.shape[1] // 2
    times, angles = table
    turn = (angles[-1] - angles[0]) / steps
    fixed = method in ("euler", "heun", "rk4")

    def velocity(u: Tensor, k: Tensor) -> Tensor:
        if not denoiser.differentiable and (is_wrapped(u) or torch.is_grad_enabled()):
            raise NotImplementedError(
                f"Expected a denoiser with a density, got {type(denoiser).__name__}, which guides "
                f"draws alone. For densities state prior and likelihood in a Pyro model."
            )
        if fixed:
            place = (2 * k).round().long()
            t, angle = torch.take(times, place), torch.take(angles, place)
        else:
            angle = (angles[0] + turn * k).clamp(angles[-1], angles[0])  # solvers look beyond
            t = denoiser.schedule.time(-2 * angle.tan().log()).clamp(times[-1], times[0])
        alpha, sigma = denoiser.signal(t)
        mean = denoiser.mean((alpha.square() + sigma.square()).sqrt() * u, t, context)
        return (angle.cos() * u - mean) * (turn / angle.sin())

    alpha, sigma = denoiser.schedule(times[-1])
    grid = torch.arange(steps + 1, dtype=table.dtype, device=table.device)
    shape = () if context is None else (*context.shape[:-1], *denoiser.shape)
    flow = Continuous(velocity, grid, method, probes, denoiser.shape, shape, tolerance)
    return flow, (alpha.square() + sigma.square()).sqrt()
