r"""Masked autoregressive networks.

Every hidden unit has a degree :math:`d`: it sees the first :math:`d` features only. With units
sorted by degree, the parameters :math:`\phi_i` of feature :math:`i` depend on
:math:`x_1, \dots, x_{i-1}` and every mask is a block triangle,

.. math:: M^{(1)}_{uj} = [d_u \ge j], \quad M^{(l)}_{uv} = [d_u \ge d_v], \quad
    M^{(L)}_{iv} = [i > d_v].

So when features become known one after the other, feature :math:`i` completes just the units of
degree :math:`i`, a contiguous run of rows in each layer. Solving for all features this way costs
the arithmetic of one pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..core import Recorded
from .dense import Layers, activation_named, check_sizes, linear, merge_context

__all__ = ["MADE"]


class MADE(Recorded):
    r"""A masked autoencoder for distribution estimation, along the leading axis.

    References:
        | MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015)
        | https://arxiv.org/abs/1502.03509

    Arguments:
        features: The number of features :math:`D`.
        outputs: The number of outputs :math:`P` per feature.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each hidden layer.
        activation: The name of the activation function.
        embedding: The number of inputs :math:`E` per feature.

    Raises:
        ValueError: If a size is not positive or the activation unknown.

    Example:
        >>> net = MADE(3, outputs=2, hidden_features=(8, 8))
        >>> net(torch.randn(3, 10)).shape
        torch.Size([2, 3, 10])
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: str = "relu",
        embedding: int = 1,
    ) -> None:
        super().__init__()
        check_sizes(
            features=features, outputs=outputs, context=context, hidden_features=hidden_features
        )
        self.features, self.outputs, self.embedding = features, outputs, embedding
        self.layers = Layers(features * embedding, outputs * features, context, hidden_features)
        self.activation = activation_named(activation)

        lowest = 0 if context or features == 1 else 1  # degree 0 sees the context alone
        choices = range(lowest, features)
        degrees = [torch.arange(1, features + 1).repeat_interleave(embedding)]
        for width in hidden_features:
            degrees.append(torch.arange(width).remainder(len(choices)).add(lowest).sort().values)
        target = torch.arange(1, features + 1).repeat(outputs)  # output-major: (P, D) rows
        masks = [u[:, None] >= v[None, :] for v, u in itertools.pairwise(degrees)]
        masks.append(target[:, None] > degrees[-1][None, :])
        for number, mask in enumerate(masks):
            self.register_buffer(f"mask_{number}", mask, persistent=False)
        # how many units of each layer have degree d or less, for d = 0, ..., D
        self.known = [[int((u <= d).sum()) for d in range(features + 1)] for u in degrees]

    def weights(self) -> list[Tensor]:
        """The masked weights of every layer."""
        return [
            torch.where(self.get_buffer(f"mask_{n}"), w, 0)
            for n, w in enumerate(self.layers.weights)
        ]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Maps features, with shape :math:`(D E, *)`, to outputs with shape :math:`(P, D, *)`."""
        weights, biases = self.weights(), list(self.layers.biases)
        h = merge_context(linear(weights[0], biases[0], x), self.layers.context_weight, context)
        for w, b in zip(weights[1:], biases[1:]):
            h = linear(w, b, self.activation(h))
        return h.reshape(self.outputs, self.features, *h.shape[1:])

    def solve(
        self,
        invert: Callable[[int, Tensor], tuple[Tensor, Tensor]],
        context: Tensor | None,
        like: Tensor,
    ) -> Tensor:
        r"""Finds features one after the other, each from the outputs of those before it.

        Arguments:
            invert: Maps the number :math:`i` of a feature and its outputs, with shape
                :math:`(P, *)`, to the feature with shape :math:`(*)` and to its :math:`E`
                inputs with shape :math:`(E, *)`.
            context: The context, with shape :math:`(*, C)`, or none.
            like: A tensor with the shape :math:`(*)`, the dtype and the device of one feature.

        Returns:
            The features, with shape :math:`(D, *)`.
        """
        weights, biases = self.weights(), list(self.layers.biases)
        shape, batch = like.shape, like.numel()
        final = weights[-1].unflatten(0, (self.outputs, self.features))
        bias = biases[-1].unflatten(0, (self.outputs, self.features))
        offset = merge_context(
            biases[0].reshape(-1, *[1] * like.ndim), self.layers.context_weight, context
        )
        if context is None:
            offset = biases[0].unsqueeze(-1)
        else:
            offset = offset.expand(-1, *shape).reshape(len(offset), batch)

        inputs = Rows(self.features * self.embedding, like.reshape(-1))
        hidden = [Rows(w.shape[0], like.reshape(-1)) for w in weights[:-1]]
        features = []
        for i in range(self.features):
            below = inputs
            for layer, rows in enumerate(hidden):
                start, stop = rows.count, self.known[layer + 1][i]
                if start < stop:
                    b = offset[start:stop] if layer == 0 else biases[layer][start:stop, None]
                    w = weights[layer][start:stop, : below.count]
                    rows.append(self.activation(torch.addmm(b, w, below.values())))
                below = rows
            phi = torch.addmm(bias[:, i, None], final[:, i, : below.count], below.values())
            x, embedded = invert(i, phi.reshape(self.outputs, *shape))
            features.append(x)
            inputs.append(embedded.reshape(self.embedding, batch))
        return torch.stack(features)


class Rows:
    """A matrix that grows by rows: in place where no derivative is recorded."""

    def __init__(self, total: int, like: Tensor) -> None:
        self.count = 0
        recorded = torch.is_grad_enabled()
        self.buffer = None if recorded else like.new_empty(total, *like.shape)
        self.joined = like.new_empty(0, *like.shape)

    def append(self, rows: Tensor) -> None:
        start, self.count = self.count, self.count + len(rows)
        if self.buffer is not None:
            self.buffer[start : self.count] = rows
        else:
            self.joined = torch.cat([self.joined, rows])

    def values(self) -> Tensor:
        return self.joined if self.buffer is None else self.buffer[: self.count]
