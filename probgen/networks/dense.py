r"""Dense networks, features first.

Networks here read and write along the *leading* axis: from :math:`x` with shape :math:`(n, *)`,

.. math:: h_1 = a(W_1 x + V c + b_1), \quad h_{l} = a(W_l h_{l-1} + b_l), \quad
    \phi = W_L h_{L-1} + b_L,

with shape :math:`(m, *)`. Where outputs are many, as the parameters of a spline are, each is also
contiguous in memory, which is what makes splines fast. The context's part :math:`V c` is computed
once and broadcast over draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import linear

from ..core import register
from ..core.validation import check_whole

__all__ = ["MLP", "ResidualMLP"]

Activation = Literal["elu", "gelu", "relu", "silu", "softplus", "tanh"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
}


#: Those that may overwrite what they are given.
CONSUMING = {**ACTIVATIONS, "relu": torch.relu_, "tanh": torch.tanh_}


def activation_named(
    name: str, among: dict[str, Callable[[Tensor], Tensor]] = ACTIVATIONS
) -> Callable[[Tensor], Tensor]:
    """Return an activation function by name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in among:
        raise ValueError(f"Expected an activation among {sorted(among)}, got {name!r}.")
    return among[name]


def leading(weight: Tensor, bias: Tensor, h: Tensor) -> Tensor:
    r"""Apply :math:`W h + b`, from :math:`(*, n)` to :math:`(m, *)`, outputs contiguous."""
    out = torch.addmm(
        bias.unsqueeze(-1), weight, h.reshape(math.prod(h.shape[:-1]), h.shape[-1]).t()
    )
    return out if h.ndim == 2 else out.reshape(len(weight), *h.shape[:-1])


