"""The laws of flows: what a modeller does with them in Pyro."""

import copy
import inspect
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
from probgen import transforms as t
from tests.rosters import FLOWS, C, interior, moved

D = 3


@pytest.fixture(params=FLOWS)
def name(request):
    return request.param


@pytest.fixture
def flow(name):
    return moved(FLOWS[name](D, 0))


@pytest.fixture
def conditional(name):
    return moved(FLOWS[name](D, C))


def draws(module, *shape, context=None):
    return module(context).sample(shape)


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


def grid(flow, count, reach):
    """Points of one feature, dense at the edges of a bounded support."""
    support = flow().support.base_constraint
    to_support = torch.distributions.biject_to(support)
    if support is torch.distributions.constraints.real:
        return reach * torch.linspace(-1, 1, count) ** 3
    return to_support(torch.linspace(-30.0, 30.0, count))


def test_one_dimensional_densities_integrate_to_one(name, float64):
    for seed in range(3):
        torch.manual_seed(seed)
        flow = moved(FLOWS[name](1, 0).double(), 0.3)
        x = grid(flow, 100_001, 1e3)
        density = flow().log_prob(x[:, None]).exp().detach()
        assert abs(float(torch.trapezoid(density, x)) - 1) < 1e-3


def test_two_dimensional_densities_integrate_to_one(name, float64):
    flow = moved(FLOWS[name](2, 0).double())
    x = grid(flow, 601, 40.0)
    with torch.no_grad():
        density = flow().log_prob(torch.cartesian_prod(x, x)).exp().reshape(601, 601)
    total = torch.trapezoid(torch.trapezoid(density, x), x)
    assert abs(float(total) - 1) < 1e-3


def test_draws_follow_the_density(name, float64):
    """Kolmogorov-Smirnov of F(x), pooled over seeds."""
    uniforms = []
    for seed in range(3):
        torch.manual_seed(seed)
        flow = moved(FLOWS[name](1, 0).double(), 0.3)
        x = grid(flow, 20_001, 1e3)
        density = flow().log_prob(x[:, None]).exp().detach()
        cdf = torch.cumulative_trapezoid(density, x)
        draw = flow().sample((2000,))[:, 0]
        place = torch.searchsorted(x, draw).clamp(2, len(x) - 1)
        share = (draw - x[place - 1]) / (x[place] - x[place - 1])
        uniforms.append(torch.lerp(cdf[place - 2], cdf[place - 1], share))
    u = torch.cat(uniforms).sort().values
    n = len(u)
    k = torch.arange(n)
    gap = float(torch.maximum(u - k / n, (k + 1) / n - u).max())
    assert 2 * math.exp(-2 * n * gap**2) > 1e-6


def test_outside_the_support_is_minus_infinity(float64):
    for name in ("bounded", "conditional base", "CircularNSF"):
        flow = moved(FLOWS[name](D, 0)).double()
        x = flow().sample((4,))
        x[0, 0], x[1, 2] = 100.0, -100.0
        x.requires_grad_()
        log_prob = flow().log_prob(x)
        assert torch.equal(log_prob.isinf(), torch.tensor([True, True, False, False]))
        assert (log_prob[:2] == -torch.inf).all()
        gradients = torch.autograd.grad(log_prob[2:].sum(), [x, *flow.parameters()])
        assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(
    ("parts", "features", "words"),
    [
        (lambda: [t.Coupling(3)], 1, r"transform 0 \(a CouplingTransform\) of shape \(3,\)"),
        (lambda: [t.Autoregressive(2)], 3, r"of shape \(2,\) for values of shape \(3,\)"),
        (lambda: [t.Diagonal(torch.zeros(1), torch.ones(1))], 2, "a Diagonal"),
        (lambda: [t.Affine(*torch.zeros(2, 3))], 1, "a Affine"),
        (lambda: [dist.transforms.AffineTransform(torch.zeros(3), 1.0)], 1, "AffineTransform"),
        (lambda: [t.Coupling(2, t.CircularRationalQuadratic)], 2, "base gives .-inf, inf."),
    ],
)
def test_parts_of_a_flow_must_fit(parts, features, words):
    base = pg.distributions.StandardNormal(features)
    with pytest.raises(ValueError, match=words):
        pg.distributions.Flow(parts(), base)()


def test_a_flow_has_no_density_beyond_what_a_part_gives():
    x = torch.tensor([[5.0, 5.0], [0.5, 0.4]])
    parts = [t.Bounded(0.0, 1.0), t.Coupling(2)]
    flow = pg.distributions.Flow(parts, pg.distributions.StandardNormal(2))
    assert torch.equal(flow().log_prob(x).isinf(), torch.tensor([True, False]))
    turned = pg.distributions.Flow([moved(t.Coupling(2))], pg.models.CircularNSF(2))
    grid = torch.linspace(-20, 20, 401)
    mass = turned().log_prob(torch.cartesian_prod(grid, grid)).exp().sum() * 0.1**2
    assert float(mass.detach()) == pytest.approx(1, abs=0.03)
    assert turned().log_prob(turned().sample((50,))).isfinite().all()
    angles = [t.Coupling(2, t.CircularRationalQuadratic)]
    pg.distributions.Flow(angles, dist.VonMises(torch.zeros(2), 1.0))()  # supported on the line


