r"""Distributions with learned parameters: bases of flows, priors, posteriors and likelihoods.

Their parameters :math:`\phi` are learned, or given by a network from a standardised context,
:math:`\phi(c) = \phi_0 + g_\theta(c)`. Those with a location and a scale hold a shift :math:`a`
and a scale :math:`b` per feature, set from the data before training, so that :math:`x = a + b y`
and :math:`\phi` describes :math:`y`: data may come on any scale.
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

from ...core import Density, LazyDistribution, Standardizer, broadcast
from ...core.contexts import flatten, size_of
from ...core.derive import derived
from ...core.standardize import ContextStandardizer, Per
from ...core.validation import check_event, check_whole
from ...networks import MLP
from ...networks.dense import Activation, along_last
from ...objectives import MaximumLikelihood
from ...transforms import CircularRationalQuadratic

__all__ = ["DiagonalNormal", "FullNormal", "GaussianMixture", "StandardNormal", "UniformAngles"]

STEEPEST = 1e3  # entry of a row of a triangle, in units of its diagonal
LIMIT = 7.0  # of log scales and other logarithms, in units of the data's
SMALLEST = 1e-2  # first scale of a component, in units of the data's


class Parametric(LazyDistribution):
    """A distribution of a fixed form whose parameters are one vector, learned or conditional.

    Arguments:
        features: The number of features, or the shape of an event.
        starts: The starting values of the parameters of one feature, in as many rows.
        context: The number of features of the context, or its shape.
        hidden_features: The width of each hidden layer of the context's network.
        activation: The name of its activation function.
        network: Another network instead, which maps contexts with shape :math:`(*, C)` to as many
            numbers per item, rows first.
        rest: The starting values of what does not belong to a feature.
        free: How many of the last numbers do not depend on the context.
        per: Whether there are a location and a scale in units of the data, and of what, see
            :class:`~probgen.core.Standardizer`.
    """

    density = Density.EXACT

    def __init__(
        self,
        features: int | Sequence[int],
        starts: Sequence[float],
        context: Any,
        hidden_features: Sequence[int],
        activation: Activation = "relu",
        network: nn.Module | None = None,
        rest: Tensor | None = None,
        free: int = 0,
        per: Per | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = self.shape = shape_of(features)
        self.context = context
        self.standardizer = Standardizer(self.shape, per) if per is not None else None
        size = math.prod(self.shape)
        phi = torch.tensor([float(s) for s in starts]).repeat_interleave(size)
        self.phi = nn.Parameter(phi if rest is None else torch.cat([phi, rest]))
        self.rows, self.free = len(starts), free
        outputs = len(self.phi) - free
        if network is not None and self.context_shape is None:
            raise ValueError("Expected a `context`, since a `network` was given, got 0.")
        self.network: Any = network
        if self.context_shape is not None:
            self.context_standardizer = ContextStandardizer(self.context_shape)
            if network is None:
                size = size_of(self.context_shape)
                self.network = MLP(size, outputs, 0, hidden_features, activation)

    @property
    def objective(self) -> Callable[..., Tensor]:
        return MaximumLikelihood()

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        check_event(x, self.shape)
        if context is not None:
            self.context_standardizer.fit(context, weights)
        x = x.reshape(-1, *self.shape)
        if self.standardizer is not None:
            self.standardizer.fit(x, weights)
        self.set_parameters(x, weights)

    @derived
    def set_parameters(self, x: Tensor, weights: Tensor | None) -> None:
        """Set the first parameters from data, with shape :math:`(N, *event)`."""

    def forward(self, context: Any = None) -> TorchDistribution:
        self.check_context(context)
        phi: Tensor = self.phi
        if context is not None:
            context = flatten(self.context_standardizer(context), self.context_shape)  # type: ignore[arg-type]
            wanted = len(phi) - self.free
            if not self.free and isinstance(self.network, MLP) and self.network.outputs == wanted:
                return self.build(along_last(self.network, context, phi))
            out = along_last(self.network, context).reshape(*context.shape[:-1], -1)
            if out.shape[-1] != wanted:
                raise ValueError(
                    f"Expected a `network` that returns {wanted} numbers per item, since a "
                    f"{type(self).__name__} of shape {tuple(self.shape)} takes so many, got "
                    f"{out.shape[-1]}."
                )
            fixed = phi[wanted:].expand(*out.shape[:-1], -1)
            phi = torch.cat([phi[:wanted] + out, fixed], -1) if self.free else phi + out
        return self.build(phi)

    @abstractmethod
    def build(self, phi: Tensor) -> TorchDistribution:
        r"""Return the distribution with parameters of shape :math:`(*, P)`."""

    def split(self, phi: Tensor) -> tuple[Tensor, ...]:
        """Return the parameters of features, a tensor for each row."""
        size = self.rows * math.prod(self.shape)
        phi = phi if phi.shape[-1] == size else phi[..., :size]
        return phi.unflatten(-1, (self.rows, *self.shape)).unbind(-1 - len(self.shape))


def shape_of(features: int | Sequence[int]) -> torch.Size:
    """Return the shape of an event of so many features, or of that shape."""
    shape = tuple(features) if isinstance(features, Sequence) else (features,)
    for n in shape or (0,):
        check_whole(1, features=n)
    return torch.Size(shape)


def weighted_mean(x: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean over the first axis, with weights of shape :math:`(N)` if there are any."""
    if weights is None:
        return x.mean(0)
    return torch.tensordot(weights.to(x.dtype) / weights.sum(), x, 1)


