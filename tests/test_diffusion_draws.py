"""Samplers, denoisers under other schedules, score matching."""

import math

import pytest
import torch

import probgen as pg
from probgen import diffusion as d

from .diffusion_cases import MEANS, SCHEDULES, WEIGHTS, covariance, mixture
from .diffusion_cases import schedule as schedule

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
