"""The MCMC engine: potentials of Pyro models, runs, diagnostics, adapters, annealing."""

import math
import os
import subprocess
import sys
import textwrap
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.mcmc.util import initialize_model
from torch.distributions import biject_to

import probgen as pg
from probgen import mcmc
from probgen.mcmc import diagnostics, potential, run

Y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
SIGMA = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
EIGHT = {"mu": 4.397, "tau": 3.598, "theta": 6.212}  # exact, by quadrature


def eight_schools():
    mu = pyro.sample("mu", dist.Normal(0, 5))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(0, 1))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, SIGMA), obs=Y)


def every_support(y):
    low = pyro.sample("low", dist.Beta(2.0, 3.0))
    pyro.sample("above", dist.Uniform(low, low + 2))  # a support that depends on a site
    pyro.sample("simplex", dist.Dirichlet(torch.ones(4)))
    pyro.sample("factor", dist.LKJCholesky(3, 2.0))
    pyro.sample("interval", dist.Uniform(-1, 1).expand([2]).to_event(1))
    with pyro.plate("outer", 3, dim=-1), pyro.plate("inner", 2, dim=-2):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with poutine.mask(mask=torch.tensor([True, False, True])), poutine.scale(scale=2.0):
            pyro.sample("y", dist.Normal(low, scale), obs=y)
    pyro.factor("bonus", -low)


def branching():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    if x > 0:
        pyro.factor("up", x)


def mixture(y):
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(weight))
        pyro.sample("y", dist.Normal(means[..., 0] * (1 - z) + means[..., 1] * z, 1.0), obs=y)


def reference(model, *args, **values):
    """The log density of a model, one chain, plus the Jacobians of its supports."""
    trace = poutine.trace(poutine.condition(model, values)).get_trace(*args)
    total = trace.log_prob_sum()
    for name in values:
        t = biject_to(trace.nodes[name]["fn"].support)
        u = t.inv(values[name])
        total = total + t.log_abs_det_jacobian(u, values[name]).sum()
    return total


