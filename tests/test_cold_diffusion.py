"""Known answers of cold diffusions."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import probgen as pg
from probgen import diffusion as d

DEGRADATIONS = {
    "blur": lambda shape: d.BlurDegradation(shape, 6),
    "fade": lambda shape: d.FadeDegradation(shape, 6),
    "mask": lambda shape: d.MaskDegradation(shape, 6),
    "pixelate": lambda shape: d.PixelateDegradation(shape),
}


@pytest.fixture(params=DEGRADATIONS)
def degradation(request):
    return DEGRADATIONS[request.param]


def test_the_improved_sampler_is_exact_for_any_restorer(float64):
    torch.manual_seed(0)
    e, x = torch.randn(5), torch.randn(20, 5)
    degrade = d.CustomDegradation(lambda x, s: x + s.unsqueeze(-1) * e, 30)
    a = torch.randn(5, 5)
    start = degrade(x, torch.full((20,), 30))
    for restorer in (
        lambda x, s: torch.zeros_like(x),
        lambda x, s: (x @ a).sin() + s.unsqueeze(-1),
        lambda x, s: 5 * torch.randn_like(x),
    ):
        improved = d.TACoS().sample(restorer, degrade, start)
        assert (improved - x).abs().max() < 1e-10
        naive = d.NaiveCold().sample(restorer, degrade, start)
        assert (naive - x).abs().mean() > 0.1


def test_both_samplers_are_exact_for_an_exact_restorer(degradation, float64):
    torch.manual_seed(0)
    x = torch.randn(10, 4, 8)
    degrade = degradation((4, 8))
    start = degrade(x, torch.full((10,), degrade.levels))
    for sampler in (d.NaiveCold(), d.TACoS()):
        found = sampler.sample(lambda y, s: x, degrade, start, event_dim=2)
        torch.testing.assert_close(found, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(8,), (4, 8), (2, 4, 8)])
def test_degradations(degradation, shape, float64):
    degrade = degradation(shape)
    x, last = torch.randn(5, *shape), degrade.levels
    s = torch.tensor([0, 1, last // 2, last, 0])
    y = degrade(x, s)
    assert y.shape == x.shape
    assert torch.equal(y[[0, 4]], x[[0, 4]])
    assert (y[[1, 2, 3]] != x[[1, 2, 3]]).any()
    torch.testing.assert_close(degrade(x.flatten(1), s), y.flatten(1))  # flat or not
    torch.testing.assert_close(degrade(x[2], s[2]), y[2])  # one by one
    grid = s[:, None].expand(5, 3)
    torch.testing.assert_close(degrade(x[:, None].expand(5, 3, *shape), grid)[:, 1], y)
    if not isinstance(degrade, d.MaskDegradation):
        spread = degrade(x[1:2].expand(last + 1, *shape), torch.arange(last + 1)).flatten(1).var(1)
        assert (spread.diff() < 0).all()
        mean = tuple(range(-min(len(shape), 2), 0))
        torch.testing.assert_close(y.mean(mean), x.mean(mean))  # of each channel
    assert degrade.to("meta")(x.to("meta"), s.to("meta")).shape == x.shape


def test_degradations_are_what_they_say(float64):
    x = torch.zeros(41)
    x[20] = 1
    blurred = d.BlurDegradation(41, levels=4, width=4.0)(x, torch.tensor(2))
    normal = dist.Normal(20.0, 2.0).log_prob(torch.arange(41.0)).exp()
    torch.testing.assert_close(blurred, normal, rtol=0, atol=1e-6)
    twice = d.BlurDegradation(41, 1, 3.0)(
        d.BlurDegradation(41, 1, 4.0)(x, torch.tensor(1)), torch.tensor(1)
    )
    torch.testing.assert_close(
        twice, d.BlurDegradation(41, 1, 5.0)(x, torch.tensor(1))
    )  # widths add up so
    x = torch.arange(24.0).reshape(4, 6)
    blocks = d.PixelateDegradation((4, 6))(x, torch.tensor(1))
    torch.testing.assert_close(blocks[:2, :2], torch.full((2, 2), float(x[:2, :2].mean())))
    whole = d.PixelateDegradation((4, 6))(x, torch.tensor(3))
    torch.testing.assert_close(whole, torch.full((4, 6), float(x.mean())))
    mask = d.MaskDegradation((5, 5), levels=5, rest=0.2, colour=-1.0)
    for k in range(6):
        hidden = mask(torch.ones(5, 5), torch.tensor(k)) == -1
        assert int(hidden.sum()) == 4 * k
        assert k == 0 or hidden[2, 2]
    faded = d.FadeDegradation((2, 2, 2), 4)(torch.arange(8.0).reshape(2, 2, 2), torch.tensor(4))
    torch.testing.assert_close(faded.flatten(1)[:, 0], torch.tensor([1.5, 5.5]))


def small(context=0, **options):
    return pg.models.ColdDiffusion(
        64, d.BlurDegradation((8, 8), 6), context=context, **{"hidden_features": (32,), **options}
    )


def test_the_base_is_the_normal_law_of_degraded_data(float64):
    torch.manual_seed(0)
    x = pg.datasets.digits().images
    model = small(rank=64)
    model.initialize(x)
    y = model.degradation(x, torch.full((len(x),), 6))
    torch.testing.assert_close(model.shift, y.mean(0))
    torch.testing.assert_close(model.factor @ model.factor.mT, y.T.cov(correction=0))
    few = small(rank=8)
    few.initialize(x)
    torch.testing.assert_close(few.factor.abs(), model.factor[:, :8].abs())
    lost = 1 - few.factor.square().sum() / model.factor.square().sum()
    assert 0 < float(lost) < 0.05  # eight directions hold nearly all
    z = torch.randn(3, 5, 8)
    torch.testing.assert_close(few.degraded(z)[2, 1], few.shift + few.factor @ z[2, 1])


@pytest.mark.parametrize("error", ["absolute", "square"])
def test_digits_are_learned(error):
    x = pg.datasets.digits().images
    model = small(objective=pg.objectives.Restoration(error))
    history = pg.fit(model, x, steps=150, lr=3e-3, batch_size=64, seed=0, progress=False)
    assert sum(history.losses[-10:]) < 0.75 * sum(history.losses[:10])
    model.freeze()
    s = torch.full((len(x),), 3)
    y = model.degradation(x, s)
    assert (model.restore(y, s) - x).abs().mean() < 0.8 * (y - x).abs().mean()
    drawn = model().sample((50,))
    assert drawn.shape == (50, 64)
    assert (drawn.mean(0) - x.mean(0)).abs().mean() < 2


def test_shapes_and_contexts(float64):
    torch.manual_seed(0)
    c = torch.rand(500, 1)
    x = c[..., None] + torch.zeros(500, 2, 3)
    model = pg.models.ColdDiffusion(
        (2, 3), d.FadeDegradation((2, 3), 3), context=1, hidden_features=(8,)
    )
    pg.fit(model, x + 0.01 * torch.randn_like(x), context=c, steps=20, progress=False)
    law = model.freeze()(c[:4])
    assert (law.batch_shape, law.event_shape) == ((4,), (2, 3))
    assert law.sample((7,)).shape == (7, 4, 2, 3)
    assert law.expand((5, 4)).rsample().shape == (5, 4, 2, 3)
    assert law.sample().dtype == torch.float64
    assert law.support.check(law.sample()).all()
    with pytest.raises(NotImplementedError, match="density"):
        law.log_prob(x[:4])
    with pytest.raises(ValueError, match="context"):
        model()


def test_other_bases(float64):
    x = pg.datasets.digits().images[:200]
    for base in (
        pg.distributions.GaussianMixture(64, 3),
        dist.Normal(torch.zeros(64), 1.0).to_event(1),
        pg.distributions.DiagonalNormal(64),
    ):
        model = small(base=base)
        model.initialize(x)
        law = model()
        assert law.sample((3,)).shape == (3, 64)
        assert law.has_rsample == model.base().has_rsample
    found = model.base().sample((2000,)).mean(0)  # started from degraded data
    y = model.degradation(x, torch.full((200,), 6))
    assert (found - y.mean(0)).abs().max() < 1


def test_a_posterior_in_the_base(float64):
    """Inference of the base's value, from which the datum follows."""
    torch.manual_seed(0)
    x = torch.randn(400, 1) + torch.tensor([-1.0, 0.0, 1.0])
    model = pg.models.ColdDiffusion(3, d.FadeDegradation(3, 4), rank=1, hidden_features=(16,))
    pg.fit(model, x, steps=300, lr=1e-2, progress=False)
    model.freeze()

    def measured(y):
        value = pg.sample("x", model)
        pyro.sample("y", dist.Normal(value, 0.5).to_event(1), obs=y)

    y = torch.tensor([0.0, 1.0, 2.0])
    trace = pyro.poutine.trace(measured).get_trace(y)
    assert trace.nodes["x_base"]["value"].shape == (1,)
    assert trace.nodes["x"]["infer"].get("_deterministic")
    draws = pg.mcmc.run(measured, y, warmup=100, draws=100, chains=16)
    base = draws.samples["x_base"].reshape(-1, 1)
    found = model.push(base).mean(0)
    exact = x.mean() + (1 - x.mean()) * 3 / (3 + 0.25 / x[:, 1].var())  # three of one height
    assert (found - (exact + torch.tensor([-1.0, 0.0, 1.0]))).abs().max() < 0.1


