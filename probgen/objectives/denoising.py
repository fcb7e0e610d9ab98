r"""Objectives of diffusions.

All are one squared error with a weight of its own,

.. math:: \mathbb{E}_{t, \epsilon} \; w_t \, | x_0 - \hat x_0(\alpha_t x_0 + \sigma_t \epsilon) |^2,

since what a network says is linear in :math:`\hat x_0`. With :math:`r_t = \alpha_t^2 / \sigma_t^2`
the noise has the weight :math:`r_t`, v has :math:`1 + r_t` where signal and noise keep their sum of
squares, the velocity :math:`(\dot \alpha_t - \dot \sigma_t \alpha_t / \sigma_t)^2`, and the
evidence lower bound :math:`-\dot r_t / 2`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..diffusion.schedules import Schedule

__all__ = ["Denoising"]


def flow_weight(schedule: Schedule, t: Tensor) -> Tensor:
    (alpha, sigma), (da, ds) = schedule(t), schedule.slopes(t)
    return (da - ds * alpha / sigma).square()


WEIGHTS: dict[str, Callable[[Schedule, Tensor], Tensor]] = {
    "elbo": lambda s, t: -s.log_snr(t).exp() * s.log_snr_slope(t) / 2,
    "eps": lambda s, t: s.log_snr(t).exp(),
    "flow": flow_weight,
    "min-snr": lambda s, t: s.log_snr(t).exp().clamp(max=5.0),
    "v": lambda s, t: 1 + s.log_snr(t).exp(),
    "x_0": lambda s, t: torch.ones_like(t),
}


@dataclass(frozen=True)
class Denoising:
    r"""The squared error of a denoiser, at one time for each datum.

    Times are stratified: those of a batch of :math:`n` are spread evenly, with one common shift.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020),
          https://arxiv.org/abs/2006.11239 (`"eps"`, their :math:`L_\text{simple}`)
        | Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630
        | Efficient Diffusion Training via Min-SNR Weighting Strategy (Hang et al., 2023),
          https://arxiv.org/abs/2303.09556

    Arguments:
        weight: `"elbo"`, `"eps"`, `"flow"`, `"min-snr"` (:math:`\min(r_t, 5)`), `"v"` (which is
            also that of EDM) or `"x_0"`.
        cut: The least time.

    Raises:
        ValueError: If the weight is unknown or the time not in [0, 1).
        TypeError: When called, if the model is no diffusion.

    Example:
        >>> import probgen as pg
        >>> model = pg.models.EDM(2, hidden_features=(16,))
        >>> Denoising()(model, torch.randn(5, 2)).shape
        torch.Size([5])
    """

    weight: str = "v"
    cut: float = 1e-3

    def __post_init__(self) -> None:
        if self.weight not in WEIGHTS:
            raise ValueError(f"Expected `weight` among {sorted(WEIGHTS)}, got {self.weight!r:.80}.")
        if not 0 <= self.cut < 1:
            raise ValueError(f"Expected `cut` in [0, 1), got {self.cut}.")

    def __call__(self, module: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Losses with shape :math:`(N)` of data with shape :math:`(N, *)`."""
        if x is None:
            raise ValueError("Expected data, since Denoising fits data, got None.")
        denoiser = getattr(module, "denoiser", None)
        if denoiser is None:
            raise TypeError(
                f"Expected a diffusion, such as pg.models.EDM, for Denoising, got a "
                f"{type(module).__name__}."
            )
        y, schedule = module.standardized(x), denoiser.schedule
        t = spread(len(x), y) * (schedule.latest - self.cut) + self.cut
        alpha, sigma = denoiser.signal(t)
        noisy = alpha * y + sigma * torch.randn_like(y)
        error = (y - denoiser.mean(noisy, t, context)).flatten(1).square().sum(-1)
        return WEIGHTS[self.weight](schedule, t) * error


def spread(count: int, like: Tensor) -> Tensor:
    """Numbers in [0, 1), evenly spread with one random shift, in a random order."""
    shift = torch.rand((), dtype=like.dtype, device=like.device)
    order = torch.randperm(count, device=like.device)
    return ((order + shift) / count) % 1
