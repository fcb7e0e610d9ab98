r"""Corruptions of discrete data in continuous time.

Each site is a Markov chain by itself, which jumps from state :math:`i` to state :math:`j` at the
rate :math:`(R_t)_{ij}`, and from time :math:`s` to time :math:`t` it follows

.. math:: q(x_t \mid x_s) = (P_{s t})_{x_s x_t}, \qquad \partial_t P_{s t} = P_{s t} R_t, \qquad
    P_{s s} = I.

Backwards it jumps too. Of all sites together only one jumps at a time, from :math:`x_t` to the
state :math:`y` of a site at the rate

.. math:: \hat R_t(y) = (R_t)_{y x_t} \sum_{x_0} \frac{q(y \mid x_0)}{q(x_t \mid x_0)} \,
    p(x_0 \mid x_t),

exactly so if the denoiser is, however the sites depend on one another. With :math:`r_t(y)` that
rate for a known :math:`x_0`, the logarithm of the probability of data has the bound

.. math:: \log p(x_0) \ge -\operatorname{KL}(q(x_T \mid x_0) \,|\, p(x_T)) - \int_0^T
    \mathbb{E}_{q(x_t \mid x_0)} \sum_{y \ne x_t} \Bigl[ \hat R_t(y) - r_t(y) + r_t(y)
    \log \frac{r_t(y)}{\hat R_t(y)} \Bigr] dt,

a sum over sites. Time is counted in steps, so that each of these is a corruption in steps too.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.distributions import Distribution

from ...core import is_wrapped
from ...core.validation import check_whole
from .corruptions import FLOOR, Corruption, along, equal, one_hot

__all__ = ["AbsorbingCorruption", "ContinuousTimeCorruption", "UniformCorruption"]


class ContinuousTimeCorruption(Corruption):
    """A corruption in continuous time, from 0 to :math:`T`.

    Arguments:
        classes: The number :math:`K` of states of the data.
        steps: The time :math:`T`, as a number of steps.
        states: The number :math:`S` of states of noisy values.
    """

    continuous = True

    @abstractmethod
    def log_back(self, x: Tensor, s: Tensor, t: Tensor, like: Tensor) -> Tensor:
        r""":math:`\log q(x_t \mid x_s)` for all :math:`x_s`, with shape :math:`(*, S)`."""

    @abstractmethod
    def log_rates(self, x: Tensor, t: Tensor, like: Tensor) -> Tensor:
        r""":math:`\log (R_t)_{y x_t}` for all :math:`y \ne x_t`, with shape :math:`(*, S)`."""

    def log_step(self, x: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return self.log_back(x, t - 1, t, like)

    def leap(self, logits: Tensor, noisy: Tensor, s: Tensor, t: Tensor) -> Tensor:
        r""":math:`\log p(x_s \mid x_t)` for all :math:`x_s`, of each site by itself.

        Arguments:
            logits: The logits of :math:`p(x_0 \mid x_t)`, with shape :math:`(*, event, K)`.
            noisy: The noisy values :math:`x_t`, with shape :math:`(*, event)`.
            s: The times to go back to, with shape :math:`(*)`.
            t: The times, with shape :math:`(*)`.

        Returns:
            Log probabilities with shape :math:`(*, event, S)`.
        """
        self.check_times(t)
        if Distribution._validate_args and t.device.type != "meta" and not is_wrapped(t):
            if not ((s >= 0) & (s <= t)).all():
                raise ValueError(f"Expected `s` from 0 to `t`, got {float((s - t).max()):g} above.")
        noisy = noisy.long()
        before = self.log_before(logits, noisy, t, s)
        return (before + self.log_back(noisy, s, t, logits)).log_softmax(-1)

    def excess(self, logits: Tensor, x: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        r"""Return the integrand of the bound: the divergence per unit of time of the jumps back.

        Arguments:
            logits: The logits of :math:`p(x_0 \mid x_t)`, with shape :math:`(*, event, K)`.
            x: The data :math:`x_0`, with shape :math:`(*, event)`.
            noisy: The noisy values :math:`x_t`, with the same shape.
            t: The times, within 0 and :math:`T`, with shape :math:`(*)`.

        Returns:
            One for each site, with shape :math:`(*, event)`.
        """
        self.check_times(t, inner=True)
        x, noisy = x.long(), noisy.long()
        log_rates = self.log_rates(noisy, t, logits)
        log_q = self.log_noisy(x, t, logits)
        log_p = self.log_before(logits, noisy, t, t)
        log_q, log_p = (w - w.gather(-1, noisy.unsqueeze(-1)) for w in (log_q, log_p))
        true = (log_rates + log_q).exp()
        return ((log_rates + log_p).exp() - true + true * (log_q - log_p)).sum(-1)

    def check_times(self, t: Tensor, inner: bool = False) -> None:
        """Raise an error unless times are real, from 0 to :math:`T`, or strictly within."""
        if not t.is_floating_point():
            raise TypeError(f"Expected times `t` as real numbers, got {t.dtype}.")
        if Distribution._validate_args and t.device.type != "meta" and not is_wrapped(t):
            wrong = (t <= 0) | (t >= self.steps) if inner else (t < 0) | (t > self.steps)
            if wrong.any():
                raise ValueError(
                    f"Expected times `t` between 0 and {self.steps}, got {float(t.min()):g} to "
                    f"{float(t.max()):g}."
                )


class Resampling(ContinuousTimeCorruption):
    r"""A state stays, or is drawn anew from :math:`\pi` whatever it was.

    With :math:`a_{t \mid s}` the probability that none was drawn between two steps, the matrix from
    one to the other is :math:`a_{t \mid s} I + (1 - a_{t \mid s}) 1 \pi^\top`, and all that is
    asked of it takes as many operations as there are states.
    """

    @abstractmethod
    def stay(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`a_{t \mid s}` and :math:`1 - a_{t \mid s}` at steps with shape :math:`(*)`."""

    @abstractmethod
    def hazard(self, t: Tensor) -> Tensor:
        """Return the rate of draws at times with shape :math:`(*)`."""

    def logs(self, s: Tensor, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        kept, lost = self.stay(s.to(like.dtype), t.to(like.dtype))
        return kept.log().clamp_min(FLOOR), lost.log().clamp_min(FLOOR)

    def matrix(self, s: int, t: int) -> Tensor:
        like = torch.empty(())
        return self.onward(torch.arange(self.states), torch.tensor(s), torch.tensor(t), like).exp()

    def step(self, t: int) -> Tensor:
        return self.matrix(t - 1, t)

    def cumulative(self, t: int) -> Tensor:
        return self.matrix(0, t)

    def onward(self, x: Tensor, s: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """Return the log of a row of the matrix, that of a state, with shape `(*, S)`."""
        (kept, lost), end = self.logs(s, t, like), self.log_end(like)
        own = torch.logaddexp(along(kept, x), along(lost, x) + end[x]).unsqueeze(-1)
        return torch.where(equal(x, self.states), own, along(lost, x).unsqueeze(-1) + end)

    def back(self, x: Tensor, s: Tensor, t: Tensor, count: int, like: Tensor) -> Tensor:
        """Return the log of a column of the matrix, that of a state, with shape `(*, count)`."""
        kept, lost = self.logs(s, t, like)
        drawn = along(lost, x) + self.log_end(like)[x]
        own = torch.logaddexp(along(kept, x), drawn).unsqueeze(-1)
        return torch.where(equal(x, count), own, drawn.unsqueeze(-1))

    def log_noisy(self, x: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return self.onward(x, torch.zeros_like(t), t, like)

    def log_seen(self, x: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return self.back(x, torch.zeros_like(t), t, self.classes, like)

    def log_back(self, x: Tensor, s: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return self.back(x, s, t, self.states, like)

    def log_rates(self, x: Tensor, t: Tensor, like: Tensor) -> Tensor:
        rates = along(self.hazard(t.to(like.dtype)).log(), x) + self.log_end(like)[x]
        return torch.where(equal(x, self.states), FLOOR, rates.unsqueeze(-1))

    def carry(self, log_w: Tensor, t: Tensor) -> Tensor:
        kept, lost = self.logs(torch.zeros_like(t), t, log_w)
        drawn = log_w.logsumexp(-1, keepdim=True) + self.log_end(log_w)
        own = torch.nn.functional.pad(log_w, (0, self.states - self.classes), value=FLOOR)
        return torch.logaddexp(along(kept, own) + own, along(lost, own) + drawn)


class AbsorbingCorruption(Resampling):
    r"""States are masked for good: :math:`a_{t \mid s} = (T - t) / (T - s)`.

    The mask is a state of its own, number :math:`K`, after those of the data. At the end all is
    masked, and on the way a site is masked at each step with the same probability, so that
    information is lost evenly.

    References:
        | Structured Denoising Diffusion Models in Discrete State-Spaces (Austin et al., 2021)
        | https://arxiv.org/abs/2107.03006

    Arguments:
        classes: The number :math:`K` of states of the data.
        steps: The number of steps :math:`T`.

    Raises:
        ValueError: If there are fewer than 2 classes or less than one step.

    Example:
        >>> AbsorbingCorruption(2, steps=4).cumulative(1)
        tensor([[0.7500, 0.0000, 0.2500],
                [0.0000, 0.7500, 0.2500],
                [0.0000, 0.0000, 1.0000]])
    """

    def __init__(self, classes: int, steps: int = 100) -> None:
        check_whole(2, classes=classes)
        super().__init__(classes, steps, classes + 1)

    def stay(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        left = self.steps - s
        return (self.steps - t) / left, (t - s) / left

    def hazard(self, t: Tensor) -> Tensor:
        return 1 / (self.steps - t)

    def log_end(self, like: Tensor) -> Tensor:
        return one_hot(torch.full((), self.classes, device=like.device), self.states, like)


class UniformCorruption(Resampling):
    r"""States are drawn anew from all, along a cosine: :math:`a_t = \sin^2 \phi_t / \sin^2 \phi_0`.

    Here :math:`\phi_t = (1 - t / T) \, \pi / 2.016`, so that at the end nothing is left.

    References:
        | Structured Denoising Diffusion Models in Discrete State-Spaces (Austin et al., 2021)
        | https://arxiv.org/abs/2107.03006
        | Argmax Flows and Multinomial Diffusion (Hoogeboom et al., 2021)
        | https://arxiv.org/abs/2102.05379

    Arguments:
        classes: The number :math:`K` of states.
        steps: The number of steps :math:`T`.

    Raises:
        ValueError: If there are fewer than 2 classes or less than one step.

    Example:
        >>> UniformCorruption(2, steps=4).cumulative(4)
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """

    def __init__(self, classes: int, steps: int = 100) -> None:
        super().__init__(classes, steps, classes)

    def stay(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        unit = math.pi / 2.016 / self.steps
        before, after = (self.steps - s) * unit, (self.steps - t) * unit
        whole = before.sin().square()  # less that of `after` is sin(a - b) sin(a + b)
        lost = ((t - s) * unit).sin() * (before + after).sin()
        return after.sin().square() / whole, lost / whole

    def hazard(self, t: Tensor) -> Tensor:
        unit = math.pi / 2.016 / self.steps
        return 2 * unit / ((self.steps - t) * unit).tan()

    def log_end(self, like: Tensor) -> Tensor:
        return like.new_full((self.states,), -math.log(self.states))
