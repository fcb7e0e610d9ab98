"""Samplers against the formulas of their papers, and what holds for all diffusions in training.

Of normal data the denoiser is linear, and so is a whole run, x_0 = M x_T + b + sum_k N_k xi_k. Its
parts are read off unit vectors put in place of the noise, without any error of sampling, and
compared with the same run worked out by hand from the formulas.
"""

import copy
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.overrides import TorchFunctionMode

import probgen as pg
from probgen import diffusion as d
from tests.diffusion_cases import measured
from tests.rosters import DIFFUSIONS
from tests.test_guidance import GUIDES

NORMAL = (torch.randn, torch.randn_like, torch.normal, torch.Tensor.normal_)
OTHERS = (torch.rand, torch.rand_like, torch.randint, torch.multinomial, torch.bernoulli)


class Injected(TorchFunctionMode):
    """Puts noise of one's own, a function of the number of the draw, in place of what is drawn."""

    def __init__(self, noise):
        super().__init__()
        self.noise, self.calls = noise, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in OTHERS, func
        out = func(*args, **(kwargs or {}))
        if func in NORMAL:
            out.copy_(self.noise(self.calls))
            self.calls += 1
        return out


def run(sampler, denoiser, start, noise):
    with Injected(lambda k: noise[..., k, :]):
        return sampler.sample(denoiser, start)


def count(sampler, denoiser):
    """How often a run draws."""
    with Injected(lambda k: torch.zeros(())) as seen:
        sampler.sample(denoiser, torch.zeros(1, *denoiser.shape))
    return seen.calls


# Signals and noise, written out: alpha, sigma, f and g^2.


def vp(t):
    rate, total = 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2
    return math.exp(-total / 2), math.sqrt(-math.expm1(-total)), -rate / 2, rate


def sub_vp(t):
    alpha, sigma, f, rate = vp(t)
    total = -2 * math.log(alpha)
    return alpha, sigma**2, f, rate * -math.expm1(-2 * total)


def ve(t):
    sigma = 0.01 * 5000**t
    return 1.0, sigma, 0.0, 2 * sigma**2 * math.log(5000)


def rectified(t):
    return 1 - t, t, -1 / (1 - t), 2 * t / (1 - t)


SCHEDULES = {  # with the latest time, and the least of the grids in the noise
    "vp": (d.VP, vp, 1.0, 1e-3),
    "sub-vp": (d.SubVP, sub_vp, 1.0, 1e-3),
    "ve": (lambda: d.VE(0.01, 50.0), ve, 1.0, 0.0),
    "rectified": (d.Rectified, rectified, 0.999, 1e-3),
}

MEAN, COVARIANCE = torch.tensor([1.0, -0.5]).double(), torch.tensor([[0.8, 0.3], [0.3, 0.4]])
COVARIANCE, EYE = COVARIANCE.double(), torch.eye(2).double()


def exact(name):
    return d.GaussianDenoiser(MEAN, COVARIANCE, SCHEDULES[name][0]()).double()


def said(alpha, sigma):
    """What is said of the noise, (x - alpha x_0) / sigma, as a matrix and what it adds."""
    inverse = torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * EYE)
    return sigma * inverse, -sigma * alpha * inverse @ MEAN


def even(start, end, n):
    return [start + (end - start) * k / max(n - 1, 1) for k in range(n)]


def uniform(name, n):
    """Pairs of times, signals and noise; the last of each run is the datum."""
    _, signal, latest, least = SCHEDULES[name]
    times = even(latest, latest / n if least else 0.0, n)
    return itertools.pairwise([(t, *signal(t)) for t in times] + [(0.0, 1.0, 0.0, 0.0, 0.0)])


def levels(name, n, root, power):
    """The noise over the signal, evenly spaced in a root."""
    _, signal, latest, least = SCHEDULES[name]
    first, last = (s / a for a, s, _, _ in (signal(latest), signal(least)))
    return [power(u) for u in even(root(first), root(last), n)]


# Formulas: each move as a matrix, what it adds, and the variance of its noise.