def first(layers: Layers, weight: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
    r"""Return the first layer :math:`W x + V c + b`, from :math:`(n, *A)` and :math:`(*B, C)`."""
    h = linear(x.movedim(0, -1), weight, entries(layers.biases)[0])
    if layers.context_weight is None and context is None:
        return h
    if layers.context_weight is None or context is None:
        if context is None:
            raise ValueError("Expected a context, since the network was built with one, got none.")
        raise ValueError("Expected no context, since the network was built without, got one.")
    return h + linear(context, layers.context_weight)


def uniform(*shape: int, inputs: int) -> nn.Parameter:
    """Return initial values of a layer, uniform with the inverse root of its inputs."""
    bound = 1 / math.sqrt(max(inputs, 1))
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class Layers(nn.Module):
    """Hidden layers and an output layer that starts at zero."""

    def __init__(
        self, inputs: int, outputs: int, context: int, hidden_features: Sequence[int]
    ) -> None:
        super().__init__()
        sizes = (inputs, *hidden_features)
        self.weights = nn.ParameterList(
            [uniform(m, n, inputs=n) for n, m in itertools.pairwise(sizes)]
            + [nn.Parameter(torch.zeros(outputs, sizes[-1]))]
        )
        self.biases = nn.ParameterList(
            [uniform(m, inputs=n) for n, m in itertools.pairwise(sizes)]
            + [nn.Parameter(torch.zeros(outputs))]
        )
        width = hidden_features[0] if hidden_features else outputs
        self.context_weight = uniform(width, context, inputs=context) if context else None


def entries(parameters: nn.ParameterList) -> list[Tensor]:
    """Return tensors of a list, past its slow access by number; `functional_call` may swap them."""
    return list(parameters._parameters.values())  # type: ignore[arg-type]


def along_last(network: Any, x: Tensor, offset: Tensor | None = None) -> Tensor:
    """Apply a network along the last axis, whichever axis it reads by itself.

    An `offset`, with shape :math:`(m)`, is added. A perceptron does so in its last bias; its rows
    are items throughout, so that what reads them need not stride over the batch, and flat, so
    that activations overwrite no view, which would cost autograd a copy.
    """
    if isinstance(network, MLP) and network.layers.context_weight is None:
        h = x.reshape(-1, x.shape[-1]) if x.ndim != 2 else x
        *hidden, (w, b) = zip(entries(network.layers.weights), entries(network.layers.biases))
        for weight, bias in hidden:
            h = network.activation(linear(h, weight, bias))
        h = linear(h, w, b if offset is None else b + offset)
        return h.reshape(*x.shape[:-1], len(w)) if x.ndim != 2 else h
    if isinstance(network, (MLP, ResidualMLP)):
        out = network(x.movedim(-1, 0)).movedim(0, -1)
    else:
        out = network(x)
    return out if offset is None else out + offset


def start_at(network: nn.Module, values: Tensor) -> None:
    """Make a new network answer `values`, with shape :math:`(m)`, everywhere."""
    with torch.no_grad():
        network.layers.biases[-1].copy_(values)  # type: ignore[union-attr, index]


def start_apart(network: Any) -> None:
    """Start the output layer of a network at random where it is at zero, as an encoder's must.

    What reads it may start at zero too, and then neither would ever get a gradient.
    """
    if isinstance(network, (MLP, ResidualMLP)):
        last = network.layers.weights[-1]
        if not bool(last.any()):
            with torch.no_grad():
                last.copy_(uniform(*last.shape, inputs=last.shape[1]))


def feed(
    layers: Layers,
    weights: Sequence[Tensor],
    activation: Callable[[Tensor], Tensor],
    x: Tensor,
    context: Tensor | None,
) -> Tensor:
    """Pass features, with shape :math:`(n, *)`, through all layers."""
    biases = entries(layers.biases)
    if len(weights) == 1:
        return first(layers, weights[0], x, context).movedim(-1, 0)
    h = first(layers, weights[0], x, context)
    for w, b in zip(weights[1:-1], biases[1:-1]):
        h = linear(activation(h), w, b)
    if len(weights[-1]) > weights[-1].shape[1]:
        return leading(weights[-1], biases[-1], activation(h))
    return linear(activation(h), weights[-1], biases[-1]).movedim(-1, 0)


def check_sizes(**sizes: int | Sequence[int]) -> None:
    """Raise a ValueError that names the first size that is not positive."""
    for name, size in sizes.items():
        if name == "hidden_features" and (isinstance(size, str) or not isinstance(size, Sequence)):
            raise ValueError(f"Expected `{name}` as a tuple of widths, got {size!r:.80}.")
        for n in size if isinstance(size, Sequence) else [size]:
            check_whole(0 if name in ("inputs", "context") else 1, **{name: n})


@register
class MLP(nn.Module):
    r"""A multilayer perceptron along the leading axis.

    Its output layer starts at zero, so that what it conditions starts where its own defaults say.

    Arguments:
        inputs: The number of inputs :math:`n`.
        outputs: The number of outputs :math:`m`.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each hidden layer.
        activation: The name of the activation function.

    Raises:
        ValueError: If a size is not positive or the activation unknown.

    Example:
        >>> net = MLP(3, 5, context=2, hidden_features=(16, 16))
        >>> net(torch.randn(3, 10, 7), torch.randn(7, 2)).shape
        torch.Size([5, 10, 7])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        check_sizes(
            inputs=inputs, outputs=outputs, context=context, hidden_features=hidden_features
        )
        self.outputs = outputs
        self.layers = Layers(inputs, outputs, context, hidden_features)
        self.activation = activation_named(activation, CONSUMING)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Map `x`, with shape :math:`(n, *)`, to outputs with shape :math:`(m, *)`."""
        return feed(self.layers, entries(self.layers.weights), self.activation, x, context)


@register
class ResidualMLP(nn.Module):
    r"""A residual multilayer perceptron along the leading axis, blocks :math:`h + W_2 a(W_1 a(h))`.

    References:
        | Deep ResidualUpdate Learning for Image Recognition (He et al., 2016)
        | https://arxiv.org/abs/1512.03385

    Arguments:
        inputs: The number of inputs :math:`n`.
        outputs: The number of outputs :math:`m`.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each block, all equal.
        activation: The name of the activation function.

    Raises:
        ValueError: If a size is not positive, the widths differ or the activation is unknown.

    Example:
        >>> ResidualMLP(3, 5, hidden_features=(16, 16))(torch.randn(3, 10)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        check_sizes(
            inputs=inputs, outputs=outputs, context=context, hidden_features=hidden_features
        )
        if len(set(hidden_features)) != 1:
            raise ValueError(f"Expected equal `hidden_features`, got {tuple(hidden_features)}.")
        self.layers = Layers(inputs, outputs, context, hidden_features[:1])
        width = hidden_features[0]
        self.blocks = nn.ModuleList([Layers(width, width, 0, (width,)) for _ in hidden_features])
        self.activation = activation_named(activation)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Map `x`, with shape :math:`(n, *)`, to outputs with shape :math:`(m, *)`."""
        weights, biases = entries(self.layers.weights), entries(self.layers.biases)
        h = first(self.layers, weights[0], x, context)
        for block in self.blocks:
            (w_1, w_2), (b_1, b_2) = entries(block.weights), entries(block.biases)  # type: ignore[arg-type]
            h = h + linear(self.activation(linear(self.activation(h), w_1, b_1)), w_2, b_2)
        return leading(weights[1], biases[1], self.activation(h))
