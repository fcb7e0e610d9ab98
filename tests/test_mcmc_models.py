"""Models of chains: every distribution of Pyro, loops and gradients under vmap."""

import inspect
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import eye, tensor

from probgen import mcmc
from probgen.mcmc import potential, run
from tests.chains import check_chains, mvn, probs, scan, trans, tril

nan = math.nan


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


def writes():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Beta(2.0, 2.0))
    h, matrix = torch.zeros(10), torch.eye(3)
    for t in range(10):
        h[t] = a * t + b
    matrix[0, 1], matrix[matrix < 0] = a, 0.5
    pyro.sample("y", dist.Normal(h + matrix.sum(), 1.0).to_event(1), obs=torch.ones(10))


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
