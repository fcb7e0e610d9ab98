"""Hierarchies of latents: their densities, merges, divergences, training and parts."""

import copy
import math
import pickle
from contextlib import suppress

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import probgen as pg
from probgen.distributions import (
    Bernoulli,
    DiagonalNormal,
    DiscretizedLogistic,
    Hierarchy,
    LatentLayer,
    PrecisionWeightedUpdate,
    ResidualUpdate,
)
from probgen.models import HierarchicalVAE, LadderVAE
from probgen.networks import InvertedResidual, Pixels
from probgen.networks.spectral import spectral_norm
from probgen.objectives import ELBO, IWAE, DReG, ForwardKL, SpectralRegularized, StickingTheLanding
from tests.rosters import moved

MODELS = {
    "ladder": lambda **o: LadderVAE(6, (4, 3, 2), (8, 8, 8), **o),
    "one rung": lambda **o: LadderVAE(6, (2,), (8,), **o),
    "ladder, normal": lambda **o: LadderVAE(6, (3, 2), (8, 8), "normal", **o),
    "images": lambda **o: HierarchicalVAE((1, 8, 8), 2, 4, (2, 1), **o),
    "images, student": lambda **o: HierarchicalVAE((2, 4, 4), 2, 3, (1, 1), "student", **o),
}


@pytest.fixture(params=MODELS)
def model(request):
    return moved(MODELS[request.param]())


def test_shapes_and_support(model):
    depth = len(model.rungs)
    for batch in ((), (5,), (3, 2)):
        x = model().sample(batch)
        assert x.shape == batch + model.event_shape
        assert model.support.check(x).all()
        assert model().log_prob(x).shape == batch
        latents = model.encode(x)
        assert [z.shape for z in latents] == [batch + s for s in model.latent_shapes]
        assert model.decode(latents).batch_shape == batch
        assert model.reconstruct(x).shape == x.shape
        w = model.weigh(x, None, 7, analytic=True)
        assert w.log_weights.shape == (7, *batch)
        assert w.divergence.shape == (*batch, depth)
        assert (w.divergence > 0).all()
        assert [z.shape for z in w.latents] == [(7, *batch, *s) for s in model.latent_shapes]
    assert model.log_marginal(x, samples=20).value.shape == batch
    assert model().density is pg.Density.BOUND
    assert model().expand((4,)).sample().shape == (4, *model.event_shape)


def test_densities_are_those_of_the_pyro_pair(float64, model):
    model.double()
    x = model().sample((5,))
    torch.manual_seed(1)
    guide = poutine.trace(model.guide).get_trace(x)
    trace = poutine.trace(poutine.replay(model.model, guide)).get_trace(x)
    names = [f"z_{i}" for i in range(len(model.rungs), 0, -1)]
    for t in (guide, trace):
        t.compute_log_prob()
        assert [n for n in t.nodes if n.startswith("z_")] == names
    torch.manual_seed(1)
    w = model.weigh(x)
    for z, name in zip(w.latents[::-1], names):
        torch.testing.assert_close(z[0], guide.nodes[name]["value"], rtol=0, atol=1e-12)
    prior = sum(trace.nodes[n]["log_prob"] for n in names)
    posterior = sum(guide.nodes[n]["log_prob"] for n in names)
    tight = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(w.log_prior[0], prior, **tight)
    torch.testing.assert_close(w.log_posterior[0], posterior, **tight)
    torch.testing.assert_close(w.log_likelihood[0], trace.nodes["x"]["log_prob"], **tight)


