"""Known answers of diffusions: schedules, denoisers and samplers."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import probgen as pg
from probgen import diffusion as d

from .diffusion_cases import MEANS, SCHEDULES, WEIGHTS, covariance, measured, mixture
from .diffusion_cases import schedule as schedule


def test_guided_samplers_show_where_they_are(capsys):
    prior = d.GaussianDenoiser(torch.zeros(2), torch.eye(2), d.VP())
    seen = []
    smc = d.TwistedSMC(d.Ancestral(20, "step"))
    smc.sample(
        prior, 64, lambda x: x, torch.ones(2), 1.0, callback=lambda k, x: seen.append((k, x.shape))
    )
    assert seen == [(k, (64, 2)) for k in range(20)]
    assert capsys.readouterr().err == ""
    smc.sample(prior, 64, lambda x: x, torch.ones(2), 1.0, progress=True)
    assert "0/20" in capsys.readouterr().err
    module = pg.distributions.Diffusion(prior).freeze()

    def model():
        x = pg.sample("x", module)
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=torch.ones(2))

    for method in (d.MMPS, smc):
        pg.inference.posterior(model, method=method, draws=64, seed=0)
        assert "0/20" in capsys.readouterr().err
        pg.inference.posterior(model, method=method, draws=64, seed=0, progress=False)
        assert capsys.readouterr().err == ""

    def nothing(x):
        return torch.where(x[..., 0] > 1e3, 0.0 * x[..., 0], -torch.inf)

    smc = d.TwistedSMC(d.Ancestral(5, "step"), gradient=False)
    with pytest.raises(ValueError, match="does not vanish at all particles"):
        smc.sample(prior, 64, nothing)


def gaussian(schedule, **options):
    m, s = torch.tensor([1.0, -2.0, 0.5]), covariance()
    denoiser = d.GaussianDenoiser(m, s, schedule)
    truth = torch.distributions.MultivariateNormal(m, s)
    return pg.distributions.Diffusion(denoiser, **options).double(), truth


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_the_flow_converges_at_the_order_of_its_method(method, order, float64):
    """Between two noisy marginals of normal data, both known."""
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(3, 3)).Q
    s = rotation * torch.tensor([0.5, 1.0, 2.0]) @ rotation.mT
    denoiser = d.GaussianDenoiser(torch.zeros(3), s, d.VP())

    def marginal(t):
        alpha, sigma = denoiser.schedule(torch.tensor(t))
        return torch.distributions.MultivariateNormal(
            torch.zeros(3), alpha**2 * s + sigma**2 * torch.eye(3)
        )

    x = marginal(0.2).sample((8,))
    errors = []
    counts = (32, 64, 128)
    for n in counts:
        flow = pg.transforms.Continuous(
            lambda y, t: denoiser.predict("flow", y, t),
            torch.linspace(1.0, 0.2, n + 1),
            method,
            event=(3,),
        )
        z, ladj = flow.inverse_and_ladj(x)
        found = marginal(1.0).log_prob(z) - ladj
        errors.append(float((found - marginal(0.2).log_prob(x)).abs().mean()))
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(rate - order) < 0.15 for rate in rates), rates
    if method == "rk4":
        assert errors[1] < 1e-6


def test_random_directions_of_the_trace_are_unbiased(float64):
    torch.manual_seed(0)
    module, _ = gaussian(d.VP(), steps=8)
    x = torch.randn(1, 3)
    exact = float(module().log_prob(x))
    spreads = []
    for probes in (1, 4, 16):
        module.probes = probes
        found = module().log_prob(x.expand(4000, 3))
        assert abs(float(found.mean()) - exact) < 3 * float(found.std()) / 4000**0.5
        spreads.append(float(found.std()))
    for a, b in itertools.pairwise(spreads):
        assert abs(a / b / 2 - 1) < 0.1


@pytest.mark.parametrize("name", ["vp", "cosine", "rectified", "karras"])
def test_the_density_is_that_of_the_data(name, float64):
    torch.manual_seed(0)
    s = covariance()
    s = s / (s.diagonal()[:, None] * s.diagonal()).sqrt()  # of variance 1, as the base takes them
    truth = torch.distributions.MultivariateNormal(torch.zeros(3), s)
    denoiser = d.GaussianDenoiser(torch.zeros(3), s, SCHEDULES[name]())
    module = pg.distributions.Diffusion(denoiser, steps=128).double()
    x = truth.sample((200,))
    law = module()
    assert law.density is pg.Density.ODE
    gap = law.log_prob(x) - truth.log_prob(x)
    assert float(gap.abs().max()) < 0.03  # what the noise of the least time leaves
    y = law.rsample((2000,))
    z = (y.mean(0) - truth.mean).abs() / (truth.covariance_matrix.diagonal() / 2000).sqrt()
    assert float(z.max()) < 4.5


def test_the_bound_of_normal_data_is_in_closed_form(float64):
    torch.manual_seed(0)
    schedule = d.VP()
    module, truth = gaussian(schedule)
    steps, n = 20, 60_000
    x = truth.sample((n,))
    found = module.elbo(x, steps=steps)
    lam = torch.linalg.eigvalsh(truth.covariance_matrix)
    r = schedule.log_snr(module.levels(steps, x)).exp()
    middle = sum(
        float((r[k - 1] - r[k]) / 2 * (lam / (1 + lam * r[k])).sum()) for k in range(1, steps)
    )
    alpha, sigma = schedule(torch.ones(()))
    m2 = float((truth.mean.square() + truth.covariance_matrix.diagonal()).sum())
    kl = (float(alpha**2) * m2 + 3 * float(sigma**2) - 3 - 3 * math.log(float(sigma**2))) / 2
    spread = lam / (1 + lam * r[0])  # of x given z_1
    first = float(((2 * math.pi * spread).log() + 1).sum() / 2)
    exact = -(middle + kl + first)
    assert abs(float(found.mean()) - exact) < 3 * float(found.std()) / n**0.5
    assert float(found.mean()) < float(truth.log_prob(x).mean())


RECIPES = {
    "DDPM": lambda c: pg.models.DDPM(2, c, (32, 32), steps=40, solver_steps=8),
    "EDM": lambda c: pg.models.EDM(2, c, (32, 32), solver_steps=8),
    "FlowMatching": lambda c: pg.models.FlowMatching(2, c, (32, 32), solver_steps=8),
    "NCSN": lambda c: pg.models.NCSN(
        2, c, (32, 32), sampler=d.AnnealedLangevin(30, 10), solver_steps=8
    ),
    "ODE": lambda c: pg.models.EDM(2, c, (32, 32), sampler=d.ODESolver(8), solver_steps=8),
    "ScoreSDE": lambda c: pg.models.ScoreSDE(
        2, c, (32, 32), d.PredictorCorrector(d.Ancestral(40)), solver_steps=8
    ),
    "CNF": lambda c: pg.models.CNF(2, c, (16,), steps=2),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_train_draw_score_and_are_saved(name, tmp_path):
    torch.manual_seed(0)
    module = RECIPES[name](1)
    c = torch.randn(400, 1)
    x = torch.cat([c, -c], 1) * 20 + 5 + torch.randn(400, 2)
    steps = 30 if name == "CNF" else 400
    history = pg.fit(module, x, context=c, steps=steps, lr=3e-3, seed=0, progress=False)
    assert history.losses[-1] < history.losses[0]
    module.freeze()
    law = module(torch.tensor([[-1.0], [1.0]]))
    assert (law.batch_shape, law.event_shape) == ((2,), (2,))
    y = law.sample((200,))
    assert y.shape == (200, 2, 2)
    if name != "CNF":
        assert float((y.mean(0) - torch.tensor([[-15.0, 25.0], [25.0, -15.0]])).abs().max()) < 5
        assert module.elbo(x, c).shape == module(c).elbo(x).shape == (400,)
        assert law.elbo(y).shape == (200, 2)
        assert law.expand((3, 2)).elbo(y[:3]).shape == (3, 2)
        assert module.score(x, torch.tensor(0.5), c).shape == x.shape
    assert law.log_prob(y[0]).isfinite().all()
    assert law.solver_error(y[0]).shape == (2,)
    assert law.density is module.density is pg.Density.ODE
    module.save(tmp_path)
    torch.testing.assert_close(
        pg.load(tmp_path)(c[:5]).log_prob(x[:5]), module(c[:5]).log_prob(x[:5])
    )


def test_a_diffusion_is_a_prior_of_chains(float64):
    """In the base of its flow, against the exact posterior of normal data."""
    torch.manual_seed(0)
    module, truth = gaussian(d.VP(), steps=8)
    module.freeze()

    def model(y):
        x = pg.sample("x", module)
        pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    y = torch.tensor([0.0, -1.0, 1.0])
    draws = pg.mcmc.run(
        model,
        y,
        kernel=pg.mcmc.HMC(0.3, 4),
        chains=64,
        warmup=30,
        draws=12,
        seed=0,
        progress=False,
    )
    assert draws.moved == ["x"]
    precision = torch.linalg.inv(truth.covariance_matrix) + 4 * torch.eye(3)
    cov = torch.linalg.inv(precision)
    mean = cov @ (torch.linalg.solve(truth.covariance_matrix, truth.mean) + 4 * y)
    x = draws.samples["x"].flatten(0, 1)
    se = (cov.diagonal() / 200).sqrt()  # 768 draws, a quarter of them independent
    assert float(((x.mean(0) - mean).abs() / se).max()) < 4
    assert float((torch.cov(x.mT) - cov).abs().max()) < 0.25 * float(cov.diagonal().max())


@pytest.mark.slow
def test_a_trained_mixture_is_that_of_the_data():
    """In a third of the 120 CPU seconds that it may take."""
    torch.manual_seed(0)
    truth = dist.MixtureSameFamily(dist.Categorical(WEIGHTS), dist.Normal(MEANS, 0.12).to_event(1))
    module, n = pg.models.EDM(2, hidden_features=(128, 128, 128), solver_steps=64), 10_000
    pg.fit(
        module,
        truth.sample((100_000,)),
        steps=4000,
        batch_size=512,
        lr=2e-3,
        schedule="cosine",
        ema=0.999,
        seed=0,
        progress=False,
    )
    module.freeze()
    x, again = module().sample((n,)), truth.sample((n,))
    angle = torch.nn.functional.normalize(torch.randn(200, 2), dim=1)
    far = ((x @ angle.T).sort(0).values - (again @ angle.T).sort(0).values).abs().mean()
    share = torch.cdist(x, MEANS).argmin(1).bincount(minlength=8) / n
    assert float(far) < 0.08
    assert float((share - WEIGHTS / 20).abs().sum() / 2) < 0.03
    y = truth.sample((4000,))
    gap = truth.log_prob(y) - module().log_prob(y)
    assert abs(float(gap.mean())) < 0.05
    exact = d.MixtureDenoiser(
        WEIGHTS,
        (MEANS - module.shift) / module.scale,
        (0.12 / module.scale).expand(8, 2),
        d.Karras(),
    )
    control = pg.distributions.Diffusion(exact, steps=64)
    control.shift.copy_(module.shift)
    control.scale.copy_(module.scale)
    assert abs(float((truth.log_prob(y) - control().log_prob(y)).mean())) < 0.005


def test_a_diffusion_stated_by_pyro_is_a_prior_too(float64):
    """In the space of the data, with the trace of every chain."""
    module, _ = gaussian(d.VP(), steps=1)
    for denoiser in (module.denoiser, mixture(d.VP()).double()):
        law = pg.distributions.Diffusion(denoiser, steps=1).double()

        def model(law=law):
            x = pyro.sample("x", law())
            pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=torch.zeros_like(x))

        target = pg.mcmc.potential(model)
        u = torch.randn(3, target.size)
        value, gradient = target.value_and_gradient(u)
        exact = law().log_prob(u) + dist.Normal(u, 0.5).log_prob(torch.zeros(())).sum(-1)
        torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-6)
        assert gradient.isfinite().all()


def test_what_diffusions_refuse():
    vp = d.VP()
    with pytest.raises(ValueError, match=r"`cut` in \(0, 1\)"):
        pg.distributions.Diffusion(mixture(vp), cut=0.0)
    with pytest.raises(ValueError, match="`weight` among"):
        pg.objectives.Denoising("sigma")
    with pytest.raises(TypeError, match="a diffusion, such as"):
        pg.objectives.Denoising()(pg.models.MAF(2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="`method` among"):
        pg.transforms.Continuous(lambda x, t: x, torch.linspace(0, 1, 3), "dopri")
    with pytest.raises(ValueError, match=r"shape \(N \+ 1,\)"):
        pg.transforms.Continuous(lambda x, t: x, torch.ones(1))


@pytest.mark.parametrize("times", [None, 3])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_the_pair_has_the_bound_of_the_closed_form(times, elbo, float64):
    torch.manual_seed(0)
    denoiser = d.GaussianDenoiser(torch.zeros(1), 0.4 * torch.eye(1), d.VP())
    module = pg.distributions.Diffusion(denoiser).double()
    steps, n = 8, 4000
    x = 0.4**0.5 * torch.randn(n, 1)
    x = x / x.square().mean().sqrt() * 0.4**0.5  # whose second moment is exact
    model, guide = module.pair(steps, times)
    found = torch.stack([torch.as_tensor(-elbo().loss(model, guide, x) / n) for _ in range(20)])
    r = denoiser.schedule.log_snr(module.levels(steps, x)).exp()
    lam = 0.4
    middle = sum(float((r[k - 1] - r[k]) / 2 * lam / (1 + lam * r[k])) for k in range(1, steps))
    alpha, sigma = denoiser.schedule(torch.ones(()))
    kl = (float(alpha**2) * lam + float(sigma**2) - 1 - math.log(float(sigma**2))) / 2
    first = (math.log(2 * math.pi * lam / (1 + lam * float(r[0]))) + 1) / 2
    exact = -(middle + kl + first)
    assert abs(float(found.mean()) - exact) < 3 * float(found.std()) / 20**0.5 + 1e-9
    by_method = module.elbo(x.repeat(10, 1), steps=steps)
    assert abs(float(by_method.mean()) - exact) < 3 * float(by_method.std()) / (10 * n) ** 0.5


@pytest.mark.parametrize("times", [None, 2])
def test_plain_svi_trains_a_diffusion(times):
    torch.manual_seed(0)
    module = pg.models.DDPM(2, hidden_features=(16,), steps=6)
    x = 3 + 2 * torch.randn(100, 2)
    module.initialize(x)
    model, guide = module.pair(6, times)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x[:50], size=100) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert {id(p) for p in Trace_ELBO()(model, guide).parameters()} == {
        id(p) for p in module.parameters()
    }
    assert model(size=5).shape == (5, 2)
    svi = pyro.infer.SVI(module.model, module.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    assert math.isfinite(svi.step(x))
    with pytest.raises(ValueError, match="Expected data `x`"):
        guide()


def test_every_draw_of_the_bound_is_the_density_where_all_is_known(float64):
    """Full covariances, exact ends: the model is then the data's law under the chain."""
    torch.manual_seed(0)
    module, truth = gaussian(d.VP())
    x = truth.sample((6,))
    model, guide = module.pair(7, None, "law")
    for _ in range(3):
        for k in range(6):
            loss = Trace_ELBO().loss(model, guide, x[k : k + 1])
            assert abs(-loss - float(truth.log_prob(x[k]))) < 1e-10


