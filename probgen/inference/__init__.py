"""Inference with learned parts, and by variational guides."""

from .guides import ContinuousGuide, FlowGuide, FullCovariance, MeanField
from .latents import Diagnosis, attribute, diagnose, interpolate
from .posterior import Posterior, posterior
from .psis import Smoothed, khat, psis

__all__ = [
    "ContinuousGuide",
    "Diagnosis",
    "FlowGuide",
    "FullCovariance",
    "MeanField",
    "Posterior",
    "Smoothed",
    "attribute",
    "diagnose",
    "interpolate",
    "khat",
    "posterior",
    "psis",
]
