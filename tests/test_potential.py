"""The log density of a Pyro model."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from torch.distributions import biject_to

import probgen as pg
from probgen.mcmc import potential, run

from .mcmc_cases import eight_schools


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
