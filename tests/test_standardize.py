"""What modules learn of the scale of data and contexts: once, weighted, robustly."""

import warnings

import pytest
import torch

import probgen as pg
from probgen.core.standardize import ContextStandardizer, Standardizer, moments

SMALL = {"transforms": 2, "hidden_features": (16,)}
QUICK = {"seed": 0, "progress": False}


def pairs(count=2000, noise=0.1):
    theta = torch.randn(count, 1)
    return theta, theta + noise * torch.randn(count, 1)


@pytest.mark.parametrize("family", [pg.models.MAF, pg.models.NSF])
def test_rows_of_weight_zero_leave_no_trace(family):
    x = torch.randn(300, 2) * torch.tensor([1.0, 5.0]) + 3
    rows, weights = torch.cat([x, torch.full((5, 2), 1e8)]), torch.ones(305)
    weights[300:] = 0
    found = []
    for data, w in ((rows, weights), (x, None)):
        torch.manual_seed(0)
        flow = family(2, **SMALL)
        pg.fit(flow, data, weights=w, steps=100, lr=5e-3, **QUICK)
        found.append(float(flow().log_prob(x).detach().mean()))
    assert found[0] == pytest.approx(found[1], abs=0.05)
    assert found[0] == pytest.approx(-4.45, abs=0.25)


def test_one_context_far_away_is_named_and_left_out_of_the_scale():
    theta, c = pairs()
    c[7] = 1e6
    torch.manual_seed(0)
    flow = pg.models.NSF(1, context=1, **SMALL)
    with pytest.warns(pg.OutlierWarning, match="`context`.*give them weight 0"):
        pg.fit(flow, theta, context=c, steps=500, lr=1e-2, clip=1.0, **QUICK)
    draws = flow(torch.tensor([0.5])).sample((4000,))
    assert float(draws.mean()) == pytest.approx(0.495, abs=0.05)
    assert float(draws.std()) == pytest.approx(0.0995, abs=0.04)


def test_a_context_that_is_constant_up_to_rounding_has_scale_one():
    theta, c = pairs()
    still = 0.1 * (1 + 1.2e-7 * torch.randint(0, 2, (2000, 1)))
    torch.manual_seed(0)
    flow = pg.models.NSF(1, context=2, **SMALL)
    pg.fit(flow, theta, context=torch.cat([c, still], -1), steps=400, lr=1e-2, **QUICK)
    draws = flow(torch.tensor([0.5, 0.1000005])).sample((4000,))
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(draws.std()) == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize(
    "build",
    [
        lambda: pg.models.FlowMatching(1, context=1, hidden_features=(64,)),
        lambda: pg.distributions.DiagonalNormal(1, context=1, hidden_features=(32,)),
        lambda: pg.distributions.GaussianMixture(1, 2, context=1, hidden_features=(32,)),
    ],
    ids=["flow matching", "normal", "mixture"],
)
def test_contexts_on_any_scale_tell_as_much(build):
    theta = torch.randn(2000, 1)
    c = 1e5 + 1e3 * (theta + 0.3 * torch.randn(2000, 1))
    torch.manual_seed(0)
    module = build()
    pg.fit(module, theta, context=c, steps=600, lr=3e-3, **QUICK)
    draws = module.freeze()(torch.tensor([1e5 + 1e3])).sample((2000,))
    assert float(draws.mean()) == pytest.approx(0.917, abs=0.1)
    assert float(draws.std()) == pytest.approx(0.287, abs=0.08)


def test_a_mixture_finds_clusters_on_any_scale():
    x = 100 * (torch.randn(500, 2) + torch.tensor([[4.0, 4.0], [-4.0, -4.0]]).repeat(250, 1)) + 500
    mixture = pg.distributions.GaussianMixture(2, components=2)
    history = pg.fit(mixture, x, steps=200, **QUICK)
    assert history.losses[-1] == pytest.approx(12.74, abs=0.15)


def test_an_outlier_in_the_data_is_named_and_left_out_of_the_scale():
    x = torch.randn(1000, 1)
    x[3] = 1e5
    torch.manual_seed(0)
    model = pg.models.EDM(1, hidden_features=(32, 32))
    with pytest.warns(pg.OutlierWarning, match="`data`"):
        pg.fit(model, x, steps=500, lr=3e-3, clip=1.0, **QUICK)
    draws = model.freeze()().sample((2000,))
    assert float(draws.abs().median()) == pytest.approx(0.67, abs=0.2)


