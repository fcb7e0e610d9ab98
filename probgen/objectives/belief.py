r"""Objectives of deep belief networks.

Greedy training fits one pair of layers after the other, each as a restricted Boltzmann machine, to
what goes up from the data. The up-down algorithm is wake-sleep with a machine on top: what goes up
from the data teaches the way down, :math:`-\log p(h_{l-1} \mid h_l)`, the top machine takes a step
of contrastive divergence, and what comes down from its chains teaches the way up,
:math:`-\log q(h_l \mid h_{l-1})`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.arguments import record
from ..core.contracts import HasLayers
from .base import Objective
from .contrastive import ContrastiveDivergence
from .variational import ELBO

__all__ = ["GreedyLayerwise", "UpDown"]

PERSISTENT, FEW = ContrastiveDivergence(persistent=True), ContrastiveDivergence(steps=5)


@record
class GreedyLayerwise(Objective):
    """One layer after the other: equal parts of the training go to each machine.

    References:
        | Hinton, Osindero & Teh, "A fast learning algorithm for deep belief nets", 2006,
          https://doi.org/10.1162/neco.2006.18.7.1527

    Arguments:
        objective: That of each machine; by default persistent contrastive divergence.
        fraction: The fraction of the training that is over, which :func:`probgen.fit` sets.

    Raises:
        TypeError: When called, if the model is no stack of machines.

    Example:
        >>> import probgen as pg
        >>> GreedyLayerwise()(pg.models.DeepBeliefNetwork([6, 4, 3]), torch.ones(5, 6)).shape
        torch.Size([5])
    """

    objective: Any = PERSISTENT
    fraction: float = 0.0

    requires = (HasLayers,)
    partial: ClassVar[bool] = True

    def held_out(self, module: Any) -> Objective:
        """Nothing compares held-out data while layers are not trained yet.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Expected no `validation`, since GreedyLayerwise trains one layer after the other, and "
            "the best parameters are those of the end."
        )

    def at(self, fraction: float) -> GreedyLayerwise:
        """Return the objective after a fraction of the training."""
        return replace(self, fraction=fraction)

    def losses(self, module: HasLayers, x: Tensor, context: Any) -> Tensor:
        layer = min(int(self.fraction * len(module.machines)), len(module.machines) - 1)
        with torch.no_grad():
            h = x
            for k in range(layer):
                if module.training:  # the way up is that of the machine until it is trained apart
                    module.up[k].copy_(module.machines[k].weight)
                h = module.upward(k + 1, h).sample()
        return self.objective(module.machines[layer], h)


@record
class UpDown(Objective):
    """The up-down algorithm, contrastive wake-sleep, which trains all layers together.

    References:
        | Hinton, Osindero & Teh, "A fast learning algorithm for deep belief nets", 2006,
          https://doi.org/10.1162/neco.2006.18.7.1527

    Arguments:
        objective: That of the top machine; by default contrastive divergence.

    Raises:
        TypeError: When called, if the model is no stack of machines.

    Example:
        >>> import probgen as pg
        >>> UpDown()(pg.models.DeepBeliefNetwork([6, 4, 3]), torch.ones(5, 6)).shape
        torch.Size([5])
    """

    objective: ContrastiveDivergence = FEW

    requires = (HasLayers,)

    def held_out(self, module: Any) -> Objective:
        """Return the evidence lower bound compares held-out data."""
        return ELBO()

    def losses(self, module: HasLayers, x: Tensor, context: Any) -> Tensor:
        with torch.no_grad():
            layers = module.infer(x)
            dream = module.top.advance(layers[-1], None, self.objective.steps)
            dreams = [dream]
            for layer in range(len(module.machines) - 1, 0, -1):
                dreams.append(module.downward(layer, dreams[-1]).sample())
            dreams.reverse()
        losses = self.objective(module.top, layers[-1])
        for layer in range(1, len(module.machines)):
            losses = losses - module.downward(layer, layers[layer]).log_prob(layers[layer - 1])
            losses = losses - module.upward(layer, dreams[layer - 1]).log_prob(dreams[layer])
        return losses
