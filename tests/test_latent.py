"""Latent-variable models against exact answers."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO

import probgen as pg
from probgen.distributions import Bernoulli, DiagonalNormal, FullNormal, Latent, StandardNormal
from probgen.networks import MLP
from probgen.objectives import ELBO, IWAE, StickingTheLanding

D, Q = 6, 2


def set_linear(module, weight, bias):
    """Makes a head without hidden layers answer `weight @ context + bias`."""
    with torch.no_grad():
        module.network.layers.weights[0].zero_()[: len(weight)].copy_(weight)
        module.network.layers.biases[0].zero_()
        module.phi.zero_()[: len(bias)].copy_(bias)


def linear_model(scale, posterior=FullNormal):
    return Latent(
        StandardNormal(Q),
        DiagonalNormal(D, context=Q, hidden_features=(), scale=scale),
        posterior(Q, context=D, hidden_features=()),
    )


def factors(noise):
    """A factor analysis: loadings, mean, the exact posterior's parts, and the law of the data."""
    w, mean = torch.randn(D, Q), torch.randn(D)
    precision = torch.eye(Q) + w.T @ (w / noise[:, None])
    gain = torch.linalg.solve(precision, w.T / noise)
    law = dist.MultivariateNormal(mean, w @ w.T + torch.diag(noise))
    return w, mean, precision, gain, law


def exact_posterior(model, mean, precision, gain):
    factor = torch.linalg.cholesky(torch.linalg.inv(precision))
    below = (factor / factor.diagonal()[:, None])[tuple(torch.tril_indices(Q, Q, -1))]
    bias = torch.cat([-gain @ mean, factor.diagonal().log(), below])
    set_linear(model.posterior, gain, bias)


def test_the_bound_at_the_exact_posterior_is_the_likelihood_of_probabilistic_pca(float64):
    torch.manual_seed(0)
    w, mean, precision, gain, law = factors(torch.full((D,), 0.25))
    x = law.sample((500,))
    model = linear_model(0.5)
    set_linear(model.likelihood, w, mean)
    exact_posterior(model, mean, precision, gain)
    bound = model().log_prob(x)
    torch.testing.assert_close(bound, law.log_prob(x), rtol=0, atol=1e-6)

    # the greatest likelihood, from the eigenvalues of the covariance
    centred = x - x.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    values, vectors = values.flip(0), vectors.flip(1)
    noise = values[Q:].mean()
    best = vectors[:, :Q] * (values[:Q] - noise).sqrt()
    law = dist.MultivariateNormal(x.mean(0), best @ best.T + noise * torch.eye(D))
    constant = D * math.log(2 * math.pi) + D
    known = -(constant + values[:Q].log().sum() + (D - Q) * noise.log()) / 2
    torch.testing.assert_close(law.log_prob(x).mean(), known)


def test_a_linear_vae_reaches_the_likelihood_of_probabilistic_pca(float64):
    torch.manual_seed(1)
    x = factors(torch.full((D,), 0.25))[-1].sample((300,))
    values = torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)) / len(x)).flip(0)
    constant = D * math.log(2 * math.pi) + D
    best = -(constant + values[:Q].log().sum() + (D - Q) * values[Q:].mean().log()) / 2
    model = linear_model("shared", DiagonalNormal).double()
    optimizer = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.03}, "gamma": 0.994}
    )
    svi = SVI(model.model, model.guide, optimizer, TraceMeanField_ELBO())
    for _ in range(750):
        svi.step(x)
        optimizer.step()
    with torch.no_grad():
        zero = model.decode(torch.zeros(Q))
        columns = model.decode(torch.eye(Q)).mean - zero.mean
        noise = zero.variance
    law = dist.MultivariateNormal(zero.mean, columns.T @ columns + torch.diag(noise))
    assert best - 0.01 < law.log_prob(x).mean() < best + 1e-9
    held = model.log_marginal(x, samples=200)
    assert (held.value.mean() - law.log_prob(x).mean()).abs() < 0.01


@pytest.mark.parametrize("posterior", [DiagonalNormal, FullNormal])
def test_the_gap_of_factor_analysis_is_that_of_its_posterior(posterior, float64):
    torch.manual_seed(2)
    w, mean, precision, gain, law = factors(0.2 + torch.rand(D))
    noise = law.covariance_matrix.diagonal() - w.square().sum(1)
    x = law.sample((300,))
    model = linear_model("learned", posterior)
    set_linear(model.likelihood, w, torch.cat([mean, noise.sqrt().log()]))
    if posterior is FullNormal:
        exact_posterior(model, mean, precision, gain)
        gap = torch.tensor(0.0)
    else:
        logs = -precision.diagonal().log() / 2
        set_linear(model.posterior, gain, torch.cat([-gain @ mean, logs]))
        gap = (precision.diagonal().log().sum() - precision.logdet()) / 2
    bounds = torch.stack([-ELBO()(model, x) for _ in range(200)])
    found = law.log_prob(x) - bounds
    error = found.mean(1).std() / 200**0.5
    assert abs(found.mean() - gap) < 4 * error + 1e-9


