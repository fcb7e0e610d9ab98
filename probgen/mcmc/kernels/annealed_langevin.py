r"""Annealed Langevin dynamics over a ladder of noise.

With scores :math:`s(x, \sigma)` of the data convolved with :math:`\mathcal{N}(0, \sigma^2 I)` at
levels :math:`\sigma_1 > \dots > \sigma_K`, each level takes :math:`n` steps

.. math:: x' = x + \epsilon_k s(x, \sigma_k) + \sqrt{2 \epsilon_k} \, \xi,
    \qquad \epsilon_k = \epsilon \sigma_k^2,

so that the ratio of step to noise is the same at all levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...core.arguments import record
from .base import Info, Kernel, check_positive, over

__all__ = ["AnnealedState", "AnnealedULA"]

NoisyScore = Callable[[Tensor, Tensor], Tensor]


class AnnealedState(NamedTuple):
    """The state of :class:`AnnealedULA`.

    Arguments:
        position: The positions :math:`x`, with shape :math:`(C, *)`.
        taken: The number of steps taken, which chooses the level.
    """

    position: Tensor
    taken: int


@record
class AnnealedULA(Kernel):
    r"""Annealed Langevin dynamics: unadjusted, with a score for each level of noise.

    References:
        Song & Ermon, "Generative modeling by estimating gradients of the data distribution", 2019,
        https://arxiv.org/abs/1907.05600

    Arguments:
        sigmas: The levels of noise, falling, with shape :math:`(K)`.
        steps: The number of steps :math:`n` per level.
        step_size: The step :math:`\epsilon`, in units of the variance of the level's noise.

    Example:
        Data are one point at 3, so the score at a level is known:

        >>> _ = torch.manual_seed(0)
        >>> kernel = AnnealedULA(torch.logspace(1, -2, 20), steps=10)
        >>> x = kernel.sample(10 * torch.randn(500, 1), lambda x, sigma: (3 - x) / sigma**2)
        >>> abs(float(x.mean()) - 3) < 0.01 and float(x.std()) < 0.02
        True
    """

    sigmas: Tensor
    steps: int = 100
    step_size: float = 0.1

    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_positive("steps", self.steps)
        if self.sigmas.ndim != 1 or len(self.sigmas) == 0:
            shape = tuple(self.sigmas.shape)
            raise ValueError(f"Expected `sigmas` with shape (K,), got {shape}.")

    @property
    def length(self) -> int:
        """The number of steps of all levels."""
        return len(self.sigmas) * self.steps

    def init(self, position: Tensor, score: NoisyScore) -> AnnealedState:  # type: ignore[override]
        return AnnealedState(position, 0)

    def step(  # type: ignore[override]
        self, state: AnnealedState, score: NoisyScore
    ) -> tuple[AnnealedState, Info]:
        """Take one step at the level that is due; after the last level it stays there."""
        x, taken = state
        sigma = self.sigmas[min(taken // self.steps, len(self.sigmas) - 1)]
        size = self.step_size * sigma**2
        proposal = x + size * score(x, sigma) + (2 * size).sqrt() * torch.randn_like(x)
        kept = torch.isfinite(proposal).flatten(1).all(-1)
        new = torch.where(over(kept, x), proposal, x)
        return AnnealedState(new, taken + 1), Info(kept.to(x.dtype), kept, ~kept)

    def sample(self, position: Tensor, score: NoisyScore) -> Tensor:
        """Take the steps of all levels.

        Arguments:
            position: The first positions, of the width of the first noise, with shape
                :math:`(C, *)`.
            score: Maps positions and a level, a number, to scores with shape :math:`(C, *)`.

        Returns:
            The last positions, with shape :math:`(C, *)`.
        """
        state = self.init(position, score)
        with torch.no_grad():
            for _ in range(self.length):
                state, _ = self.step(state, score)
        return state.position