def test_even_and_weighted_times_spread_less(float64):
    """The bound from even times, weighted by its own terms, and from one uniform time."""
    torch.manual_seed(0)
    schedule, steps = d.VP(), 1000
    module, truth = gaussian(schedule, chain=d.UniformGrid())
    x = truth.sample((512,))
    even = torch.stack([module.elbo(x, steps=steps).mean() for _ in range(200)])

    t = torch.arange(1, steps + 1) / steps
    r = schedule.log_snr(t).exp()
    uniform = []
    for _ in range(200):  # by the textbook: one time of all for each datum, the first among them
        k = torch.randint(1, steps + 1, (512,))
        alpha, sigma = module.denoiser.signal(k / steps)
        z = alpha * x + sigma * torch.randn_like(x)
        law = module.denoiser(z, k / steps)
        gap = (x - law.mean).square().sum(-1)
        gain = torch.where(k > 1, (r[(k - 2).clamp_min(0)] - r[k - 1]) / 2 * gap, -law.log_prob(x))
        uniform.append(-(steps * gain).mean())
    uniform = torch.stack(uniform)
    assert abs(float(even.mean() - uniform.mean())) < 4 * float(uniform.std()) / 200**0.5
    assert float(even.std()) < float(uniform.std()) / 10


@pytest.mark.parametrize("steps", [1, 3])
def test_draws_of_the_law_are_exact_however_few_the_steps(steps, float64):
    torch.manual_seed(0)
    denoiser, n = mixture(d.Cosine()), 20_000
    start = d.noise(denoiser, torch.Size([n]), torch.ones(()))
    x = d.Ancestral(steps, "law").sample(denoiser, start)
    share = torch.cdist(x, MEANS.double()).argmin(1).bincount(minlength=8) / n
    p = WEIGHTS / 20
    assert float(((share - p) / (p * (1 - p) / n).sqrt()).abs().max()) < 4
    gap = (x[:, None] - MEANS.double()).norm(dim=-1).min(1).values
    assert abs(float(gap.square().mean()) / (2 * 0.12**2) - 1) < 0.05


