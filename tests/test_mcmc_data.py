"""Data and models of chains: black boxes, masks, missing data, improper posteriors."""

import math

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import tensor

from probgen import mcmc
from probgen.mcmc import potential, run
from probgen.mcmc.pyro.trial import ChainByChainWarning
from tests.chains import check_chains, mvn, probs

nan = math.nan


def black_box(y):
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", 2):
        pyro.sample("y", dist.Normal(torch.from_numpy(numpy.asarray(x) * 2.0), 1.0), obs=y)


@pytest.mark.parametrize("kernel", [mcmc.Metropolis(), mcmc.EllipticalSlice()])
def test_a_model_without_a_gradient_runs_with_kernels_that_need_none(kernel):
    with pytest.warns(ChainByChainWarning, match="at or after site 'x'"):
        log_density = potential(black_box, tensor([1.0, -1.0]))
    torch.manual_seed(0)
    state = kernel.init(log_density.initial("prior", 4, gradient=False), log_density)
    total = 0.0
    for _ in range(200):
        state, _ = kernel.step(state, log_density)
        total = total + state.position.mean(0) / 200
    torch.testing.assert_close(total, tensor([0.4, -0.4]), atol=0.15, rtol=0)
    with pytest.raises(ValueError, match=r"without: Can't call numpy.*Metropolis and Elliptical"):
        log_density.initial()


def test_a_model_that_keeps_a_tensor_of_a_failed_run_is_refused():
    kept = {}

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        kept["x"] = x
        if x > 0:
            pyro.factor("up", x)

    with pytest.raises(ValueError, match="stores a tensor which depends on its sites"):
        potential(model)


BAD, KEEP = tensor([1.0, nan, -math.inf, 2.0]), tensor([True, False, False, True])
MASKED = {
    "normal": (lambda a, s: dist.Normal(a, s), BAD),
    "gamma": (lambda a, s: dist.Gamma(s, 1.0), BAD),
    "uniform": (lambda a, s: dist.Uniform(-5 - s, 5 + s), BAD),
    "poisson": (lambda a, s: dist.Poisson(s), BAD),
    "bernoulli": (lambda a, s: dist.Bernoulli(logits=a), tensor([1.0, nan, 7.0, 0.0])),
    "categorical": (lambda a, s: dist.Categorical(probs(a.sigmoid())), tensor([1, 7, -1, 0])),
    "multinomial": (lambda a, s: dist.Multinomial(3, logits=torch.stack([a, s])),
                    tensor([[1.0, 2], [nan, 1], [-1, 5], [3, 0]])),
    "dirichlet": (lambda a, s: dist.Dirichlet(torch.stack([s, s + 1])),
                  tensor([[0.1, 0.9], [nan, 1], [-1, nan], [0.5, 0.5]])),
    "mvn": (lambda a, s: mvn(a, s), tensor([[0.1, 0.9], [nan, 1], [-1, nan], [0.5, 0.5]])),
}  # fmt: skip


@pytest.mark.parametrize("how", ["poutine", "plate", "mask", "event", "false"])
@pytest.mark.parametrize("name", MASKED)
def test_masked_data_may_be_anything(name, how):
    make, y = MASKED[name]

    def model(y, keep):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
        d = make(a, s).expand([len(y)])
        if how == "event":
            pyro.sample("y", d.mask(keep).to_event(1), obs=y)
        elif how == "poutine":
            with pyro.plate("data", len(y)), poutine.mask(mask=keep):
                pyro.sample("y", d, obs=y)
        elif how == "plate":
            with poutine.mask(mask=keep), pyro.plate("data", len(y)):
                pyro.sample("y", d, obs=y)
        else:
            with pyro.plate("data", len(y)):
                pyro.sample("y", d.mask(keep if how == "mask" else False), obs=y)

    x = torch.randn(3, 2)
    rest = KEEP if how != "false" else torch.zeros(4, dtype=torch.bool)
    masked = potential(model, y, KEEP)
    clean = potential(
        model, y[KEEP][: int(rest.sum()) or 1], tensor([True, True])[: int(rest.sum()) or 1]
    )
    for a, b in zip(masked.value_and_gradient(x), clean.value_and_gradient(x)):
        torch.testing.assert_close(a, b)


