"""Latent-variable models against exact answers."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

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


@pytest.fixture
def labelled(float64):
    torch.manual_seed(5)
    model = pg.models.SemiSupervisedVAE(4, classes=3, latent=1, hidden_features=(8,)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return model


def widen(model):
    """Makes the posterior the prior, from which one latent is well sampled."""
    with torch.no_grad():
        for p in model.posterior.parameters():
            p.zero_()


def test_the_posterior_of_labels_is_bayes_rule(labelled):
    """Against quadrature over the latent."""
    widen(labelled.conditional)
    x = torch.tensor([[0.0, 1, 1, 0], [1, 1, 1, 1]])
    z = torch.linspace(-8, 8, 2001)[:, None]
    joint = []
    for k in range(3):
        code = torch.eye(3)[k].expand(2001, 3)
        inner = labelled.conditional.decode(z, code)
        log_p = inner.log_prob(x[:, None]) + dist.Normal(0.0, 1.0).log_prob(z[:, 0])
        joint.append(torch.trapezoid(log_p.exp(), z[:, 0], dim=-1) / 3)
    joint = torch.stack(joint, -1)
    found = labelled.label_posterior(x, samples=20_000).probs
    torch.testing.assert_close(found, joint / joint.sum(-1, keepdim=True), rtol=0, atol=5e-3)
    exact = joint.sum(-1).log()
    marginal = labelled.log_marginal(x, samples=20_000)
    assert ((marginal.value - exact).abs() < 5 * marginal.se).all()


def test_the_posterior_of_labels_is_exact_where_the_latent_says_nothing(labelled):
    with torch.no_grad():
        labelled.conditional.likelihood.network.layers.weights[0][:, 0] = 0
    widen(labelled.conditional)
    x = torch.randint(2, (20, 4)).double()
    given = torch.stack([labelled.conditional.decode(torch.zeros(1), c).base_dist.logits
                         for c in torch.eye(3)])  # fmt: skip
    bayes = dist.Bernoulli(logits=given).log_prob(x[:, None]).sum(-1).softmax(-1)
    found = labelled.label_posterior(x, samples=2).probs
    torch.testing.assert_close(found, bayes, rtol=0, atol=1e-6)


def test_labels_are_enumerated_exactly(labelled):
    """The bound is the sum over labels of the bounds given each, by hand."""
    x = torch.randint(2, (5, 4)).double()
    torch.manual_seed(1)
    w = labelled.weigh(x, analytic=True)
    torch.manual_seed(1)
    every = labelled.every(torch.Size([5]))
    inner = labelled.conditional.weigh(x.expand(3, 5, 4), every, analytic=True)
    q = labelled.classify(x).probs.T
    torch.testing.assert_close(q.sum(0), torch.ones(5), rtol=0, atol=1e-12)
    bound = inner.log_likelihood[0] - inner.divergence.sum(-1) - math.log(3) - q.log()
    expected = (q * bound).sum(0)
    found = w.log_likelihood[0] - w.divergence.sum(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    known = labelled.weigh(x, torch.full((5, 1), 2.0), analytic=True)
    assert known.divergence.shape == (5, 2)
    torch.testing.assert_close(known.divergence[:, 1], torch.full((5,), math.log(3)))


def test_the_semi_supervised_pair_agrees_with_the_objective(labelled):
    x, y = torch.randint(2, (5, 4)).double(), torch.tensor([[0.0], [1], [2], [1], [0]])
    for context in (None, y):
        elbo = TraceEnum_ELBO(max_plate_nesting=1) if context is None else Trace_ELBO()
        theirs, ours = [], []
        for seed in range(300):
            torch.manual_seed(seed)
            theirs.append(elbo.loss(labelled.model, labelled.guide, x, context))
            with torch.no_grad():
                ours.append(ELBO()(labelled, x, context).sum())
        theirs, ours = torch.tensor(theirs), torch.stack(ours)
        error = (theirs.var() + ours.var()).sqrt() / 300**0.5
        assert abs(theirs.mean() - ours.mean()) < 4 * error
    with pytest.raises(ValueError, match="3 known of 5"):
        labelled.model(x, torch.where(y > 0, y, -1.0))


def test_labels_help_where_they_are_few():
    data = pg.datasets.digits()
    x, y = (data.images > 7).float(), data.labels[:, None].float()
    known = torch.full_like(y, -1.0)
    known[:100] = y[:100]
    torch.manual_seed(0)
    model = pg.models.SemiSupervisedVAE(64, 10, 8, (64,))
    pg.fit(model, x[:1400], context=known[:1400], steps=200, lr=2e-3, seed=0, progress=False)
    held = x[1400:]
    assert (model.classify(held).probs.argmax(-1) == data.labels[1400:]).float().mean() > 0.6


def test_semi_supervised_models_save_and_refuse(labelled, tmp_path):
    labelled.save(tmp_path)
    x = torch.ones(5, 4)
    again = pg.load(tmp_path)
    assert torch.equal(again.classify(x).logits, labelled.classify(x).logits)
    assert labelled().sample((5,)).shape == labelled(torch.zeros(5, 1)).sample().shape == (5, 4)
    for objective in (StickingTheLanding(), pg.objectives.DReG(2)):
        with pytest.raises(ValueError, match="labels are summed out"):
            objective(labelled, x)
    conditional = pg.models.ConditionalVAE(4, 3, 1, (8,))
    wrong = pg.distributions.Categorical(1, 4, 4)
    with pytest.raises(ValueError, match=r"in 3 classes with context=4.*in 4 with"):
        pg.distributions.SemiSupervised(conditional, wrong)
    with pytest.raises(ValueError, match="`weight`"):
        pg.objectives.Supervised(weight=-1.0)


def test_a_pushforward_is_a_base_site_and_what_follows(tmp_path):
    vae = pg.models.ConditionalVAE(8, 1, 2, (16,), "normal").freeze()
    vae.initialize(torch.randn(50, 8), 5 * torch.rand(50, 1))
    prior = vae.pushforward
    assert prior.density is pg.Density.PUSHFORWARD
    d = prior(torch.randn(5, 1))
    assert (d.batch_shape, d.event_shape) == ((5,), (8,))
    assert d.sample((3,)).shape == (3, 5, 8)
    assert d.expand((2, 5)).sample().shape == (2, 5, 8)
    with pytest.raises(NotImplementedError, match=r"pg\.sample"):
        d.log_prob(d.sample())
    with pytest.raises(ValueError, match="no observed value"):
        pg.sample("x", prior, torch.zeros(1), obs=torch.zeros(8))
    prior.save(tmp_path)
    c, z = torch.randn(5, 1), torch.randn(5, 2)
    assert torch.equal(prior.push(z, c), vae.decode(z, c).mean)
    assert torch.equal(pg.load(tmp_path).push(z, c), prior.push(z, c))
    own = pg.distributions.Pushforward(dist.Normal(torch.zeros(2), 1.0).to_event(1), MLP(2, 5))
    assert own().sample((4,)).shape == (4, 5)
    y = torch.zeros(8)

    def model():
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        x = pg.sample("x", prior, scale[None])
        pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    draws = pg.mcmc.run(model, chains=4, warmup=10, draws=5, seed=0, progress=False)
    assert draws.samples["x"].shape == (4, 5, 8)
    assert draws.samples["x_base"].shape == (4, 5, 2)


def test_the_density_of_a_mixture_posterior_has_its_gradient():
    """By maximum likelihood of the bound, as under the bound's own objective."""
    torch.manual_seed(0)
    posterior = pg.distributions.GaussianMixture(2, 3, context=5, hidden_features=(8,))
    model = pg.models.VAE(5, 2, (8,), posterior=posterior, samples=5)
    with torch.no_grad():
        for p in model.likelihood.parameters():
            p.normal_()
    model.likelihood.freeze()
    x = torch.randint(2, (64, 5)).float()
    before = model.log_marginal(x, samples=500)
    objective = pg.objectives.MaximumLikelihood()
    pg.fit(model, x, objective=objective, steps=150, lr=1e-2, seed=0, progress=False)
    after = model.log_marginal(x, samples=500)
    assert after.ess.mean() > 1.2 * before.ess.mean()
    assert (after.value - before.value).abs().mean() < 0.5


