r"""Transforms with learned parameters.

A bijector :math:`f_\phi` becomes a module in one of two ways: :math:`\phi` is a parameter, or a
network gives it,

.. math:: \phi(c) = \phi_0 + g_\theta(c),

from a context :math:`c`. Both start at :math:`\phi_0`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.distributions import Transform

from ..core import Bijector, Elementwise, LazyTransform
from ..core.contexts import size_of
from ..core.validation import check_whole
from ..networks import MLP
from ..networks.dense import Activation

__all__ = ["Learned"]


class Learned(LazyTransform):
    r"""A bijector whose parameters are learned, or given by a network from a context.

    Arguments:
        bijector: The class of the bijector, such as :class:`Planar` or :class:`Affine`.
        features: The number of features :math:`D`.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each hidden layer of the context's network.
        activation: The name of its activation function.
        options: What the bijector takes besides, such as `bins`.

    Raises:
        TypeError: If `bijector` is not a bijector class or has nothing to learn.
        ValueError: If a size is not positive.

    Example:
        >>> import torch
        >>> from probgen.transforms import Planar
        >>> f = Learned(Planar, features=3, context=2)
        >>> f(torch.randn(5, 2))(torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        bijector: type[Bijector],
        features: int,
        context: Any = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        **options: Any,
    ) -> None:
        super().__init__()
        check_class(bijector, Bijector)
        check_whole(1, features=features)
        start, self.shapes = bijector.flat(features, **options)
        if issubclass(bijector, Elementwise):  # P rows, one entry per feature
            start = start[:, None].expand(-1, features).reshape(-1)
        self.bijector, self.features, self.options = bijector, features, options
        self.context = context
        self.phi = nn.Parameter(start.clone())
        size = size_of(self.context_shape)
        self.network = MLP(size, len(start), 0, hidden_features, activation) if size else None

    def forward(self, context: Any = None) -> Transform:
        context = self.flat_context(context)
        phi = self.phi.clone()  # so that a step in place leaves what was built as it was
        if self.network is not None and context is not None:
            phi = phi + self.network(context.movedim(-1, 0)).movedim(0, -1)
        if issubclass(self.bijector, Elementwise):
            phi = phi.unflatten(-1, (-1, self.features)).movedim(-2, 0)
        return self.bijector.from_flat(phi, self.shapes, **self.options)


def check_class(value: Any, kind: type) -> None:
    """Raise a TypeError unless `value` is a class of that kind."""
    if not (isinstance(value, type) and issubclass(value, kind)):
        raise TypeError(f"Expected a subclass of {kind.__name__}, got {value!r:.80}.")