@pytest.mark.parametrize("compile", [True, False])
@pytest.mark.parametrize(
    ("model", "args"),
    [(eight_schools, ()), (every_support, (torch.randn(2, 3, generator=torch.manual_seed(1)),))],
)
def test_the_potential_is_the_models_log_density_chain_by_chain(model, args, compile, float64):
    args = [a.double() for a in args]
    log_density = potential(model, *args, compile=compile)
    x = log_density.initial("uniform", 5)
    values = log_density.unravel(x)
    value, gradient = log_density.value_and_gradient(x)
    torch.testing.assert_close(log_density(x), value)
    for k in range(5):
        own = {name: values[name][k] for name in log_density.layout}
        torch.testing.assert_close(
            value[k], reference(model, *args, **own), rtol=1e-6, atol=1e-6, check_dtype=False
        )
    u = x.clone().requires_grad_()
    (exact,) = torch.autograd.grad(log_density(u).sum(), u)
    torch.testing.assert_close(gradient, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recorded_shortcuts_hold_where_numbers_are_extreme(dtype):
    d = 6
    factor = torch.linalg.cholesky(torch.full((d, d), 0.5, dtype=dtype) + torch.eye(d) / 2)
    slope = torch.tensor([0.0, 1.0, 20.0, 60.0, 120.0, -120.0], dtype=dtype)

    def model():
        x = pyro.sample(
            "x", dist.MultivariateNormal(torch.zeros(d, dtype=dtype), scale_tril=factor)
        )
        with pyro.plate("sides", 2):
            y = torch.tensor([0.0, 1.0], dtype=dtype)[:, None]
            pyro.sample("y", dist.Bernoulli(logits=slope * x).to_event(1), obs=y.expand(2, d))

    log_density = potential(model)
    x = torch.randn(7, d, dtype=dtype)
    log_density.value_and_gradient(x)  # after which operations are recorded
    value, gradient = log_density.value_and_gradient(x)
    assert torch.equal(log_density.gradient(x), gradient)
    for k in range(7):
        u = x[k].clone().requires_grad_()
        exact = reference(model, x=u)
        torch.testing.assert_close(value[k], exact)
        torch.testing.assert_close(gradient[k], torch.autograd.grad(exact, u)[0])


def test_the_potential_is_pyros(float64):
    _, theirs, _, _ = initialize_model(eight_schools)
    log_density = potential(eight_schools)
    x = torch.randn(3, 10)
    for k in range(3):
        params = {n: x[k, s.start : s.stop].reshape(s.shape) for n, s in log_density.layout.items()}
        torch.testing.assert_close(log_density(x)[k], -theirs(params), check_dtype=False)


def test_recorded_operations_give_the_same_numbers():
    short, plain = potential(eight_schools), potential(eight_schools, compile=False)
    x = torch.randn(16, 10)
    for k in range(1, 3):
        value, slope = short.value_and_gradient(x)
        assert bool(short.recorded) == (k > 1)  # not for one evaluation
    for a, b in zip((value, slope), plain.value_and_gradient(x)):
        assert torch.equal(a, b)
    recording = short.recorded[("total'", x.shape, x.dtype, x.device)]
    assert recording.size("value") < recording.size("gradient") < 60


def test_prior_and_likelihood_sum_to_the_density():
    log_density = potential(eight_schools)
    x = torch.randn(4, 10)
    total = log_density.log_prior(x) + log_density.log_likelihood(x)
    torch.testing.assert_close(total, log_density(x))


def test_discrete_sites_are_summed_out(float64):
    y = torch.tensor([-2.0, -1.5, 2.0, 2.5, 3.0])
    log_density = potential(mixture, y)
    x = log_density.initial("uniform", 3)
    v = log_density.unravel(x)
    assert set(v) == {"means", "weight"}
    for k in range(3):
        m, w = v["means"][k], v["weight"][k]
        parts = torch.stack([(1 - w).log() + dist.Normal(m[0], 1.0).log_prob(y),
                             w.log() + dist.Normal(m[1], 1.0).log_prob(y)])  # fmt: skip
        exact = parts.logsumexp(0).sum() + dist.Normal(0.0, 5.0).log_prob(m).sum()
        exact = exact + dist.Beta(2.0, 2.0).log_prob(w) + w.log() + (1 - w).log()
        torch.testing.assert_close(log_density(x)[k], exact)
    with pytest.raises(ValueError, match="discrete sites, got z"):
        log_density.log_prior(x)


def test_a_model_that_branches_runs_chain_by_chain_after_a_warning():
    with pytest.warns(UserWarning, match="vmap does not take this model"):
        log_density = potential(branching)
    x = torch.tensor([[-1.0], [2.0]])
    exact = dist.Normal(0.0, 1.0).log_prob(x[:, 0]) + torch.tensor([0.0, 2.0])
    value, gradient = log_density.value_and_gradient(x)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(gradient[:, 0], torch.tensor([1.0, -1.0]))
    assert log_density.unravel(x)["x"].shape == (2,)
    assert log_density.initial("prior", 3).shape == (3, 1)


def test_validation_settings_survive():
    for setting in (True, False):
        pyro.enable_validation(setting)
        potential(eight_schools).initial("prior", 4)
        assert pyro.infer.util.is_validation_enabled() is setting
        assert torch.distributions.Distribution._validate_args is setting


@pytest.mark.parametrize("how", ["uniform", "prior", "median", "importance"])
def test_initial_points_differ_and_are_finite(how):
    log_density = potential(eight_schools)
    x = log_density.initial(how, 32)
    assert x.shape == (32, 10)
    assert torch.isfinite(log_density(x)).all()
    assert len(x[:, 0].unique()) > 8


def test_initial_values_by_name():
    log_density = potential(eight_schools)
    given = {"tau": torch.tensor(2.0), "mu": torch.arange(3.0)}
    v = log_density.unravel(log_density.initial(given, 3))
    torch.testing.assert_close(v["tau"], torch.full((3,), 2.0))
    torch.testing.assert_close(v["mu"], torch.arange(3.0))
    with pytest.raises(ValueError, match=r"initial values of .*'mu'.*got \['nu'\]"):
        log_density.initial({"nu": torch.zeros(())}, 3)
    with pytest.raises(ValueError, match=r"'mu' with shape \(\).*3 chains.*got \(2,\)"):
        log_density.initial({"mu": torch.zeros(2)}, 3)
    with pytest.raises(ValueError, match="got 'best'"):
        log_density.initial("best", 3)


def changing():
    n = int(torch.randint(2, 9, ()))
    pyro.sample("x", dist.Normal(torch.zeros(n), 1.0).to_event(1))


def noisy():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("noise", torch.randn(()) * x)


def subsampled():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 100, subsample_size=10) as index:
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.zeros(100)[index])


def minibatched():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 100, subsample=torch.arange(10)):
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.zeros(10))


def counting():
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    pyro.sample("count", dist.Poisson(rate))


def covariance():
    pyro.sample("covariance", dist.Wishart(torch.tensor(5.0), torch.eye(2)))


def impossible():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.validation_enabled(False):
        pyro.sample("y", dist.Uniform(x * 0, 1.0, validate_args=False), obs=torch.tensor(2.0))


def bound():
    flow = pg.distributions.Flow([pg.transforms.NormalCDF(0.0, 4.0)], pg.models.NSF(2))
    module = pg.distributions.Dequantized(flow, levels=4).freeze()
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pg.sample("y", module, obs=torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0)), "latent sites"),
        (changing, "same sites and shapes in every run"),
        (subsampled, "all data in plate 'data', got 10 of 100"),
        (minibatched, "all data in plate 'data', got 10 of 100"),
        (counting, "site 'count', got one that is discrete and cannot be enumerated"),
        (bound, "density at site 'y', got a stochastic bound"),
        (noisy, "draws random numbers"),
        (covariance, r"site 'covariance', got one that is PositiveDefinite\(\)"),
    ],
)
def test_models_that_would_go_wrong_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        potential(model)


