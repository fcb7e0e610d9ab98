"""Lazy parts, the Pyro bridge, root-finding and what importing does."""

import copy
import pickle
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

import probgen as pg
from probgen import transforms as t
from probgen.core import Fixed, as_lazy, increasing_root

FIXED = {
    "categorical": lambda: dist.Categorical(logits=torch.randn(4)),
    "bernoulli by probabilities": lambda: dist.Bernoulli(torch.tensor([0.9, 0.2])),
    "one-hot": lambda: dist.OneHotCategorical(torch.tensor([0.1, 0.9])),
    "independent": lambda: dist.Normal(torch.randn(3), torch.rand(3)).to_event(1),
    "mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.rand(2)), dist.Normal(torch.randn(2, 3), 1.0).to_event(1)
    ),
    "multivariate normal": lambda: dist.MultivariateNormal(
        torch.randn(2), covariance_matrix=torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    ),
    "normal of torch": lambda: torch.distributions.Normal(torch.randn(3), 1.0),
    "student": lambda: dist.StudentT(4.0, torch.zeros(3), 1.0).to_event(1),
    "transformed": lambda: dist.TransformedDistribution(
        dist.Normal(torch.zeros(3), 1.0).to_event(1),
        [pg.transforms.Permutation(torch.tensor([2, 0, 1])), dist.transforms.ExpTransform()],
    ),
    "uniform": lambda: dist.Uniform(torch.zeros(3), torch.ones(3)).expand([5, 3]).to_event(1),
}


@pytest.mark.parametrize("name", FIXED)
def test_fixed_moves_saves_and_loads(name, tmp_path):
    given = FIXED[name]()
    fixed = Fixed(given)
    x = given.sample((5,))
    torch.testing.assert_close(fixed().log_prob(x), given.log_prob(x))
    assert not list(fixed.parameters())
    fixed.double()
    assert {b.dtype for b in fixed.buffers()} <= {torch.float64, torch.int64}
    fixed.save(tmp_path)
    again = pg.load(tmp_path)
    assert torch.equal(again().log_prob(x), fixed().log_prob(x))


EAGER = {
    "affine": lambda: t.Affine(torch.randn(3), torch.randn(3)),
    "bounded": lambda: t.Bounded(-1.0, 2.0),
    "inverse": lambda: t.Planar(*torch.randn(2, 3), torch.randn(())).inv,
    "lu": lambda: t.LU(torch.randn(3, 3), torch.randn(3, 3), torch.randn(3), torch.randn(3)),
    "normal cdf": lambda: t.NormalCDF(-1.0, 2.0),
    "permutation": lambda: t.Permutation(torch.tensor([2, 0, 1])),
    "planar": lambda: t.Planar(*torch.randn(2, 3), torch.randn(())),
    "radial": lambda: t.Radial(torch.randn(3), torch.randn(()), torch.randn(())),
    "spline": lambda: t.RationalQuadratic(*torch.randn(2, 4, 3), torch.randn(3, 3), bound=2.0),
    "sylvester": lambda: t.Sylvester(
        torch.randn(2, 3), torch.randn(2, 2), torch.randn(2, 2), torch.randn(2)
    ),
}


@pytest.mark.parametrize("name", EAGER)
def test_a_transform_given_tensors_is_a_part_of_a_flow(name, tmp_path):
    given = EAGER[name]()
    flow = pg.distributions.Flow([given], dist.Normal(torch.zeros(3), 1.0).to_event(1))
    x = flow().sample((5,))
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    alone = dist.TransformedDistribution(base, [given], validate_args=False)
    torch.testing.assert_close(flow().log_prob(x), alone.log_prob(x))
    flow.save(tmp_path)
    assert torch.equal(pg.load(tmp_path)().log_prob(x), flow().log_prob(x))
    assert flow.double()().sample().dtype == torch.float64


def test_fixed_keeps_what_it_was_given(tmp_path):
    given = dist.Categorical(torch.tensor([0.1, 0.9]))
    fixed = Fixed(given)
    given.log_prob(torch.tensor(0))  # makes the logits
    fixed.save(tmp_path)
    torch.testing.assert_close(pg.load(tmp_path)().probs, torch.tensor([0.1, 0.9]))
    board = Fixed(pg.datasets.checkerboard())
    assert board().log_prob(torch.tensor([9.0, 9.0])) == -torch.inf
    assert pg.distributions.UniformAngles(2)().log_prob(torch.tensor([9.0, 0.0])) == -torch.inf


def test_a_checkpoint_ignores_the_default_dtype(tmp_path, float64):
    flow = pg.models.MAF(3).float()
    flow.save(tmp_path)
    x = torch.randn(5, 3, dtype=torch.float32)
    assert torch.equal(pg.load(tmp_path)().log_prob(x), flow().log_prob(x))


def test_fixed_refuses_what_it_could_not_rebuild():
    class Mine(dist.Normal):
        def __init__(self, secret):
            super().__init__(secret, 1.0)

    with pytest.raises(TypeError, match="LazyDistribution"):
        Fixed(Mine(torch.zeros(())))
    for loc in (torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(()))):
        with pytest.raises(TypeError, match="requires a gradient"):
            Fixed(dist.Normal(loc, 1.0))
    with pytest.raises(TypeError, match="requires a gradient"):
        pg.distributions.Flow([t.Shift(torch.nn.Parameter(torch.zeros(2)))], pg.models.MAF(2))
    with pytest.raises(TypeError, match="moved and saved"):
        Fixed(dist.TransformedDistribution(dist.Normal(0.0, 1.0), [Odd()]))
    with pytest.raises(TypeError, match="lazy distribution"):
        as_lazy("normal")
    assert not hasattr(Fixed(dist.Normal(0.0, 1.0)), "objective")


