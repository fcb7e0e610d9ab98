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
T = torch.tensor([0.01, 0.2, 0.5, 0.77, 0.99])


@pytest.fixture(params=SCHEDULES)
def schedule(request, float64):
    return SCHEDULES[request.param]().double()


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


def covariance():
    torch.manual_seed(1)
    a = torch.randn(3, 3)
    return a @ a.mT + 0.3 * torch.eye(3)


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


MEANS = 1.5 * torch.stack(
    [(torch.arange(8) * math.pi / 4).cos(), (torch.arange(8) * math.pi / 4).sin()], 1
)
WEIGHTS = torch.tensor([1.0, 1, 2, 2, 3, 3, 4, 4])


def mixture(schedule):
    return d.MixtureDenoiser(WEIGHTS.double(), MEANS.double(), 0.12, schedule)


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
            return truth.say(predicts, x, t)
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


SAMPLERS = {
    "ddpm": lambda n: d.Ancestral(n),
    "ddpm, step": lambda n: d.Ancestral(n, "step"),
    "ddim": lambda n: d.DDIM(n),
    "ddim, noisy": lambda n: d.DDIM(n, 0.7),
    "em": lambda n: d.EulerMaruyama(n),
    "heun": lambda n: d.Heun(n),
    "heun, churn": lambda n: d.Heun(n, churn=2.0),
    "dpm": lambda n: d.DPMSolver(n),
    "dpm, uniform": lambda n: d.DPMSolver(n, d.UniformGrid()),
    "pc": lambda n: d.PredictorCorrector(d.Ancestral(n), 2),
}


def recursion(name, n, schedule, lam):
    """Variance of the result, for data N(0, lam) started at variance 1, by its own formulas."""
    grid = d.KarrasGrid() if "heun" in name else d.UniformGrid()
    grid = d.LogSNRGrid() if name == "dpm" else grid
    t = grid.times(schedule, n)
    alpha, sigma = ([*v.tolist()] for v in schedule(t))
    alpha, sigma, t = [*alpha, 1.0], [*sigma, 0.0], [*t.tolist(), 0.0]
    gain = [a * lam / (a**2 * lam + s**2) for a, s in zip(alpha, sigma)]  # of the denoiser
    v, slope, last = 1.0, 1.0, None  # variance; of maps, the slope in the start
    for k in range(n):
        a, s, b, r = alpha[k], sigma[k], alpha[k + 1], sigma[k + 1]
        d_k = gain[k]
        between = s**2 - (a / b) ** 2 * r**2
        if name.startswith("ddpm"):
            m = (a / b) * r**2 / s**2 + b * between / s**2 * d_k
            noise = between * r**2 / s**2 if name == "ddpm" else between * (r > 0)
            v = m**2 * v + noise
        elif name.startswith("ddim"):
            eta = 0.7 if "noisy" in name else 0.0
            tau2 = eta**2 * between * r**2 / s**2
            m = b * d_k + math.sqrt(max(r**2 - tau2, 0)) * (1 - a * d_k) / s
            v = m**2 * v + tau2
        elif name == "em":
            if k == n - 1:
                v = d_k**2 * v
                continue
            now = torch.tensor(t[k])
            f, g2 = float(schedule.drift(now)), float(schedule.diffusion(now))
            dt = t[k] - t[k + 1]
            m = 1 - dt * (f + g2 / (a**2 * lam + s**2))
            v = m**2 * v + g2 * dt
        elif name.startswith("heun"):
            level = s / a
            if "churn" in name:
                gamma = min(2.0 / n, math.sqrt(2) - 1)
                most = float((-schedule.log_snr(torch.tensor(schedule.latest)) / 2).exp())
                high = min(level * (1 + gamma), most)
                if high > level:
                    s_time = schedule.time(torch.tensor(-2 * math.log(high)))
                    a2, s2 = (float(u) for u in schedule(s_time))
                    v = (a2 / a) ** 2 * v + a2**2 * (high**2 - level**2)
                    a, s, level = a2, s2, high
            after = r / b
            first = (1 / a) * (1 - lam / (lam + level**2)) / level  # dy/dlevel per unit of x
            y = 1 / a + (after - level) * first
            if after:
                second = y * (1 - lam / (lam + after**2)) / after
                y = 1 / a + (after - level) * (first + second) / 2
            v = (b * y) ** 2 * v
        elif name.startswith("dpm"):
            h = math.log(b / a) + (math.log(s / r) if r else math.inf)
            mean = d_k * slope
            use = mean
            if last is not None and k < n - 1:
                ratio = last[1] / h
                use = (1 + 1 / (2 * ratio)) * mean - last[0] / (2 * ratio)
            slope = r / s * slope + b * (1 - math.exp(-h)) * use
            last, v = (mean, h), slope**2
        else:
            m = (a / b) * r**2 / s**2 + b * between / s**2 * d_k
            v = m**2 * v + between * r**2 / s**2
            if k < n - 1:
                size = 2 * 0.16**2 * r**2
                for _ in range(2):
                    v = (1 - size / (b**2 * lam + r**2)) ** 2 * v + 2 * size
    return v


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("n", [1, 2, 3, 10, 37])
def test_samplers_follow_their_own_recursion(name, n, float64):
    """On normal data a sampler is linear: its variance from draws and from its formulas."""
    schedule, lam = d.VP(), 0.3
    denoiser = d.GaussianDenoiser(torch.zeros(1), torch.tensor([[lam]]), schedule).double()
    sampler = SAMPLERS[name](n)
    torch.manual_seed(0)
    exact = recursion(name, n, schedule, lam)
    if name in ("ddim", "heun", "dpm", "dpm, uniform"):  # maps: one point tells
        x = sampler.sample(denoiser, torch.ones(1, 1))
        assert abs(float(x) ** 2 - exact) < 1e-10
        return
    count = 40_000
    x = sampler.sample(denoiser, torch.randn(count, 1))
    assert abs(float(x.square().mean()) / exact - 1) < 4 * (2 / count) ** 0.5


