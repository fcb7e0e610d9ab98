"""The MCMC engine: potentials of Pyro models, runs, diagnostics, adapters, annealing."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC

import probgen as pg
from probgen import mcmc
from probgen.mcmc import diagnostics, run

from .mcmc_cases import EIGHT, eight_schools, z_score
from .mcmc_cases import draws as draws

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
