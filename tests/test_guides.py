"""Guides for any Pyro model, smoothed importance weights, and what latents hold."""

import copy
import math
import warnings

import arviz
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import init_to_value

import probgen as pg
from probgen.inference import (
    FlowGuide,
    FullCovariance,
    MeanField,
    attribute,
    diagnose,
    interpolate,
    khat,
    psis,
)

pytestmark = pytest.mark.usefixtures("float64")

GUIDES = {
    "mean field": MeanField,
    "full covariance": FullCovariance,
    "flow": FlowGuide,
    "IAF": lambda model: FlowGuide(
        model, lambda size: pg.models.IAF(size, transforms=1, hidden_features=(8,))
    ),
    "NSF": lambda model: FlowGuide(
        model, lambda size: pg.models.NSF(size, transforms=2, hidden_features=(8,), bins=4)
    ),
}


def train(model, guide, *args, elbo=None, steps=250, lr=0.06, decay=0.02, **kwargs):
    """Trains, the rate falling to a part of what it was."""
    if elbo is None:
        elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    optim = pyro.optim.ClippedAdam({"lr": lr, "lrd": decay ** (1 / steps)})
    svi = SVI(model, guide, optim, elbo)
    for _ in range(steps):
        svi.step(*args, **kwargs)
    return svi


X = torch.linspace(-1, 2, 20, dtype=torch.double)
Y = 0.5 + 0.8 * X + 0.5 * torch.sin(37 * X)  # noise, the same in every test