def test_a_variance_is_learned():
    """Of normal data the best one is known."""
    torch.manual_seed(0)
    lam = torch.tensor([0.2, 1.0])
    mean = d.GaussianDenoiser(torch.zeros(2), lam.diag(), d.VP())
    learned = d.LearnedVariance(mean, pg.networks.TimeMLP(2, hidden_features=(32, 32)))
    module = pg.distributions.Diffusion(learned)
    module.eval()  # in the units of the data
    optimizer = torch.optim.Adam(module.parameters(), 5e-3)
    for _ in range(400):
        optimizer.zero_grad()
        x = lam.sqrt() * torch.randn(256, 2)
        module.objective(module, x).mean().backward()
        optimizer.step()
    z, t = torch.randn(2000, 2), torch.tensor(0.3)
    found = learned(z, t).variance.mean(0).detach()
    alpha, sigma = d.VP()(t)
    exact = lam * sigma**2 / (alpha**2 * lam + sigma**2)
    assert float((found / exact).log().abs().max()) < 0.15
    drawn = d.Ancestral(20, "law").sample(learned, torch.randn(4000, 2))
    assert float((drawn.var(0) / lam).log().abs().max()) < 0.15


def test_times_may_be_spread_over_angles():
    """Evenly, and so alike for every schedule."""
    torch.manual_seed(0)
    found = []
    for name in ("vp", "karras", "rectified"):
        schedule, seen = SCHEDULES[name](), []
        network = lambda x, level, seen=seen: seen.append(level) or x
        module = pg.distributions.Diffusion(d.NetworkDenoiser(network, schedule, (1,)))
        pg.objectives.Denoising(times="angle")(module, torch.randn(2000, 1))
        found.append((-seen[-1] / 2).exp().atan().sort().values)
    for angles in found:
        gaps = angles.diff()
        assert float(gaps.max()) < 2 * float(gaps.mean())
    assert float((found[1] - found[2]).abs().max()) < 0.05


