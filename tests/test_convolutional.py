"""Convolutional and vector-quantised autoencoders, against what is exact."""

import ast
import copy
import math
import pickle
import subprocess
import sys
import textwrap
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import probgen as pg
from probgen.distributions import Bernoulli, Codebook, DiscretizedLogistic, Quantized
from probgen.networks import Decoder, Encoder
from probgen.objectives import ELBO, IWAE, VectorQuantization
from tests.rosters import moved

SHAPE = (1, 8, 8)
QUICK = {"progress": False, "seed": 0}
SMALL = {"channels": (4, 6)}
MODELS = {
    "ConvVAE": lambda: pg.models.ConvVAE(SHAPE, 3, **SMALL),
    "ConvVAE, flow posterior": lambda: pg.models.ConvVAE(
        (2, 5, 7), 3, **SMALL, likelihood="normal", posterior=pg.models.IAF(3, 24, 1, (8,))
    ),
    "ConvVAE, full": lambda: pg.models.ConvVAE(SHAPE, 3, **SMALL, posterior="full"),
    "ConvVAE, levels": lambda: pg.models.ConvVAE(
        SHAPE,
        3,
        **SMALL,
        likelihood=DiscretizedLogistic(
            SHAPE, 17, 2, context=3, network=Decoder(3, SHAPE, rows=6, channels=(4,))
        ),
    ),
    "AutoencoderKL": lambda: pg.models.AutoencoderKL((2, 7, 9), 2, **SMALL, likelihood="student"),
    "VQVAE": lambda: pg.models.VQVAE(SHAPE, 5, 3, **SMALL),
    "VQVAE, normal": lambda: pg.models.VQVAE((3, 9, 5), 5, 3, **SMALL, likelihood="normal"),
    "VQVAE, gradient": lambda: pg.models.VQVAE(SHAPE, 5, 3, **SMALL, ema=None),
}
MANY = partial(IWAE(3).elbo, 1, vectorize_particles=True)
QUANTIZED = ["VQVAE", "VQVAE, gradient"]


@pytest.fixture(params=MODELS)
def model(request):
    return moved(MODELS[request.param]())


@pytest.fixture(params=QUANTIZED)
def vq(request):
    return moved(MODELS[request.param]()).double()


def digits():
    x = pg.datasets.digits().images.reshape(-1, *SHAPE) / 16
    return (x > 0.5).to(x.dtype)


def images(*batch):
    return (torch.rand(*batch, *SHAPE) < 0.4).double()


def tiny():
    """One place and two codes, which are vectors of two features, for three pixels."""
    prior = dist.Categorical(torch.tensor([0.3, 0.7])).expand([1]).to_event(1)
    likelihood = Bernoulli(3, context=2, hidden_features=(4,))
    return moved(Quantized(nn.Linear(3, 2), Codebook(2, 2), likelihood, prior), 1.0).double()


# Networks


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (3, 7, 5), (2, 1, 9)])
def test_networks_take_any_size_and_batch(shape):
    encoder = Encoder(shape, 3, (4, 6))
    decoder = Decoder(encoder.grid, shape, 2, (4, 6))
    x = torch.randn(2, 5, *shape)
    z = encoder(x)
    assert encoder.grid[1:] == (math.ceil(shape[1] / 4), math.ceil(shape[2] / 4))
    assert z.shape == (2, 5, encoder.outputs)
    torch.testing.assert_close(encoder(x.flatten(2)), z)
    torch.testing.assert_close(encoder(x[1, 2]), z[1, 2])
    assert encoder(x[:, :0]).shape == (2, 0, encoder.outputs)
    assert decoder(z).shape == (2, 5, 2 * shape[0], *shape[1:])
    assert float(decoder(z).detach().std()) < 0.1
    moved(decoder)
    torch.testing.assert_close(decoder(z)[1, 2], decoder(z[1, 2]))
    flat = moved(Decoder(7, shape, 2, (4, 6)))
    assert flat(torch.randn(3, 7)).shape == (3, 2 * shape[0], *shape[1:])


def test_a_decoder_gives_parameters_row_by_row():
    network = moved(Decoder(3, (2, 4, 4), rows=2, channels=(4,)), 0.3)
    head = pg.distributions.DiagonalNormal((2, 4, 4), 3, network=network)
    z = torch.randn(5, 3)
    mean, log_scale = network(z).unflatten(1, (2, 2)).unbind(1)
    torch.testing.assert_close(head(z).mean, mean)
    torch.testing.assert_close(head(z).stddev, log_scale.exp())


