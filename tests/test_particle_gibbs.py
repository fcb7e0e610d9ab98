"""Known answers of particle Gibbs: the sampler's own prior is normal where data are."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen import diffusion as d
from probgen.diffusion.guidance.measurement import GaussianMeasurement
from probgen.diffusion.guidance.particle_gibbs import resampled, sweep
from probgen.diffusion.guidance.twists import Twist
from probgen.mcmc import diagnostics


def chain(prior, sampler):
    """The joint law of all levels and the datum that a sampler draws: means and covariances.

    A denoiser of normal data is affine, x_0 = G x_t + h, and so is every step.
    """
    path = sampler.grid.path(prior.schedule, sampler.steps)
    table = torch.stack(sampler.coefficients(prior.schedule, path), 1)
    size = prior.shape[0]
    eye, zero = torch.eye(size), torch.zeros(size)
    alpha, sigma = path.alpha[0], path.sigma[0]
    # x_k = maps[k] @ (all noises) + means[k]
    width = size * len(table)
    start = torch.zeros(size, width)
    start[:, :size] = (alpha.square() + sigma.square()).sqrt() * eye
    maps, means = [start], [zero]
    for k, (a, b, c) in enumerate(table):
        shift = prior.mean(zero, path.times[k])
        gain = (prior.mean(eye, path.times[k]) - shift).mT
        step = (a * eye + b * gain) @ maps[-1]
        if k + 1 < len(table):
            step[:, size * (k + 1) : size * (k + 2)] += c * eye
        maps.append(step)
        means.append(a * means[-1] + b * (gain @ means[-1] + shift))
    whole = torch.cat(maps)
    return torch.cat(means), whole @ whole.mT


def given(mean, cov, a, y, noise):
    """A normal law given linear measurements, and their log density."""
    seen = dist.MultivariateNormal(a @ mean, a @ cov @ a.mT + noise.square().diag_embed())
    gain = cov @ a.mT @ torch.linalg.inv(seen.covariance_matrix)
    after = cov - gain @ a @ cov
    return mean + gain @ (y - a @ mean), (after + after.mT) / 2, float(seen.log_prob(y))


def problem(size=4, steps=12):
    """A normal prior, precise measurements, a coarse sampler and its exact posterior."""
    torch.manual_seed(3)
    root = torch.randn(size, size) / size**0.5
    prior = d.GaussianDenoiser(torch.ones(size), root @ root.mT + 0.2 * torch.eye(size), d.VP())
    sampler = d.Ancestral(steps, "step", d.AngleGrid())
    a, noise = torch.randn(2, size), torch.tensor([0.05, 0.3])
    y = torch.tensor([3.0, -3.0])
    mean, cov = chain(prior, sampler)
    truth = given(mean[-size:], cov[-size:, -size:], a, y, noise)
    return prior, sampler, a, y, noise, truth


def test_few_particles_have_the_exact_posterior_of_the_samplers_prior(float64):
    prior, sampler, a, y, noise, (mean, cov, log_z) = problem()
    torch.manual_seed(0)
    gibbs = d.ParticleGibbs(sampler, chains=100, particles=4, pilots=64, warmup=10)
    found = gibbs.sample(prior, 8000, lambda x: x @ a.mT, y, noise)
    x = found.position
    assert x.dtype == torch.float64
    assert found.log_weights.shape == (8000,)
    assert abs(found.log_z - log_z) < 4 * found.se
    gap = (x - mean) @ torch.linalg.inv(torch.linalg.cholesky(cov)).mT
    for value, exact in ((gap, 0.0), (gap.square(), 1.0), (gap[:, :1] * gap[:, 1:], 0.0)):
        error = diagnostics.mcse(value.reshape(100, 80, -1))
        assert ((value.mean(0) - exact).abs() < 4 * error).all()
    assert found.rhat < 1.1
    assert found.renewal.shape == (12,)
    assert found.renewal[0] > 0.2
    # as many particles that do not iterate
    smc = d.TwistedSMC(sampler, islands=2)
    means = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(200):
            run = smc.sample(prior, 4, lambda x: x @ a.mT, y, noise)
            means.append(run.log_weights.softmax(0) @ run.position)
    wrong = torch.stack(means)
    error = wrong.std(0) / 200**0.5
    assert ((wrong.mean(0) - mean).abs() > 6 * error).any()


@pytest.mark.parametrize("threshold", [0.01, 0.6, 0.99])
@pytest.mark.parametrize("gradient", [True, False])
def test_a_sweep_leaves_the_posterior_of_paths_as_it_is(threshold, gradient, float64):
    """From exact paths, under a twist that is measured in the wrong place."""
    chains = 8000
    prior = d.GaussianDenoiser(torch.ones(1), torch.eye(1) / 2, d.VP())
    sampler = d.Ancestral(4, "step", d.AngleGrid())
    y, noise = torch.tensor([2.5]), torch.tensor([0.4])
    mean, cov = chain(prior, sampler)
    mean, cov, _ = given(mean, cov, torch.eye(5)[-1:], y, noise)
    before = dist.MultivariateNormal(mean[:4], cov[:4, :4]).sample((chains,))
    kept = before.mT.unsqueeze(-1)
    method = d.ParticleGibbs(
        sampler, chains=chains, particles=3, threshold=threshold, gradient=gradient
    )
    likelihood = GaussianMeasurement(lambda x: x, y, noise, 1)
    twist = Twist(prior, likelihood, sampler, torch.ones(()), gradient=gradient)
    twist.measure(torch.full((8, 1), -3.0))
    path, x, renewed = sweep(method, twist, likelihood, kept).draw()
    after = torch.cat([path.squeeze(-1).mT, x], 1)
    assert after.shape == (chains, 5)
    assert (renewed > 0.05).all()
    assert (renewed < 1).all()
    gap = after - mean
    products = gap.unsqueeze(-1) * gap.unsqueeze(-2)
    error = gap.std(0) / chains**0.5
    assert (gap.mean(0).abs() < 4 * error).all()
    assert ((products.mean(0) - cov).abs() < 4 * products.std(0) / chains**0.5).all()


def test_ancestors_have_their_probabilities():
    """Also given that of the kept path, whose own is drawn by other weights."""
    torch.manual_seed(0)
    weights, own = torch.tensor([0.5, 0.1, 0.3, 0.1]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    rows = 40000
    free = resampled(weights.log().expand(rows, 4), None)
    other = resampled(weights.log().expand(rows, 4), own.log().expand(rows, 4))
    same = resampled(weights.log().expand(rows, 4), weights.log().expand(rows, 4))
    pairs = [(4 * v[:, 0] + v[:, 1]).bincount(minlength=16) / rows for v in (free, same)]
    torch.testing.assert_close(*pairs, atol=0.01, rtol=0)
    for chosen, first in ((free, weights), (other, own), (same, weights)):
        share = torch.nn.functional.one_hot(chosen, 4).float().mean(0)
        torch.testing.assert_close(share[0], first, atol=0.01, rtol=0)
        if chosen is not other:
            torch.testing.assert_close(share[1:], weights.expand(3, 4), atol=0.01, rtol=0)


def test_modes_have_their_weights(float64):
    """Two modes that no small move joins, of which the measurement prefers the rarer one."""
    torch.manual_seed(0)
    means = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])
    prior = d.MixtureDenoiser(torch.tensor([0.8, 0.2]), means, 0.2, d.VP())
    y, noise = torch.tensor([0.5]), 2.0
    law = dist.Normal(means[:, 0], (0.2**2 + noise**2) ** 0.5)
    weights = torch.tensor([0.8, 0.2]) * law.log_prob(y).exp()
    exact = weights / weights.sum()
    gibbs = d.ParticleGibbs(d.Ancestral(60, "step", d.AngleGrid()), chains=32, particles=8)
    found = gibbs.sample(prior, 1280, lambda x: x[..., :1], y, noise)
    right = (found.position[:, :1] > 0).double()
    error = float(diagnostics.mcse(right.reshape(32, -1, 1)))
    assert abs(float(right.mean()) - float(exact[1])) < 4 * error + 0.01
    assert error < 0.03
    assert abs(found.log_z - float(weights.sum().log())) < 4 * found.se + 0.02
    for k in (0, 1):
        part = found.position[(right[:, 0] == k)]
        shift = 0.2**2 / (0.2**2 + noise**2) * (y - means[k, 0])
        assert ((part.mean(0) - means[k])[0] - shift).abs() < 0.05
        assert (part.std(0) / 0.2 - 1).abs().max() < 0.2


def test_likelihoods_that_are_not_normal(float64):
    """Of a sign, which is a hard constraint or one with a gradient."""
    prior = d.GaussianDenoiser(torch.zeros(1), torch.eye(1), d.VP())

    def hard(x):
        return torch.where(x[..., 0] > 1, 0.0, -math.inf)

    def soft(x):
        return dist.Bernoulli(logits=4 * x).to_event(1)

    tail = float(dist.Normal(0.0, 1.0).cdf(torch.tensor(-1.0)))
    torch.manual_seed(0)
    sampler = d.Ancestral(50, "step", d.AngleGrid())
    gibbs = d.ParticleGibbs(sampler, chains=32, particles=16, gradient=False)
    found = gibbs.sample(prior, 640, hard)
    assert (found.position > 1).all()
    exact = math.exp(-0.5) / (2 * math.pi) ** 0.5 / tail
    assert abs(float(found.position.mean()) - exact) < 0.1
    assert abs(found.log_z - math.log(tail)) < 4 * found.se + 0.05
    found = d.ParticleGibbs(sampler, particles=8).sample(prior, 1280, soft, torch.ones(1))
    grid = torch.linspace(-6, 6, 2001)
    weight = dist.Normal(0.0, 1.0).log_prob(grid).exp() * torch.sigmoid(4 * grid)
    exact = float((weight * grid).sum() / weight.sum())
    error = float(diagnostics.mcse(found.position.reshape(32, -1, 1)))
    assert abs(float(found.position.mean()) - exact) < 4 * error + 0.01


@pytest.mark.parametrize("pilots", [8, 256])
def test_complex_measurements(pilots, float64):
    """As their real and imaginary parts, whether the covariance is full or diagonal."""
    prior = d.GaussianDenoiser(torch.zeros(2), torch.eye(2), d.VP())
    turn = torch.tensor([[1.0, 0.5], [0.5, -1.0]])
    gibbs = d.ParticleGibbs(d.Ancestral(20, "step"), chains=8, particles=4, pilots=pilots, warmup=0)
    y = torch.tensor([0.5, -0.3])
    warnings.simplefilter("ignore")  # few draws
    torch.manual_seed(0)
    parts = gibbs.sample(prior, 32, lambda x: x @ turn, y, 0.5)
    torch.manual_seed(0)
    whole = gibbs.sample(
        prior,
        32,
        lambda x: torch.view_as_complex(x @ turn).unsqueeze(-1),
        torch.view_as_complex(y).unsqueeze(-1),
        0.5,
    )
    torch.testing.assert_close(parts.position, whole.position)
    assert abs(parts.log_z - whole.log_z) < 1e-9


def test_chains_that_have_not_mixed_are_told_of(float64):
    torch.manual_seed(0)
    means = torch.randn(6, 20)
    prior = d.MixtureDenoiser(torch.ones(6), means, 0.1, d.VP())
    gibbs = d.ParticleGibbs(d.Ancestral(10, "step"), chains=8, particles=2, pilots=16, warmup=0)
    with pytest.warns(UserWarning, match=r"not mixed: .*R-hat.*Take more `particles` than 2"):
        found = gibbs.sample(prior, 40, lambda x: x, means[0], 0.05)
    assert not found.rhat <= 1.1
    patient = d.ParticleGibbs(d.Ancestral(30, "step"), chains=16, particles=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normal = d.GaussianDenoiser(torch.zeros(2), torch.eye(2), d.VP())
        patient.sample(normal, 320, lambda x: x, torch.ones(2), 1.0)


def test_wrong_arguments_are_named():
    prior = d.GaussianDenoiser(torch.zeros(2), torch.eye(2), d.VP())
    y = torch.ones(2)
    for name, value in (("chains", 1), ("particles", 1), ("pilots", 1.5), ("warmup", -1)):
        with pytest.raises(ValueError, match=f"`{name}`.*got {value}"):
            d.ParticleGibbs(**{name: value})
    with pytest.raises(ValueError, match=r"`guesses`.*got 0"):
        d.ParticleGibbs(guesses=0)
    with pytest.raises(ValueError, match=r"`threshold` in \(0, 1\), got 1"):
        d.ParticleGibbs(threshold=1)
    for wrong in (d.Heun(), d.Ancestral(5, "law")):
        with pytest.raises(TypeError, match="`sampler` with linear steps"):
            d.ParticleGibbs(wrong)
    gibbs = d.ParticleGibbs(d.Ancestral(5, "step"), chains=4, particles=2, pilots=8)
    for draws in (18, 12):
        with pytest.raises(ValueError, match=f"the 4 chains divide, at least 4.*got {draws}"):
            gibbs.sample(prior, draws, lambda x: x, y, 1.0)
    with pytest.raises(ValueError, match=r"`draws`.*got 'many'"):
        gibbs.sample(prior, "many", lambda x: x, y, 1.0)
    with pytest.raises(ValueError, match=r"noise in all steps but the last, got DDIM\(steps=5"):
        d.ParticleGibbs(d.DDIM(5)).sample(prior, 128, lambda x: x, y, 1.0)
    with pytest.raises(ValueError, match="gradient=False"):
        gibbs.sample(prior, 16, lambda x: x.detach().sum(-1))
    with pytest.raises(ValueError, match="vanish at all particles"):
        gibbs.sample(prior, 16, lambda x: x.sum(-1) * 0 - math.inf)
    with pytest.raises(ValueError, match=r"`y` with the shape.*got \(3,\)"):
        gibbs.sample(prior, 16, lambda x: x, torch.ones(3), 1.0)


def test_posteriors_of_a_pyro_model(float64):
    """With a shifted and scaled diffusion, two sites, and a seed."""
    torch.manual_seed(0)
    prior = d.GaussianDenoiser(torch.zeros(2), torch.eye(2), d.VP())
    module = pg.distributions.Diffusion(prior).double().freeze()
    module.shift.fill_(0.5)
    module.scale.fill_(2.0)

    def model(y):
        x = pg.sample("x", module)
        pyro.sample("first", dist.Normal(x[0], 1.0), obs=y[0])
        pyro.sample("last", dist.Normal(x[1], 0.5), obs=y[1])

    y = torch.tensor([2.0, -1.0])
    gibbs = d.ParticleGibbs(
        d.Ancestral(40, "step", d.AngleGrid()), chains=40, particles=8, warmup=1
    )
    state = torch.random.get_rng_state()
    first, again = (
        pg.inference.posterior(model, y, method=gibbs, draws=400, seed=0, progress=False)
        for _ in range(2)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.draws["x"], again.draws["x"])
    scale = torch.tensor([1.0, 0.5])
    variance = 1 / (1 / 4 + scale**-2)
    mean = variance * (0.5 / 4 + y / scale.square())
    assert ((first.draws["x"].mean(0) - mean).abs() < 0.25 * variance.sqrt()).all()
    assert (first.draws["x"].var(0) / variance).log().abs().max() < 0.35
    exact = float(dist.Normal(0.5, (4 + scale.square()).sqrt()).log_prob(y).sum())
    assert abs(first.log_evidence - exact) < 4 * first.se + 0.05
    assert 100 < first.ess < 800
    assert first.resampled(5)["x"].shape == (5, 2)


def test_contexts_callbacks_and_single_precision():
    torch.manual_seed(0)
    network = torch.nn.Linear(1, 2)
    denoiser = d.NetworkDenoiser(lambda x, level, c: x / 2 + network(c), d.VP(), (2,), 1, "x_0")
    gibbs = d.ParticleGibbs(
        d.Ancestral(8, "step"), chains=4, particles=4, pilots=16, warmup=1, gradient=False
    )
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = gibbs.sample(
            denoiser,
            16,
            lambda x: x,
            torch.ones(2),
            1.0,
            torch.ones(1),
            callback=lambda k, x: seen.append((k, x)),
        )
    assert [k for k, _ in seen] == list(range(5))
    kept = torch.stack([x for _, x in seen[1:]], 1)
    assert torch.equal(found.position, kept.flatten(0, 1))  # those of the first chain first
    assert found.position.dtype == torch.float32
    assert found.renewal.shape == (8,)