def test_optimal_pairs_are_nearer_and_all_there():
    torch.manual_seed(0)
    y, eps = torch.randn(64, 3), torch.randn(64, 3)
    found = pg.objectives.denoising.paired(y, eps)
    assert torch.equal(found.sort(0).values, eps.sort(0).values)
    assert (y - found).square().sum() < 0.5 * (y - eps).square().sum()
    module = pg.models.FlowMatching(3, hidden_features=(16,))
    optimal = pg.objectives.Denoising("flow", pairing="optimal")
    history = pg.fit(module, y, objective=optimal, steps=20, progress=False)
    assert all(map(math.isfinite, history.losses))
    module = pg.models.FlowMatching(3, 1, hidden_features=(16,))
    with pytest.raises(ValueError, match="no context for optimal pairs"):
        optimal(module, y, y[:, :1])


def test_dropped_contexts_are_zeros():
    torch.manual_seed(0)
    seen = []

    def network(x, level, c):
        seen.append(c)
        return x

    module = pg.distributions.Diffusion(d.NetworkDenoiser(network, d.VP(), (2,), 1))
    pg.objectives.Denoising(drop=0.3)(module, torch.randn(2000, 2), torch.ones(2000, 1))
    assert abs(float((seen[-1] == 0).float().mean()) - 0.3) < 0.04