@pytest.mark.parametrize("shape", [(5, 1), (5, 2), ()])
def test_values_are_not_broadcast_over_features(shape):
    x = torch.zeros(shape)
    for part in (
        pg.distributions.StandardNormal(3)().log_prob,
        pg.distributions.UniformAngles(3)().log_prob,
        t.Coupling(3)(),
        t.Autoregressive(3)().inv,
        t.Learned(t.Planar, 3)(),
        t.Permutation(torch.tensor([1, 0, 2])),
    ):
        with pytest.raises(ValueError, match=r"\(\*, 3\), got"):
            part(x)


def test_a_base_on_part_of_the_line_bounds_the_flow():
    affine = pg.transforms.Learned(pg.transforms.Affine, 2)
    for base in (dist.Exponential(torch.ones(2)), dist.Gamma(torch.full((2,), 2.0), 1.0)):
        flow = pg.distributions.Flow([affine], base.to_event(1))
        x = torch.tensor([[-3.0, 1.0], [1.0, 2.0]])
        assert torch.equal(flow().log_prob(x).isinf(), torch.tensor([True, False]))
    simplex = pg.distributions.Flow(
        [dist.transforms.StickBreakingTransform()], pg.distributions.StandardNormal(2)
    )
    assert simplex().log_prob(simplex().sample((4,))).isfinite().all()


def test_a_base_that_is_a_flow_is_trained():
    class Wrapped(pg.LazyDistribution):
        density, objective = pg.Density.EXACT, None

        def __init__(self):
            super().__init__()
            self.inner = pg.models.MAF(2)

        def forward(self, context=None):
            return self.inner()

    flow = pg.distributions.Flow([pg.transforms.Coupling(2)], Wrapped())
    flow().log_prob(torch.randn(5, 2)).sum().backward()
    assert flow.base.inner.transforms[0].transform.network.layers.biases[-1].grad is not None


def test_temperature_narrows_the_base():
    d = moved(pg.models.RealNVP(2))()
    cold = d.tempered(0.5)
    torch.manual_seed(1)
    z = d.base_dist.sample((1000,))
    expected = z * 0.5
    for transform in d.transforms:
        expected = transform(expected)
    torch.manual_seed(1)
    torch.testing.assert_close(cold.sample((1000,)), expected, rtol=1e-4, atol=1e-4)
    assert cold.log_prob(expected).mean() > d.log_prob(expected).mean()
    with pytest.raises(ValueError, match="temperature"):
        d.tempered(0.0)
    with pytest.raises(ValueError, match="real line"):
        pg.models.CircularNSF(2)().tempered(0.5)


def test_a_negative_scale_mirrors():
    mirror = dist.transforms.AffineTransform(0.0, -2.0)
    base = dist.Normal(torch.tensor([1.0, 3.0]), 1.0).to_event(1)
    flow = pg.distributions.Flow([mirror], base)
    x = flow().sample((10,))
    exact = dist.Normal(torch.tensor([-2.0, -6.0]), 2.0).to_event(1)
    torch.testing.assert_close(flow().log_prob(x), exact.log_prob(x))


def test_features_of_one(name):
    flow = FLOWS[name](1, 2)
    context = torch.randn(5, 2)
    x = draws(flow, context=context)
    assert x.shape == (5, 1)
    assert flow(context).log_prob(x).shape == (5,)


def test_density_says_what_log_prob_is(flow):
    assert flow.density is flow().density is pg.Density.EXACT
    assert isinstance(flow.objective, pg.objectives.MaximumLikelihood)


def test_a_flow_on_a_flow_is_one_flow():
    inner = moved(pg.models.NSF(2))
    outer = pg.distributions.Flow([pg.transforms.Bounded(0.0, 1.0)], inner)
    assert len(outer.transforms) == len(inner.transforms) + 1
    assert type(outer().base_dist) is type(inner().base_dist)
    x = outer().sample((5,))
    y, ladj = pg.core.inverse_and_ladj(pg.transforms.Bounded(0.0, 1.0), x)
    expected = inner().log_prob(y) - ladj.sum(-1)
    torch.testing.assert_close(outer().log_prob(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (torch.zeros(5, 2), ValueError, r"\(\*, 3\), got \(5, 2\)"),
        (torch.tensor(0.0), ValueError, r"\(\*, 3\)"),
        (torch.zeros(3, dtype=torch.int64), TypeError, "Dequantized"),
        (torch.zeros(3, dtype=torch.float64), TypeError, r"torch.float32.*torch.float64"),
        (torch.zeros(3).numpy(), TypeError, "got a ndarray"),
        (torch.zeros(3, device="meta"), ValueError, "value on cpu.*got one on meta"),
    ],
)
def test_bad_values_are_refused(value, error, words):
    with pytest.raises(error, match=words):
        pg.models.MAF(3)().log_prob(value)