class DiagonalNormal(Parametric):
    r"""A normal distribution with independent features, :math:`\mathcal{N}(m, e^{2 s})`.

    Log scales are kept within 7 of the data's.

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
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
        context: Any = 0,
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
        per: Per = "shared" if scale == "shared" else "feature"
        super().__init__(
            features, starts, context, hidden_features, activation, network, rest, free, per
        )
        self.scale = scale

    def build(self, phi: Tensor) -> TorchDistribution:
        m, *s = self.split(phi)
        unit: Any = self.standardizer
        if isinstance(self.scale, str):
            logs = s[0] if s else phi[..., -1:].unflatten(-1, (1,) * len(self.shape))
            scale = unit.scale * logs.clamp(-LIMIT, LIMIT).exp()
        else:
            scale = torch.full_like(unit.scale, self.scale)
        mean = torch.addcmul(unit.shift, unit.scale, m)
        return Events(dist.Normal(mean, scale), len(self.shape))


class FullNormal(Parametric):
    r"""A normal distribution with any covariance, :math:`x = m + L \epsilon`.

    Row :math:`i` of the triangular :math:`L` is :math:`e^{s_i}` times a row with 1 on the diagonal.

    References:
        | An Introduction to Variational Autoencoders (Kingma & Welling, 2019)
        | https://arxiv.org/abs/1906.02691

    Arguments:
        features: The number of features :math:`D`.
        context: The number of features :math:`C` of the context, or its shape.
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
        context: Any = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        network: nn.Module | None = None,
    ) -> None:
        check_whole(1, features=features)
        below = torch.zeros(features * (features - 1) // 2)
        super().__init__(
            features,
            (0.0, 0.0),
            context,
            hidden_features,
            activation,
            network,
            rest=below,
            per="feature",
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
        unit: Any = self.standardizer
        scale = unit.scale * s.clamp(-LIMIT, LIMIT).exp()
        return dist.MultivariateNormal(
            torch.addcmul(unit.shift, unit.scale, m), scale_tril=scale.unsqueeze(-1) * rows
        )


class GaussianMixture(Parametric):
    r"""A mixture of normal distributions with independent features.

    It draws without a derivative, and so has no `rsample`: neither has a flow on it. Data set its
    location and scale, and its components, by a few steps of expectation maximisation.

    Arguments:
        features: The number of features :math:`D`.
        components: The number of components :math:`K`.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each hidden layer of the context's network.

    Example:
        >>> GaussianMixture(3, components=4)().sample((10,)).shape
        torch.Size([10, 3])
    """

    def __init__(
        self,
        features: int,
        components: int,
        context: Any = 0,
        hidden_features: Sequence[int] = (64, 64),
    ) -> None:
        check_whole(1, features=features, components=components)
        size = components * features
        phi = torch.cat([torch.zeros(components), torch.randn(size), torch.zeros(size)])
        super().__init__(features, (), context, hidden_features, rest=phi, per="feature")
        self.features, self.components = features, components
        self.sizes = [components, size, size]

    def set_parameters(self, x: Tensor, weights: Tensor | None) -> None:
        unit: Any = self.standardizer
        logits, means, log_scales = expectation_maximization(unit(x), weights, self.components)
        self.phi.copy_(torch.cat([logits, means.flatten(), log_scales.flatten()]))

    def build(self, phi: Tensor) -> TorchDistribution:
        weights, m, s = phi.split(self.sizes, -1)
        m, s = m.unflatten(-1, (-1, self.features)), s.unflatten(-1, (-1, self.features))
        unit: Any = self.standardizer
        scale = unit.scale * s.clamp(-LIMIT, LIMIT).exp()
        mean = torch.addcmul(unit.shift, unit.scale, m)
        return NormalMixture(dist.Categorical(logits=weights), dist.Normal(mean, scale).to_event(1))


def expectation_maximization(
    x: Tensor, weights: Tensor | None, components: int, steps: int = 20
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a mixture of normals to standardised data, from far apart data as first means.

    References:
        | Arthur & Vassilvitskii, "k-means++: the advantages of careful seeding", 2007

    Arguments:
        x: The data, with shape :math:`(N, D)`.
        weights: Their weights, with shape :math:`(N)`.
        components: The number of components :math:`K`.
        steps: The number of steps.

    Returns:
        Logits of the weights, with shape :math:`(K)`, means and log scales, with shape
        :math:`(K, D)`.
    """
    w = torch.ones_like(x[:, 0]) if weights is None else weights.to(x.dtype)
    means = x[torch.multinomial(w, 1)]
    for _ in range(components - 1):
        near = w * torch.cdist(x, means).square().amin(1)
        far = near if bool(near.sum() > 0) else w
        means = torch.cat([means, x[torch.multinomial(far, 1)]])
    logits, scales = x.new_zeros(components), torch.ones_like(means)
    for _ in range(steps):
        log_joint = dist.Normal(means, scales).to_event(1).log_prob(x.unsqueeze(1)) + logits
        r = w.unsqueeze(1) * log_joint.softmax(1)
        total = r.sum(0).clamp_min(torch.finfo(x.dtype).tiny)
        means = r.mT @ x / total.unsqueeze(1)
        squares = torch.einsum("nk,nkd->kd", r, (x.unsqueeze(1) - means).square())
        scales = (squares / total.unsqueeze(1)).sqrt().clamp_min(SMALLEST)
        logits = (total / total.sum()).clamp_min(1e-3).log()
    return logits, means, scales.log()


class Events(dist.Independent):
    """Independent features of one event, whose values are not broadcast to its shape."""

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args or self.base_dist._validate_args:
            check_event(value, self.event_shape)
        return super().log_prob(value)


class NormalMixture(dist.MixtureSameFamily):
    """A mixture that says its support in a form from which Pyro can start a kernel."""

    support = constraints.real_vector

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            check_event(value, self.event_shape)
        return super().log_prob(value)


class Standard(LazyDistribution):
    """A distribution without parameters; a buffer holds its size, dtype and device."""

    density = Density.EXACT
    centre: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        check_whole(1, features=features)
        self.event_shape = torch.Size([features])
        self.register_buffer("centre", torch.zeros(features))

    @property
    def objective(self) -> Callable[..., Tensor]:
        raise AttributeError(f"{type(self).__name__} has nothing to train.")

    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        self.check_context(context)
        return self.build()

    @abstractmethod
    def build(self) -> TorchDistribution:
        """Return the distribution with the shape, dtype and device of the buffer."""


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