@pytest.mark.parametrize("adjoint", [False, True])
def test_solvers_that_choose_their_steps(adjoint, float64):
    torch.manual_seed(0)
    fixed = pg.models.CNF(2, hidden_features=(16,), steps=32).double()
    for p in fixed.parameters():
        torch.nn.init.normal_(p, std=0.2)
    free = pg.models.CNF(
        2, hidden_features=(16,), method="dopri5", tolerance=1e-6, adjoint=adjoint
    ).double()
    free.load_state_dict(fixed.state_dict())
    x = torch.randn(6, 2)
    grads = []
    for module in (fixed, free):
        loss = module().log_prob(x).sum()
        grads.append(torch.autograd.grad(loss, list(module.parameters())))
    torch.testing.assert_close(free().log_prob(x), fixed().log_prob(x), rtol=1e-4, atol=1e-4)
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert float(free().solver_error(x).max()) < 1e-4
    assert float(pg.models.CNF(2, steps=2)().solver_error(x).max()) < 1.0


def test_what_the_solver_leaves_is_said(float64):
    torch.manual_seed(0)
    module, truth = gaussian(d.VP(), steps=64)
    x = truth.sample((20,))
    exact = gaussian(d.VP(), steps=256)[0]().log_prob(x)
    error = (module().log_prob(x) - exact).abs().mean()
    said = module().solver_error(x).mean() / 15  # of a method of order 4
    assert 1 / 3 < float(said / error) < 3
    module.probes = 2
    assert float(module().solver_error(x).max()) < 1.0  # the same directions twice
    with pytest.raises(TypeError, match="solves an equation"):
        pg.models.MAF(2)().solver_error(torch.zeros(3, 2))