class Odd(pg.transforms.Elementwise):
    """A transform that keeps a function."""

    def __init__(self, function=len):
        super().__init__()
        self.function = function

    def call_and_ladj(self, x):
        return x, torch.zeros_like(x)

    def inverse_and_ladj(self, y):
        return y, torch.zeros_like(y)


def test_density_has_an_order():
    weakest = pg.Density.weakest
    assert weakest(pg.Density.EXACT, pg.Density.EXACT) is pg.Density.EXACT
    assert weakest(pg.Density.ODE, pg.Density.PUSHFORWARD) is pg.Density.PUSHFORWARD


def test_names_are_unique_to_instances():
    first = pg.models.MAF(2)
    modules = [first, pg.models.MAF(2), copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
    assert len({m.name for m in modules}) == 4


def test_a_store_with_other_tensors_is_refused():
    flow = pg.models.MAF(2)
    svi = SVI(flow.model, flow.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(torch.randn(5, 2))
    flow.transforms[0].transform.network.layers.weights[0] = torch.nn.Parameter(torch.ones(128, 2))
    with pytest.raises(RuntimeError, match="clear_param_store"):
        svi.step(torch.randn(5, 2))


def test_sample_says_whether_the_prior_is_trained():
    flow = pg.models.MAF(2)

    def model():
        pg.sample("x", flow)

    def sites():
        trace = poutine.trace(model).get_trace()
        return trace.nodes["x"]["infer"]["learned"], len(trace.param_nodes)

    assert sites()[0] == "trained"
    assert sites()[1] == len(list(flow.parameters()))
    flow.freeze()
    assert sites() == ("frozen", 0)
    with pytest.raises(TypeError, match=r"pyro\.sample"):
        pg.sample("x", dist.Normal(0.0, 1.0))


def test_a_frozen_prior_is_not_retrained():
    prior = pg.models.NSF(2, transforms=2).freeze()
    before = copy.deepcopy(prior.state_dict())

    def model(y):
        with pyro.plate("data", len(y)):
            x = pg.sample("x", prior)
            pyro.sample("y", dist.Normal(x, 0.1).to_event(1), obs=y)

    guide = pyro.infer.autoguide.AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(20):
        svi.step(torch.randn(5, 2))
    assert all(torch.equal(v, before[k]) for k, v in prior.state_dict().items())


def test_the_pair_scales_a_mini_batch_to_the_data():
    flow = pg.models.MAF(2).double()
    x = torch.randn(10, 2, dtype=torch.float64)
    expected = -flow().log_prob(x).sum() * 100 / 10
    loss = Trace_ELBO()(flow.model, flow.guide)(x, size=100)
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ValueError, match="size"):
        flow.model(x, size=5)


def test_the_pair_generates():
    flow = pg.models.MAF(2, context=3)
    assert flow.model(context=torch.randn(5, 3)).shape == (5, 2)
    assert pg.models.MAF(2).model(size=7).shape == (7, 2)


def test_roots_carry_two_derivatives_and_need_a_bracket():
    t = torch.linspace(-50.0, 50.0, 21, dtype=torch.float64, requires_grad=True)
    cube = lambda a: (a + a**3, 1 + 3 * a**2)
    solve = lambda t: increasing_root(cube, t, torch.zeros_like(t), torch.ones_like(t))
    a = solve(t)
    torch.testing.assert_close(a + a**3, t, rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(solve, (t,))
    assert torch.autograd.gradgradcheck(solve, (t,))
    flat = lambda a: (torch.tanh(a), 1 - torch.tanh(a) ** 2)
    with pytest.raises(ValueError, match="bracket around 2"):
        increasing_root(flat, torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([1.0]))


def test_importing_touches_nothing_global():
    code = """
import sys, warnings, torch, pyro, numpy, random
before = (torch.get_default_dtype(), torch.distributions.Distribution._validate_args,
          torch.get_num_threads(), torch.initial_seed(), torch.is_grad_enabled(),
          random.getstate(), numpy.random.get_state()[1].tolist(), warnings.filters[:])
import probgen
after = (torch.get_default_dtype(), torch.distributions.Distribution._validate_args,
         torch.get_num_threads(), torch.initial_seed(), torch.is_grad_enabled(),
         random.getstate(), numpy.random.get_state()[1].tolist(), warnings.filters[:])
assert before == after
for name in ("matplotlib", "sklearn", "arviz", "zuko"):
    assert name not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_sorted():
    for module in (pg, pg.core, pg.distributions, pg.models, pg.networks, pg.transforms):
        names = list(module.__all__)
        assert set(names) <= set(dir(module))
        key = lambda n: (not n.isupper(), not n[0].isupper(), n)
        assert names == sorted(names, key=key), module.__name__


def test_datasets_have_their_density():
    for make, reach in ((pg.datasets.eight_gaussians, 3.0), (pg.datasets.checkerboard, 2.5)):
        d = make()
        x = torch.linspace(-reach, reach, 501)
        total = d.log_prob(torch.cartesian_prod(x, x)).exp().mean() * (2 * reach) ** 2
        assert abs(float(total) - 1) < 0.02
        assert d.log_prob(d.sample((100,))).isfinite().all()
    assert pg.datasets.moons(50).shape == pg.datasets.pinwheel(50).shape == (50, 2)
    digits = pg.datasets.digits()
    assert digits.images.shape == (1797, 64)
    assert digits.images.max() == digits.levels - 1
    assert "scikit-learn" in digits.source


def test_missing_extras_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"probgen\[data\]"):
        pg.datasets.digits()
    with pytest.raises(ImportError, match=r"probgen\[mnist\]"):
        pg.datasets.mnist()
    with pytest.raises(ImportError, match=r"probgen\[plots\]"):
        pg.plots.training(pg.History())
