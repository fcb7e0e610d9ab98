"""Chains at default settings on published posteriors, with their data as they are.

The posteriors and the moments of reference draws are those of posteriordb, as in the benchmark of
chains, whose models these are. `make test-seeds` runs ten seeds of each.
"""

import importlib.util
import math
import os
import sys
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from probgen.mcmc import ConvergenceWarning, diagnostics, run

SEEDS = range(int(os.environ.get("PROBGEN_SEEDS", "1")))
NAMES = (
    *("schools", "earn_height", "kidscore", "mesquite", "arK", "gp_regr"),
    "sblri",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("gauss_mix", "hmm", "lotka_volterra")
    ),
)


@pytest.fixture(scope="module")
def published():
    path = Path(__file__).parents[1] / "benchmarks" / "mcmc_models.py"
    spec = importlib.util.spec_from_file_location("mcmc_models", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mcmc_models"] = module
    with torch.random.fork_rng():
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_published_posteriors_are_right_without_a_word(name, seed, published):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        draws = run(published.PYRO[name], seed=seed, progress=False)
    x = published.values(name, draws.samples)
    means, errors = published.reference(name)
    z = (x.flatten(0, 1).mean(0) - means) / torch.hypot(diagnostics.mcse(x), errors)
    assert z.abs().max() < 4
    assert diagnostics.rhat(x).max() < 1.02
    spread = published.spreads(name)
    if spread is not None:
        ratio = x.flatten(0, 1).std(0) / spread
        assert (ratio > 0.9).all()
        assert (ratio < 1.1).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_centred_schools_are_standardised_and_right(seed, published):
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, published.ERRORS), obs=published.EFFECTS)

    if seed == 0:
        with pytest.warns(ConvergenceWarning, match="as theta, make funnels"):
            run(model, noncentered=False, seed=seed, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        draws = run(model, seed=seed, progress=False)
    assert draws.standardized == ["theta"]
    for name, exact in (("mu", published.SCHOOLS[0]), ("tau", published.SCHOOLS[1])):
        x = draws.samples[name].double()
        assert abs(float(x.mean()) - exact) < 4 * float(diagnostics.mcse(x))


def line_through_years():
    """A straight line through years, whose intercept and slope are all but the same number."""
    years = torch.arange(1952.0, 2014)
    generator = torch.Generator().manual_seed(0)
    y = 9.3 + 0.01 * (years - 1982) + 1.1 * torch.randn(62, generator=generator)

    def model():
        a = pyro.sample("a", dist.Normal(9.3, 100.0))
        b = pyro.sample("b", dist.Normal(0.0, 33.3))
        s = pyro.sample("s", dist.HalfCauchy(5.0))
        with pyro.plate("data", 62):
            pyro.sample("y", dist.Normal(a + b * years, s), obs=y)

    x = torch.stack([torch.ones(62), years], 1).double()
    prior = torch.tensor([100.0, 33.3]).double()
    return model, x, y.double(), prior


@pytest.mark.parametrize("seed", SEEDS)
def test_a_line_through_years_is_right(seed):
    """Given the noise the posterior is normal, so averages over the draws of s are exact."""
    model, x, y, prior = line_through_years()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        draws = run(model, seed=seed, progress=False)
    s = draws.samples["s"].double().flatten()[::50]
    precision = x.T @ x / s[:, None, None] ** 2 + torch.diag(prior**-2)
    shift = x.T @ y / s[:, None] ** 2 + torch.tensor([9.3, 0.0]) / prior**2
    means = torch.linalg.solve(precision, shift)
    sds = precision.inverse().diagonal(dim1=-2, dim2=-1).sqrt().mean(0)
    for name, exact, sd in zip("ab", means.mean(0).tolist(), sds.tolist(), strict=True):
        draw = draws.samples[name].double()
        error = math.hypot(float(diagnostics.mcse(draw)), 0.02 * sd)
        assert abs(float(draw.mean()) - exact) < 4 * error
        assert 0.95 < float(draw.std()) / sd < 1.05
    assert max(float(v.max()) for v in draws.rhat().values()) < 1.02
