"""The laws of heads: distributions of a fixed form, learned or conditional."""

import copy
import math

import pytest
import torch

import probgen as pg
from tests.rosters import HEADS, C, moved

D = 3


@pytest.fixture(params=HEADS)
def name(request):
    return request.param


@pytest.fixture
def head(name):
    return moved(HEADS[name][0](D, context=C, hidden_features=(8,)))


def values(name, *shape, dtype=torch.float32):
    return HEADS[name][1](torch.rand(*shape, dtype=dtype))


def test_shapes_support_and_density(name, head):
    context = torch.randn(5, 2, C)
    d = head(context)
    assert (d.batch_shape, d.event_shape) == ((5, 2), (D,))
    x = d.sample((7,))
    assert x.shape == (7, 5, 2, D)
    assert d.support.check(x).all()
    assert d.log_prob(x).shape == (7, 5, 2)
    assert d.log_prob(values(name, 5, 2, D)).isfinite().all()
    assert d.expand((4, 5, 2)).sample().shape == (4, 5, 2, D)


def test_events_of_images(name):
    if name == "FullNormal":
        return
    head = moved(HEADS[name][0]((2, 3, 4), context=C, hidden_features=(8,)))
    head.initialize(values(name, 20, 2, 3, 4))
    d = head(torch.randn(5, C))
    assert d.event_shape == (2, 3, 4)
    assert d.log_prob(d.sample((6,))).shape == (6, 5)


def test_a_start_from_data_raises_their_density(name):
    head = HEADS[name][0](D)
    x = values(name, 500, D)
    before = head().log_prob(x).mean()
    head.initialize(x)
    assert head().log_prob(x).mean() >= before - 1e-4


def test_training_goes_on_from_where_it_was(name):
    head, x = HEADS[name][0](D), values(name, 100, D)
    options = {"seed": 0, "lr": 1e-2, "progress": False}
    pg.fit(head, x, steps=20, **options)
    before = head().log_prob(x).mean()
    pg.fit(head, values(name, 100, D), steps=1, **{**options, "lr": 1e-30})
    torch.testing.assert_close(head().log_prob(x).mean(), before)


def test_extreme_outputs_keep_densities_and_gradients_finite(name, head):
    for scale in (1e2, 1e6):
        wild = copy.deepcopy(head)
        with torch.no_grad():
            wild.phi.mul_(0).add_(scale * torch.randn_like(wild.phi))
        log_prob = wild(torch.randn(50, C)).log_prob(values(name, 50, D))
        assert log_prob.isfinite().all()
        log_prob.sum().backward()
        assert all(p.grad.isfinite().all() for p in wild.parameters())


def test_fit_trains(name, head):
    x, context = values(name, 100, D), torch.randn(100, C)
    history = pg.fit(head, x, context=context, steps=40, lr=1e-2, seed=0, progress=False)
    assert sum(history.losses[-5:]) < sum(history.losses[:5])


def test_save_and_load(name, head, tmp_path):
    head.initialize(values(name, 50, D))
    head.save(tmp_path)
    context, x = torch.randn(5, C), values(name, 5, D)
    assert torch.equal(pg.load(tmp_path)(context).log_prob(x), head(context).log_prob(x))


def test_meta_and_float64(name, head, unchecked):
    context, x = torch.randn(5, C), values(name, 5, D)
    wide = copy.deepcopy(head).double()(context.double())
    assert wide.log_prob(x.double()).dtype == torch.float64
    head.to("meta")
    d = head(context.to("meta"))
    assert d.log_prob(x.to("meta")).shape == (5,)


def test_a_network_of_ones_own(name):
    build = HEADS[name][0]
    wanted = len(build(D).phi) - build(D).free
    network = pg.networks.MLP(C, wanted, hidden_features=(8,))
    head = build(D, context=C, network=network)
    assert head(torch.randn(5, C)).sample().shape == (5, D)
    wrong = build(D, context=C, network=pg.networks.MLP(C, wanted + 1, hidden_features=(8,)))
    with pytest.raises(ValueError, match=f"returns {wanted} numbers per item.*got {wanted + 1}"):
        wrong(torch.randn(5, C))
    with pytest.raises(ValueError, match="`context`, since a `network`"):
        build(D, network=network)


@pytest.mark.parametrize("log_scale", [-12.0, -7.0, -1.0, 3.0])
def test_discretised_logistics_sum_to_one(log_scale, float64):
    law = pg.distributions.DiscretizedLogisticMixture(
        torch.randn(20, 3), 1.5 * torch.randn(20, 3), torch.full((20, 3), log_scale), 256
    )
    log_prob = law.log_prob(torch.arange(256.0)[:, None])
    torch.testing.assert_close(log_prob.logsumexp(0), torch.zeros(20), rtol=0, atol=1e-10)
    mean = (log_prob.exp() * torch.arange(256.0)[:, None]).sum(0)
    torch.testing.assert_close(law.mean, mean)
    assert law.log_prob(torch.tensor(256.0)).eq(-torch.inf).all()


def test_draws_of_discretised_logistics_follow_their_density(float64):
    torch.manual_seed(0)
    law = pg.distributions.DiscretizedLogisticMixture(
        torch.randn(3), torch.randn(3), torch.tensor([-1.0, -2.0, 0.0]), 16
    )
    n = 20_000
    count = torch.bincount(law.sample((n,)).long(), minlength=16)
    expected = n * law.log_prob(torch.arange(16.0)).exp()
    chi = ((count - expected).square() / expected).sum()
    assert float(torch.special.gammaincc(torch.tensor(7.5), chi / 2)) > 1e-6


def test_full_normals_are_triangular(float64):
    head = pg.distributions.FullNormal(3)
    with torch.no_grad():
        head.phi.copy_(torch.tensor([1.0, 2, 3, 0.1, 0.2, 0.3, 4, 5, 6]))
    d = head()
    rows = torch.tensor([[1.0, 0, 0], [4, 1, 0], [5, 6, 1]])
    factor = torch.tensor([0.1, 0.2, 0.3]).exp()[:, None] * rows
    torch.testing.assert_close(d.scale_tril, factor)
    torch.testing.assert_close(d.loc, torch.tensor([1.0, 2, 3]))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, "none", None])
def test_bad_scales_are_refused(scale):
    with pytest.raises(ValueError, match="`scale`"):
        pg.distributions.DiagonalNormal(2, scale=scale)


def test_bad_sizes_are_refused():
    for wrong, words in (
        (lambda: pg.distributions.Bernoulli(0), "`features`"),
        (lambda: pg.distributions.Bernoulli((2, 0)), "`features`"),
        (lambda: pg.distributions.Categorical(2, classes=1), "`classes`"),
        (lambda: pg.distributions.DiscretizedLogistic(2, levels=1), "`levels`"),
        (lambda: pg.distributions.DiscretizedLogistic(2, levels=4, components=0), "`components`"),
        (lambda: pg.distributions.Bernoulli(2, context=-1), "`context`"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()
