"""Objectives: what they require of a module, wrappers of modules, and players."""

import copy
import itertools

import pytest
import torch
from torch import nn

import probgen as pg
from probgen.core import contracts
from probgen.objectives.base import Function, as_objective

from . import rosters

QUICK = {"progress": False, "seed": 0}
CONTRACTS = [
    getattr(contracts, name)
    for name in contracts.__all__
    if name not in ("Contract", "MadeBy", "HasDensity")
]
ROSTER = {
    **{f"flow {n}": (lambda c, m=m: m(3, c)) for n, m in rosters.FLOWS.items()},
    **{f"latent {n}": m for n, m in rosters.LATENTS.items()},
    **{f"energy {n}": m for n, m in rosters.ENERGIES.items()},
    **{f"diffusion {n}": m for n, m in rosters.DIFFUSIONS.items()},
    "vq": lambda c: pg.models.VQVAE((1, 4, 4), codes=4, code_features=2, channels=(4,)),
    "belief": lambda c: pg.models.DeepBeliefNetwork([4, 3, 2]),
    "semi": lambda c: pg.models.SemiSupervisedVAE(4, 3, 2, (8,)),
    "ladder": lambda c: pg.models.LadderVAE(4, (2, 2), (8, 8)),
}


class Wrapped(pg.LazyDistribution):
    """A model of contexts that a network embeds."""

    def __init__(self, distribution, context):
        super().__init__()
        self.distribution, self.context = distribution, context
        self.network = nn.Linear(context, distribution.context)

    @property
    def density(self):
        return self.distribution.density

    @property
    def objective(self):
        return self.distribution.objective

    @property
    def event_shape(self):
        return tuple(self.distribution(torch.zeros(self.distribution.context)).event_shape)

    @property
    def support(self):
        return self.distribution(torch.zeros(self.distribution.context)).support

    def forward(self, context=None):
        return self.distribution(None if context is None else self.network(context))


@pytest.mark.parametrize("name", ROSTER)
def test_what_keeps_a_contract_has_all_its_members(name):
    module = ROSTER[name](0)
    kept = [contract for contract in CONTRACTS if isinstance(module, contract)]
    for contract in (contracts.HasDensity, *kept):
        missing = [m for m in contract.__abstractmethods__ if not hasattr(module, m)]
        assert not missing, f"{type(module).__name__} is no {contract.__name__}: {missing}"
    made = module()
    if isinstance(made, contracts.MadeBy):
        assert made.module is module
        assert made.context is None


def test_every_contract_is_kept_by_a_model():
    modules = [make(0) for make in ROSTER.values()]
    for contract in CONTRACTS:
        assert any(isinstance(m, contract) for m in modules), contract


def data_of(module, count=24):
    made = module(torch.randn(count, module.context) if module.context else None)
    with torch.no_grad():
        return made.sample() if module.context else made.sample((count,))


@pytest.mark.parametrize("name", [n for n in ROSTER if n.split()[0] != "flow"])
def test_a_wrapper_is_trained_as_what_it_wraps(name):
    """The objective of a wrapped model is that of the model, its contexts embedded."""
    try:
        inner = ROSTER[name](rosters.C)
    except (TypeError, ValueError):
        inner = ROSTER[name](0)
    if inner.context != rosters.C:
        assert isinstance(inner.objective, pg.objectives.Objective)
        return
    torch.manual_seed(0)
    module = Wrapped(rosters.moved(inner), 5)
    c, x = torch.randn(24, 5), data_of(inner)
    again = copy.deepcopy(inner)  # whose chains adapt
    torch.manual_seed(1)
    losses = module.objective(module, x, c)
    torch.manual_seed(1)
    expected = inner.objective(again, x, module.network(c))
    torch.testing.assert_close(losses, expected)
    losses.mean().backward()
    assert module.network.weight.grad.abs().sum() > 0
    held = None if name == "energy bounded" else 0.25  # of which nothing tells the fit
    history = pg.fit(module, x, context=c, validation=held, steps=2, **QUICK)
    assert len(history.losses) == 2


def test_wrappers_may_be_wrapped_and_what_lacks_is_named():
    edm = pg.models.EDM(2, context=3, hidden_features=(8,))
    twice, x, c = Wrapped(Wrapped(edm, 4), 5), torch.randn(6, 2), torch.randn(6, 5)
    assert pg.objectives.Denoising()(twice, x, c).shape == (6,)
    for objective in (pg.objectives.ELBO(), pg.objectives.ContrastiveDivergence()):
        with pytest.raises(TypeError, match=r"Expected (a module|an energy).*got a Wrapped"):
            objective(twice, x, c)
    score = pg.objectives.ImplicitScoreMatching()
    torch.manual_seed(0)
    first = score(twice, x, c)
    torch.manual_seed(0)
    given = twice.distribution.network(twice.network(c))
    torch.testing.assert_close(first, score(edm, x, given))


