"""Models of chains: distributions under vmap, masks, black boxes, recordings."""

import inspect
import math

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import eye, tensor

from probgen import mcmc
from probgen.mcmc import potential, run
from probgen.mcmc.place import unchecked
from probgen.mcmc.trial import ChainByChainWarning

nan = math.nan


def probs(p):
    return torch.stack([p, 1 - p])


def trans(p, s):
    return torch.stack([torch.stack([p, 1 - p]), torch.stack([1 / (1 + s), s / (1 + s)])]).log()


def mvn(a, s):
    return dist.MultivariateNormal(a.expand(2), s * eye(2))


def tril(s):
    return torch.stack([torch.stack([s, s * 0]), torch.stack([s * 0.3, s])])


# a distribution of a real number a, a positive s and a fraction p, and data
ROSTER = {
    "AVFMultivariateNormal": lambda a, s, p: (
        dist.AVFMultivariateNormal(a.expand(2), tril(s), torch.ones(2, 1, 2)),
        tensor([0.3, 0.1]),
    ),
    "AffineBeta": lambda a, s, p: (dist.AffineBeta(s, 2.0, a - 5, tensor(20.0)), tensor(1.0)),
    "AsymmetricLaplace": lambda a, s, p: (dist.AsymmetricLaplace(a, s, p), tensor([1.0, 2.0])),
    "Bernoulli": lambda a, s, p: (dist.Bernoulli(p), tensor([1.0, 0.0])),
    "Bernoulli logits": lambda a, s, p: (dist.Bernoulli(logits=a), tensor([1.0, 0.0])),
    "Beta": lambda a, s, p: (dist.Beta(s, 2.0), tensor([0.3, 0.5])),
    "BetaBinomial": lambda a, s, p: (dist.BetaBinomial(s, 2.0, tensor(5.0)), tensor([3.0, 1.0])),
    "Binomial": lambda a, s, p: (dist.Binomial(5, p), tensor([3.0, 1.0])),
    "Binomial logits": lambda a, s, p: (
        dist.Binomial(tensor([5.0, 6.0]), logits=a),
        tensor([3.0, 1.0]),
    ),
    "Categorical": lambda a, s, p: (dist.Categorical(probs(p)), tensor([0, 1])),
    "Categorical logits": lambda a, s, p: (
        dist.Categorical(logits=torch.stack([a, s])),
        tensor([0, 1]),
    ),
    "Cauchy": lambda a, s, p: (dist.Cauchy(a, s), tensor([0.0, 1])),
    "Chi2": lambda a, s, p: (dist.Chi2(s), tensor([0.2, 1])),
    "CoalescentTimes": lambda a, s, p: (
        dist.CoalescentTimes(tensor([0.0, 0.1, 0.2]), s),
        tensor([-0.5, -0.2]),
    ),
    "CoalescentTimesWithRate": lambda a, s, p: (
        dist.CoalescentTimesWithRate(tensor([0.0, 1.0, 2.0]), torch.stack([s, s + 1, s, s])),
        tensor([-0.5, -0.2]),
    ),
    "ContinuousBernoulli": lambda a, s, p: (dist.ContinuousBernoulli(p), tensor([0.2, 1])),
    "Delta": lambda a, s, p: (dist.Delta(tensor(1.0), log_density=a), tensor(1.0)),
    "Dirichlet": lambda a, s, p: (dist.Dirichlet(torch.stack([s, s + 1])), tensor([0.2, 0.8])),
    "DirichletMultinomial": lambda a, s, p: (
        dist.DirichletMultinomial(torch.stack([s, s + 1]), 5),
        tensor([2.0, 3.0]),
    ),
    "DiscreteHMM": lambda a, s, p: (
        dist.DiscreteHMM(torch.zeros(2), trans(p, s), dist.Normal(torch.stack([a, a + 2]), 1.0)),
        torch.linspace(0, 2, 9),
    ),
    "DiscreteHMM bernoulli": lambda a, s, p: (
        dist.DiscreteHMM(torch.zeros(2), trans(p, s), dist.Bernoulli(probs(p)), duration=9),
        (torch.arange(9) % 2).float(),
    ),
    "ExpandedDistribution": lambda a, s, p: (dist.Normal(a, s).expand_by([2]), tensor([0.0, 1])),
    "Exponential": lambda a, s, p: (dist.Exponential(s), tensor([0.2, 1])),
    "ExtendedBetaBinomial": lambda a, s, p: (
        dist.ExtendedBetaBinomial(s, 2.0, tensor(5.0)),
        tensor([2.0, 1]),
    ),
    "ExtendedBinomial": lambda a, s, p: (dist.ExtendedBinomial(tensor(5.0), p), tensor([2.0, 1])),
    "FisherSnedecor": lambda a, s, p: (dist.FisherSnedecor(s, s + 1), tensor([2.0, 1])),
    "FoldedDistribution": lambda a, s, p: (
        dist.FoldedDistribution(dist.Normal(a, s)),
        tensor([2.0, 1]),
    ),
    "Gamma": lambda a, s, p: (dist.Gamma(s, s + 1), tensor([2.0, 1])),
    "GammaGaussianHMM": lambda a, s, p: (
        dist.GammaGaussianHMM(
            dist.Gamma(s, s),
            dist.MultivariateNormal(torch.zeros(2), eye(2)),
            p * eye(2),
            dist.MultivariateNormal(torch.zeros(2), s * eye(2)),
            eye(2),
            dist.MultivariateNormal(a.expand(2), eye(2)),
            duration=4,
        ),
        torch.linspace(0, 2, 8).reshape(4, 2),
    ),
    "GammaPoisson": lambda a, s, p: (dist.GammaPoisson(s, s + 1), tensor([2.0, 1])),
    "GaussianHMM": lambda a, s, p: (
        dist.GaussianHMM(
            dist.MultivariateNormal(torch.zeros(2), eye(2)),
            p * eye(2),
            dist.MultivariateNormal(torch.zeros(2), s * eye(2)),
            eye(2),
            dist.MultivariateNormal(a.expand(2), eye(2)),
            duration=5,
        ),
        torch.linspace(0, 2, 10).reshape(5, 2),
    ),
    "GaussianMRF": lambda a, s, p: (
        dist.GaussianMRF(
            dist.MultivariateNormal(torch.zeros(1), eye(1)),
            dist.MultivariateNormal(torch.zeros(2), s * eye(2)),
            dist.MultivariateNormal(a.expand(2), eye(2)).expand([4]),
        ),
        torch.linspace(0, 2, 4).reshape(4, 1),
    ),
    "GeneralizedPareto": lambda a, s, p: (dist.GeneralizedPareto(a - 10, s, p), tensor([2.0, 1])),
    "Geometric": lambda a, s, p: (dist.Geometric(p), tensor([2.0, 1])),
    "GroupedNormalNormal": lambda a, s, p: (
        dist.GroupedNormalNormal(a.expand(2), s.expand(2), s + 1, tensor([0, 0, 1, 1])),
        tensor([2.0, 1, 0, 1]),
    ),
    "Gumbel": lambda a, s, p: (dist.Gumbel(a, s), tensor([2.0, 1])),
    "HalfCauchy": lambda a, s, p: (dist.HalfCauchy(s), tensor([2.0, 1])),
    "HalfNormal": lambda a, s, p: (dist.HalfNormal(s), tensor([2.0, 1])),
    "ImproperUniform": lambda a, s, p: (
        dist.ImproperUniform(dist.constraints.real, (), ()),
        tensor(1.0),
    ),
    "Independent": lambda a, s, p: (dist.Normal(a.expand(2), s).to_event(1), tensor([2.0, 1])),
    "IndependentHMM": lambda a, s, p: (
        dist.IndependentHMM(
            dist.GaussianHMM(
                dist.MultivariateNormal(torch.zeros(1), eye(1)),
                p * eye(1),
                dist.MultivariateNormal(torch.zeros(1), s * eye(1)),
                eye(1),
                dist.MultivariateNormal(a.expand(2, 1, 1), eye(1)),
                duration=5,
            )
        ),
        torch.linspace(0, 2, 10).reshape(5, 2),
    ),
    "InverseGamma": lambda a, s, p: (dist.InverseGamma(s, s + 1), tensor([2.0, 1])),
    "Kumaraswamy": lambda a, s, p: (dist.Kumaraswamy(s, s + 1), tensor([0.2, 0.1])),
    "LKJ": lambda a, s, p: (dist.LKJ(2, s), tensor([[1.0, 0.3], [0.3, 1.0]])),
    "LKJCholesky": lambda a, s, p: (
        dist.LKJCholesky(2, s),
        torch.linalg.cholesky(tensor([[1.0, 0.3], [0.3, 1.0]])),
    ),
    "LKJCorrCholesky": lambda a, s, p: (
        dist.LKJCorrCholesky(2, s),
        torch.linalg.cholesky(tensor([[1.0, 0.3], [0.3, 1.0]])),
    ),
    "Laplace": lambda a, s, p: (dist.Laplace(a, s), tensor([0.2, 0.1])),
    "LogNormal": lambda a, s, p: (dist.LogNormal(a, s), tensor([0.2, 0.1])),
    "LogNormalNegativeBinomial": lambda a, s, p: (
        dist.LogNormalNegativeBinomial(tensor(5.0), logits=a, multiplicative_noise_scale=s),
        tensor([2.0, 1.0]),
    ),
    "Logistic": lambda a, s, p: (dist.Logistic(a, s), tensor([0.2, 0.1])),
    "LogisticNormal": lambda a, s, p: (
        dist.LogisticNormal(a.expand(2), s),
        tensor([0.2, 0.1, 0.7]),
    ),
    "LowRankMultivariateNormal": lambda a, s, p: (
        dist.LowRankMultivariateNormal(a.expand(2), s * torch.ones(2, 1), s.expand(2)),
        tensor([0.2, 0.1]),
    ),
    "MaskedDistribution": lambda a, s, p: (
        dist.Normal(a, s).mask(tensor([True, False])),
        tensor([0.2, 0.1]),
    ),
    "MaskedMixture": lambda a, s, p: (
        dist.MaskedMixture(
            tensor([True, False]), dist.Normal(a, s).expand([2]), dist.Normal(a, s + 1).expand([2])
        ),
        tensor([0.2, 0.1]),
    ),
    "MixtureOfDiagNormals": lambda a, s, p: (
        dist.MixtureOfDiagNormals(a.expand(3, 2), s.expand(3, 2), torch.stack([a, s, p])),
        tensor([0.2, 0.1]),
    ),
    "MixtureOfDiagNormalsSharedCovariance": lambda a, s, p: (
        dist.MixtureOfDiagNormalsSharedCovariance(
            a.expand(3, 2), s.expand(2), torch.stack([a, s, p])
        ),
        tensor([0.2, 0.1]),
    ),
    "MixtureSameFamily": lambda a, s, p: (
        dist.MixtureSameFamily(dist.Categorical(probs(p)), dist.Normal(torch.stack([a, s]), s)),
        tensor([0.2, 0.1]),
    ),
    "Multinomial": lambda a, s, p: (dist.Multinomial(5, probs(p)), tensor([2.0, 3.0])),
    "Multinomial rows": lambda a, s, p: (
        dist.Multinomial(probs=probs(p), validate_args=False),
        tensor([[2.0, 3.0], [1.0, 0.0]]),
    ),
    "Multinomial logits": lambda a, s, p: (
        dist.Multinomial(5, logits=torch.stack([a, s])),
        tensor([2.0, 3.0]),
    ),
    "MultivariateNormal": lambda a, s, p: (mvn(a, s), tensor([2.0, 3.0])),
    "MultivariateNormal precision": lambda a, s, p: (
        dist.MultivariateNormal(a.expand(2), precision_matrix=s * eye(2)),
        tensor([2.0, 3.0]),
    ),
    "MultivariateStudentT": lambda a, s, p: (
        dist.MultivariateStudentT(s, a.expand(2), tril(s)),
        tensor([2.0, 3.0]),
    ),
    "NanMaskedMultivariateNormal": lambda a, s, p: (
        dist.NanMaskedMultivariateNormal(a.expand(2), s * eye(2)),
        tensor([[2.0, math.nan], [1.0, 2.0]]),
    ),
    "NanMaskedNormal": lambda a, s, p: (dist.NanMaskedNormal(a, s), tensor([2.0, math.nan])),
    "NegativeBinomial": lambda a, s, p: (dist.NegativeBinomial(s, p), tensor([2.0, 1.0])),
    "Normal": lambda a, s, p: (dist.Normal(a, s), tensor([2.0, 1.0])),
    "OMTMultivariateNormal": lambda a, s, p: (
        dist.OMTMultivariateNormal(a.expand(2), tril(s)),
        tensor([2.0, 1.0]),
    ),
    "OneHotCategorical": lambda a, s, p: (dist.OneHotCategorical(probs(p)), tensor([0.0, 1.0])),
    "OneHotCategoricalStraightThrough": lambda a, s, p: (
        dist.OneHotCategoricalStraightThrough(probs(p)),
        tensor([0.0, 1.0]),
    ),
    "OneOneMatching": lambda a, s, p: (
        dist.OneOneMatching(torch.stack([torch.stack([a, s]), torch.stack([p, a])])),
        tensor([0, 1]),
    ),
    "OneTwoMatching": lambda a, s, p: (
        dist.OneTwoMatching(
            torch.stack(
                [torch.stack([a, s]), torch.stack([p, a]), torch.stack([s, a]), torch.stack([p, p])]
            )
        ),
        tensor([0, 1, 1, 0]),
    ),
    "OrderedLogistic": lambda a, s, p: (
        dist.OrderedLogistic(a, torch.stack([-s, s])),
        tensor([0, 1, 2]),
    ),
    "Pareto": lambda a, s, p: (dist.Pareto(p, s), tensor([2.0, 3])),
    "Poisson": lambda a, s, p: (dist.Poisson(s), tensor([2.0, 3])),
    "ProjectedNormal": lambda a, s, p: (
        dist.ProjectedNormal(torch.stack([a, s, p])),
        tensor([1.0, 0, 0]),
    ),
    "Rejector": lambda a, s, p: (
        dist.Rejector(dist.Normal(a, s), lambda x: x * 0, tensor(0.0)),
        tensor(1.0),
    ),
    "RelaxedBernoulli": lambda a, s, p: (dist.RelaxedBernoulli(s, p), tensor([0.2, 0.3])),
    "RelaxedBernoulliStraightThrough": lambda a, s, p: (
        dist.RelaxedBernoulliStraightThrough(s, p),
        tensor([0.2, 0.3]),
    ),
    "RelaxedOneHotCategorical": lambda a, s, p: (
        dist.RelaxedOneHotCategorical(s, probs(p)),
        tensor([0.2, 0.8]),
    ),
    "RelaxedOneHotCategoricalStraightThrough": lambda a, s, p: (
        dist.RelaxedOneHotCategoricalStraightThrough(s, probs(p)),
        tensor([0.2, 0.8]),
    ),
    "SineSkewed": lambda a, s, p: (
        dist.SineSkewed(dist.VonMises(a.expand(2), s).to_event(1), torch.stack([p, p]) / 2),
        tensor([0.2, 0.8]),
    ),
    "SkewLogistic": lambda a, s, p: (dist.SkewLogistic(a, s, s + 1), tensor([0.2, 0.8])),
    "SoftAsymmetricLaplace": lambda a, s, p: (
        dist.SoftAsymmetricLaplace(a, s, s + 1),
        tensor([0.2, 0.8]),
    ),
    "SoftLaplace": lambda a, s, p: (dist.SoftLaplace(a, s), tensor([0.2, 0.8])),
    "SpanningTree": lambda a, s, p: (
        dist.SpanningTree(torch.stack([a, s, p])),
        tensor([[0, 1], [1, 2]]),
    ),
    "Stable": lambda a, s, p: (dist.Stable(1.5, 0.0, s, a), tensor([0.2, 0.8])),
    "StableWithLogProb": lambda a, s, p: (
        dist.StableWithLogProb(tensor(1.5), tensor(0.0), s, a),
        tensor([0.2, 0.8]),
    ),
    "StudentT": lambda a, s, p: (dist.StudentT(s, a, s), tensor([0.2, 0.8])),
    "TransformedDistribution": lambda a, s, p: (
        dist.TransformedDistribution(dist.Normal(a, s), [dist.transforms.SigmoidTransform()]),
        tensor([0.2, 0.8]),
    ),
    "TransformedDistribution spline": lambda a, s, p: (
        dist.TransformedDistribution(
            dist.Normal(a.expand(2), s).to_event(1),
            [dist.transforms.ComposeTransform([dist.transforms.AffineTransform(a, s)])],
        ),
        tensor([0.2, 0.8]),
    ),
    "TruncatedPolyaGamma": lambda a, s, p: (
        dist.TruncatedPolyaGamma(prototype=torch.ones(1)),
        tensor([0.2]),
    ),
    "Uniform": lambda a, s, p: (dist.Uniform(-s - 2, s + 2), tensor([0.2, 0.8])),
    "Unit": lambda a, s, p: (dist.Unit(a), torch.empty(0)),
    "VonMises": lambda a, s, p: (dist.VonMises(a, s), tensor([0.2, 0.8])),
    "VonMises3D": lambda a, s, p: (dist.VonMises3D(torch.stack([a, s, p])), tensor([1.0, 0, 0])),
    "Weibull": lambda a, s, p: (dist.Weibull(s, s + 1), tensor([0.2, 0.8])),
    "Wishart": lambda a, s, p: (dist.Wishart(s + 3, eye(2)), tensor([[1.0, 0.3], [0.3, 1.0]])),
    "ZeroInflatedDistribution": lambda a, s, p: (
        dist.ZeroInflatedDistribution(dist.Poisson(s), gate=p),
        tensor([0.0, 2.0]),
    ),
    "ZeroInflatedNegativeBinomial": lambda a, s, p: (
        dist.ZeroInflatedNegativeBinomial(s, probs=p, gate=p),
        tensor([0.0, 2.0]),
    ),
    "ZeroInflatedPoisson": lambda a, s, p: (
        dist.ZeroInflatedPoisson(s, gate=p),
        tensor([0.0, 2.0]),
    ),
}


