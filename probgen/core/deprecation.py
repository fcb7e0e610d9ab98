"""Former names of classes, which public modules and checkpoints of earlier versions still know."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

__all__ = ["RENAMED", "former_names"]

RENAMED = {  # by former name
    "Absorbing": "AbsorbingCorruption",
    "Binomial": "BinomialCorruption",
    "Blur": "BlurDegradation",
    "DenseRung": "DenseLatentLayer",
    "DiscretizedGaussian": "GaussianCorruption",
    "Fade": "FadeDegradation",
    "Greedy": "GreedyLayerwise",
    "ImageRung": "ImageLatentLayer",
    "ImprovedCold": "TACoS",
    "Jumps": "ContinuousTimeCorruption",
    "Mask": "MaskDegradation",
    "Merge": "PosteriorUpdate",
    "Pixelate": "PixelateDegradation",
    "PrecisionWeighted": "PrecisionWeightedUpdate",
    "RatioGrid": "LogSNRGrid",
    "Residual": "ResidualUpdate",
    "RhoGrid": "KarrasGrid",
    "Rung": "LatentLayer",
    "Tabulated": "BetaSchedule",
    "Uniform": "UniformCorruption",
}


def former_names(module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module that finds its classes by their former names.

    Arguments:
        module: The name of the module, whose attributes have the new names.

    Returns:
        A function of a name. It raises an AttributeError for any other name, and warns by a
        DeprecationWarning that states the new one.
    """

    def find(name: str) -> Any:
        new = RENAMED.get(name, "")
        if new not in vars(sys.modules[module]):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(
            f"{module}.{name} is now {module}.{new}; the former name goes with version 0.3.",
            DeprecationWarning,
            stacklevel=2,
        )
        return vars(sys.modules[module])[new]

    return find
