"""Stacks of transforms of which flows are built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributions import ReshapeTransform, Transform

from ..core import Bijector, Elementwise, LazyTransform
from ..core.validation import check_whole
from ..distributions.parametric.base import shape_of
from ..networks.dense import Activation
from ..transforms import Autoregressive, Coupling, Permutation, Standardize

__all__ = ["autoregressions", "couplings", "to_data", "vector"]


def vector(features: int | Sequence[int]) -> int:
    """Return the number of features of a vector, or of an array flattened."""
    return math.prod(shape_of(features))


def to_data(features: int | Sequence[int]) -> list[LazyTransform | Transform]:
    """From standardised vectors to data: their scale, and their shape if that is no vector's."""
    shape = shape_of(features)
    size = math.prod(shape)
    if len(shape) == 1:
        return [Standardize(size)]
    return [Standardize(size, "shared"), ReshapeTransform(torch.Size([size]), shape)]


def couplings(
    features: int,
    univariate: type[Elementwise],
    context: Any,
    transforms: int,
    hidden_features: Sequence[int],
    activation: Activation,
    randperm: bool,
    **options: Any,
) -> list[LazyTransform | Bijector]:
    """Couplings that transform either half in turn, over new halves each time if asked.

    Their density needs no inverse of the univariate transform.
    """
    check_whole(1, transforms=transforms)
    half = features // 2
    parts: list[LazyTransform | Bijector] = []
    for i in range(transforms):
        if randperm and i > 0:
            parts.append(Permutation(torch.randperm(features)))
        coupling = Coupling(
            features,
            univariate,
            context,
            half if i % 2 == 0 or features == 1 else half - features,
            hidden_features,
            activation,
            **options,
        )
        parts.append(coupling.inv)
    return parts


def autoregressions(
    features: int,
    univariate: type[Elementwise],
    context: Any,
    transforms: int,
    hidden_features: Sequence[int],
    activation: Activation,
    randperm: bool,
    **options: Any,
) -> list[LazyTransform | Bijector]:
    """Autoregressive transforms, from data to noise, in alternating or random orders."""
    check_whole(1, transforms=transforms)
    parts: list[LazyTransform | Bijector] = []
    for i in range(transforms):
        if randperm and i > 0:
            parts.append(Permutation(torch.randperm(features)))
        transform = Autoregressive(
            features,
            univariate,
            context,
            hidden_features,
            activation,
            order=tuple(range(features))[::-1] if i % 2 and not randperm else None,
            **options,
        )
        parts.append(transform.inv)
    return parts