def test_every_pixel_reaches_the_code_and_every_input_a_pixel():
    encoder, decoder = Encoder((1, 7, 9), 2, (4, 4)), moved(Decoder(3, (1, 7, 9), 1, (4, 4)))
    for network, x in ((encoder, torch.randn(1, 7, 9)), (decoder, torch.randn(3))):
        jacobian = torch.autograd.functional.jacobian(network, x).reshape(-1, x.numel())
        assert (jacobian.abs().sum(0) > 0).all()
        assert (jacobian.abs().sum(1) > 0).all()


# Codebook


def test_the_nearest_code_is_right():
    book = Codebook(50, 4).double()
    z = torch.randn(30, 7, 4).double() + 100
    book.vectors.add_(100)
    exact = (z.unsqueeze(-2) - book.vectors).square().sum(-1).argmin(-1)
    assert torch.equal(book.nearest(z), exact)
    assert torch.equal(book.eval()(z).values.detach(), book.vectors[book.nearest(z)])


def test_ties_and_many_vectors(monkeypatch):
    book = Codebook(5, 2)
    book.vectors.copy_(torch.tensor([[9.0, 9], [1, 0], [1, 0], [5, 5], [7, 7]]))
    assert int(book.nearest(torch.tensor([1.0, 0.1]))) == 1
    z = torch.randn(33, 2)
    whole = book.nearest(z)
    monkeypatch.setattr("probgen.distributions.latent.codebook.CHUNK", 20)
    assert torch.equal(book.nearest(z), whole)


@pytest.mark.parametrize("ema", [0.9, None])
def test_straight_through_gradients_are_exact(ema):
    book = Codebook(6, 3, commitment=0.0, ema=ema, dead=0.0).double()
    z = torch.randn(10, 3).double().requires_grad_()
    quantized = book(z)
    at_code = quantized.values.detach().clone().requires_grad_()
    f = lambda v: (v**3 * torch.arange(3)).sin().sum()
    (mine,) = torch.autograd.grad(f(quantized.values), z, retain_graph=True)
    (exact,) = torch.autograd.grad(f(at_code), at_code)
    assert torch.equal(mine, exact)
    if ema is None:
        (none,) = torch.autograd.grad(f(quantized.values), book.vectors, allow_unused=True)
        assert none is None


@pytest.mark.parametrize("name", QUANTIZED)
def test_the_codebook_gets_gradient_from_its_loss_alone(name):
    vq = moved(MODELS[name]()).double()
    x = images(20)
    quantized = vq.quantize(x)
    fitted = -vq.likelihood_of(quantized.values).log_prob(x)
    if name == "VQVAE":
        assert not vq.codebook.vectors.requires_grad
        assert "codebook" not in {n.split(".")[0] for n, _ in vq.named_parameters()}
        return
    e = vq.codebook.vectors
    assert torch.autograd.grad(fitted.sum(), e, retain_graph=True, allow_unused=True) == (None,)
    vq.objective(vq, x).sum().backward()
    z, codes = vq.vectors(x).detach().flatten(0, -2), quantized.codes.flatten()
    exact = torch.zeros_like(e).index_add_(0, codes, 2 * (e[codes] - z).detach())
    torch.testing.assert_close(e.grad, exact, rtol=1e-12, atol=1e-12)


def test_the_commitment_pulls_the_encoder_alone():
    book = Codebook(6, 3, commitment=0.7, ema=None).double()
    z = torch.randn(10, 3).double().requires_grad_()
    quantized = book(z)
    (pull,) = torch.autograd.grad(quantized.loss.sum(), z)
    torch.testing.assert_close(pull, 2 * 0.7 * (z - book.vectors[quantized.codes]))
    torch.testing.assert_close(
        quantized.loss, 1.7 * (z - book.vectors[quantized.codes]).square().sum(-1)
    )


