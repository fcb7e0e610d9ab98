r"""A codebook with nearest-neighbour lookup.

.. math:: k(z) = \arg\min_k \| z - e_k \|.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core import register
from ...core.lazy_parts import is_initialized, register_flag
from ...core.validation import check_whole
from .base import CHUNK

__all__ = ["Codebook", "Quantization"]

DECAY = 0.99  # of the usage of codes that learn by their gradient
TRIED = 8  # vectors for each code among which the first codes are chosen


class Quantization(NamedTuple):
    r"""Vectors, quantised for training.

    Arguments:
        values: Their codes' vectors, with the gradients of the vectors, of shape :math:`(*, F)`.
        codes: The numbers of the codes, with shape :math:`(*)`.
        loss: The codebook's loss and the commitment, with shape :math:`(*)`.
    """

    values: Tensor
    codes: Tensor
    loss: Tensor


@register
class Codebook(nn.Module):
    r"""Vectors :math:`e_1, \dots, e_K`, to which others are quantised.

    Called in training mode with gradients on, it learns, as batch normalisation does: with
    :math:`n_k` vectors of sum :math:`s_k` nearest to a code, and decay :math:`\gamma`,

    .. math:: N_k \leftarrow \gamma N_k + (1 - \gamma) n_k, \qquad
        e_k \leftarrow e_k + (1 - \gamma) \frac{s_k - n_k e_k}{N_k},

    which keeps each code at the running mean of its vectors; sums are over all processes. Without a
    moving average codes learn by the gradient of :math:`\| \mathrm{sg}(z) - e_k \|^2` instead.
    A code whose :math:`N_k` falls far below the mean moves to a vector drawn from the batch.

    References:
        | Neural Discrete Representation Learning (van den Oord et al., 2017)
        | https://arxiv.org/abs/1711.00937
        | Jukebox (Dhariwal et al., 2020), https://arxiv.org/abs/2005.00341

    Arguments:
        codes: The number of codes :math:`K`.
        features: The number of features :math:`F` of each.
        commitment: The weight :math:`\beta` of :math:`\| z - \mathrm{sg}(e_k) \|^2`.
        ema: The decay :math:`\gamma` of the moving average; none for codes that learn by gradient.
        dead: The share of the mean usage :math:`\sum_k N_k / K` below which a code is revived, 0
            for never.

    Raises:
        ValueError: If a size or number is impossible.

    Example:
        >>> book = Codebook(16, features=4)
        >>> quantized = book(torch.randn(10, 4))
        >>> quantized.values.shape, quantized.codes.shape, quantized.loss.shape
        (torch.Size([10, 4]), torch.Size([10]), torch.Size([10]))
    """

    vectors: Tensor
    usage: Tensor
    initialized_flag: Tensor
    initialized = property(is_initialized)

    def __init__(
        self,
        codes: int,
        features: int,
        commitment: float = 0.25,
        ema: float | None = 0.99,
        dead: float = 0.05,
    ) -> None:
        super().__init__()
        check_whole(2, codes=codes)
        check_whole(1, features=features)
        if not 0 <= commitment < math.inf:
            raise ValueError(f"Expected `commitment` not to be negative, got {commitment}.")
        if ema is not None and not 0 <= ema < 1:
            raise ValueError(f"Expected `ema` in [0, 1), or none, got {ema}.")
        if not 0 <= dead < 1:
            raise ValueError(f"Expected `dead` in [0, 1), got {dead}.")
        self.commitment, self.ema, self.dead = commitment, ema, dead
        vectors = torch.randn(codes, features)
        if ema is None:
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)
        self.register_buffer("usage", torch.ones(codes))
        register_flag(self)

    def initialize(self, z: Tensor) -> None:
        r"""Set the codes to some of many vectors, with shape :math:`(*, F)`."""
        self.check(z)
        k, features = self.vectors.shape
        with torch.no_grad():
            z = z.reshape(-1, features)
            some = z[torch.randperm(len(z), device=z.device)[: TRIED * k]].unique(dim=0)
            order = torch.randperm(len(some), device=z.device)
            self.vectors.copy_(some[order[torch.arange(k, device=z.device) % len(some)]])
            self.usage.fill_(1)
            self.initialized_flag.fill_(True)

    def nearest(self, z: Tensor) -> Tensor:
        r"""Return nearest codes, with shape :math:`(*)`, of vectors with shape :math:`(*, F)`."""
        self.check(z)
        with torch.no_grad():
            k, features = self.vectors.shape
            centre = self.vectors.mean(0)  # about which differences lose fewer digits
            e = self.vectors - centre
            half = e.square().sum(-1) / 2
            parts = (z.reshape(-1, features) - centre).split(max(1, CHUNK // k))
            codes = [torch.addmm(half, part, e.t(), alpha=-1).argmin(-1) for part in parts]
            return torch.cat(codes).reshape(z.shape[:-1])

    def look_up(self, codes: Tensor) -> Tensor:
        r"""Return the vectors, with shape :math:`(*, F)`, of codes with shape :math:`(*)`."""
        return nn.functional.embedding(codes, self.vectors)

    def forward(self, z: Tensor) -> Quantization:
        r"""Quantises vectors with shape :math:`(*, F)` for training, and learns from them."""
        codes = self.nearest(z)
        e = self.look_up(codes)
        loss = self.commitment * (z - e.detach()).square().sum(-1)
        if self.ema is None:
            loss = loss + (z.detach() - e).square().sum(-1)
        values = e.detach() + (z - z.detach())  # no sum rounds: the second is 0
        if self.training and torch.is_grad_enabled():
            self.update(z.detach().flatten(0, -2), codes.flatten())
        return Quantization(values, codes, loss)

    @torch.no_grad()
    def update(self, z: Tensor, codes: Tensor) -> None:
        """Move usage and codes by the nearest codes of vectors, with shape :math:`(N, F)`."""
        decay = DECAY if self.ema is None else self.ema
        count = torch.zeros_like(self.usage).index_add_(0, codes, torch.ones_like(z[:, 0]))
        total = torch.zeros_like(self.vectors).index_add_(0, codes, z)
        for part in (count, total):
            over_processes(torch.distributed.all_reduce, part)
        self.usage.mul_(decay).add_(count, alpha=1 - decay)
        if self.ema is not None:
            least = torch.finfo(z.dtype).tiny
            excess = (total - count.unsqueeze(-1) * self.vectors) * (1 - decay)
            self.vectors.add_(excess / self.usage.clamp_min(least).unsqueeze(-1))
        if self.dead:
            drawn = z[torch.randint(len(z), self.usage.shape, device=z.device)]
            over_processes(torch.distributed.broadcast, drawn, 0)
            mean = self.usage.mean()
            lost = self.usage < self.dead * mean
            self.vectors.copy_(torch.where(lost.unsqueeze(-1), drawn, self.vectors))
            self.usage.copy_(torch.where(lost, mean, self.usage))

    def perplexity(self, codes: Tensor) -> Tensor:
        """How many codes are in use: the exponential of the entropy of their frequencies."""
        count = torch.zeros_like(self.usage).index_add_(
            0, codes.flatten(), torch.ones_like(self.usage[:1]).expand(codes.numel())
        )
        p = count / codes.numel()
        return (-torch.xlogy(p, p).sum()).exp()

    def check(self, z: Tensor) -> None:
        if z.ndim == 0 or z.shape[-1] != self.vectors.shape[1]:
            raise ValueError(
                f"Expected vectors with shape (*, {self.vectors.shape[1]}), got {tuple(z.shape)}."
            )


def over_processes(collective: Callable[..., Any], value: Tensor, *arguments: Any) -> None:
    """Apply a collective operation in place, if there are several processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        collective(value, *arguments)
