r"""Networks of a value and a time.

A time, or the log of a ratio of signal to noise, is seen as sines and cosines of it at frequencies
that are evenly spaced on a logarithmic scale,

.. math:: e(t) = (\sin \omega_1 t, \cos \omega_1 t, \dots, \sin \omega_K t, \cos \omega_K t),

and shifts and scales what each block of the network reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import register
from ..core.validation import check_whole
from .dense import Activation, activation_named, check_sizes

__all__ = ["TimeEmbedding", "TimeMLP"]


@register
class TimeEmbedding(nn.Module):
    r"""Sines and cosines of a time, mixed by a layer.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239

    Arguments:
        features: The number of numbers that come out.
        frequencies: The number :math:`K` of frequencies.
        low: The lowest, in radians per unit of time.
        high: The highest.

    Example:
        >>> TimeEmbedding(8)(torch.rand(5, 2)).shape
        torch.Size([5, 2, 8])
    """

    omega: Tensor

    def __init__(
        self, features: int, frequencies: int = 16, low: float = 0.25, high: float = 16.0
    ) -> None:
        super().__init__()
        check_whole(1, features=features, frequencies=frequencies)
        if not 0 < low <= high:
            raise ValueError(f"Expected frequencies 0 < `low` <= `high`, got {low} and {high}.")
        self.register_buffer("omega", torch.logspace(0, 1, frequencies, base=high / low) * low)
        self.layer = nn.Linear(2 * frequencies, features)

    def forward(self, t: Tensor) -> Tensor:
        r"""Map times with shape :math:`(*)` to shape :math:`(*, n)`."""
        angle = t.unsqueeze(-1) * self.omega
        return F.silu(self.layer(torch.cat([angle.sin(), angle.cos()], -1)))


@register
class TimeMLP(nn.Module):
    r"""A residual perceptron of vectors, a time and a context.

    Each block is :math:`h + W_2 \, a((1 + \gamma) \odot W_1 \bar h + \beta)`, with :math:`\bar h`
    of mean square 1 and :math:`\gamma, \beta` linear in what is seen of time and context. The
    output layer starts at zero.

    References:
        | FiLM: Visual Reasoning with a General Conditioning Layer (Perez et al., 2018)
        | https://arxiv.org/abs/1709.07871

    Arguments:
        features: The number of features :math:`D`, of inputs and outputs.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each block, all equal.
        activation: The name of the activation function.
        embedding: The number of numbers in which time and context are seen.

    Raises:
        ValueError: If a size is not positive, the widths differ or the activation is unknown.

    Example:
        >>> TimeMLP(3, context=2)(torch.randn(5, 3), torch.rand(5), torch.randn(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] = (128, 128),
        activation: Activation = "silu",
        embedding: int = 64,
    ) -> None:
        super().__init__()
        check_sizes(
            features=features, embedding=embedding, context=context, hidden_features=hidden_features
        )
        if len(set(hidden_features)) != 1:
            raise ValueError(f"Expected equal `hidden_features`, got {tuple(hidden_features)}.")
        width = hidden_features[0]
        self.activation = activation_named(activation)
        self.time = TimeEmbedding(embedding)
        self.given = nn.Linear(context, embedding) if context else None
        self.first, self.last = nn.Linear(features, width), nn.Linear(width, features)
        count = len(hidden_features)
        self.inner = nn.ModuleList([nn.Linear(width, width) for _ in range(count)])
        self.outer = nn.ModuleList([nn.Linear(width, width) for _ in range(count)])
        self.film = nn.ModuleList([nn.Linear(embedding, 2 * width) for _ in range(count)])
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Map values with shape :math:`(*, D)` at times with shape :math:`(*)` to that shape."""
        e = self.time(t)
        if self.given is not None:
            if context is None:
                raise ValueError("Expected a context, since the network takes one, got none.")
            e = e + self.given(context)
        h = self.first(x)
        for inner, outer, film in zip(self.inner, self.outer, self.film):
            scale, shift = film(e).chunk(2, -1)
            g = inner(normed(h)) * (1 + scale) + shift
            h = h + outer(self.activation(g))
        return self.last(normed(h))


def normed(h: Tensor) -> Tensor:
    """Values of mean square 1 along the last axis.

    Torch's own normalisations lose a part of the gradient through forward-mode derivatives.
    """
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)