ABSENT = {
    "Distribution",
    "Empirical",  # without a density that depends on anything
    "ExponentialFamily",
    "GaussianScaleMixture",  # whose gradient Pyro's own code spoils in place
    "LinearHMM",  # without a density
    "SineBivariateVonMises",  # whose number of terms depends on values
    "TorchDistribution",
}


def test_the_roster_has_all_of_pyros_distributions():
    names = {n for n, c in vars(dist).items() if inspect.isclass(c)}
    names = {n for n in names if issubclass(getattr(dist, n), dist.Distribution)}
    assert names - {name.split()[0] for name in ROSTER} == ABSENT


@pytest.mark.filterwarnings("ignore:class LKJ:FutureWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("name", ROSTER)
def test_distributions_run_for_all_chains_at_once(name):
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        d, y = ROSTER[name](a, s, p)
        pyro.sample("y", d, obs=y)

    log_density = potential(model)
    x = torch.randn(5, 3, generator=torch.manual_seed(1)) / 2
    for _ in range(2):  # as it stands, and recorded
        check_chains(log_density, x)
    assert all(log_density.recorded.values())


def check_chains(log_density, x):
    """Values and gradients are those of one chain."""
    value, gradient = log_density.value_and_gradient(x)
    for k in range(len(x)):
        u = x[k].clone().requires_grad_()
        with unchecked():
            exact = log_density.total(u)
        (slope,) = torch.autograd.grad(exact, u)
        torch.testing.assert_close(value[k], exact.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient[k], slope, rtol=1e-3, atol=1e-3)


def writes():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Beta(2.0, 2.0))
    h, matrix = torch.zeros(10), torch.eye(3)
    for t in range(10):
        h[t] = a * t + b
    matrix[0, 1], matrix[matrix < 0] = a, 0.5
    pyro.sample("y", dist.Normal(h + matrix.sum(), 1.0).to_event(1), obs=torch.ones(10))