def test_an_impossible_start_names_the_site_and_the_value():
    log_density = potential(impossible)
    with pytest.raises(ValueError, match=r"finite log density.*-inf at site 'y'"):
        log_density.initial("uniform", 2)

    def tight():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(x < 50, -torch.inf, 0.0))

    with pytest.raises(ValueError, match=r"-inf at site 'wall'.*`init`"):
        run(tight, chains=2, progress=False)


def test_positions_are_checked():
    with pytest.raises(ValueError, match=r"shape \(chains, 10\), got \(4, 9\)"):
        potential(eight_schools)(torch.zeros(4, 9))


@pytest.mark.parametrize(
    "options", [{"chains": 0}, {"draws": 0}, {"thin": 0}, {"warmup": -1}, {"superchains": 3}]
)
def test_numbers_are_checked(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"Expected `{name}`"):
        run(eight_schools, progress=False, **options)


def z_score(x, exact):
    """How many standard errors a mean is off, with those of the chains' means."""
    means = x.double().mean(1)
    return float(abs(means.mean() - exact) / (means.std() / len(means) ** 0.5))


KERNELS = {
    "chees": (mcmc.ChEES(), 100),
    "hmc": (mcmc.HMC(steps=8), 300),
    "mala": (mcmc.MALA(), 600),
    "metropolis": (mcmc.Metropolis(), 1500),
    "elliptical": (mcmc.EllipticalSlice(scale=torch.tensor([5.0, 1.5] + 8 * [1.0])), 300),
}