@pytest.mark.parametrize("name", ["vp", "cosine", "karras", "rectified"])
def test_samplers_of_a_mixture(name, float64):
    torch.manual_seed(0)
    denoiser, n = mixture(SCHEDULES[name]()), 10_000
    truth = MEANS[torch.multinomial(WEIGHTS, n, replacement=True)].double()
    truth = truth + 0.12 * torch.randn(n, 2)
    for sampler in (d.Ancestral(300), d.DDIM(50), d.Heun(18), d.DPMSolver(20)):
        if name != "vp" and isinstance(sampler, d.Ancestral):
            continue  # seconds each
        x = sampler.sample(denoiser, d.noise(denoiser, torch.Size([n]), torch.ones(())))
        angle = torch.randn(200, 2)
        angle = angle / angle.norm(dim=1, keepdim=True)
        far = ((x @ angle.T).sort(0).values - (truth @ angle.T).sort(0).values).abs().mean()
        share = torch.cdist(x, MEANS.double()).argmin(1).bincount(minlength=8) / n
        assert float(far) < 0.08, sampler
        assert float((share - WEIGHTS / 20).abs().sum() / 2) < 0.025, sampler


@pytest.mark.parametrize("name", ["vp", "ve", "cosine"])
def test_annealed_langevin_draws_under_every_schedule(name, float64):
    torch.manual_seed(0)
    schedule, n = SCHEDULES[name](), 4000
    denoiser = d.GaussianDenoiser(torch.zeros(1), torch.tensor([[0.5]]), schedule).double()
    seen = []
    x = d.AnnealedLangevin(60, 20).sample(
        denoiser,
        d.noise(denoiser, torch.Size([n]), torch.zeros(())),
        callback=lambda k, y: seen.append(float(y.var())),
    )
    assert abs(float(x.var()) / 0.5 - 1) < 0.1
    path = d.LogSNRGrid().path(schedule, 60)
    levels = path.alpha[20:60] ** 2 * 0.5 + path.sigma[20:60] ** 2
    after = levels * (path.alpha[21:61] / path.alpha[20:60]) ** 2  # carried to the next level
    ratio = torch.tensor(seen[20:59]) / after[:-1]
    assert float((ratio - 1).abs().max()) < 0.35


def test_what_samplers_show_on_the_way():
    denoiser = mixture(d.VP()).float()
    seen = []
    x = d.noise(denoiser, torch.Size([3, 2]), torch.ones(()))
    out = d.DDIM(5).sample(denoiser, x, callback=lambda k, y: seen.append((k, y.shape)))
    assert seen == [(k, (3, 2, 2)) for k in range(5)]
    assert out.dtype == torch.float32


def test_samplers_run_without_reading_a_value(unchecked):
    denoiser = mixture(d.VP()).float().to("meta")
    x = torch.empty(3, 2, 2, device="meta")
    for build in SAMPLERS.values():
        assert build(3).sample(denoiser, x).shape == x.shape


