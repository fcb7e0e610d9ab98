r"""Convolutional networks of images, channels first.

An encoder halves the grid at each of its :math:`L` levels, and a decoder doubles it,

.. math:: h_l = a(W_l * h_{l-1}), \quad (H_l, W_l) = \lceil (H_{l-1}, W_{l-1}) / 2 \rceil,

with residual blocks :math:`h + W' * a(W * a(h))` on the coarsest grid. Transposed convolutions have
kernels of twice their stride, so that all pixels get as many terms, and what exceeds an odd size is
cut off: images may have any size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core import register
from ..core.validation import check_whole
from .dense import Activation, activation_named

__all__ = ["Decoder", "Encoder"]


def check_image(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape of an image, as a tuple; raises a ValueError if it is none."""
    if isinstance(shape, str) or not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(f"Expected a `shape` of channels, height and width, got {shape!r:.80}.")
    check_whole(1, **{f"shape[{i}]": n for i, n in enumerate(shape)})
    return shape[0], shape[1], shape[2]


def check_channels(channels: Sequence[int]) -> tuple[int, ...]:
    """Return the width of each level, as a tuple; raises a ValueError if it is none."""
    if isinstance(channels, str) or not isinstance(channels, Sequence) or not channels:
        raise ValueError(f"Expected `channels` as a tuple of widths, got {channels!r:.80}.")
    check_whole(1, **{f"channels[{i}]": n for i, n in enumerate(channels)})
    return tuple(channels)


