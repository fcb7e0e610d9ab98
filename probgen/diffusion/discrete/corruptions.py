r"""Corruptions of discrete data.

Over steps :math:`t = 1, \dots, T` each site goes from state :math:`i` to state :math:`j` with the
probability :math:`(Q_t)_{ij}`, by itself, so that

.. math:: q(x_t \mid x_0) = (\bar Q_t)_{x_0 x_t}, \qquad \bar Q_t = Q_1 Q_2 \cdots Q_t, \qquad
    q(x_{t-1} \mid x_t, x_0) = \frac{(Q_t)_{x_{t-1} x_t} \, (\bar Q_{t-1})_{x_0 x_{t-1}}}
    {(\bar Q_t)_{x_0 x_t}}.

A denoiser's :math:`p(x_0 \mid x_t)` takes the place of :math:`x_0`,

.. math:: p(x_{t-1} \mid x_t) = \sum_{x_0} q(x_{t-1} \mid x_t, x_0) \, p(x_0 \mid x_t)
    \propto (Q_t)_{x_{t-1} x_t} \sum_i (\bar Q_{t-1})_{i x_{t-1}} \,
    \frac{p(x_0 = i \mid x_t)}{(\bar Q_t)_{i x_t}},

which is the true reverse of one site if the denoiser is exact. All is kept in logarithms.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ...core import is_wrapped, register
from ...core.cached_tensor import CachedTensor
from ...core.validation import check_whole

__all__ = ["Corruption", "GaussianCorruption"]

FLOOR = -1e4  # the logarithm of zero, finite so that gradients stay numbers


@register
class Corruption(nn.Module):
    """A Markov process that corrupts discrete data to noise in T steps.

    Arguments:
        classes: The number :math:`K` of states of the data.
        steps: The number of steps :math:`T`.
        states: The number :math:`S` of states of noisy values.
    """

    continuous = False  # whether there is a value at each time between two steps

    def __init__(self, classes: int, steps: int, states: int) -> None:
        super().__init__()
        check_whole(2, classes=classes)
        check_whole(1, steps=steps)
        self.classes, self.steps, self.states = classes, steps, states

    @abstractmethod
    def step(self, t: int) -> Tensor:
        """Return the matrix :math:`Q_t`, with shape :math:`(S, S)`."""

    @abstractmethod
    def cumulative(self, t: int) -> Tensor:
        r"""Return the matrix :math:`\bar Q_t`, with shape :math:`(S, S)`; at 0 the identity."""

    @abstractmethod
    def log_end(self, like: Tensor) -> Tensor:
        r""":math:`\log p(x_T)`, with shape :math:`(S)`."""

    @abstractmethod
    def log_noisy(self, x: Tensor, t: Tensor, like: Tensor) -> Tensor:
        r""":math:`\log q(x_t \mid x_0)` for all :math:`x_t`, with shape :math:`(*, S)`."""

    @abstractmethod
    def log_seen(self, x: Tensor, t: Tensor, like: Tensor) -> Tensor:
        r""":math:`\log q(x_t \mid x_0)` for all :math:`x_0`, with shape :math:`(*, K)`."""

    @abstractmethod
    def log_step(self, x: Tensor, t: Tensor, like: Tensor) -> Tensor:
        r""":math:`\log q(x_t \mid x_{t-1})` for all :math:`x_{t-1}`, with shape :math:`(*, S)`."""

    @abstractmethod
    def carry(self, log_w: Tensor, t: Tensor) -> Tensor:
        r""":math:`\log \sum_i (\bar Q_t)_{ij} w_i` of :math:`K` weights, with shape `(*, S)`."""

    def noisy(self, x: Tensor, t: Tensor) -> Tensor:
        r"""Draws :math:`x_t \sim q(x_t \mid x_0)`.

        Arguments:
            x: The data :math:`x_0`, whole numbers from 0 to :math:`K - 1`, with shape
                :math:`(*, event)`.
            t: The steps, from 1 to :math:`T`, with shape :math:`(*)`; a corruption in continuous
                time takes all times from 0 on, as real numbers.

        Returns:
            Whole numbers with the shape of the data.
        """
        self.check_steps(t, self.continuous)
        self.check_states(x)
        like = x if x.is_floating_point() else torch.empty((), device=x.device)
        return draw(self.log_noisy(x.long(), t, like))

    def posterior(self, x: Tensor, noisy: Tensor, t: Tensor, like: Tensor | None = None) -> Tensor:
        r""":math:`\log q(x_{t-1} \mid x_t, x_0)` for all :math:`x_{t-1}`.

        Arguments:
            x: The data :math:`x_0`, with shape :math:`(*, event)`.
            noisy: The noisy values :math:`x_t`, with the same shape.
            t: The steps, with shape :math:`(*)`.
            like: A tensor of the dtype of the result, that of torch by default.

        Returns:
            Log probabilities with shape :math:`(*, event, S)`.
        """
        self.check_steps(t)
        like = torch.empty((), device=x.device) if like is None else like
        before = self.log_noisy(x.long(), t - 1, like)
        return (before + self.log_step(noisy.long(), t, like)).log_softmax(-1)

    def reverse(self, logits: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        r""":math:`\log p(x_{t-1} \mid x_t)` for all :math:`x_{t-1}`.

        States of the data from which :math:`x_t` cannot be reached are left out, and so are those
        from which it is so unlikely that its number would be lost in the dtype.

        Arguments:
            logits: The logits of :math:`p(x_0 \mid x_t)`, with shape :math:`(*, event, K)`.
            noisy: The noisy values :math:`x_t`, with shape :math:`(*, event)`.
            t: The steps, with shape :math:`(*)`.

        Returns:
            Log probabilities with shape :math:`(*, event, S)`.
        """
        self.check_steps(t)
        before = self.log_before(logits, noisy.long(), t, t - 1)
        return (before + self.log_step(noisy.long(), t, logits)).log_softmax(-1)

    def log_before(self, logits: Tensor, noisy: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r"""Return the log of the sum over :math:`x_0` in :math:`p(x_s \mid x_t)`."""
        log_p, seen = self.log_data(logits, noisy, t)
        return self.carry(torch.where(log_p > FLOOR / 2, log_p - seen, FLOOR), s)

    def log_data(self, logits: Tensor, noisy: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\log p(x_0 \mid x_t)` without states that are left out, and `log_seen`."""
        seen = self.log_seen(noisy, t, logits)
        least = 0.4 * math.log(torch.finfo(seen.dtype).tiny)
        reached = seen > seen.amax(-1, keepdim=True) + least
        log_p = logits.log_softmax(-1).clamp_min(FLOOR / 4)
        return torch.where(reached, log_p, FLOOR).log_softmax(-1), seen

    def divergence(self, logits: Tensor, x: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        r"""Return divergence of :math:`p(x_{t-1} \mid x_t)` from :math:`q(x_{t-1} \mid x_t, x_0)`.

        At the first step it is :math:`-\log p(x_0 \mid x_1)`.

        Arguments:
            logits: The logits of :math:`p(x_0 \mid x_t)`, with shape :math:`(*, event, K)`.
            x: The data :math:`x_0`, with shape :math:`(*, event)`.
            noisy: The noisy values :math:`x_t`, with the same shape.
            t: The steps, with shape :math:`(*)`.

        Returns:
            One for each site, with shape :math:`(*, event)`.
        """
        self.check_steps(t)
        noisy = noisy.long()
        step = self.log_step(noisy, t, logits)
        log_q = (self.log_noisy(x.long(), t - 1, logits) + step).log_softmax(-1)
        log_p = (self.log_before(logits, noisy, t, t - 1) + step).log_softmax(-1)
        return (log_q.exp() * (log_q - log_p)).sum(-1)

    def end_divergence(self, x: Tensor, like: Tensor) -> Tensor:
        r"""Return divergence of :math:`p(x_T)` from :math:`q(x_T \mid x_0)`, one for each site."""
        last = torch.full((), self.steps, device=x.device)
        log_q = self.log_noisy(x.long(), last, like)
        return (log_q.exp() * (log_q - self.log_end(like))).sum(-1)

    def check_states(self, x: Tensor) -> None:
        if Distribution._validate_args and x.device.type != "meta" and not is_wrapped(x):
            if not ((x >= 0) & (x < self.classes)).all():
                raise ValueError(
                    f"Expected data from 0 to {self.classes - 1}, got {x.min().item():g} to "
                    f"{x.max().item():g}."
                )

    def check_steps(self, t: Tensor, continuous: bool = False) -> None:
        real = t.is_floating_point() and continuous
        if not real and (t.is_floating_point() or t.is_complex()):
            raise TypeError(f"Expected steps `t` as whole numbers, got {t.dtype}.")
        if Distribution._validate_args and t.device.type != "meta" and not is_wrapped(t):
            if not ((t >= (0 if real else 1)) & (t <= self.steps)).all():
                raise ValueError(
                    f"Expected steps `t` from {0 if real else 1} to {self.steps}, got "
                    f"{t.min().item():g} to {t.max().item():g}."
                )


def draw(log_p: Tensor) -> Tensor:
    """Draws a state for each row of log probabilities, by the race of exponential clocks."""
    clocks = torch.empty_like(log_p).exponential_()
    return (log_p - clocks.clamp_min(torch.finfo(log_p.dtype).tiny).log()).argmax(-1)


def one_hot(x: Tensor, count: int, like: Tensor) -> Tensor:
    """Return the log of a one at each number and zeros elsewhere, with shape `(*, count)`."""
    return torch.where(equal(x, count), like.new_zeros(()), like.new_full((), FLOOR))


def equal(x: Tensor, count: int) -> Tensor:
    """Which of so many numbers each is, with shape `(*, count)`."""
    return x.unsqueeze(-1) == torch.arange(count, device=x.device)


def along(t: Tensor, x: Tensor) -> Tensor:
    """Numbers with shape `(*)`, made to broadcast over values with shape `(*, event)`."""
    return t.reshape(*t.shape, *(1,) * (x.ndim - t.ndim))


def at(table: Tensor, t: Tensor) -> Tensor:
    """Return the matrices of a table at steps with shape `(*)`, with shape `(*, S, S)`."""
    return table.index_select(0, t.reshape(-1)).reshape(*t.shape, *table.shape[1:])


def log_rows(matrix: Tensor, x: Tensor) -> Tensor:
    """Return the logs of rows of matrices with shape `(*, S, K)`, those of states `(*, event)`."""
    flat = matrix.flatten(0, -3) if matrix.ndim > 2 else matrix.unsqueeze(0)
    item = torch.arange(len(flat), device=x.device).unsqueeze(-1)
    rows = flat[item, x.reshape(len(flat), -1)].log().clamp_min(FLOOR)
    return rows.reshape(*x.shape, matrix.shape[-1])


def log_product(log_w: Tensor, matrix: Tensor) -> Tensor:
    """Return log of weights with shape `(*, event, K)` times matrices with shape `(*, K, S)`."""
    most = log_w.detach().amax(-1, keepdim=True)
    w = (log_w - most).exp().reshape(*matrix.shape[:-2], -1, log_w.shape[-1])
    total = (w @ matrix).clamp_min(torch.finfo(w.dtype).tiny).log()
    return total.reshape(*log_w.shape[:-1], -1) + most


class GaussianCorruption(Corruption):
    r"""States move to near ones, for levels that have an order.

    .. math:: (Q_t)_{ij} = \frac{e^{-(i - j)^2 / 2 s_t}}{\sum_{n=1-K}^{K-1} e^{-n^2 / 2 s_t}}
        \quad (i \ne j), \qquad (Q_t)_{ii} = 1 - \sum_{j \ne i} (Q_t)_{ij}

    The width :math:`s_t` is such that a move that no end cuts off has the variance
    :math:`\tfrac{1}{8} K^2 \beta_t`, where :math:`\beta_t` rises linearly, as for DDPM, to a sum of
    10. Without that, few levels and many steps would make no moves at all. At the end the law is
    nearly uniform. The matrices and their products are computed once and kept,
    :math:`2 (T + 1) K^2` numbers.

    References:
        | Structured Denoising Diffusion Models in Discrete State-Spaces (Austin et al., 2021)
        | https://arxiv.org/abs/2107.03006

    Arguments:
        classes: The number :math:`K` of states.
        steps: The number of steps :math:`T`.

    Raises:
        ValueError: If there are fewer than 2 classes or less than one step.

    Example:
        >>> q = GaussianCorruption(4, steps=50)
        >>> bool(q.step(50)[0, 1] > q.step(50)[0, 2]), q.cumulative(50).shape
        (True, torch.Size([4, 4]))
    """

    def __init__(self, classes: int, steps: int = 100) -> None:
        super().__init__(classes, steps, classes)
        t = torch.arange(1, steps + 1, dtype=torch.double)
        betas = (0.1 + 19.9 * (t - 0.5) / steps) / steps
        single = moves(classes, classes**2 / 8 * betas)
        product = [torch.eye(classes, dtype=torch.double)]
        for matrix in single:
            product.append(product[-1] @ matrix)
        self.single = CachedTensor(torch.cat([product[0][None], single]))
        self.product = CachedTensor(torch.stack(product))

    def step(self, t: int) -> Tensor:
        return self.single(torch.empty(()))[t]

    def cumulative(self, t: int) -> Tensor:
        return self.product(torch.empty(()))[t]

    def log_end(self, like: Tensor) -> Tensor:
        return like.new_full((self.states,), -math.log(self.states))

    def log_noisy(self, x: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return log_rows(at(self.product(like), t), x)

    def log_seen(self, x: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return log_rows(at(self.product(like), t).mT, x)

    def log_step(self, x: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return log_rows(at(self.single(like), t), x)  # a symmetric matrix

    def carry(self, log_w: Tensor, t: Tensor) -> Tensor:
        return log_product(log_w, at(self.product(log_w), t))


def moves(classes: int, variances: Tensor) -> Tensor:
    """Matrices of moves with given variances on the whole numbers, by bisection of the width."""
    n = torch.arange(1 - classes, classes, dtype=torch.double)

    def law(log_width: Tensor) -> Tensor:
        return (-n.square() / 2 * (-log_width).exp()[:, None]).softmax(-1)

    low, high = torch.full_like(variances, -7.0), torch.full_like(variances, 30.0)
    for _ in range(60):
        middle = (low + high) / 2
        small = (law(middle) * n.square()).sum(-1) < variances
        low, high = torch.where(small, middle, low), torch.where(small, high, middle)
    i = torch.arange(classes)
    q = law(low)[:, (i - i[:, None]) + classes - 1]
    off = q * (1 - torch.eye(classes, dtype=torch.double))
    return off + torch.diag_embed(1 - off.sum(-1))