def ancestral(variance):
    """Ho et al., 2020, (7) and (11), with beta as the variance between two times."""

    def moves(name, n):
        for (_, a, s, _, _), (_, b, r, _, _) in uniform(name, n):
            matrix, add = said(a, s)
            ratio = a / b
            beta = s**2 - ratio**2 * r**2
            noise = {"step": beta if r else 0.0}.get(variance, r**2 / s**2 * beta) * EYE
            if variance == "law":
                gain = a * COVARIANCE @ matrix / s
                noise = noise + (b * beta / s**2) ** 2 * (COVARIANCE - a * gain @ COVARIANCE)
            yield (EYE - beta / s * matrix) / ratio, -beta / s / ratio * add, noise

    return moves


def ddim(eta):
    """Song et al., 2020, (12) and (16)."""

    def moves(name, n):
        for (_, a, s, _, _), (_, b, r, _, _) in uniform(name, n):
            matrix, add = said(a, s)
            tau = eta * r / s * math.sqrt(s**2 - (a / b) ** 2 * r**2)
            direction = math.sqrt(max(r**2 - tau**2, 0.0))
            change = direction - b * s / a
            yield b / a * EYE + change * matrix, change * add, tau**2 * EYE

    return moves


def euler(name, n):
    """Song et al., 2021, (6); the last move takes what is denoised."""
    for (t, a, s, f, g2), (u, _, r, _, _) in uniform(name, n):
        matrix, add = said(a, s)
        if u == 0 and r == 0:
            yield (EYE - s * matrix) / a, -s / a * add, 0 * EYE
        else:
            dt = t - u
            yield EYE - dt * (f * EYE + g2 / s * matrix), -dt * g2 / s * add, g2 * dt * EYE


def corrected(predictor):
    """Song et al., 2021, algorithms 2 and 4, with the norm that noise gives to a score, 1 / r."""

    def moves(name, n):
        for move, (_, (_, b, r, _, _)) in zip(predictor(name, n), uniform(name, n)):
            yield move
            if r:
                matrix, add = said(b, r)
                size = 2 * 0.2**2 * r**2
                for _ in range(2):
                    yield EYE - size / r * matrix, -size / r * add, 2 * size * EYE

    return moves


def heun(churn, low, high, inflate):
    """Karras et al., 2022, algorithm 2, with noise up to the greatest that the schedule has."""

    def moves(name, n):
        grid = levels(name, n, lambda v: v ** (1 / 7), lambda v: v**7)
        yield EYE / SCHEDULES[name][1](SCHEDULES[name][2])[0], 0 * MEAN, 0 * EYE
        for v, after in itertools.pairwise([*grid, 0.0]):
            gamma = min(churn / n, math.sqrt(2) - 1) if low <= v <= high else 0.0
            more = min(v * (1 + gamma), grid[0])
            yield EYE, 0 * MEAN, (more**2 - v**2) * inflate**2 * EYE
            (matrix, add), h = said(1, more), after - more
            if after:
                second, gain = said(1, after)
                matrix, add = (
                    (matrix + second @ (EYE + h * matrix)) / 2,
                    (add + second @ (h * add) + gain) / 2,
                )
            yield EYE + h * matrix, h * add, 0 * EYE

    return moves


def langevin(count, size):
    """Song & Ermon, 2019, algorithm 1, in data over the signal; what is denoised comes last."""

    def moves(name, n):
        yield EYE / SCHEDULES[name][1](SCHEDULES[name][2])[0], 0 * MEAN, 0 * EYE
        for v in levels(name, n, math.log, math.exp):
            matrix, add = said(1, v)
            a = 2 * size * v**2
            for _ in range(count):
                yield EYE - a / 2 / v * matrix, -a / 2 / v * add, a * EYE
        yield EYE - v * matrix, -v * add, 0 * EYE

    return moves


