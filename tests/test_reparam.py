"""Sites in standardised form: the same posterior, whatever the family."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from probgen.mcmc import ConvergenceWarning, potential, run
from probgen.mcmc.pyro.reparam import FAMILIES, funnels, noncentered


def site(family, loc, scale):
    if family is dist.StudentT:
        return family(4.0, loc, scale)
    if family is dist.AsymmetricLaplace:
        return family(loc, scale, torch.tensor(1.3))
    return family(loc, scale)


def hierarchy(family):
    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        t = pyro.sample("t", dist.HalfNormal(1.0))
        with pyro.plate("groups", 3):
            x = pyro.sample("x", site(family, m, t))
            pyro.sample("y", dist.Normal(x, 0.5), obs=torch.tensor([0.1, 0.4, -0.2]))

    return model


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_standardised_densities_agree_with_their_jacobian(family, float64):
    """log p(m, t, z) = log p(m, t, x) + 3 log t at x = m + t z."""
    model = hierarchy(family)
    assert funnels(model) == ["x"]
    plain, standard = potential(model), potential(noncentered(model, ["x"]))
    u = torch.randn(5, 5)
    values = standard.unravel(u)
    m, t, x = values["m"], values["t"], values["x"]
    moved = torch.cat([m[:, None], t.log()[:, None], x], 1)
    torch.testing.assert_close(standard(u), plain(moved) + 3 * t.log())


OTHERS = {
    "log-normal": lambda m, t: dist.LogNormal(m, t),
    "logistic-normal": lambda m, t: dist.TransformedDistribution(
        dist.Normal(m, t), dist.transforms.SigmoidTransform()
    ),
    "folded": lambda m, t: dist.FoldedDistribution(dist.Normal(m, t)),
    "pareto": lambda m, t: dist.GeneralizedPareto(m, t, 0.1),
    "half-normal": lambda m, t: dist.HalfNormal(t),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_are_left_as_they_are(name):
    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        t = pyro.sample("t", dist.HalfNormal(1.0))
        x = pyro.sample("x", OTHERS[name](m, t))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5))

    assert funnels(model) == []
    with pytest.raises(ValueError, match=r"`noncentered` to name latent sites.*\['m'\], got"):
        run(model, noncentered=["x"], progress=False)
    with pytest.raises(ValueError, match="got \\['zzz'\\]"):
        run(model, noncentered=["zzz"], progress=False)


def test_log_normal_groups_are_right():
    y = torch.tensor([1.2, 0.7, 2.1, 0.4, 1.6])

    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        t = pyro.sample("t", dist.HalfNormal(1.0))
        with pyro.plate("groups", 5):
            x = pyro.sample("x", dist.LogNormal(m, t))
            pyro.sample("y", dist.Normal(x, 0.5), obs=y)

    def spelled():  # the same model by its logarithm, in standardised form
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        t = pyro.sample("t", dist.HalfNormal(1.0))
        with pyro.plate("groups", 5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal((m + t * z).exp(), 0.5), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        a = run(model, draws=1000, seed=0, progress=False)
        b = run(spelled, draws=1000, seed=0, progress=False)
    assert a.standardized == b.standardized == []
    for name in "mt":
        x, z = a.samples[name], b.samples[name]
        assert abs(float(x.mean() - z.mean())) < 0.1 * float(z.std())


def test_what_is_observed_stays_so_under_a_mask():
    y, seen = torch.tensor([1.0, 9.0, 2.0]), torch.tensor([True, False, True])

    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        t = pyro.sample("t", dist.HalfNormal(1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(m, t), obs=y, obs_mask=seen)

    assert funnels(model) == []
    with pytest.raises(ValueError, match="without a latent location-scale site"):
        run(model, noncentered=True, progress=False)


@pytest.mark.parametrize("draws", [1, 3])
def test_runs_too_short_to_check_say_so(draws):
    with pytest.warns(ConvergenceWarning, match="fewer than 4 draws of each chain"):
        found = run(lambda: pyro.sample("x", dist.Normal(1000.0, 1.0)), draws=draws, progress=False)
    assert "nan" in str(found.summary())
