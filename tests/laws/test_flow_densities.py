"""Densities of flows, and the values and sizes that they refuse."""

import inspect
import math

import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen import transforms as t
from tests.rosters import FLOWS, moved

from .flows_cases import D, draws, grid
from .flows_cases import flow as flow
from .flows_cases import name as name


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
    for kind in ("bounded", "conditional base", "CircularNSF"):
        flow = moved(FLOWS[kind](D, 0)).double()
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
