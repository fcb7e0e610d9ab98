"""Inference with learned parts."""

from .posterior import Posterior, posterior

__all__ = ["Posterior", "posterior"]