def line(x, y=None, size=None, index=None):
    """A line through data, with conjugate weights."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.deterministic("twice", 2 * w)
    with pyro.plate("data", size or len(x), subsample=index):
        pyro.sample("y", dist.Normal(w[..., 0] + w[..., 1] * x, 0.5), obs=y)


def line_exact():
    a = torch.stack([torch.ones_like(X), X], 1)
    precision = torch.eye(2) + a.T @ a / 0.25
    covariance = torch.linalg.inv(precision)
    law = dist.MultivariateNormal(torch.zeros(20), a @ a.T + 0.25 * torch.eye(20))
    return covariance @ a.T @ Y / 0.25, covariance, precision, law.log_prob(Y)


def everything(x, y=None):
    """Sites of many supports, a plate of latents and a deterministic site."""
    pyro.sample("corner", dist.Dirichlet(torch.ones(3)))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    pyro.sample("factor", dist.LKJCholesky(2, 1.0))
    with pyro.plate("groups", 4):
        pyro.sample("group", dist.LogNormal(0.0, scale))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(pyro.deterministic("mean", scale * x), 1.0), obs=y)


@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES.keys())
def test_a_guide_takes_any_model(make):
    guide = make(everything)
    values = guide(X, Y)
    trace = pyro.poutine.trace(everything).get_trace(X, Y)
    for name in ("corner", "scale", "factor", "group"):
        site = trace.nodes[name]
        assert values[name].shape == site["value"].shape
        assert site["fn"].support.check(values[name]).all()
    for elbo in (
        Trace_ELBO(),
        pg.objectives.ELBO().elbo(),
        pg.objectives.IWAE(3).elbo(),
        pg.objectives.Renyi(0.5, 3).elbo(),
        pg.objectives.ForwardKL(3).elbo(),
    ):
        before = [p.detach().clone() for p in guide.parameters()]
        SVI(everything, guide, pyro.optim.Adam({"lr": 1e-2}), elbo).step(X, Y)
        assert any((p != old).any() for p, old in zip(guide.parameters(), before))
    draws = guide.draws(30, X, Y)
    assert draws.latent == ["corner", "scale", "factor", "group"]
    assert draws.samples["group"].shape == (1, 30, 4)
    assert draws.samples["mean"].shape == (1, 30, 20)
    torch.testing.assert_close(draws.samples["mean"][0], draws.samples["scale"][0, :, None] * X)
    assert draws.predictive(everything, X)["y"].shape == (30, 20)
    predicted = Predictive(everything, guide=guide, num_samples=7)(X)
    assert predicted["y"].shape == (7, 20)
    assert {row.name for row in draws.summary().rows} > {"corner[0]", "scale", "factor[1, 0]"}
    assert draws.to_arviz().posterior["scale"].shape == (1, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert guide.khat(X, Y, samples=50).shape == ()


def test_the_density_of_draws_is_that_of_the_guides_trace():
    guide = FlowGuide(everything)
    guide(X, Y)
    torch.manual_seed(3)
    draws = guide.draws(1, X, Y)
    values = {name: draws.samples[name][0, 0] for name in draws.latent}
    condition = pyro.poutine.condition(everything, values)
    log_p = pyro.poutine.trace(condition).get_trace(X, Y).log_prob_sum()
    u = [
        torch.distributions.biject_to(guide.prototype_trace.nodes[n]["fn"].support).inv(v)
        for n, v in values.items()
    ]
    q = guide.distribution()
    log_q = q.log_prob(torch.cat([part.reshape(-1) for part in u]))
    for (name, value), part in zip(values.items(), u):
        bijection = torch.distributions.biject_to(guide.prototype_trace.nodes[name]["fn"].support)
        log_q = log_q - bijection.log_abs_det_jacobian(part, value).sum()
    weight = draws.stats["log_weight"][0, 0]
    torch.testing.assert_close(weight, (log_p - log_q).detach())


@pytest.mark.parametrize("make", list(GUIDES.values())[1:3], ids=list(GUIDES)[1:3])
def test_a_rich_guide_finds_the_conjugate_posterior(make):
    mean, covariance, _, evidence = line_exact()
    guide = make(line)
    svi = train(line, guide, X, Y)
    loss = torch.tensor([svi.evaluate_loss(X, Y) for _ in range(50)]).mean()
    assert abs(-loss - evidence) < 0.06
    x = guide.draws(20_000, X, Y).samples["w"][0]
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0.15, atol=0.002)
    if make is FullCovariance:
        assert guide.khat(X, Y) < 0.7


def test_mean_field_has_the_conditional_variances_and_quantiles():
    mean, _, precision, _ = line_exact()
    guide = MeanField(line)
    train(line, guide, X, Y)
    sd = precision.diagonal() ** -0.5
    torch.testing.assert_close(guide.median(X, Y)["w"], mean, rtol=0, atol=0.01)
    low, high = guide.quantiles([0.1587, 0.8413], X, Y)["w"]
    torch.testing.assert_close((high - low).detach() / 2, sd, rtol=0.05, atol=0)


def test_mini_batches_train_the_same_guide():
    mean, _, _, _ = line_exact()
    guide = MeanField(line)
    elbo = pg.objectives.ELBO(samples=16).elbo(vectorize_particles=True, max_plate_nesting=1)
    optim = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99})
    svi = SVI(line, guide, optim, elbo)
    for _ in range(30):
        for part in torch.randperm(20).reshape(10, 2):
            svi.step(X[part], Y[part], 20, part)
    torch.testing.assert_close(guide.median(X, Y)["w"], mean, rtol=0, atol=0.12)


def test_khat_tells_a_bad_guide():
    guide = MeanField(line, init_loc_fn=init_to_value(values={"w": torch.ones(2)}), scale=0.02)
    guide(X, Y)
    with pytest.warns(UserWarning, match="k-hat is above 0.7 for the weights"):
        assert guide.khat(X, Y) > 0.7


def test_two_guides_never_share_parameters():
    first, second = MeanField(line), MeanField(line)
    elbo = Trace_ELBO()
    for guide in (first, second):
        svi = SVI(line, guide, pyro.optim.Adam({"lr": 0.1}), elbo)
        svi.step(X, Y)
        before = [p.detach().clone() for p in guide.parameters()]
        svi.step(X, Y)
        assert all((p != old).any() for p, old in zip(guide.parameters(), before))
    assert first.distribution.phi is not second.distribution.phi
    both = Trace_ELBO()(line, first)
    assert {id(p) for p in both.parameters()} == {id(p) for p in first.parameters()}


def test_a_frozen_flow_as_prior_stays_as_it_is():
    prior = pg.models.NSF(2, transforms=2, hidden_features=(8,)).freeze()
    old = copy.deepcopy(prior.state_dict())

    def model(y):
        x = pg.sample("x", prior)
        pyro.sample("y", dist.Normal(x.sum(-1), 0.5), obs=y)

    y = torch.tensor(1.0)
    guide = FullCovariance(model)
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=0)
    train(model, guide, y, elbo=elbo, steps=120)
    assert all(torch.equal(v, old[n]) for n, v in prior.state_dict().items())
    assert not any(p.requires_grad for p in prior.parameters())
    assert len(list(guide.parameters())) == 1
    draws = guide.draws(2000, y)
    x = prior().sample((50_000,))
    weight = dist.Normal(x.sum(-1), 0.5).log_prob(y).softmax(0)
    mean = draws.samples["x"][0].mean(0)
    torch.testing.assert_close(mean, weight @ x, rtol=0, atol=0.1)


def test_guides_refuse_what_they_cannot_do():
    def discrete():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("x", dist.Normal(z, 1.0))

    with pytest.raises(ValueError, match="discrete 'z'"):
        MeanField(discrete)()

    def local(index=None):
        with pyro.plate("data", 10, subsample=index):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    with pytest.raises(ValueError, match="'z' in 'data', where 2 of 10"):
        MeanField(local)(torch.tensor([0, 1]))
    with pytest.raises(TypeError, match="a function"):
        MeanField(3)
    with pytest.raises(ValueError, match="positive `scale`"):
        MeanField(line, scale=0.0)
    with pytest.raises(TypeError, match="lazy distribution"):
        FlowGuide(line, lambda size: dist.Normal(0.0, 1.0))(X, Y)
    with pytest.raises(TypeError, match="without context"):
        FlowGuide(line, lambda size: pg.models.MAF(size, context=1))(X, Y)
    with pytest.raises(TypeError, match="have a derivative"):
        FlowGuide(line, lambda size: pg.distributions.GaussianMixture(size, 2))(X, Y)
    with pytest.raises(ValueError, match="2 real numbers"):
        FlowGuide(line, lambda size: pg.models.MAF(3))(X, Y)
    with pytest.raises(NotImplementedError, match="draws"):
        FlowGuide(line).median(X, Y)
    guide = MeanField(line)
    with pytest.raises(ValueError, match="draws"):
        guide.draws(0, X, Y)


# The Bayesian mixture of Blei et al. (2017): mu_k ~ N(0, s2), z_i ~ Cat(1 / K), x_i ~ N(mu_z, 1)

K, S2 = 3, 25.0
CENTRES = torch.tensor([-5.0, 0.0, 4.0], dtype=torch.double)
FIRST = torch.tensor([-3.0, 0.5, 3.0], dtype=torch.double)


def mixture_data():
    return torch.cat([c + torch.randn(20) for c in CENTRES])


@config_enumerate
def mixture(x):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(K), S2**0.5).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(K) / K))
        centre = (mu * torch.nn.functional.one_hot(z, K)).sum(-1)
        pyro.sample("x", dist.Normal(centre, 1.0), obs=x)


def mixture_elbo(x, m, v, r):
    """The evidence lower bound of q(mu_k) = N(m_k, v_k), q(z_i = k) = r_ik."""
    prior = -0.5 * (math.log(2 * math.pi * S2) + (m**2 + v) / S2)
    entropy = 0.5 * (2 * math.pi * math.e * v).log()
    fit = -0.5 * (math.log(2 * math.pi) + (x[:, None] - m) ** 2 + v)
    return (prior + entropy).sum() + (r * (fit - math.log(K) - r.log())).sum()


def best_logits(x, m, v):
    """Of the responsibilities, given the rest of q."""
    return x[:, None] * m - (m**2 + v) / 2


def coordinate_ascent(x, steps=200):
    m, v = FIRST, torch.ones(K)
    for _ in range(steps):
        r = best_logits(x, m, v).softmax(-1)
        v = 1 / (1 / S2 + r.sum(0))
        m = v * (r * x[:, None]).sum(0)
    return m, v, best_logits(x, m, v).softmax(-1)


def test_mean_field_of_a_mixture_is_the_coordinate_ascent_optimum():
    x = mixture_data()
    m, v, r = coordinate_ascent(x)
    best = mixture_elbo(x, m, v, r)

    @config_enumerate
    def guide(x):
        loc = pyro.param("loc", FIRST.clone())
        scale = pyro.param("scale", torch.full((K,), 0.3), constraint=dist.constraints.positive)
        logits = best_logits(x, loc, scale**2).detach()  # whose gradient is zero
        pyro.sample("mu", dist.Normal(loc, scale).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits))

    elbo = TraceEnum_ELBO(num_particles=120, vectorize_particles=True, max_plate_nesting=1)
    svi = train(mixture, guide, x, elbo=elbo, steps=400, lr=0.15, decay=0.001)
    loc, scale = (pyro.param(name).detach() for name in ("loc", "scale"))
    found = best_logits(x, loc, scale**2).softmax(-1)
    value = mixture_elbo(x, loc, scale**2, found)
    assert best - 1e-3 < value < best + 1e-9
    torch.testing.assert_close(loc, m, rtol=0, atol=0.02)
    torch.testing.assert_close(found, r, rtol=0, atol=0.02)
    loss = torch.tensor([svi.evaluate_loss(x) for _ in range(20)]).mean()
    assert abs(loss + value) < 0.02
    torch.testing.assert_close(found.sum(-1), torch.ones(len(x)))


def test_a_guide_with_the_labels_summed_out_recovers_the_means():
    x = mixture_data()
    m, v, r = coordinate_ascent(x)
    guide = MeanField(mixture, init_loc_fn=init_to_value(values={"mu": FIRST}))
    elbo = TraceEnum_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    svi = train(mixture, guide, x, elbo=elbo, steps=200)
    loss = torch.tensor([svi.evaluate_loss(x) for _ in range(50)]).mean()
    assert -loss > mixture_elbo(x, m, v, r) - 0.01  # a tighter bound than with labels in q
    torch.testing.assert_close(guide.median(x)["mu"], CENTRES, rtol=0, atol=0.8)
    torch.testing.assert_close(guide.median(x)["mu"], m, rtol=0, atol=0.05)
    marginals = TraceEnum_ELBO(max_plate_nesting=1).compute_marginals(mixture, guide, x)
    chance = marginals["z"].enumerate_support(expand=False)
    chance = marginals["z"].log_prob(chance).exp().detach()
    torch.testing.assert_close(chance.sum(0), torch.ones(len(x)))
    draws = guide.draws(500, x)
    assert draws.latent == ["mu"]
    assert guide.khat(x) < 0.7


@pytest.mark.parametrize("size", [25, 100, 1001])
@pytest.mark.parametrize("tail", ["heavy", "normal", "bounded", "wild"])
def test_psis_is_that_of_arviz(size, tail):
    log_w = {
        "heavy": lambda: dist.Exponential(1.25).sample((size, 4, 2)),
        "normal": lambda: 2 * torch.randn(size, 4, 2),
        "bounded": lambda: torch.rand(size, 4, 2),
        "wild": lambda: 100 * dist.StudentT(2.0).sample((size, 4, 2)),
    }[tail]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smoothed, k = arviz.psislw(log_w.movedim(0, -1).numpy().copy())
    found = psis(log_w)
    torch.testing.assert_close(found.khat, torch.as_tensor(k))
    torch.testing.assert_close(found.log_weights.movedim(0, -1), torch.as_tensor(smoothed))
    torch.testing.assert_close(found.log_weights.exp().sum(0), torch.ones(4, 2))
    again = psis(log_w.movedim(0, 1), dim=1)
    torch.testing.assert_close(again.log_weights.movedim(1, 0), found.log_weights)
    torch.testing.assert_close(psis(log_w + 1000.0).khat, found.khat)


def test_psis_of_weights_that_are_equal_or_no_numbers():
    assert float(psis(torch.zeros(100)).khat) == -math.inf
    assert float(psis(1000 + 1e-13 * torch.rand(100)).khat) == -math.inf
    some = torch.randn(100).index_fill(0, torch.arange(10), -torch.inf)
    assert psis(some).log_weights[:10].eq(-torch.inf).all()
    with pytest.raises(ValueError, match="got nan"):
        psis(torch.full((100,), torch.nan))
    with pytest.raises(ValueError, match="none"):
        psis(torch.full((100,), -torch.inf))
    with pytest.raises(ValueError, match="25 draws"):
        psis(torch.zeros(10))


def test_khat_of_modules_and_pairs():
    vae = pg.models.VAE(4, latent=1, hidden_features=(8,)).double()
    x = torch.ones(5, 4)
    torch.manual_seed(1)
    by_module = khat(vae, x, samples=300)
    torch.manual_seed(1)
    by_hand = psis(vae.weigh(x, None, 300).log_weights).khat
    torch.testing.assert_close(by_module, by_hand.detach())
    assert by_module.shape == (5,)
    by_pair = khat(vae.model, x, guide=vae.guide, samples=100)
    assert by_pair.shape == (5,)

    def model():
        x = pyro.sample("x", dist.Exponential(torch.tensor(1.0)))
        pyro.factor("tilt", 2 * x)

    def guide():
        pyro.sample("x", dist.Exponential(torch.tensor(1.0)))

    with pytest.warns(UserWarning, match="k-hat"):
        k = khat(model, guide=guide, samples=500)
    assert k.shape == (1,)
    assert abs(k - 2) < 1  # weights exp(2 x) are Pareto
    with pytest.raises(TypeError, match="guide"):
        khat(model)


def correlated_data(count=400):
    return torch.randn(count, 1) * torch.tensor([1.0, 2.0, -1.0, 0.5]) + 0.1 * torch.randn(count, 4)


def test_diagnosis_of_latents():
    x = correlated_data()
    vae = pg.models.VAE(4, latent=3, hidden_features=(16,), likelihood="normal").double()
    pg.fit(vae, x, steps=300, lr=2e-2, seed=0, progress=False)
    found = diagnose(vae, x)
    q = vae.encode(x)
    exact = (q.variance + q.mean**2 - 1 - q.variance.log()) / 2
    torch.testing.assert_close(found.divergence, exact.mean(0).detach())
    torch.testing.assert_close(found.spread, q.mean.var(0).detach())
    assert 1 <= int(found.active.sum()) < 3
    elbo = pg.objectives.ELBO(samples=50)(vae, x).mean()
    assert abs(found.reconstruction + found.total - float(elbo.detach())) < 0.3
    text = str(found)
    assert "active latents" in text
    assert len(text.splitlines()) == 5


@pytest.mark.filterwarnings("ignore:Posterior collapse")
def test_diagnosis_of_layers():
    ladder = pg.models.LadderVAE(16, latents=(4, 2), hidden_features=(16, 8)).double()
    x = torch.rand(40, 16).round()
    torch.manual_seed(1)
    found = diagnose(ladder, x)
    torch.manual_seed(1)
    exact = ladder.weigh(x, None, 1, analytic=True).divergence.mean(0)
    torch.testing.assert_close(found.divergence, exact.detach())
    assert found.divergence.shape == found.active.shape == (2,)
    assert found.spread is None
    assert "group" in str(found)


def test_posterior_collapse_is_told():
    vae = pg.models.VAE(4, latent=2, hidden_features=(8,), likelihood="normal").double()
    for p in vae.posterior.parameters():
        torch.nn.init.zeros_(p)
    with pytest.warns(UserWarning, match="Posterior collapse: 0 of 2"):
        diagnose(vae, correlated_data(50))
    with pytest.raises(TypeError, match="latent variables"):
        diagnose(pg.models.MAF(2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="two data"):
        diagnose(vae, torch.zeros(1, 4))


def test_latents_between_two():
    a, b = torch.randn(2, 5, 8)
    line = interpolate(a, b, 5)
    torch.testing.assert_close(line[2], (a + b) / 2)
    arc = interpolate(a, 2 * a.norm(dim=-1, keepdim=True) * b / b.norm(dim=-1, keepdim=True), 7,
                      spherical=True)  # fmt: skip
    torch.testing.assert_close(arc[0], a)
    unit = lambda v: v / v.norm(dim=-1, keepdim=True)
    steps = (unit(arc[1:]) * unit(arc[:-1])).sum(-1).clamp(-1, 1).acos()
    same = interpolate(unit(a), unit(b), 7, spherical=True)
    torch.testing.assert_close(same.norm(dim=-1), torch.ones(7, 5))
    even = (same[1:] * same[:-1]).sum(-1).acos()
    torch.testing.assert_close(even, even[:1].expand(6, 5))
    assert (steps > 0).all()
    torch.testing.assert_close(interpolate(a, a, 3, spherical=True)[1], a)
    with pytest.raises(ValueError, match="one shape"):
        interpolate(a, b[:2], 3)
    with pytest.raises(ValueError, match="count"):
        interpolate(a, b, 1)


def test_the_direction_of_an_attribute():
    vae = pg.models.VAE(4, latent=2, hidden_features=(8,)).double()
    x, y = torch.rand(6, 4).round(), torch.rand(3, 4).round()
    direction = attribute(vae, x, y)
    torch.testing.assert_close(
        direction, (vae.encode(x).mean.mean(0) - vae.encode(y).mean.mean(0)).detach()
    )
    with pytest.raises(TypeError, match="encode"):
        attribute(pg.models.MAF(2), x, y)
