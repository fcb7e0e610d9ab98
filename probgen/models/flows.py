"""Recipes of normalising flows, each one call.

All end in :class:`~probgen.transforms.Standardize` (except the circular one), so that data may
come on any scale, and all have a standard normal base.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core import LazyTransform
from ..distributions import Flow, StandardNormal, UniformAngles
from ..networks.dense import Activation
from ..transforms import Affine, CircularRationalQuadratic, Learned, RationalQuadratic, Shift
from .stacks import autoregressions, couplings, to_data, vector

__all__ = ["IAF", "MAF", "NICE", "NSF", "CircularNSF", "RealNVP"]


class NICE(Flow):
    r"""Additive couplings, then a scale per feature.

    References:
        | NICE: Non-linear Independent Components Estimation (Dinh et al., 2014)
        | https://arxiv.org/abs/1410.8516

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
        transforms: The number of couplings.
        hidden_features: The width of each hidden layer of each coupling.
        activation: The name of the activation function.
        randperm: Whether features are shuffled between couplings.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import probgen as pg, torch
        >>> _ = torch.manual_seed(0)
        >>> flow = NICE(2, transforms=2, hidden_features=(16,))
        >>> history = pg.fit(flow, 5 + 2 * torch.randn(200, 2), steps=20, progress=False)
        >>> flow().sample((3,)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        transforms: int = 4,
        hidden_features: Sequence[int] = (128, 128),
        activation: Activation = "relu",
        randperm: bool = False,
    ) -> None:
        size = vector(features)
        parts = couplings(size, Shift, context, transforms, hidden_features, activation, randperm)
        super().__init__([Learned(Affine, size), *parts, *to_data(features)], StandardNormal(size))


class RealNVP(Flow):
    r"""Affine couplings.

    References:
        | Density Estimation Using Real NVP (Dinh et al., 2016)
        | https://arxiv.org/abs/1605.08803

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
        transforms: The number of couplings.
        hidden_features: The width of each hidden layer of each coupling.
        activation: The name of the activation function.
        randperm: Whether features are shuffled between couplings.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import probgen as pg, torch
        >>> _ = torch.manual_seed(0)
        >>> flow = RealNVP(2, transforms=2, hidden_features=(16,))
        >>> history = pg.fit(flow, 5 + 2 * torch.randn(200, 2), steps=20, progress=False)
        >>> flow().sample((3,)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        transforms: int = 8,
        hidden_features: Sequence[int] = (128, 128),
        activation: Activation = "relu",
        randperm: bool = False,
    ) -> None:
        size = vector(features)
        parts = couplings(size, Affine, context, transforms, hidden_features, activation, randperm)
        super().__init__([*parts, *to_data(features)], StandardNormal(size))


class MAF(Flow):
    r"""Affine autoregressive transforms from data to noise: a density in one pass.

    References:
        | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
        transforms: The number of transforms.
        hidden_features: The width of each hidden layer of each transform.
        activation: The name of the activation function.
        randperm: Whether the order between transforms is random rather than reversed.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import probgen as pg, torch
        >>> _ = torch.manual_seed(0)
        >>> flow = MAF(2, transforms=2, hidden_features=(16,))
        >>> history = pg.fit(flow, 5 + 2 * torch.randn(200, 2), steps=20, progress=False)
        >>> flow().sample((3,)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        transforms: int = 5,
        hidden_features: Sequence[int] = (128, 128),
        activation: Activation = "relu",
        randperm: bool = False,
    ) -> None:
        size = vector(features)
        parts = autoregressions(
            size, Affine, context, transforms, hidden_features, activation, randperm
        )
        super().__init__([*parts, *to_data(features)], StandardNormal(size))


