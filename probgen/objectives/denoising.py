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
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..core.arguments import record
from ..core.bijector import name_of
from ..core.contracts import HasDenoiser
from ..core.registry import RECORDS
from ..core.validation import check_whole
from ..diffusion import LearnedVariance, Schedule
from .base import Objective

__all__ = ["Denoising", "EvidenceBound"]


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


@record
class Denoising(Objective):
    r"""The squared error of a denoiser, at one time for each item.

    Times are stratified: those of a batch of :math:`n` are spread evenly, with one common shift.
    A network that says the noise needs a weight that ends with the signal, as `"eps"` does: at much
    noise its :math:`\hat x_0` is wrong by a multiple of :math:`1 / \alpha_t`.
    Of a :class:`~probgen.diffusion.LearnedVariance` the variance is learned too, by the log
    likelihood of the item around a mean that it does not move.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020),
          https://arxiv.org/abs/2006.11239 (`"eps"`, their :math:`L_\text{simple}`)
        | Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630
        | Efficient Diffusion Training via Min-SNR Weighting Strategy (Hang et al., 2023),
          https://arxiv.org/abs/2303.09556
        | Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport
          (Tong et al., 2024), https://arxiv.org/abs/2302.00482
        | Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), https://arxiv.org/abs/2207.12598

    Arguments:
        weight: `"elbo"`, `"eps"`, `"flow"`, `"min-snr"` (:math:`\min(r_t, 5)`), `"v"` (which is
            also that of EDM) or `"x_0"`.
        cut: The least time.
        pairing: Which noise an item goes to: `"random"`, or `"optimal"`, that which makes the
            squared distances of a batch least, on straight paths. The second needs scipy.
        times: How times are spread: `"uniform"`, or `"angle"`, evenly in the angle
            :math:`\arctan(\sigma_t / \alpha_t)`, which is the same for every schedule.
        drop: The share of data whose context is put to zeros, for
            :class:`~probgen.diffusion.ClassifierFree`.

    Raises:
        ValueError: If a name is unknown or a number impossible; when called, if pairs are optimal
            and there are contexts, of which a batch has too few of each.
        TypeError: When called, if the model is no diffusion.

    Example:
        >>> import probgen as pg
        >>> model = pg.models.EDM(2, hidden_features=(16,))
        >>> Denoising()(model, torch.randn(5, 2)).shape
        torch.Size([5])
    """

    weight: str = "v"
    cut: float = 1e-3
    pairing: str = "random"
    drop: float = 0.0
    times: str = "uniform"

    requires = (HasDenoiser,)

    def __post_init__(self) -> None:
        if self.weight not in WEIGHTS:
            raise ValueError(f"Expected `weight` among {sorted(WEIGHTS)}, got {self.weight!r:.80}.")
        if not 0 <= self.cut < 1:
            raise ValueError(f"Expected `cut` in [0, 1), got {self.cut}.")
        if self.pairing not in ("optimal", "random"):
            raise ValueError(
                f"Expected `pairing` of 'optimal' or 'random', got {self.pairing!r:.80}."
            )
        if self.times not in ("angle", "uniform"):
            raise ValueError(f"Expected `times` of 'angle' or 'uniform', got {self.times!r:.80}.")
        if not 0 <= self.drop < 1:
            raise ValueError(f"Expected `drop` in [0, 1), got {self.drop}.")

    def losses(self, module: HasDenoiser, x: Tensor, context: Any) -> Tensor:
        denoiser: Any = module.denoiser
        context = module.flat_context(context)
        y, schedule = module.standardized(x), denoiser.schedule
        part = spread(len(x), y)
        if self.times == "angle":
            t = by_angle(schedule, part, self.cut)
        else:
            t = part * (schedule.latest - self.cut) + self.cut
        alpha, sigma = denoiser.signal(t)
        eps = torch.randn_like(y)
        if self.pairing == "optimal":
            if context is not None:
                raise ValueError("Expected no context for optimal pairs, got one.")
            eps = paired(y, eps)
        if self.drop and context is not None:
            kept = torch.rand_like(context[..., :1]) >= self.drop
            context = context * kept
        noisy = alpha * y + sigma * eps
        law: Any = None
        if isinstance(denoiser, LearnedVariance):
            law = denoiser(noisy, t, context)
        mean = denoiser.mean(noisy, t, context) if law is None else law.mean
        losses = WEIGHTS[self.weight](schedule, t) * (y - mean).flatten(1).square().sum(-1)
        if law is not None:
            around = dist.Normal(mean.detach(), law.variance.sqrt()).to_event(y.ndim - 1)
            losses = losses - around.log_prob(y)
        return losses


@record
class EvidenceBound(Objective):
    r"""Minus the evidence lower bound of a diffusion's chain, whole.

    :class:`Denoising` with `"elbo"` has the terms of a chain without end, and leaves out what does
    not train the mean; this is the bound of so many steps itself, in nats and in the units of the
    data, and with a :class:`~probgen.diffusion.LearnedVariance` its last step trains the variance.

    References:
        | Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630

    Arguments:
        steps: The number of steps :math:`T` of the chain.

    Raises:
        ValueError: If there are less than 2 steps.
        TypeError: When called, if the model is no diffusion.

    Example:
        >>> import probgen as pg
        >>> model = pg.models.EDM(2, hidden_features=(16,))
        >>> EvidenceBound()(model, torch.randn(5, 2)).shape
        torch.Size([5])
    """

    steps: int = 1000

    requires = (HasDenoiser,)

    def __post_init__(self) -> None:
        check_whole(2, steps=self.steps)

    def losses(self, module: HasDenoiser, x: Tensor, context: Any) -> Tensor:
        return -module.elbo(x, context, self.steps)


for objective in (Denoising, EvidenceBound):  # so that a diffusion that is given one can be saved
    RECORDS[name_of(objective)] = objective


def by_angle(schedule: Schedule, part: Tensor, cut: float) -> Tensor:
    """Return the times at which so large parts of the angle from the least time on have passed."""
    ends = part.new_tensor([cut if schedule.clean else 0.0, schedule.latest])
    first, last = (-schedule.log_snr(ends) / 2).exp().atan()
    t = schedule.time(-2 * (first + part * (last - first)).tan().log())
    return t.clamp(0, schedule.latest)  # of rounding


def paired(y: Tensor, eps: Tensor) -> Tensor:
    """Return the noise in the order in which its squared distances from data are least."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ImportError("Expected scipy for optimal pairs: pip install probgen[ode].") from None
    cost = torch.cdist(y.detach().flatten(1), eps.flatten(1)).square()
    _, order = linear_sum_assignment(cost.cpu().numpy())
    return eps[torch.as_tensor(order, device=eps.device)]


def spread(count: int, like: Tensor) -> Tensor:
    """Numbers in [0, 1), evenly spread with one random shift, in a random order."""
    shift = torch.rand((), dtype=like.dtype, device=like.device)
    order = torch.randperm(count, device=like.device)
    return ((order + shift) / count) % 1
