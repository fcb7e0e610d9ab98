"""Known answers of diffusions of discrete data."""

import math
from itertools import pairwise, product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from torch import nn

import probgen as pg
from probgen import diffusion as d

CORRUPTIONS = {
    "absorbing": d.AbsorbingCorruption,
    "binomial": d.BinomialCorruption,
    "gaussian": d.GaussianCorruption,
    "uniform": d.UniformCorruption,
}
P = torch.tensor([0.1, 0.35, 0.05, 0.3, 0.2], dtype=torch.double)


@pytest.fixture(params=CORRUPTIONS)
def corruption(request):
    return CORRUPTIONS[request.param]


class Exact(nn.Module):
    """The denoiser of a table of probabilities of vectors of a few states."""

    def __init__(self, table, corruption):
        super().__init__()
        self.corruption = corruption
        self.shape = table.shape
        self.register_buffer("log_p", table.log().flatten())

    def forward(self, x, t):
        k, dims = self.corruption.classes, len(self.shape)
        seen = self.corruption.log_seen(x, t, self.log_p)  # (*, D, K)
        all_x = torch.tensor(list(product(range(k), repeat=dims)))
        given = seen[..., torch.arange(dims), all_x].sum(-1) + self.log_p
        given = given.unflatten(-1, self.shape)
        axes = [[a - dims for a in range(dims) if a != i] for i in range(dims)]
        return torch.stack([given.logsumexp(a) if a else given for a in axes], -2)


def exact(table, corruption):
    return pg.distributions.DiscreteDiffusion(Exact(table, corruption), corruption, table.ndim)


def whole_bound(module, x):
    """The bound with all sums done, over steps and noisy values."""
    c = module.corruption
    noisy = torch.tensor(list(product(range(c.states), repeat=x.shape[-1])))
    total = -c.end_divergence(x, module.like).sum(-1)
    for k in range(1, c.steps + 1):
        t = torch.full((len(noisy),), k)
        logits = module.denoise(noisy, t)
        for i, datum in enumerate(x):
            rows = datum.expand_as(noisy)
            log_q = c.log_noisy(rows, t, logits).gather(-1, noisy[..., None])[..., 0].sum(-1)
            total[i] -= (log_q.exp() * c.divergence(logits, rows, noisy, t).sum(-1)).sum()
    return total


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_products_and_posteriors(corruption, steps, float64):
    q = corruption(5, steps)
    total = torch.eye(q.states)
    for k in range(1, steps + 1):
        assert (q.step(k).sum(-1) - 1).abs().max() < 1e-12
        assert (q.step(k) >= 0).all()
        total = total @ q.step(k)
        torch.testing.assert_close(q.cumulative(k), total, rtol=0, atol=1e-12)
        x, t = torch.arange(5).repeat(30), torch.full((150,), k)
        noisy = q.noisy(x, t)
        posterior = q.posterior(x, noisy, t).exp()
        bayes = q.step(k).mT[noisy] * q.cumulative(k - 1)[x]  # over x_{t-1}
        bayes = bayes / q.cumulative(k)[x, noisy][:, None]
        torch.testing.assert_close(posterior, bayes, rtol=0, atol=1e-12)
        torch.testing.assert_close(posterior.sum(-1), torch.ones(150), rtol=0, atol=1e-12)
    assert (q.cumulative(0) == torch.eye(q.states)).all()