def test_importance_weighted_bounds_rise_to_the_likelihood(float64):
    torch.manual_seed(3)
    w, mean, _, gain, law = factors(0.2 + torch.rand(D))
    noise = law.covariance_matrix.diagonal() - w.square().sum(1)
    x = law.sample((200,))
    model = linear_model("learned", DiagonalNormal)
    set_linear(model.likelihood, w, torch.cat([mean, noise.sqrt().log()]))
    set_linear(model.posterior, gain, torch.cat([-gain @ mean, torch.full((Q,), -0.7)]))
    exact = law.log_prob(x).mean()
    means, errors = [], []
    for k in (1, 5, 50, 1000):
        with torch.no_grad():
            draws = torch.stack([-IWAE(k)(model, x).mean() for _ in range(30)])
        means.append(draws.mean())
        errors.append(draws.std() / 30**0.5)
    for k in range(3):
        assert means[k + 1] > means[k] - 3 * torch.hypot(errors[k], errors[k + 1])
    assert all(m < exact + 3 * e for m, e in zip(means, errors))
    assert exact - means[0] > 10 * errors[0]
    found = model.log_marginal(x, samples=1000)
    assert ((found.value - law.log_prob(x)).abs() < 5 * found.se).all()


def test_sticking_the_landing_has_no_variance_at_the_exact_posterior(float64):
    torch.manual_seed(4)
    w, mean, precision, gain, law = factors(torch.full((D,), 0.25))
    model = linear_model(0.5)
    set_linear(model.likelihood, w, mean)
    exact_posterior(model, mean, precision, gain)
    x = law.sample((50,))
    StickingTheLanding()(model, x).mean().backward()
    assert all(p.grad.abs().max() < 1e-9 for p in model.posterior.parameters())
    model.zero_grad()
    ELBO()(model, x).mean().backward()
    assert any(p.grad.abs().max() > 1e-3 for p in model.posterior.parameters())


def test_free_bits_cost_nothing_below_their_level(float64):
    model = pg.models.VAE(4, 3, (8,)).double()
    x = torch.randint(2, (20, 4)).double()
    w = model.weigh(x, analytic=True)
    torch.testing.assert_close(w.divergence, torch.zeros(20, 3))
    torch.manual_seed(0)
    free = ELBO(free_bits=0.5)(model, x)
    torch.manual_seed(0)
    torch.testing.assert_close(free, ELBO()(model, x) + 1.5)
    free.sum().backward()
    gradient = model.posterior.phi.grad  # of the fit alone
    torch.manual_seed(0)
    model.zero_grad()
    ELBO(beta=0.0)(model, x).sum().backward()
    torch.testing.assert_close(gradient, model.posterior.phi.grad)


def test_warm_up_raises_the_weight(monkeypatch):
    seen = []

    class Watched(ELBO):
        def bound_losses(self, weights):
            seen.append(self.beta)
            return super().bound_losses(weights)

    model = pg.models.VAE(4, 2, (8,))
    x = torch.ones(40, 4)
    history = pg.fit(
        model, x, objective=Watched(beta=2.0, warm_up=0.5), steps=8, batch_size=40,
        validation=x, seed=0, progress=False,
    )  # fmt: skip
    assert seen[:8] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]
    assert seen[8:] == [2.0] * len(history.validation)
    assert ELBO(warm_up=0.5).at(0.25) == ELBO(beta=0.5)


def test_the_divergence_of_normal_posteriors_is_exact(float64):
    torch.manual_seed(0)
    for name in ("diagonal", "full"):
        model = pg.models.VAE(4, 3, (8,), posterior=name).double()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p))
        x = torch.randint(2, (5, 4)).double()
        exact = model.weigh(x, analytic=True).divergence
        assert exact.shape == (5, 3 if name == "diagonal" else 1)
        w = model.weigh(x, samples=20_000)
        draws = (w.log_posterior - w.log_prior).detach()
        z = (draws.mean(0) - exact.sum(-1)) / (draws.std(0) / 20_000**0.5)
        assert z.abs().max() < 4.5