def test_missing_data_without_a_mask_are_named():
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"at site 'y'.*Data that are missing take a mask"):
        potential(model, BAD).initial()


def half_observed(y, keep):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.LogNormal(a, 1.0), obs=y, obs_mask=keep)


def test_only_what_is_missing_is_free():
    y = tensor([1.0, nan, nan, 2.0])
    log_density = potential(half_observed, y, KEEP)
    assert log_density.size == 3
    check_chains(log_density, torch.randn(3, 3))
    for how in ("uniform", "prior", {"y_unobserved": torch.full((4,), 5.0)}):
        values = log_density.unravel(log_density.initial(how, 6))
        assert torch.equal(values["y"], values["y_unobserved"])
        assert values["y"][:, KEEP].tolist() == [[1.0, 2.0]] * 6
        assert bool((values["y"][:, ~KEEP] > 0).all())
    assert bool((values["y"][:, ~KEEP] == 5).all())
    u = torch.randn(3)
    plain = potential(half_observed, tensor([1.0, 2.0]), torch.ones(2, dtype=torch.bool))
    rest = dist.Normal(u[0], 1.0).log_prob(u[1:]).sum()  # the log of a missing value is normal
    torch.testing.assert_close(log_density(u[None])[0], plain(u[None, :1])[0] + rest)


def test_an_improper_posterior_is_refused():
    def model():
        pyro.sample("x", dist.ImproperUniform(dist.constraints.positive, (), ()))

    with pytest.raises(ValueError, match="improper one: site 'x'"):
        potential(model)


def test_a_beta_variable_near_its_ends_is_exact():
    log_density = potential(lambda: pyro.sample("b", dist.Beta(0.05, 0.05).expand([2]).to_event(1)))
    u = tensor([[-40.0, 40.0], [60.0, 1.0]])
    exact = potential(
        lambda: pyro.sample(
            "b", dist.Beta(torch.full((2,), 0.05, dtype=torch.double), 0.05).to_event(1)
        )
    )(u.double().clamp(max=30))
    exact = exact - 0.05 * (u.double() - u.double().clamp(max=30)).sum(1)
    torch.testing.assert_close(log_density(u).double(), exact, rtol=1e-5, atol=1e-5)
    draws = run(lambda: pyro.sample("b", dist.Beta(0.05, 0.05)), seed=0, progress=False)
    assert abs(float(draws.samples["b"].mean()) - 0.5) < 0.03


def test_sites_at_the_edge_of_precision_are_found():
    def model():
        pyro.sample("b", dist.Beta(0.05, 0.05))
        pyro.sample("s", dist.LogNormal(0.0, 1.0))

    log_density = potential(model)
    assert log_density.saturated(torch.randn(100, 2)) == []
    x = torch.randn(100, 2)
    x[:2, 0] = 30.0
    assert log_density.saturated(x) == ["b"]
    assert log_density.saturated(x, fraction=0.05) == []
    assert log_density.saturated(torch.full((1, 2), 100.0)) == ["b", "s"]


def test_only_named_sites_are_kept():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.deterministic("big", x.expand(1000) * 1)

    log_density = potential(model)
    assert set(log_density.unravel(torch.zeros(5, 1))) == {"x", "big"}
    assert set(log_density.unravel(torch.zeros(5, 1), ["x"])) == {"x"}
    with pytest.raises(ValueError, match=r"Expected `sites` of \['big', 'x'\], got \['y'\]"):
        log_density.unravel(torch.zeros(5, 1), ["x", "y"])


def test_a_gradient_that_a_model_loses_is_found():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(2 * a.item(), 1.0), obs=torch.tensor(1.0))

    with pytest.warns(ChainByChainWarning):
        log_density = potential(model)
    assert "that in a is lost" in log_density.slopeless
    with pytest.raises(ValueError, match="Metropolis and EllipticalSlice use no gradient"):
        log_density.value_and_gradient(torch.zeros(2, 1))
