r"""Cold diffusions as distributions: a base of degraded data, pushed through a sampler.

.. math:: x = g(x_S), \qquad x_S = m + F z, \qquad z \sim \mathcal{N}(0, I),

where :math:`g` takes the levels :math:`S, \dots, 1` of a degradation back. Fully degraded data have
few directions, so that :math:`F` has few columns: their principal components.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ...core import DataDependentNetwork, Density, LazyDistribution, as_lazy, initialize_part
from ...core.cards import Traits
from ...core.contexts import batch_of, expand_context, flatten, size_of
from ...core.contracts import HasDegradation
from ...core.standardize import ContextStandardizer
from ...core.validation import check_event, check_whole
from ...diffusion.cold import ColdSampler, Degradation, TACoS
from ...networks import TimeMLP
from ...objectives import Restoration
from ..implicit.pushforward import NO_DENSITY, draw_pushed, state_pushed
from ..module_distribution import ModuleDistribution
from ..parametric.base import shape_of, weighted_mean
from ..parametric.standard import StandardNormal

__all__ = ["ColdDiffusion", "RestorerMLP"]


class RestorerMLP(DataDependentNetwork):
    r"""A residual perceptron from degraded data, a level and a context to data.

    It adds to degraded data what a network says of them, standardised with the mean of their level
    and one scale for each level, both set from data.

    Arguments:
        features: The number of features :math:`D`, or the shape of an item.
        levels: The number of levels :math:`S`.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each block, all equal.

    Raises:
        ValueError: If a size is not positive, or the widths differ.

    Example:
        >>> RestorerMLP(3, levels=5)(torch.randn(4, 3), torch.tensor([1, 2, 3, 4])).shape
        torch.Size([4, 3])
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        features: int | Sequence[int],
        levels: int,
        context: int = 0,
        hidden_features: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__()
        check_whole(1, levels=levels)
        self.event_shape = shape_of(features)
        size = math.prod(self.event_shape)
        self.features, self.levels = features, levels
        self.network = TimeMLP(size, context, hidden_features)
        self.register_buffer("shift", torch.zeros(levels + 1, size))
        self.register_buffer("scale", torch.ones(levels + 1))

    def set_from_data(self, x: Tensor, weights: Tensor | None, *options: Any) -> None:
        """Set the mean and the scale of each level from data with shape :math:`(N, event)`."""
        (degradation,) = options
        for k in range(self.levels + 1):
            y = degradation(x, torch.full((len(x),), k, device=x.device)).flatten(1)
            self.shift[k] = weighted_mean(y, weights)
            scale = weighted_mean((y - self.shift[k]).square(), weights).mean().sqrt()
            self.scale[k] = torch.where(scale > 1e-6 * self.scale[0] if k else scale > 0, scale, 1)

    def forward(self, x: Tensor, s: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Map values with shape :math:`(*, event)` at levels with shape :math:`(*)` to data."""
        y = x.flatten(s.ndim) - self.shift[s]
        time = 20 * s.to(y.dtype) / self.levels - 10  # as wide as a log of ratios
        said = self.network(y / self.scale[s].unsqueeze(-1), time, context)
        return (self.shift[0] + y + self.scale[0] * said).reshape(x.shape)


@HasDegradation.register
class ColdDiffusion(LazyDistribution):
    r"""A cold diffusion: a restorer of degraded data, a sampler, and a base of degraded data.

    Called, it is a distribution of Pyro that draws and has no density. :func:`probgen.fit`, or
    `initialize`, sets the base from degraded data: a normal distribution along their principal
    components. In a model :func:`probgen.sample` states :math:`z` and the item that follows from
    it.

    References:
        | Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise (Bansal et al., 2022)
        | https://arxiv.org/abs/2208.09392

    Arguments:
        features: The number of features :math:`D`, or the shape of an item.
        degradation: The degradation.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each block of the network.
        rank: The number of components of the base, at most 32 by default.
        sampler: The sampler; :class:`~probgen.diffusion.TACoS` by default.
        base: Another base, lazy or one of Pyro, of fully degraded data, which :func:`probgen.fit`
            starts but does not train.
        network: Another restorer, from degraded data, levels and contexts to data.
        objective: The training objective, :class:`~probgen.objectives.Restoration` by default.

    Raises:
        ValueError: If a size is impossible, or the base does not fit.
        TypeError: If `degradation` or `sampler` is none.

    Example:
        >>> from probgen.diffusion import FadeDegradation
        >>> import probgen as pg
        >>> x = torch.randn(200, 1) + torch.tensor([-1.0, 0.0, 1.0])  # one shape, at any height
        >>> model = ColdDiffusion(3, FadeDegradation(3, levels=5), hidden_features=(16,))
        >>> history = pg.fit(model, x, steps=200, lr=1e-2, progress=False)
        >>> drawn = model.freeze()().sample((100,))
        >>> bool((drawn.diff() - 1).abs().mean() < 0.1)
        True
    """

    density = Density.PUSHFORWARD
    traits = Traits("degraded data", "a network pass for each level")
    shift: Tensor
    factor: Tensor

    def __init__(
        self,
        features: int | Sequence[int],
        degradation: Degradation,
        context: Any = 0,
        hidden_features: Sequence[int] = (256, 256),
        rank: int | None = None,
        sampler: ColdSampler | None = None,
        base: LazyDistribution | TorchDistribution | None = None,
        network: nn.Module | None = None,
        objective: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = torch.Size(shape_of(features))
        for name, part, kind in (
            ("degradation", degradation, Degradation),
            ("sampler", sampler or TACoS(), ColdSampler),
        ):
            if not isinstance(part, kind):
                raise TypeError(
                    f"Expected a {kind.__name__} as `{name}`, got a {type(part).__name__}."
                )
        size = math.prod(self.event_shape)
        rank = min(size, 32) if rank is None else rank
        check_whole(1, rank=rank)
        if rank > size:
            raise ValueError(f"Expected `rank` of at most {size} features, got {rank}.")
        self.degradation, self.sampler = degradation, sampler or TACoS()
        self.context, self.criterion = context, objective
        if self.context_shape is not None:
            self.context_standardizer = ContextStandardizer(self.context_shape)
        self.principal = base is None  # whether the base is along principal components
        self.base = StandardNormal(rank) if base is None else as_lazy(base)
        if not self.principal and (
            self.base.context_shape is not None or self.base().event_shape != self.event_shape
        ):
            raise ValueError(
                f"Expected a `base` of shape {tuple(self.event_shape)} without context, got one "
                f"with context={self.base.context}."
            )
        self.reparameterized = self.base().has_rsample
        if network is None:
            count = size_of(self.context_shape)
            network = RestorerMLP(features, degradation.levels, count, hidden_features)
        self.network = network
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("factor", torch.eye(size, rank))

    @property
    def objective(self) -> Callable[..., Tensor]:
        return Restoration() if self.criterion is None else self.criterion

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        check_event(x, self.event_shape)
        if context is not None:
            self.context_standardizer.fit(context, weights)
        last = torch.full((len(x),), self.degradation.levels, device=x.device)
        if isinstance(self.network, RestorerMLP):
            self.network.initialize(x, weights, self.degradation)
        y = self.degradation(x, last)
        if not self.principal:
            return initialize_part(self.base, y, None, weights)
        y = y.flatten(1)
        self.shift.copy_(weighted_mean(y, weights))
        y = y - self.shift
        if weights is not None:
            y = y * (len(y) * weights / weights.sum()).sqrt().unsqueeze(-1)
        lam, v = torch.linalg.eigh(y.mT @ y / len(y))
        root = (lam.clamp_min(0).sqrt() * v).flip(1)  # eigenvalues rise
        self.factor.copy_(root[:, : self.factor.shape[1]])

    def restore(self, x: Tensor, s: Tensor, context: Any = None) -> Tensor:
        r"""Restore degraded data.

        Arguments:
            x: The degraded data, with shape :math:`(*, event)`.
            s: Their levels, with shape :math:`(*)`.
            context: Their contexts, with batch shape :math:`(*)`, if it takes them.

        Returns:
            Data with the same shape.
        """
        given: tuple[Any, ...] = ()
        if context is not None:
            context = self.context_standardizer(context)
            given = (flatten(context, self.context_shape),)  # type: ignore[arg-type]
        clean = self.network(x, s, *given)
        if clean.shape != x.shape:
            raise ValueError(
                f"Expected a `network` to data with shape {tuple(x.shape)}, got "
                f"{tuple(clean.shape)}."
            )
        return clean

    def degraded(self, z: Tensor) -> Tensor:
        """Fully degraded data of values of the base."""
        if not self.principal:
            return z
        flat = self.shift + z @ self.factor.mT
        return flat.reshape(*z.shape[:-1], *self.event_shape)

    def walk(self, z: Tensor, context: Tensor | None = None) -> Iterator[Tensor]:
        """Fully degraded data of values of the base, then the values after each step."""
        x, dims = self.degraded(z), len(self.event_shape)
        given: Any = None
        if context is not None:
            batch = batch_of(context, self.context_shape)
            shape = torch.broadcast_shapes(x.shape[: x.ndim - dims], batch)
            x = x.expand(*shape, *self.event_shape)
            given = expand_context(context, self.context_shape, shape)
        yield x

        def restorer(x: Tensor, s: Tensor) -> Tensor:
            return self.restore(x, s, given)

        yield from self.sampler.walk(restorer, self.degradation, x, dims)

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map values of the base, with shape :math:`(*, base)`, and contexts to data."""
        for x in self.walk(z, context):
            last = x
        return last

    def forward(self, context: Any = None) -> ModuleDistribution:
        self.check_context(context)
        return ModuleDistribution(self, context)

    def draw(self, shape: torch.Size, context: Any) -> Tensor:
        return draw_pushed(self, shape, context)

    def log_prob(self, x: Tensor, context: Any = None) -> Tensor:
        raise NotImplementedError(NO_DENSITY)

    def pyro_model(
        self, prefix: str, name: str, context: Any, obs: Tensor | None, infer: dict[str, Any]
    ) -> Tensor:
        """State the base's site, named `base` after the prefix, and what follows from it."""
        return state_pushed(self, prefix, name, context, obs, infer)