def scan():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Beta(2.0, 2.0))
    h = [torch.tensor(1.0)]
    for _ in range(20):
        h.append((0.1 + a.square() * 0.1 + b * h[-1].square()).sqrt())
    pyro.sample("y", dist.Normal(0.0, torch.stack(h)).to_event(1), obs=torch.ones(21))


def differentiates():
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    b = pyro.sample("b", dist.Beta(2.0, 2.0))
    with torch.enable_grad():
        z = x if x.requires_grad else x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(z.pow(3).sum(), z, create_graph=True)
    inner = torch.func.grad(lambda z: z.sin().sum())(x)
    pyro.sample("y", dist.Normal(slope + inner, 1.0 + b).to_event(1), obs=torch.ones(2))


def test_models_that_take_gradients_run_for_all_chains_at_once():
    log_density = potential(differentiates)
    assert log_density.inner
    for _ in range(3):
        check_chains(log_density, torch.randn(4, 3))
    assert log_density.unravel(torch.zeros(3, 3))["x"].shape == (3, 2)
    assert log_density(torch.zeros(3, 3)).shape == (3,)
    draws = run(differentiates, kernel=mcmc.Metropolis(), warmup=5, draws=5, progress=False)
    assert draws.samples["x"].shape == (128, 5, 2)


