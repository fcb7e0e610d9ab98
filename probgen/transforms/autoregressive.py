r"""Autoregressive transforms.

Each feature is transformed on its own, with parameters that depend on those before it,

.. math:: y_i = \tau(x_i; \phi_i(x_1, \dots, x_{i-1}, c)),

so that the Jacobian is triangular. One pass of a masked network evaluates it. The inverse finds
the features one after the other, each completing the hidden units that only it was missing, and
so costs the arithmetic of one pass as well.

A masked autoregressive flow takes data to noise by this transform; an inverse autoregressive flow
takes noise to data by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from ..core import Bijector, Elementwise, LazyTransform, call_and_ladj, inverse_and_ladj
from ..core.contexts import size_of
from ..core.validation import check_whole
from ..networks import MADE
from ..networks.dense import Activation, start_at
from .elementwise import Affine
from .learned import check_class

__all__ = ["Autoregressive", "AutoregressiveTransform"]


class AutoregressiveTransform(Bijector):
    r"""An elementwise transform of each feature, conditioned on those before it.

    References:
        | Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934
        | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057

    Arguments:
        network: The masked network that gives :math:`\phi`.
        build: The map from parameters, with shape :math:`(P, *)`, to the transform :math:`\tau`.
        univariate: The class whose `embed` maps features, with shape :math:`(D, *)`, to what the
            network reads.
        context: The context, with shape :math:`(*, C)`, or none.
        support: The values of one feature, before and after.

    Example:
        >>> net = MADE(features=3, outputs=2)
        >>> f = AutoregressiveTransform(net, lambda phi: Affine(*phi))
        >>> x = torch.randn(10, 3)
        >>> torch.allclose(f.inv(f(x)), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        network: MADE,
        build: Callable[[Tensor], Transform],
        univariate: type[Elementwise] = Affine,
        context: Tensor | None = None,
        support: constraints.Constraint = constraints.real,
    ) -> None:
        batch = () if context is None else context.shape[:-1]
        super().__init__((*batch, network.features))
        self.domain = self.codomain = constraints.independent(support, 1)
        self.network, self.build, self.context = network, build, context
        self.univariate = univariate

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.widen(x).movedim(-1, 0)
        phi = self.network(self.univariate.embed(x), self.context)
        y, ladj = call_and_ladj(self.build(phi), x)
        return y.movedim(0, -1), ladj.sum(0)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        y = self.widen(y).movedim(-1, 0)
        ladjs = []

        def invert(i: int, phi: Tensor) -> tuple[Tensor, Tensor]:
            x, ladj = inverse_and_ladj(self.build(phi), y[i])
            ladjs.append(ladj)
            return x, self.univariate.embed(x.unsqueeze(0))

        x = self.network.solve(invert, self.context, like=y[0])
        return x.movedim(0, -1), torch.stack(ladjs).sum(0)


class Autoregressive(LazyTransform):
    r"""An autoregressive transform whose network is learned.

    Arguments:
        features: The number of features :math:`D`.
        univariate: The class of the elementwise transform :math:`\tau`.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each hidden layer.
        activation: The name of the activation function.
        order: The features in the order in which each sees those before it, as they come by
            default.
        options: What the univariate transform takes besides, such as `bins`.

    Raises:
        TypeError: If `univariate` is not an elementwise bijector class.
        ValueError: If a size is not positive.

    Example:
        >>> from probgen.transforms import RationalQuadratic
        >>> f = Autoregressive(features=3, univariate=RationalQuadratic, context=2)
        >>> f(torch.randn(10, 2))(torch.randn(10, 3)).shape
        torch.Size([10, 3])
    """

    def __init__(
        self,
        features: int,
        univariate: type[Elementwise] = Affine,
        context: Any = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        order: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_class(univariate, Elementwise)
        check_whole(1, features=features)
        self.features, self.context = features, context
        self.univariate, self.options = univariate, options
        start, self.shapes = univariate.flat(features, **options)
        self.network = MADE(
            features,
            len(start),
            size_of(self.context_shape),
            hidden_features,
            activation,
            univariate.embedding,
            order,
        )
        start_at(self.network, start.repeat_interleave(features))

    def forward(self, context: Any = None) -> Transform:
        context = self.flat_context(context)
        tau = self.univariate
        build = partial(tau.from_flat, shapes=self.shapes, **self.options)
        return AutoregressiveTransform(self.network, build, tau, context, tau.domain)
