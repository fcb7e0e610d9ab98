"""What every lazy distribution declares and keeps, whatever its family."""

import copy
import pickle
import warnings
from contextlib import nullcontext
from functools import partial

import pytest
import torch

import probgen as pg
from probgen.distributions.supports import is_real

from ..rosters import (
    BOUNDED,
    DIFFUSIONS,
    ENERGIES,
    FLOWS,
    HEADS,
    LATENTS,
    TRANSFORMS,
    C,
    D,
)

SHAPES = [(3,), (1, 4, 4)]
QUICK = {"batch_size": 20, "seed": 0, "progress": False}


def in_context(build, context):
    return build(D, context=context)


MODULES = {
    **{f"flow: {name}": partial(build, D) for name, build in FLOWS.items()},
    **{f"head: {name}": partial(in_context, build) for name, (build, _) in HEADS.items()},
    **{f"latent: {name}": build for name, build in LATENTS.items()},
    **{f"energy: {name}": build for name, build in ENERGIES.items()},
    **{f"diffusion: {name}": build for name, build in DIFFUSIONS.items()},
    "mixture": lambda c: pg.distributions.GaussianMixture(D, 3, c),
    "dequantized": lambda c: pg.distributions.Dequantized(
        pg.distributions.Flow(
            [pg.transforms.NormalCDF(0.0, 5.0)], pg.models.NSF(D, c, 2, (16,), bins=4)
        ),
        5,
    ),
    "ladder": lambda c: pg.models.LadderVAE(D, (3, 2), (8, 8), "normal"),
    "quantized": lambda c: pg.models.VQVAE((1, 4, 4), 4, 2, (4,)),
    "semi-supervised": lambda c: pg.models.SemiSupervisedVAE(D, 3, 2, (8,)),
    "belief network": lambda c: pg.models.DeepBeliefNetwork([D, 3, 2]),
    "pushforward": lambda c: LATENTS["bernoulli"](c).pushforward,
}
UNTRAINED = {"pushforward"}


def takes_context(build):
    return build(C).context_shape == (C,)


CONDITIONAL = [
    name for name, build in MODULES.items() if takes_context(build) and name not in UNTRAINED
]


def values(module, count, context=None):
    """Data in the support of a module, drawn from itself."""
    torch.manual_seed(3)
    batch = torch.Size() if context is None else context.shape[:1]
    x = module(context).sample(torch.Size([count]) if not batch else torch.Size())
    return x.detach()


def density(module, x, context=None):
    """The log density of data, its random part fixed."""
    torch.manual_seed(5)
    d = module(context)
    if module.density is pg.Density.PUSHFORWARD:
        return d.sample((500,)).mean()
    if module.density is pg.Density.UNNORMALIZED:
        return d.unnormalized_log_prob(x).detach()
    return d.log_prob(x).detach()


@pytest.fixture(params=MODULES)
def name(request):
    return request.param


def test_it_declares_shapes_support_density_and_card(name):
    module = MODULES[name](0)
    event, support = module.event_shape, module.support
    context = torch.zeros(5, 1) if name in ("semi-supervised", "energy: joint") else None
    d = module(context)
    assert event == d.event_shape
    assert repr(support) == repr(d.support)
    assert module.context_shape == (None if context is None else (1,))
    assert module.density is d.density if hasattr(d, "density") else True
    assert isinstance(module.initialized, bool)
    card = module.card
    assert all(isinstance(part, str) for part in (card.training, card.latent, card.draw))
    assert card.likelihood == module.density.value
    assert card.invertible in (True, False)


@pytest.mark.parametrize("name", {**TRANSFORMS, **BOUNDED})
def test_transforms_declare_contexts_and_card(name):
    transform = {**TRANSFORMS, **BOUNDED}[name]()
    assert transform.context_shape in (None, (C,))
    assert transform.initialized in (True, False)
    assert transform.card.likelihood == transform.density.value
    assert transform.card.invertible