@pytest.mark.parametrize("model", [writes, scan])
def test_loops_run_for_all_chains_at_once(model):
    log_density = potential(model)
    for _ in range(3):
        check_chains(log_density, torch.randn(4, 2))
    assert log_density.batched
    assert all(log_density.recorded.values())
    assert log_density.initial("prior", 3).shape == (3, 2)
    assert log_density.unravel(torch.zeros(3, 2))["b"].tolist() == [0.5] * 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "prior",
    [
        dist.Beta(2.0, 3.0),
        dist.Dirichlet(tensor([1.0, 2.0, 0.5])),
        dist.HalfCauchy(1.0),
        dist.Gamma(2.0, 3.0),
        dist.StudentT(9.0),
        dist.LKJCholesky(3, 2.0),
        dist.MultivariateNormal(tensor([1.0, 2.0]), eye(2) * 2),
        dist.Uniform(1.0, 3.0),
    ],
)
def test_priors_are_drawn_for_all_chains_at_once(prior, monkeypatch):
    from probgen.mcmc import initial

    log_density = potential(lambda: pyro.sample("x", prior))
    monkeypatch.setattr(initial.contextlib, "suppress", lambda *_: initial.contextlib.nullcontext())
    torch.manual_seed(0)
    x = log_density.unravel(log_density.draw(20000, prior=True))["x"]
    exact = prior.sample((20000,))
    if not isinstance(prior, dist.HalfCauchy):
        torch.testing.assert_close(x.mean(0), exact.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(x.median(0).values, exact.median(0).values, atol=0.05, rtol=0)


def test_a_hidden_markov_model_takes_few_operations():
    def model(y):
        means = pyro.sample("means", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2)).expand([2]).to_event(1))
        pyro.sample(
            "y", dist.DiscreteHMM(torch.zeros(2), rows.log(), dist.Normal(means, 1.0)), obs=y
        )

    log_density = potential(model, torch.randn(100))
    x = torch.randn(64, log_density.size)
    check_chains(log_density, x[:3])
    for _ in range(2):
        log_density.value_and_gradient(x)
    (recording,) = (r for key, r in log_density.recorded.items() if len(x) in key[1])
    assert recording.size("value", "gradient") < 1000  # not some for each chain