SAMPLERS = {
    "ancestral": (lambda n: d.Ancestral(n), ancestral("posterior")),
    "ancestral, step": (lambda n: d.Ancestral(n, "step"), ancestral("step")),
    "ancestral, law": (lambda n: d.Ancestral(n, "law"), ancestral("law")),
    "ddim, half": (lambda n: d.DDIM(n, 0.5), ddim(0.5)),
    "ddim, whole": (lambda n: d.DDIM(n, 1.0), ddim(1.0)),
    "euler": (lambda n: d.EulerMaruyama(n), euler),
    "corrector": (
        lambda n: d.PredictorCorrector(d.Ancestral(n), 2, 0.2),
        corrected(ancestral("posterior")),
    ),
    "corrector of euler": (
        lambda n: d.PredictorCorrector(d.EulerMaruyama(n), 2, 0.2),
        corrected(euler),
    ),
    "corrector of a law": (
        lambda n: d.PredictorCorrector(d.Ancestral(n, "law"), 2, 0.2),
        corrected(ancestral("law")),
    ),
    "heun, churn": (lambda n: d.Heun(n, churn=3.0), heun(3.0, 0.0, math.inf, 1.0)),
    "heun, some churn": (
        lambda n: d.Heun(n, churn=9.0, low=0.05, high=5.0, inflate=1.1),
        heun(9.0, 0.05, 5.0, 1.1),
    ),
    "langevin": (lambda n: d.AnnealedLangevin(n, 3, 0.3), langevin(3, 0.3)),
}


def by_hand(moves):
    """The matrix of a run, what it adds, and the covariance of its noise."""
    m, b, v = EYE, 0 * MEAN, 0 * EYE
    for matrix, add, noise in moves:
        m, b, v = matrix @ m, matrix @ b + add, matrix @ v @ matrix.mT + noise
    return m, b, v


def read_off(sampler, denoiser):
    """The same of the sampler itself."""
    draws = 1 + count(sampler, denoiser)
    unit = torch.eye(2 * draws)
    rows = torch.cat([0 * unit[:1], torch.randn_like(unit[:1]), unit]).unflatten(1, (draws, 2))
    x = run(sampler, denoiser, rows[:, 0], rows[:, 1:])
    b, slopes = x[0], x[2:] - x[0]
    torch.testing.assert_close(x[1], b + rows[1].flatten() @ slopes, rtol=1e-9, atol=1e-9)  # linear
    return slopes[:2].mT, b, slopes[2:].mT @ slopes[2:]


def law(schedule, m, b, v):
    """The mean and the covariance of what comes of noise."""
    alpha, sigma, _, _ = SCHEDULES[schedule][1](SCHEDULES[schedule][2])
    return b, v + (alpha**2 + sigma**2) * m @ m.mT


@pytest.mark.parametrize("steps", [1, 2, 5, 17])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_with_noise_take_the_steps_of_their_papers(name, schedule, steps, float64):
    build, moves = SAMPLERS[name]
    found, hand = read_off(build(steps), exact(schedule)), by_hand(moves(schedule, steps))
    for a, b in zip((*found[:2], *law(schedule, *found)), (*hand[:2], *law(schedule, *hand))):
        assert float((a - b).abs().max()) < 1e-10 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_of_samplers_have_the_moments_of_their_steps(name, schedule, float64):
    build, moves = SAMPLERS[name]
    denoiser, n = exact(schedule), 20_000
    x = build(5).sample(denoiser, d.noise(denoiser, torch.Size([n]), torch.zeros(())))
    mean, cov = law(schedule, *by_hand(moves(schedule, 5)))
    size = cov.diagonal()
    assert float(((x.mean(0) - mean) / (size / n).sqrt()).abs().max()) < 4.5
    error = ((size[:, None] * size + cov.square()) / n).sqrt()  # of the covariance of normal draws
    assert float(((torch.cov(x.mT) - cov) / error).abs().max()) < 4.5


@pytest.mark.parametrize("steps", [1, 2, 5, 17])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_draws_of_the_law_keep_every_moment(schedule, steps, float64):
    """From the data's own law at the latest time to that of the data, in any number of steps."""
    m, b, v = read_off(d.Ancestral(steps, "law"), exact(schedule))
    alpha, sigma, _, _ = SCHEDULES[schedule][1](SCHEDULES[schedule][2])
    torch.testing.assert_close(m @ (alpha * MEAN) + b, MEAN, rtol=1e-9, atol=1e-9)
    start = alpha**2 * COVARIANCE + sigma**2 * EYE
    torch.testing.assert_close(m @ start @ m.mT + v, COVARIANCE, rtol=1e-9, atol=1e-9)