def test_codes_are_running_means():
    book = Codebook(3, 1, ema=0.5, dead=0.0).double()
    book.vectors.copy_(torch.tensor([[0.0], [10.0], [99.0]]))
    book(torch.tensor([[1.0], [3.0], [12.0]]).double())
    # usage: (1/2 + 2/2, 1/2 + 1/2, 1/2); sums: (0/2 + 4/2, 10/2 + 12/2, 99/2)
    assert book.usage.tolist() == [1.5, 1.0, 0.5]
    torch.testing.assert_close(book.vectors.flatten(), torch.tensor([2 / 1.5, 11.0, 99.0]).double())
    book(torch.tensor([[2.0]]).double())
    assert book.usage.tolist() == [1.25, 0.5, 0.25]
    torch.testing.assert_close(book.vectors.flatten(), torch.tensor([1.6, 11.0, 99.0]).double())


def test_codes_rest_in_evaluation_and_without_gradients():
    book = Codebook(4, 2)
    before = copy.deepcopy(book.state_dict())
    z = torch.randn(20, 2)
    with torch.no_grad():
        book(z)
    book.eval()(z)
    book.train().nearest(z)
    assert all(v.equal(before[n]) for n, v in book.state_dict().items())
    book(z)
    assert not book.vectors.equal(before["vectors"])


@pytest.mark.parametrize("ema", [0.9, None])
def test_dead_codes_revive(ema):
    book = Codebook(4, 2, ema=ema)
    with torch.no_grad():
        book.vectors.copy_(torch.tensor([[0.0, 0], [50, 50], [60, 60], [70, 70]]))
    z = torch.randn(200, 2)
    found = [float(book.perplexity(book(z).codes)) for _ in range(500)]
    assert found[0] == 1.0
    assert found[-1] > 2.0
    assert (book.vectors.abs() < 5).all()
    still = Codebook(4, 2, ema=ema, dead=0.0)
    with torch.no_grad():
        still.vectors.copy_(torch.tensor([[0.0, 0], [50, 50], [60, 60], [70, 70]]))
    for _ in range(500):
        still(z)
    assert float(still.perplexity(still.nearest(z))) == 1.0
    assert still.vectors.isfinite().all()


def test_perplexity():
    book = Codebook(8, 2)
    assert float(book.perplexity(torch.zeros(10, 3, dtype=torch.long))) == 1.0
    assert abs(float(book.perplexity(torch.arange(8).expand(5, 8))) - 8) < 1e-5
    assert abs(float(book.perplexity(torch.tensor([0, 1, 1, 0]))) - 2) < 1e-5


def test_first_codes_are_vectors_of_the_data():
    book = Codebook(4, 2)
    z = torch.randn(6, 2).repeat(50, 1)
    book.initialize(z)
    assert len(book.vectors.unique(dim=0)) == 4
    assert (torch.cdist(book.vectors, z).amin(1) < 1e-5).all()
    book.initialize(z[:3])
    assert len(book.vectors.unique(dim=0)) == 3


# The density


def test_the_bound_is_below_the_exact_density(float64):
    for seed in range(10):
        torch.manual_seed(seed)
        vq = tiny()
        x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
        codes = torch.arange(2).reshape(2, 1, 1).expand(2, 8, 1)
        joint = vq.decode(codes).log_prob(x) + vq.prior().log_prob(codes)
        exact = joint.logsumexp(0)
        assert abs(float(exact.exp().sum().detach()) - 1) < 1e-12
        bound = vq().log_prob(x)
        assert (bound < exact).all()
        chosen = joint.gather(0, vq.encode(x).reshape(1, 8)).squeeze(0)
        torch.testing.assert_close(bound, chosen)
        torch.testing.assert_close(vq.log_marginal(x, samples=5).value, bound.detach())


def test_draws_follow_prior_and_likelihood(float64):
    vq = tiny()
    codes = torch.arange(2).reshape(2, 1)
    mean = (vq.decode(codes).mean * torch.tensor([[0.3], [0.7]])).sum(0)
    x = vq().sample((20_000,))
    assert ((x.mean(0) - mean).abs() < 4 * 0.5 / math.sqrt(20_000)).all()


def test_the_density_has_the_gradient_of_the_bound(vq):
    x = images(5).requires_grad_()
    vq().log_prob(x).sum().backward()
    assert all(p.grad is None for p in vq.encoder.parameters())
    assert any(p.grad.abs().sum() > 0 for p in vq.likelihood.parameters())
    y = x.detach().requires_grad_()
    (exact,) = torch.autograd.grad(vq.decode(vq.encode(y)).log_prob(y).sum(), y)
    torch.testing.assert_close(x.grad, exact)