def test_a_zero_probability_has_a_gradient_of_zero():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        logits = torch.stack([a, torch.tensor(-torch.inf), -a])
        pyro.sample("y", dist.Multinomial(3, logits=logits), obs=tensor([1.0, 0.0, 2.0]))

    check_chains(potential(model), torch.randn(3, 1))


def black_box(y):
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", 2):
        pyro.sample("y", dist.Normal(torch.from_numpy(numpy.asarray(x) * 2.0), 1.0), obs=y)


@pytest.mark.parametrize("kernel", [mcmc.Metropolis(), mcmc.EllipticalSlice()])
def test_a_model_without_a_gradient_runs_with_kernels_that_need_none(kernel):
    with pytest.warns(ChainByChainWarning, match="at or after site 'x'"):
        log_density = potential(black_box, tensor([1.0, -1.0]))
    torch.manual_seed(0)
    state = kernel.init(log_density.initial("prior", 8, gradient=False), log_density)
    total = 0.0
    for _ in range(300):
        state, _ = kernel.step(state, log_density)
        total = total + state.position.mean(0) / 300
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


class Scope:
    """A fresh tensor that is changed in place, constants and what depends on the argument."""

    def __call__(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            matrix = torch.zeros(3, 3)
            matrix[0] = 2.0

            def one(u):
                w = torch.zeros_like(u)
                w[1] = u[0] * 2
                w[2] += w[1]
                factor = torch.linalg.cholesky(torch.diag_embed(u.exp()) + torch.eye(3))
                chosen = u[torch.tensor([0, 0, 1])].prod()
                return (matrix @ u).sum() + w.square().sum() + factor.sum() + chosen

            value = torch.func.vmap(one)(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return {"value": value.detach(), "gradient": gradient, "constant": matrix.detach()}


def test_a_recording_gives_each_result_alone():
    from probgen.mcmc.tracing import record

    function = Scope()
    recording = record(function, torch.randn(4, 3))
    x = torch.randn(4, 3)
    exact, found = function(x), recording(x)
    for name in exact:
        torch.testing.assert_close(found[name], exact[name])
        assert torch.equal(recording(x, name)[name], found[name])
        assert torch.equal(recording(x.mT.contiguous().mT, name)[name], found[name])
    assert recording.size("constant") < recording.size("value") < recording.size("gradient")
    found["constant"].zero_()  # which is a copy
    assert torch.equal(recording(x, "constant")["constant"], exact["constant"])


OPERATIONS = {
    "slices": lambda u: u[:3].sum() * u[-2:].prod() + u[::2].sum() + u[1:-1].exp().sum(),
    "ellipsis": lambda u: (u.reshape(2, 3)[..., -1:] * u.reshape(2, 3)[:1]).sum(),
    "indices": lambda u: u[torch.tensor([0, 0, -1])].prod() + u[[1, 2]].sum() + u[u.argmax()],
    "masks": lambda u: u[torch.tensor([True, False, True, True, False, False])].square().sum(),
    "branches": lambda u: torch.where(u > 0, u, u.exp()).sum() + u.clamp(-0.5, 0.5).sum(),
    "orders": lambda u: u.sort().values[2] + u.flip(0)[0] + u.roll(2)[0] + u.topk(2).values.sum(),
    "scans": lambda u: u.cumsum(0).square().sum() + u.cumprod(0).sum() + u.logcumsumexp(0).sum(),
    "algebra": lambda u: (u.reshape(2, 3) @ u.reshape(3, 2)).diagonal().sum() + u.outer(u).trace(),
    "einsum": lambda u: torch.einsum("ij,ik->jk", u.reshape(2, 3), u.reshape(2, 3).exp()).sum(),
    "solve": lambda u: torch.linalg.solve(torch.eye(6) * 3 + u.outer(u), u).sum(),
    "factor": lambda u: torch.linalg.cholesky(torch.eye(6) + u.outer(u)).logdet(),
    "triangle": lambda u: torch.linalg.solve_triangular(
        torch.eye(6) + torch.ones(6, 6).tril(), u[:, None], upper=False).sum(),
    "eigen": lambda u: torch.linalg.eigvalsh(u.outer(u) + torch.arange(6.0).diag()).exp().sum(),
    "splits": lambda u: sum(k * part.prod() for k, part in enumerate(u.split([1, 2, 3]))),
    "chunks": lambda u: torch.stack(u.chunk(3), 1).unbind(1)[1].sum() + torch.cat([u, u])[7],
    "norms": lambda u: u.norm() + u.softmax(0)[0] + u.log_softmax(0)[1] + u.logsumexp(0) + u.std(),
    "special": lambda u: torch.lgamma(u.exp()).sum() + torch.erf(u).sum() + torch.i0(u).sum(),
    "convolution": lambda u: torch.conv1d(u[None, None], torch.ones(1, 1, 3)).exp().sum(),
    "scatter": lambda u: torch.zeros(4).scatter_add(0, torch.tensor([0, 1, 1, 2, 3, 3]), u).prod(),
    "constants": lambda u: (u * 1 + 0) ** 1 @ torch.ones(6) + torch.zeros(3).sum() * u[0],
    "halves": lambda u: (u.double() * 2).float().sum() + (u > 0).float() @ u + u.sign().sum(),
    "strides": lambda u: u.reshape(3, 2).mT.reshape(-1).cumsum(0)[3] + u.unfold(0, 3, 1).prod(1)[0],
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_replayed(name):
    from probgen.mcmc.tracing import record

    log_density = potential(lambda: pyro.sample("x", dist.Normal(torch.zeros(6), 1.0).to_event(1)))

    def function(x):
        return log_density.slopes(OPERATIONS[name], x)

    torch.manual_seed(0)
    recording = record(function, torch.randn(5, 6))
    for x in (torch.randn(5, 6), torch.randn(6, 5).mT):
        exact, found = function(x), recording(x)
        for key in exact:
            torch.testing.assert_close(found[key], exact[key])
            torch.testing.assert_close(recording(x, key)[key], exact[key])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: {"y": x * float(x.sum())}, "depends on values"),
        (lambda x: {"y": x[x > 0]}, "depends on values"),
        (lambda x: {"y": x.add_(1)}, None),
    ],
)
def test_what_cannot_be_recorded_is_refused(function, message):
    from probgen.mcmc.tracing import record

    outside = torch.zeros(3)
    if message is None:
        function, message = (lambda x: {"y": outside.add_(x)}), "changes a tensor that was there"
    with pytest.raises(RuntimeError, match=message):
        record(function, torch.ones(3))


