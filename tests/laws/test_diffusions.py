"""The laws of diffusions."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import MCMC, NUTS, SVI, Importance, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import probgen as pg
from probgen.core.cached_tensor import CachedTensor
from probgen.diffusion.flow import flow_table
from tests.rosters import DIFFUSIONS, C, moved


@pytest.fixture(params=DIFFUSIONS)
def name(request):
    return request.param


@pytest.fixture
def module(name):
    return moved(DIFFUSIONS[name](0))


@pytest.fixture
def conditional(name):
    return moved(DIFFUSIONS[name](C))


def discrete(module):
    return module().support.is_discrete


def data(module, count=100, context=None):
    """Data that depend on their context."""
    shape = tuple(module(None if context is None else context[:1]).event_shape)
    if module.density is pg.Density.BOUND:
        x = torch.randint(3, (count, *shape))
        return x if context is None else torch.where(context[:, :1] > 0, x, 0)
    x = 3 + 2 * torch.randn(count, *shape)
    return x if context is None else x + 5 * context.sum(1).reshape(-1, *[1] * len(shape))


def test_shapes_and_support(module, conditional):
    for d, batch in ((module(), ()), (conditional(torch.randn(5, C)), (5,))):
        assert isinstance(d, TorchDistributionMixin)
        assert d.batch_shape == batch
        assert d.density is module.density
        x = d.sample((7,))
        assert x.shape == (7, *batch, *d.event_shape)
        assert d.support.check(x).all()
        assert d.sample().shape == batch + d.event_shape
        wide = d.expand((3, *batch))
        assert wide.sample((2,)).shape == (2, 3, *batch, *d.event_shape)
        assert wide.to_event(1).event_shape == (wide.batch_shape[-1], *d.event_shape)
        if d.density is pg.Density.PUSHFORWARD:
            with pytest.raises(NotImplementedError, match="density"):
                d.log_prob(x)
            continue
        assert d.log_prob(x).shape == (7, *batch)
        assert wide.log_prob(x[0]).shape == (3, *batch)
        assert d.log_prob(x).isfinite().all()
        if hasattr(d, "elbo"):
            assert d.elbo(x).shape == (7, *batch)
    with pytest.raises(ValueError, match="context"):
        conditional()


@pytest.mark.parametrize("name", ["cnf", "edm", "learned variance"])
def test_a_density_is_that_of_its_draws(name, float64):
    """The one way and the other through the same equation, where a network at random is smooth.

    One that says the noise is divided by the signal, which is nearly none at the latest time.
    """
    module = moved(DIFFUSIONS[name](0), 0.03)
    if name == "cnf":
        module.transforms[0].steps = 32
    else:
        module.table = CachedTensor(flow_table(module.denoiser.schedule, 32))
    d = module.double()()
    x, log_prob = d.rsample_and_log_prob((20,))
    error = 20 * d.solver_error(x.detach()) + 1e-6
    assert float(error.max()) < 0.1
    assert ((d.log_prob(x.detach()) - log_prob).abs() < error).all()
    score = d.score(x)
    x, h = x.detach(), 1e-5 * torch.randn_like(x)
    change = (d.log_prob(x + h) - d.log_prob(x - h)) / 2
    torch.testing.assert_close(change, (score * h).flatten(1).sum(-1), rtol=1e-3, atol=1e-8)


def test_fit_trains(conditional):
    c = torch.randn(100, C)
    x = data(conditional, 100, c)
    before = copy.deepcopy(dict(conditional.named_parameters()))
    history = pg.fit(conditional, x, context=c, steps=40, lr=1e-2, seed=0, progress=False)
    assert all(map(math.isfinite, history.losses))
    assert sum(history.losses[-10:]) < sum(history.losses[:10])
    for n, p in conditional.named_parameters():
        assert not torch.equal(p, before[n]), n
    drawn = conditional.freeze()(c).sample()
    assert drawn.to(torch.float32).isfinite().all()
    assert not any(p.requires_grad for p in conditional.parameters())


def test_plain_svi_trains_what_has_a_density(module):
    x = data(module)
    module.initialize(x)
    if module.density is pg.Density.PUSHFORWARD:
        with pytest.raises((NotImplementedError, ValueError)):
            Trace_ELBO().loss(module.model, module.guide, x)
        return
    model, guide = module.model, module.guide
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x[:50], size=100) for _ in range(30)]
    assert all(map(math.isfinite, losses))
    elbo = Trace_ELBO()(model, guide)
    assert {id(p) for p in elbo.parameters()} == {id(p) for p in module.parameters()}
    assert model(size=3).shape == (3, *x.shape[1:])


def test_as_a_prior_in_a_pyro_model(module):
    """Every inference either takes it or says why not."""
    module.freeze()
    shape = module().event_shape

    def model(y=None):
        x = pg.sample("x", module)
        loc = x.to(torch.float32).flatten().sum()
        return pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    y = torch.tensor(1.0)
    found = Predictive(model, num_samples=3)()
    assert found["y"].shape == (3,)
    assert pyro.poutine.trace(model).get_trace().nodes["y"]["value"].shape == ()
    weighted = Importance(model, num_samples=3).run(y)
    assert len(weighted.log_weights) == 3

    def chains():
        return pg.mcmc.run(
            model,
            y,
            kernel=pg.mcmc.HMC(0.1, 2),
            chains=4,
            warmup=2,
            draws=2,
            seed=0,
            progress=False,
        )

    if module.density is pg.Density.BOUND:
        with pytest.raises(ValueError, match=r"stochastic bound|discrete"):
            chains()
        return
    draws = chains()
    assert draws.samples["x"].shape == (4, 2, *shape)
    nuts = MCMC(NUTS(model, max_tree_depth=2), num_samples=2, warmup_steps=1, disable_progbar=True)
    if module.density is pg.Density.ODE:
        nuts.run(y)
        assert nuts.get_samples()["x"].shape == (2, *shape)
        guide = AutoNormal(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        assert math.isfinite(svi.step(y))


def test_copies_and_checkpoints(conditional, tmp_path):
    c = torch.randn(6, C)
    conditional.initialize(data(conditional, 50, c[:1].expand(50, C)), c[:1].expand(50, C))
    again = copy.deepcopy(conditional)
    conditional.freeze().save(tmp_path)
    loaded = pg.load(tmp_path)
    for other in (again, loaded):
        torch.manual_seed(0)
        x = conditional(c).sample()
        torch.manual_seed(0)
        assert torch.equal(other(c).sample(), x)
        for (n, a), (m, b) in zip(conditional.state_dict().items(), other.state_dict().items()):
            assert n == m
            assert torch.equal(a, b)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.name != conditional.name


def test_runs_without_reading_a_value(conditional, unchecked):
    conditional.to("meta")
    c = torch.empty(5, C, device="meta")
    d = conditional(c)
    x = d.sample((2,))
    assert x.device.type == "meta"
    if d.density is not pg.Density.PUSHFORWARD:
        assert d.log_prob(x).shape == (2, 5)
    if d.density is not pg.Density.EXACT:
        assert conditional.objective(conditional, x[0], c).shape == (5,)


def test_float64_follows_float64(conditional):
    conditional.double()
    d = conditional(torch.randn(5, C, dtype=torch.double))
    x = d.sample((2,))
    assert not x.is_floating_point() or x.dtype == torch.double
    if d.density is not pg.Density.PUSHFORWARD:
        assert d.log_prob(x).dtype == torch.double


def test_the_same_seed_gives_the_same_draws(module):
    torch.manual_seed(1)
    first = module().sample((3,))
    torch.manual_seed(1)
    assert torch.equal(module().sample((3,)), first)


RANDOM = ("cold", "ctmc", "d3pm")  # without a density, or with one that is drawn


@pytest.mark.parametrize("name", [n for n in DIFFUSIONS if not n.startswith(RANDOM)])
def test_contexts_matter_one_by_one(conditional, float64):
    conditional.double()
    contexts = torch.randn(4, C)
    d = conditional(contexts)
    x = d.rsample().detach()
    together = d.log_prob(x)
    alone = torch.stack([conditional(c).log_prob(v) for c, v in zip(contexts, x)])
    torch.testing.assert_close(together, alone)
    assert (conditional(contexts.flip(0)).log_prob(x) - together).abs().max() > 1e-6
