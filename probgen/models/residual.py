"""Recipes of residual flows: planar, radial and Sylvester, from noise to data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.distributions import Transform

from ..core import Bijector, LazyTransform
from ..core.validation import check_whole
from ..distributions import Flow, StandardNormal
from ..transforms import Learned, Planar, Radial, Sylvester
from .stacks import to_data, vector

__all__ = ["PlanarFlow", "RadialFlow", "SylvesterFlow"]


def residuals(
    bijector: type[Bijector],
    features: int | Sequence[int],
    context: Any,
    transforms: int,
    hidden_features: Sequence[int],
    **options: Any,
) -> list[LazyTransform | Transform]:
    """Return transforms from noise to data, then the scale and shape of the data."""
    check_whole(1, transforms=transforms)
    size = vector(features)
    parts: list[LazyTransform | Transform] = [
        Learned(bijector, size, context, hidden_features, **options) for _ in range(transforms)
    ]
    return [*parts, *to_data(features)]


class PlanarFlow(Flow):
    r"""Planar transforms from noise to data, which scores any value by root-finding.

    References:
        | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015)
        | https://arxiv.org/abs/1505.05770

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
        transforms: The number of transforms.
        hidden_features: The width of each hidden layer of the context's networks.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import probgen as pg, torch
        >>> _ = torch.manual_seed(0)
        >>> flow = PlanarFlow(2, transforms=2)
        >>> history = pg.fit(flow, 5 + 2 * torch.randn(200, 2), steps=20, progress=False)
        >>> flow().log_prob(torch.tensor([20.0, -20.0])).isfinite()
        tensor(True)
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        transforms: int = 8,
        hidden_features: Sequence[int] = (64, 64),
    ) -> None:
        parts = residuals(Planar, features, context, transforms, hidden_features)
        super().__init__(parts, StandardNormal(vector(features)))


class RadialFlow(Flow):
    r"""Radial transforms from noise to data, which scores any value in closed form.

    References:
        | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015)
        | https://arxiv.org/abs/1505.05770

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
        transforms: The number of transforms.
        hidden_features: The width of each hidden layer of the context's networks.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import probgen as pg, torch
        >>> _ = torch.manual_seed(0)
        >>> flow = RadialFlow(2, transforms=2)
        >>> history = pg.fit(flow, 5 + 2 * torch.randn(200, 2), steps=20, progress=False)
        >>> flow().log_prob(torch.tensor([20.0, -20.0])).isfinite()
        tensor(True)
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        transforms: int = 8,
        hidden_features: Sequence[int] = (64, 64),
    ) -> None:
        parts = residuals(Radial, features, context, transforms, hidden_features)
        super().__init__(parts, StandardNormal(vector(features)))


class SylvesterFlow(Flow):
    r"""Sylvester transforms from noise to data, which scores any value by root-finding.

    References:
        | Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018)
        | https://arxiv.org/abs/1803.05649

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
        transforms: The number of transforms.
        hidden_features: The width of each hidden layer of the context's networks.
        width: The number :math:`M` of directions, all :math:`D` by default.
        reflections: The number of Householder reflections; 0 for the triangular transform.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import probgen as pg, torch
        >>> _ = torch.manual_seed(0)
        >>> flow = SylvesterFlow(2, transforms=2, reflections=2)
        >>> history = pg.fit(flow, 5 + 2 * torch.randn(200, 2), steps=20, progress=False)
        >>> flow().log_prob(torch.tensor([20.0, -20.0])).isfinite()
        tensor(True)
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        transforms: int = 4,
        hidden_features: Sequence[int] = (64, 64),
        width: int | None = None,
        reflections: int = 4,
    ) -> None:
        size = vector(features)
        m = size if width is None else width
        if not 1 <= m <= size:
            raise ValueError(f"Expected `width` between 1 and {size}, got {width}.")
        parts = residuals(
            Sylvester,
            features,
            context,
            transforms,
            hidden_features,
            width=m,
            reflections=reflections,
        )
        super().__init__(parts, StandardNormal(vector(features)))
