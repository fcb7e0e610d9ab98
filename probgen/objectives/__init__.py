"""Training objectives, objects to hand to :func:`probgen.fit`."""

from .likelihood import MaximumLikelihood, ReverseKL

__all__ = ["MaximumLikelihood", "ReverseKL"]
