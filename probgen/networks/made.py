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
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..core import is_wrapped, register
from .dense import CONSUMING, Activation, Layers, activation_named, check_sizes, entries, feed

__all__ = ["MADE"]


@register
class MADE(nn.Module):
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
        order: The features in the order in which they become known, as they come by default.

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
        activation: Activation = "relu",
        embedding: int = 1,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(
            features=features, outputs=outputs, context=context, hidden_features=hidden_features
        )
        self.features, self.outputs, self.embedding = features, outputs, embedding
        self.layers = Layers(features * embedding, outputs * features, context, hidden_features)
        self.activation = activation_named(activation, CONSUMING)

        self.order = list(range(features) if order is None else order)
        if sorted(self.order) != list(range(features)):
            raise ValueError(f"Expected `order` to be a permutation of features, got {order}.")
        place = torch.tensor(self.order).argsort() + 1
        lowest = 0 if context or features == 1 else 1  # degree 0 sees the context alone
        choices = range(lowest, features)
        degrees = [place.repeat_interleave(embedding)]
        for width in hidden_features:
            degrees.append(torch.arange(width).remainder(len(choices)).add(lowest).sort().values)
        masks = [u[:, None] >= v[None, :] for v, u in itertools.pairwise(degrees)]
        masks.append(place.repeat(outputs)[:, None] > degrees[-1][None, :])  # (P, D) rows
        for number, mask in enumerate(masks):
            value = mask.to(torch.get_default_dtype())  # a product is the fastest mask
            self.register_buffer(f"mask_{number}", value, persistent=False)
        # how many units of each layer have degree d or less, for d = 0, ..., D
        self.known = [[int((u <= d).sum()) for d in range(features + 1)] for u in degrees]

    def weights(self) -> list[Tensor]:
        """Return the masked weights of every layer."""
        masks: Iterable[Any] = self._buffers.values()
        return [w * mask.to(w.dtype) for w, mask in zip(entries(self.layers.weights), masks)]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Map features, with shape :math:`(D E, *)`, to outputs with shape :math:`(P, D, *)`."""
        phi = feed(self.layers, self.weights(), self.activation, x, context)
        return phi.unflatten(0, (self.outputs, self.features))

    def solve(
        self,
        invert: Callable[[int, Tensor], tuple[Tensor, Tensor]],
        context: Tensor | None,
        like: Tensor,
    ) -> Tensor:
        r"""Find features one after the other, each from the outputs of those before it.

        Arguments:
            invert: Maps the number :math:`i` of a feature and its outputs, with shape
                :math:`(P, *)`, to the feature with shape :math:`(*)` and to its :math:`E`
                inputs with shape :math:`(E, *)`.
            context: The context, with shape :math:`(*, C)`, or none.
            like: A tensor with the shape :math:`(*)`, the dtype and the device of one feature.

        Returns:
            The features, with shape :math:`(D, *)`.
        """
        weights, biases = self.weights(), entries(self.layers.biases)
        shape, batch, e = like.shape, like.numel(), self.embedding
        columns = [f * e + k for f in self.order for k in range(e)]
        weights[0] = weights[0][:, columns]  # inputs in the order in which they become known
        heads = weights[-1].unflatten(0, (self.outputs, self.features)).unbind(1)
        head_biases = biases[-1].unflatten(0, (self.outputs, self.features, 1)).unbind(1)
        offset = biases[0].unsqueeze(-1)
        if self.layers.context_weight is not None and context is not None:
            given = linear(context, self.layers.context_weight, biases[0]).movedim(-1, 0)
            missing = like.ndim - (given.ndim - 1)
            given = given.reshape(len(given), *[1] * missing, *given.shape[1:])
            offset = given.expand(-1, *shape).reshape(len(given), batch)
        offsets = [offset, *(b.unsqueeze(-1) for b in biases[1:-1])]
        # the units that become known with each feature, layer by layer
        runs = [
            [stop - start for start, stop in zip([0, *known], known[:-1])]
            for known in self.known[1:]
        ]
        pieces = [
            (rows.split([*run, 0])[:-1], b.split([*run, 0])[:-1])
            for rows, b, run in zip(weights, offsets, runs)
        ]
        flat = like.reshape(-1)
        inputs = RowLayer(self.features * e, flat)
        hidden = [RowLayer(w.shape[0], flat) for w in weights[:-1]]
        features: list[Tensor] = [like] * self.features
        for i, feature in enumerate(self.order):
            below = inputs
            for rows, (w, b), run in zip(hidden, pieces, runs):
                if run[i]:
                    rows.add(b[i], w[i][:, : below.count], below.values(), self.activation)
                below = rows
            head = heads[feature][:, : below.count]
            phi = torch.addmm(head_biases[feature], head, below.values())
            features[feature], embedded = invert(feature, phi.view(self.outputs, *shape))
            inputs.append(embedded.reshape(e, batch))
        return torch.stack(features)


class RowLayer:
    """A matrix that grows by rows: in place where no derivative is recorded."""

    def __init__(self, total: int, like: Tensor) -> None:
        self.count = 0
        pure = torch.is_grad_enabled() or is_wrapped(like)
        self.buffer = None if pure else like.new_empty(total, *like.shape)
        self.joined = like.new_empty(0, *like.shape)

    def append(self, rows: Tensor) -> None:
        start, self.count = self.count, self.count + rows.shape[0]
        if self.buffer is not None:
            self.buffer[start : self.count] = rows
        else:
            self.joined = torch.cat([self.joined, rows])

    def add(self, b: Tensor, w: Tensor, h: Tensor, activation: Callable[[Tensor], Tensor]) -> None:
        """Append the rows :math:`a(W h + b)`."""
        if self.buffer is None or activation not in (torch.relu_, torch.tanh_):
            return self.append(activation(torch.addmm(b, w, h)))
        start, self.count = self.count, self.count + w.shape[0]
        activation(torch.addmm(b, w, h, out=self.buffer[start : self.count]))

    def values(self) -> Tensor:
        return self.joined if self.buffer is None else self.buffer[: self.count]