def test_one_mini_batch_is_shared_by_all_draws(float64):
    data = torch.cat([torch.zeros(50), torch.full((50,), 5.0)])

    def model():
        with pyro.plate("data", 100, subsample_size=10) as i:
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[i])

    def guide():
        with pyro.plate("data", 100, subsample_size=10) as i:
            pyro.sample("z", dist.Normal(data[i] / 2, 0.5**0.5))

    exact = -dist.Normal(0.0, 2**0.5).log_prob(data).sum()
    torch.manual_seed(0)
    losses = torch.tensor([IWAE(5).elbo(1).loss(model, guide) for _ in range(300)])
    assert abs(losses.mean() - exact) < 4 * losses.std() / 300**0.5


@pytest.mark.parametrize("objective", [pg.objectives.ForwardKL(2), StickingTheLanding()])
def test_labels_summed_out_refuse_draws_that_are_held(labelled, objective):
    with pytest.raises(ValueError, match="labels are summed out"):
        objective(labelled, torch.ones(5, 4))


def test_the_density_given_a_label_sums_to_one(labelled):
    widen(labelled.conditional)
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    for context in (None, torch.full((16, 1), 2.0)):
        total = labelled.log_marginal(x, context, 4000).value.exp().sum()
        assert abs(total - 1) < 0.05


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([2.0, 0.0]), r"\(\*, 1\), got \(2,\)"),
        (torch.tensor([[3.0], [0.0]]), "labels 0 to 2, or -1 where unknown, got 3"),
        (torch.tensor([[0.5], [0.0]]), "got 0.5"),
    ],
)
def test_bad_labels_are_refused(labelled, labels, words):
    with pytest.raises(ValueError, match=words):
        pg.objectives.Supervised()(labelled, torch.ones(2, 4), labels.double())