@pytest.mark.parametrize("name", KERNELS)
def test_eight_schools_are_exact(name, float64):
    kernel, draws = KERNELS[name]
    result = run(
        eight_schools,
        kernel=kernel,
        chains=128,
        warmup=max(200, draws // 2),
        draws=draws,
        seed=0,
        progress=False,
    )
    for site, exact in EIGHT.items():
        x = result.samples[site]
        assert z_score(x[..., 0] if site == "theta" else x, exact) < 4
    tau, theta = result.samples["tau"], result.samples["theta"][..., 0]
    assert abs(float(tau.std()) - 3.220) < 0.25
    assert abs(float(theta.quantile(0.95)) - 16.11) < 0.6


@pytest.mark.parametrize("metric", ["diagonal", "dense"])
def test_a_normal_with_condition_number_1e4(metric, float64):
    d, n = 10, 128
    sd = torch.logspace(-1, 1, d)  # variances over four decades
    turn = torch.linalg.qr(torch.randn(d, d)).Q if metric == "dense" else torch.eye(d)
    factor = turn * sd
    precision = torch.linalg.inv(factor @ factor.T)

    def log_density(x):
        return -((x @ precision) * x).sum(-1) / 2

    result = run(
        log_density, init=torch.randn(n, d), draws=400, metric=metric, seed=1, progress=False
    )
    z = torch.linalg.solve(factor, result.samples["x"].flatten(0, 1).T).T.reshape(n, 400, d)
    means = z.mean(1)
    assert (means.mean(0).abs() / (means.std(0) / n**0.5)).max() < 4.6  # Bonferroni: 10 cells
    cells = (z[..., :, None] * z[..., None, :]).mean(1)  # of each chain
    gap = cells.mean(0) - torch.eye(d)
    assert (gap.abs() / (cells.std(0) / n**0.5)).max() < 4.9  # Bonferroni: 55 cells
    assert diagnostics.ess(z.square()).min() > 13_000
    assert ((z.flatten(0, 1).var(0) - 1).abs() < 0.05).all()


def test_a_run_leaves_the_random_state_alone_and_follows_its_seed():
    before = torch.get_rng_state()
    a = run(eight_schools, chains=4, warmup=10, draws=5, seed=7, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    b = run(eight_schools, chains=4, warmup=10, draws=5, seed=7, progress=False)
    c = run(eight_schools, chains=4, warmup=10, draws=5, seed=8, progress=False)
    assert torch.equal(a.samples["mu"], b.samples["mu"])
    assert not torch.equal(a.samples["mu"], c.samples["mu"])


@pytest.mark.parametrize("kernel", [mcmc.ChEES(), mcmc.Metropolis(), mcmc.SGLD(0.01)])
def test_an_interrupted_run_gives_the_same_draws(kernel, tmp_path, monkeypatch):
    options = {"kernel": kernel, "chains": 4, "warmup": 20, "draws": 12, "progress": False}
    whole = run(eight_schools, seed=3, **options)
    taken, step = [], type(kernel).step

    def interrupted(self, state, log_density):
        taken.append(1)
        if len(taken) == cut:
            raise KeyboardInterrupt
        return step(self, state, log_density)

    monkeypatch.setattr(type(kernel), "step", interrupted)
    # count the steps of a whole run, then stop one five draws before its end
    cut = 0
    run(eight_schools, seed=3, **options)
    cut, taken[:] = len(taken) - 5, []
    with pytest.raises(KeyboardInterrupt):
        run(eight_schools, seed=3, checkpoint=tmp_path, **options)
    cut = -1
    again = run(eight_schools, checkpoint=tmp_path, **options)
    for name, x in whole.samples.items():
        assert torch.equal(x, again.samples[name])
    more = run(eight_schools, checkpoint=tmp_path, **{**options, "draws": 15})
    assert torch.equal(more.samples["mu"][:, :12], whole.samples["mu"])
    with pytest.raises(ValueError, match="holds a run with warmup 20, not 21"):
        run(eight_schools, checkpoint=tmp_path, **{**options, "warmup": 21})
    with pytest.raises(ValueError, match="Ask for as many or more, got 11"):
        run(eight_schools, checkpoint=tmp_path, **{**options, "draws": 11})
    with pytest.raises(ValueError, match="same chains"):
        run(eight_schools, checkpoint=tmp_path, **{**options, "chains": 8})


@pytest.fixture(scope="module")
def draws():
    return run(eight_schools, chains=16, warmup=50, draws=40, superchains=4, seed=0, progress=False)


def test_draws_have_chains_draws_and_events(draws):
    assert draws.samples["mu"].shape == (16, 40)
    assert draws.samples["theta"].shape == (16, 40, 8)
    assert draws.latent == ["mu", "tau", "eta"]
    assert (draws.samples["tau"] > 0).all()
    assert draws.stats["acceptance"].shape == (16, 40)


def test_diagnostics_come_for_every_site(draws):
    for found in (draws.ess(), draws.ess("tail"), draws.rhat(), draws.nested_rhat()):
        assert found["mu"].shape == ()
        assert found["theta"].shape == (8,)
    with pytest.raises(ValueError, match="'bulk' or 'tail', got 'head'"):
        draws.ess("head")


def test_the_summary_is_a_table(draws):
    text = str(draws.summary())
    assert text.splitlines()[0].split()[:2] == ["mean", "sd"]
    assert "theta[7]" in text
    (row,) = [row for row in draws.summary().rows if row.name == "mu"]
    assert row.mean == pytest.approx(float(draws.samples["mu"].mean()))
    assert row.low < row.median < row.high


def test_divergences_are_in_the_summary(draws):
    diverged = torch.zeros(16, 40, dtype=torch.bool)
    diverged[3, :2] = True
    shown = pg.mcmc.Draws(draws.samples, {**draws.stats, "diverged": diverged}, [], ["mu"])
    assert "2 of 640 proposals diverged, in 1 of 16 chains" in str(shown.summary())
    assert "base of their flow: mu" in str(shown.summary())


def test_draws_save_and_load(draws, tmp_path):
    draws.save(tmp_path)
    again = mcmc.Draws.load(tmp_path)
    assert again.latent == draws.latent
    for name, x in draws.samples.items():
        assert torch.equal(x, again.samples[name])
    pg.models.MAF(2).save(tmp_path / "flow")
    with pytest.raises(ValueError, match="another checkpoint"):
        mcmc.Draws.load(tmp_path / "flow")


def test_predictive_draws_the_other_sites(draws):
    def model():
        mu = pyro.sample("mu", dist.Normal(0, 5))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        pyro.sample("new", dist.Normal(mu, tau))

    found = draws.predictive(model, draws=200)
    assert found["new"].shape == (200,)
    assert abs(float(found["new"].mean()) - 4.4) < 2


def test_draws_become_inference_data(draws):
    arviz = arviz_module()
    data = draws.to_arviz()
    assert data.posterior["theta"].shape == (16, 40, 8)
    assert set(data.sample_stats.data_vars) == {"lp", "acceptance_rate", "diverging", "steps"}
    summary = arviz.summary(data, var_names=["mu"])
    assert float(summary["ess_bulk"].iloc[0]) == pytest.approx(float(draws.ess()["mu"]), rel=0.1)


def arviz_module():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("arviz", reason="needs the arviz extra")


@pytest.mark.parametrize("shape", [(4, 500), (64, 60), (3, 200)])
def test_diagnostics_agree_with_arviz(shape, float64):
    arviz = arviz_module()
    noise, x = torch.randn(shape), torch.zeros(shape)
    for k in range(1, shape[1]):
        x[:, k] = 0.6 * x[:, k - 1] + noise[:, k]
    a = x.numpy()
    assert float(diagnostics.rhat(x)) == pytest.approx(float(arviz.rhat(a)), rel=1e-6)
    for method, ours in (("bulk", diagnostics.ess), ("tail", diagnostics.ess_tail)):
        assert float(ours(x)) == pytest.approx(float(arviz.ess(a, method=method)), rel=0.05)
    assert float(diagnostics.mcse(x)) == pytest.approx(
        float(arviz.mcse(a, method="mean")), rel=0.03
    )


def test_nested_rhat_sees_what_is_left_of_the_start():
    start = 3 * torch.randn(8, 1, 1)
    mixed = torch.randn(8, 16, 5).reshape(128, 5)
    stuck = (start + torch.randn(8, 16, 5)).reshape(128, 5)
    assert float(diagnostics.nested_rhat(mixed, 8)) < 1.05
    assert float(diagnostics.nested_rhat(stuck, 8)) > 2
    with pytest.raises(ValueError, match="divide 128, got 5"):
        diagnostics.nested_rhat(mixed, 5)
    with pytest.raises(ValueError, match="4 draws or more"):
        diagnostics.ess(torch.zeros(3, 2))


def test_superchains_start_at_one_point():
    seen = {}

    class Spy(mcmc.Metropolis):
        def init(self, position, log_density):
            seen["start"] = position
            return super().init(position, log_density)

    run(eight_schools, kernel=Spy(), chains=8, superchains=2, warmup=0, draws=1, progress=False)
    assert len(seen["start"].unique(dim=0)) == 2


def test_a_gibbs_kernel_runs_over_dictionaries():
    def log_density(x):
        return -(x["a"] - x["b"]).square().sum(-1) / 2 - x["b"].square().sum(-1) / 2

    def draw_a(x):
        return x["b"] + torch.randn_like(x["a"])

    def draw_b(x):
        return x["a"] / 2 + 0.5**0.5 * torch.randn_like(x["b"])

    start = {"a": torch.zeros(200, 1), "b": torch.zeros(200, 1)}
    result = run(
        log_density,
        kernel=mcmc.Gibbs({"a": draw_a, "b": draw_b}),
        init=start,
        warmup=20,
        draws=50,
        seed=0,
        progress=False,
    )
    assert result.samples["a"].shape == (200, 50, 1)
    assert abs(float(result.samples["a"].var()) - 2) < 0.1
    assert abs(float(result.samples["b"].var()) - 1) < 0.05


def test_a_log_density_needs_positions():
    with pytest.raises(ValueError, match=r"shape \(chains, \*\)"):
        run(lambda x: -x.square().sum(-1), init=torch.tensor(0.0), progress=False)


@pytest.mark.parametrize(
    "kernel",
    [mcmc.ChEES(), mcmc.HMC(), mcmc.MALA(), mcmc.Metropolis(), mcmc.EllipticalSlice(), mcmc.ULA()],
)
def test_every_kernel_runs_under_pyros_mcmc(kernel):
    stock = MCMC(
        mcmc.PyroKernel(kernel, eight_schools),
        num_samples=15,
        warmup_steps=30,
        disable_progbar=True,
    )
    stock.run()
    found = stock.get_samples()
    assert found["eta"].shape == (15, 8)
    assert (found["tau"] > 0).all()
    assert "acceptance rate" in stock.diagnostics()


def test_pyros_mcmc_starts_where_it_is_told():
    kernel = mcmc.PyroKernel(mcmc.Metropolis(1e-6), eight_schools)
    start = {"mu": torch.tensor(1.0), "tau": torch.tensor(0.5), "eta": torch.zeros(8)}
    stock = MCMC(kernel, 2, 0, initial_params=start, disable_progbar=True)
    stock.run()
    found = stock.get_samples()
    assert float(found["mu"][0]) == pytest.approx(1.0, abs=1e-3)
    assert float(found["tau"][0]) == pytest.approx(math.exp(0.5), abs=1e-3)


def test_batched_mcmc_has_pyros_interface(capsys):
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    batched = mcmc.BatchedMCMC(
        None, model, num_samples=50, warmup_steps=100, chains=32, disable_progbar=True, seed=0
    )
    batched.run(torch.tensor(2.0))
    assert isinstance(batched, pyro.infer.mcmc.api.AbstractMCMC)
    assert batched.get_samples()["mean"].shape == (1600,)
    assert batched.get_samples(group_by_chain=True)["mean"].shape == (32, 50)
    assert batched.get_samples(7)["mean"].shape == (7,)
    assert batched.get_samples(7, group_by_chain=True)["mean"].shape == (32, 7)
    assert abs(float(batched.get_samples()["mean"].mean()) - 1) < 0.1
    assert set(batched.diagnostics()["mean"]) == {"n_eff", "r_hat"}
    batched.summary()
    assert "mean" in capsys.readouterr().out


@pytest.fixture
def frozen():
    """A flow that is known exactly: N(1, 2^2) in two dimensions."""
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    shift = pg.transforms.Affine(torch.ones(2), torch.full((2,), math.log(2.0)))
    return pg.distributions.Flow([shift], base).freeze()


def test_a_frozen_flow_moves_to_its_base(frozen):
    def model(y):
        x = pg.sample("x", frozen)
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    y = torch.tensor([3.0, -1.0])
    result = run(model, y, chains=128, seed=0, progress=False)
    assert result.moved == ["x"]
    assert set(result.samples) == {"x"}
    exact = (1 / 4 + y) / (1 / 4 + 1)
    for k in range(2):
        assert z_score(result.samples["x"][..., k], float(exact[k])) < 4
    assert float(result.samples["x"].flatten(0, 1).var(0).mean()) == pytest.approx(0.8, rel=0.05)
    assert "base of their flow: x" in str(result.summary())
    plain = run(model, y, chains=64, base=False, seed=0, progress=False)
    assert plain.moved == []
    for k in range(2):
        assert z_score(plain.samples["x"][..., k], float(exact[k])) < 4


def test_an_unfrozen_flow_stays_where_it_is():
    flow = pg.models.MAF(2, transforms=1, hidden_features=(4,))
    assert potential(lambda: pg.sample("x", flow)).moved == []
    flow.freeze()
    assert potential(lambda: pg.sample("x", flow)).moved == ["x"]


def ising(n=4, beta=0.4407):
    """The bonds of an n x n torus, between black sites and white ones."""
    index = torch.arange(n * n).reshape(n, n)
    row, column = index // n, index % n
    black, white = index[(row + column) % 2 == 0], index[(row + column) % 2 == 1]
    bonds = torch.zeros(n * n, n * n, dtype=torch.double)
    for step in ((0, 1), (1, 0)):
        other = index.roll((-step[0], -step[1]), (0, 1))
        bonds[index.flatten(), other.flatten()] += 1
    bonds = bonds + bonds.T
    return beta * bonds[black][:, white], len(black)


def bits(n, low):
    return torch.cartesian_prod(*[torch.tensor([low, 1.0], dtype=torch.double)] * n)


def exact_log_z(kernel, n):
    return float(kernel.log_density(bits(n, float(kernel.units))).logsumexp(0))


@pytest.mark.parametrize("beta", [0.2, 0.4407, 0.7])
def test_ais_of_an_ising_model_agrees_with_enumeration(beta):
    w, half = ising(beta=beta)
    zero, n = torch.zeros(half, dtype=torch.double), 2000

    def at(b):
        return mcmc.BlockGibbs(b * w, zero, zero, units=-1)

    start = 2.0 * torch.randint(2, (n, half)).double() - 1
    found = mcmc.ais(
        lambda v: 0 * v[:, 0] - half * math.log(2), at(1.0).log_density, start, at, 200
    )
    assert abs(found.log_z - exact_log_z(at(1.0), half)) < 4 * found.se
    assert found.ess > n / 10


def test_ais_and_smc_of_a_boltzmann_machine_agree_with_enumeration():
    torch.manual_seed(2)
    w = torch.randn(8, 6, dtype=torch.double)
    b, c = torch.randn(8, dtype=torch.double), torch.randn(6, dtype=torch.double)
    n = 2000

    def at(beta):
        return mcmc.BlockGibbs(beta * w, b, beta * c)

    def base(v):
        return dist.Bernoulli(logits=b).to_event(1).log_prob(v)

    start = dist.Bernoulli(logits=b).sample((n,))
    exact = exact_log_z(at(1.0), 8)
    found = mcmc.ais(base, at(1.0).log_density, start, at, 200)
    assert abs(found.log_z - exact) < 4 * found.se

    def joint(x):  # on the path of visible and hidden units together, as a dictionary
        v, h = x["v"], x["h"]
        return v @ b + h @ c + ((v @ w) * h).sum(-1)

    def joint_base(x):
        return base(x["v"]) - 6 * math.log(2)

    def blocks(beta):
        def draw(field):
            return (torch.rand_like(field) < field.sigmoid()).double()

        return mcmc.Gibbs(
            {
                "h": lambda x: draw(beta * (x["v"] @ w + c)),
                "v": lambda x: draw(b + beta * (x["h"] @ w.T)),
            }
        )

    hidden = torch.randint(2, (n, 6)).double()
    found = mcmc.smc(joint_base, joint, {"v": start, "h": hidden}, blocks, steps=2)
    assert abs(found.log_z - exact) < 4 * found.se
    found = mcmc.ais(joint_base, joint, {"v": start, "h": hidden}, blocks, 100)
    assert abs(found.log_z - exact) < 4 * found.se


@pytest.mark.parametrize("kernel", [mcmc.HMC(0.3, 3), mcmc.MALA(0.1), mcmc.ChEES(0.3, 0.8)])
def test_evidence_of_a_linear_normal_model(kernel, float64):
    a = torch.randn(4, 3)
    y = torch.tensor([1.0, -2.0, 0.5, 3.0])
    exact = float(
        dist.MultivariateNormal(torch.zeros(4), a @ a.T + 0.3**2 * torch.eye(4)).log_prob(y)
    )

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(a @ x, 0.3).to_event(1), obs=y)

    log_density = potential(model)
    start = log_density.initial("prior", 800)
    for found in (
        mcmc.smc(log_density.log_prior, log_density, start, kernel),
        mcmc.ais(log_density.log_prior, log_density, start, kernel, 200),
    ):
        assert abs(found.log_z - exact) < 4 * found.se
        assert found.se < 0.2
    gain = a.T @ torch.linalg.inv(a @ a.T + 0.09 * torch.eye(4))
    x = mcmc.smc(log_density.log_prior, log_density, start, kernel, steps=10).position
    sd = (torch.eye(3) - gain @ a).diagonal().sqrt()
    assert ((x.mean(0) - gain @ y).abs() / sd < 0.25).all()


def test_annealing_warns_of_few_effective_chains():
    def base(x):
        return -x.square().sum(-1) / 2

    with pytest.warns(UserWarning, match="effective sample size is .* of 200"):
        mcmc.ais(base, lambda x: -50 * (x - 4).square().sum(-1), torch.randn(200, 5), mcmc.HMC(), 1)


@pytest.mark.parametrize(
    "temperatures", [0, torch.tensor([0.0, 0.5]), torch.tensor([0.0, 0.5, 0.4, 1.0])]
)
def test_temperatures_are_checked(temperatures):
    with pytest.raises(ValueError, match="temperature"):
        mcmc.ais(None, None, torch.zeros(3, 1), mcmc.HMC(), temperatures)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"islands": 3}, "divide 8, got 3"), ({"threshold": 1.5}, r"in \(0, 1\), got 1.5")],
)
def test_arguments_of_smc_are_checked(options, message):
    def flat(x):
        return 0 * x[:, 0]

    with pytest.raises(ValueError, match=message):
        mcmc.smc(flat, flat, torch.zeros(8, 1), mcmc.HMC(), **options)