def test_denoisers_and_samplers_are_saved(tmp_path):
    denoiser = mixture(d.Karras()).float()
    denoiser.save(tmp_path)
    again = pg.load(tmp_path)
    x = torch.randn(4, 2)
    assert torch.equal(again.mean(x, torch.tensor(0.3)), denoiser.mean(x, torch.tensor(0.3)))


def test_bad_input_is_named():
    vp = d.VP()
    denoiser = mixture(vp).float()
    x, t = torch.randn(4, 2), torch.tensor(0.5)
    wrong = d.NetworkDenoiser(lambda x, t: x[..., :1], vp, (2,))
    cases = [
        (lambda: d.VP(3.0, 1.0), "0 < `low` <= `high`"),
        (lambda: d.VE(3.0, 1.0), "0 < `low` < `high`"),
        (lambda: d.Karras(rho=0.0), "positive `rho`"),
        (lambda: d.Cosine(-1.0), "`offset` not to be negative"),
        (lambda: d.BetaSchedule(torch.tensor([0.1, 1.2])), r"`betas` in \(0, 1\)"),
        (
            lambda: d.CustomSchedule(lambda t: (4 * t, torch.log(t))),
            "ratio of signal to noise falls",
        ),
        (lambda: denoiser.mean(x, torch.tensor(1.5)), r"times in \[0, 1\], got 1.5"),
        (lambda: denoiser.mean(torch.randn(4, 3), t), r"shape \(\*, 2\), got \(4, 3\)"),
        (lambda: wrong.mean(x, t), r"shape of its values, \(4, 2\), got \(4, 1\)"),
        (lambda: d.NetworkDenoiser(len, vp, (2,), predicts="noise"), "`predicts` among"),
        (lambda: d.DDIM(0), "`steps` to be a whole number >= 1"),
        (lambda: d.DDIM(5, 2.0), r"`eta` in \[0, 1\]"),
        (lambda: d.Ancestral(5, "learned"), "'law', 'posterior' or 'step'"),
        (lambda: d.Heun(5, churn=-1.0), "`churn` >= 0"),
        (lambda: d.PredictorCorrector(ratio=0.0), "positive `ratio`"),
        (lambda: d.GaussianDenoiser(torch.zeros(2), torch.eye(3), vp), r"\(D,\) and \(D, D\)"),
        (lambda: d.MixtureDenoiser(torch.ones(2), torch.ones(3, 1), 1.0, vp), r"\(K,\), \(K, D\)"),
        (lambda: d.MixtureDenoiser(-torch.ones(2), torch.ones(2, 1), 1.0, vp), "Expected positive"),
        (lambda: d.convert(x, "eps", "noise", x, t, t), "Expected one of"),
        (lambda: d.convert(x, "eps", "flow", x, t, t), "Expected `slopes`"),
        (lambda: d.convert(x, "eps", "mu", x, t, t), "Expected signal and noise `before`"),
        (lambda: d.Heun(5, low=3.0, high=1.0), "`low` <= `high`, got 3.0 and 1.0"),
        (lambda: d.ODESolver(8, "dopri5", -1.0), "`tolerance` to be a positive number, got -1.0"),
        (lambda: d.ODESolver(8, "simpson"), "`method` among"),
        (lambda: pg.distributions.Diffusion(denoiser, method="simpson"), "`method` among"),
        (lambda: pg.models.DDPM(2, steps=0), "`steps` to be a whole number >= 1"),
        *(
            (lambda s=s: s(torch.tensor([0.5, 1.5])), r"times in \[0, 1\], got 1.5")
            for s in (vp, d.VE(), d.SubVP(), d.Cosine(), d.Karras(), d.Rectified())
        ),
    ]
    for build, message in cases:
        with pytest.raises(ValueError, match=message):
            build()
    with pytest.raises(TypeError, match="Expected a schedule, got a int"):
        d.MixtureDenoiser(torch.ones(2), torch.ones(2, 1), 1.0, 3)
    with pytest.raises(TypeError, match="Expected a `sampler`, got a str"):
        pg.distributions.Diffusion(denoiser, "ddim")
    with pytest.raises(TypeError, match="`predictor` such as Ancestral"):
        d.PredictorCorrector(d.Heun())


