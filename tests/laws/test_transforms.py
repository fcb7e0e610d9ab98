"""The laws of transforms."""

import copy

import pyro
import pytest
import torch
from torch.autograd.functional import jacobian

from probgen import transforms as t
from probgen.core import call_and_ladj, inverse_and_ladj
from tests.rosters import BOUNDED, TRANSFORMS, C, D, context_of, interior, moved

ALL = {**TRANSFORMS, **BOUNDED}
STATES = {"fresh": 0.0, "moved": 0.2}


@pytest.fixture(params=ALL)
def module(request):
    return ALL[request.param]()


def build(module, *batch):
    return module(context_of(module, *batch))


class Ways(torch.nn.Module):
    """Both ways of a lazy transform as a module, so that parameters can be swapped."""

    def __init__(self, module, context):
        super().__init__()
        self.module, self.context = module, context

    def forward(self, x, y):
        f = self.module(self.context)
        return (*call_and_ladj(f, x), *inverse_and_ladj(f, y))


def event_sum(ladj, transform):
    return ladj if transform.domain.event_dim else ladj.sum(-1)


def exact(function, x):
    """The Jacobian of a function of one vector, at one vector."""
    return jacobian(function, x)


@pytest.mark.parametrize("state", STATES)
def test_inverse_undoes_call_and_call_undoes_inverse(module, state, float64):
    f = build(moved(module.double(), STATES[state]), 5)
    x = interior(f.domain, 7, 5, D)
    y = f(x)
    kappa = (
        torch.stack([torch.linalg.cond(exact(f, v)) for v in x[0, :1]])
        if not (module.context)
        else torch.ones(1)
    )
    tol = 1e-9 * kappa.max().clamp_min(1)
    assert ((f.inv(y) - x).abs() <= tol * (1 + x.abs())).all()
    y = interior(f.codomain, 7, 5, D)
    assert ((f(f.inv(y)) - y).abs() <= 1e-9 * (1 + y.abs())).all()


@pytest.mark.parametrize("state", STATES)
def test_log_determinant_is_that_of_the_jacobian_both_ways(module, state, float64):
    f = build(moved(module.double(), STATES[state]))
    x = interior(f.domain, D)
    y, ladj = call_and_ladj(f, x)
    ladj = event_sum(ladj, f)
    torch.testing.assert_close(
        ladj, torch.linalg.slogdet(exact(f, x)).logabsdet, rtol=1e-9, atol=1e-9
    )
    _again, back = inverse_and_ladj(f, y.detach())
    torch.testing.assert_close(event_sum(back, f), ladj, rtol=1e-9, atol=1e-9)
    inverse = torch.linalg.slogdet(exact(f.inv, y.detach())).logabsdet
    torch.testing.assert_close(-inverse, ladj, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        event_sum(f.log_abs_det_jacobian(x, y), f), ladj, rtol=1e-9, atol=1e-9
    )


