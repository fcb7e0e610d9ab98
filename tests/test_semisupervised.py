"""Labels, pushforwards and what stands beside latents."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO

import probgen as pg
from probgen.distributions import Bernoulli, DiagonalNormal, Latent, StandardNormal
from probgen.networks import MLP
from probgen.objectives import ELBO, IWAE, StickingTheLanding

from .latent_cases import labelled as labelled
from .latent_cases import widen


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
