"""Recipes of deep energy models, each one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import cross_entropy

from ..core import is_wrapped, register
from ..core.contexts import shape_of, size_of
from ..core.contracts import HasLabels
from ..core.validation import check_event, check_whole
from ..distributions import DiagonalNormal, Tilted
from ..mcmc import Kernel
from ..networks import EnergyNetwork
from ..networks.dense import Activation
from ..objectives import JointEnergy

__all__ = ["EnergyModel", "JointEnergyModel"]


class EnergyModel(Tilted):
    r"""A deep energy model of vectors or images, :math:`p(x) \propto N(x; m, s^2) \, e^{f(x)}`.

    The normal distribution, of the data's mean and width, keeps it a density however the network
    behaves far from the data.

    References:
        | Du & Mordatch, "Implicit generation and modeling with energy-based models", 2019,
          https://arxiv.org/abs/1903.08689

    Arguments:
        features: The number of features, or the shape of an image (channels, height, width).
        context: The number of features of the context, or its shape.
        hidden_features: The width of each hidden layer, or its channels.
        activation: The name of the activation function.
        spectral: Whether the largest singular value of each hidden layer is 1.
        kernel: The kernel that draws; :class:`~probgen.mcmc.MALA` by default.
        steps: The number of steps of a draw.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import probgen as pg
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(300, 2).sign() + 0.2 * torch.randn(300, 2)  # four clusters
        >>> model = EnergyModel(2, hidden_features=(64, 64))
        >>> objective = pg.objectives.NoiseContrastive()
        >>> history = pg.fit(model, x, objective=objective, steps=300, progress=False)
        >>> bool(model().log_ratio(torch.ones(2), torch.zeros(2)) > 1)
        True
    """

    standardize_contexts = True

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        hidden_features: Sequence[int] = (128, 128),
        activation: Activation = "silu",
        spectral: bool = False,
        kernel: Kernel | None = None,
        steps: int = 100,
    ) -> None:
        super().__init__(
            DiagonalNormal(features).requires_grad_(False),
            EnergyNetwork(
                features, size_of(shape_of(context)), hidden_features, activation, spectral=spectral
            ),
            context,
            kernel,
            steps,
        )


@register
class ClassEnergies(nn.Module):
    """The log of a sum over classes, or the term of one.

    Arguments:
        network: A network to a number for each class.
        classes: The number of classes.
    """

    def __init__(self, network: EnergyNetwork, classes: int) -> None:
        super().__init__()
        self.network, self.classes = network, classes

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        logits = self.network(x)
        total = logits.logsumexp(-1)
        if context is None:
            return total
        y = labels(context, self.classes).expand(total.shape)
        chosen = logits.gather(-1, y.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        return torch.where(y < 0, total, chosen)


def labels(context: Tensor, classes: int) -> Tensor:
    """Labels from contexts with shape `(*, 1)`, whole numbers from 0, or -1 where unknown."""
    y = context[..., 0]
    if Distribution._validate_args and y.device.type != "meta" and not is_wrapped(y):
        wrong = (y != y.round()) | (y < -1) | (y >= classes)
        if wrong.any():
            raise ValueError(
                f"Expected labels 0 to {classes - 1}, or -1 where unknown, got "
                f"{float(y[wrong].flatten()[0]):g}."
            )
    return y.long()


@HasLabels.register
class JointEnergyModel(Tilted):
    r"""A classifier that is an energy, :math:`p(x, y) \propto N(x; m, s^2) \, e^{f_y(x)}`.

    The logits :math:`f_y` classify, :math:`p(y \mid x) = \operatorname{softmax}_y f_y(x)`, and the
    log of the sum of their exponentials is an energy of data. Labels are the context, whole numbers
    with shape :math:`(*, 1)`, -1 where unknown: given one, the distribution is that of its class;
    called without, that of all.

    References:
        | Grathwohl et al., "Your classifier is secretly an energy based model and you should treat
          it like one", 2020, https://arxiv.org/abs/1912.03263

    Arguments:
        features: The number of features, or the shape of an image (channels, height, width).
        classes: The number of classes.
        hidden_features: The width of each hidden layer, or its channels.
        activation: The name of the activation function.
        spectral: Whether the largest singular value of each hidden layer is 1.
        kernel: The kernel that draws; :class:`~probgen.mcmc.MALA` by default.
        steps: The number of steps of a draw.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import probgen as pg
        >>> _ = torch.manual_seed(0)
        >>> y = torch.randint(2, (300, 1)).float()
        >>> x = 4 * y - 2 + torch.randn(300, 2)
        >>> model = JointEnergyModel(2, classes=2, hidden_features=(32,))
        >>> history = pg.fit(model, x, context=y, steps=60, lr=1e-2, progress=False)
        >>> float((model.classify(x).logits.argmax(-1) == y[:, 0]).float().mean()) > 0.95
        True
    """

    def __init__(
        self,
        features: int | Sequence[int],
        classes: int,
        hidden_features: Sequence[int] = (128, 128),
        activation: Activation = "silu",
        spectral: bool = False,
        kernel: Kernel | None = None,
        steps: int = 100,
    ) -> None:
        check_whole(2, classes=classes)
        network = EnergyNetwork(
            features, 0, hidden_features, activation, outputs=classes, spectral=spectral
        )
        law = DiagonalNormal(features).requires_grad_(False)
        super().__init__(law, ClassEnergies(network, classes), 1, kernel, steps)
        self.context_optional, self.criterion = True, JointEnergy()

    def logits(self, x: Tensor) -> Tensor:
        r"""Return the logits :math:`f_y(x)` of values, the classes last."""
        check_event(x, self.event_shape)
        energies: Any = self.network
        return energies.network(x)

    def classify(self, x: Tensor) -> dist.Categorical:
        r"""Return the distribution of the label given values with shape :math:`(*, event)`."""
        return dist.Categorical(logits=self.logits(x))

    def label_loss(self, x: Tensor, context: Tensor | None) -> Tensor:
        r"""Return the losses :math:`-\log p(y \mid x)`, zero where the label is unknown."""
        logits = self.logits(x)
        if context is None:
            return logits.new_zeros(logits.shape[:-1])
        y = labels(context, logits.shape[-1])
        losses = cross_entropy(logits.flatten(0, -2), y.clamp_min(0).flatten(), reduction="none")
        return losses.reshape(y.shape) * (y >= 0)
