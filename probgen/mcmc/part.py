"""A log density of all chains, or a part of one: the prior, or the likelihood."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .place import unchecked

if TYPE_CHECKING:
    from .potential import Potential

__all__ = ["Part"]


class Part:
    """A log density, or a part of one, of all chains.

    Arguments:
        potential: The log density it is of.
        kind: A name for it.
        function: The part, of one chain.
    """

    def __init__(
        self, potential: Potential, kind: str, function: Callable[[Tensor], Tensor]
    ) -> None:
        self.potential, self.kind, self.function = potential, kind, function
        self.both = torch.func.grad_and_value(function)
        self.slope = torch.func.grad(function)

    def __call__(self, x: Tensor) -> Tensor:
        """Its values at positions with shape :math:`(C, D)`, with shape :math:`(C)`."""
        self.potential.check_shape(x)
        if torch.is_grad_enabled() and x.requires_grad:
            with unchecked():
                return self.potential.map(self.function, x)
        return self.potential.evaluate(self.kind, self.function, x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Its values and gradients at positions with shape :math:`(C, D)`."""
        self.potential.check_shape(x)
        gradient, value = self.potential.evaluate(f"{self.kind}'", self.both, x)
        return value, gradient

    def gradient(self, x: Tensor) -> Tensor:
        """Its gradients alone."""
        self.potential.check_shape(x)
        return self.potential.evaluate(f"{self.kind}''", self.slope, x)