def exported():
    found = [getattr(pg.objectives, name) for name in pg.objectives.__all__]
    return [o for o in found if isinstance(o, type) and issubclass(o, pg.objectives.Objective)]


@pytest.mark.parametrize("kind", exported(), ids=lambda kind: kind.__name__)
def test_objectives_say_whether_they_take_data(kind):
    assert len([b for b in kind.__mro__ if b.__module__.startswith("probgen")]) <= 4
    if kind in (pg.objectives.Objective, pg.objectives.Variational):
        with pytest.raises(TypeError, match="abstract"):
            kind()
        return
    given = {"ReverseKL": (torch.sum,), "ExplicitScoreMatching": (torch.sum,)}
    given.update(DenoisingScoreMatching=(0.1,), SpectralRegularized=(pg.objectives.ELBO(),))
    objective = kind(*given.get(kind.__name__, ()))
    module = pg.models.NSF(2)
    x = torch.ones(3, 2) if objective.fits is False else None
    with pytest.raises(ValueError, match=r"Expected (no )?data, since \w+ (fits|draws)"):
        objective(module, x)
    assert type(objective.at(1.0)) is kind
    assert list(objective.players(module)) == ["model"]


def test_functions_are_objectives_too():
    function = lambda module, x, context: -module().log_prob(x)
    module, x = pg.models.NSF(2), torch.randn(5, 2)
    objective = as_objective(function)
    assert objective == Function(function)
    assert objective is as_objective(objective)
    torch.testing.assert_close(objective(module, x), pg.objectives.MaximumLikelihood()(module, x))
    for wrong, words in (
        (pg.objectives.ELBO, r"class ELBO. Make one: ELBO\(\)"),
        ("elbo", "a str"),
    ):
        with pytest.raises(TypeError, match=words):
            pg.fit(module, x, objective=wrong, steps=1, **QUICK)


class Critic(nn.Module):
    """A critic that is linear in moments, so that a normal generator must match mean and scale."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1, bias=False)

    def forward(self, x):
        return self.head(torch.cat([x, x.square()], -1))[:, 0]


class Wasserstein(pg.objectives.Objective):
    """Wasserstein's distance by a critic of bounded slope."""

    requires = contracts.HasDensity

    def __init__(self, critic, every=1, penalty=1.0):
        self.critic, self.every, self.penalty = critic, every, penalty

    def players(self, module):
        return {
            "critic": pg.objectives.Player(self.critic.parameters()),
            "generator": pg.objectives.Player(module.parameters(), self.every),
        }

    def held_out(self, module):
        return pg.objectives.MaximumLikelihood()

    def losses(self, module, x, context):
        fake = module(context).rsample((len(x),))
        between = (fake + x).detach() / 2
        between.requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        critic = self.critic(fake.detach()) - self.critic(x)
        critic = critic + self.penalty * slope.square().sum(-1)
        return {"critic": critic, "generator": -self.critic(fake).mean()}


class Module(Wasserstein, nn.Module):
    """The same as a module that has the critic."""

    def __init__(self, critic, every=1):
        nn.Module.__init__(self)
        Wasserstein.__init__(self, critic, every)


def normal():
    torch.manual_seed(0)
    return pg.distributions.DiagonalNormal(2)