def test_the_precision_weighted_merge_is_the_product_of_two_normal_laws(float64):
    (mu, a), (log_sigma, b) = torch.randn(2, 50), 2 * torch.randn(2, 50)
    mean, log_scale = PrecisionWeightedUpdate()((mu, log_sigma), (a, b))
    z = torch.randn(30, 1)
    product = dist.Normal(mu, log_sigma.exp()).log_prob(z) + dist.Normal(a, b.exp()).log_prob(z)
    merged = dist.Normal(mean, log_scale.exp()).log_prob(z)
    gap = product - merged
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), rtol=1e-9, atol=1e-9)
    extreme = PrecisionWeightedUpdate()(
        (mu, torch.full_like(a, 7.0)), (a, torch.full_like(a, -7.0))
    )
    torch.testing.assert_close(extreme[0], a, rtol=1e-9, atol=1e-9)


def test_residual_posteriors_without_evidence_cost_nothing():
    model = moved(HierarchicalVAE((1, 8, 8), 2, 4, (2, 1)), 0.5)
    for rung in model.rungs:
        nn.init.zeros_(rung.posterior_head.weight)
        nn.init.zeros_(rung.posterior_head.bias)
    x = model().sample((5,))
    w = model.weigh(x, None, 3, analytic=True)
    assert (w.divergence == 0).all()
    assert torch.equal(w.log_prior, w.log_posterior)


@pytest.mark.parametrize("name", ["ladder", "images"])
def test_divergences_are_those_of_draws(float64, name):
    model = moved(MODELS[name]().double(), 0.2)
    x, count = model().sample((2,)), 1000
    ratios = {}

    def choose(i, p, q):
        z = q.sample()
        ratios[i] = q.log_prob(z) - p.log_prob(z)
        return z

    with torch.no_grad():
        model.walk(model.bottom_up(x.expand(count, *x.shape)), choose)
        found = [model.weigh(x, None, 100, analytic=True).divergence for _ in range(10)]
    found = torch.stack(found)
    for i in range(len(model.rungs)):
        variance = ratios[i].var(0) / count + found[..., i].var(0) / len(found)
        gap = ratios[i].mean(0) - found[..., i].mean(0)
        assert (gap.abs() < 4 * variance.sqrt()).all()


class LinearRung(LatentLayer):
    """One layer whose evidence is the exact likelihood of linear Gaussian data."""

    def __init__(self, loadings, noise):
        super().__init__()
        self.shape = (loadings.shape[1],)
        self.register_buffer("loadings", loadings)
        self.noise = noise

    def bottom_up(self, d):
        return d @ self.loadings / self.loadings.square().sum(0)

    def prior(self, h):
        raise NotImplementedError

    def statistics(self, h, d):
        scale = math.sqrt(self.noise) / self.loadings.square().sum(0).sqrt()
        limit = 5.0
        log_scale = limit * torch.atanh(scale.log() / limit)
        return torch.cat([d, log_scale.expand_as(d)], -1)

    def top_down(self, h, z):
        return z


def linear_model(loadings, noise):
    decoder = nn.Linear(loadings.shape[1], len(loadings), bias=False)
    decoder.weight.data = loadings
    head = DiagonalNormal(len(loadings), loadings.shape[1], network=decoder, scale=math.sqrt(noise))
    return Hierarchy([LinearRung(loadings, noise)], head, PrecisionWeightedUpdate())


def test_the_bound_at_the_exact_posterior_is_the_likelihood(float64):
    loadings = torch.linalg.qr(torch.randn(6, 2))[0] * torch.tensor([2.0, 0.7])
    model = linear_model(loadings, 0.25)
    law = dist.MultivariateNormal(torch.zeros(6), loadings @ loadings.T + 0.25 * torch.eye(6))
    x = law.sample((50,))
    torch.testing.assert_close(model().log_prob(x), law.log_prob(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        model.log_marginal(x, samples=3).value, law.log_prob(x), rtol=0, atol=1e-6
    )


def gradients(model, loss):
    model.zero_grad()
    loss().mean().backward()
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
            for p in model.parameters()
        ]
    )


