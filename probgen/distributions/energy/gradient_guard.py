r"""A guard that raises where a gradient of an unnormalised density would be wrong.

Of :math:`\log p_\theta(x \mid c) = f_\theta(x, c) - \log Z_\theta(c)` only :math:`f` is known, and
only its gradient in :math:`x` is that of the density.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...core.contexts import map_context

__all__ = ["guarded"]


class GradientGuard(torch.autograd.Function):
    """The identity, with a derivative that raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(kind: str, *parameters: Tensor) -> tuple[Tensor, ...]:
        return tuple(p.view_as(p) for p in parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.kind = inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(ctx.kind)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        raise RuntimeError(ctx.kind)


FENCED = (
    "The log density of this {} is known up to a constant that depends on its parameters, so its "
    "gradient in them is not that of a likelihood. Train it by contrastive divergence, "
    "pg.fit(module, data, objective=pg.objectives.ContrastiveDivergence()), or .freeze() it."
)
FENCED_CONTEXT = (
    "The log density of this {} given a context is known up to a constant that depends on the "
    "context, so its gradient in the context is not that of a density. Infer the context with a "
    "model that has one, such as a flow."
)


class LogDensityCall(nn.Module):
    """A module whose call is another's log density."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module

    def forward(self, x: Tensor, context: Any) -> Tensor:
        return self.module.log_density(x, context)


def guarded(module: Any, x: Tensor, context: Any) -> Tensor:
    """Return the log density, through which no gradient reaches parameters or contexts."""
    if not torch.is_grad_enabled():
        return module.log_density(x, context)
    name = type(module).__name__
    if context is not None:
        words = FENCED_CONTEXT.format(name)
        context = map_context(
            lambda c: GradientGuard.apply(words, c)[0] if c.requires_grad else c, context
        )
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if not trained:
        return module.log_density(x, context)
    held = GradientGuard.apply(FENCED.format(name), *trained.values())
    swapped = {f"module.{n}": p for n, p in zip(trained, held)}
    return functional_call(LogDensityCall(module), swapped, (x, context))