def target(count=2000):
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(3))
    x = (x - x.mean(0)) / x.std(0, correction=0)
    return x * torch.tensor([0.7, 1.6]) + torch.tensor([1.0, -0.5])


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize(("kind", "every"), [(Wasserstein, 1), (Wasserstein, 3), (Module, 1)])
def test_a_generator_finds_mean_and_scale_of_data(kind, every):
    module, x = normal(), target()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.5)  # not where data are
    torch.manual_seed(1)
    history = pg.fit(
        module,
        x,
        objective=kind(Critic(), every),
        optimizer={"critic": torch.optim.Adam, "generator": torch.optim.SGD},
        lr={"critic": 0.1, "generator": 0.05},
        schedule="cosine",
        ema=0.99,
        steps=1500,
        batch_size=500,
        **QUICK,
    )
    made = module()
    torch.testing.assert_close(made.mean, x.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(made.stddev, x.std(0), atol=0.1, rtol=0.1)
    assert set(history.players) == {"critic", "generator"}
    total = [sum(pair) for pair in zip(*history.players.values())]
    assert history.losses == pytest.approx(total)
    assert "loss of critic" in repr(history)


def test_players_follow_their_own_gradients_alone():
    """Two steps by hand: both gradients at the same parameters, each of its own loss."""
    module, critic, x = normal(), Critic(), target(50)
    objective = Wasserstein(critic)
    module.start(x)
    reference = normal()
    reference.load_state_dict(module.state_dict())
    other = Critic()
    other.load_state_dict(critic.state_dict())
    pg.fit(
        module, x, objective=objective, optimizer=torch.optim.SGD, batch_size=50, steps=1,
        lr={"critic": 0.1, "generator": 0.2}, **QUICK,
    )  # fmt: skip
    from probgen.core.distributed import mix

    order = torch.randperm(50, generator=torch.Generator().manual_seed(mix(0, 0, 0)))
    torch.manual_seed(mix(0, 1, 0, 0))
    losses = Wasserstein(other)(reference, x[order])
    for name, part, rate, trained in (
        ("critic", other, 0.1, critic),
        ("generator", reference, 0.2, module),
    ):
        ps = list(part.parameters())
        grads = torch.autograd.grad(losses[name].mean(), ps, retain_graph=True)
        for p, g, q in zip(ps, grads, trained.parameters()):
            torch.testing.assert_close(q, p - rate * g)


@pytest.mark.parametrize("stop", [5, 17])
@pytest.mark.parametrize("kind", [Wasserstein, Module])
def test_adversarial_training_goes_on_to_the_same_bits(kind, stop, tmp_path):
    x, weights = target(60), torch.arange(60.0)
    options = {"steps": 20, "batch_size": 20, "ema": 0.9, "clip": 1.0, "weights": weights}
    options.update(validation=0.2, schedule="cosine", **QUICK)

    def build():
        module = normal()
        torch.manual_seed(1)
        return module, kind(Critic(), 2)

    whole, objective = build()
    expected = pg.fit(whole, x, objective=objective, **options)
    assert expected.validation
    calls = itertools.count()
    broken, interrupted = build()
    critic = interrupted.critic
    critic.register_forward_pre_hook(lambda *_: stop_at(next(calls), 4 * stop))
    with pytest.raises(KeyboardInterrupt):
        pg.fit(broken, x, objective=interrupted, checkpoint=tmp_path, **options)
    resumed, second = build()
    history = pg.fit(resumed, x, objective=second, checkpoint=tmp_path, **options)
    assert same(whole, resumed)
    assert same(objective.critic, second.critic)
    assert history == expected


def stop_at(number, last):
    if number == last:
        raise KeyboardInterrupt


def test_players_that_do_not_fit_are_refused():
    x = target(20)

    class Two(Wasserstein):
        def players(self, module):
            return self.given(module)

    def attempt(given, losses=None, **options):
        objective = Two(Critic())
        objective.given = given
        if losses is not None:
            objective.losses = losses
        flow = pg.models.MAF(2, transforms=1, hidden_features=(4,))
        pg.fit(flow, x, objective=objective, steps=1, **QUICK, **options)

    player = pg.objectives.Player
    own = lambda m: {"a": player(list(m.parameters())[:1]), "b": player(list(m.parameters())[1:])}
    both = lambda m: {"a": player(m.parameters()), "b": player(m.parameters())}
    stranger = Critic()
    for given, words in (
        (both, "of their own.*both of `a` and of `b`"),
        (lambda m: {"a": player(stranger.parameters())}, "of player `a` among those"),
        (lambda m: {"a": player([])}, "player `a` with parameters"),
        (lambda m: {"a": player(m.parameters(), 0)}, "`every` of player `a`.*got 0"),
        (own, "losses of its players, a, b, got those of critic, generator"),
    ):
        with pytest.raises(ValueError, match=words):
            attempt(given)
    for options, words in (
        ({"lr": {"a": 1.0}}, "`lr` of the players a, b, got that of a"),
        ({"optimizer": {}}, "`optimizer` of the players a, b, got that of none"),
        ({"lr": {"a": 1.0, "b": -1.0}}, "positive `lr`, got -1"),
    ):
        with pytest.raises(ValueError, match=words):
            attempt(own, **options)
    with pytest.raises(ValueError, match="none by name"):
        attempt(own, lambda m, x, c: -m().log_prob(x))
    with pytest.raises(ValueError, match="with a gradient"):
        attempt(own, lambda m, x, c: {"a": -m().log_prob(x), "b": torch.zeros(())})

    class Unscored(Wasserstein):
        def held_out(self, module):
            return self

    with pytest.raises(ValueError, match="compares one number, got Unscored of several"):
        pg.fit(normal(), x, objective=Unscored(Critic()), validation=0.2, steps=10, **QUICK)
