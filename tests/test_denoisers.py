"""Denoisers that are exact, and networks of every kind."""

import pyro.distributions as dist
import pytest
import torch

from probgen import diffusion as d

from .diffusion_cases import MEANS, WEIGHTS, covariance, mixture
from .diffusion_cases import schedule as schedule


def test_the_mixture_denoiser_is_exact(schedule):
    denoiser = mixture(schedule)
    t = torch.tensor(0.4)
    alpha, sigma = schedule(t)
    spread = (alpha**2 * 0.12**2 + sigma**2).sqrt()
    marginal = dist.MixtureSameFamily(
        dist.Categorical(WEIGHTS.double()),
        dist.Normal(alpha * MEANS.double(), spread).to_event(1),
    )
    x = torch.randn(20, 2).requires_grad_()
    (score,) = torch.autograd.grad(marginal.log_prob(x).sum(), x)
    torch.testing.assert_close(denoiser.score(x.detach(), t), score, rtol=1e-6, atol=1e-8)
    law = denoiser(x.detach(), t)
    drawn = law.sample((40_000,))
    gap = (drawn.mean(0) - law.mean).abs() / (drawn.std(0) / 200)
    assert float(gap.max()) < 5


@pytest.mark.parametrize("predicts", ["eps", "v", "x_0", "score", "flow", "edm"])
def test_networks_of_every_kind_are_one_denoiser(schedule, predicts):
    """A network that says exactly what a Gaussian's denoiser would, in its own words."""
    truth = d.GaussianDenoiser(torch.zeros(3), covariance(), schedule).double()

    def plain(x, t):
        if predicts != "edm":
            return truth.predict(predicts, x, t)
        alpha, sigma = truth.signal(t)
        size = alpha.square() + sigma.square()
        return (truth.mean(x, t) - alpha / size * x) * size.sqrt() / sigma

    x, t = torch.randn(6, 3), torch.linspace(0.1003, 0.9001, 6)
    mine = d.NetworkDenoiser(plain, schedule, (3,), predicts=predicts, plain=True)
    torch.testing.assert_close(mine.mean(x, t), truth.mean(x, t), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(mine.score(x, t), truth.score(x, t), rtol=1e-6, atol=1e-6)
    assert mine(x, t).event_shape == (3,)

    def scaled(y, log_snr):  # the other convention: unit scale, and the ratio as time
        s = schedule.time(log_snr)
        alpha, sigma = truth.signal(s)
        return plain(y * (alpha.square() + sigma.square()).sqrt(), s)

    mine = d.NetworkDenoiser(scaled, schedule, (3,), predicts=predicts)
    torch.testing.assert_close(mine.mean(x, t), truth.mean(x, t), rtol=1e-5, atol=1e-6)
