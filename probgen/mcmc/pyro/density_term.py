"""A log density of all chains, or a part of one: the prior, or the likelihood."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .evaluation import Evaluation
from .model_run import unchecked

__all__ = ["DensityTerm"]


class DensityTerm:
    """A log density, or a part of one, of all chains.

    Arguments:
        potential: The log density it is of.
        kind: A name for it.
        function: The part, of one chain.
    """

    def __init__(
        self, potential: Evaluation, kind: str, function: Callable[[Tensor], Tensor]
    ) -> None:
        self.potential, self.kind, self.function = potential, kind, function
        self.sloped = False  # whether gradients were asked for, and values come with them

    def values(self, x: Tensor) -> dict[str, Tensor]:
        return {"value": self.potential.map(self.function, x)}

    def slopes(self, x: Tensor) -> dict[str, Tensor]:
        return self.potential.slopes(self.function, x)

    def find(self, x: Tensor, *names: str) -> dict[str, Tensor]:
        """Values, gradients or both, of which one recording gives each alone."""
        self.potential.check_shape(x)
        self.sloped = self.sloped or "gradient" in names
        if self.sloped:
            return self.potential.evaluate(f"{self.kind}'", self.slopes, x, *names)
        return self.potential.evaluate(self.kind, self.values, x, *names)

    def __call__(self, x: Tensor) -> Tensor:
        """Its values at positions with shape :math:`(C, D)`, with shape :math:`(C)`."""
        if torch.is_grad_enabled() and x.requires_grad:
            self.potential.check_shape(x)
            with unchecked():
                return self.potential.map(self.function, x)
        return self.find(x, "value")["value"]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Its values and gradients at positions with shape :math:`(C, D)`."""
        found = self.find(x, "value", "gradient")
        return found["value"], found["gradient"]

    def gradient(self, x: Tensor) -> Tensor:
        """Its gradients alone."""
        return self.find(x, "gradient")["gradient"]
