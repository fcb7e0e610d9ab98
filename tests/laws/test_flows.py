"""The laws of flows: what a modeller does with them in Pyro."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.reparam import TransformReparam

import probgen as pg
from tests.rosters import FLOWS, C, interior, moved

from .flows_cases import D, draws
from .flows_cases import flow as flow
from .flows_cases import name as name


@pytest.fixture
def conditional(name):
    return moved(FLOWS[name](D, C))


def test_batch_shape_is_that_of_the_context(conditional):
    d = conditional(torch.randn(5, 2, C))
    assert isinstance(d, TorchDistributionMixin)
    assert (d.batch_shape, d.event_shape) == ((5, 2), (D,))
    x = d.sample((7,))
    assert x.shape == (7, 5, 2, D)
    assert d.log_prob(x).shape == (7, 5, 2)
    assert d.support.check(x).all()
    assert conditional(torch.randn(C)).batch_shape == ()


def test_a_batch_of_contexts_is_each_context(conditional, float64):
    conditional.double()
    contexts = torch.randn(4, C)
    x = draws(conditional, context=contexts)
    together = conditional(contexts).log_prob(x)
    alone = torch.stack([conditional(c).log_prob(v) for c, v in zip(contexts, x)])
    torch.testing.assert_close(together, alone)


def test_expand_and_empty_batches(flow):
    d = flow()
    wide = d.expand((4, 5))
    assert wide.batch_shape == (4, 5)
    assert wide.sample((2,)).shape == (2, 4, 5, D)
    assert wide.log_prob(d.sample()).shape == (4, 5)
    assert wide.to_event(1).event_shape == (5, D)
    assert d.log_prob(torch.zeros(0, D)).shape == (0,)
    assert wide.log_prob(torch.zeros(0, 4, 5, D)).shape == (0, 4, 5)
    if d.has_rsample:  # torch's Categorical draws no empty batches
        assert d.sample((0,)).shape == (0, D)


def test_log_prob_of_a_draw_is_that_of_its_value(name, conditional, float64):
    conditional.double()
    context = torch.randn(5, C)
    d = conditional(context)
    if not d.has_rsample:
        assert name == "mixture base"
        return
    x = d(sample_shape=torch.Size([10]))  # as pyro.sample draws
    remembered = d.log_prob(x)
    assert remembered is d.log_prob(x)
    torch.testing.assert_close(remembered, d.log_prob(x.detach()), rtol=1e-8, atol=1e-8)
    y, log_prob = d.rsample_and_log_prob((3,))
    torch.testing.assert_close(log_prob, d.log_prob(y.detach()), rtol=1e-8, atol=1e-8)


def test_a_remembered_draw_never_goes_stale(flow):
    d = flow()
    if not d.has_rsample:
        return
    x = d(torch.Size([10]))
    before = d.log_prob(x)
    with torch.no_grad():
        x.mul_(0.5)
    assert d.log_prob(x) is not before
    x = d(torch.Size([10]))
    before = d.log_prob(x)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1)
        assert d.log_prob(x) is not before
    with torch.no_grad():
        x = d(torch.Size([10]))
    x.requires_grad_()
    assert torch.autograd.grad(d.log_prob(x).sum(), x)[0].abs().sum() > 0


def test_the_density_of_a_draw_by_hand_has_its_gradient(flow, float64):
    d = flow.double()()
    if not d.has_rsample:
        return
    x = d.rsample((10,))
    (given,) = torch.autograd.grad((d.log_prob(x) - x.square().sum(-1)).sum(), x)
    torch.testing.assert_close(given, d.score(x) - 2 * x.detach())


def test_a_frozen_draw_has_a_score(flow, float64):
    d = flow.double().freeze()()
    if d.has_rsample:
        x = d.rsample((10,))
        assert torch.autograd.grad(d.log_prob(x.requires_grad_()).sum(), x)[0].isfinite().all()
    x = d.sample((10,))
    h = 1e-6 * torch.nn.functional.one_hot(torch.tensor(0), D)
    slope = (d.log_prob(x + h) - d.log_prob(x - h)) / 2e-6
    torch.testing.assert_close(d.score(x)[:, 0], slope, rtol=1e-4, atol=1e-4)


def test_gradients_through_draws_match_finite_differences(name, flow, float64):
    flow = flow.double()
    if not flow().has_rsample:
        return
    names, values = zip(*flow.named_parameters())

    class Draw(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = flow

        def forward(self):
            torch.manual_seed(1)
            return self.flow().rsample((2,))

    draw = Draw()

    def function(*values):
        parameters = {f"flow.{n}": v for n, v in zip(names, values)}
        return torch.func.functional_call(draw, parameters, ())

    inputs = [v.detach().clone().requires_grad_() for v in values]
    assert torch.autograd.gradcheck(function, inputs, rtol=1e-5, atol=1e-5, fast_mode=True)


def test_every_parameter_receives_a_gradient(conditional):
    context = torch.randn(20, C)
    x = draws(conditional, context=context)
    conditional(context).log_prob(x).sum().backward()
    for n, p in conditional.named_parameters():
        assert p.grad is not None, n
        assert p.grad.abs().sum() > 0, n


def test_a_step_of_the_optimiser_changes_the_density_of_the_same_tensor(flow):
    x = interior(flow().support, 50, D, scale=0.1)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = -flow().log_prob(x).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert len(set(losses)) == 5
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_plain_svi_trains_two_side_by_side(name, elbo):
    first, second = (FLOWS[name](D, 0) for _ in range(2))
    x = interior(first().support, 100, D)
    optim = pyro.optim.Adam({"lr": 1e-2})
    for module in (first, second):
        before = copy.deepcopy(module.state_dict())
        svi = SVI(module.model, module.guide, optim, elbo())
        losses = [svi.step(x[:50], size=100) for _ in range(20)]
        assert losses[-1] < losses[0]
        assert any(not torch.equal(v, before[k]) for k, v in module.state_dict().items())
    pickle.loads(pickle.dumps(first))
    again = copy.deepcopy(first)
    svi = SVI(again.model, again.guide, optim, elbo())
    svi.step(x)
    again.model(x, prefix="other.")
    assert elbo()(again.model, again.guide)(x).isfinite()
    assert {id(p) for p in elbo()(again.model, again.guide).parameters()} == {
        id(p) for p in again.parameters()
    }


def test_fit_trains(name):
    module = FLOWS[name](D, C)
    context = torch.randn(200, C)
    x = interior(module(context).support, 200, D, scale=0.3)
    history = pg.fit(module, x, context=context, steps=30, lr=1e-2, seed=0, progress=False)
    assert sum(history.losses[-5:]) < sum(history.losses[:5])


def test_copies_and_pickles_after_a_draw(conditional):
    context = torch.randn(5, C)
    d = conditional(context)
    x = d()
    expected = d.log_prob(x.detach())
    for thing in (conditional, d):
        for other in (copy.deepcopy(thing), pickle.loads(pickle.dumps(thing))):
            other = other(context) if thing is conditional else other
            got = other.log_prob(x.detach())
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_and_load_give_the_same_bits(name, conditional, dtype, tmp_path):
    conditional.to(dtype)
    next(conditional.parameters()).requires_grad_(False)
    conditional.eval()
    context = torch.randn(5, C, dtype=dtype)
    x = draws(conditional, context=context)
    conditional.save(tmp_path)
    state = torch.get_rng_state()
    again = pg.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again(context).log_prob(x), conditional(context).log_prob(x))
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in conditional.parameters()
    ]
    assert not any(part.training for part in again.modules())
    assert {v.dtype for v in again.state_dict().values()} == {
        v.dtype for v in conditional.state_dict().values()
    }


def test_runs_without_reading_a_value(conditional, unchecked):
    conditional.to("meta")
    context = torch.randn(5, C, device="meta")
    d = conditional(context)
    x = d.sample((2,))
    assert x.device.type == "meta"
    assert d.log_prob(x).shape == (2, 5)
    if d.has_rsample:
        assert d.log_prob(d.rsample()).shape == (5,)


def test_float64_follows_float64(conditional):
    conditional.double()
    d = conditional(torch.randn(5, C, dtype=torch.float64))
    x = d.sample()
    assert x.dtype == d.log_prob(x).dtype == torch.float64


def test_the_same_seed_gives_the_same_draws(flow):
    torch.manual_seed(3)
    first = draws(flow, 5)
    torch.manual_seed(3)
    assert torch.equal(first, draws(flow, 5))
    state = torch.get_rng_state()
    flow().log_prob(first)
    assert torch.equal(torch.get_rng_state(), state)


def test_vmap_and_compile(name, flow, unchecked):
    x = draws(flow, 6)
    function = lambda v: flow().log_prob(v)
    if name not in ("PlanarFlow", "SylvesterFlow"):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), function(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.func.vmap(function)(x), function(x), rtol=1e-4, atol=1e-4)


def test_a_prior_in_nested_plates(conditional):
    context = torch.randn(5, 2, C)

    def model():
        with pyro.plate("outer", 2, dim=-1), pyro.plate("inner", 5, dim=-2):
            return pyro.sample("x", conditional(context))

    trace = poutine.trace(model).get_trace()
    assert trace.nodes["x"]["value"].shape == (5, 2, D)
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (5, 2)
    value = draws(conditional, context=context)
    held = poutine.trace(poutine.condition(model, {"x": value})).get_trace()
    assert held.log_prob_sum().isfinite()
    assert Predictive(model, num_samples=3)()["x"].shape == (3, 5, 2, D)


def regression(prior):
    prior.freeze()

    def model(y):
        with pyro.plate("cases", len(y)):
            x = pg.sample("x", prior)
            pyro.sample("y", dist.Normal(x.sum(-1), 0.5), obs=y)

    return model


def test_a_prior_under_autoguides_and_particles(flow):
    model, y = regression(flow), torch.tensor([0.5, 1.0])
    before = copy.deepcopy(flow.state_dict())
    for kind in (AutoNormal, AutoMultivariateNormal):
        pyro.clear_param_store()
        guide = kind(model)
        elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
        assert all(math.isfinite(svi.step(y)) for _ in range(5))
        assert guide(y)["x"].shape == (2, D)
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())


@pytest.mark.parametrize("base", [False, True], ids=["data space", "base space"])
def test_a_prior_under_nuts(name, flow, base):
    model, y = regression(flow), torch.tensor([0.5])
    if base:
        model = poutine.reparam(model, {"x": TransformReparam()})
    mcmc = MCMC(NUTS(model, max_tree_depth=3), 10, 10, disable_progbar=True)
    mcmc.run(y)
    values = mcmc.get_samples()["x_base" if base else "x"]
    assert values.shape == (10, 1, D)
    assert values.isfinite().all()
    assert values.std(0).min() > 0


def test_a_guide_under_svi(name):
    q = FLOWS[name](D, 1)

    def model(y):
        with pyro.plate("cases", len(y)):
            x = pyro.sample("x", feasible(q, y))
            pyro.sample("y", dist.Normal(x.sum(-1), 0.5), obs=y)

    def guide(y):
        with pyro.plate("cases", len(y)):
            pg.sample("x", q, context=y[:, None])

    y = torch.tensor([0.5, 1.0])
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    before = copy.deepcopy(q.state_dict())
    assert all(math.isfinite(svi.step(y)) for _ in range(10))
    assert any(not torch.equal(v, before[k]) for k, v in q.state_dict().items())


def feasible(q, y):
    """A prior with the support of a flow."""
    support = q(y[:, None]).support
    base = dist.Normal(torch.zeros(D), 1.0).to_event(1)
    return dist.TransformedDistribution(base, [torch.distributions.biject_to(support)])
