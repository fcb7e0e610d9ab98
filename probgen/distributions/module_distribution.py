"""The base of Pyro distributions returned by lazy modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ..core import Density
from ..core.contexts import batch_of, expand_context
from ..core.contracts import MadeBy
from ..core.lazy import shown
from ..core.validation import check_event
from .supports import check_support, interior, mask_outside, readable

__all__ = ["ModuleDistribution"]


@MadeBy.register
class ModuleDistribution(TorchDistribution):
    r"""The distribution of a module for given contexts: the module draws and gives log densities.

    Values outside a continuous support have log density :math:`-\infty`; those outside a discrete
    one raise an error under argument validation.

    Arguments:
        module: The module. It declares `event_shape`, `support`, `density` and whether it is
            `reparameterized`; `draw(shape, context)` gives values with shape
            :math:`(*shape, *event)`, of contexts whose batch broadcasts to that shape, and
            `log_prob(x, context)` log densities, given a context for each value.
        context: The contexts, if the module takes them.
        batch_shape: The batch shape; by default that of the contexts.
        validate_args: Whether to check arguments; by default as Pyro is set.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        module: Any,
        context: Any = None,
        batch_shape: torch.Size | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.module, self.context = module, context
        if batch_shape is None:
            batch_shape = batch_of(context, module.context_shape)
        super().__init__(batch_shape, torch.Size(module.event_shape), validate_args=validate_args)

    @property
    def density(self) -> Density:
        """What `log_prob` is."""
        return self.module.density

    @property
    def support(self) -> constraints.Constraint:
        return self.module.support

    @property
    def has_rsample(self) -> bool:
        return self.module.reparameterized

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Any:
        batch = torch.Size(batch_shape)
        try:
            torch.empty(()).expand(self.batch_shape).expand(batch)
        except RuntimeError:
            raise ValueError(
                f"Expected a batch shape to which {tuple(self.batch_shape)} expands, got "
                f"{tuple(batch)}."
            ) from None
        context = expand_context(self.context, self.module.context_shape, batch)
        return type(self)(self.module, context, batch, self._validate_args)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        if not self.has_rsample:
            raise NotImplementedError(
                f"Expected a distribution whose draws have a derivative, got one of a "
                f"{type(self.module).__name__}. Take sample."
            )
        return self.module.draw(torch.Size(sample_shape) + self.batch_shape, self.context)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.module.draw(torch.Size(sample_shape) + self.batch_shape, self.context)

    def widened(self, value: Tensor) -> tuple[Tensor, Any]:
        """Return a value of the right shape, one for each item, and the contexts."""
        check_event(value, self.event_shape)
        batch = value.shape[: value.ndim - len(self.event_shape)]
        try:
            shape = torch.broadcast_shapes(batch, self.batch_shape)
        except RuntimeError:
            raise ValueError(
                f"Expected a value whose batch fits that of the distribution, "
                f"{tuple(self.batch_shape)}, from its context or plate, got {tuple(batch)}."
            ) from None
        context = expand_context(self.context, self.module.context_shape, shape)
        return value.expand(shape + self.event_shape), context

    def inside(self, value: Tensor) -> tuple[Tensor, Any, Tensor | None]:
        """Values with those outside the support replaced, contexts, and what lies inside."""
        wide, context = self.widened(value)
        support, dims = self.support, len(self.event_shape)
        if not support.is_discrete:
            x, ok = mask_outside(wide, support, interior(support), dims)
            return x, context, ok
        if self._validate_args and self.module.strict_support and readable(value):
            check_support(value, support)
        ok = support.check(wide)
        return torch.where(ok.reshape(*ok.shape, *[1] * dims), wide, 0), context, ok

    def log_prob(self, value: Tensor) -> Tensor:
        x, context, inside = self.inside(value)
        log_prob = self.module.log_prob(x, context)
        return log_prob if inside is None else torch.where(inside, log_prob, -torch.inf)

    def elbo(self, value: Tensor, **options: Any) -> Tensor:
        """Return unbiased estimate of the evidence lower bound, where `log_prob` is such a bound.

        Arguments:
            value: The data, with shape :math:`(*, *event)`.
            **options: What `elbo` of the module takes.

        Returns:
            Estimates with shape :math:`(*)`; minus infinity out of the support.
        """
        x, context, inside = self.inside(value)
        bound = self.module.elbo(x, context, **options)
        return bound if inside is None else torch.where(inside, bound, -torch.inf)

    def __repr__(self) -> str:
        return shown(self, self.module)