def excess(schedule, sampler):
    """By how much the variances of draws are greater than those of the data."""
    _, cov = law(schedule, *read_off(sampler, exact(schedule)))
    return float((cov - COVARIANCE).trace())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_langevin_draws_are_less_too_wide_with_more_moves_and_smaller_ones(schedule, float64):
    by_moves = [excess(schedule, d.AnnealedLangevin(20, n, 0.2)) for n in (1, 2, 4, 8, 16)]
    assert all(a > 2 * b > 0 for a, b in itertools.pairwise(by_moves))
    by_size = [excess(schedule, d.AnnealedLangevin(20, n, 3.2 / n)) for n in (4, 8, 16, 32)]
    assert all(a > b > 0 for a, b in itertools.pairwise(by_size))


@pytest.mark.parametrize("size", [0.5, 0.2, 0.1])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_langevin_moves_at_one_level_end_where_they_should(schedule, size, float64):
    """At a variance c of noisy data in c / (1 - h / 2c), with moves of h."""
    _, _, v = read_off(d.AnnealedLangevin(1, 300, size), exact(schedule))
    alpha, sigma, _, _ = SCHEDULES[schedule][1](SCHEDULES[schedule][2])
    level = (sigma / alpha) ** 2
    lam, q = torch.linalg.eigh(COVARIANCE)
    c = lam + level
    variance = c / (1 - size * level / (2 * c)) * (lam / c) ** 2  # as the last step denoises
    torch.testing.assert_close(v, q * variance @ q.mT, rtol=1e-9, atol=1e-10)


# Draws and their batch


NOISY = {
    "ancestral": d.Ancestral(10),
    "heun": d.Heun(10, churn=3.0),
    "corrector": d.PredictorCorrector(d.Ancestral(10), 2),
}

GUIDED = {  # conjugate gradients that end early depend on their inner products
    **GUIDES,
    "mmps, two steps": lambda p, y, a, n: d.MMPS(p, a, y, n, steps=2),
    "pigdm, two steps": lambda p, y, a, n: d.PiGDM(p, a, y, n, steps=2),
}


@pytest.mark.parametrize("sampler", NOISY)
@pytest.mark.parametrize("guide", GUIDED)
def test_guided_draws_with_noise_do_not_depend_on_their_batch(guide, sampler, float64):
    prior, y, a, scale, _ = measured()
    guided, sampler = GUIDED[guide](prior, y, a, scale).double(), NOISY[sampler]
    calls = count(sampler, guided)
    assert calls >= 9  # every step but one has noise
    start, noise = torch.randn(5, 8), torch.randn(5, calls, 8)
    start[1] *= 30  # far out, so that a norm over all draws would show
    together = run(sampler, guided, start, noise)
    for k in range(5):
        alone = run(sampler, guided, start[k : k + 1], noise[k : k + 1])[0]
        torch.testing.assert_close(alone, together[k], rtol=1e-12, atol=1e-5)
        bare = run(sampler, guided, start[k], noise[k])
        torch.testing.assert_close(bare, together[k], rtol=1e-12, atol=1e-5)
    assert float(together.diff(dim=0).abs().min()) > 1e-5


# Training


TRAINED = {
    "ddpm": lambda: pg.models.DDPM(2, hidden_features=(8,), steps=8),
    "d3pm": lambda: pg.models.D3PM(2, 3, hidden_features=(8,), steps=6),
    "ctmc": lambda: pg.models.CTMC(2, 3, hidden_features=(8,), steps=6),
    "cold": lambda: pg.models.ColdDiffusion(2, d.FadeDegradation(2, 4), hidden_features=(8,)),
    "cnf": lambda: pg.models.CNF(2, hidden_features=(8,), steps=1, probes=1),
}


class Killed(Exception):
    """Stands for a power cut."""


def dies(module, step):
    """The objective of a module, which stops the program at a step, and the calls of it."""
    calls = []

    def objective(other, x, context=None):
        if len(calls) == step:
            raise Killed
        calls.append(len(x))
        return module.objective(other, x, context)

    return objective, calls


