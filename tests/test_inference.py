"""Inference with learned parts, against posteriors that are known exactly."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Importance, Trace_ELBO
from pyro.infer.reparam import TransformReparam

import probgen as pg

SD = 0.5


@pytest.fixture
def prior():
    """A flow whose law is normal: a linear map of a standard normal, N(m, L L')."""
    torch.set_default_dtype(torch.float64)
    lower = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    shift = torch.tensor([1.0, -1.0])
    linear = pg.transforms.LU(lower, torch.eye(2), torch.tensor([0.0, math.log(0.6)]), shift)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    flow = pg.distributions.Flow([linear], base).freeze()
    matrix = linear.lower @ linear.upper
    return flow, shift, matrix @ matrix.T


@pytest.fixture
def problem(prior):
    flow, mean, covariance = prior
    y = torch.tensor([0.3])

    def model(y):
        x = pg.sample("x", flow)
        pyro.sample("y", dist.Normal(x.sum(-1, keepdim=True), SD).to_event(1), obs=y)

    a = torch.ones(1, 2)
    gain = covariance @ a.T / (a @ covariance @ a.T + SD**2)
    exact = mean + (gain @ (y - a @ mean)), covariance - gain @ a @ covariance
    evidence = dist.Normal(a @ mean, (a @ covariance @ a.T + SD**2)[0].sqrt()).log_prob(y)
    return model, y, exact, float(evidence)


def z_scores(draws, weights, exact):
    """How many standard errors the weighted moments of draws are from the exact ones."""
    mean, covariance = exact
    spread = draws - mean
    moments = torch.cat([spread, spread**2 - covariance.diagonal(), spread.prod(-1, keepdim=True)
                         - covariance[0, 1]], -1)  # fmt: skip
    estimate = (weights[:, None] * moments).sum(0)
    se = (weights[:, None] ** 2 * (moments - estimate) ** 2).sum(0).sqrt()
    return (estimate / se).abs()


@pytest.mark.parametrize("base", [False, True], ids=["data space", "base space"])
def test_nuts_with_a_flow_prior_is_conjugate(problem, base):
    model, y, exact, _ = problem
    if base:
        model = poutine.reparam(model, {"x": TransformReparam()})
    mcmc = MCMC(NUTS(model), num_samples=800, warmup_steps=150, disable_progbar=True)
    mcmc.run(y)
    x = mcmc.get_samples()["x_base" if base else "x"]
    if base:
        x = torch.stack([pushed(model, v, y) for v in x])
    ess = pyro.ops.stats.effective_sample_size(x[None]).min() / len(x)
    z = z_scores(x, torch.full((len(x),), 1 / len(x)), exact) * ess.clamp(max=1).sqrt()
    assert (z < 4).all()


def pushed(model, base, y):
    """The value of the flow's site that belongs to a value of its base."""
    trace = poutine.trace(poutine.condition(model, {"x_base": base})).get_trace(y)
    return trace.nodes["x"]["value"]


def test_importance_sampling_with_a_flow_prior_is_conjugate(problem):
    model, y, exact, evidence = problem
    posterior = Importance(model, num_samples=4000).run(y)
    x = torch.stack([trace.nodes["x"]["value"] for trace in posterior.exec_traces])
    log_weights = torch.tensor(posterior.log_weights)
    assert (z_scores(x, log_weights.softmax(0), exact) < 4).all()
    ratio = (log_weights - evidence).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / 4000**0.5


def test_svi_with_a_flow_guide_is_conjugate(problem):
    model, y, exact, evidence = problem
    q = pg.models.IAF(2, transforms=1, hidden_features=())

    def guide(y):
        pg.sample("x", q)

    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=0)
    optim = pyro.optim.ClippedAdam({"lr": 3e-2, "lrd": 0.997})
    svi = SVI(model, guide, optim, elbo)
    for _ in range(1600):
        svi.step(y)
    assert abs(-svi.evaluate_loss(y) - evidence) < 0.01
    x = q().sample((20_000,))
    torch.testing.assert_close(x.mean(0), exact[0], rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(x.T), exact[1], rtol=0, atol=0.05)


def test_a_conditional_flow_learns_the_posterior_from_simulations(problem):
    model, y, exact, _ = problem
    trace = [poutine.trace(poutine.uncondition(model)).get_trace(y).nodes for _ in range(2000)]
    x = torch.stack([nodes["x"]["value"] for nodes in trace])
    given = torch.stack([nodes["y"]["value"] for nodes in trace])
    q = pg.models.MAF(2, context=1, transforms=2, hidden_features=(16,))
    pg.fit(q, x, context=given, validation=0.1, steps=1500, lr=3e-3, seed=0, progress=False)
    draws = q(y).sample((20_000,))
    torch.testing.assert_close(draws.mean(0), exact[0], rtol=0, atol=0.15)
    torch.testing.assert_close(draws.std(0), exact[1].diagonal().sqrt(), rtol=0.15, atol=0)


def test_yesterdays_posterior_is_todays_prior(prior):
    """A flow fitted to draws given observation 1, times the likelihood of observation 2."""
    _, mean, covariance = prior

    def update(mean, covariance, a, y):
        gain = covariance @ a / (a @ covariance @ a + SD**2)
        return mean + gain * (y - a @ mean), covariance - torch.outer(gain, a) @ covariance

    first, second = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])
    m, c = update(mean, covariance, first, 0.3)
    draws = dist.MultivariateNormal(m, c).sample((5000,))
    flow = pg.models.MAF(2, transforms=2, hidden_features=())
    pg.fit(flow, draws, steps=600, batch_size=1000, lr=2e-2, schedule="cosine", seed=0,
           progress=False)  # fmt: skip
    flow.freeze()
    exact = dist.MultivariateNormal(*update(m, c, second, 1.5))
    x = exact.sample((4000,))
    log_joint = flow().log_prob(x) + dist.Normal(x @ second, SD).log_prob(torch.tensor(1.5))
    wide = dist.MultivariateNormal(exact.mean, 2 * exact.covariance_matrix)
    z = wide.sample((20_000,))
    joint = flow().log_prob(z) + dist.Normal(z @ second, SD).log_prob(torch.tensor(1.5))
    log_evidence = (joint - wide.log_prob(z)).logsumexp(0) - math.log(len(z))
    kl = (exact.log_prob(x) - (log_joint - log_evidence)).mean()
    assert abs(float(kl)) < 0.05
