"""Inference with learned parts, and by variational guides."""

from .guides import ContinuousGuide, FlowGuide, FullCovariance, MeanField
from .importance import Smoothed, khat, psis
from .latent_diagnostics import Diagnosis, attribute, diagnose, interpolate
from .posteriors import Posterior, posterior

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
