"""What several tests of diffusion share."""

import math

import pytest
import torch

from probgen import diffusion as d

SCHEDULES = {
    "vp": lambda: d.VP(),
    "sub-vp": lambda: d.SubVP(),
    "cosine": lambda: d.Cosine(),
    "ve": lambda: d.VE(0.01, 50.0),
    "karras": lambda: d.Karras(),
    "rectified": lambda: d.Rectified(),
    "table": lambda: d.BetaSchedule(),
    "own equation": lambda: d.LinearSDE(lambda t: -0.1 - 3 * t, lambda t: 1 + t.square()),
    "custom": lambda: d.CustomSchedule(lambda t: (-t.square(), torch.log(t) + 1)),
}


@pytest.fixture(params=SCHEDULES)
def schedule(request, float64):
    return SCHEDULES[request.param]().double()


def covariance():
    torch.manual_seed(1)
    a = torch.randn(3, 3)
    return a @ a.mT + 0.3 * torch.eye(3)


MEANS = 1.5 * torch.stack(
    [(torch.arange(8) * math.pi / 4).cos(), (torch.arange(8) * math.pi / 4).sin()], 1
)

WEIGHTS = torch.tensor([1.0, 1, 2, 2, 3, 3, 4, 4])


def mixture(schedule):
    return d.MixtureDenoiser(WEIGHTS.double(), MEANS.double(), 0.12, schedule)


def measured():
    """A normal prior of 8 features, 3 linear measurements, and the exact posterior."""
    torch.manual_seed(3)
    root = torch.randn(8, 8) / 8**0.5
    s = root @ root.mT + 0.2 * torch.eye(8)
    prior = d.GaussianDenoiser(torch.zeros(8), s, d.VP())
    a, noise = torch.randn(3, 8), torch.tensor([0.3, 0.5, 1.0])
    y = a @ torch.linalg.cholesky(s) @ torch.randn(8) + noise * torch.randn(3)
    precision = torch.linalg.inv(s) + a.mT @ torch.diag(noise**-2) @ a
    cov = torch.linalg.inv(precision)
    mean = cov @ a.mT @ (y / noise.square())
    return prior, y, lambda x: x @ a.mT, noise, torch.distributions.MultivariateNormal(mean, cov)