def sizes(shape: Sequence[int], levels: int) -> list[tuple[int, int]]:
    """Height and width after each level, the image's own first."""
    out = [(shape[1], shape[2])]
    for _ in range(levels):
        out.append((-(-out[-1][0] // 2), -(-out[-1][1] // 2)))
    return out


class ConvolutionBlock(nn.Module):
    """A residual block of a convolution over neighbours and one over channels."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Conv2d(width, width, 1)
        self.activation = activation_named(activation)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.mix(self.activation(self.near(self.activation(h))))


@register
class Encoder(nn.Module):
    r"""A convolutional network from images to features on a coarse grid.

    References:
        | Neural Discrete Representation Learning (van den Oord et al., 2017)
        | https://arxiv.org/abs/1711.00937

    Arguments:
        shape: The shape :math:`(C, H, W)` of an image.
        features: The number of features :math:`F` at each place of the grid.
        channels: The width of each level, each of which halves height and width, rounded up.
        blocks: The number of residual blocks on the coarsest grid.
        activation: The name of the activation function.

    Attributes:
        grid: The shape :math:`(F, h, w)` of the features of one image.
        outputs: Their number :math:`F h w`.

    Raises:
        ValueError: If a size is not positive or the activation unknown.

    Example:
        >>> net = Encoder((1, 28, 28), features=4, channels=(8, 16))
        >>> net.grid, net(torch.randn(5, 784)).shape, net(torch.randn(1, 28, 28)).shape
        ((4, 7, 7), torch.Size([5, 196]), torch.Size([196]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        features: int,
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.shape, widths = check_image(shape), check_channels(channels)
        check_whole(1, features=features)
        check_whole(0, blocks=blocks)
        self.down = nn.ModuleList(
            nn.Conv2d(n, m, 3, stride=2, padding=1)
            for n, m in itertools.pairwise((self.shape[0], *widths))
        )
        self.blocks = nn.ModuleList(ConvolutionBlock(widths[-1], activation) for _ in range(blocks))
        self.last = nn.Conv2d(widths[-1], features, 1)
        self.activation = activation_named(activation)
        self.grid = (features, *sizes(self.shape, len(widths))[-1])
        self.outputs = math.prod(self.grid)

    def forward(self, x: Tensor) -> Tensor:
        r"""Map images, :math:`(*, C, H, W)` or :math:`(*, C H W)`, to :math:`(*, F h w)`."""
        if x.shape[-3:] == self.shape:
            batch = x.shape[:-3]
        elif x.shape[-1:] == (math.prod(self.shape),):
            batch = x.shape[:-1]
        else:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(
                f"Expected images with shape (*, {wanted}), flattened or not, got {tuple(x.shape)}."
            )
        h = x.reshape(math.prod(batch), *self.shape)
        for i, layer in enumerate(self.down):
            h = layer(self.activation(h) if i else h)
        for block in self.blocks:
            h = block(h)
        return self.last(self.activation(h)).reshape(*batch, self.outputs)


@register
class Decoder(nn.Module):
    r"""A convolutional network from vectors, or features on a coarse grid, to images.

    Its output layer starts small, so that what it conditions starts near its own defaults, but not
    at zero: quantised and noisy inputs need gradients from the first step on.

    References:
        | Neural Discrete Representation Learning (van den Oord et al., 2017)
        | https://arxiv.org/abs/1711.00937
        | Deconvolution and Checkerboard Artifacts (Odena et al., 2016)
        | https://distill.pub/2016/deconv-checkerboard

    Arguments:
        inputs: The number of inputs :math:`n`, or the shape :math:`(F, h, w)` of features on the
            grid that the levels start from.
        shape: The shape :math:`(C, H, W)` of an image.
        rows: The number of outputs :math:`P` for each number of an image.
        channels: The width of each level, from the image's to the coarsest, as for
            :class:`Encoder`.
        blocks: The number of residual blocks on the coarsest grid.
        activation: The name of the activation function.

    Raises:
        ValueError: If a size is not positive, the features lie on another grid, or the activation
            is unknown.

    Example:
        >>> net = Decoder(10, (3, 9, 9), rows=2, channels=(8, 16))
        >>> net(torch.randn(5, 10)).shape
        torch.Size([5, 6, 9, 9])
    """

    def __init__(
        self,
        inputs: int | Sequence[int],
        shape: Sequence[int],
        rows: int = 1,
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.shape, widths = check_image(shape), check_channels(channels)
        check_whole(1, rows=rows)
        check_whole(0, blocks=blocks)
        self.sizes = sizes(self.shape, len(widths))
        coarse, wide = self.sizes[-1], widths[-1]
        self.grid: tuple[int, ...] = (wide, *coarse)
        self.first: nn.Module
        if isinstance(inputs, Sequence):
            check_whole(1, **{f"inputs[{i}]": n for i, n in enumerate(inputs)})
            if len(inputs) != 3 or tuple(inputs[1:]) != coarse:
                raise ValueError(
                    f"Expected `inputs` to be a number, or a shape (F, {coarse[0]}, {coarse[1]}), "
                    f"since {len(widths)} levels lead from there to {self.sizes[0]}, got "
                    f"{inputs!r:.80}."
                )
            self.first = nn.Conv2d(inputs[0], wide, 3, padding=1)
            self.inputs, self.grid = math.prod(inputs), tuple(inputs)
        else:
            check_whole(1, inputs=inputs)
            self.first = nn.Sequential(
                nn.Linear(inputs, math.prod(self.grid)), nn.Unflatten(1, self.grid)
            )
            self.inputs, self.grid = inputs, (inputs,)
        self.blocks = nn.ModuleList(ConvolutionBlock(wide, activation) for _ in range(blocks))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(n, m, 4, stride=2, padding=1)
            for n, m in itertools.pairwise((*widths[::-1], rows * self.shape[0]))
        )
        with torch.no_grad():
            self.up[-1].weight.mul_(0.1)  # type: ignore[operator]
            self.up[-1].bias.zero_()  # type: ignore[operator]
        self.activation = activation_named(activation)

    def forward(self, z: Tensor) -> Tensor:
        r"""Map vectors with shape :math:`(*, n)` to images with shape :math:`(*, P C, H, W)`."""
        if z.shape[-1:] != (self.inputs,):
            raise ValueError(
                f"Expected vectors with shape (*, {self.inputs}), got {tuple(z.shape)}."
            )
        batch = z.shape[:-1]
        h = self.first(z.reshape(math.prod(batch), *self.grid))
        for block in self.blocks:
            h = block(h)
        for layer, (height, width) in zip(self.up, self.sizes[-2::-1]):
            h = layer(self.activation(h))[..., :height, :width]
        return h.reshape(*batch, *h.shape[1:])
