"""Training of lazy distributions."""

from .fitting import fit
from .state import History

__all__ = ["History", "fit"]
