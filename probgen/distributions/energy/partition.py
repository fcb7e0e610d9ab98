"""Estimates of the partition function."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Partition"]


class Partition(NamedTuple):
    r"""Estimates of :math:`\log Z` by annealing.

    Arguments:
        log_z: The estimate from draws of the base, a lower bound in expectation.
        se: Its standard error.
        ess: The effective sample size of its weights.
        upper: The estimate from draws of the model, an upper bound in expectation if they are.
        upper_se: Its standard error.
        upper_ess: The effective sample size of its weights.
    """

    log_z: float
    se: float
    ess: float
    upper: float
    upper_se: float
    upper_ess: float