def test_a_second_fit_leaves_what_was_learned(name):
    """Data on another scale move nothing before the first step."""
    if name in UNTRAINED:
        return
    torch.manual_seed(0)
    module = MODULES[name](0)
    x = values(module, 60)
    other = 3 * x + 5 if is_real(module.support) else x.flip(-1)
    pg.fit(module, x, steps=3, lr=1e-3, **options_of(name))
    before = density(module, x)
    for mode in (False, True):
        again = copy.deepcopy(module).train(mode)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pg.ScaleWarning)
            pg.fit(again, other, steps=1, lr=1e-30, **options_of(name))
        torch.testing.assert_close(density(again, x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_contexts_on_another_scale_leave_what_was_learned(name):
    module = MODULES[name](C)
    context = torch.randn(60, C)
    x = values(module, 60, context)
    pg.fit(module, x, context=context, steps=3, lr=1e-3, **options_of(name))
    before = density(module, x, context)
    raw = name in ("energy: bounded", "energy: tilted flow")  # as their networks take them
    with nullcontext() if raw else pytest.warns(pg.ScaleWarning, match="`context`"):
        pg.fit(module, x, context=context + 30, steps=1, lr=1e-30, **options_of(name))
    torch.testing.assert_close(density(module, x, context), before, rtol=1e-5, atol=1e-5)


def options_of(name):
    if name.startswith("energy: network") or name == "energy":
        return {**QUICK, "objective": pg.objectives.NoiseContrastive()}
    if name == "semi-supervised":
        return {**QUICK, "objective": pg.objectives.ELBO()}
    return QUICK


@pytest.mark.parametrize("name", CONDITIONAL)
def test_any_family_takes_embedded_contexts(name, tmp_path):
    """An image, and a vector beside it, through a network, under the family's own objective."""
    inner = MODULES[name](C)
    network = Fuse()
    module = pg.distributions.Embedded(inner, network, {"image": (1, 4, 4), "age": 1})
    context = {"image": torch.rand(40, 1, 4, 4), "age": 50 + 10 * torch.randn(40, 1)}
    assert module.context_shape == {"image": (1, 4, 4), "age": (1,)}
    x = values(inner, 40, torch.randn(40, C))
    history = pg.fit(module, x, context=context, steps=2, **options_of(name))
    assert len(history.losses) == 2
    assert module.event_shape == inner.event_shape
    assert module.density is inner.density
    assert network.linear.weight.grad is not None
    d = module(context)
    assert d.batch_shape == (40,)
    assert d.sample((2,)).shape == (2, 40, *inner.event_shape)
    module.save(tmp_path)
    torch.testing.assert_close(density(pg.load(tmp_path), x, context), density(module, x, context))


@pg.register
class Fuse(torch.nn.Module):
    """A network of an image and a number."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(17, C)

    def forward(self, image, age):
        return self.linear(torch.cat([image.flatten(1), age], -1))


IMAGES = {  # families of contexts of any shape, by (event, context)
    "NSF": lambda e, c: pg.models.NSF(e, c, transforms=2, hidden_features=(8,), bins=4),
    "MAF": lambda e, c: pg.models.MAF(e, c, transforms=2, hidden_features=(8,)),
    "NICE": lambda e, c: pg.models.NICE(e, c, transforms=2, hidden_features=(8,)),
    "CircularNSF": lambda e, c: pg.models.CircularNSF(e, c, transforms=2, hidden_features=(8,)),
    "PlanarFlow": lambda e, c: pg.models.PlanarFlow(e, c, transforms=2),
    "CNF": lambda e, c: pg.models.CNF(e, c, (8,), steps=2),
    "DiagonalNormal": lambda e, c: pg.distributions.DiagonalNormal(e, c, (8,)),
    "Bernoulli": lambda e, c: pg.distributions.Bernoulli(e, c, (8,)),
    "Categorical": lambda e, c: pg.distributions.Categorical(e, 3, c, (8,)),
    "StudentT": lambda e, c: pg.distributions.StudentT(e, c, (8,)),
    "EDM": lambda e, c: pg.models.EDM(
        e, c, (4,), pg.diffusion.ODESolver(2, "heun"), solver_steps=1
    ),
    "FlowMatching": lambda e, c: pg.models.FlowMatching(
        e, c, (4,), pg.diffusion.DDIM(2), solver_steps=1
    ),
    "EnergyModel": lambda e, c: pg.models.EnergyModel(e, c, (4, 8), steps=3),
    "ColdDiffusion": lambda e, c: pg.models.ColdDiffusion(
        e, pg.diffusion.FadeDegradation(e, 2), c, hidden_features=(8,)
    ),
}
VECTORS = {
    "ConditionalVAE": lambda e, c: pg.models.ConditionalVAE(e[0], c, 2, (8,), "normal"),
    "D3PM": lambda e, c: pg.models.D3PM(e[0], 3, c, (8,), steps=3),
    "CTMC": lambda e, c: pg.models.CTMC(e[0], 3, c, (8,), steps=3),
    "GaussianMixture": lambda e, c: pg.distributions.GaussianMixture(e[0], 2, c, (8,)),
    "FullNormal": lambda e, c: pg.distributions.FullNormal(e[0], c, (8,)),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("family", "event"),
    [(f, e) for f in IMAGES for e in ((4,), (1, 4, 4))] + [(f, (4,)) for f in VECTORS],
    ids=str,
)
def test_events_and_contexts_of_any_shape(family, event, shape):
    torch.manual_seed(0)
    module = {**IMAGES, **VECTORS}[family](event, shape)
    assert (module.event_shape, module.context_shape) == (event, shape)
    context = 100 + 7 * torch.randn(20, *shape)
    d = module(context)
    assert (d.batch_shape, d.event_shape) == ((20,), event)
    x = d.sample().detach()
    assert x.shape == (20, *event)
    assert d.sample((2,)).shape == (2, 20, *event)
    options = options_of("energy") if family == "EnergyModel" else QUICK
    pg.fit(module, x, context=context, steps=2, **options)
    if module.density is not pg.Density.PUSHFORWARD:
        log_prob = density(module, x, context)
        assert log_prob.shape == (20,)
        assert log_prob.isfinite().all()
    with pytest.raises(ValueError, match="context with shape"):
        module(torch.randn(20, *shape[:-1], shape[-1] + 1))
    assert module(context[0]).batch_shape == ()


def test_expand_refuses_what_pyro_refuses(name):
    d = MODULES[name](0)()
    wide = d.expand((2, 3))
    assert wide.batch_shape == (2, 3)
    for wrong in ((3,), (2, 4)):
        with pytest.raises((ValueError, RuntimeError)):
            wide.expand(wrong)


def test_draws_of_no_shape_pickle_and_float64(name, float64):
    module = MODULES[name](0).double()
    d = pickle.loads(pickle.dumps(module))()
    x = d.sample(())
    assert x.shape == module.event_shape
    assert not x.is_floating_point() or x.dtype == torch.float64
    if module.density is not pg.Density.PUSHFORWARD:
        log_prob = density(module, x)
        assert log_prob.dtype == torch.float64
        assert log_prob.shape == ()


def test_values_of_another_shape_are_refused(name):
    module = MODULES[name](0)
    if module.density is pg.Density.PUSHFORWARD:
        return
    x = values(module, 2)
    for wrong in (x[..., :-1], torch.cat([x, x[..., :1]], -1), x[..., :1]):
        with pytest.raises(ValueError, match=r"Expected|right-most"):
            density(module, wrong)