def states(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    return [(v, b.state_dict()[k]) for k, v in a.state_dict().items()]


@pytest.mark.parametrize("name", TRAINED)
def test_killed_runs_of_diffusions_go_on_to_the_same_bits(name, tmp_path):
    x = 3 + torch.randn(60, 2) if name not in ("d3pm", "ctmc") else torch.randint(3, (60, 2))
    options = {"steps": 110, "batch_size": 25, "ema": 0.9, "seed": 0, "progress": False}
    torch.manual_seed(0)
    whole = TRAINED[name]()
    expected = pg.fit(whole, x, **options)
    options["checkpoint"] = tmp_path
    torch.manual_seed(0)
    broken = TRAINED[name]()
    with pytest.raises(Killed):
        pg.fit(broken, x, objective=dies(broken, 105)[0], **options)
    torch.manual_seed(1)
    fresh = TRAINED[name]()  # of other parameters, as the run's are read
    objective, calls = dies(fresh, -1)
    history = pg.fit(fresh, x, objective=objective, **options)
    assert len(calls) == 5  # the state was written when the run was stopped
    assert history == expected
    for other in (fresh, pg.load(tmp_path)):
        assert all(torch.equal(a, b) for a, b in states(whole, other))


def data_of(module):
    shape = (60, *module().event_shape)
    if module.density is pg.Density.BOUND:
        return torch.randint(3, shape)
    return 3 + torch.randn(shape)


@pytest.mark.parametrize("name", [n for n in DIFFUSIONS if n != "cold"] + ["ddpm, its chain"])
def test_two_diffusions_train_side_by_side(name):
    """As each would alone, bit by bit, though they share an optimiser and the store."""
    found = []
    for together in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        modules = [DIFFUSIONS[name.removesuffix(", its chain")](0) for _ in range(2)]
        x = data_of(modules[0])
        optim = pyro.optim.Adam({"lr": 1e-2})
        for module in modules:
            module.initialize(x)
        before = copy.deepcopy(modules)
        halves = [m.pair(6) if "chain" in name else (m.model, m.guide) for m in modules]
        runs = [SVI(model, guide, optim, Trace_ELBO()) for model, guide in halves]
        pairs = itertools.product(range(4), (0, 1))  # in turn, or the one after the other
        for step, k in pairs if together else sorted(pairs, key=lambda pair: pair[1]):
            torch.manual_seed(10 + step)
            runs[k].step(x[:20], size=60)
        for module, old in zip(modules, before):
            assert any(not torch.equal(a, b) for a, b in states(module, old))
        stored = [id(p) for _, p in pyro.get_param_store().named_parameters()]
        assert sorted(stored) == sorted(id(p) for m in modules for p in m.parameters())
        found.append(modules)
    for alone, beside in zip(*found):
        assert all(torch.equal(a, b) for a, b in states(alone, beside))


# Weights


@pytest.mark.parametrize("gradient", [True, False])
def test_weights_of_particles_are_importance_weights_in_pyro(gradient, float64):
    """Data of N(1, 1), of which 2 was seen with noise of 1/2: the posterior is N(1.8, 0.2)."""
    prior = d.GaussianDenoiser(torch.ones(1), torch.eye(1), d.VP()).double()
    islands, n = 40, 8000
    smc = d.TwistedSMC(d.Ancestral(200, "step"), gradient=gradient, threshold=0.2, islands=islands)
    found = smc.sample(prior, n, lambda x: x, 2 * torch.ones(1), 0.5)
    drawn = dist.Empirical(found.position, found.log_weights)
    assert pyro.sample("x", drawn).shape == (1,)
    w = found.log_weights.softmax(0).reshape(islands, -1)
    x = found.position[:, 0].reshape(islands, -1)
    for value, mean, exact in ((x, drawn.mean, 1.8), ((x - 1.8).square(), drawn.variance, 0.2)):
        gap = (w * (value - exact)).sum(1)  # of each island, which never meets another
        error = float(gap.square().sum() * islands / (islands - 1)) ** 0.5
        assert error < 0.01  # nearly that of as many independent draws, 0.005
        assert abs(float(mean) - exact) < 4 * error
        assert gradient or abs(float(value.mean()) - exact) > 0.5  # without weights