def test_guided_denoisers_draw_and_have_no_density(float64):
    prior, y, a, noise, _ = measured()
    seen = pg.distributions.Diffusion(d.MMPS(prior, a, y, noise), d.ODESolver(4), steps=4).double()
    assert seen.density is pg.Density.PUSHFORWARD
    x = seen().sample((3,))
    assert x.shape == (3, 8)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context, pytest.raises(NotImplementedError, match="got MMPS, which guides draws"):
            seen().log_prob(x)

    def model():
        x = pg.sample("x", seen)
        pyro.factor("f", x.sum())

    with pytest.raises(ValueError, match="a sampler without one"):
        pg.mcmc.potential(model)


def test_images_and_signals_have_recipes(tmp_path):
    torch.manual_seed(0)
    for shape in ((1, 8, 8), (2, 16)):
        module = pg.models.EDM(shape, hidden_features=(8, 16), sampler=d.Heun(3))
        pg.fit(module, torch.randn(32, *shape), steps=5, progress=False)
        assert module.freeze()().sample((2,)).shape == (2, *shape)
        assert module().elbo(torch.randn(3, *shape)).shape == (3,)
        module.save(tmp_path / str(len(shape)))
        again = pg.load(tmp_path / str(len(shape)))
        x = torch.randn(2, *shape)
        t = torch.tensor(0.5)
        torch.testing.assert_close(again.score(x, t), module.score(x, t))