def test_a_learned_prior_takes_its_place(tmp_path):
    vq = moved(MODELS["VQVAE"]())
    x = digits()[:200]
    vq.initialize(x)
    prior = pg.distributions.Categorical((2, 2), classes=5)
    pg.fit(prior, vq.encode(x), steps=100, lr=1e-1, **QUICK)
    better = vq.with_prior(prior)
    assert torch.equal(better.encode(x), vq.encode(x))
    gain = better().log_prob(x) - vq().log_prob(x)
    exact = prior().log_prob(vq.encode(x)) + 4 * math.log(5)
    torch.testing.assert_close(gain, exact, rtol=1e-4, atol=1e-4)
    assert float(gain.mean().detach()) > 0.1
    better.save(tmp_path)
    assert torch.equal(pg.load(tmp_path)().log_prob(x), better().log_prob(x))


# Every model


def test_shapes(model):
    d = model()
    x = d.sample((4, 2))
    assert x.shape == (4, 2, *model.event_shape)
    assert d.log_prob(x).shape == (4, 2)
    assert d.log_prob(x).isfinite().all()
    assert d.density is pg.Density.BOUND
    assert d.expand((3,)).sample().shape == (3, *model.event_shape)
    assert model.log_marginal(x, samples=3).value.shape == (4, 2)
    assert model.objective(model, x[0]).shape == (2,)
    if isinstance(model, Quantized):
        codes = model.encode(x)
        assert codes.shape == (4, 2, *model.latent_shape)
        assert model.decode(codes).batch_shape == (4, 2)
        assert model.reconstruct(x).shape == x.shape
        assert 1 - 1e-5 <= float(model.perplexity(x).detach()) <= 5 + 1e-5


def test_save_copy_and_pickle(model, tmp_path):
    x = model().sample((6,))
    model.initialize(x)
    model.save(tmp_path)
    values = []
    for other in (
        model,
        pg.load(tmp_path),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        torch.manual_seed(0)
        values.append(other().log_prob(x))
    assert all(torch.equal(v, values[0]) for v in values)


def test_meta_device_and_float64(model, unchecked):
    x = model().sample((3,))
    double = copy.deepcopy(model).double()
    assert double().sample((2,)).dtype == torch.float64
    assert double().log_prob(x.double()).dtype == torch.float64
    assert double.objective(double, x.double()).dtype == torch.float64
    far = copy.deepcopy(model).to("meta")
    assert far().log_prob(x.to("meta")).shape == (3,)
    assert far().sample((2,)).device.type == "meta"
    loss = far.objective(far, x.to("meta"))
    loss.sum().backward()
    assert {p.grad.device.type for p in far.parameters()} == {"meta"}


@pytest.mark.parametrize(
    "build",
    [
        partial(pg.models.ConvVAE, latent=4),
        partial(pg.models.AutoencoderKL, latent=2),
        partial(pg.models.VQVAE, codes=16, code_features=8),
        partial(pg.models.VQVAE, codes=16, code_features=8, ema=None),
    ],
    ids=["ConvVAE", "AutoencoderKL", "VQVAE", "VQVAE, gradient"],
)
def test_training_on_digits(build):
    torch.manual_seed(0)
    x = digits()
    model = build(SHAPE, channels=(8, 16))
    plain = Bernoulli(SHAPE)
    plain.initialize(x[:1437])
    loss = lambda: float(model.objective(model, x[1437:]).mean().detach())
    pg.fit(model, x[:1437], steps=1, **QUICK)
    first = loss()
    pg.fit(model, x[:1437], steps=150, batch_size=64, lr=5e-3, **QUICK)
    assert loss() < first - 1.5
    fitted = (model.reconstruct(x[1437:]) - x[1437:]).square().sum((1, 2, 3)).mean()
    plainly = (plain().mean - x[1437:]).square().sum((1, 2, 3)).mean()
    assert float(fitted.detach()) < 0.8 * float(plainly.detach())
    if isinstance(model, Quantized):
        assert float(model.perplexity(x)) > 4


# Pyro


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, ELBO().elbo, MANY])
def test_svi_minimises_the_objective(vq, elbo):
    x = images(6)
    other = copy.deepcopy(vq)
    exact = 2 * vq.objective(vq, x).sum()
    elbo = elbo()
    mine = elbo.differentiable_loss(other.model, other.guide, x, size=12)
    torch.testing.assert_close(mine, exact)
    for module, loss in ((vq, exact), (other, mine)):
        loss.backward()
        assert {p.grad is not None for p in module.parameters()} == {True}
    for a, b in zip(vq.parameters(), other.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    assert vq.codebook.vectors.equal(other.codebook.vectors)  # a step of either moves them
    assert vq.codebook.usage.equal(other.codebook.usage)


def test_plain_svi_trains(vq):
    x = digits()[:128].double()
    vq.initialize(x)
    before = copy.deepcopy(vq.state_dict())
    svi = SVI(vq.model, vq.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    first = vq().log_prob(x).mean()
    for _ in range(50):
        svi.step(x)
    assert float((vq().log_prob(x).mean() - first).detach()) > 1.5
    changed = {n.split(".")[0] for n, v in vq.state_dict().items() if not v.equal(before[n])}
    assert changed == {"encoder", "codebook", "likelihood"}
    now = copy.deepcopy(vq.state_dict())
    svi.evaluate_loss(x)
    assert all(v.equal(now[n]) for n, v in vq.state_dict().items())


def test_generating_and_stating(vq):
    draws = Predictive(vq.model, num_samples=3)(size=4)
    assert draws["x"].shape == (3, 4, *SHAPE)
    assert draws["z"].shape == (3, 4, 2, 2)
    x = images(4)

    def model():
        with pyro.plate("items", 4):
            pg.sample("x", vq, obs=x)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    codes = trace.nodes["x_z"]["value"]
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], vq.decode(codes).log_prob(x))
    torch.testing.assert_close(trace.nodes["x_z"]["log_prob"], vq.prior().log_prob(codes))
    with pytest.raises(ValueError, match="guide"):
        vq.guide()