def test_posterior_of_a_learned_prior_and_a_function(frozen):
    y = torch.tensor([3.0, -1.0])

    def log_likelihood(x):
        return dist.Normal(x, 1.0).to_event(1).log_prob(y)

    before = torch.get_rng_state()
    found = pg.posterior(frozen, log_likelihood, draws=2048, seed=1, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    exact = dist.Normal(torch.ones(2), 5**0.5).to_event(1).log_prob(y)
    assert abs(found.log_evidence - float(exact)) < 4 * found.se
    mean = (1 / 4 + y) / (1 / 4 + 1)
    weights = found.log_weights.softmax(0)[:, None]
    assert ((weights * found.draws).sum(0) - mean).abs().max() < 0.1
    assert found.resampled(50).shape == (50, 2)


def test_posterior_of_a_prior_of_pyro_with_a_support():
    found = pg.posterior(
        dist.Beta(torch.tensor(2.0), torch.tensor(2.0)),
        lambda x: dist.Binomial(10, x).log_prob(torch.tensor(7.0)),
        seed=0,
        progress=False,
    )
    assert abs(float(found.draws.mean()) - 9 / 14) < 0.02
    exact = math.log(math.comb(10, 7)) + math.lgamma(9) + math.lgamma(5) - math.lgamma(14)
    exact += math.lgamma(4)  # the Beta-binomial law
    assert abs(found.log_evidence - exact) < 4 * found.se


def test_chains_spread_over_processes_and_gather(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import pyro, pyro.distributions as dist, torch
            import probgen as pg

            torch.set_num_threads(1)

            def model(y):
                mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

            for draws in (10, 20):
                found = pg.mcmc.run(
                    model, torch.tensor(2.0), chains=64, warmup=50, draws=draws, seed=5,
                    checkpoint=r"{tmp_path / "run"}", progress=False,
                )
            rank = torch.distributed.get_rank()
            found.save(rf"{tmp_path / "draws"}-{{rank}}")
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(script)], check=True, capture_output=True, env=environment)
    a, b = (mcmc.Draws.load(tmp_path / f"draws-{rank}").samples["mean"] for rank in (0, 1))
    assert torch.equal(a, b)
    assert a.shape == (64, 20)
    assert len(a[:, -1].unique()) == 64  # no chain twice
    assert abs(float(a.mean()) - 1) < 0.1