class IAF(Flow):
    r"""Affine autoregressive transforms from noise to data: a draw in one pass.

    References:
        | Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
        transforms: The number of transforms.
        hidden_features: The width of each hidden layer of each transform.
        activation: The name of the activation function.
        randperm: Whether the order between transforms is random rather than reversed.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import probgen as pg, torch
        >>> _ = torch.manual_seed(0)
        >>> flow = IAF(2, transforms=2, hidden_features=(16,))
        >>> history = pg.fit(flow, 5 + 2 * torch.randn(200, 2), steps=20, progress=False)
        >>> flow().sample((3,)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        transforms: int = 5,
        hidden_features: Sequence[int] = (128, 128),
        activation: Activation = "relu",
        randperm: bool = False,
    ) -> None:
        size = vector(features)
        parts = autoregressions(
            size, Affine, context, transforms, hidden_features, activation, randperm
        )
        parts = [p.inv if isinstance(p, LazyTransform) else p for p in parts]
        super().__init__([*parts, *to_data(features)], StandardNormal(size))


class NSF(Flow):
    r"""Neural spline flow: rational-quadratic splines, under couplings or autoregressive.

    The splines act within :math:`[-B, B]` of standardised data and leave the rest as it is.

    References:
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032

    Arguments:
        features: The number of features :math:`D`, or the shape of an event.
        context: The number of features :math:`C` of the context, or its shape.
        transforms: The number of transforms.
        hidden_features: The width of each hidden layer of each transform.
        bins: The number of bins :math:`K` of each spline.
        bound: The bound :math:`B`, in standard deviations of the data.
        autoregressive: Whether transforms are autoregressive rather than couplings: slower to
            sample, more flexible.
        activation: The name of the activation function.
        randperm: Whether features are shuffled between transforms.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import probgen as pg, torch
        >>> _ = torch.manual_seed(0)
        >>> flow = NSF(2, transforms=2, hidden_features=(16,))
        >>> history = pg.fit(flow, 5 + 2 * torch.randn(200, 2), steps=20, progress=False)
        >>> flow().sample((3,)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        transforms: int = 5,
        hidden_features: Sequence[int] = (128, 128),
        bins: int = 8,
        bound: float = 5.0,
        autoregressive: bool = False,
        activation: Activation = "relu",
        randperm: bool = False,
    ) -> None:
        build = autoregressions if autoregressive else couplings
        size = vector(features)
        parts = build(
            size,
            RationalQuadratic,
            context,
            transforms,
            hidden_features,
            activation,
            randperm,
            bins=bins,
            bound=bound,
        )
        super().__init__([*parts, *to_data(features)], StandardNormal(size))


class CircularNSF(Flow):
    r"""Neural spline flow of angles in :math:`[-\pi, \pi]`, with a uniform base.

    Networks read the cosine and sine of each angle, so the density is continuous around the
    circle.

    References:
        | Normalizing Flows on Tori and Spheres (Rezende et al., 2020)
        | https://arxiv.org/abs/2002.02428

    Arguments:
        features: The number of angles :math:`D`.
        context: The number of features :math:`C` of the context.
        transforms: The number of transforms.
        hidden_features: The width of each hidden layer of each transform.
        bins: The number of bins :math:`K` of each spline.
        autoregressive: Whether transforms are autoregressive rather than couplings.
        activation: The name of the activation function.
        randperm: Whether angles are shuffled between transforms.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import probgen as pg, torch
        >>> _ = torch.manual_seed(0)
        >>> flow = CircularNSF(2, transforms=2, hidden_features=(16,))
        >>> history = pg.fit(flow, torch.randn(200, 2).clamp(-3, 3), steps=20, progress=False)
        >>> flow().sample((3,)).abs().max() <= torch.pi
        tensor(True)
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        transforms: int = 5,
        hidden_features: Sequence[int] = (128, 128),
        bins: int = 8,
        autoregressive: bool = False,
        activation: Activation = "relu",
        randperm: bool = False,
    ) -> None:
        build = autoregressions if autoregressive else couplings
        size = vector(features)
        parts = build(
            size,
            CircularRationalQuadratic,
            context,
            transforms,
            hidden_features,
            activation,
            randperm,
            bins=bins,
        )
        super().__init__([*parts, *to_data(features)[1:]], UniformAngles(size))
