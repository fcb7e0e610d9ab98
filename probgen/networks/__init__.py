"""Networks that condition transforms and distributions, along the leading axis."""

from .dense import MLP, ResidualMLP
from .made import MADE

__all__ = ["MADE", "MLP", "ResidualMLP"]