def test_images_have_one_scale_and_vectors_one_per_feature():
    x = torch.rand(50, 1, 4, 4) * torch.linspace(0.01, 1, 16).reshape(1, 4, 4)
    model = pg.models.EDM((1, 4, 4), hidden_features=(4,))
    model.initialize(x)
    assert len(model.scale.unique()) == len(model.shift.unique()) == 1
    vector = pg.models.EDM(16, hidden_features=(4,))
    vector.initialize(x.flatten(1))
    assert len(vector.scale.unique()) == 16


@pytest.mark.parametrize("per", ["feature", "channel", "shared", "one"])
def test_a_standardizer_inverts_itself_in_every_grouping(per):
    x = torch.randn(200, 3, 2, 2) * torch.tensor([1.0, 5.0, 0.2])[:, None, None] + 2
    s = Standardizer((3, 2, 2), per)
    torch.testing.assert_close(s(x), x)
    s.fit(x)
    torch.testing.assert_close(s.inverse(s(x)), x)
    groups = {"feature": 12, "channel": 3, "shared": 1, "one": 1}[per]
    assert len(s.scale.unique()) == groups
    again = Standardizer((3, 2, 2), per)
    again.load_state_dict(s.state_dict())
    torch.testing.assert_close(again(x), s(x))
    s.fit(10 * x)  # only the first counts
    torch.testing.assert_close(again.scale, s.scale)


def test_moments_are_weighted_and_heavy_tails_of_many_values_are_kept():
    x = torch.tensor([[0.0], [2.0], [100.0]])
    mean, std = moments(x, torch.tensor([1.0, 1.0, 0.0]))
    assert (float(mean), float(std)) == (1.0, 1.0)
    with pytest.raises(ValueError, match="positive weights"):
        moments(x, torch.zeros(3))
    rare = torch.zeros(1000, 1)
    rare[0] = 1.0  # a rare level is no outlier
    clusters = torch.cat([torch.randn(900, 1) / 1e3, 1 + torch.randn(100, 1) / 1e3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (rare, clusters, torch.distributions.StudentT(3.0).sample((5000, 1))):
            torch.testing.assert_close(moments(data)[1], data.std(0, correction=0))


def test_contexts_of_several_tensors_are_standardised_each():
    s = ContextStandardizer({"age": (1,), "scan": (1, 2, 2)})
    context = {"age": 50 + 10 * torch.randn(300, 1), "scan": 200 * torch.rand(300, 1, 2, 2)}
    s.fit(context)
    for value in s(context).values():
        assert float(value.mean()) == pytest.approx(0, abs=1e-4)
        assert float(value.std()) == pytest.approx(1, abs=1e-2)
    with pytest.warns(pg.ScaleWarning, match=r"context\['age'\]"):
        s.compare({**context, "age": context["age"] + 1e4})


def test_initializing_again_is_asked_for():
    x = torch.randn(200, 2)
    flow = pg.models.NSF(2, **SMALL)
    assert not flow.initialized
    pg.fit(flow, x, steps=1, **QUICK)
    assert flow.initialized
    with pytest.warns(pg.ScaleWarning):
        pg.fit(flow, x + 100, steps=1, **QUICK)
    assert float(flow.transforms[-1].standardizer.shift.abs().max()) < 1
    pg.fit(flow, x + 100, steps=1, initialize=True, **QUICK)
    assert float(flow.transforms[-1].standardizer.shift.min()) > 99
    frozen = pg.models.NSF(2, **SMALL)
    pg.fit(frozen, x, steps=1, **QUICK)
    vae = pg.distributions.Latent(
        frozen.freeze(),
        pg.distributions.DiagonalNormal(2, context=2, hidden_features=(8,)),
        pg.distributions.DiagonalNormal(2, context=2, hidden_features=(8,)),
    )
    state = {n: t.clone() for n, t in frozen.state_dict().items()}
    pg.fit(vae, x + 100, steps=1, **QUICK)
    pg.fit(vae, x - 100, steps=1, initialize=True, **QUICK)
    assert all(torch.equal(t, state[n]) for n, t in frozen.state_dict().items())