def test_derivatives_match_finite_differences_both_ways(module, float64):
    ways = Ways(moved(module.double()), context_of(module, 2))
    f = ways.module(ways.context)
    x, y = interior(f.domain, 2, D), interior(f.codomain, 2, D)
    names, values = zip(*ways.named_parameters(), ("x", x), ("y", y))

    def function(*values):
        x, y = values[-2:]
        parameters = dict(zip(names[:-2], values[:-2]))
        outputs = torch.func.functional_call(ways, parameters, (x, y))
        return tuple(v for v in outputs if v.requires_grad)

    inputs = [v.detach().requires_grad_() for v in values]
    assert torch.autograd.gradcheck(function, inputs, rtol=1e-5, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("name", [n for n in ALL if list(ALL[n]().parameters())])
def test_every_parameter_receives_a_gradient(name):
    module = moved(ALL[name]())
    f = build(module, 5)
    for way, where in ((call_and_ladj, f.domain), (inverse_and_ladj, f.codomain)):
        module.zero_grad()
        value, ladj = way(f, interior(where, 20, 5, D))
        (value.square().sum() + ladj.sum()).backward(retain_graph=True)
        for name, p in module.named_parameters():
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name


def test_shapes_follow_the_context(module):
    f = build(module, 5, 2)
    batch = (5, 2) if module.context else ()
    assert f.forward_shape((D,)) == (*batch, D)
    assert f.inverse_shape((D,)) == (*batch, D)
    for shape in [(*batch, D), (3, *batch, D), (7, 3, 5, 2, D), (0, 5, 2, D)]:
        x = interior(f.domain, *shape)
        y, ladj = call_and_ladj(f, x)
        assert y.shape == shape
        assert event_sum(ladj, f).shape == shape[:-1]
        assert f.inv(y).shape == shape
    one = interior(f.domain, D)  # one vector under many contexts
    assert f(one).shape == (*batch, D)


def test_float32_agrees_with_float64(module):
    module = moved(module)
    context = context_of(module, 5)
    f = module(context)
    x = interior(f.domain, 50, 5, D)
    y, ladj = call_and_ladj(f, x)
    g = copy.deepcopy(module).double()(context.double() if context is not None else None)
    z, exactly = call_and_ladj(g, x.double())
    assert ((y - z).abs() <= 1e-4 * (1 + z.abs())).all()
    assert ((ladj - exactly).abs() <= 1e-4 * (1 + exactly.abs())).all()
    back, there = f.inv(y), g.inv(y.double())
    steepest = (exactly if f.domain.event_dim == 0 else exactly.unsqueeze(-1)).neg().exp()
    slack = 1e-4 * steepest.clamp_min(1)
    circle = (back - there).abs() > 6  # -pi and pi are one angle
    assert (((back - there).abs() <= slack * (1 + there.abs())) | circle).all()


def test_runs_without_reading_a_value(module, unchecked):
    module = module.to("meta")
    context = torch.randn(5, module.context, device="meta") if module.context else None
    f = module(context)
    x = torch.empty(7, 5, D, device="meta")
    for way in (call_and_ladj, inverse_and_ladj):
        value, _ladj = way(f, x)
        assert value.device.type == "meta"
        assert value.shape == (7, 5, D)


def test_float64_follows_float64(module):
    module = module.double()
    context = context_of(module, 5)
    f = module(context.double() if context is not None else None)
    y, ladj = call_and_ladj(f, interior(f.domain, 7, 5, D).double())
    assert y.dtype == ladj.dtype == torch.float64
    assert f.inv(y).dtype == torch.float64


@pytest.mark.parametrize("name", ["affine", "spline", "coupling spline", "autoregressive spline"])
def test_far_values_come_back(name, float64):
    f = build(moved(TRANSFORMS[name]().double()))
    y = 1e3 * torch.randn(50, D)
    assert ((f(f.inv(y)) - y).abs() <= 1e-9 * (1 + y.abs())).all()


@pytest.mark.parametrize("name", [n for n in TRANSFORMS if n[:3] in ("pla", "rad", "syl")])
def test_transforms_without_a_closed_inverse_score_any_value(name, float64):
    f = build(moved(TRANSFORMS[name]().double(), 1.0), 50)
    y = 20 * torch.randn(50, D).sign()
    assert ((f(f.inv(y)) - y).abs() <= 1e-6).all()


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-3, 1.0, 10.0, 100.0])
def test_planar_is_one_to_one_for_any_parameters(scale, float64):
    f = t.Planar(*(scale * torch.randn(2, 1000, 3)), scale * torch.randn(1000))
    assert (f.stretch >= -1 + 1e-3 - 1e-9).all()
    y = torch.randn(1000, 3)
    x = f.inv(y)
    assert x.isfinite().all()
    assert ((f(x) - y).abs() <= 1e-9 * (1 + x.abs() + f.u.abs())).all()


def test_planar_without_direction_is_a_shift():
    f = t.Planar(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]), torch.tensor(0.5))
    expected = torch.tensor(0.5).tanh() * torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(f(torch.zeros(3)), expected)
    assert f.log_abs_det_jacobian(torch.ones(3), None) == 0


