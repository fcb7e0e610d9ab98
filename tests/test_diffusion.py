"""Known answers of diffusions: schedules, denoisers and samplers."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen import diffusion as d

SCHEDULES = {
    "vp": lambda: d.VariancePreserving(),
    "sub-vp": lambda: d.SubVariancePreserving(),
    "cosine": lambda: d.Cosine(),
    "ve": lambda: d.VarianceExploding(0.01, 50.0),
    "karras": lambda: d.Karras(),
    "rectified": lambda: d.Rectified(),
    "table": lambda: d.Tabulated(),
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
    betas = d.Tabulated().betas(1000)
    torch.testing.assert_close(betas, torch.linspace(1e-4, 0.02, 1000))  # Ho et al.
    t = torch.rand(20)
    integral = 0.1 * t + (20 - 0.1) * t.square() / 2  # of Song et al.'s rate
    alpha, sigma = d.VariancePreserving()(t)
    torch.testing.assert_close(alpha, (-integral / 2).exp())
    torch.testing.assert_close(sigma.square(), 1 - (-integral).exp())
    torch.testing.assert_close(d.SubVariancePreserving()(t)[1], 1 - (-integral).exp())
    torch.testing.assert_close(d.VariancePreserving().diffusion(t), 0.1 + t * 19.9)
    f = ((t + 0.008) / 1.008 * math.pi / 2).cos().square()
    f0 = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(d.Cosine()(t)[0].square(), f / f0)  # of Nichol & Dhariwal
    table = d.Tabulated()
    steps = torch.arange(1, 1001) / 1000
    torch.testing.assert_close(
        table(steps)[0].square(), torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    )
    levels = d.RhoGrid().path(d.Karras(), 18).sigma
    i = torch.arange(18) / 17
    edm = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(levels, torch.cat([edm, torch.zeros(1)]))


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
    for a, b in itertools.product(said, said):
        found = d.convert(said[a], a, b, x, alpha, sigma, slopes)
        torch.testing.assert_close(found, said[b], rtol=1e-8, atol=1e-8)


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
        torch.testing.assert_close(law.mean[:, k], mean, rtol=1e-8, atol=1e-8)
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
    grid = d.RhoGrid() if "heun" in name else d.UniformGrid()
    grid = d.RatioGrid() if name == "dpm" else grid
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
    schedule, lam = d.VariancePreserving(), 0.3
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
    for sampler in (d.Ancestral(1000), d.DDIM(50), d.Heun(18), d.DPMSolver(20)):
        if name != "vp" and isinstance(sampler, d.Ancestral):
            continue  # seconds each
        x = sampler.sample(denoiser, d.noise(denoiser, torch.Size([n]), torch.ones(())))
        angle = torch.randn(200, 2)
        angle = angle / angle.norm(dim=1, keepdim=True)
        far = ((x @ angle.T).sort(0).values - (truth @ angle.T).sort(0).values).abs().mean()
        share = torch.cdist(x, MEANS.double()).argmin(1).bincount(minlength=8) / n
        assert float(far) < 0.08, sampler
        assert float((share - WEIGHTS / 20).abs().sum() / 2) < 0.025, sampler


def test_what_samplers_show_on_the_way():
    denoiser = mixture(d.VariancePreserving()).float()
    seen = []
    x = d.noise(denoiser, torch.Size([3, 2]), torch.ones(()))
    out = d.DDIM(5).sample(denoiser, x, callback=lambda k, y: seen.append((k, y.shape)))
    assert seen == [(k, (3, 2, 2)) for k in range(5)]
    assert out.dtype == torch.float32


def test_samplers_run_without_reading_a_value(unchecked):
    denoiser = mixture(d.VariancePreserving()).float().to("meta")
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
    vp = d.VariancePreserving()
    denoiser = mixture(vp).float()
    x, t = torch.randn(4, 2), torch.tensor(0.5)
    wrong = d.NetworkDenoiser(lambda x, t: x[..., :1], vp, (2,))
    cases = [
        (lambda: d.VariancePreserving(3.0, 1.0), "0 < `low` <= `high`"),
        (lambda: d.VarianceExploding(3.0, 1.0), "0 < `low` < `high`"),
        (lambda: d.Karras(rho=0.0), "positive `rho`"),
        (lambda: d.Cosine(-1.0), "`offset` not to be negative"),
        (lambda: d.Tabulated(torch.tensor([0.1, 1.2])), r"`betas` in \(0, 1\)"),
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
        (lambda: d.Ancestral(5, "learned"), "'posterior' or 'step'"),
        (lambda: d.Heun(5, churn=-1.0), "`churn` >= 0"),
        (lambda: d.PredictorCorrector(ratio=0.0), "positive `ratio`"),
        (lambda: d.GaussianDenoiser(torch.zeros(2), torch.eye(3), vp), r"\(D,\) and \(D, D\)"),
        (lambda: d.MixtureDenoiser(torch.ones(2), torch.ones(3, 1), 1.0, vp), r"\(K,\), \(K, D\)"),
        (lambda: d.MixtureDenoiser(-torch.ones(2), torch.ones(2, 1), 1.0, vp), "Expected positive"),
        (lambda: d.convert(x, "eps", "noise", x, t, t), "Expected one of"),
        (lambda: d.convert(x, "eps", "flow", x, t, t), "Expected `slopes`"),
    ]
    for build, message in cases:
        with pytest.raises(ValueError, match=message):
            build()
    with pytest.raises(TypeError, match="Expected a schedule, got a int"):
        d.MixtureDenoiser(torch.ones(2), torch.ones(2, 1), 1.0, 3)
    with pytest.raises(TypeError, match="`predictor` such as Ancestral"):
        d.PredictorCorrector(d.Heun())