@pytest.mark.parametrize(
    ("context", "features", "error", "words"),
    [
        (None, 2, ValueError, "got none"),
        (torch.zeros(5, 2), 0, ValueError, "Expected no context"),
        (torch.zeros(5, 3), 2, ValueError, r"\(\*, 2\), got \(5, 3\)"),
        (torch.zeros(5, 2, dtype=torch.float64), 2, TypeError, "dtype of the parameters"),
        (torch.full((5, 2), torch.nan), 2, ValueError, "nan or inf"),
        (torch.zeros(5, 2, device="meta"), 2, ValueError, "context on cpu.*got one on meta"),
        (1.0, 2, TypeError, "got a float"),
    ],
)
def test_bad_contexts_are_refused(context, features, error, words):
    with pytest.raises(error, match=words):
        pg.models.MAF(3, context=features)(context)


def test_the_batch_of_a_value_must_fit_that_of_the_context():
    with pytest.raises(ValueError, match=r"\(5,\), from its context or plate, got \(4,\)"):
        pg.models.MAF(2, context=1)(torch.zeros(5, 1)).log_prob(torch.zeros(4, 2))


RECIPES = {n: getattr(pg.models, n) for n in pg.models.__all__}
RECIPES = {n: r for n, r in RECIPES.items() if issubclass(r, pg.distributions.Flow)}


@pytest.mark.parametrize("name", RECIPES)
def test_bad_sizes_are_refused(name):
    recipe = RECIPES[name]
    count = (
        "transforms" if "transforms" in inspect.signature(recipe.__init__).parameters else "steps"
    )
    for wrong in ({"features": 0}, {"features": 2.5}, {"features": 2, count: 0}):
        with pytest.raises(ValueError, match="whole number"):
            recipe(**wrong)
    with pytest.raises(ValueError, match="context"):
        recipe(2, context=-1)
    for option, wrongs in (
        ("bins", (1, 2000, 0, -3, 8.0)),
        ("bound", (-1.0, math.inf, math.nan, "5")),
        ("reflections", (-1, 1.5)),
        ("hidden_features", (64, "64", (0,), (2.5,))),
    ):
        if option in inspect.signature(recipe.__init__).parameters:
            for wrong in wrongs:
                with pytest.raises(ValueError, match=f"`{option}`"):
                    recipe(2, context=1, **{option: wrong})


@pytest.mark.parametrize(
    ("network", "context", "words"),
    [
        (lambda: pg.networks.MLP(2, 6), 0, r"`network` with 4 outputs.*\(6,"),
        (lambda: pg.networks.MLP(2, 4), 3, "built without, got one"),
        (lambda: pg.networks.MLP(2, 4, 3), 0, "built with one, got none"),
    ],
)
def test_a_network_of_another_size_is_refused(network, context, words):
    part = t.Coupling(4, context=context, network=network())
    with pytest.raises(ValueError, match=words):
        part(torch.zeros(5, context) if context else None)(torch.zeros(5, 4))


def test_bad_sizes_of_parts_are_refused():
    for wrong, words in (
        (lambda: t.Coupling(0), "`features`.*got 0"),
        (lambda: t.Coupling(3, kept=1.5), "`kept`.*got 1.5"),
        (lambda: t.Autoregressive(3, context=-1), "`context`.*got -1"),
        (lambda: t.Learned(t.Affine, 2, context=-1), "`context`.*got -1"),
        (lambda: t.SoftClip(math.inf), "`bound`"),
        (lambda: pg.distributions.DiagonalNormal(0), "`features`.*got 0"),
        (lambda: pg.distributions.GaussianMixture(2, 0), "`components`.*got 0"),
        (lambda: pg.distributions.StandardNormal(2.0), "`features`.*got 2.0"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()


def test_bad_parts_are_refused():
    with pytest.raises(TypeError, match="`base` to be a LazyDistribution or a TorchDistribution"):
        pg.distributions.Flow([], torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="transform"):
        pg.distributions.Flow([torch.nn.Linear(2, 2)], pg.models.MAF(2))
    with pytest.raises(ValueError, match="one shape of context"):
        pg.distributions.Flow([pg.transforms.Coupling(2, context=3)], pg.models.MAF(2, context=2))
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    folded = pg.distributions.Flow([torch.distributions.AbsTransform()], base)
    with pytest.raises(ValueError, match="bijective"):
        folded()
