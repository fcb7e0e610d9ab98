"""Recipes of diffusions of discrete data, each one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core import DataDependentNetwork
from ..core.contexts import shape_of, size_of
from ..core.validation import check_whole
from ..diffusion import (
    AbsorbingCorruption,
    BinomialCorruption,
    Corruption,
    GaussianCorruption,
    UniformCorruption,
)
from ..diffusion.discrete.corruptions import equal
from ..distributions import DiscreteDiffusion, JumpDiffusion
from ..distributions.parametric.base import weighted_mean
from ..networks import TimeMLP

__all__ = ["CTMC", "D3PM", "StateMLP"]

Named = Literal["absorbing", "binomial", "gaussian", "uniform"]
CORRUPTIONS: dict[str, Callable[[int, int], Corruption]] = {
    "absorbing": AbsorbingCorruption,
    "binomial": BinomialCorruption,
    "gaussian": GaussianCorruption,
    "uniform": UniformCorruption,
}
RARE = 0.5  # what is added to the count of each class at the start


class StateMLP(DataDependentNetwork):
    r"""A residual perceptron of states, a step and a context, to the logits of the data.

    It reads which state each feature is in. To its outputs, one for each feature and class, is
    added :math:`\log q(x_t \mid x_0)`, so that it says what the others tell of a feature: with
    outputs that are the logs of shares of classes the denoiser is that of independent features, and
    it starts there.

    Arguments:
        features: The number of features :math:`D`.
        corruption: The corruption.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each block, all equal.

    Raises:
        ValueError: If a size is not positive, or the widths differ.

    Example:
        >>> network = StateMLP(3, AbsorbingCorruption(2, steps=10), hidden_features=(16,))
        >>> x, t = torch.tensor([[0, 1, 2]]), torch.tensor([5])
        >>> network(x, t).softmax(-1)  # known, known and masked
        tensor([[[1.0000, 0.0000],
                 [0.0000, 1.0000],
                 [0.5000, 0.5000]]], grad_fn=<SoftmaxBackward0>)
    """

    def __init__(
        self,
        features: int,
        corruption: Corruption,
        context: int = 0,
        hidden_features: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__()
        check_whole(1, features=features)
        self.features, self.corruption = features, corruption
        self.body = TimeMLP(features * corruption.states, context, hidden_features)

    def set_from_data(self, x: Tensor, weights: Tensor | None, *options: Any) -> None:
        """Start from the fractions of classes in data with shape :math:`(N, D)`."""
        classes = torch.arange(self.corruption.classes, device=x.device)
        bias = self.body.last.bias.view(self.features, -1)
        found = (x.long().unsqueeze(-1) == classes).to(bias.dtype)
        count = len(x) * weighted_mean(found, weights) + RARE
        bias[:, : len(classes)] = (count / count.sum(-1, keepdim=True)).log()

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Map states with shape :math:`(*, D)` at steps with shape :math:`(*)` to logits."""
        like = self.body.last.bias
        seen = equal(x, self.corruption.states).to(like.dtype).flatten(-2)
        time = 20 * t.to(like.dtype) / self.corruption.steps - 10  # as wide as a log of ratios
        out = self.body(seen, time, context).unflatten(-1, (self.features, -1))
        return out[..., : self.corruption.classes] + self.corruption.log_seen(x, t, like)


def corruption_of(
    corruption: Named | Corruption, features: int, classes: int, steps: int | None
) -> Corruption:
    """Return the corruption that a recipe is given, by name or as one."""
    check_whole(1, features=features)
    check_whole(2, classes=classes)
    if isinstance(corruption, Corruption):
        if steps is not None or corruption.classes != classes:
            raise ValueError(
                f"Expected a `corruption` of {classes} classes, and no `steps` besides, got "
                f"one of {corruption.classes} and steps={steps}."
            )
        return corruption
    if corruption not in CORRUPTIONS:
        raise ValueError(
            f"Expected `corruption` among {sorted(CORRUPTIONS)}, or a Corruption, got "
            f"{corruption!r:.80}."
        )
    return CORRUPTIONS[corruption](classes, 100 if steps is None else steps)