# Training keeps buffers


def test_the_best_buffers_are_kept_with_the_best_parameters(tmp_path):
    x = digits()[:300]
    vq = pg.models.VQVAE(SHAPE, 8, 4, channels=(4,), ema=0.5)
    seen = {}
    held = VectorQuantization()

    def objective(module, x, context=None):
        if not module.training:
            seen[len(seen)] = copy.deepcopy(module.state_dict())
        return held(module, x, context) + (0 if module.training else 100.0 * len(seen))

    history = pg.fit(
        vq, x, objective=objective, validation=0.2, steps=40, batch_size=64, lr=1e-2, **QUICK
    )
    assert history.best_step == 10
    assert len(seen) == 4
    assert not seen[0]["codebook.vectors"].equal(seen[3]["codebook.vectors"])
    assert all(v.equal(seen[0][n]) for n, v in vq.state_dict().items())


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_resumed_run_is_bit_identical(name, tmp_path):
    x = digits()[:200]
    options = {"batch_size": 50, "validation": 0.2, "lr": 1e-2, **QUICK}
    torch.manual_seed(0)
    whole, parts = MODELS[name](), None
    parts = copy.deepcopy(whole)
    pg.fit(whole, x, steps=40, **options)
    pg.fit(parts, x, steps=15, checkpoint=tmp_path, **options)
    torch.manual_seed(0)
    again = MODELS[name]()
    pg.fit(again, x, steps=40, checkpoint=tmp_path, **options)
    assert all(v.equal(again.state_dict()[n]) for n, v in whole.state_dict().items())


