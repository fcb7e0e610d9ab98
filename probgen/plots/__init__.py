"""Plots, by matplotlib, which is imported only when one is drawn.

Every function takes `Axes` and returns them; without any it makes its own. Needs an extra:
``pip install "probgen[plots]"``. :func:`posterior`, :func:`coverage`,
:func:`ranks` and :func:`residuals` show calibration.

References:
    Talts et al., "Validating Bayesian inference algorithms with simulation-based calibration",
    2018, https://arxiv.org/abs/1804.06788
"""

from .fitted import density, images, manifold, training
from .posteriors import corner, coverage, posterior, ranks, residuals

__all__ = [
    "corner",
    "coverage",
    "density",
    "images",
    "manifold",
    "posterior",
    "ranks",
    "residuals",
    "training",
]
