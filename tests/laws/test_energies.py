"""The laws of energy-based models."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import probgen as pg
from probgen import objectives
from probgen.distributions.supports import is_real
from tests.rosters import ENERGIES, C, moved


@pytest.fixture(params=ENERGIES)
def name(request):
    return request.param


@pytest.fixture
def module(name):
    return moved(ENERGIES[name](0))


def binary(module):
    return hasattr(module, "flip_gains") and getattr(module, "units", "binary") != "gaussian"


def is_discrete(module):
    return module.support.is_discrete


def bounded(module):
    return not is_discrete(module) and not is_real(module.support)


def test_shapes_and_support(module):
    d = module()
    assert isinstance(d, TorchDistributionMixin)
    assert (d.batch_shape, d.event_shape) == ((), module.event_shape)
    assert d.density is module.density
    x = d.sample((7,))
    assert x.shape == (7, *d.event_shape)
    assert d.support.check(x).all()
    assert d.log_prob(x).shape == (7,)
    assert d.log_prob(x).isfinite().all()
    wide = d.expand((3, 2))
    assert wide.sample((5,)).shape == (5, 3, 2, *d.event_shape)
    assert wide.log_prob(x[0]).shape == (3, 2)
    assert wide.to_event(1).batch_shape == (3,)
    assert d.sample().shape == d.event_shape


def test_ratios_energies_and_scores(module, float64):
    module.double()
    d = module()
    x, y = d.sample((5,)), d.sample((5,))
    gap = d.log_prob(x) - d.log_prob(y)
    torch.testing.assert_close(d.log_ratio(x, y), gap)
    torch.testing.assert_close(d.energy(y) - d.energy(x), gap)
    torch.testing.assert_close(-d.unnormalized_log_prob(x), d.energy(x))
    if not is_discrete(module):
        z = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(d.log_prob(z).sum(), z)
        torch.testing.assert_close(d.score(x), slope)


def test_flips_are_those_of_the_density(module, float64):
    if not binary(module) or "categorical" in repr(getattr(module, "units", "")):
        return
    module.double()
    x = module().sample((5,))
    flat = x.flatten(1)
    lower = module.lower
    expected = []
    for i in range(flat.shape[1]):
        other = flat.clone()
        other[:, i] = 1 + lower - other[:, i]
        expected.append(module.log_density(other.reshape(x.shape)) - module.log_density(x))
    torch.testing.assert_close(module.flip_gains(x).flatten(1), torch.stack(expected, 1))


def changed(module, before):
    return {n for n, p in module.named_parameters() if not p.equal(before[n])}


def objectives_of(module):
    found = [
        objectives.ContrastiveDivergence(),
        objectives.ContrastiveDivergence(steps=2, persistent=True, chains=9, renewal=0.2),
        objectives.ContrastiveDivergence(persistent=True, betas=(0.3, 0.7, 1.0)),
        objectives.ContrastiveDivergence(regularization=0.1),
    ]
    if is_discrete(module):
        if "categorical" not in repr(getattr(module, "units", "")):
            found += [objectives.PseudoLikelihood(), objectives.RatioMatching()]
    else:
        found.append(objectives.NoiseContrastive(ratio=2))
    if is_real(module.support):
        found += [
            objectives.ImplicitScoreMatching(),
            objectives.SlicedScoreMatching(2),
            objectives.DenoisingScoreMatching(0.1),
        ]
    if module.density is pg.Density.EXACT:
        found.append(objectives.MaximumLikelihood())
    return found


def test_fit_trains_under_every_objective(module):
    x = module().sample((40,))
    for objective in objectives_of(module):
        trained = copy.deepcopy(module)
        before = copy.deepcopy(dict(trained.named_parameters()))
        history = pg.fit(
            trained,
            x,
            objective=objective,
            steps=6,
            batch_size=20,
            seed=0,
            lr=1e-2,
            progress=False,
            validation=None if bounded(module) else 0.2,
        )
        assert len(history.losses) == 6, objective
        assert changed(trained, before), objective
        count = (
            {True: 9 if objective.chains else 20, False: 0}[
                bool(getattr(objective, "persistent", False))
            ]
            if isinstance(objective, objectives.ContrastiveDivergence)
            else 0
        )
        assert len(trained.chains) == count


def test_fit_trains_its_default_and_goes_on(module, tmp_path):
    x = module().sample((40,))
    objective = objectives.ContrastiveDivergence(persistent=True)
    runs = []
    for stops in ((6,), (3, 6)):
        again = copy.deepcopy(module)
        folder = tmp_path / str(len(stops))
        for steps in stops:
            pg.fit(
                again,
                x,
                objective=objective,
                steps=steps,
                batch_size=10,
                seed=0,
                progress=False,
                checkpoint=folder,
            )
            again = copy.deepcopy(module) if steps < stops[-1] else again
        runs.append(again.state_dict())
    for n in runs[0]:
        assert torch.equal(runs[0][n], runs[1][n]), n


def test_svi_trains_a_density_and_refuses_an_energy(module):
    x = module().sample((20,))
    before = copy.deepcopy(dict(module.named_parameters()))
    svi = SVI(module.model, module.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    if module.density is pg.Density.EXACT:
        svi.step(x[:10], size=20)
        assert changed(module, before) == set(before)
        return
    with pytest.raises(RuntimeError, match="contrastive divergence"):
        svi.step(x)
    with pytest.raises(RuntimeError, match="contrastive divergence"):
        pg.fit(module, x, objective=objectives.MaximumLikelihood(), steps=1, progress=False)

    def latent(y):
        z = pg.sample("x", module)
        pyro.sample("y", dist.Normal(z.flatten()[0], 1.0), obs=y)

    if not is_discrete(module):
        guide = AutoNormal(latent)
        with pytest.raises(RuntimeError, match="contrastive divergence"):
            SVI(latent, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(torch.ones(()))


def test_as_a_prior(module):
    module.freeze()

    def model(y):
        with pyro.plate("cases", 2):
            x = pg.sample("x", module)
            return pyro.sample("y", dist.Normal(x.flatten(1)[:, 0].float(), 1.0), obs=y)

    y = torch.ones(2)
    trace = poutine.trace(model).get_trace(y)
    assert trace.nodes["x"]["infer"]["learned"] == "frozen"
    assert trace.log_prob_sum().isfinite()
    assert Predictive(model, num_samples=3)(None)["x"].shape == (3, 2, *module.event_shape)
    if is_discrete(module):
        with pytest.raises(ValueError, match="discrete"):
            pg.mcmc.run(model, y, chains=4, warmup=2, draws=2)
        return
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    assert torch.tensor(svi.step(y)).isfinite()
    mcmc = MCMC(NUTS(model, max_tree_depth=2), num_samples=2, warmup_steps=2, disable_progbar=True)
    mcmc.run(y)
    assert mcmc.get_samples()["x"].shape == (2, 2, *module.event_shape)


def test_an_energy_unfrozen_is_a_prior_of_chains(name):
    module = ENERGIES[name](0)
    if is_discrete(module):
        return

    def model(y):
        x = pg.sample("x", module)
        pyro.sample("y", dist.Normal(x.flatten()[0], 1.0), obs=y)

    draws = pg.mcmc.run(
        model,
        torch.ones(()),
        kernel=pg.mcmc.HMC(0.1, 2),
        chains=4,
        warmup=5,
        draws=5,
        progress=False,
    )
    assert draws.samples["x"].isfinite().all()


def test_copies_pickles_and_checkpoints(module, tmp_path):
    x = module().sample((10,))
    pg.fit(
        module,
        x,
        objective=objectives.ContrastiveDivergence(persistent=True),
        steps=3,
        progress=False,
    )
    if module.density is pg.Density.UNNORMALIZED:
        module.keep(1.5, 0.1)
    expected = module().log_prob(x)
    module.save(tmp_path)
    for again in (pg.load(tmp_path), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(again().log_prob(x), expected)
        assert torch.equal(again.chains, module.chains)
        assert torch.equal(again.log_z, module.log_z)
        assert torch.equal(again.step_size, module.step_size)


def test_runs_without_reading_a_value(module, unchecked):
    module.to("meta")
    x = module().sample((2,))
    assert x.device.type == "meta"
    assert module().log_prob(x).shape == (2,)
    assert objectives.ContrastiveDivergence()(module, x).shape == (2,)


def test_float64_follows_float64(module):
    module.double()
    x = module().sample((3,))
    assert module().log_prob(x).dtype == torch.float64
    assert x.dtype == (torch.int64 if "Integer" in repr(module.support) else torch.float64)


def test_the_same_seed_gives_the_same_draws(module):
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(module().sample((5,)))
    assert torch.equal(*draws)


CONDITIONAL = ["bounded", "network", "network, image", "tilted flow"]


@pytest.mark.parametrize("name", CONDITIONAL)
def test_contexts(name):
    module = moved(ENERGIES[name](C))
    context = torch.randn(5, 2, C)
    d = module(context)
    assert d.batch_shape == (5, 2)
    x = d.sample((3,))
    assert x.shape == (3, 5, 2, *d.event_shape)
    assert d.log_prob(x).shape == (3, 5, 2)
    torch.testing.assert_close(module(context[1, 1]).log_prob(x[0, 1, 1]), d.log_prob(x)[0, 1, 1])
    c, y = context[:, 0], x[0, :, 0]
    sliced = () if bounded(module) else (objectives.SlicedScoreMatching(),)
    for objective in (
        objectives.ContrastiveDivergence(),
        objectives.NoiseContrastive(),
        *sliced,
    ):
        assert pg.fit(module, y, context=c, objective=objective, steps=2, progress=False).losses
    with pytest.raises(ValueError, match="without context for persistent chains"):
        objectives.ContrastiveDivergence(persistent=True)(module, y, c)
    with pytest.raises(ValueError, match="without context, got one of 3 features"):
        module.estimate()
    wide, one = module(c), module(c[0])
    torch.testing.assert_close(wide.score(y[0]), module.score(y[:1].expand_as(y), c))
    torch.testing.assert_close(one.score(y), module.score(y, c[:1].expand_as(c)))
    module.freeze()
    with pytest.raises(RuntimeError, match="its gradient in the context"):
        module(c.requires_grad_()).log_prob(y).sum().backward()
