r"""Coupling transforms.

The features are split in two. One part passes unchanged and conditions an elementwise transform
of the other,

.. math:: y_A = x_A, \qquad y_B = \tau(x_B; \phi(x_A, c)),

so that the Jacobian is triangular and both directions cost one pass of the network :math:`\phi`.
With :math:`\tau` additive this is NICE, affine RealNVP, a spline the coupling neural spline flow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from ..core import Bijector, Elementwise, LazyTransform, call_and_ladj, inverse_and_ladj
from ..core.contexts import size_of
from ..core.validation import check_whole
from ..networks import MLP
from ..networks.dense import Activation, start_at
from .elementwise import Affine
from .learned import check_class

__all__ = ["Coupling", "CouplingTransform"]


class CouplingTransform(Bijector):
    r"""An elementwise transform of some features, conditioned on the others.

    Arguments:
        conditioner: The map from :math:`x_A`, with shape :math:`(|A|, *)`, features first, to an
            elementwise transform of :math:`x_B`, with shape :math:`(|B|, *)`.
        kept: The number of leading features that pass unchanged; if negative, of trailing ones.
        shape: The shape of the parameters, :math:`(*, D)`.
        support: The values of one feature, before and after.

    References:
        | NICE: Non-linear Independent Components Estimation (Dinh et al., 2014)
        | https://arxiv.org/abs/1410.8516

    Example:
        >>> from probgen.transforms import Shift
        >>> f = CouplingTransform(lambda a: Shift(a.sum(0, keepdim=True)), kept=2, shape=(3,))
        >>> f(torch.tensor([1.0, 2.0, 10.0]))
        tensor([ 1.,  2., 13.])
    """

    def __init__(
        self,
        conditioner: Callable[[Tensor], Transform],
        kept: int,
        shape: tuple[int, ...],
        support: constraints.Constraint = constraints.real,
    ) -> None:
        super().__init__(shape)
        self.domain = self.codomain = constraints.independent(support, 1)
        self.conditioner, self.kept = conditioner, kept

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept and the moved features, along the leading axis."""
        x = self.widen(x).movedim(-1, 0)
        first, second = x.tensor_split([self.kept])
        return (first, second) if self.kept >= 0 else (second, first)

    def join(self, kept: Tensor, moved: Tensor) -> Tensor:
        """Put the two parts back in their places, along the last axis."""
        parts = [kept, moved] if self.kept >= 0 else [moved, kept]
        if moved.is_contiguous():
            return torch.cat(parts).movedim(0, -1)
        return torch.cat([part.movedim(0, -1) for part in parts], -1)  # keeps rows contiguous

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.split(x)
        b, ladj = call_and_ladj(self.conditioner(a), b)
        return self.join(a, b), ladj.sum(0)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.split(y)
        b, ladj = inverse_and_ladj(self.conditioner(a), b)
        return self.join(a, b), ladj.sum(0)


class Coupling(LazyTransform):
    r"""A coupling transform whose network is learned.

    Arguments:
        features: The number of features :math:`D`.
        univariate: The class of the elementwise transform :math:`\tau`.
        context: The number of features :math:`C` of the context, or its shape.
        kept: The number of leading features that pass unchanged; if negative, of trailing ones.
            By default half. Any other split is this one between two permutations.
        hidden_features: The width of each hidden layer.
        activation: The name of the activation function.
        network: A network to use instead of an :class:`MLP`. It maps features with shape
            :math:`(E |A|, *)` and the context to parameters with shape :math:`(P |B|, *)`.
        options: What the univariate transform takes besides, such as `bins`.

    Raises:
        TypeError: If `univariate` is not an elementwise bijector class.
        ValueError: If `kept` does not leave a feature to transform.

    Example:
        >>> from probgen.transforms import RationalQuadratic
        >>> f = Coupling(features=5, univariate=RationalQuadratic, bins=4)
        >>> f()(torch.randn(10, 5)).shape
        torch.Size([10, 5])
    """

    def __init__(
        self,
        features: int,
        univariate: type[Elementwise] = Affine,
        context: Any = 0,
        kept: int | None = None,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        network: torch.nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_class(univariate, Elementwise)
        check_whole(1, features=features)
        self.features, self.context = features, context
        self.univariate, self.options = univariate, options
        self.kept = features // 2 if kept is None else kept
        if not isinstance(self.kept, (int, Integral)) or not abs(self.kept) < features:
            raise ValueError(f"Expected `kept` to leave some of {features} features, got {kept}.")
        start, self.shapes = univariate.flat(features, **options)
        self.moved = features - abs(self.kept)
        inputs, outputs = abs(self.kept) * univariate.embedding, self.moved * len(start)
        self.outputs = outputs
        if network is None:
            network = MLP(inputs, outputs, size_of(self.context_shape), hidden_features, activation)
            start_at(network, start.repeat_interleave(self.moved))
        self.network = network

    def forward(self, context: Any = None) -> Transform:
        context = self.flat_context(context)
        batch = () if context is None else context.shape[:-1]
        conditioner = partial(self.condition, context)
        return CouplingTransform(
            conditioner, self.kept, (*batch, self.features), self.univariate.domain
        )

    def condition(self, context: Tensor | None, a: Tensor) -> Transform:
        r"""Return the transform of :math:`x_B` given :math:`x_A`, with shape :math:`(|A|, *)`."""
        phi = self.network(self.univariate.embed(a), context)
        if phi.shape[0] != self.outputs:
            raise ValueError(
                f"Expected a `network` with {self.outputs} outputs, those of {self.moved} features "
                f"along the first axis, got the shape {tuple(phi.shape)}."
            )
        phi = phi.unflatten(0, (-1, self.moved))
        return self.univariate.from_flat(phi, self.shapes, **self.options)