def test_step_sizes_per_chain_become_one():
    kernel = mcmc.MALA(torch.full((8,), 0.01))
    options = {"chains": 8, "draws": 5, "seed": 0, "progress": False}
    assert isinstance(
        run(eight_schools, kernel=kernel, warmup=20, **options).kernel.step_size, float
    )
    assert run(eight_schools, kernel=kernel, warmup=0, **options).samples["mu"].shape == (8, 5)


def test_the_summary_warns_of_a_biased_kernel(draws):
    biased = run(eight_schools, kernel=mcmc.ULA(), chains=4, warmup=0, draws=5, progress=False)
    assert "ULA tests no proposal" in str(biased.summary())
    assert "nested r-hat of 4 superchains: at most" in str(draws.summary())


def test_names_that_look_like_a_base_are_not_one():
    def model():
        b = pyro.sample("x_base", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=torch.tensor(2.0))

    log_density = potential(model)
    exact = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.5)) * 2 - 1.0
    torch.testing.assert_close(log_density(torch.tensor([[0.5]]))[0], exact)
    assert set(log_density.unravel(torch.zeros(2, 1))) == {"x_base"}


def test_a_zero_density_stays_zero_where_discrete_sites_are_summed_out():
    def model():
        theta = pyro.sample("theta", dist.HalfNormal(1.0))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        law = dist.Uniform(0.0, theta * (1 + z), validate_args=False)
        pyro.sample("y", law, obs=torch.tensor(5.0))

    value, gradient = potential(model).value_and_gradient(torch.tensor([[0.0], [1.0]]))
    assert value[0] == -torch.inf
    assert torch.isfinite(value[1])
    assert torch.isfinite(gradient[1])