def runge_kutta(steps=40):
    rate = pyro.sample("rate", dist.LogNormal(0.0, 0.5).expand([2]).to_event(1))
    z = pyro.sample("start", dist.LogNormal(0.0, 0.5).expand([2]).to_event(1))

    def slope(z):
        return torch.stack([(rate[0] - z[1]) * z[0], (z[0] - rate[1]) * z[1]])

    path = []
    for _ in range(steps):
        half = z + 0.05 * slope(z)
        z = z + 0.1 * slope(half) / torch.tensor(1.0)
        path.append((z.square() + 1e-3).sqrt() - 0.5 * z[:1].clamp(min=1e-3))
    pyro.sample("y", dist.Normal(torch.stack(path), 1.0).to_event(2), obs=torch.ones(steps, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_long_loop_is_replayed_on_arrays(dtype, monkeypatch):
    from probgen.mcmc import arrays, replay

    torch.set_default_dtype(dtype)
    try:
        log_density = potential(runge_kutta)
        x = torch.randn(16, 4) / 4
        log_density.value_and_gradient(x)
        check_chains(log_density, x)
        (recording,) = log_density.recorded.values()
        assert arrays.pays(x, recording.needed(("gradient",)))
        assert not arrays.pays(x[:1].expand(100000, 4), recording.lines)
        found = recording(x)
        assert {value.dtype for value in found.values()} == {dtype}
        monkeypatch.setattr(replay, "pays", lambda *_: False)
        recording.programs.clear()
        for name, value in recording(x).items():
            torch.testing.assert_close(found[name], value)
        x[0, 0] = 1e6  # which numpy would warn of
        assert not bool(torch.isfinite(log_density(x)[0]))
        assert bool(torch.isfinite(log_density(x)[1:]).all())
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_model_is_not_recorded_if_torch_has_no_dispatch_modes(monkeypatch):
    from probgen.mcmc import evaluation

    def fails(*_):
        raise RuntimeError("gone")

    monkeypatch.setattr(evaluation, "record", fails)
    log_density = potential(scan)
    for _ in range(3):
        check_chains(log_density, torch.randn(4, 2))
    assert list(log_density.recorded.values()) == [None]


def test_a_short_run_loads_no_compiler():
    import subprocess
    import sys

    code = """
import sys, torch, pyro, pyro.distributions as dist
from probgen.mcmc import run
def model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)
run(model, torch.randn(8), warmup=5, draws=5, progress=False)
print([name for name in ("sympy", "torch._dynamo", "torch._inductor") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
