r"""Measures of densities and of posteriors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .core.arguments import checked
from .core.validation import check_whole

__all__ = ["Estimate", "bits_per_dimension", "coverage", "ranks", "rmse"]


class Estimate(NamedTuple):
    """A mean over data with its standard error.

    Arguments:
        value: The mean.
        se: The standard error.
    """

    value: float
    se: float


@checked
def bits_per_dimension(log_prob: Tensor, dimensions: int) -> Estimate:
    r"""Return the mean negative log-likelihood, :math:`-\log_2 p(x) / D`, in bits per dimension.

    Arguments:
        log_prob: The log densities in nats, with shape :math:`(N)`; for levels, those of whole
            levels (dequantised data on the scale of levels).
        dimensions: The number of dimensions :math:`D`.

    Raises:
        ValueError: If there are fewer than two values.

    Example:
        >>> round(bits_per_dimension(torch.full((5,), -64 * math.log(2.0)), 64).value, 6)
        1.0
    """
    if log_prob.ndim != 1 or len(log_prob) < 2:
        raise ValueError(
            f"Expected `log_prob` with shape (N,) and N >= 2, got {tuple(log_prob.shape)}."
        )
    check_whole(1, dimensions=dimensions)
    bits = -log_prob.double() / (dimensions * math.log(2))
    return Estimate(float(bits.mean()), float(bits.std()) / math.sqrt(len(bits)))


@checked
def coverage(draws: Tensor, truth: Tensor, level: float) -> float:
    r"""Return the fraction of true values within the central interval of posterior draws.

    Arguments:
        draws: The draws, with shape :math:`(S, *)`.
        truth: The true values, with shape :math:`(*)`.
        level: The probability of the interval, in (0, 1).

    Raises:
        ValueError: If the level is not a probability, or the shapes do not match.

    Example:
        >>> draws = torch.linspace(-1.0, 1.0, 1001)[:, None].expand(-1, 4)
        >>> coverage(draws, torch.tensor([0.0, 0.4, 0.6, 2.0]), level=0.5)
        0.5
    """
    if not 0 < level < 1:
        raise ValueError(f"Expected a `level` in (0, 1), got {level}.")
    check(draws, truth)
    low = torch.quantile(draws, (1 - level) / 2, dim=0)
    high = torch.quantile(draws, (1 + level) / 2, dim=0)
    return float(((low <= truth) & (truth <= high)).double().mean())


@checked
def ranks(draws: Tensor, truth: Tensor) -> Tensor:
    r"""Return the number of draws below the true value.

    If draws and truth come from the same distribution, it is uniform over :math:`0, \ldots, S`.

    References:
        Talts et al., "Validating Bayesian inference algorithms with simulation-based calibration",
        2018, https://arxiv.org/abs/1804.06788

    Arguments:
        draws: The draws, independent of each other, with shape :math:`(S, *)`.
        truth: The true values, with shape :math:`(*)`.

    Returns:
        The ranks, integers with shape :math:`(*)`.

    Raises:
        ValueError: If the shapes do not match, or a draw is nan.

    Example:
        >>> ranks(torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0]]), torch.tensor([2.5, 0.0]))
        tensor([2, 0])
    """
    check(draws, truth)
    return (draws < truth).sum(0)


@checked
def rmse(estimate: Tensor, truth: Tensor) -> float:
    """Return the root mean square error, in the units of the data.

    Example:
        >>> rmse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
        1.4142135381698608
    """
    if estimate.shape != truth.shape:
        raise ValueError(
            f"Expected an `estimate` with the shape of `truth`, {tuple(truth.shape)}, got "
            f"{tuple(estimate.shape)}."
        )
    return float((estimate - truth).square().mean().sqrt())


def check(draws: Tensor, truth: Tensor) -> None:
    """Compare draws with true values.

    Raises:
        ValueError: If the shapes do not match, or a draw is nan, which no rank counts.
    """
    if draws.shape[1:] != truth.shape:
        raise ValueError(
            f"Expected `draws` with shape (S, *) and a `truth` with shape (*), got "
            f"{tuple(draws.shape)} and {tuple(truth.shape)}."
        )
    if bool(draws.isnan().any()):
        raise ValueError(f"Expected draws that are numbers, got {int(draws.isnan().sum())} nan.")