def test_an_encoder_feeds_a_flow_posterior():
    width = 8
    base = DiagonalNormal(2, context=width, hidden_features=())
    flow = pg.distributions.Flow([pg.transforms.Learned(pg.transforms.Planar, 2, width)], base)
    vae = pg.models.VAE(6, 2, (8,), posterior=flow, encoder=MLP(6, width, hidden_features=(8,)))
    x = torch.randint(2, (50, 6)).float()
    pg.fit(vae, x, steps=5, progress=False)
    assert all(p.grad.abs().sum() > 0 for p in vae.encoder.parameters())
    assert vae.encode(x).batch_shape == (50,)
    assert vae.reconstruct(x).shape == (50, 6)


def test_a_frozen_decoder_stays_as_it_is():
    vae = pg.models.VAE(6, 2, (8,))
    before = [p.clone() for p in vae.likelihood.freeze().parameters()]
    pg.fit(vae, torch.randint(2, (50, 6)).float(), steps=3, progress=False)
    assert all(map(torch.equal, before, vae.likelihood.parameters()))


def test_images_have_their_shape():
    shape = (1, 4, 4)
    model = Latent(
        StandardNormal(2),
        Bernoulli(shape, context=2, hidden_features=(8,)),
        DiagonalNormal(2, context=16, hidden_features=(8,)),
    )
    x = torch.randint(2, (30, *shape)).float()
    pg.fit(model, x, steps=5, progress=False)
    assert model().sample((3,)).shape == (3, *shape)
    assert model.log_marginal(x, samples=10).value.shape == (30,)


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (
            lambda: Latent(StandardNormal(2), Bernoulli(3, context=4), DiagonalNormal(2, 3)),
            ValueError,
            "likelihood with context=2.*got context=4",
        ),
        (
            lambda: Latent(StandardNormal(2), Bernoulli(3, context=2), DiagonalNormal(2, 4)),
            ValueError,
            "posterior with context=3.*got context=4",
        ),
        (
            lambda: Latent(StandardNormal(2), Bernoulli(3, context=2), DiagonalNormal(3, 3)),
            ValueError,
            r"prior's latents, with shape \(2,\), got \(3,\)",
        ),
        (
            lambda: Latent(
                dist.Beta(torch.ones(2), 1.0).to_event(1),
                Bernoulli(3, context=2),
                DiagonalNormal(2, 3),
            ),
            ValueError,
            "prior's support",
        ),
        (
            lambda: Latent(StandardNormal(2), torch.nn.Linear(2, 3), DiagonalNormal(2, 3)),
            TypeError,
            "lazy `likelihood`.*Linear",
        ),
        (lambda: pg.models.VAE(3, 0), ValueError, "`latent`"),
        (
            lambda: pg.models.VAE(3, 2, likelihood="gauss"),
            ValueError,
            "`likelihood` among.*'gauss'",
        ),
        (lambda: pg.models.VAE(3, 2, posterior="flow"), ValueError, "`posterior` among.*'flow'"),
        (lambda: pg.models.ConditionalVAE(3, 0), ValueError, "`context`"),
        (lambda: ELBO(beta=-1.0), ValueError, "`beta`"),
        (lambda: ELBO(free_bits=-1.0), ValueError, "`free_bits`"),
        (lambda: ELBO(warm_up=2.0), ValueError, "`warm_up`"),
        (lambda: IWAE(0), ValueError, "`samples`"),
        (lambda: pg.objectives.Renyi(math.inf), ValueError, "`alpha`"),
        (lambda: pg.objectives.ChiSquare(1.0), ValueError, "`order`"),
    ],
)
def test_parts_that_do_not_fit_are_refused(build, error, words):
    with pytest.raises(error, match=words):
        build()


def test_data_outside_the_support_are_refused():
    vae = pg.models.VAE(3, 2, (8,))
    x = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
    with pytest.raises(ValueError, match=r"got values in \[0, 1\], the first outside in item 1"):
        pg.fit(vae, x, steps=1, progress=False)
    with pytest.raises(ValueError, match=r"support.*got 0\.5"):
        vae().log_prob(x)
    with pytest.raises(ValueError, match=r"\(\*, 3\), got \(2,\)"):
        vae().log_prob(torch.zeros(2))
    with pytest.raises(ValueError, match=r"\(\*, 3\), got \(5, 2\)"):
        vae.encode(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"\(\*, 2\), got \(5, 3\)"):
        vae.decode(torch.zeros(5, 3))
    with pytest.raises(TypeError, match=r"latent variables.*got a MAF"):
        pg.fit(pg.models.MAF(3), torch.randn(5, 3), objective=IWAE(), steps=1, progress=False)
    with pytest.raises(ValueError, match="posterior given them"):
        vae.guide()


def test_chi_square_refuses_a_model_that_learns():
    vae = pg.models.VAE(3, 2, (8,))
    with pytest.raises(ValueError, match="frozen `likelihood`"):
        pg.objectives.ChiSquare()(vae, torch.ones(5, 3))
