r"""Objectives of cold diffusions.

.. math:: \mathbb{E}_s \, \| x - R(D(x, s), s) \|_1 \qquad \text{or} \qquad
    \mathbb{E}_s \, \| x - R(D(x, s), s) \|_2^2,

over levels :math:`s = 1, \dots, S`, one for each item, those of a batch evenly spread.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.arguments import record
from ..core.bijector import name_of
from ..core.contracts import HasDegradation
from ..core.registry import RECORDS
from .base import Objective
from .denoising import spread

__all__ = ["Restoration"]


@record
class Restoration(Objective):
    """The error of a restorer, at one level for each item.

    References:
        | Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise (Bansal et al., 2022)
        | https://arxiv.org/abs/2208.09392

    Arguments:
        error: Of what errors the sum is: `"absolute"`, which keeps edges, or `"square"`, whose best
            restorer is the mean.

    Raises:
        ValueError: If the error is unknown.
        TypeError: When called, if the model is no cold diffusion.

    Example:
        >>> import probgen as pg, torch
        >>> blur = pg.diffusion.BlurDegradation((8, 8))
        >>> model = pg.models.ColdDiffusion(64, blur, hidden_features=(16,))
        >>> Restoration()(model, torch.randn(5, 64)).shape
        torch.Size([5])
    """

    error: str = "absolute"

    requires = (HasDegradation,)

    def __post_init__(self) -> None:
        if self.error not in ("absolute", "square"):
            raise ValueError(f"Expected `error` 'absolute' or 'square', got {self.error!r:.80}.")

    def losses(self, module: HasDegradation, x: Tensor, context: Any) -> Tensor:
        module.check_context(context)
        degradation = module.degradation
        s = 1 + (spread(len(x), x) * degradation.levels).floor().long()
        s = s.clamp_max(degradation.levels)
        error = (x - module.restore(degradation(x, s), s, context)).flatten(1)
        return (error.abs() if self.error == "absolute" else error.square()).sum(-1)


RECORDS[name_of(Restoration)] = Restoration  # so that a diffusion that is given one can be saved
