"""Known answers of diffusions of discrete data in continuous time."""

import math
from itertools import pairwise, product

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.distributions import Binomial

import probgen as pg
from probgen import diffusion as d
from tests.test_discrete_diffusion import Exact, P
from tests.test_discrete_diffusion import whole_bound as bound_in_steps

JUMPS = {
    "absorbing": d.AbsorbingCorruption,
    "binomial": d.BinomialCorruption,
    "uniform": d.UniformCorruption,
    "cycle": lambda k, steps: d.RateMatrix(torch.eye(k).roll(1, 1) - torch.eye(k), steps=steps),
}
TABLE = torch.tensor(
    [[0.30, 0.02, 0.10], [0.05, 0.20, 0.03], [0.01, 0.04, 0.25]], dtype=torch.double
)
PAIRS = torch.tensor(list(product(range(3), repeat=2)))


@pytest.fixture(params=JUMPS)
def jumps(request):
    return JUMPS[request.param]


def exact(table, corruption, cut=0.0):
    network = Exact(table, corruption)
    return pg.distributions.JumpDiffusion(network, corruption, table.ndim, cut=cut)


def whole_bound(module, x, nodes=150, power=8):
    """The bound with its sum over noisy values done and its integral by Gaussian quadrature.

    Rates of jumps grow as a logarithm or an inverse towards both ends, which powers of the nodes
    make smooth.
    """
    c = module.corruption
    u, w = (torch.tensor(v) for v in np.polynomial.legendre.leggauss(nodes))
    u, w = (u + 1) / 2, w / 2
    half = c.steps / 2
    times = torch.cat([half * u**power, 2 * half - half * u.flip(0) ** power])
    weights = half * power * torch.cat([w * u ** (power - 1), (w * u ** (power - 1)).flip(0)])
    keep = (times > 1e-13 * c.steps) & (times < c.steps * (1 - 1e-13))
    noisy = torch.tensor(list(product(range(c.states), repeat=x.shape[-1])))
    total = -c.end_divergence(x, module.like).sum(-1)
    for t, weight in zip(times[keep], weights[keep]):
        t = t.expand(len(noisy))
        logits = module.denoise(noisy, t)
        for i, datum in enumerate(x):
            rows = datum.expand_as(noisy)
            log_q = c.log_noisy(rows, t, logits).gather(-1, noisy[..., None])[..., 0].sum(-1)
            total[i] -= weight * (log_q.exp() * c.excess(logits, rows, noisy, t).sum(-1)).sum()
    return total


def test_matrices_are_those_of_the_rates(jumps, float64):
    """Products over stretches of time agree, and their derivative is that of the rates."""
    q = jumps(5, 8)
    s, r, t = torch.tensor([0.3, 2.5, 6.0]), torch.tensor([1.0, 4.0, 6.5]), torch.tensor(7.3)
    states = torch.arange(q.states)

    def matrix(s, t):
        t = t.expand_as(s)
        rows = states.expand(*s.shape, -1)
        return q.log_back(rows, s, t, s).exp().mT

    whole = matrix(s, r) @ matrix(r, t.expand(3))
    torch.testing.assert_close(whole, matrix(s, t), rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.sum(-1), torch.ones(3, q.states))
    step = 1e-6
    slope = (matrix(s, s + step) - torch.eye(q.states)) / step
    rates = q.log_rates(states.expand(3, -1), s, s).exp().mT
    off = 1 - torch.eye(q.states)
    torch.testing.assert_close(slope * off, rates, rtol=1e-4, atol=2e-5)
    start = torch.arange(5)
    for n, time in enumerate(r):
        noisy = q.log_noisy(start, time.expand(5), s).exp()
        torch.testing.assert_close(noisy, matrix(torch.zeros(3), r)[n, :5], rtol=0, atol=1e-12)


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.5])
def test_levels_are_counts_of_trials(chance, float64):
    """Drawn anew with probability 1 - a, each trial by itself."""
    q, n = d.BinomialCorruption(7, 10, chance), 6
    counts = torch.arange(n + 1.0)
    for k in (1, 4, 9):
        u = torch.tensor(k / 10)
        a = (-10 * u * (0.1 + 9.95 * u) / 10.05).exp()
        for x in range(n + 1):
            kept, gained = a + (1 - a) * chance, (1 - a) * chance
            first = Binomial(x, kept, validate_args=False).log_prob(counts).exp()
            second = Binomial(n - x, gained, validate_args=False).log_prob(counts).exp()
            first, second = (
                v.nan_to_num().masked_fill(counts > m, 0.0)
                for v, m in ((first, x), (second, n - x))
            )
            law = [(first[: j + 1] * second[: j + 1].flip(0)).sum() for j in range(n + 1)]
            expected = torch.stack(law)
            torch.testing.assert_close(q.cumulative(k)[x], expected, rtol=1e-10, atol=1e-14)