def test_a_denoiser_goes_under_another_schedule(schedule, float64):
    """Any, also one that takes times as they are; and a diffusion with all that it learned."""
    m, s = torch.tensor([1.0, -2.0, 0.5]), covariance()
    exact = d.GaussianDenoiser(m, s, schedule)
    own = d.GaussianDenoiser(m, s, d.VP())
    plain = d.NetworkDenoiser(own.mean, d.VP(), (3,), predicts="x_0", plain=True)
    x, t = torch.randn(4, 3), torch.tensor([0.1, 0.3, 0.6, 0.8])
    level = schedule.log_snr(t)
    within = (level > d.VP().log_snr(torch.ones(()))) & (level < 20)
    for denoiser in (own, plain):
        moved = d.Rescheduled(denoiser.double(), schedule).double()
        found, known = moved.mean(x, t)[within], exact.mean(x, t)[within]
        torch.testing.assert_close(found, known, rtol=1e-8, atol=1e-8)
    law = d.Rescheduled(own, schedule)(x, t)
    torch.testing.assert_close(
        law.covariance_matrix[within], exact(x, t).covariance_matrix[within], rtol=1e-8, atol=1e-8
    )


def test_a_trained_diffusion_goes_under_another_schedule(tmp_path):
    torch.manual_seed(0)
    x = 3 + torch.randn(500, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    model = pg.models.EDM(2, hidden_features=(32,))
    pg.fit(model, x, steps=200, lr=1e-2, seed=0, progress=False)
    model.freeze()
    other = model.under(d.Rectified(), d.DPMSolver(30))
    assert not other.training
    torch.testing.assert_close(other().log_prob(x[:9]), model().log_prob(x[:9]), rtol=0, atol=0.02)
    drawn = other().sample((4000,))
    own = model().sample((4000,))
    torch.testing.assert_close(drawn.mean(0), own.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(own.T), rtol=0, atol=0.15)
    other.save(tmp_path)
    again = pg.load(tmp_path)
    assert torch.equal(again().log_prob(x[:9]), other().log_prob(x[:9]))
    model.denoiser.schedule = d.VP()
    with pytest.raises(ValueError, match="`under` gives a diffusion of another schedule"):
        model().log_prob(x)


@pytest.mark.parametrize(
    "objective", [pg.objectives.ImplicitScoreMatching(), pg.objectives.SlicedScoreMatching(2)]
)
def test_scores_are_matched_at_all_noise(objective):
    """Of normal data, whose score at each time is known."""
    torch.manual_seed(0)
    x = torch.randn(2000, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    model = pg.models.EDM(2, hidden_features=(32,))
    assert objective(model, x[:5]).shape == (5,)
    pg.fit(model, x, objective=objective, steps=250, lr=5e-3, batch_size=256, progress=False)
    covariance = torch.cov((model.standardized(x)).T)
    exact = d.GaussianDenoiser(torch.zeros(2), covariance, model.denoiser.schedule)
    level = torch.tensor([0.3, 1.0, 3.0])
    t = model.denoiser.schedule.time(-2 * level.log())[:, None].expand(3, 500)
    y = model.standardized(x[:500]) + level[:, None, None] * torch.randn(3, 500, 2)
    with torch.no_grad():
        found, known = (level[:, None, None] * m.score(y, t) for m in (model.denoiser, exact))
    wrong = (found - known).square().mean((1, 2)) / known.square().mean((1, 2))
    assert float(wrong.max()) < 0.2, wrong
    with pytest.raises(TypeError, match=r"a model of this package.*got a TimeMLP"):
        objective(pg.networks.TimeMLP(2), x)


def test_the_whole_bound_is_an_objective(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(500, 1).expand(500, 2) + 0.2 * torch.randn(500, 2)
    bound = pg.objectives.EvidenceBound(50)
    model = pg.distributions.Diffusion(
        d.NetworkDenoiser(pg.networks.TimeMLP(2), d.VP(), (2,)), objective=bound
    )
    model.initialize(x)

    def average():
        with torch.no_grad():
            return float(torch.stack([bound(model, x).mean() for _ in range(20)]).mean())

    before = average()
    pg.fit(model, x, steps=150, lr=3e-3, progress=False)
    assert average() < before - 0.3
    model.save(tmp_path)
    assert pg.load(tmp_path).objective == bound
    with pytest.raises(TypeError, match=r"Expected a diffusion.*got a MAF"):
        bound(pg.models.MAF(2), x)
    with pytest.raises(ValueError, match=r"`steps`.*got 1"):
        pg.objectives.EvidenceBound(1)


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


# The distribution


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
            lambda y, t: denoiser.say("flow", y, t),
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


# The pair


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


# Guidance


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
        (lambda x, t: x, r"one number for each datum, with shape \(2,\), got \(2, 3\)"),
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


# Posteriors


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