@pytest.mark.parametrize("name", ["ladder", "images"])
def test_sticking_the_landing_has_the_gradient_of_the_bound(float64, name):
    model = moved(MODELS[name]().double(), 0.3)
    x = model().sample((3,))
    wide = 4 if name == "images" else 30
    differences = []
    for seed in range(40):
        pair = []
        for objective in (ELBO(samples=wide), StickingTheLanding(samples=wide)):
            torch.manual_seed(seed)
            pair.append(gradients(model, lambda o=objective: o(model, x)))
        differences.append(pair[0] - pair[1])
    gap = torch.stack(differences)
    se = gap.std(0) / math.sqrt(len(gap)) + 1e-12
    assert gap.std(0).max() > 1e-6  # they are different estimates
    assert (gap.mean(0).abs() / se).max() < 6


def test_sticking_the_landing_has_no_variance_at_the_exact_posterior(float64):
    model = linear_model(torch.linalg.qr(torch.randn(6, 2))[0], 0.25)
    model.rungs[0].loadings = nn.Parameter(model.rungs[0].loadings)
    x = model().sample((5,))
    loss = StickingTheLanding()
    first, second = (gradients(model.rungs[0], lambda: loss(model, x)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-9)


def test_held_draws_carry_no_gradient(model):
    x = model().sample((5,))
    w = model.weigh(x, None, 3, held=True, analytic=True)
    assert w.divergence is None
    assert not any(z.requires_grad for z in w.latents)
    assert w.log_posterior.requires_grad
    assert ForwardKL(samples=3)(model, x).isfinite().all()


def test_objectives(model):
    x = model().sample((5,))
    for objective in (ELBO(), ELBO(free_bits=0.1), IWAE(3), StickingTheLanding()):
        assert objective(model, x).shape == (5,)
    if len(model.rungs) > 1:
        with pytest.raises(ValueError, match="one latent for DReG"):
            DReG(3)(model, x)
    floor = ELBO(free_bits=100.0)(model, x) + model.weigh(x).log_likelihood[0].detach()
    assert (floor > 100 * len(model.rungs) - 30).all()


@pytest.mark.parametrize("name", ["ladder", "images"])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_the_pyro_pair_agrees_with_the_objective(float64, name, elbo):
    model = moved(MODELS[name]().double(), 0.1)
    x = model().sample((4,))
    with torch.no_grad():
        ours = torch.stack([ELBO()(model, x).sum() for _ in range(60)])
        pyros = torch.tensor([elbo().loss(model.model, model.guide, x) for _ in range(60)])
        half = elbo().loss(model.model, model.guide, x, size=8)
    se = math.sqrt((ours.var() + pyros.var()) / 60)
    assert abs(ours.mean() - pyros.mean()) < 4 * se
    assert abs(half / 2 - ours.mean()) < 8 * (ours.std() + pyros.std())
    many = elbo(num_particles=6, vectorize_particles=True, max_plate_nesting=1)
    assert abs(many.loss(model.model, model.guide, x) - ours.mean()) < 8 * pyros.std()


def digits(images):
    x = (pg.datasets.digits().images[:300] > 8).float()
    return x.reshape(-1, 1, 8, 8) if images else x.flatten(1)


TRAINED = {
    "ladder": lambda: LadderVAE(64, (8, 4), (32, 16)),
    "images": lambda: HierarchicalVAE((1, 8, 8), 2, 6, (1, 1)),
}


@pytest.mark.parametrize(("name", "steps", "fall"), [("ladder", 200, 4.0), ("images", 120, 1.0)])
def test_fit_trains(name, steps, fall):
    model, x = TRAINED[name](), digits(name == "images")
    loss = ELBO(warm_up=0.5, free_bits=0.1)
    if name == "images":
        loss = SpectralRegularized(loss, 0.01)
    model.initialize(x)  # from here on only what the networks learn counts
    apart = Bernoulli(64)
    apart.initialize(x.flatten(1))
    with torch.no_grad():
        before = ELBO(samples=10)(model, x).mean()
        without = -apart().log_prob(x.flatten(1)).mean()  # of pixels that know nothing of others
    options = {"steps": steps, "batch_size": 50, "lr": 1e-2, "seed": 0, "progress": False}
    pg.fit(model, x, objective=loss, **options)
    with torch.no_grad():
        after = ELBO(samples=10)(model, x).mean()
    assert after < torch.minimum(before, without) - fall


def test_ladders_start_standardised_and_once():
    model, x = LadderVAE(64, (8, 4), (32, 16)), digits(False)
    model.initialize(x)
    h = None
    for i, d in ((1, model.bottom_up(x)[1]), (0, model.bottom_up(x)[0])):
        p, q = model.laws(i, h, d)
        a = model.rungs[i].statistics(h, d)[:, : model.latent_shapes[i][0]]
        checks = [(a, 1e-4)] if h is None else [(a, 1e-4), (p.mean, 0.4)]  # other draws of h
        for mean, slack in checks:
            zero = torch.zeros_like(mean[0])
            torch.testing.assert_close(mean.mean(0), zero, rtol=0, atol=slack)
            torch.testing.assert_close(mean.std(0, correction=0), zero + 1, rtol=0, atol=slack)
        h = q.sample()
    state = {n: t.clone() for n, t in model.rungs.state_dict().items()}
    pg.core.initialize_part(model, x[:100] + 1)
    assert all(torch.equal(t, state[n]) for n, t in model.rungs.state_dict().items())


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_svi_trains(name, elbo):
    model, x = TRAINED[name](), digits(name == "images")[:50]
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), elbo())
    losses = [svi.step(x, size=300) / 300 for _ in range(25)]
    assert sum(losses[-5:]) / 5 < losses[0] - 10