def test_tables_are_those_of_the_dtype():
    """In float64, too, of a module that was made in float32."""
    x, t = torch.arange(7), torch.tensor(3, dtype=torch.double)
    like = torch.empty((), dtype=torch.double)
    for corruption in (d.BinomialCorruption(7, 10).double(), d.GaussianCorruption(7, 10).double()):
        row = corruption.log_noisy(x, t if corruption.continuous else t.long(), like).exp()
        torch.testing.assert_close(row.sum(-1), torch.ones(7).double(), rtol=0, atol=1e-14)
    a = math.exp(-10 * 0.3 * (0.1 + 9.95 * 0.3) / 10.05)
    row = d.BinomialCorruption(2, 10).double().log_noisy(x[:2], t, like).exp()
    assert abs(float(row[0, 0]) - (1 + a) / 2) < 1e-15


def test_two_levels_are_bits_drawn_anew(float64):
    q = d.BinomialCorruption(2, 10)
    for k in range(1, 11):
        u = torch.tensor([k / 10, (k - 1) / 10])
        a = (-10 * u * (0.1 + 9.95 * u) / 10.05).exp()
        beta = 1 - a[0] / a[1]
        bits = torch.tensor([[1 - beta / 2, beta / 2], [beta / 2, 1 - beta / 2]])
        torch.testing.assert_close(q.step(k), bits, rtol=0, atol=1e-14)


def test_small_probabilities_keep_their_digits(float64):
    """A chain that only climbs has made a Poisson number of steps."""
    rates = torch.eye(41).roll(1, 1) - torch.eye(41)
    rates[-1] = 0.0
    q = d.RateMatrix(rates, steps=1, horizon=1.0)
    t = torch.tensor(0.5)
    steps = torch.arange(40.0)
    expected = torch.distributions.Poisson(0.5 * (0.1 + 4.975) / 10.05).log_prob(steps)
    assert expected[-1] < -150
    row = q.log_noisy(torch.tensor(0), t, t)
    torch.testing.assert_close(row[:40], expected, rtol=0, atol=1e-8)


