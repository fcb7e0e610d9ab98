r"""Residual networks of images, with shape :math:`(B, C, H, W)`.

A cell adds to its input what a few layers make of it, :math:`h + F(h)`, and starts as the identity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..core import register
from ..core.validation import check_event, check_whole

__all__ = ["InvertedResidual", "Pixels"]


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution that starts at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


@register
class InvertedResidual(nn.Module):
    r"""A residual cell that widens the channels and convolves each by itself.

    .. math:: h + e(u) \odot u, \qquad u = W_2 \, a(k * a(W_1 a(h))),

    where :math:`W_1`, :math:`W_2` act on channels, :math:`k` is a depthwise convolution, and the
    excitation :math:`e(u) \in (0, 2)` of each channel comes from the means of all.

    References:
        | MobileNetV2: Inverted Residuals and Linear Bottlenecks (Sandler et al., 2018)
        | https://arxiv.org/abs/1801.04381
        | Squeeze-and-Excitation Networks (Hu et al., 2018), https://arxiv.org/abs/1709.01507
        | NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020)
        | https://arxiv.org/abs/2007.03898

    Arguments:
        channels: The number of channels :math:`C`.
        expansion: How many times as many there are within.
        kernel: The width of the depthwise kernel, odd.

    Raises:
        ValueError: If a size is not positive, or `kernel` even.

    Example:
        >>> InvertedResidual(8)(torch.randn(5, 8, 7, 7)).shape
        torch.Size([5, 8, 7, 7])
    """

    def __init__(self, channels: int, expansion: int = 3, kernel: int = 5) -> None:
        super().__init__()
        check_whole(1, channels=channels, expansion=expansion, kernel=kernel)
        if kernel % 2 == 0:
            raise ValueError(f"Expected an odd `kernel`, got {kernel}.")
        wide, narrow = channels * expansion, max(channels // 4, 1)
        self.widen = nn.Conv2d(channels, wide, 1)
        self.depthwise = nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide)
        self.narrow = zeroed(nn.Conv2d(wide, channels, 1))
        self.squeeze, self.excite = nn.Linear(channels, narrow), nn.Linear(narrow, channels)

    def forward(self, h: Tensor) -> Tensor:
        r"""Map `h`, with shape :math:`(B, C, H, W)`, to the same shape."""
        u = self.narrow(silu(self.depthwise(silu(self.widen(silu(h))))))
        e = 2 * torch.sigmoid(self.excite(silu(self.squeeze(u.mean((-2, -1))))))
        return h + e[..., None, None] * u


@register
class Pixels(nn.Module):
    r"""The last convolution of a decoder, from flat states to the parameters of pixels.

    Arguments:
        inputs: The shape :math:`(C, H, W)` of the states.
        channels: The number :math:`m` of channels it returns: for a head with :math:`P` rows of
            parameters and images of :math:`n` channels, :math:`P n`.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> Pixels((4, 8, 8), channels=2)(torch.randn(5, 3, 256)).shape
        torch.Size([5, 3, 2, 8, 8])
    """

    def __init__(self, inputs: Sequence[int], channels: int) -> None:
        super().__init__()
        check_whole(1, channels=channels, **{f"inputs[{i}]": n for i, n in enumerate(inputs)})
        if len(inputs) != 3:
            raise ValueError(f"Expected `inputs` of the form (C, H, W), got {tuple(inputs)}.")
        self.inputs = tuple(inputs)
        self.layer = nn.Conv2d(inputs[0], channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        r"""Map `h`, with shape :math:`(*, C H W)`, to shape :math:`(*, m, H, W)`."""
        check_event(h, (math.prod(self.inputs),))
        out = self.layer(silu(h.reshape(-1, *self.inputs)))
        return out.reshape(*h.shape[:-1], *out.shape[1:])