def unplated():
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
    pyro.sample("y", dist.Normal(w + z, 1.0), obs=torch.tensor([0.0, 1.0, 2.0]))


def scaled():
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=2.0), pyro.plate("d", 2):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(w + z, 1.0), obs=torch.tensor([1.0, 2.0]))


def widening():
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Uniform(torch.zeros(()), 1 + z))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (unplated, r"plates around site 'y' with batch shape \(3,\)"),
        (scaled, "no scale at site 'z'"),
        (widening, "support of site 'x' that depends on no discrete site"),
    ],
)
def test_discrete_sites_that_cannot_be_summed_out_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        potential(model)


def test_an_interrupt_within_a_draw_repeats_nothing(tmp_path):
    calls, cut = [], 0

    def log_density(x):
        calls.append(1)
        if len(calls) == cut:
            raise KeyboardInterrupt
        return -x.square().sum(-1) / 2

    options = {"kernel": mcmc.Metropolis(1.0), "init": torch.zeros(4, 2), "warmup": 0, "draws": 6}
    options |= {"thin": 5, "seed": 1, "progress": False}
    whole = run(log_density, **options)
    cut, calls[:] = 15, []
    with pytest.raises(KeyboardInterrupt):
        run(log_density, checkpoint=tmp_path, **options)
    cut = 0
    again = run(log_density, checkpoint=tmp_path, **options)
    assert torch.equal(whole.samples["x"], again.samples["x"])


