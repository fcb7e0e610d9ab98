"""The laws of latent-variable models."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

import probgen as pg
from probgen import objectives
from tests.rosters import LATENTS, C, D, moved


@pytest.fixture(params=LATENTS)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return moved(LATENTS[name](0))


@pytest.fixture
def conditional(name):
    return moved(LATENTS[name](C))


def test_shapes_and_support(model, conditional):
    for module, context, batch in ((model, None, ()), (conditional, torch.randn(5, 2, C), (5, 2))):
        d = module(context)
        assert isinstance(d, TorchDistributionMixin)
        assert (d.batch_shape, d.event_shape) == (batch, (D,))
        assert d.density is module.density is pg.Density.BOUND
        x = d.sample((7,))
        assert x.shape == (7, *batch, D)
        assert d.support.check(x).all()
        assert d.log_prob(x).shape == (7, *batch)
        assert d.log_prob(x).isfinite().all()
        wide = d.expand((3, *batch))
        assert wide.sample().shape == (3, *batch, D)
        assert wide.log_prob(x[0]).shape == (3, *batch)
        found = module.log_marginal(x, None if context is None else context.expand(7, 5, 2, C), 20)
        assert found.value.shape == found.se.shape == found.ess.shape == (7, *batch)
        assert ((found.ess >= 1) & (found.ess <= 20.001)).all()


def test_encode_decode_reconstruct(conditional):
    context = torch.randn(5, C)
    x = conditional(context).sample()
    q = conditional.encode(x, context)
    assert q.batch_shape == (5,)
    z = q.sample((3,))
    assert conditional.decode(z, context).batch_shape == (3, 5)
    again = conditional.reconstruct(x, context) if "categorical" not in repr(q.support) else x
    assert again.shape == x.shape


def test_the_bound_is_that_of_its_densities(model, float64):
    model.double()
    x = model().sample((5,))
    torch.manual_seed(1)
    w = model.weigh(x, samples=4)
    z = w.latents[0]
    torch.testing.assert_close(w.log_prior, model.prior().log_prob(z))
    torch.testing.assert_close(w.log_posterior, model.encode(x).log_prob(z.detach()))
    torch.testing.assert_close(w.log_likelihood, model.decode(z).log_prob(x))
    model.samples = 4
    torch.manual_seed(1)
    exact = w.log_weights.logsumexp(0) - torch.tensor(4.0).log()
    torch.testing.assert_close(model().log_prob(x), exact)


@pytest.mark.parametrize(
    "objective",
    [
        objectives.ELBO(),
        objectives.ELBO(beta=0.5, free_bits=0.1, samples=2, warm_up=0.5),
        objectives.IWAE(3),
        objectives.DReG(3),
        objectives.StickingTheLanding(2),
        objectives.Renyi(0.5, 3),
        objectives.ForwardKL(3),
        objectives.MaximumLikelihood(),
    ],
    ids=lambda o: type(o).__name__,
)
def test_fit_trains_under_every_objective(conditional, objective):
    context = torch.randn(60, C)
    x = conditional(context).sample()
    trained = copy.deepcopy(conditional)
    before = copy.deepcopy(trained.state_dict())
    history = pg.fit(
        trained, x, context=context, objective=objective, steps=12, seed=0, lr=1e-2, progress=False
    )
    assert len(history.losses) == 12
    parts = {n.split(".")[0] for n, v in trained.state_dict().items() if not v.equal(before[n])}
    assert {"likelihood", "posterior"} <= parts


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        Trace_ELBO(num_particles=3, vectorize_particles=True),
        TraceMeanField_ELBO(),
        RenyiELBO(alpha=0.5, num_particles=3),
        objectives.ELBO(samples=2).elbo(),
        objectives.IWAE(3).elbo(vectorize_particles=True),
        objectives.DReG(3).elbo(vectorize_particles=True),
        objectives.StickingTheLanding().elbo(),
        objectives.ForwardKL(3).elbo(),
    ],
    ids=lambda e: f"{type(e).__name__}-{type(getattr(e, 'objective', None)).__name__}",
)
def test_plain_svi_trains_under_every_objective(model, elbo):
    x = model().sample((40,))
    before = copy.deepcopy(model.state_dict())
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
    losses = [svi.step(x[:20], size=40) for _ in range(4)]
    assert all(torch.tensor(v).isfinite() for v in losses)
    parts = {n.split(".")[0] for n, v in model.state_dict().items() if not v.equal(before[n])}
    assert {"likelihood", "posterior"} <= parts
    other = copy.deepcopy(model)
    SVI(other.model, other.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
    assert {id(p) for p in Trace_ELBO()(other.model, other.guide).parameters()} == {
        id(p) for p in other.parameters()
    }


def test_svi_and_fit_have_one_objective(model, float64):
    """The loss of a mini-batch, scaled to the data set, is that of the objective."""
    model.double()
    x = model().sample((6,))
    total = {
        "ours": lambda: 2 * objectives.ELBO(samples=2)(model, x).sum(),
        "traces": lambda: (
            objectives.ELBO(samples=2)
            .elbo()
            .differentiable_loss(model.model, model.guide, x, size=12)
        ),
        "pyro": lambda: Trace_ELBO().differentiable_loss(model.model, model.guide, x, size=12),
    }
    means, errors = {}, {}
    for kind, loss in total.items():
        torch.manual_seed(0)
        values = torch.stack([loss().detach() for _ in range(100)])
        means[kind], errors[kind] = values.mean(), values.std() / 10
    for kind in ("traces", "pyro"):
        gap = (means[kind] - means["ours"]).abs()
        assert gap < 5 * (errors[kind] + errors["ours"]) + 1e-9


def test_sites_in_a_model(conditional):
    context = torch.randn(4, C)

    def user(y=None):
        with pyro.plate("cases", 4):
            x = pg.sample("image", conditional.freeze(), context)
            return pyro.sample("y", dist.Normal(x.to(torch.float32).sum(-1), 1.0), obs=y)

    trace = poutine.trace(user).get_trace(torch.zeros(4))
    assert trace.nodes["image_z"]["value"].shape == (4, 2)
    assert trace.nodes["image"]["infer"]["learned"] == "frozen"
    assert trace.log_prob_sum().isfinite()
    draws = Predictive(user, num_samples=3)()
    assert draws["image"].shape == (3, 4, D)
    generated = poutine.trace(conditional.model).get_trace(context=context, prefix="a.")
    assert generated.nodes["a.x"]["value"].shape == (4, D)
    assert generated.nodes["a.z"]["value"].shape == (4, 2)


def test_copies_pickles_and_checkpoints(name, conditional, tmp_path):
    context = torch.randn(20, C)
    x = conditional(context).sample()
    conditional.initialize(x, context)
    conditional.save(tmp_path)

    def density(module):
        torch.manual_seed(3)
        return module(context).log_prob(x)

    expected = density(conditional)
    for again in (
        pg.load(tmp_path),
        copy.deepcopy(conditional),
        pickle.loads(pickle.dumps(conditional)),
    ):
        assert torch.equal(density(again), expected)


def test_runs_without_reading_a_value(conditional, unchecked):
    conditional.to("meta")
    context = torch.randn(5, C, device="meta")
    x = conditional(context).sample((2,))
    assert x.device.type == "meta"
    assert conditional(context).log_prob(x).shape == (2, 5)
    assert objectives.ELBO()(conditional, x[0], context).shape == (5,)


def test_float64_follows_float64(conditional):
    conditional.double()
    context = torch.randn(5, C, dtype=torch.float64)
    x = conditional(context).sample()
    assert conditional(context).log_prob(x).dtype == torch.float64


def test_the_same_seed_gives_the_same_draws(model):
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(model().sample((5,)))
    assert torch.equal(*draws)


def test_scales_of_data_and_contexts_do_not_matter():
    torch.manual_seed(0)
    context = torch.randn(300, 1)
    x = torch.cat([context, -context], 1) + 0.1 * torch.randn(300, 2)
    losses = []
    for factor in (1.0, 1e4):
        torch.manual_seed(1)
        module = pg.models.ConditionalVAE(2, 1, 1, (16,), "normal")
        history = pg.fit(
            module,
            factor * x + 3 * factor,
            context=factor * context - 7 * factor,
            steps=30,
            seed=0,
            progress=False,
        )
        losses.append(torch.tensor(history.losses) - 2 * torch.tensor(factor).log())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-2, atol=1e-2)
