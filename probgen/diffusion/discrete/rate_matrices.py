"""Corruptions in continuous time by any matrix of rates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core import is_wrapped
from ...core.cached_tensor import CachedTensor
from ...core.validation import check_whole
from .continuous_time import ContinuousTimeCorruption
from .corruptions import FLOOR, along, log_product, log_rows

__all__ = ["BinomialCorruption", "RateMatrix"]


class RateMatrix(ContinuousTimeCorruption):
    r"""States jump at given rates, :math:`R_t = \beta_t R`, so that :math:`P_{s t} = e^{R \tau}`.

    The clock :math:`\tau = \int_s^t \beta` goes the faster the later, as for
    :class:`~probgen.diffusion.VP`, and shows :math:`h` at the end. With the rates shifted by the
    largest one, all terms of the exponential are positive, so that small entries of it, too, have
    as many digits as the dtype. At the end states follow the mean of :math:`q(x_T \mid x_0)`
    over the classes.

    References:
        | A Continuous Time Framework for Discrete Denoising Models (Campbell et al., 2022)
        | https://arxiv.org/abs/2205.14987

    Arguments:
        rates: The rates :math:`R` from each state to each, with shape :math:`(S, S)`; each row sums
            to zero.
        classes: The number :math:`K` of the states that data have, the first ones; by default all.
        steps: The time :math:`T`, as a number of steps.
        horizon: The time :math:`h` of the clock; by default what brings the slowest mode of the
            chain down to :math:`e^{-10}`.

    Raises:
        ValueError: If the rates are not those of a chain, or do not forget the data and `horizon`
            is not given; or if another number is impossible.

    Example:
        >>> walk = torch.tensor([[-1.0, 1.0, 0.0], [1.0, -2.0, 1.0], [0.0, 1.0, -1.0]])
        >>> q = RateMatrix(walk, steps=50)  # to the neighbours
        >>> bool(q.step(50)[0, 1] > q.step(50)[0, 2])
        True
        >>> q.cumulative(50)[0]
        tensor([0.3334, 0.3333, 0.3333])
    """

    def __init__(
        self,
        rates: Tensor,
        classes: int | None = None,
        steps: int = 100,
        horizon: float | None = None,
    ) -> None:
        rates = check_rates(rates)
        super().__init__(len(rates) if classes is None else classes, steps, len(rates))
        if self.classes > self.states:
            raise ValueError(f"Expected `classes` of at most {self.states}, got {classes}.")
        if horizon is None:
            slowest = -float(torch.linalg.eigvals(rates).real.sort().values[-2])
            if slowest < 1e-9 * float(rates.abs().max()):
                raise ValueError("Expected `rates` that forget the data, or a `horizon`.")
            horizon = 10 / slowest
        if not 0 < horizon < math.inf:
            raise ValueError(f"Expected a positive `horizon`, got {horizon}.")
        most = float(-rates.diagonal().min())
        self.horizon = horizon
        self.doublings = max(0, math.ceil(math.log2(max(most * horizon, self.states / 2))))
        self.unit = most / 2**self.doublings
        jump = torch.eye(self.states, dtype=torch.double) + rates / most
        powers = [torch.eye(self.states, dtype=torch.double)]
        for n in range(1, 19):  # 1 / 19! is less than a double sees
            powers.append(powers[-1] @ jump / n)
        into = (rates.mT - rates.diagonal().diag()).log().clamp_min(FLOOR)
        self.powers, self.into = CachedTensor(torch.stack(powers)), CachedTensor(into)
        self.latest: tuple[Tensor, int, Tensor] | None = None
        ends = torch.tensor([0.0, steps], dtype=torch.double)
        last = self.between(ends[0], ends[1], ends)[: self.classes].mean(0)
        self.end = CachedTensor(last.log().clamp_min(FLOOR))

    def between(self, s: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """Return the matrices from one time to another, with shape `(*, S, S)`."""
        s, t = s.to(like.dtype) / self.steps, t.to(like.dtype) / self.steps
        clock = self.horizon * (t - s) * (0.1 + 9.95 * (t + s)) / 10.05
        powers = self.powers(like)
        orders = torch.arange(len(powers), device=like.device)
        jumps = (self.unit * clock).unsqueeze(-1)  # the mean number of them in a stretch
        terms = jumps**orders * (-jumps).exp()
        matrix = (terms @ powers.flatten(1)).unflatten(-1, (self.states, -1))
        least = torch.finfo(like.dtype).tiny ** 0.5  # so that no product is below what is normal
        for _ in range(self.doublings):
            matrix = torch.threshold(matrix, least, 0.0)
            matrix = matrix @ matrix
        return matrix / matrix.sum(-1, keepdim=True)

    def matrix(self, s: int, t: int) -> Tensor:
        ends = torch.tensor([float(s), float(t)])
        return self.between(ends[0], ends[1], ends)

    def step(self, t: int) -> Tensor:
        return self.matrix(t - 1, t)

    def cumulative(self, t: int) -> Tensor:
        return self.matrix(0, t)

    def log_end(self, like: Tensor) -> Tensor:
        return self.end(like)

    def seen(self, t: Tensor, like: Tensor) -> Tensor:
        r"""Return rows of :math:`P_{0 t}` of the states that data have, with shape `(*, K, S)`."""
        plain = not (is_wrapped(t) or t.is_inference())
        if plain and self.latest is not None:  # several ask for those of the same times
            times, version, matrix = self.latest
            if times is t and version == t._version and matrix.dtype == like.dtype:
                return matrix
        matrix = self.between(torch.zeros_like(t), t, like)[..., : self.classes, :]
        if plain:
            self.latest = t, t._version, matrix
        return matrix

    def log_noisy(self, x: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return log_rows(self.seen(t, like), x)

    def log_seen(self, x: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return log_rows(self.seen(t, like).mT, x)

    def log_back(self, x: Tensor, s: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return log_rows(self.between(s, t, like).mT, x)

    def log_rates(self, x: Tensor, t: Tensor, like: Tensor) -> Tensor:
        u = t.to(like.dtype) / self.steps
        speed = self.horizon * (0.1 + 19.9 * u) / 10.05 / self.steps
        return self.into(like)[x] + along(speed.log(), x).unsqueeze(-1)

    def carry(self, log_w: Tensor, t: Tensor) -> Tensor:
        return log_product(log_w, self.seen(t, log_w))


def check_rates(rates: Tensor) -> Tensor:
    """Rates of a chain, in double precision, with rows that sum to zero."""
    rates = torch.as_tensor(rates).detach().double()
    if rates.ndim != 2 or len(rates) != rates.shape[1] or len(rates) < 2:
        raise ValueError(f"Expected `rates` with shape (S, S), got {tuple(rates.shape)}.")
    off = rates - torch.diag(rates.diagonal())
    if not (rates.isfinite().all() and (off >= 0).all() and (off > 0).any()):
        raise ValueError("Expected finite `rates`, and from each state to others none below zero.")
    wrong = float((off.sum(-1) + rates.diagonal()).abs().max())
    if wrong > 1e-5 * float(off.sum(-1).max()):
        raise ValueError(f"Expected rows of `rates` that sum to zero, got one off by {wrong:.3g}.")
    return off - torch.diag(off.sum(-1))


class BinomialCorruption(RateMatrix):
    r"""Counts of trials, each of which is drawn anew by itself, for levels that have an order.

    A level :math:`x` is the number of successes of :math:`K - 1` trials. Each is drawn anew at the
    rate :math:`\beta_t`, a success with probability :math:`r`, so that

    .. math:: x_t \mid x_0 \sim \operatorname{Bin}(x_0, a_t + (1 - a_t) r)
        + \operatorname{Bin}(K - 1 - x_0, (1 - a_t) r), \qquad a_t = e^{-\int_0^t \beta}.

    Levels jump to the next ones only. With two classes it is the binomial diffusion of bits, and
    with :math:`r = 0` levels only fall, down to black.

    References:
        | Deep Unsupervised Learning using Nonequilibrium Thermodynamics
        | (Sohl-Dickstein et al., 2015)
        | https://arxiv.org/abs/1503.03585
        | Blackout Diffusion: Generative Diffusion Models in Discrete-State Spaces
        | (Santos et al., 2023)
        | https://arxiv.org/abs/2305.11089

    Arguments:
        classes: The number :math:`K` of levels.
        steps: The time :math:`T`, as a number of steps.
        chance: The probability :math:`r` of a success.

    Raises:
        ValueError: If there are fewer than 2 classes or less than one step, or `chance` is no
            probability.

    Example:
        >>> BinomialCorruption(3, steps=4).cumulative(4)
        tensor([[0.2500, 0.5000, 0.2500],
                [0.2500, 0.5000, 0.2500],
                [0.2500, 0.5000, 0.2500]])
    """

    def __init__(self, classes: int, steps: int = 100, chance: float = 0.5) -> None:
        check_whole(2, classes=classes)
        if not 0 <= chance <= 1:
            raise ValueError(f"Expected `chance` from 0 to 1, got {chance}.")
        x = torch.arange(classes, dtype=torch.double)
        up, down = (classes - 1 - x[:-1]) * chance, x[1:] * (1 - chance)
        off = up.diag(1) + down.diag(-1)
        super().__init__(off - torch.diag(off.sum(-1)), steps=steps)