def test_sites_in_another_model(model):
    frozen = copy.deepcopy(model).freeze()

    def twice(y=None):
        x = pg.sample("a", frozen)
        with pyro.plate("n", 3):
            pg.sample("b", model, obs=y)
        return x

    trace = poutine.trace(twice).get_trace(model().sample((3,)))
    assert trace.nodes["a_z_1"]["infer"]["learned"] == "frozen"
    assert trace.nodes["b_z_1"]["infer"]["learned"] == "trained"
    assert trace.nodes["b"]["is_observed"]
    assert trace.log_prob_sum().isfinite()


@pytest.mark.parametrize("name", ["ladder", "images"])
def test_checkpointing_changes_no_gradient(float64, name):
    model = moved(MODELS[name]().double(), 0.3)
    x = model().sample((4,))
    for objective in (ELBO(), IWAE(3), StickingTheLanding(2)):
        found = []
        for model.checkpoint in (False, True):
            torch.manual_seed(0)
            found.append(gradients(model, lambda o=objective: o(model, x)))
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)


def test_spectral_norms_are_the_largest_singular_values(float64):
    for shape in ((5, 40), (40, 5), (3, 7, 7), (6, 25)):
        weight = torch.randn(shape, requires_grad=True)
        exact = torch.linalg.matrix_norm(weight, 2)
        found = spectral_norm(weight, 12)
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=0)
        for a, b in zip(
            torch.autograd.grad(found.sum(), weight), torch.autograd.grad(exact.sum(), weight)
        ):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    few = spectral_norm(torch.randn(20, 30, 30), 0)
    assert (few > 0).all()
    zero = torch.zeros(4, 3, requires_grad=True)
    spectral_norm(zero).backward()
    assert (zero.grad == 0).all()


