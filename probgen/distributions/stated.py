"""What distributions that a module makes for given contexts have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ..core import Density
from ..core.checks import check_event
from ..core.contracts import MadeBy

__all__ = ["ModuleDistribution", "check_support"]


@MadeBy.register
class ModuleDistribution(TorchDistribution):
    """A distribution whose module draws, and says its support, event shape and density.

    Arguments:
        module: The module, with `generate(shape, context)` for draws.
        context: The contexts, with shape :math:`(*, C)`, if the module takes them.
        batch_shape: The batch shape; by default that of the contexts.
        validate_args: Whether to check arguments; by default as Pyro is set.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        module: Any,
        context: Tensor | None = None,
        batch_shape: torch.Size | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.module, self.context = module, context
        if batch_shape is None:
            batch_shape = torch.Size()
            if context is not None:
                batch_shape = context.shape[: context.ndim - module.context_dim]
        super().__init__(batch_shape, torch.Size(module.event_shape), validate_args=validate_args)

    @property
    def density(self) -> Density:
        """What `log_prob` is."""
        return self.module.density

    @property
    def support(self) -> constraints.Constraint:
        return self.module.support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Any:
        batch = torch.Size(batch_shape)
        return type(self)(self.module, self.spread(batch), batch)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            return self.module.generate(shape, self.spread(shape))

    def spread(self, shape: torch.Size) -> Tensor | None:
        """The contexts, one for each item."""
        if self.context is None:
            return None
        return self.context.expand(*shape, *self.context.shape[-self.module.context_dim :])

    def widened(self, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """A value of the right shape, one for each item, and the contexts."""
        check_event(value, self.event_shape)
        batch = value.shape[: value.ndim - len(self.event_shape)]
        shape = torch.broadcast_shapes(batch, self.batch_shape)
        return value.expand(shape + self.event_shape), self.spread(shape)


def check_support(value: Tensor, support: constraints.Constraint) -> None:
    """Raises a ValueError that names a value outside a support."""
    inner = support.base_constraint if isinstance(support, constraints.independent) else support
    inside = inner.check(value)
    if not inside.all():
        wrong = value[~inside].flatten()[0] if inside.shape == value.shape else value[~inside][0]
        raise ValueError(f"Expected values in the support, {support}, got {wrong.tolist()!r:.80}.")