def test_a_single_datum_is_not_a_batch():
    vae, given = pg.models.VAE(5, 2, (8,)), pg.models.ConditionalVAE(5, 2, 2, (8,))
    for run in (
        lambda: vae.model(torch.ones(5)),
        lambda: vae.guide(torch.ones(5)),
        lambda: pg.models.MAF(5).model(torch.ones(5)),
        lambda: given.model(None, torch.zeros(2)),
    ):
        with pytest.raises(ValueError, match=r"shape \(N, \*\), an item for each row"):
            run()


def test_parts_without_an_exact_density_are_refused():
    bound = pg.models.ConditionalVAE(1, context=1, latent=4, hidden_features=(16,))
    with pytest.raises(ValueError, match=r"`posterior` whose density is exact or ode.*bound"):
        Latent(StandardNormal(1), DiagonalNormal(1, 1), bound)
    pushed = pg.distributions.Pushforward(StandardNormal(2), MLP(3, 4), context=1)
    with pytest.raises(ValueError, match=r"`likelihood` whose density.*pushforward"):
        Latent(StandardNormal(1), pushed, DiagonalNormal(1, 4))
    with pytest.raises(ValueError, match=r"`encoder` that returns.*context=5 features, got \(7,\)"):
        pg.models.VAE(5, 2, encoder=torch.nn.Linear(5, 7))
    with pytest.raises(ValueError, match=r"batch shape \(2,\).*to_event"):
        pg.distributions.Pushforward(dist.Normal(torch.zeros(2), 1.0), MLP(2, 3))
    assert pg.distributions.Pushforward(dist.Normal(0.0, 1.0), MLP(1, 3))().sample().shape == (3,)


def test_bounds_are_refused_by_name_within_an_event():
    vae = pg.models.VAE(3, 2, (8,), "normal").freeze()

    def model():
        x = pyro.sample("x", vae().expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match="site 'x', got a stochastic bound"):
        pg.mcmc.run(model, chains=2, warmup=2, draws=2, progress=False)


def test_upper_bounds_and_foreign_models_are_refused_under_svi():
    vae, x = pg.models.VAE(4, 2, (8,)), torch.ones(20, 4)
    adam = pyro.optim.Adam({"lr": 1e-2})
    with pytest.raises(ValueError, match="frozen `likelihood` for ChiSquare"):
        SVI(vae.model, vae.guide, adam, pg.objectives.ChiSquare().elbo()).step(x)
    vae.likelihood.freeze()
    SVI(vae.model, vae.guide, adam, pg.objectives.ChiSquare().elbo()).step(x)
    with pytest.raises(ValueError, match=r"no `warm_up`.*at"):
        ELBO(warm_up=0.5).elbo()
    with pytest.raises(TypeError, match="a Latent for ChiSquare, got a LadderVAE"):
        pg.objectives.ChiSquare()(pg.models.LadderVAE(4, (2, 1), (8, 8)), x)
    vq = pg.models.VQVAE((1, 4, 4), codes=4, code_features=2, channels=(4,))
    with pytest.raises(ValueError, match="a VQVAE, which VectorQuantization trains"):
        pg.fit(vq, torch.ones(4, 1, 4, 4), objective=IWAE(2), steps=1, progress=False)


def test_discrete_latents(float64):
    """Against the sum over all latents."""
    torch.manual_seed(0)
    model = Latent(
        dist.Bernoulli(torch.full((2,), 0.5)).to_event(1),
        Bernoulli(3, context=2, hidden_features=(8,)),
        Bernoulli(2, context=3, hidden_features=(8,)),
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.5)
    x = torch.randint(2, (4, 3)).double()
    z = torch.cartesian_prod(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    joint = model.decode(z[:, None]).log_prob(x) + math.log(0.25)
    found = model.log_marginal(x, samples=5000)
    assert ((found.value - joint.logsumexp(0)).abs() < 5 * found.se).all()
    q = model.encode(x)
    exact = (q.log_prob(z[:, None]).exp() * (joint - q.log_prob(z[:, None]))).sum(0)
    parameters = list(model.posterior.parameters())
    wanted = torch.autograd.grad(exact.sum(), parameters)[0]
    draws = [torch.autograd.grad(-ELBO(samples=50)(model, x).sum(), parameters)[0]
             for _ in range(200)]  # fmt: skip
    draws = torch.stack(draws)
    error = draws.std(0) / 200**0.5
    assert ((draws.mean(0) - wanted).abs() < 5 * error + 1e-9).all()
