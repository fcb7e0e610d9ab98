"""Draws given measurements: guides, twisted particles, posteriors of Pyro models."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen import diffusion as d

from .diffusion_cases import SCHEDULES, measured, mixture

GUIDES = {
    "mmps": lambda p, y, a, n: d.MMPS(p, a, y, n),
    "pigdm": lambda p, y, a, n: d.PiGDM(p, a, y, n),
    "dps": lambda p, y, a, n: d.DPS(p, a, y, n),
    "exact": lambda p, y, a, n: d.ExactMoment(p, a, y, n),
    "classifier": lambda p, y, a, n: d.ClassifierGuided(
        p, lambda x, t: dist.Normal(a(x), n + 1).to_event(1).log_prob(y)
    ),
}


def divergence(x, truth):
    """Of a normal law of the moments of draws from the exact posterior."""
    law = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.mT))
    return float(torch.distributions.kl_divergence(law, truth))


def test_guidance_by_moments_is_exact_for_normal_data(float64):
    prior, y, a, noise, truth = measured()
    torch.manual_seed(0)
    kl = {}
    for name in ("mmps", "pigdm", "dps", "exact"):
        guided = GUIDES[name](prior, y, a, noise).double()
        x = d.DPMSolver(60).sample(guided, torch.randn(4000, 8))
        kl[name] = divergence(x, truth)
    assert max(kl["mmps"], kl["exact"]) < 0.05
    assert kl["mmps"] < kl["pigdm"]
    assert kl["mmps"] < kl["dps"]
    # at one time, against the mean given both in closed form
    t, x = torch.tensor(0.4), torch.randn(6, 8)
    alpha, sigma = prior.schedule(t)
    lam = torch.linalg.inv(prior.covariance)
    design = a(torch.eye(8)).mT
    post = lam + design.mT @ torch.diag(noise**-2) @ design + alpha**2 / sigma**2 * torch.eye(8)
    mean = torch.linalg.solve(post, (design.mT @ (y / noise**2) + alpha / sigma**2 * x).mT).mT
    found = GUIDES["mmps"](prior, y, a, noise).double().mean(x, t)
    torch.testing.assert_close(found, mean, rtol=1e-6, atol=1e-6)
    law = GUIDES["exact"](prior, y, a, noise).double()(x, t)
    torch.testing.assert_close(law.mean, mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        law.covariance_matrix[0], torch.linalg.inv(post), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("guide", [d.DPS, d.ExactMoment, d.MMPS, d.PiGDM])
def test_measurements_that_would_be_misread_are_refused(guide):
    prior = d.GaussianDenoiser(torch.zeros(3), torch.eye(3), d.VP())
    same, one, nan = lambda x: x, lambda x: x[..., :1], math.nan
    for operator, y, scale, words in (
        (one, torch.ones(3), 0.2, r"`y` with the shape.*\(1,\), got \(3,\)"),
        (same, torch.ones(1), 0.2, r"`y` with the shape.*\(3,\), got \(1,\)"),
        (same, torch.tensor([1.0, nan, 1.0]), 0.2, "finite `y`.*not measured"),
        (same, torch.ones(3), torch.tensor([1.0, math.inf, 1.0]), "finite `scale`.*not measured"),
        (same, torch.ones(3), 0.0, "positive and finite `scale`"),
        (lambda x: x[:, :, 0], torch.ones(3), 0.2, r"data with shape \('\*', 3\).*failed"),
    ):
        with pytest.raises(ValueError, match=words):
            guide(prior, operator, y, scale)
    if guide is not d.DPS:
        with pytest.raises(ValueError, match=r"linear `operator`.*DPS and TwistedSMC"):
            guide(prior, torch.exp, torch.ones(3), 0.2)
        with pytest.raises(ValueError, match=r"Expected a `scale`, .*got none"):
            guide(prior, same, torch.ones(3), None)


def test_gradients_that_say_nothing_are_refused():
    prior = d.GaussianDenoiser(torch.zeros(3), torch.eye(3), d.VP())
    for operator in (torch.round, torch.sign, lambda x: x.detach()):
        with pytest.raises(ValueError, match=r"`operator` with a gradient.*TwistedSMC"):
            d.DPS(prior, operator, torch.ones(3), 0.2)
    module = pg.distributions.Diffusion(prior).freeze()

    def model():
        x = pg.sample("x", module)
        pyro.sample("y", dist.Normal(torch.round(x), 0.2).to_event(1), obs=torch.ones(3))

    for method, words in ((d.DPS, "with a gradient"), (d.MMPS, "linear `operator`")):
        with pytest.raises(ValueError, match=words):
            pg.inference.posterior(model, method=method, draws=4, progress=False)
    for wrong, words in (
        (lambda x, t: x, r"one number for each item, with shape \(2,\), got \(2, 3\)"),
        (lambda x, t: torch.zeros(2), "with a gradient"),
    ):
        with pytest.raises(ValueError, match=words):
            d.ClassifierGuided(prior, wrong).mean(torch.zeros(2, 3), torch.tensor(0.5))


def test_adjoints_are_checked(float64):
    prior = d.GaussianDenoiser(torch.zeros(3), torch.eye(3), d.VP())
    a = torch.randn(2, 3, dtype=torch.complex128)
    y, x, t = a @ torch.ones(3).to(a), torch.randn(5, 3), torch.tensor(0.5)

    def operator(x):
        return x.to(a) @ a.mT

    own = d.MMPS(prior, operator, y, 0.3)
    given = d.MMPS(prior, operator, y, 0.3, adjoint=lambda v: v @ a.conj())  # complex, too
    torch.testing.assert_close(given.mean(x, t), own.mean(x, t))
    with pytest.raises(ValueError, match="`adjoint` of the operator, got that of another"):
        d.MMPS(prior, operator, y, 0.3, adjoint=lambda v: v @ a)


@pytest.mark.parametrize("name", GUIDES)
def test_draws_do_not_depend_on_their_batch(name, float64):
    prior, y, a, noise, _ = measured()
    guided = GUIDES[name](prior, y, a, noise).double()
    x, t = torch.randn(7, 8), torch.tensor(0.6)
    whole = guided.mean(x, t)
    assert not whole.requires_grad
    for k in (0, 3):
        torch.testing.assert_close(guided.mean(x[k : k + 1], t)[0], whole[k], rtol=0, atol=1e-5)
    many = torch.randn(2, 3, 8)
    assert guided.mean(many, t).shape == guided(many, t).mean.shape == many.shape
    start = torch.randn(7, 8)
    torch.testing.assert_close(
        d.DDIM(10).sample(guided, start)[2:3],
        d.DDIM(10).sample(guided, start[2:3]),
        rtol=0,
        atol=1e-5,
    )


def test_operators_may_be_masks_of_images_or_complex(float64):
    torch.manual_seed(0)
    image = d.NetworkDenoiser(lambda x, level: x / 2, d.Cosine(), (1, 4, 4), predicts="x_0")
    mask = (torch.rand(1, 4, 4) < 0.5).double()
    seen = d.MMPS(image, lambda x: mask * x, mask, 0.1 + torch.rand(1, 4, 4))
    x = d.DDIM(5).sample(seen, torch.randn(3, 1, 4, 4))
    assert x.shape == (3, 1, 4, 4)
    gap = seen.mean(x, torch.tensor(0.1)) - image.mean(x, torch.tensor(0.1))
    assert gap[:, mask == 0].abs().max() < 1e-9 < gap[:, mask > 0].abs().min()
    flat = d.GaussianDenoiser(torch.zeros(4), torch.eye(4), d.VP()).double()
    fourier = d.MMPS(flat, lambda x: torch.fft.fft(x), torch.fft.fft(torch.ones(4)), 0.01)
    x = d.DDIM(20).sample(fourier, torch.randn(5, 4))
    assert float((x - 1).abs().max()) < 0.05  # nearly noiseless, so the datum itself


def test_an_operator_without_derivatives_may_bring_its_adjoint(float64):
    prior, y, a, noise, _ = measured()
    matrix = a(torch.eye(8)).mT

    def outside(x):  # as a call of another library
        return torch.from_numpy(x.detach().numpy() @ matrix.numpy().T)

    x, t = torch.randn(6, 8), torch.tensor(0.4)
    for kind in (d.MMPS, d.PiGDM):
        own = kind(prior.double(), outside, y, noise, adjoint=lambda v: v @ matrix)
        torch.testing.assert_close(own.mean(x, t), kind(prior, a, y, noise).mean(x, t))
        with pytest.raises(ValueError, match="or its `adjoint`"):
            kind(prior, outside, y, noise).mean(x, t)


def test_a_guide_of_a_flow_of_contexts():
    network = d.NetworkDenoiser(lambda x, level, c: c.expand_as(x), d.VP(), (2,), 1, "x_0")
    c = torch.tensor([3.0])
    free = d.ClassifierFree(network, c, weight=2.0)
    out = free.mean(torch.zeros(2, 2), torch.tensor(0.5))
    torch.testing.assert_close(out, (2 * c).expand(2, 2))
    both = d.ClassifierFree(network, torch.tensor([[3.0], [1.0]]), weight=2.0)
    out = both.mean(torch.zeros(2, 2), torch.tensor(0.5))
    torch.testing.assert_close(out, torch.tensor([[6.0, 6.0], [2.0, 2.0]]))
    with pytest.raises(ValueError, match=r"\(\*, 1\), got \(1, 2\)"):
        d.ClassifierFree(network, torch.ones(1, 2))
    prior = mixture(d.VP()).float()
    x, t = torch.zeros(3, 2), torch.tensor(0.5)
    with pytest.raises(ValueError, match=r"takes the `context`, "):
        d.ClassifierFree(prior, c)
    with pytest.raises(ValueError, match="positive and finite `scale`"):
        d.MMPS(prior, lambda x: x, torch.ones(2), 0.0)
    with pytest.raises(ValueError, match="`operator` with a gradient"):
        d.DPS(prior, lambda x: x.detach().sum(-1)).mean(x, t)
    with pytest.raises(ValueError, match="`operator` with a gradient"):
        d.MMPS(prior, lambda x: x.detach(), torch.ones(2), 1.0)
    with pytest.raises(ValueError, match=r"shape \(4,\), got \(4, 2\)"):
        d.DPS(prior, lambda x: x)
    with pytest.raises(TypeError, match="Expected a denoiser, got a int"):
        d.DPS(3, lambda x: x)
    with pytest.raises(ValueError, match="a measurement `y`"):
        d.DPS(prior, lambda x: x, scale=1.0)
    with pytest.raises(TypeError, match="whose law is known"):
        d.ExactMoment(network, lambda x: x, torch.ones(2), 1.0)
    with pytest.raises(ValueError, match="a linear `operator`"):
        d.ExactMoment(prior, lambda x: x.square(), torch.ones(2), 1.0)
    with pytest.raises(ValueError, match="a linear `operator`"):
        d.ExactMoment(prior, torch.relu, torch.ones(2), 1.0)
    inner = d.MMPS(prior, lambda x: x, torch.ones(2), 1.0)
    with pytest.raises(TypeError, match="derivatives to guide, got MMPS"):
        d.DPS(inner, lambda x: x, torch.ones(2), 1.0).mean(x, t)
    with pytest.raises(TypeError, match="derivatives to guide, got MMPS"):
        d.TwistedSMC(d.Ancestral(3)).sample(inner, 8, lambda x: x, torch.ones(2), 1.0)
    assert not d.LearnedVariance(inner, lambda x, level: x).differentiable
    with pytest.raises(ValueError, match=r"`y` with the shape.*got \(3,\)"):
        d.ExactMoment(prior, lambda x: x, torch.ones(3), 1.0)


def evidence(prior, y, a, noise):
    design = a(torch.eye(8)).mT
    cov = design @ prior.covariance @ design.mT + torch.diag(noise**2)
    return float(torch.distributions.MultivariateNormal(torch.zeros(3), cov).log_prob(y))


@pytest.mark.parametrize("gradient", [True, False])
def test_twisted_particles_have_the_exact_posterior(gradient, float64):
    prior, y, a, noise, truth = measured()
    torch.manual_seed(0)
    smc = d.TwistedSMC(d.Ancestral(400, "step"), gradient=gradient, islands=20)
    found = smc.sample(prior.double(), 8000, a, y, noise)
    assert abs(found.log_z - evidence(prior, y, a, noise)) < 4 * found.se + 0.04
    p = found.log_weights.softmax(0)
    mean = p @ found.position
    gap = found.position - mean
    cov = (p[:, None] * gap).mT @ gap
    law = torch.distributions.MultivariateNormal(mean, cov)
    assert float(torch.distributions.kl_divergence(law, truth)) < 0.05


def test_likelihoods_without_a_gradient_are_taken_or_refused(float64):
    """Of a sign the posterior is half a normal law."""
    torch.manual_seed(0)
    prior = d.GaussianDenoiser(torch.zeros(1), torch.eye(1), d.VP()).double()

    def sign(x):
        return torch.where(x[..., 0] > 0, 0.0, -50.0)

    found = d.TwistedSMC(d.Ancestral(200), gradient=False).sample(prior, 4000, sign)
    x = found.position[:, 0]
    assert bool((x[found.log_weights > found.log_weights.max() - 20] > 0).all())
    mean = float(found.log_weights.softmax(0) @ x)
    assert abs(mean - (2 / math.pi) ** 0.5) < 0.05
    assert abs(found.log_z - math.log(0.5)) < 4 * found.se + 0.02
    with pytest.raises(ValueError, match="gradient=False"):
        d.TwistedSMC(d.Ancestral(5)).sample(prior, 16, lambda x: sign(x).detach())
    with pytest.raises(ValueError, match="the 8 islands divide, got 12"):
        d.TwistedSMC().sample(prior, 12, sign)
    for wrong in (d.Heun(), d.Ancestral(5, "law")):
        with pytest.raises(TypeError, match="linear steps"):
            d.TwistedSMC(wrong)


def stated(module, a, noise, mask=None):
    """A Pyro model of measurements in two sites, one in a plate."""

    def model(y):
        x = pg.sample("x", module)
        seen = a(x)
        with pyro.plate("data", 2):
            pyro.sample("first", dist.Normal(seen[:2], noise[:2]), obs=y[:2])
        law = dist.Normal(seen[2:], noise[2:]).to_event(1)
        pyro.sample("last", law if mask is None else law.mask(mask), obs=y[2:])

    return model


METHODS = {
    "exact": d.ExactMoment,
    "mmps": d.MMPS,
    "dps": d.DPS,
    "smc": d.TwistedSMC(d.Ancestral(100)),
    "hmc": None,
}


@pytest.mark.parametrize("name", METHODS)
def test_posteriors_of_a_pyro_model(name, float64):
    prior, y, a, noise, truth = measured()
    module = pg.distributions.Diffusion(prior, d.DPMSolver(100), steps=8).double().freeze()
    module.shift.fill_(0.5)
    module.scale.fill_(2.0)
    shifted = torch.distributions.AffineTransform(torch.tensor(0.5), torch.tensor(2.0))
    y = a(shifted(torch.zeros(8))) + 2 * y
    model = stated(module, a, 2 * noise)
    state = torch.random.get_rng_state()
    found = pg.inference.posterior(
        model,
        y,
        method=METHODS[name],
        draws=400 if name == "hmc" else 2000,
        kernel=pg.mcmc.HMC(0.5, 3),
        steps=2,
        seed=0,
        progress=False,
    )
    assert torch.equal(state, torch.random.get_rng_state())
    x = shifted.inv(found.draws["x"])
    p = found.log_weights.softmax(0)
    mean = p @ x
    gap = (mean - truth.mean).abs() / truth.variance.sqrt()
    ratio = (p @ (x - mean).square()) / truth.variance
    if name == "dps":
        assert float(gap.max()) < 4
    else:
        assert float(gap.max()) < 0.25
        assert float(ratio.log().abs().max()) < 0.3
    exact = evidence(prior, (y - a(shifted(torch.zeros(8)))) / 2, a, noise) - 3 * math.log(2)
    if name in ("smc", "hmc"):
        assert abs(found.log_evidence - exact) < 4 * found.se + 0.05
    else:
        assert math.isnan(found.log_evidence)
    assert found.resampled(5)["x"].shape == (5, 8)


def test_masks_and_scales_of_a_model_count_in_its_evidence(float64):
    torch.manual_seed(0)
    prior = d.GaussianDenoiser(torch.zeros(2), torch.eye(2), d.VP())
    module = pg.distributions.Diffusion(prior).double().freeze()
    y = torch.tensor([1.0, math.nan])  # a datum that is missing

    def masked(y):
        x = pg.sample("x", module)
        with pyro.plate("data", 2), pyro.poutine.mask(mask=~y.isnan()):
            pyro.sample("y", dist.Normal(x, 0.1), obs=y)

    smc = d.TwistedSMC(d.Ancestral(100, "step"))
    found = pg.inference.posterior(masked, y, method=smc, draws=2048, seed=0)
    assert found.draws["x"].isfinite().all()
    exact = float(dist.Normal(0.0, math.sqrt(1.01)).log_prob(torch.tensor(1.0)))
    assert abs(found.log_evidence - exact) < 4 * found.se + 0.05
    assert pg.inference.posterior(masked, y, method=d.MMPS, draws=8).draws["x"].isfinite().all()

    def weighted(y):
        x = pg.sample("x", module)
        with pyro.poutine.scale(scale=0.25):
            pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    y = torch.tensor([1.0, -0.5])
    found = pg.inference.posterior(weighted, y, method=smc, draws=2048, seed=0)
    rows = dist.Normal(0.0, math.sqrt(2.0)).log_prob(y)  # a quarter of it is of variance 1
    change = math.log(2 * math.pi) / 2 - (math.log(0.5) + math.log(2 * math.pi) / 2) / 4
    exact = float(rows.sum()) + 2 * change
    assert abs(found.log_evidence - exact) < 4 * found.se + 0.05


def test_a_guide_of_a_guide_by_a_classifier(float64):
    """Two measurements of normal data: the first by its exact noisy likelihood."""
    torch.manual_seed(0)
    prior = d.GaussianDenoiser(torch.zeros(1), torch.eye(1), d.VP()).double()

    def first(x, t):
        alpha, sigma = prior.signal(t)
        width = (0.5**2 + sigma.square()).sqrt()
        return dist.Normal(alpha * x, width).to_event(1).log_prob(torch.ones(1))

    both = d.MMPS(d.ClassifierGuided(prior, first), lambda x: x, -torch.ones(1), 0.5)
    x = d.DPMSolver(60).sample(both, torch.randn(4000, 1))
    precision = 1 + 2 / 0.5**2
    assert abs(float(x.mean())) < 0.03
    assert abs(float(x.std()) * precision**0.5 - 1) < 0.05


@pytest.mark.parametrize("name", ["vp", "cosine", "karras", "rectified", "table"])
def test_densities_by_solvers_that_choose_their_steps(name, float64):
    denoiser = d.GaussianDenoiser(torch.zeros(2), 0.5 * torch.eye(2), SCHEDULES[name]())
    free = pg.distributions.Diffusion(denoiser, method="dopri5", tolerance=1e-6).double()
    fixed = pg.distributions.Diffusion(denoiser, steps=64).double()
    x = torch.randn(5, 2)
    torch.testing.assert_close(free().log_prob(x), fixed().log_prob(x), rtol=1e-4, atol=1e-4)
    assert free().rsample((3,)).shape == (3, 2)
    start = torch.randn(4, 2)
    drawn = [d.ODESolver(8, m).sample(denoiser, start) for m in ("dopri5", "rk4")]
    torch.testing.assert_close(*drawn, rtol=1e-3, atol=1e-3)


def test_contexts_have_gradients_through_the_adjoint(float64):
    torch.manual_seed(0)
    c, x = torch.randn(5, 2), torch.randn(5, 2)
    found = []
    for adjoint in (False, True):
        torch.manual_seed(1)
        flow = pg.models.CNF(2, 2, (8,), method="dopri5", tolerance=1e-7, adjoint=adjoint).double()
        for p in flow.parameters():
            torch.nn.init.normal_(p, std=0.2)
        given = c.clone().requires_grad_()
        found.append(torch.autograd.grad(flow(given).log_prob(x).sum(), given)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    law = pg.models.EDM(2, 3, (8,), solver_steps=2).double()(torch.randn(4, 3))
    assert law.log_prob(torch.zeros(2)).shape == law.log_prob(torch.zeros(1, 2)).shape == (4,)


def test_a_guided_diffusion_draws_in_a_model(float64):
    prior, y, a, noise, _ = measured()
    seen = pg.distributions.Diffusion(d.MMPS(prior, a, y, noise), d.DDIM(4)).double()
    assert not seen().has_rsample
    with pyro.plate("data", 3):
        assert pyro.sample("x", seen()).shape == (3, 8)
    assert pg.sample("x", seen).shape == (8,)


def test_the_corrector_keeps_what_its_predictor_draws(float64):
    torch.manual_seed(0)
    denoiser = d.GaussianDenoiser(torch.zeros(1), 9 * torch.eye(1), d.VP()).double()
    x = d.PredictorCorrector(d.Ancestral(5, "law"), ratio=1e-6).sample(
        denoiser, torch.randn(20_000, 1)
    )
    assert abs(float(x.std()) / 3 - 1) < 0.03


def test_diffusions_are_saved_with_their_objective(tmp_path):
    network = pg.networks.TimeMLP(2, hidden_features=(8,))
    objective = pg.objectives.Denoising("eps", drop=0.1)
    module = pg.distributions.Diffusion(
        d.NetworkDenoiser(network, d.VP(), (2,), predicts="eps"), objective=objective
    )
    module.save(tmp_path)
    assert pg.load(tmp_path).objective == objective


def test_masked_data_say_nothing(float64):
    prior, y, a, noise, _ = measured()
    module = pg.distributions.Diffusion(prior, steps=8).double().freeze()
    found = [
        pg.mcmc.likelihood(stated(module, a, noise, mask), data)
        for mask, data in ((None, y), (False, y), (False, y + torch.tensor([0.0, 0.0, 9.0])))
    ]
    x = torch.randn(4, 8)
    assert not torch.equal(found[0](x), found[1](x))
    torch.testing.assert_close(found[1](x), found[2](x))
    torch.testing.assert_close(found[1].means(x)[:, 2], torch.zeros(4))
    torch.testing.assert_close(found[1].normal()[0], torch.cat([y[:2], torch.zeros(1)]))
    rows = dist.Normal(a(x), noise).log_prob(y)
    torch.testing.assert_close(found[0](x), rows.sum(-1))
    torch.testing.assert_close(found[1](x), rows[:, :2].sum(-1))


def test_what_posteriors_of_models_refuse(float64):
    prior, y, a, noise, _ = measured()
    module = pg.distributions.Diffusion(prior, d.DDIM(5), steps=4).double().freeze()

    def two(y):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        stated(module, a, noise)(y)

    def plain(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(8), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(a(x), noise).to_event(1), obs=y)

    def counts(y):
        x = pg.sample("x", module)
        pyro.sample("y", dist.Poisson(a(x).exp()).to_event(1), obs=y)

    def growing(y):
        x = pg.sample("x", module)
        pyro.sample("y", dist.Normal(a(x), a(x).exp()).to_event(1), obs=y)

    def unseen(y):
        pg.sample("x", module)

    def many(y):
        with pyro.plate("n", 2):
            x = pg.sample("x", module)
            pyro.sample("y", dist.Normal(a(x), noise).to_event(1), obs=y.expand(2, 3))

    cases = [
        (two, "one latent site, got 2: z, x"),
        (plain, "a diffusion at site 'x'"),
        (counts, "normal data at site 'y', got a Poisson"),
        (growing, "noise that does not depend on site 'x'"),
        (unseen, "with observed sites, got none"),
        (many, r"one value at site 'x', got the batch shape \(2,\)"),
    ]
    for model, message in cases:
        with pytest.raises(ValueError, match=message):
            pg.inference.posterior(model, y.abs().round(), method=d.MMPS, draws=8)
    with pytest.raises(ValueError, match="a Pyro model for a `method`"):
        pg.inference.posterior(module, lambda x: x.sum(), method=d.MMPS)
    counted = y.abs().round()
    for method in (d.DPS, d.TwistedSMC(d.Ancestral(5))):  # take any likelihood
        found = pg.inference.posterior(counts, counted, method=method, draws=16, seed=0)
        assert found.draws["x"].shape == (16, 8)


class ScoreOnly:
    """The rule of other packages: a prior of value 0 whose gradient is the score."""

    def __call__(self, x):
        return -(1 - x).square().sum(-1) / 8

    def value_and_gradient(self, x):
        return self(x), (1 - x) / 4 - x


def test_why_priors_with_a_score_alone_are_refused(float64):
    """Prior N(0, 1) and a datum 1 of standard deviation 2: the posterior is N(0.2, 0.8)."""
    torch.manual_seed(0)
    kernel, target = pg.mcmc.HMC(0.5, 6), ScoreOnly()
    state = kernel.init(torch.zeros(4000, 1), target)
    for _ in range(60):
        state, _ = kernel.step(state, target)
    wrong = state.position
    assert abs(float(wrong.mean()) - 0.2) > 0.2 or abs(float(wrong.var()) - 0.8) > 0.4
    score = pg.mcmc.Score(lambda x: (1 - x) / 4 - x)
    with pytest.raises(TypeError, match="Expected a log density, because HMC tests"):
        kernel.init(torch.zeros(4, 1), score)
    exact = pg.distributions.Diffusion(
        d.GaussianDenoiser(torch.zeros(1), torch.eye(1), d.VP()), steps=8
    ).freeze()

    def model():
        x = pg.sample("x", exact.double())
        pyro.sample("y", dist.Normal(x, 2.0).to_event(1), obs=torch.ones(1))

    draws = pg.mcmc.run(
        model, kernel=kernel, chains=1000, warmup=10, draws=10, seed=0, progress=False
    )
    x = draws.samples["x"]
    assert abs(float(x.mean()) - 0.2) < 0.1
    assert abs(float(x.var()) - 0.8) < 0.15