def test_the_spectral_penalty_is_added_to_each_loss(float64):
    model = moved(HierarchicalVAE((1, 8, 8), 2, 4, (1, 1)).double())
    x = model().sample((3,))
    loss = SpectralRegularized(ELBO(warm_up=0.5), weight=0.3, squarings=10)
    exact = sum(
        torch.linalg.matrix_norm(m.weight.flatten(1), 2)
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    )
    torch.testing.assert_close(loss.penalty(model), exact, rtol=1e-4, atol=0)
    torch.manual_seed(0)
    whole = loss(model, x)
    torch.manual_seed(0)
    torch.testing.assert_close(whole, ELBO()(model, x) + 0.3 * loss.penalty(model))
    assert loss.at(0.25).objective.beta == 0.5
    with pytest.raises(ValueError, match="with convolutions"):
        SpectralRegularized(ELBO())(LadderVAE(4, (2,), (4,)), torch.ones(3, 4))
    with pytest.raises(ValueError, match="`weight`"):
        SpectralRegularized(ELBO(), -1.0)
    with pytest.raises(TypeError, match="`objective`"):
        SpectralRegularized(0.5)


def test_spectral_training_resumes_bit_by_bit(tmp_path, monkeypatch):
    x, loss = digits(True)[:60], SpectralRegularized(ELBO(warm_up=0.5, free_bits=0.05), 0.1)
    options = {"objective": loss, "batch_size": 20, "seed": 3, "steps": 12, "progress": False}
    calls, whole = [], SpectralRegularized.losses

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return whole(*arguments)

    ended = []
    for folder, cut in (("a", False), ("b", True)):
        for stop in (True, False) if cut else (False,):
            torch.manual_seed(0)
            model = HierarchicalVAE((1, 8, 8), 2, 4, (1, 1), checkpoint=True)
            with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
                if stop:
                    patched.setattr(SpectralRegularized, "losses", stopping)
                pg.fit(model, x, checkpoint=tmp_path / folder, **options)
        ended.append(model.state_dict())
    assert len(calls) == 6
    assert all(torch.equal(a, b) for a, b in zip(ended[0].values(), ended[1].values()))


def weighed(model, x):
    torch.manual_seed(5)
    w = model.weigh(x, None, 3, analytic=True)
    return torch.cat([w.log_weights.flatten(), w.divergence.flatten()])


def test_copies_are_bit_identical(model, tmp_path):
    x = model().sample((4,))
    model.initialize(x)
    model.save(tmp_path)
    again = pg.load(tmp_path)
    for other in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(weighed(other, x), weighed(model, x))
        assert other.name != model.name


def test_a_hierarchy_of_parts_is_saved(tmp_path):
    ladder = LadderVAE(6, (3,), (8,))
    body = InvertedResidual(3, expansion=2, kernel=3)
    assert body(torch.ones(2, 3, 5, 5)).shape == (2, 3, 5, 5)
    head = DiscretizedLogistic(
        (1, 8, 8), levels=17, components=2, context=256, network=Pixels((4, 8, 8), 6)
    )
    model = moved(HierarchicalVAE((1, 8, 8), 2, 4, (1, 1), head))
    x = model().sample((3,))
    assert x.max() <= 16
    model.save(tmp_path)
    assert torch.equal(weighed(pg.load(tmp_path), x), weighed(model, x))
    assert ladder.merge(*[(torch.zeros(1),) * 2] * 2)[0] == 0


def test_float64(model):
    x = model().sample((4,)).double()
    model.double()
    assert weighed(model, x).dtype == model().sample().dtype == torch.float64
    assert all(z.dtype == torch.float64 for z in model.encode(x.float()))


@pytest.mark.parametrize("name", MODELS)
def test_meta(name, unchecked):
    model = MODELS[name]().to("meta")
    x = torch.empty(4, *model.event_shape, device="meta")
    loss = (
        ELBO()(model, x).mean() + IWAE(2)(model, x).mean() + StickingTheLanding()(model, x).mean()
    )
    if name.startswith("images"):
        loss = loss + SpectralRegularized(ELBO())(model, x).mean()
    loss.backward()
    assert all(p.grad.device.type == "meta" for p in model.parameters())
    assert model().sample((3,)).device.type == model.reconstruct(x).device.type == "meta"