def test_noisy_values_follow_their_law(corruption, float64):
    q, n = corruption(5, 12), 100_000
    noisy = q.noisy(torch.full((n, 3), 1), torch.tensor([2, 6, 11]).repeat(n // 3 + 1)[:n])
    for i, k in enumerate((2, 6, 11)):
        drawn = noisy[i::3].flatten()
        p = q.cumulative(k)[1]
        share = drawn.bincount(minlength=q.states) / len(drawn)
        assert ((share - p).abs() <= 4.5 * (p * (1 - p) / len(drawn)).sqrt()).all()


def test_levels_move_to_near_ones_and_end_uniform():
    q = d.GaussianCorruption(17, 100)
    row = q.step(60)[8]
    assert (row[8:].diff() < 0).all()
    torch.testing.assert_close(row[:8].flip(0), row[9:])
    for classes, steps in ((2, 100), (17, 50), (17, 1000), (64, 20)):
        last = d.GaussianCorruption(classes, steps).cumulative(steps)
        assert (last * classes - 1).abs().max() < 0.05


def test_one_masked_site_is_exact(float64):
    for steps in (1, 2, 10, 100):
        module = exact(P, d.AbsorbingCorruption(5, steps))
        x = torch.arange(5)[:, None]
        torch.testing.assert_close(whole_bound(module, x), P.log(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [d.BinomialCorruption, d.GaussianCorruption, d.UniformCorruption])
def test_one_site_loses_only_what_the_end_differs_by(kind, float64):
    """One site with the exact denoiser has the true reverse, from the end on."""
    for steps in (1, 5, 60):
        module = exact(P, kind(5, steps))
        gap = P.log() - whole_bound(module, torch.arange(5)[:, None])
        end = P @ module.corruption.cumulative(steps)
        lost = (end * (end.log() - module.corruption.log_end(end))).sum()
        assert abs(float((P * gap).sum() - lost)) < 1e-12


def test_the_gap_of_two_sites_falls_with_the_steps(corruption, float64):
    torch.manual_seed(0)
    table = torch.rand(3, 3) ** 3
    table = table / table.sum()
    x = torch.tensor(list(product(range(3), repeat=2)))
    log_p = table.log().flatten()
    gaps = []
    for steps in (1, 2, 4, 8, 16, 32):
        bound = whole_bound(exact(table, corruption(3, steps)), x)
        gaps.append(float((table.flatten() * (log_p - bound)).sum()))
    assert all(a > b > 0 for a, b in pairwise(gaps)), gaps
    assert gaps[-1] < 0.2 * gaps[0]


def test_draws_of_the_exact_denoiser(corruption, float64):
    torch.manual_seed(2)
    n = 10_000
    drawn = exact(P, corruption(5, 20))().sample((n,))
    assert drawn.dtype == torch.long
    share = drawn.flatten().bincount(minlength=5) / n
    assert ((share - P).abs() < 4 * (P * (1 - P) / n).sqrt()).all()
    table = torch.tensor([[0.4, 0.1], [0.05, 0.45]])
    drawn = exact(table, corruption(2, 100))().sample((n,))
    share = (2 * drawn[:, 0] + drawn[:, 1]).bincount(minlength=4) / n
    p = table.flatten()
    assert ((share - p).abs() < 4 * (p * (1 - p) / n).sqrt() + 0.01).all()  # 0.01 for the steps


def test_estimates_are_unbiased(corruption, float64):
    torch.manual_seed(1)
    table = torch.tensor([[0.4, 0.1], [0.05, 0.45]])
    module = exact(table, corruption(2, 12))
    x, n = torch.tensor([[0, 1], [1, 1]]), 8000
    truth = whole_bound(module, x)
    for times in (1, 5, 12):
        drawn = torch.stack([module.elbo(x.repeat(n // 20, 1), times=times) for _ in range(20)])
        drawn = drawn.reshape(-1, 2)
        se = drawn.std(0) / len(drawn) ** 0.5
        assert ((drawn.mean(0) - truth).abs() < 3.5 * se).all(), times
    law = module()
    assert law.elbo(x, times=12).shape == law.log_prob(x).shape == (2,)
    spread = [float(law.elbo(x[:1].expand(n, 2), times=k).std()) for k in (1, 12)]
    assert spread[1] < spread[0]


def small(name="absorbing", context=0, **options):
    options = {"classes": 3, "hidden_features": (16,), "steps": 6, **options}
    return pg.models.D3PM(4, context=context, corruption=name, **options)


def test_the_network_starts_from_independent_features(float64):
    torch.manual_seed(0)
    x = torch.randint(0, 3, (500, 4)).clamp_max(torch.tensor([0, 1, 2, 2]))
    model = small(steps=1)
    model.initialize(x)
    share = (torch.stack([(x == k).sum(0) for k in range(3)], -1) + 0.5) / 501.5
    log_p = share.log().expand(500, 4, 3).gather(-1, x[..., None]).sum((1, 2))
    torch.testing.assert_close(model().log_prob(x), log_p)  # one step, so that none is random


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_digits_are_learned(name):
    digits = pg.datasets.digits()
    x = digits.images[:256]
    model = pg.models.D3PM(64, 17, hidden_features=(64,), steps=30, corruption=name)
    history = pg.fit(model, x, steps=50, lr=3e-3, batch_size=64, seed=0, progress=False)
    assert sum(history.losses[-10:]) < 0.95 * sum(history.losses[5:15])
    drawn = model.freeze()().sample((3,))
    assert drawn.shape == (3, 64)
    assert model().support.check(drawn).all()
    bits = pg.metrics.bits_per_dimension(model().elbo(x, times=30), 64)
    assert bits.value < math.log2(17)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO])
def test_plain_svi_trains(elbo):
    torch.manual_seed(0)
    x = torch.randint(0, 2, (300, 1)).expand(-1, 4).contiguous()
    model = small("uniform", classes=2)
    with torch.no_grad():
        before = float(model.elbo(x, times=6).mean())
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), elbo())
    for _ in range(150):
        svi.step(x[:100], size=300)
    with torch.no_grad():
        assert float(model.elbo(x, times=6).mean()) > before + 0.5
    assert model.model(size=5).shape == (5, 4)


def test_contexts(float64):
    torch.manual_seed(0)
    c = torch.randint(0, 2, (1000, 1))
    x = (c + torch.zeros(4)).long()
    model = small(context=1)
    pg.fit(model, x, context=c.double(), steps=150, lr=1e-2, progress=False)
    law = model.freeze()(torch.tensor([[0.0], [1.0]]))
    assert (law.batch_shape, law.event_shape) == ((2,), (4,))
    drawn = law.sample((200,)).double()
    assert drawn.shape == (200, 2, 4)
    assert float(drawn[:, 0].mean()) < 0.1
    assert float(drawn[:, 1].mean()) > 0.9
    assert law.log_prob(drawn).shape == (200, 2)
    assert law.expand((3, 2)).sample().shape == (3, 2, 4)
    with pytest.raises(ValueError, match="context"):
        model()


def test_images_of_any_shape():
    class Flat(nn.Module):
        def forward(self, x, t):
            return torch.zeros(*x.shape, 2)

    law = pg.distributions.DiscreteDiffusion(Flat(), d.AbsorbingCorruption(2, 5), (2, 3))()
    assert law.sample((4,)).shape == (4, 2, 3)
    torch.testing.assert_close(
        law.elbo(torch.ones(20_000, 2, 3), times=5).mean(), torch.tensor(-6 * math.log(2)),
        rtol=0, atol=0.05,
    )  # fmt: skip


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_saved_and_loaded(name, tmp_path, float64):
    model = small(name, context=2).double()
    model.initialize(torch.randint(0, 3, (50, 4)))
    model.save(tmp_path)
    again = pg.load(tmp_path)
    x, c = torch.randint(0, 3, (5, 4)), torch.randn(5, 2)
    found = []
    for m in (model, again):
        torch.manual_seed(0)
        found += [m(c).log_prob(x), m(c).sample()]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert found[0].dtype == torch.float64


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_runs_without_reading_a_value(name, unchecked):
    model = small(name, context=2).to("meta")
    law = model(torch.empty(5, 2, device="meta"))
    x = torch.empty(5, 4, device="meta")
    assert law.log_prob(x).device.type == "meta"
    assert law.elbo(x, times=6).shape == (5,)
    assert law.sample().shape == (5, 4)
    assert model.objective(model, x, torch.empty(5, 2, device="meta")).shape == (5,)


def test_losses_and_gradients_are_finite_far_from_the_data(corruption):
    q = corruption(4, 9)
    logits = torch.tensor([200.0, -200.0, 0.0, -torch.inf]).repeat(9, 1, 1).requires_grad_()
    x, t = torch.ones(9, 1, dtype=torch.long), torch.arange(1, 10)
    loss = q.divergence(logits, x, q.noisy(x, t), t)
    assert loss.isfinite().all()
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert slope.isfinite().all()


def test_in_models_of_pyro():
    model = small(classes=2)
    x = torch.randint(0, 2, (7, 4))

    def likelihood(x=None):
        with pyro.plate("data", 7):
            return pg.sample("x", model, obs=x)

    trace = pyro.poutine.trace(likelihood).get_trace(x)
    assert trace.log_prob_sum().isfinite()
    assert trace.nodes["x"]["infer"]["learned"] == "trained"

    def prior(y):
        z = pg.sample("z", model)
        pyro.sample("y", dist.Normal(z.float(), 1.0).to_event(1), obs=y)

    with pytest.raises((ValueError, NotImplementedError)):
        pg.mcmc.run(prior, torch.zeros(4), warmup=1, draws=1, chains=1)


def test_a_prior_of_codes():
    vq = pg.models.VQVAE((1, 8, 8), codes=5, code_features=2, channels=(4,))
    size = vq.latent_shape

    class Codes(nn.Module):
        def forward(self, x, t):
            return torch.zeros(*x.shape, 5)

    prior = pg.distributions.DiscreteDiffusion(Codes(), d.UniformCorruption(5, 4), size)
    latent = vq.with_prior(prior)
    assert latent().sample((2,)).shape == (2, 1, 8, 8)
    assert latent().log_prob(torch.ones(2, 1, 8, 8)).shape == (2,)


def test_bad_input_is_named():
    for wrong, error, words in (
        (lambda: d.UniformCorruption(1), ValueError, "`classes`.*got 1"),
        (lambda: d.AbsorbingCorruption(3, 0), ValueError, "`steps`.*got 0"),
        (lambda: d.AbsorbingCorruption(1.5), ValueError, "`classes`.*got 1.5"),
        (lambda: pg.models.D3PM(0), ValueError, "`features`.*got 0"),
        (lambda: pg.models.D3PM(2, corruption="blur"), ValueError, "absorbing.*got 'blur'"),
        (
            lambda: small(d.UniformCorruption(5), steps=None),
            ValueError,
            "of 3 classes.*got one of 5",
        ),
        (lambda: small(d.UniformCorruption(3)), ValueError, "no `steps` besides.*steps=6"),
        (lambda: small(context=-1), ValueError, "`context`.*got -1"),
        (lambda: small()(torch.zeros(2)), ValueError, "no context"),
        (lambda: small()().log_prob(torch.zeros(3)), ValueError, r"\(\*, 4\), got \(3,\)"),
        (lambda: small()().log_prob(torch.full((4,), 3.0)), ValueError, "support.*got 3.0"),
        (lambda: small()().elbo(torch.zeros(4), times=7), ValueError, "at most 6.*got 7"),
        (lambda: small().corruption.noisy(torch.zeros(4), torch.tensor(7)), ValueError, "to 6"),
        (lambda: small().corruption.noisy(torch.zeros(4), torch.tensor(7.5)), ValueError, "to 6"),
        (
            lambda: d.GaussianCorruption(3).noisy(torch.zeros(4), torch.tensor(0.5)),
            TypeError,
            "whole",
        ),
        (lambda: pg.objectives.DiscreteDenoising(-1.0), ValueError, "`cross_entropy`.*-1.0"),
        (
            lambda: pg.objectives.DiscreteDenoising()(pg.models.MAF(2), torch.zeros(2, 2)),
            TypeError,
            "got a MAF",
        ),
        (lambda: pg.objectives.DiscreteDenoising()(small(), None), ValueError, "got None"),
        (
            lambda: small(network=Short())().sample(),
            ValueError,
            r"`network`.*\(4, 3\), got \(4,\)",
        ),
        (
            lambda: pg.distributions.DiscreteDiffusion(Short(), "uniform", 4),
            TypeError,
            "`corruption`, got a str",
        ),
        (lambda: pg.fit(small(), torch.full((5, 4), 3), progress=False), ValueError, "support"),
    ):
        with pytest.raises(error, match=words):
            wrong()


def test_out_of_the_support_without_checks(unchecked):
    found = small()().log_prob(torch.tensor([[0, 1, 2, 3], [0, 1, 2, 2]]))
    assert found[0] == -torch.inf
    assert found[1].isfinite()


class Short(nn.Module):
    def forward(self, x, t):
        return torch.zeros(x.shape)