class D3PM(DiscreteDiffusion):
    r"""The discrete denoising diffusion probabilistic model of vectors of classes or levels.

    References:
        | Structured Denoising Diffusion Models in Discrete State-Spaces (Austin et al., 2021)
        | https://arxiv.org/abs/2107.03006

    Arguments:
        features: The number of features :math:`D`.
        classes: The number :math:`K` of classes or levels of each, numbered from 0.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each block of the network.
        steps: The number :math:`T` of steps of a corruption given by name, 100 by default.
        corruption: How data are corrupted: "absorbing", "uniform", "gaussian" or "binomial" (for
            levels), or a corruption.
        network: Another network, from states, steps and contexts to logits with shape
            :math:`(*, D, K)`.

    Raises:
        ValueError: If a size is impossible, or `corruption` unknown or of other classes.

    Example:
        >>> import probgen as pg
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randint(0, 3, (200, 1)).expand(-1, 2)  # two features that agree
        >>> model = D3PM(2, classes=3, hidden_features=(32,), steps=20)
        >>> history = pg.fit(model, x, steps=200, lr=1e-2, progress=False)
        >>> drawn = model.freeze()().sample((500,))
        >>> float((drawn[:, 0] == drawn[:, 1]).float().mean()) > 0.9
        True
    """

    def __init__(
        self,
        features: int,
        classes: int = 2,
        context: Any = 0,
        hidden_features: Sequence[int] = (128, 128),
        steps: int | None = None,
        corruption: Named | Corruption = "absorbing",
        network: nn.Module | None = None,
    ) -> None:
        corruption = corruption_of(corruption, features, classes, steps)
        if network is None:
            count = size_of(shape_of(context))
            network = StateMLP(features, corruption, count, hidden_features)
        super().__init__(network, corruption, features, context)


class CTMC(JumpDiffusion):
    r"""A diffusion of vectors of classes or levels in continuous time, by a Markov chain.

    It differs from :class:`D3PM` in its bound, which is tight for an exact denoiser however the
    features depend on one another, and in that its draws may take any number of steps.

    References:
        | A Continuous Time Framework for Discrete Denoising Models (Campbell et al., 2022)
        | https://arxiv.org/abs/2205.14987

    Arguments:
        features: The number of features :math:`D`.
        classes: The number :math:`K` of classes or levels of each, numbered from 0.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each block of the network.
        steps: The time :math:`T` of a corruption given by name, and the number of steps that a
            draw takes, 100 by default.
        corruption: How data are corrupted: "absorbing", "uniform" or "binomial" (for levels), or a
            corruption by jumps.
        network: Another network, from states, times and contexts to logits with shape
            :math:`(*, D, K)`.

    Raises:
        ValueError: If a size is impossible, or `corruption` unknown or of other classes.
        TypeError: If the corruption has no jumps.

    Example:
        >>> import probgen as pg
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randint(0, 3, (200, 1)).expand(-1, 2)  # two features that agree
        >>> model = CTMC(2, classes=3, hidden_features=(32,), steps=20)
        >>> history = pg.fit(model, x, steps=200, lr=1e-2, progress=False)
        >>> drawn = model.freeze()().sample((500,))
        >>> float((drawn[:, 0] == drawn[:, 1]).float().mean()) > 0.9
        True
    """

    def __init__(
        self,
        features: int,
        classes: int = 2,
        context: Any = 0,
        hidden_features: Sequence[int] = (128, 128),
        steps: int | None = None,
        corruption: Named | Corruption = "absorbing",
        network: nn.Module | None = None,
    ) -> None:
        jumps = corruption_of(corruption, features, classes, steps)
        if network is None:
            count = size_of(shape_of(context))
            network = StateMLP(features, jumps, count, hidden_features)
        super().__init__(network, jumps, features, context)