def test_processes_share_statistics(tmp_path):
    script = """
        import sys, torch
        from probgen.distributions import Codebook
        torch.set_num_threads(1)
        rank, store = int(sys.argv[1]), "file://" + sys.argv[2]
        torch.distributed.init_process_group("gloo", store, rank=rank, world_size=2)
        torch.manual_seed(0)
        book, z = Codebook(4, 2, ema=0.5, dead=0.9).double(), torch.randn(40, 2).double()
        torch.manual_seed(rank)  # each draws other vectors for dead codes, and the first's count
        book(z[rank::2])
        print(book.usage.tolist(), book.vectors.tolist())
        """
    run = [sys.executable, "-c", textwrap.dedent(script)]
    jobs = [
        subprocess.Popen([*run, str(r), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    found = [job.communicate(timeout=100)[0] for job in jobs]
    assert found[0] == found[1]
    torch.manual_seed(0)
    book, z = Codebook(4, 2, ema=0.5, dead=0.0).double(), torch.randn(40, 2).double()
    book(z)
    usage, vectors = (
        torch.tensor(v).double() for v in ast.literal_eval(found[0].replace("] [", "], ["))
    )
    lost = book.usage < 0.9 * book.usage.mean()
    assert 0 < int(lost.sum()) < 4
    torch.testing.assert_close(usage, torch.where(lost, book.usage.mean(), book.usage))
    torch.testing.assert_close(vectors[~lost], book.vectors[~lost])
    assert (torch.cdist(vectors[lost], z[::2]).amin(1) < 1e-9).all()


# Bad input


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Encoder((28, 28), 3), "shape"),
        (lambda: Encoder((1, 0, 8), 3), "shape"),
        (lambda: Encoder("abc", 3), "shape"),
        (lambda: Encoder(SHAPE, 0), "features"),
        (lambda: Encoder(SHAPE, 3, ()), "channels"),
        (lambda: Encoder(SHAPE, 3, 4), "channels"),
        (lambda: Encoder(SHAPE, 3, activation="none"), "activation"),
        (lambda: Encoder(SHAPE, 3, blocks=-1), "blocks"),
        (lambda: Encoder(SHAPE, 3)(torch.zeros(5, 63)), r"\(5, 63\)"),
        (lambda: Decoder((3, 4, 4), SHAPE), r"\(F, 2, 2\).*\(3, 4, 4\)"),
        (lambda: Decoder(0, SHAPE), "inputs"),
        (lambda: Decoder(3, SHAPE)(torch.zeros(5, 4)), r"\(\*, 3\), got \(5, 4\)"),
        (lambda: Codebook(1, 2), "codes"),
        (lambda: Codebook(4, 2, commitment=-1.0), "commitment.*-1"),
        (lambda: Codebook(4, 2, ema=1.0), "ema.*1.0"),
        (lambda: Codebook(4, 2, dead=1.0), "dead.*1.0"),
        (lambda: Codebook(4, 2).nearest(torch.zeros(3)), r"\(\*, 2\), got \(3,\)"),
        (lambda: pg.models.ConvVAE(SHAPE, 0), "latent"),
        (lambda: pg.models.ConvVAE(SHAPE, likelihood="cauchy"), "likelihood.*cauchy"),
        (lambda: pg.models.ConvVAE(SHAPE, posterior="half"), "posterior.*half"),
        (lambda: pg.models.ConvVAE(SHAPE, encoder=nn.Linear(64, 5)), "outputs.*Linear"),
        (lambda: pg.models.AutoencoderKL(SHAPE, beta=-1.0), "beta.*-1"),
        (lambda: pg.models.VQVAE(SHAPE, prior=dist.Normal(0.0, 1.0)), "prior.*0 to 511"),
        (lambda: pg.models.VQVAE(SHAPE, likelihood=Bernoulli(SHAPE, 5)), "context=256.*context=5"),
        (
            lambda: pg.models.VQVAE(
                SHAPE, 4, 2, prior=dist.Categorical(torch.ones(5)).expand([2, 2]).to_event(2)
            ),
            "0 to 3",
        ),
        (
            lambda: Quantized(nn.Linear(3, 5), Codebook(2, 2), Bernoulli(3, 2), tiny().prior),
            r"encoder.*\(5,\)",
        ),
        (lambda: VectorQuantization()(tiny(), None), "data"),
        (lambda: tiny().decode(torch.full((4, 1), 2)), "0 to 1, got 2 to 2"),
        (lambda: tiny().decode(torch.zeros(4, 3).long()), r"\(4, 3\)"),
        (lambda: tiny().encode(torch.zeros(4)), r"\(4,\)"),
        (lambda: tiny()(torch.zeros(4)), "no context"),
        (lambda: tiny()().log_prob(torch.full((4, 3), 0.5).double()), "0.5"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "build",
    [
        lambda: Quantized(nn.Linear(3, 2), nn.Linear(1, 1), Bernoulli(3, 2), tiny().prior),
        lambda: Quantized(nn.Linear(3, 2), Codebook(2, 2), dist.Bernoulli(0.5), tiny().prior),
        lambda: Quantized(nn.Linear(3, 2), Codebook(2, 2), Bernoulli(3, 2), "uniform"),
        lambda: VectorQuantization()(pg.models.VAE(3), torch.zeros(2, 3)),
        lambda: tiny().decode(torch.zeros(4, 1)),
    ],
)
def test_bad_types(build):
    with pytest.raises(TypeError, match="Expected"):
        build()
