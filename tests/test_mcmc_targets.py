"""Chains at default settings on targets that were not chosen to be easy: right, or warned of."""

import itertools
import math
import os
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from probgen import mcmc
from probgen.mcmc import ConvergenceWarning, diagnostics, run

SEEDS = range(int(os.environ.get("PROBGEN_SEEDS", "1")))
HALF_MEAN = math.exp(-1 / 16) / math.sqrt(4 * math.pi) / (1 - math.erf(0.25)) * 2  # of x[0]
TRIANGLE_MEAN = 0.32216  # of x[0], by quadrature


def quiet(*args, seed=0, **options):
    """A run, and the messages of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draws = run(*args, seed=seed, progress=False, **options)
    return draws, [str(w.message) for w in caught if w.category is ConvergenceWarning]


def z_score(x, exact):
    return abs(float(x.double().mean()) - exact) / float(diagnostics.mcse(x.double()))


def triangle(x):
    inside = (x.sum(-1) < 1) & (x > 0).all(-1)
    return torch.where(inside, -x.square().sum(-1) / 2, -torch.inf)


def half(x):
    return torch.where(x.sum(-1) > 0.5, -x.square().sum(-1) / 2, -torch.inf)


def in_triangle(n):
    u = torch.rand(n, 2)
    return torch.where(u.sum(-1, keepdim=True) > 1, 1 - u, u)


def in_half(n):
    x = torch.randn(20 * n, 2)
    return x[x.sum(-1) > 0.5][:n]


GRADIENT = {"chees": mcmc.ChEES(), "hmc": mcmc.HMC(), "mala": mcmc.MALA()}
KERNELS = {**GRADIENT, "metropolis": mcmc.Metropolis()}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_walls_reject_and_do_not_stop_chains(kernel):
    draws, _ = quiet(triangle, init=in_triangle(128), kernel=kernel, warmup=150, draws=400)
    x = draws.samples["x"][..., 0]
    assert z_score(x, TRIANGLE_MEAN) < 4
    assert float(diagnostics.rhat(x)) < 1.05
    assert not draws.stats["diverged"].any()


@pytest.mark.parametrize("kernel", GRADIENT.values(), ids=GRADIENT)
def test_half_a_normal_mixes(kernel):
    draws, _ = quiet(half, init=in_half(128), kernel=kernel, draws=1500)
    x = draws.samples["x"][..., 0]
    assert z_score(x, HALF_MEAN) < 4
    assert float(diagnostics.rhat(x)) < 1.01
    assert not draws.stats["diverged"].any()


def located(y):
    m = pyro.sample("m", dist.Normal(0.0, 10.0))
    s = pyro.sample("s", dist.Exponential(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(m, s), obs=y)


def test_a_random_walk_starts_far_away():
    y = 3 + torch.randn(1000)
    draws, _ = quiet(located, y, kernel=mcmc.Metropolis(), chains=32, warmup=1000, draws=500)
    m = draws.samples["m"]
    assert z_score(m, float(y.mean())) < 4
    assert 0.9 < float(m.std()) / (float(y.std()) / 1000**0.5) < 1.1
    assert abs(float(draws.stats["acceptance"].mean()) - 0.234) < 0.05


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_narrow_likelihood_in_a_wide_prior(kernel):
    def model():
        a = pyro.sample("a", dist.Uniform(0.0, 1e6))
        pyro.sample("y", dist.Normal(a, 1.0), obs=torch.tensor(999_000.0))

    draws, _ = quiet(model, kernel=kernel)
    a = draws.samples["a"].double()
    assert abs(float(a.mean()) - 999_000) < 0.1
    assert 0.9 < float(a.std()) < 1.1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, 2, 10, 30, 100])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_acceptance_reaches_its_target(kernel, size, seed):
    start, options = torch.randn(128, size), {"kernel": kernel, "draws": 50, "seed": seed}
    draws, _ = quiet(lambda x: -x.square().sum(-1) / 2, init=start, **options)
    assert abs(float(draws.stats["acceptance"].mean()) - kernel.target) < 0.05


def test_a_value_outside_a_validated_support_is_a_rejection():
    law = dist.Exponential(torch.tensor(1.0), validate_args=True)

    def log_density(x):
        return law.log_prob(x[:, 0])

    draws, _ = quiet(log_density, init=torch.rand(64, 1) + 0.1, draws=400)
    assert z_score(draws.samples["x"][..., 0], 1.0) < 4


# targets with the mean of their first number, or None where none is known


def far_modes():
    parts = dist.MultivariateNormal(torch.tensor([[-10.0, -10], [10, 10]]), torch.eye(2))
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), parts))


MODES = 8 * torch.randn(10, 2, generator=torch.Generator().manual_seed(3))
WEIGHTS = torch.arange(1.0, 11) / 55


def ten_modes():
    parts = dist.MultivariateNormal(MODES, torch.eye(2))
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(WEIGHTS), parts))


def funnel():
    v = pyro.sample("x", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(torch.zeros(9), (v / 2).exp()).to_event(1))


TURN = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0))).Q
FACTOR = (TURN * torch.logspace(-1.5, 1.5, 5)).double()
RIDGE = torch.linalg.cholesky(FACTOR @ FACTOR.T).float()


def ridge():
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(5), scale_tril=RIDGE))


def scales():
    pyro.sample("x", dist.Normal(0.0, 1e-8))
    pyro.sample("b", dist.Normal(0.0, 1e8))
    pyro.sample("c", dist.Normal(1e8, 1e7))


def horseshoe():
    tau = pyro.sample("x", dist.HalfCauchy(1.0))
    local = pyro.sample("local", dist.HalfCauchy(torch.ones(5)).to_event(1))
    beta = pyro.sample("beta", dist.Normal(0.0, tau * local).to_event(1))
    pyro.sample("y", dist.Normal(beta, 1.0).to_event(1), obs=torch.tensor([3.0, -2, 0, 0, 5]))


def banana(x):
    return -(x[:, 0] - 1).square() - 20 * (x[:, 1] - x[:, 0].square()).square()


HARD = {
    "funnel": (funnel, 0.0, {}),
    "two far modes": (far_modes, 4.0, {}),
    "ten modes": (ten_modes, float(WEIGHTS @ MODES[:, 0]), {}),
    "edges": (lambda: pyro.sample("x", dist.Beta(0.05, 0.05)), 0.5, {}),
    "ridge": (ridge, 0.0, {}),
    "scales": (scales, 0.0, {}),
    "student": (lambda: pyro.sample("x", dist.StudentT(2.0).expand([3]).to_event(1)), 0.0, {}),
    "cauchy": (lambda: pyro.sample("x", dist.Cauchy(0.0, 1.0)), None, {}),
    "horseshoe": (horseshoe, None, {}),
    "banana": (banana, 1.0, {"init": torch.zeros(128, 2)}),
    "triangle": (triangle, TRIANGLE_MEAN, {"init": torch.full((128, 2), 0.2)}),
    "one mode of two": (
        lambda x: torch.logaddexp(
            math.log(0.3) - (x + 10).square().sum(-1) / 2,
            math.log(0.7) - (x - 10).square().sum(-1) / 2,
        ),
        4.0,
        {"init": torch.randn(128, 2, generator=torch.Generator().manual_seed(1)) - 10},
    ),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", HARD)
def test_hard_targets_are_right_or_warned_of(name, seed):
    model, exact, options = HARD[name]
    draws, said = quiet(model, seed=seed, **options)
    x = draws.samples["x"].reshape(*draws.samples["x"].shape[:2], -1)[..., 0]
    right = exact is not None and z_score(x, exact) < 4 and float(diagnostics.rhat(x)) < 1.02
    assert right or said


@pytest.mark.parametrize("name", ["ridge", "scales"])
def test_condition_numbers_of_a_million_and_scales_of_16_decades_are_right(name):
    draws, said = quiet(HARD[name][0])
    assert not said
    for x in draws.samples.values():
        assert float(diagnostics.rhat(x).max()) < 1.01
    if name == "scales":
        assert float(draws.samples["x"].std()) == pytest.approx(1e-8, rel=0.05)
        assert float(draws.samples["b"].std()) == pytest.approx(1e8, rel=0.05)
        assert z_score(draws.samples["c"], 1e8) < 4


def test_modes_that_chains_do_not_cross_are_named_with_the_way_out():
    _, said = quiet(far_modes)
    assert "chains stay in 2 groups, told apart by x[" in said[0]
    assert "ParallelTempering()" in said[0]


def test_a_mode_that_no_chain_has_visited_is_named():
    model, _, options = HARD["one mode of two"]
    _, said = quiet(model, **options)
    assert "a mode with about 70 % of the mass that no chain has visited" in said[0]


def test_a_direction_that_data_do_not_determine_is_named():
    def model():
        flat = dist.ImproperUniform(dist.constraints.real, (), ())
        a, b, c = (pyro.sample(name, flat) for name in "abc")
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=torch.tensor(1.0))
        pyro.sample("z", dist.Normal(c, 1.0), obs=torch.tensor(1.0))

    _, said = quiet(model)
    assert "the posterior is improper along a, b:" in said[0]


@pytest.mark.parametrize("name", ["two far modes", "ten modes"])
def test_parallel_tempering_crosses_between_modes(name):
    model, exact, _ = HARD[name]
    draws, _ = quiet(model, kernel=mcmc.ParallelTempering(), chains=32, draws=1500)
    x = draws.samples["x"][..., 0]
    assert z_score(x, exact) < 4
    assert float(diagnostics.rhat(x)) < 1.02
    betas = draws.kernel.betas
    assert betas[0] == pytest.approx(0.01)
    assert betas[-1] == 1
    assert all(a < b for a, b in itertools.pairwise(betas))


def test_a_funnel_is_standardised_where_it_has_no_mode():
    draws, said = quiet(funnel)
    assert not said
    assert draws.standardized == ["y"]
    assert "sampled in standardised form: y" in str(draws.summary())
    assert draws.latent == ["x", "y"]
    assert {name: x.shape for name, x in draws.samples.items()} == {
        "x": (128, 250),
        "y": (128, 250, 9),
    }
    v = draws.samples["x"]
    assert z_score(v, 0.0) < 4
    assert float(v.std()) == pytest.approx(3.0, rel=0.03)
    exact = float(dist.Normal(0.0, 3.0).cdf(torch.tensor(-5.0)))
    assert float((v < -5).float().mean()) == pytest.approx(exact, rel=0.15)
    _, said = quiet(funnel, noncentered=False)
    assert "sites with an unknown scale, as y, make funnels" in said[0]
    with pytest.raises(ValueError, match="without a latent location-scale site"):
        run(located, torch.zeros(3), noncentered=True, progress=False)


def test_a_standardised_run_predicts_and_resumes(tmp_path):
    def model(y=None):
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("groups", 3):
            theta = pyro.sample("theta", dist.Normal(0.0, tau))
            return pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    y = torch.tensor([1.0, -2.0, 3.0])
    options = {"chains": 16, "noncentered": True, "progress": False}
    draws = run(model, y, seed=0, draws=20, checkpoint=tmp_path, **options)
    assert draws.standardized == ["theta"]
    more = run(model, y, draws=30, checkpoint=tmp_path, **options)
    assert torch.equal(more.samples["theta"][:, :20], draws.samples["theta"])
    found = more.predictive(model)["y"]
    gap = found - more.samples["theta"].flatten(0, 1)
    assert float(gap.std()) == pytest.approx(1.0, rel=0.1)
    more.save(tmp_path / "draws")
    assert mcmc.Draws.load(tmp_path / "draws").standardized == ["theta"]


def test_data_that_single_precision_cannot_hold_are_warned_of():
    y = 1e7 + 0.1 * torch.randn(100)

    def model():
        m = pyro.sample("m", dist.Normal(1e7, 10.0))
        with pyro.plate("data", 100):
            pyro.sample("y", dist.Normal(m, 0.1), obs=y)

    _, said = quiet(model)
    assert any("ork in float64" in line for line in said)


def test_sites_are_kept_on_request():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.deterministic("wide", a * torch.ones(20_000))
        pyro.sample("b", dist.Normal(a, 1.0))

    draws = run(model, sites=["a"], chains=16, draws=20, progress=False)
    assert set(draws.samples) == {"a"}
    with pytest.raises(ValueError, match=r"Expected `sites` of .*got \['c'\]"):
        run(model, sites=["c"], chains=4, draws=5, progress=False)


def test_constant_sites_are_left_out_of_nested_rhat():
    def model():
        pyro.sample("factor", dist.LKJCholesky(2, 1.0))

    draws, _ = quiet(model, chains=32, superchains=4)
    assert "at most nan" not in str(draws.summary())
    assert {row.name for row in draws.summary().rows} == {"factor[1, 0]", "factor[1, 1]"}


def test_entries_with_data_are_left_out_under_obs_mask():
    y, seen = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([True, False, True])

    def model():
        m = pyro.sample("m", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y, obs_mask=seen)

    draws, said = quiet(model)
    assert not said
    assert not [row for row in draws.summary().rows if not math.isfinite(row.rhat)]
    assert {row.name for row in draws.summary().rows} >= {"m", "y_unobserved[1]"}
    assert z_score(draws.samples["m"], 1.5 / (1 + 1 / 200)) < 4


def test_hidden_labels_are_drawn_given_the_data():
    y = torch.tensor([-3.0, 3.2, 0.1])

    def model(y):
        w = pyro.sample("w", dist.Beta(20.0, 20.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(w))
            pyro.sample("y", dist.Normal(3 * (2 * z - 1), 1.0), obs=y)

    draws = run(model, y, chains=32, draws=100, seed=0, progress=False)
    z = draws.infer_discrete(model, y, draws=2000)["z"]
    assert z.shape == (2000, 3)
    exact = torch.sigmoid(6 * y)
    assert (z.float().mean(0) - exact).abs().max() < 0.05


def test_a_scaled_plate_keeps_its_scale():
    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with poutine.scale(scale=3.0):
            pyro.sample("y", dist.Normal(m, 1.0), obs=torch.tensor(2.0))

    draws, said = quiet(model)
    assert not said
    assert z_score(draws.samples["m"], 1.5) < 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel": "hmc"}, TypeError, r"got 'hmc'.*ChEES\(\), HMC\(\)"),
        ({"kernel": mcmc.HMC}, TypeError, "got the class HMC"),
        ({"num_chains": 4}, TypeError, "It is called `chains`"),
        ({"metric": "full"}, ValueError, "Expected `metric` among"),
    ],
)
def test_what_other_libraries_take_is_named(options, error, message):
    with pytest.raises(error, match=message):
        run(located, torch.zeros(3), progress=False, **options)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: mcmc.HMC(0.1, 5, math.nan), TypeError, "`scale` as a tensor.*got nan"),
        (lambda: mcmc.MALA(0.1, math.inf), TypeError, "`scale` as a tensor.*got inf"),
        (lambda: mcmc.MALA(0.1, torch.tensor([1.0, math.nan])), ValueError, "finite `scale`"),
        (lambda: mcmc.ULA(math.inf), ValueError, "positive `step_size`, got inf"),
        (lambda: mcmc.ChEES(length=math.inf), ValueError, "positive `length`, got inf"),
        (lambda: mcmc.HMC(torch.tensor([0.1, -1.0])), ValueError, "positive `step_size`"),
        (lambda: mcmc.HMC(0.1, 2.5), ValueError, "whole number as `steps`, got 2.5"),
        (lambda: mcmc.HMC("0.1"), TypeError, "number as `step_size`, got '0.1'"),
        (lambda: mcmc.SGLD(decay=math.inf), ValueError, "`decay`"),
    ],
)
def test_impossible_numbers_of_kernels_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