def test_seeds_hold_where_initial_points_are_drawn_again_and_sites_are_discrete():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Bernoulli(0.5))
        pyro.factor("wall", torch.where(a > 0, 0.0, -torch.inf))

    log_density, before = potential(model), torch.get_rng_state()
    options = {"chains": 8, "warmup": 5, "draws": 5, "seed": 3, "progress": False}
    a, b = (run(log_density, **options).samples["a"] for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(before, torch.get_rng_state())


def test_a_covariance_that_is_not_positive_definite_rejects_its_chain_alone():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 0.3))
        k = torch.eye(3) + a * (1 - torch.eye(3))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), k), obs=torch.zeros(3))

    log_density = potential(model)
    value, _ = log_density.value_and_gradient(torch.tensor([[0.1], [3.0]]))
    assert torch.isfinite(value[0])
    assert not torch.isfinite(value[1])
    found = run(log_density, chains=16, warmup=30, draws=10, seed=0, progress=False)
    assert torch.isfinite(found.samples["a"]).all()


def test_annealing_over_a_wall():
    def base(x):
        return dist.Normal(0.0, 1.0).log_prob(x[:, 0])

    def target(x):
        return torch.where(x[:, 0] > 0.5, base(x), -torch.inf)

    exact = math.log(1 - float(dist.Normal(0.0, 1.0).cdf(torch.tensor(0.5))))
    start = torch.randn(800, 1)
    for found in (
        mcmc.ais(base, target, start, mcmc.Metropolis(0.5), 20),
        mcmc.smc(base, target, start, mcmc.Metropolis(0.5)),
    ):
        assert abs(found.log_z - exact) < 4 * found.se
    with pytest.raises(ValueError, match="positive at some draw"):
        mcmc.smc(base, lambda x: x[:, 0] * 0 - torch.inf, start, mcmc.Metropolis(0.5))


def test_values_of_a_users_own_reparameterisation_are_kept():
    def model():
        s = pyro.sample("s", dist.HalfNormal(1.0))
        pyro.sample("x", dist.Normal(0.0, s))

    moved = poutine.reparam(model, {"x": pyro.infer.reparam.LocScaleReparam(0.0)})
    assert set(potential(moved).unravel(torch.zeros(3, 2))) == {"s", "x_decentered", "x"}


def test_gibbs_with_a_biased_kernel_is_biased():
    assert not mcmc.Gibbs({"a": mcmc.ULA(0.5)}).exact
    assert mcmc.Gibbs({"a": mcmc.MALA(0.5)}).exact


LARGE = torch.eye(20)


@pytest.mark.parametrize(
    ("kernel", "text"),
    [
        (mcmc.HMC(0.1, 5, LARGE), "HMC(step_size=0.1, steps=5, scale=tensor of shape (20, 20))"),
        (
            mcmc.MALA(0.2, mcmc.LowRank(torch.ones(9), torch.eye(9)[:, :2], torch.ones(2))),
            "MALA(step_size=0.2, scale=LowRank(9 numbers, 2 directions))",
        ),
        (
            mcmc.Gibbs({"a": mcmc.Metropolis(), "b": eight_schools}),
            "Gibbs(blocks={'a': Metropolis(step_size=0.5, scale=None), 'b': eight_schools})",
        ),
        (mcmc.Metropolis(0.1, torch.ones(2)), "Metropolis(step_size=0.1, scale=tensor([1., 1.]))"),
    ],
)
def test_kernels_show_themselves_in_one_line(kernel, text):
    assert repr(kernel) == text


def test_draws_show_their_sites_in_one_line(draws):
    assert repr(draws) == "Draws(16 chains of 40 draws: mu (), tau (), eta (8,), theta (8,))"
    many = mcmc.Draws({f"x{k}": torch.zeros(4, 5) for k in range(100)}, {}, ["x0"], [])
    assert repr(many).endswith("x5 (), 94 more)")
    assert repr(draws.summary()) == str(draws.summary())
