r"""A U-Net of signals and images, a time and a context.

On the way down each level halves the grid, on the way up each doubles it and also reads what its
own level saw on the way down,

.. math:: h_l = \mathrm{blocks}_l(S_l h_{l-1}), \qquad
    g_l = \mathrm{blocks}'_l \bigl( W_l * \mathrm{double}(g_{l+1}), \; h_l \bigr),

with strided convolutions :math:`S_l`. A block is
:math:`h + W_2 * a((1 + \gamma) \odot \overline{W_1 * a(\bar h)} + \beta)`, with :math:`\bar h` of
mean square 1 over the grid and a group of channels, and :math:`\gamma, \beta` linear in what is
seen of time and context. Attention lets each place of the grid read all others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core import register, save
from ..core.validation import check_event, check_whole
from .convolution import check_channels
from .dense import Activation, activation_named
from .time import TimeEmbedding

__all__ = ["UNet"]


def power(h: Tensor) -> Tensor:
    """Return factors that give each of up to 8 groups mean square 1, as `(N, C, 1, ...)`.

    Torch's own normalisations lose a part of the gradient through forward-mode derivatives.
    """
    n, width = h.shape[:2]
    groups = math.gcd(8, width)
    mean = h.square().flatten(2).mean(-1).reshape(n, groups, width // groups).mean(-1, keepdim=True)
    scale = torch.rsqrt(mean + 1e-6).expand(n, groups, width // groups)
    return scale.reshape(n, width, *[1] * (h.ndim - 2))


class UNetBlock(nn.Module):
    """A residual block that time and context modulate."""

    def __init__(
        self,
        dims: int,
        inputs: int,
        width: int,
        embedding: int,
        dropout: float,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.inner = convolution(dims, inputs, width)
        self.outer = convolution(dims, width, width)
        self.film = nn.Linear(embedding, 2 * width)
        self.past = convolution(dims, inputs, width, 1) if inputs != width else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.activation = activation_named(activation)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        g = self.inner(self.activation(h * power(h)))
        film = self.film(e)
        scale, shift = film.reshape(*film.shape, *[1] * (h.ndim - 2)).chunk(2, 1)
        g = torch.addcmul(shift, g, power(g) * (1 + scale))
        return self.past(h) + self.outer(self.dropout(self.activation(g)))


class SelfAttention(nn.Module):
    """Residual attention of each place of the grid to all others, by several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        rows = (h * power(h)).flatten(2).mT
        parts = self.read(rows).unflatten(-1, (3, self.heads, rows.shape[-1] // self.heads))
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # each (N, heads, places, width of a head)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        found = (weights @ v).transpose(1, 2).flatten(2)
        return h + self.write(found).mT.reshape(h.shape)


class Level(nn.Module):
    """Blocks on one grid, each followed by attention if asked."""

    def __init__(self, blocks: Sequence[UNetBlock], attention: Sequence[SelfAttention]) -> None:
        super().__init__()
        self.blocks, self.attention = nn.ModuleList(blocks), nn.ModuleList(attention)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        for block, attend in itertools.zip_longest(self.blocks, self.attention):
            h = block(h, e)
            if attend is not None:
                h = attend(h)
        return h


def convolution(dims: int, inputs: int, outputs: int, width: int = 3, stride: int = 1) -> nn.Module:
    """Return a convolution of a signal or an image."""
    kind = nn.Conv1d if dims == 1 else nn.Conv2d
    return kind(inputs, outputs, width, stride=stride, padding=width // 2)


def doubled(h: Tensor) -> Tensor:
    """Each place of the grid repeated along each of its axes."""
    for axis in range(2, h.ndim):
        h = torch.stack([h, h], axis + 1).flatten(axis, axis + 1)
    return h


@register
class UNet(nn.Module):
    r"""A convolutional network from values and times to values, with skips and attention.

    The output layer starts at zero, and no item sees another.

    References:
        | U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al., 2015)
        | https://arxiv.org/abs/1505.04597
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239
        | Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021)
        | https://arxiv.org/abs/2105.05233

    Arguments:
        shape: The shape of an item, :math:`(C, H, W)` or :math:`(C, L)`; sizes are multiples of
            2 to the number of levels less one.
        context: The number of features :math:`K` of the context.
        channels: The width of each level, the finest first.
        blocks: The number of residual blocks of each level, on the way down and on the way up.
        attention: Whether each level has attention.
        heads: The number of heads of attention, which divides the width.
        dropout: The part of activations that are dropped in training.
        embedding: The number of numbers in which time and context are seen.
        activation: The name of the activation function.

    Raises:
        ValueError: If a size is impossible or the activation unknown; when called, if a shape is
            another or a context is missing or not wanted.

    Example:
        >>> net = UNet((1, 8, 8), context=2, channels=(8, 16))
        >>> net(torch.randn(5, 1, 8, 8), torch.rand(5), torch.randn(5, 2)).shape
        torch.Size([5, 1, 8, 8])
    """

    save = save

    def __init__(
        self,
        shape: Sequence[int],
        context: int = 0,
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        attention: Sequence[bool] = (False, True),
        heads: int = 4,
        dropout: float = 0.0,
        embedding: int = 64,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.shape, widths = check_datum(shape), check_channels(channels)
        check_whole(1, blocks=blocks, heads=heads, embedding=embedding)
        check_whole(0, context=context)
        if not 0 <= dropout < 1:
            raise ValueError(f"Expected `dropout` in [0, 1), got {dropout}.")
        if isinstance(attention, bool) or len(attention) != len(widths):
            raise ValueError(
                f"Expected `attention` to say yes or no for each of {len(widths)} levels, got "
                f"{attention!r:.80}."
            )
        least = 2 ** (len(widths) - 1)
        if any(n % least for n in self.shape[1:]):
            raise ValueError(
                f"Expected a `shape` with sizes that are multiples of {least}, since "
                f"{len(widths) - 1} levels halve the grid, got {self.shape}."
            )
        for width, chosen in zip(widths, attention):
            if chosen and width % heads:
                raise ValueError(
                    f"Expected `channels` with attention to be multiples of {heads} heads, got "
                    f"{width}."
                )
        dims = len(self.shape) - 1

        def level(i: int, inputs: int) -> Level:
            each = [inputs, *[widths[i]] * (blocks - 1)]
            return Level(
                [UNetBlock(dims, n, widths[i], embedding, dropout, activation) for n in each],
                [SelfAttention(widths[i], heads) for _ in each if attention[i]],
            )

        pairs = list(itertools.pairwise(widths))
        self.context = context
        self.time = TimeEmbedding(embedding)
        self.given = nn.Linear(context, embedding) if context else None
        self.first = convolution(dims, self.shape[0], widths[0])
        self.down = nn.ModuleList(level(i, n) for i, n in enumerate(widths))
        self.shrink = nn.ModuleList(convolution(dims, n, m, stride=2) for n, m in pairs)
        self.middle = level(len(widths) - 1, widths[-1])
        self.grow = nn.ModuleList(convolution(dims, m, n) for n, m in pairs)
        self.up = nn.ModuleList(level(i, 2 * n) for i, (n, _) in enumerate(pairs))
        self.last = convolution(dims, widths[0], self.shape[0])
        self.activation = activation_named(activation)
        for p in self.last.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Map values with shape :math:`(*, C, H, W)` or :math:`(*, C, L)` to that shape.

        Arguments:
            x: The values.
            t: Their times, with shape :math:`(*)`, or one for all.
            context: Their contexts, with shape :math:`(*, K)`.
        """
        check_event(x, self.shape)
        batch = x.shape[: x.ndim - len(self.shape)]
        count = math.prod(batch)
        e = self.time(t.expand(batch).reshape(count) if t.ndim else t.reshape(1))
        if (context is None) != (self.given is None):
            wanted, got = ("no", "one") if self.given is None else ("a", "none")
            raise ValueError(
                f"Expected {wanted} context, since the network takes {self.context} features of "
                f"it, got {got}."
            )
        if self.given is not None and context is not None:
            e = e + self.given(context.expand(*batch, self.context).reshape(count, self.context))
        h = self.first(x.reshape(count, *self.shape))
        seen = []
        for i, level in enumerate(self.down):
            h = level(self.shrink[i - 1](h) if i else h, e)
            seen.append(h)
        h = self.middle(h, e)
        for i in reversed(range(len(self.up))):
            h = torch.cat([self.grow[i](doubled(h)), seen[i]], 1)
            h = self.up[i](h, e)
        return self.last(self.activation(h * power(h))).reshape(x.shape)


def check_datum(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a signal or an image, as a tuple; raises a ValueError if it is none."""
    if isinstance(shape, (int, str)) or len(shape) not in (2, 3):
        raise ValueError(f"Expected a `shape` of (C, L) or (C, H, W), got {shape!r:.80}.")
    check_whole(1, **{f"shape[{i}]": n for i, n in enumerate(shape)})
    return tuple(shape)