def test_no_output_gives_an_infinite_density():
    for model in (LadderVAE(4, (3, 2), (8, 8)), HierarchicalVAE((1, 4, 4), 1, 2, (1, 1))):
        for scale in (1e3, -1e3):
            with torch.no_grad():
                for rung in model.rungs:
                    for part in (rung.posterior_head, rung.prior_head):
                        for p in part.parameters() if part is not None else ():
                            if p.ndim == 1:
                                p[len(p) // 2 :] = scale
            x = model().sample((3,))
            w = model.weigh(x, None, 2, analytic=True)
            assert w.log_weights.isfinite().all()
            assert w.divergence.isfinite().all()


def test_bad_input():
    ladder = LadderVAE(6, (3, 2), (8, 8))
    images = HierarchicalVAE((1, 8, 8), 2, 4, (1,))
    cases = {
        r"`hidden_features` as `latents`.*\(8,\) for \(3, 2\)": lambda: LadderVAE(6, (3, 2), (8,)),
        r"`latents\[1\]` to be a whole number >= 1, got 0": lambda: LadderVAE(6, (3, 0), (8, 8)),
        "`features`": lambda: LadderVAE(0, (3,), (8,)),
        "`likelihood` among": lambda: LadderVAE(6, (3,), (8,), "gauss"),
        "context=3.*got context=5": lambda: LadderVAE(6, (3,), (8,), Bernoulli(6, context=5)),
        "activation among": lambda: LadderVAE(6, (3,), (8,), activation="no"),
        r"divisible by 8.*\(1, 28, 28\)": lambda: HierarchicalVAE((1, 28, 28), layers=(1, 1, 1)),
        r"form \(channels, H, W\)": lambda: HierarchicalVAE((8, 8), layers=(1,)),
        r"`layers\[0\]`": lambda: HierarchicalVAE((1, 8, 8), layers=(0,)),
        "`latent`": lambda: HierarchicalVAE((1, 8, 8), 0, layers=(1,)),
        "an odd `kernel`, got 4": lambda: InvertedResidual(4, kernel=4),
        r"form \(C, H, W\), got \(4, 8\)": lambda: Pixels((4, 8), 1),
        "`depth`": lambda: Hierarchy([], Bernoulli(6, context=3), ResidualUpdate()),
        r"shape \(\*, 6\), got \(4, 5\)": lambda: ladder.weigh(torch.ones(4, 5)),
        r"shape \(\*, 1, 8, 8\), got \(4, 64\)": lambda: images().log_prob(torch.ones(4, 64)),
        "no context": lambda: ladder.weigh(torch.ones(4, 6), torch.ones(4, 1)),
        "`latents` of 2 layers, got 1": lambda: ladder.decode([torch.ones(3)]),
        r"shape \(\*, 2\), got \(3,\)": lambda: ladder.decode([torch.ones(3), torch.ones(3)]),
        "in the support": lambda: ladder().log_prob(torch.full((6,), 0.5)),
        "Expected data": lambda: ladder.guide(),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()
    head = Bernoulli(6, context=3)
    for message, parts in {
        r"LatentLayer as `rungs\[0\]`, got a Linear": ([nn.Linear(6, 3)], head, ResidualUpdate()),
        "LazyDistribution as `likelihood`": ([ladder.rungs[0]], nn.Linear(3, 6), ResidualUpdate()),
        "PosteriorUpdate as `merge`, got a str": ([ladder.rungs[0]], head, "residual"),
    }.items():
        with pytest.raises(TypeError, match=message):
            Hierarchy(*parts)
    wrong = copy.deepcopy(LadderVAE(6, (2,), (8,)).rungs[0])
    wrong.shape = (5,)
    message = r"`statistics` of `rungs\[0\]`, .*\(B, 10\), got \(1, 4\)"
    with pytest.raises(ValueError, match=message):
        Hierarchy([wrong], head, ResidualUpdate())