def test_saved_and_loaded(tmp_path, degradation, float64):
    model = pg.models.ColdDiffusion(
        (1, 4, 8), degradation((1, 4, 8)), hidden_features=(8,), sampler=d.NaiveCold()
    ).double()
    model.initialize(torch.randn(50, 1, 4, 8))
    model.eval().save(tmp_path)
    again = pg.load(tmp_path)
    found = []
    for m in (model, again):
        torch.manual_seed(0)
        found.append(m().sample((3,)))
    assert torch.equal(*found)
    assert found[0].dtype == torch.float64


def test_runs_without_reading_a_value(unchecked):
    model = small(context=2).to("meta")
    c = torch.empty(5, 2, device="meta")
    assert model(c).sample((3,)).shape == (3, 5, 64)
    assert model.objective(model, torch.empty(5, 64, device="meta"), c).shape == (5,)


class Short(nn.Module):
    def forward(self, x, s):
        return x[..., 1:]


def test_bad_input_is_named():
    x = torch.zeros(5, 64)
    for wrong, error, words in (
        (lambda: d.BlurDegradation((8, 8), 0), ValueError, "`levels`.*got 0"),
        (lambda: d.BlurDegradation((8, 8), width=-1.0), ValueError, "`width`.*got -1.0"),
        (lambda: d.BlurDegradation((8, 0)), ValueError, "`shape`.*got 0"),
        (lambda: d.FadeDegradation((1, 2, 3, 4)), ValueError, "`shape`.*1, 2, 3, 4"),
        (lambda: d.MaskDegradation(8, rest=1.0), ValueError, "`rest`.*got 1.0"),
        (lambda: d.PixelateDegradation((8, 8), 0), ValueError, "`levels`.*got 0"),
        (
            lambda: d.FadeDegradation(8)(x, torch.zeros(5, dtype=torch.long)),
            ValueError,
            r"\(8,\).*\(5, 64\)",
        ),
        (
            lambda: d.FadeDegradation(64)(x, torch.full((5,), 21)),
            ValueError,
            "from 0 to 20, got 21",
        ),
        (lambda: small(rank=65), ValueError, "`rank`.*got 65"),
        (lambda: small(rank=0), ValueError, "`rank`.*got 0"),
        (lambda: small(sampler="naive"), TypeError, "`sampler`, got a str"),
        (lambda: pg.models.ColdDiffusion(4, "blur"), TypeError, "`degradation`, got a str"),
        (lambda: small(base=dist.Normal(0.0, 1.0)), ValueError, r"`base` of shape \(64,\)"),
        (lambda: small(network=Short())().sample(), ValueError, r"\(64,\), got \(63,\)"),
        (lambda: small()(x), ValueError, "no context"),
        (lambda: pg.objectives.Restoration("l1"), ValueError, "`error`.*got 'l1'"),
        (lambda: pg.objectives.Restoration()(pg.models.MAF(64), x), TypeError, "got a MAF"),
        (lambda: pg.objectives.Restoration()(small(), None), ValueError, "got None"),
        (lambda: pg.sample("x", small(), obs=x[0]), ValueError, "'x'.*ColdDiffusion has no"),
        (lambda: pg.fit(small(), x[:, :5], progress=False), ValueError, r"\(N, 64\)"),
    ):
        with pytest.raises(error, match=words):
            wrong()


def test_one_level_and_one_feature(float64):
    model = pg.models.ColdDiffusion(1, d.FadeDegradation(1, 1), hidden_features=(4,))
    model.initialize(3 + torch.randn(100, 1))
    drawn = model().sample((4000,))
    assert abs(float(drawn.mean()) - 3) < 4 * (1 / math.sqrt(100) + 1 / math.sqrt(4000))
