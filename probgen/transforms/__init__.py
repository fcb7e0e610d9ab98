"""Bijective transforms: bijectors, given tensors, and lazy ones, given sizes."""

from ..core import Bijector, Elementwise, Inverse, LazyTransform
from .autoregressive import Autoregressive, AutoregressiveTransform
from .continuous import Continuous, ContinuousTransform
from .coupling import Coupling, CouplingTransform
from .elementwise import Affine, Bounded, NormalCDF, Shift, SoftClip
from .learned import Learned
from .linear import LU, ActNorm, Diagonal, Permutation, Standardize
from .residual import Planar, Radial, Sylvester
from .spline import CircularRationalQuadratic, RationalQuadratic

__all__ = [
    "LU",
    "ActNorm",
    "Affine",
    "Autoregressive",
    "AutoregressiveTransform",
    "Bijector",
    "Bounded",
    "CircularRationalQuadratic",
    "Continuous",
    "ContinuousTransform",
    "Coupling",
    "CouplingTransform",
    "Diagonal",
    "Elementwise",
    "Inverse",
    "LazyTransform",
    "Learned",
    "NormalCDF",
    "Permutation",
    "Planar",
    "Radial",
    "RationalQuadratic",
    "Shift",
    "SoftClip",
    "Standardize",
    "Sylvester",
]
