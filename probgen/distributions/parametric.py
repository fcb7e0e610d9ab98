r"""Distributions with learned parameters: bases of flows, priors, posteriors and likelihoods.

Their parameters :math:`\phi` are learned, or given by a network from a context,
:math:`\phi(c) = \phi_0 + g_\theta(c)`. Those with a location and a scale hold a shift :math:`a`
and a scale :math:`b` per feature as buffers, set from the data before training, so that
:math:`x = a + b y` and :math:`\phi` describes :math:`y`: data may come on any scale.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ..core import Density, LazyDistribution, broadcast
from ..core.checks import check_event, check_whole
from ..networks import MLP
from ..networks.dense import Activation, along_last
from ..objectives import MaximumLikelihood
from ..transforms import CircularRationalQuadratic
from ..transforms.linear import moments

__all__ = ["DiagonalNormal", "FullNormal", "GaussianMixture", "StandardNormal", "UniformAngles"]

STEEPEST = 1e3  # entry of a row of a triangle, in units of its diagonal
LIMIT = 7.0  # of log scales and other logarithms, in units of the data's


class Parametric(LazyDistribution):
    """A distribution of a fixed form whose parameters are one vector, learned or conditional.

    Arguments:
        features: The number of features, or the shape of an event.
        starts: The starting values of the parameters of one feature, in as many rows.
        context: The number of features of the context.
        hidden_features: The width of each hidden layer of the context's network.
        activation: The name of its activation function.
        network: Another network instead, which maps contexts with shape :math:`(*, C)` to as many
            numbers per item, rows first.
        rest: The starting values of what does not belong to a feature.
        free: How many of the last numbers do not depend on the context.
    """

    density = Density.EXACT

    def __init__(
        self,
        features: int | Sequence[int],
        starts: Sequence[float],
        context: int,
        hidden_features: Sequence[int],
        activation: Activation = "relu",
        network: nn.Module | None = None,
        rest: Tensor | None = None,
        free: int = 0,
    ) -> None:
        super().__init__()
        self.shape = shape_of(features)
        check_whole(0, context=context)
        self.context = context
        size = math.prod(self.shape)
        phi = torch.tensor([float(s) for s in starts]).repeat_interleave(size)
        self.phi = nn.Parameter(phi if rest is None else torch.cat([phi, rest]))
        self.rows, self.free = len(starts), free
        outputs = len(self.phi) - free
        if network is not None and not context:
            raise ValueError("Expected a `context`, since a `network` was given, got 0.")
        self.network: Any = network
        if context and network is None:
            self.network = MLP(context, outputs, 0, hidden_features, activation)

    @property
    def objective(self) -> Callable[..., Tensor]:
        return MaximumLikelihood()

    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        self.check_context(context)
        phi: Tensor = self.phi
        if self.network is not None and context is not None:
            wanted = len(phi) - self.free
            if not self.free and isinstance(self.network, MLP) and self.network.outputs == wanted:
                return self.build(along_last(self.network, context, phi))
            out = along_last(self.network, context).reshape(*context.shape[:-1], -1)
            if out.shape[-1] != wanted:
                raise ValueError(
                    f"Expected a `network` that returns {wanted} numbers per item, since a "
                    f"{type(self).__name__} of shape {self.shape} takes so many, got "
                    f"{out.shape[-1]}."
                )
            fixed = phi[wanted:].expand(*out.shape[:-1], -1)
            phi = torch.cat([phi[:wanted] + out, fixed], -1) if self.free else phi + out
        return self.build(phi)

    @abstractmethod
    def build(self, phi: Tensor) -> TorchDistribution:
        r"""The distribution with parameters of shape :math:`(*, P)`."""

    def split(self, phi: Tensor) -> tuple[Tensor, ...]:
        """The parameters of features, a tensor for each row."""
        size = self.rows * math.prod(self.shape)
        phi = phi if phi.shape[-1] == size else phi[..., :size]
        return phi.unflatten(-1, (self.rows, *self.shape)).unbind(-1 - len(self.shape))


class Located(Parametric):
    """A parametric distribution with a location and a scale, in units of the data."""

    shift: Tensor
    scale: Tensor

    def __init__(self, features: int | Sequence[int], *arguments: Any, **options: Any) -> None:
        super().__init__(features, *arguments, **options)
        self.register_buffer("shift", torch.zeros(self.shape))
        self.register_buffer("scale", torch.ones(self.shape))

    def start(self, x: Tensor, context: Tensor | None = None) -> None:
        shift, scale = moments(x.flatten(x.ndim - len(self.shape)))
        self.shift.copy_(shift.reshape(self.shape))
        self.scale.copy_(scale.reshape(self.shape))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("shift", "scale"):  # which the first checkpoints have not
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args)


def shape_of(features: int | Sequence[int]) -> tuple[int, ...]:
    """The shape of an event of so many features, or of that shape."""
    shape = tuple(features) if isinstance(features, Sequence) else (features,)
    for n in shape or (0,):
        check_whole(1, features=n)
    return shape


class DiagonalNormal(Located):
    r"""A normal distribution with independent features, :math:`\mathcal{N}(m, e^{2 s})`.

    Log scales are kept within 7 of the data's.

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each hidden layer of the context's network.
        activation: The name of its activation function.
        network: Another network instead, which maps contexts with shape :math:`(*, C)` to the
            locations and log scales, with shape :math:`(*, 2 D)`.
        scale: Where the scales come from: `"conditional"` on the context, `"learned"` (one for
            each feature), `"shared"` (learned, one for all), or a number, in units of the data.

    Raises:
        ValueError: If a size is not positive, or `scale` none of these.

    Example:
        >>> DiagonalNormal(3, context=2)(torch.randn(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        network: nn.Module | None = None,
        scale: Literal["conditional", "learned", "shared"] | float = "conditional",
    ) -> None:
        if scale not in ("conditional", "learned", "shared"):
            if not (isinstance(scale, (int, float)) and 0 < scale < math.inf):
                raise ValueError(
                    f"Expected `scale` to be 'conditional', 'learned', 'shared' or a positive "
                    f"number, got {scale!r}."
                )
        starts = (0.0, 0.0) if scale in ("conditional", "learned") else (0.0,)
        free = {"learned": math.prod(shape_of(features)), "shared": 1}.get(str(scale), 0)
        rest = torch.zeros(1) if scale == "shared" else None
        super().__init__(
            features, starts, context, hidden_features, activation, network, rest, free
        )
        self.kind = scale

    def start(self, x: Tensor, context: Tensor | None = None) -> None:
        super().start(x, context)
        if self.kind == "shared":
            self.scale.copy_(self.scale.square().mean().sqrt().expand_as(self.scale))

    def build(self, phi: Tensor) -> TorchDistribution:
        m, *s = self.split(phi)
        if isinstance(self.kind, str):
            logs = s[0] if s else phi[..., -1:].unflatten(-1, (1,) * len(self.shape))
            scale = self.scale * logs.clamp(-LIMIT, LIMIT).exp()
        else:
            scale = torch.full_like(self.scale, self.kind)
        mean = torch.addcmul(self.shift, self.scale, m)
        return dist.Normal(mean, scale).to_event(len(self.shape))


class FullNormal(Located):
    r"""A normal distribution with any covariance, :math:`x = m + L \epsilon`.

    Row :math:`i` of the triangular :math:`L` is :math:`e^{s_i}` times a row with 1 on the diagonal.

    References:
        | An Introduction to Variational Autoencoders (Kingma & Welling, 2019)
        | https://arxiv.org/abs/1906.02691

    Arguments:
        features: The number of features :math:`D`.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each hidden layer of the context's network.
        activation: The name of its activation function.
        network: Another network instead, which maps contexts with shape :math:`(*, C)` to
            locations, log scales and the :math:`D (D - 1) / 2` entries below the diagonal, row by
            row, in units of their row's scale.

    Example:
        >>> FullNormal(3, context=2)(torch.randn(5, 2)).covariance_matrix.shape
        torch.Size([5, 3, 3])
    """

    order: Tensor

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        network: nn.Module | None = None,
    ) -> None:
        check_whole(1, features=features)
        below = torch.zeros(features * (features - 1) // 2)
        super().__init__(
            features, (0.0, 0.0), context, hidden_features, activation, network, rest=below
        )

        d, k = features, features * (features - 1) // 2  # after k entries come a one and a zero
        order = torch.full((d, d), k + 1).triu(1) + k * torch.eye(d, dtype=torch.long)
        row, column = torch.tril_indices(d, d, -1)
        order[row, column] = torch.arange(k)
        self.register_buffer("order", order, persistent=False)

    def build(self, phi: Tensor) -> TorchDistribution:
        m, s = self.split(phi)
        d = len(self.order)
        ends = phi.new_tensor([1.0, 0.0]).expand(*phi.shape[:-1], 2)
        below = phi[..., 2 * d :].clamp(-STEEPEST, STEEPEST)
        rows = torch.cat([below, ends], -1)[..., self.order]
        scale = self.scale * s.clamp(-LIMIT, LIMIT).exp()
        return dist.MultivariateNormal(
            self.shift + self.scale * m, scale_tril=scale.unsqueeze(-1) * rows
        )


class GaussianMixture(Parametric):
    r"""A mixture of normal distributions with independent features.

    It draws without a derivative, and so has no `rsample`: neither has a flow on it.

    Arguments:
        features: The number of features :math:`D`.
        components: The number of components :math:`K`.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each hidden layer of the context's network.

    Example:
        >>> GaussianMixture(3, components=4)().sample((10,)).shape
        torch.Size([10, 3])
    """

    def __init__(
        self,
        features: int,
        components: int,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
    ) -> None:
        check_whole(1, features=features, components=components)
        size = components * features
        phi = torch.cat([torch.zeros(components), torch.randn(size), torch.zeros(size)])
        super().__init__(features, (), context, hidden_features, rest=phi)
        self.features, self.sizes = features, [components, size, size]

    def build(self, phi: Tensor) -> TorchDistribution:
        weights, m, s = phi.split(self.sizes, -1)
        m, s = m.unflatten(-1, (-1, self.features)), s.unflatten(-1, (-1, self.features))
        s = s.clamp(-LIMIT, LIMIT)
        return NormalMixture(dist.Categorical(logits=weights), dist.Normal(m, s.exp()).to_event(1))


class NormalMixture(dist.MixtureSameFamily):
    """A mixture that says its support in a form from which Pyro can start a kernel."""

    support = constraints.real_vector


class Standard(LazyDistribution):
    """A distribution without parameters; a buffer holds its size, dtype and device."""

    density = Density.EXACT
    centre: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        check_whole(1, features=features)
        self.register_buffer("centre", torch.zeros(features))

    @property
    def objective(self) -> Callable[..., Tensor]:
        raise TypeError(f"{type(self).__name__} has nothing to train.")

    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        self.check_context(context)
        return self.build()

    @abstractmethod
    def build(self) -> TorchDistribution:
        """The distribution with the shape, dtype and device of the buffer."""


class StandardNormal(Standard):
    r"""The standard normal distribution, the base of most flows.

    Arguments:
        features: The number of features :math:`D`.

    Example:
        >>> round(float(StandardNormal(2)().log_prob(torch.zeros(2))), 4)
        -1.8379
    """

    def build(self) -> TorchDistribution:
        return UnitNormal(self.centre)


class UniformAngles(Standard):
    r"""The uniform distribution of angles in :math:`[-\pi, \pi)`, the base of circular flows.

    Arguments:
        features: The number of angles :math:`D`.

    Example:
        >>> round(float(UniformAngles(1)().log_prob(torch.zeros(1)).exp()), 4)
        0.1592
    """

    def build(self) -> TorchDistribution:
        return Angles(self.centre)


class Centred(TorchDistribution):
    """A distribution about a centre of zeros, with shape :math:`(*, D)`."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(self, centre: Tensor, validate_args: bool | None = None) -> None:
        self.centre = centre
        super().__init__(centre.shape[:-1], centre.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Centred:
        return type(self)(self.centre.expand(*batch_shape, -1), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.centre


class UnitNormal(Centred):
    """The standard normal distribution, with a density of fewer operations than Pyro's."""

    support = constraints.real_vector

    @property
    def variance(self) -> Tensor:
        return torch.ones_like(self.centre)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.randn(shape, dtype=self.centre.dtype, device=self.centre.device)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            check_event(value, self.event_shape)
        value = value.expand(broadcast(value.shape, self.centre.shape))
        constant = value.shape[-1] * math.log(2 * math.pi)
        return ((value * value).sum(-1) + constant) / -2


class Angles(Centred):
    """The uniform distribution of angles."""

    support = constraints.independent(CircularRationalQuadratic.domain, 1)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        turns = torch.rand(shape, dtype=self.centre.dtype, device=self.centre.device)
        return (2 * turns - 1) * math.pi

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            check_event(value, self.event_shape)
        shape = broadcast(value.shape, self.centre.shape)
        inside = self.support.check(value).expand(shape[:-1])
        density = value.new_full((), -shape[-1] * math.log(2 * math.pi))
        return torch.where(inside, density, -torch.inf)
