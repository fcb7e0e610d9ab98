"""Networks from a vector or an image to one number, or a few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import register
from .dense import Activation, activation_named, check_sizes
from .spectral import spectral_norm

__all__ = ["EnergyNetwork"]


@register
class EnergyNetwork(nn.Module):
    """A network from vectors or images to a number, smooth so that it has a score.

    Vectors go through dense layers; images, of shape (channels, height, width), through
    convolutions of kernel 3, each but the first of stride 2, and may come as rows of pixels. The
    last layer starts at zero.

    Arguments:
        features: The number of features, or the shape of an image.
        context: The number of features of the context, added to what the first layer gives.
        hidden_features: The width of each hidden layer, or its channels.
        activation: The name of the activation function.
        outputs: The number of numbers, along a last axis if there are several.
        spectral: Whether the largest singular value of each layer but the last is 1, so that
            the number changes slowly.

    References:
        | Spectral Normalization for Generative Adversarial Networks (Miyato et al., 2018)
        | https://arxiv.org/abs/1802.05957

    Raises:
        ValueError: If a size is not positive, or the activation is unknown.

    Example:
        >>> import torch
        >>> EnergyNetwork((1, 8, 8), hidden_features=(8, 16))(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: int = 0,
        hidden_features: Sequence[int] = (128, 128),
        activation: Activation = "silu",
        outputs: int = 1,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        self.shape = tuple(features) if isinstance(features, Sequence) else (features,)
        check_sizes(
            features=self.shape, outputs=outputs, context=context, hidden_features=hidden_features
        )
        if len(self.shape) not in (1, 3) or not hidden_features:
            raise ValueError(
                f"Expected `features` of a vector or an image, and `hidden_features` of a layer or "
                f"more, got {self.shape} and {tuple(hidden_features)}."
            )
        self.activation = activation_named(activation)
        layers: list[nn.Module] = []
        inputs, extent = self.shape[0], list(self.shape[1:])
        for i, width in enumerate(hidden_features):
            if extent:
                stride = 1 if i == 0 else 2
                layers.append(nn.Conv2d(inputs, width, 3, stride, 1))
                extent = [(n + stride - 1) // stride for n in extent]
            else:
                layers.append(nn.Linear(inputs, width))
            inputs = width
        self.layers, self.spectral = nn.ModuleList(layers), spectral
        self.given = nn.Linear(context, hidden_features[0], bias=False) if context else None
        self.last = nn.Linear(inputs * math.prod(extent), outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Map values with shape :math:`(*, event)`, and contexts, to shape :math:`(*)`."""
        flat = len(self.shape) > 1 and x.shape[-1:] == (math.prod(self.shape),)
        batch = x.shape[: x.ndim - (1 if flat else len(self.shape))]
        h = x.reshape(math.prod(batch), *self.shape)
        for i, layer in enumerate(self.layers):
            h = self.apply_layer(layer, h)
            if i == 0 and self.given is not None:
                if context is None:
                    raise ValueError("Expected a context, since the network takes one, got none.")
                c = self.given(context.expand(*batch, -1).reshape(len(h), -1))
                h = h + c.reshape(*c.shape, *[1] * (h.ndim - 2))
            h = self.activation(h)
        out = self.last(h.flatten(1))
        return out.reshape(batch if out.shape[1] == 1 else (*batch, out.shape[1]))

    def apply_layer(self, layer: Any, h: Tensor) -> Tensor:
        """Apply a hidden layer, its weight divided by its largest singular value if asked."""
        weight = layer.weight
        if self.spectral:
            size = spectral_norm(weight.flatten(1))
            weight = weight / size.clamp_min(torch.finfo(weight.dtype).tiny)
        if isinstance(layer, nn.Linear):
            return F.linear(h, weight, layer.bias)
        return F.conv2d(h, weight, layer.bias, layer.stride, layer.padding)
