"""Schedules and their views, and conversions between predictions."""

import itertools
import math

import pytest
import torch

from probgen import diffusion as d

from .diffusion_cases import covariance
from .diffusion_cases import schedule as schedule

T = torch.tensor([0.01, 0.2, 0.5, 0.77, 0.99])


def test_schedules_are_consistent(schedule):
    t = T.double()
    alpha, sigma = schedule(t)
    torch.testing.assert_close(schedule.log_snr(t), 2 * (alpha.log() - sigma.log()))
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t)
    u = t.clone().requires_grad_()
    a, s = schedule(u)
    for value, slope in zip((a, s), schedule.slopes(t)):
        if not value.requires_grad:
            assert (slope == 0).all()  # a signal that stays
            continue
        (found,) = torch.autograd.grad(value.sum(), u, retain_graph=True)
        torch.testing.assert_close(slope, found)
    f, g2 = schedule.drift(t), schedule.diffusion(t)
    torch.testing.assert_close(f, schedule.slopes(t)[0] / alpha)
    # the variance of the process grows by 2 f sigma^2 + g^2
    torch.testing.assert_close(2 * sigma * schedule.slopes(t)[1], 2 * f * sigma.square() + g2)
    assert (g2 > 0).all()
    start = schedule(torch.zeros(()))
    assert start[0] == 1 or "Custom" in type(schedule).__name__
    assert (start[1] == 0) == schedule.clean
    assert schedule(torch.tensor(schedule.latest))[0] > 0
    assert schedule.to("meta")(t.to("meta"))[0].shape == t.shape


def test_constants_are_those_of_the_papers(float64):
    betas = d.BetaSchedule().betas(1000)
    torch.testing.assert_close(betas, torch.linspace(1e-4, 0.02, 1000))  # Ho et al.
    t = torch.rand(20)
    integral = 0.1 * t + (20 - 0.1) * t.square() / 2  # of Song et al.'s rate
    alpha, sigma = d.VP()(t)
    torch.testing.assert_close(alpha, (-integral / 2).exp())
    torch.testing.assert_close(sigma.square(), 1 - (-integral).exp())
    torch.testing.assert_close(d.SubVP()(t)[1], 1 - (-integral).exp())
    torch.testing.assert_close(d.VP().diffusion(t), 0.1 + t * 19.9)
    f = ((t + 0.008) / 1.008 * math.pi / 2).cos().square()
    f0 = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(d.Cosine()(t)[0].square(), f / f0)  # of Nichol & Dhariwal
    table = d.BetaSchedule()
    steps = torch.arange(1, 1001) / 1000
    torch.testing.assert_close(
        table(steps)[0].square(), torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    )
    levels = d.KarrasGrid().path(d.Karras(), 18).sigma
    i = torch.arange(18) / 17
    edm = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(levels, torch.cat([edm, torch.zeros(1)]))


def test_an_equation_of_ones_own_is_solved(float64):
    t = torch.linspace(0, 1, 21)
    own = d.LinearSDE(lambda t: -(0.1 + 19.9 * t) / 2, lambda t: 0.1 + 19.9 * t)
    for a, b in zip(own(t), d.VP()(t)):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(own.drift(t), -(0.1 + 19.9 * t) / 2)
    torch.testing.assert_close(own.diffusion(t[1:]), 0.1 + 19.9 * t[1:])
    with pytest.raises(ValueError, match="a positive diffusion"):
        d.LinearSDE(lambda t: -t, lambda t: 1 - 2 * t)


def test_conversions_agree(schedule):
    torch.manual_seed(0)
    t = T.double()[:, None]
    alpha, sigma = schedule(t)
    slopes = schedule.slopes(t)
    x_0, eps = torch.randn(2, 5, 3)
    x = alpha * x_0 + sigma * eps
    said = {
        "x_0": x_0,
        "eps": eps,
        "score": -eps / sigma,
        "v": alpha * eps - sigma * x_0,
        "flow": slopes[0] * x_0 + slopes[1] * eps,
    }
    # x_s from two normal laws, that of x_s given x_0 and that of x_t given x_s
    before = schedule(t / 2)
    ratio = alpha / before[0]
    spread = sigma.square() - (ratio * before[1]).square()
    share = 1 / before[1].square() + ratio.square() / spread
    said["mu"] = (before[0] * x_0 / before[1].square() + ratio * x / spread) / share
    for a, b in itertools.product(said, said):
        found = d.convert(said[a], a, b, x, alpha, sigma, slopes, before)
        torch.testing.assert_close(found, said[b], rtol=1e-10, atol=1e-10)


def test_the_gaussian_denoiser_is_exact(schedule):
    m, s = torch.tensor([1.0, -2.0, 0.5]), covariance()
    denoiser = d.GaussianDenoiser(m, s, schedule).double()
    x = torch.randn(4, 5, 3)
    t = T.double()
    law = denoiser(x, t)
    assert (law.batch_shape, law.event_shape) == ((4, 5), (3,))
    for k in range(5):
        alpha, sigma = schedule(t[k])
        c = alpha**2 * s + sigma**2 * torch.eye(3)
        gain = alpha * s @ torch.linalg.inv(c)
        mean = m + (x[:, k] - alpha * m) @ gain.mT
        torch.testing.assert_close(law.mean[:, k], mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            law.covariance_matrix[0, k], s - alpha * gain @ s, atol=1e-10, rtol=1e-6
        )
        marginal = torch.distributions.MultivariateNormal(alpha * m, c)
        y = x[:, k].clone().requires_grad_()
        (score,) = torch.autograd.grad(marginal.log_prob(y).sum(), y)
        torch.testing.assert_close(denoiser.score(x[:, k], t[k]), score, rtol=1e-6, atol=1e-8)