def test_sylvester_reflections_are_orthonormal(float64):
    f = t.Sylvester(torch.randn(6, 5), torch.randn(3, 3), torch.randn(3, 3), torch.randn(3))
    torch.testing.assert_close(f.q.mT @ f.q, torch.eye(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["bounded", "normal cdf", "softclip"])
def test_saturation_is_finite(name, dtype):
    f = BOUNDED[name]()()
    x = torch.tensor([-1e4, -40.0, -12.0, -6.5, 0.0, 6.5, 12.0, 40.0, 1e4], dtype=dtype)
    y = f(x)
    assert f.codomain.check(y).all()
    assert f.inv(y).isfinite().all()
    edges = torch.tensor([f.codomain.lower_bound, f.codomain.upper_bound], dtype=dtype)
    back, ladj = inverse_and_ladj(f, edges)
    assert back.isfinite().all()
    assert ladj.isfinite().all()


def test_saturation_is_where_the_docs_say():
    for f, edge in ((t.Bounded(), 12.0), (t.NormalCDF(), 4.5)):
        x = torch.tensor([-edge, edge])
        torch.testing.assert_close(f.inv(f(x)), x, rtol=0, atol=0.3)


def test_autoregressive_jacobian_is_triangular(float64):
    for module in (
        t.Autoregressive(6, t.RationalQuadratic, C, (16, 16)),
        t.Autoregressive(6, hidden_features=(2,)),
    ):
        f = build(moved(module.double(), 1.0))
        j = exact(f, torch.randn(6))
        assert (j.triu(1) == 0).all()
        assert (j.tril(-1) != 0).any()
        inverse = exact(f.inv, torch.randn(6))
        assert (inverse.triu(1) == 0).all()


def test_couplings_keep_one_part():
    x = torch.randn(10, 5)
    for kept, part in ((2, slice(0, 2)), (-2, slice(3, 5))):
        f = moved(t.Coupling(5, kept=kept), 1.0)()
        same = f(x) == x
        assert same[:, part].all()
        assert same.sum() == 20


@pytest.mark.parametrize("name", [n for n in ALL if n[:3] not in ("pla", "syl")])
def test_vmap_and_compile(name, unchecked):
    module = moved(ALL[name]())
    context = context_of(module)
    x = interior(module(context).domain, 6, D)
    function = lambda v: call_and_ladj(module(context), v)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for got in (torch.func.vmap(function)(x), compiled(x)):
        torch.testing.assert_close(got, function(x), rtol=1e-5, atol=1e-5)


def test_standalone_in_a_pyro_distribution():
    base = pyro.distributions.Normal(torch.zeros(D), 1.0).to_event(1)
    f = t.Planar(torch.ones(D), torch.ones(D), torch.tensor(0.5))
    d = pyro.distributions.TransformedDistribution(base, [f])
    with pyro.plate("draws", 5):
        x = pyro.sample("x", d)
    assert d.log_prob(x.clone()).shape == (5,)


def test_composes_with_torch():
    f = torch.distributions.ComposeTransform([t.Affine(torch.ones(3), torch.ones(3)), t.Bounded()])
    x = torch.randn(5, 3)
    torch.testing.assert_close(f.inv(f(x)), x, rtol=1e-4, atol=1e-4)


def test_a_users_transform_needs_two_methods_and_its_start():
    class Cube(t.Elementwise):
        """The transform x + (e^a x)^3, inverted by root-finding."""

        def __init__(self, log_a):
            super().__init__(log_a.shape)
            self.a = log_a.exp()

        @classmethod
        def initial(cls, features):
            return {"log_a": torch.zeros(())}

        def call_and_ladj(self, x):
            return x + (self.a * x) ** 3, torch.log1p(3 * self.a**3 * x**2)

        def inverse_and_ladj(self, y):
            from probgen.core import increasing_root

            cube = lambda x: (x + (self.a * x) ** 3, 1 + 3 * self.a**3 * x**2)
            x = increasing_root(cube, y, -torch.ones_like(y), torch.ones_like(y))
            return x, self.call_and_ladj(x)[1]

    for module in (t.Coupling(3, Cube), t.Autoregressive(3, Cube), t.Learned(Cube, 3)):
        f = moved(module)()
        y = 100 * torch.randn(5, 3)
        torch.testing.assert_close(f(f.inv(y)), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: t.SoftClip(0.0), "positive, finite `bound`"),
        (lambda: t.Bounded(1.0, 1.0), "`low` < `high`"),
        (lambda: t.NormalCDF(0.0, float("inf")), "finite bounds"),
        (lambda: t.Permutation(torch.tensor([0, 0])), "permutation"),
        (lambda: t.Planar(torch.ones(2), torch.ones(3), torch.ones(())), r"\(2,\) and \(3,\)"),
        (
            lambda: t.RationalQuadratic(torch.ones(4), torch.ones(4), torch.ones(4)),
            "3 slopes",
        ),
        (lambda: t.RationalQuadratic(*torch.ones(2, 1), torch.ones(0)), "bins"),
        (lambda: t.Coupling(3, kept=3), "`kept`"),
        (lambda: t.Learned(t.Planar, 0), "`features`"),
        (lambda: t.Autoregressive(3, hidden_features=(0,)), "`hidden_features`"),
        (lambda: t.Autoregressive(3, activation="rel"), "activation"),
        (lambda: t.LU(torch.ones(2, 2), torch.ones(3, 3), torch.ones(3), torch.ones(3)), "lower"),
        (
            lambda: t.Sylvester(
                torch.ones(0, 2), torch.ones(3, 3), torch.ones(3, 3), torch.ones(3)
            ),
            "no more than 2",
        ),
    ],
)
def test_bad_arguments_are_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: t.Learned("planar", 3),
        lambda: t.Coupling(3, t.Planar),
        lambda: t.Learned(t.SoftClip, 3),
    ],
)
def test_bad_types_are_named(wrong):
    with pytest.raises(TypeError, match=r"subclass of|no parameters|to be a class"):
        wrong()