def test_nothing_is_lost_of_masked_sites_that_depend_on_one_another(float64):
    bound = whole_bound(exact(TABLE, d.AbsorbingCorruption(3, 7)), PAIRS, nodes=20, power=1)
    torch.testing.assert_close(bound, TABLE.log().flatten(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["binomial", "cycle", "thinning", "uniform"])
def test_only_what_the_end_differs_by_is_lost(name, float64):
    corruption = d.BinomialCorruption(3, 7, chance=0.0) if name == "thinning" else JUMPS[name](3, 7)
    bound = whole_bound(exact(TABLE, corruption), PAIRS)
    gap = (TABLE.flatten() * (TABLE.log().flatten() - bound)).sum()
    last = corruption.cumulative(corruption.steps)
    end, log_end = torch.einsum("ij,ik,jl->kl", TABLE, last, last), corruption.log_end(TABLE)
    known = torch.special.xlogy(end, end).sum() - (end * (log_end[:, None] + log_end)).sum()
    torch.testing.assert_close(gap, known, rtol=0, atol=1e-8)


def spread(module, x, nodes=300, power=6):
    """The standard deviation of an estimate from one time with density 1 / (2 sqrt(t T))."""
    c = module.corruption
    v, w = (torch.tensor(k) for k in np.polynomial.legendre.leggauss(nodes))
    v, w = (v + 1) / 2, w / 2
    noisy = torch.tensor(list(product(range(c.states), repeat=x.shape[-1])))
    moments = torch.zeros(2, len(x))
    for u, weight in zip(v**power, w * power * v ** (power - 1)):
        t = (c.steps * u.square()).clamp(max=c.steps * (1 - 1e-9)).expand(len(noisy))
        logits = module.denoise(noisy, t)
        for i, datum in enumerate(x):
            rows = datum.expand_as(noisy)
            q = c.log_noisy(rows, t, logits).gather(-1, noisy[..., None])[..., 0].sum(-1).exp()
            each = 2 * c.steps * u * c.excess(logits, rows, noisy, t).sum(-1)
            moments[:, i] += weight * torch.stack([(q * each).sum(), (q * each.square()).sum()])
    return (moments[1] - moments[0].square()).sqrt()


def test_estimates_are_unbiased_and_spread_as_they_should(jumps, float64):
    torch.manual_seed(0)
    module = exact(TABLE, jumps(3, 7))
    x, n = PAIRS[[1, 8]], 40_000
    truth = whole_bound(module, x)
    for times in (1, 4):
        drawn = torch.stack([module.elbo(x.repeat(n // 20, 1), times=times) for _ in range(20)])
        drawn = drawn.reshape(-1, 2)
        assert ((drawn.mean(0) - truth).abs() < 4 * drawn.std(0) / n**0.5).all(), times
        if times == 1:
            ratio = drawn.std(0) / spread(module, x)
            assert ((ratio > 0.8) & (ratio < 1.25)).all(), ratio  # a few rare draws are large


def test_a_network_that_is_never_sure_has_a_bound(jumps, float64):
    """It knows the shares alone; from the least time on all sites go back at once."""

    class Shares(nn.Module):
        def forward(self, x, t):
            return torch.tensor([0.2, 0.3, 0.5]).log().expand(*x.shape, 3)

    torch.manual_seed(3)
    corruption, x, n = jumps(3, 10), PAIRS[5], 40_000
    module = pg.distributions.JumpDiffusion(Shares(), corruption, 2)
    drawn = module.elbo(x.expand(n, 2))
    se = float(drawn.std() / n**0.5)
    assert se < 0.5
    # as of a chain of steps, whose last one is as long and the others short
    noisy = torch.arange(corruption.states)
    total, last = torch.zeros(()), 1e-2
    nodes, weights = (torch.tensor(v) for v in np.polynomial.legendre.leggauss(60))
    low, high = math.log(last), math.log(10 - 1e-9)
    times = ((nodes + 1) / 2 * (high - low) + low).exp()
    for site in x:
        rows = site.expand_as(noisy)
        for t, weight in zip(times, weights * (high - low) / 2 * times):
            t = t.expand(len(noisy))
            logits = module.denoise(noisy[:, None], t)[:, 0]
            log_q = corruption.log_noisy(rows, t, logits).gather(-1, noisy[:, None])[:, 0]
            total += weight * (log_q.exp() * corruption.excess(logits, rows, noisy, t)).sum()
        t = torch.full(noisy.shape, last)
        logits = module.denoise(noisy[:, None], t)[:, 0]
        log_q = corruption.log_noisy(rows, t, logits).gather(-1, noisy[:, None])[:, 0]
        log_p = corruption.leap(logits, noisy, torch.zeros_like(t), t)[:, site]
        total -= (log_q.exp() * log_p).sum()
    total += corruption.end_divergence(x, module.like).sum()
    assert abs(float(drawn.mean() + total)) < 4 * se + 1e-3


def test_the_least_time_costs_an_exact_network_next_to_nothing(jumps, float64):
    torch.manual_seed(4)
    x, n = PAIRS[[1, 8]], 40_000
    found = [exact(TABLE, jumps(3, 7), cut).elbo(x.repeat(n, 1), times=4) for cut in (0.0, 1e-3)]
    means = torch.stack([v.reshape(n, 2).mean(0) for v in found])
    noise = sum(v.reshape(n, 2).var(0) / n for v in found).sqrt()
    assert (means.diff(dim=0).abs() < 4.5 * noise + 1e-3).all()


@pytest.mark.parametrize("steps", [1, 3, 60])
def test_draws_of_the_exact_denoiser(jumps, steps, float64):
    """One site is exact with any number of steps; sites together are with many."""
    torch.manual_seed(1)
    module, n = exact(P, jumps(5, 4)), 10_000
    *_, drawn = module.walk((n,), steps=steps)
    share = drawn.flatten().bincount(minlength=5) / n
    assert ((share - P).abs() < 4.5 * (P * (1 - P) / n).sqrt() + 1e-3).all()  # 1e-3 for the end
    if steps == 60:
        *_, drawn = exact(TABLE, jumps(3, 4)).walk((n,), steps=steps)
        share = (3 * drawn[:, 0] + drawn[:, 1]).bincount(minlength=9) / n
        p = TABLE.flatten()
        assert ((share - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 0.01).all()


def test_the_bound_in_steps_tends_to_that_in_time(jumps, float64):
    """For a denoiser that is wrong, that of another law, and so are all terms of the bound."""
    other = TABLE.flip(1)
    limit = whole_bound(exact(other, jumps(3, 7)), PAIRS[3:4])
    gaps = []
    for steps in (20, 40, 80):
        corruption = jumps(3, steps)
        module = pg.distributions.DiscreteDiffusion(Exact(other, corruption), corruption, 2)
        gaps.append(float(bound_in_steps(module, PAIRS[3:4]) - limit))
    assert abs(gaps[0]) < 0.3
    assert all(0.4 < b / a < 0.7 for a, b in pairwise(gaps)), gaps


def test_a_network_of_steps_serves_time():
    x = pg.datasets.digits().images[:256]
    steps = pg.models.D3PM(64, 17, hidden_features=(64,), steps=40)
    pg.fit(steps, x, steps=60, lr=3e-3, batch_size=64, seed=0, progress=False)
    module = pg.distributions.JumpDiffusion(steps.network, steps.corruption, 64)
    with torch.no_grad():
        whole = steps().elbo(x, times=40).mean()
        bound = module().elbo(x, times=40).mean()
    assert (whole - bound).abs() < 0.05 * bound.abs()
    *_, drawn = module.walk((5,), steps=7)
    assert module().support.check(drawn).all()


@pytest.mark.parametrize("name", ["absorbing", "binomial", "uniform"])
def test_digits_are_learned(name):
    x = pg.datasets.digits().images[:256]
    model = pg.models.CTMC(64, 17, hidden_features=(64,), steps=30, corruption=name)
    model.initialize(x)
    with torch.no_grad():
        before = model.elbo(x, times=30).mean()
    pg.fit(model, x, steps=100, lr=3e-3, batch_size=64, seed=0, progress=False)
    with torch.no_grad():
        assert model.elbo(x, times=30).mean() > before + 3
    assert model.freeze()().sample((3,)).shape == (3, 64)


def test_plain_svi_trains():
    torch.manual_seed(0)
    x = torch.randint(0, 2, (300, 1)).expand(-1, 4).contiguous()
    model = pg.models.CTMC(4, 2, hidden_features=(16,), corruption="uniform")
    with torch.no_grad():
        before = float(model.elbo(x, times=20).mean())
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(150):
        svi.step(x[:100], size=300)
    with torch.no_grad():
        assert float(model.elbo(x, times=20).mean()) > before + 0.5


def test_saved_and_loaded(jumps, tmp_path, float64):
    model = pg.models.CTMC(4, 3, 2, (16,), corruption=jumps(3, 9))
    model.save(tmp_path)
    again = pg.load(tmp_path)
    x, c = torch.randint(0, 3, (5, 4)), torch.randn(5, 2)
    found = []
    for m in (model, again):
        torch.manual_seed(0)
        found += [m(c).log_prob(x), m(c).sample()]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_losses_and_gradients_are_finite_far_from_the_data(jumps):
    q = jumps(4, 9)
    logits = torch.tensor([200.0, -200.0, 0.0, -torch.inf]).repeat(50, 1, 1).requires_grad_()
    x, t = torch.ones(50, 1, dtype=torch.long), 9 * torch.linspace(1e-3, 1 - 1e-3, 50) ** 2
    loss = q.excess(logits, x, q.noisy(x, t), t)
    assert loss.isfinite().all()
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert slope.isfinite().all()


def test_bad_input_is_named():
    model = pg.models.CTMC(4, 3, hidden_features=(16,))
    x = torch.zeros(4)
    for wrong, error, words in (
        (lambda: d.BinomialCorruption(1), ValueError, "`classes`.*got 1"),
        (lambda: d.BinomialCorruption(3, chance=1.5), ValueError, "`chance`.*got 1.5"),
        (lambda: d.RateMatrix(torch.ones(2, 3)), ValueError, r"`rates`.*got \(2, 3\)"),
        (lambda: d.RateMatrix(torch.ones(2, 2)), ValueError, "sum to zero, got one off by 2"),
        (lambda: d.RateMatrix(-torch.ones(2, 2)), ValueError, "none below zero"),
        (lambda: d.RateMatrix(torch.zeros(2, 2)), ValueError, "none below zero"),
        (
            lambda: d.RateMatrix(torch.block_diag(TWO, TWO)),
            ValueError,
            "forget the data, or a `horizon`",
        ),
        (lambda: d.RateMatrix(TWO, horizon=0.0), ValueError, "`horizon`, got 0.0"),
        (lambda: d.RateMatrix(TWO, classes=3), ValueError, "`classes` of at most 2, got 3"),
        (lambda: pg.models.CTMC(2, corruption="blur"), ValueError, "absorbing.*got 'blur'"),
        (lambda: pg.models.CTMC(2, corruption="gaussian"), TypeError, "got a GaussianCorruption"),
        (lambda: model().elbo(x, times=0), ValueError, "`times`.*got 0"),
        (lambda: list(model.walk((2,), steps=0)), ValueError, "`steps`.*got 0"),
        (
            lambda: pg.distributions.JumpDiffusion(
                model.network, d.UniformCorruption(3), 4, cut=1.0
            ),
            ValueError,
            "`cut` in.*got 1.0",
        ),
        (
            lambda: d.UniformCorruption(3).noisy(torch.tensor([-1]), torch.tensor(2)),
            ValueError,
            "data from 0 to 2, got -1",
        ),
        (
            lambda: d.UniformCorruption(3).leap(
                torch.zeros(3), x[0], torch.tensor(3.0), torch.tensor(2.0)
            ),
            ValueError,
            "`s` from 0 to `t`, got 1 above",
        ),
        (lambda: model.corruption.excess(x, x, x, torch.tensor(200.0)), ValueError, "0 and 100"),
        (lambda: model.corruption.excess(x, x, x, torch.tensor(2)), TypeError, "real numbers"),
        (lambda: list(pg.models.D3PM(4).walk((2,), steps=9)), ValueError, "of 100.*got 9"),
    ):
        with pytest.raises(error, match=words):
            wrong()


TWO = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
