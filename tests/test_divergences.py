"""Divergences as objectives: of modules through `fit`, of Pyro pairs through `elbo`."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedGamma
from pyro.distributions.testing.rejection_gamma import ShapeAugmentedGamma
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, config_enumerate
from torch import nn
from torch.distributions import constraints

import probgen as pg
from probgen.objectives import (
    ELBO,
    IWAE,
    ChiSquare,
    DReG,
    ForwardKL,
    MaximumLikelihood,
    Renyi,
    ReverseKL,
    StickingTheLanding,
)

pytestmark = pytest.mark.usefixtures("float64")

COVARIANCE = [[1.0, 0.7, 0.2], [0.7, 1.5, -0.3], [0.2, -0.3, 0.8]]


def fitted(module, data, objective, steps=700, lr=3e-2, **options):
    options = {"schedule": "cosine", "seed": 0, "progress": False, **options}
    pg.fit(module, data, objective=objective, steps=steps, lr=lr, **options)
    return module()


def spaced(covariance, count=1000):
    """Draws of a normal law whose mean and covariance are exactly those wanted."""
    x = torch.randn(count, len(covariance))
    x = x - x.mean(0)
    whiten = torch.linalg.cholesky(torch.cov(x.T, correction=0))
    return (
        torch.linalg.solve_triangular(whiten, x.T, upper=False).T
        @ torch.linalg.cholesky(covariance).T
    )


def test_a_factorised_law_has_the_conditional_or_the_marginal_variances():
    covariance = torch.tensor(COVARIANCE)
    target = dist.MultivariateNormal(torch.zeros(3), covariance)
    module = pg.distributions.DiagonalNormal(3).double()
    q = fitted(module, None, ReverseKL(target.log_prob, particles=400), steps=500)
    precision = torch.linalg.inv(covariance)
    torch.testing.assert_close(q.variance, 1 / precision.diagonal(), rtol=0.02, atol=0)
    module = pg.distributions.DiagonalNormal(3).double()
    q = fitted(module, spaced(covariance), MaximumLikelihood(), steps=200, batch_size=1000)
    torch.testing.assert_close(q.variance, covariance.diagonal(), rtol=0.02, atol=0)


def correlated():
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), torch.tensor(COVARIANCE)))


@pytest.mark.parametrize(
    ("objective", "exact"),
    [
        (ELBO(samples=2000), 1 / torch.linalg.inv(torch.tensor(COVARIANCE)).diagonal()),
        (ForwardKL(samples=5000), torch.tensor(COVARIANCE).diagonal()),
    ],
    ids=["exclusive", "inclusive"],
)
def test_a_guide_has_the_conditional_or_the_marginal_variances(objective, exact):
    guide = pg.inference.MeanField(correlated, scale=0.7)
    elbo = objective.elbo(vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(correlated, guide, pyro.optim.ClippedAdam({"lr": 5e-2, "lrd": 0.99}), elbo)
    for _ in range(500):
        svi.step()
    variance = guide.distribution().variance
    torch.testing.assert_close(variance, exact.to(variance), rtol=0.02, atol=0)


def grid():
    x = torch.linspace(-12, 12, 4001)
    return x, x[1] - x[0]


def bimodal(x):
    parts = torch.stack([dist.Normal(-2.0, 0.7).log_prob(x), dist.Normal(2.0, 0.5).log_prob(x)])
    return (parts + torch.tensor([0.4, 0.6]).log().reshape(2, *[1] * x.ndim)).logsumexp(0)


def test_one_divergence_seeks_a_mode_and_the_other_covers():
    x, width = grid()
    p = bimodal(x).exp()
    mean = (p * x).sum() * width
    sd = ((p * (x - mean) ** 2).sum() * width).sqrt()

    numbers = torch.tensor([2.0, math.log(0.5)], requires_grad=True)  # at the right mode
    lbfgs = torch.optim.LBFGS([numbers], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        lbfgs.zero_grad()
        q = dist.Normal(numbers[0], numbers[1].exp())
        loss = (q.log_prob(x).exp() * (q.log_prob(x) - bimodal(x))).sum() * width
        loss.backward()
        return loss

    lbfgs.step(closure)
    module = pg.distributions.DiagonalNormal(1).double()
    module.standardizer.shift.fill_(1.0)
    q = fitted(module, None, ReverseKL(lambda z: bimodal(z[..., 0]), particles=128), steps=500)
    seeking = torch.stack([q.mean[0], q.stddev[0]])
    exact = torch.stack([numbers[0], numbers[1].exp()]).detach()
    torch.testing.assert_close(seeking, exact, rtol=0.02, atol=0)

    uniform = (torch.arange(8000) + 0.5) / 8000
    cdf = (p * width).cumsum(0)
    data = torch.from_numpy(np.interp(uniform.numpy(), cdf.numpy(), x.numpy()))[:, None]
    module = pg.distributions.DiagonalNormal(1).double()
    q = fitted(module, data, MaximumLikelihood(), steps=200, batch_size=8000)
    torch.testing.assert_close(q.mean[0], mean, rtol=0.02, atol=0)
    torch.testing.assert_close(q.stddev[0], sd, rtol=0.02, atol=0)
    assert seeking[1] < 0.6 < 1.5 < q.stddev[0]


def test_renyi_bounds_fall_with_the_order_and_meet_the_elbo():
    vae = pg.models.VAE(6, latent=2, hidden_features=(8,)).double()
    weights = vae.weigh(torch.ones(5, 6), None, samples=20)
    orders = [-2.0, -0.5, 0.0, 0.5, 0.9, 1.0, 1.1, 2.0, 5.0]
    bounds = torch.stack([-Renyi(alpha=a).bound_losses(weights) for a in orders])
    assert (bounds.diff(dim=0) <= 1e-12).all()
    torch.testing.assert_close(bounds[2], -IWAE().bound_losses(weights), rtol=0, atol=1e-10)
    torch.testing.assert_close(bounds[5], -ELBO().bound_losses(weights), rtol=0, atol=1e-10)
    for order in (1 - 1e-12, 1 + 1e-12):
        near = -Renyi(alpha=order).bound_losses(weights)
        torch.testing.assert_close(near, bounds[5], rtol=0, atol=1e-10)


@pytest.mark.parametrize("alpha", [-1.0, 0.3, 0.999, 1.001, 3.0])
def test_renyi_bounds_of_weights_of_any_size(alpha):
    log_w = (100 * torch.randn(20, 4)).requires_grad_()
    rest = 1 - alpha
    plain = ((rest * log_w).logsumexp(0) - math.log(20)) / rest
    bound = Renyi(alpha).bound(log_w)
    torch.testing.assert_close(bound, plain)
    pair = [torch.autograd.grad(v.sum(), log_w, retain_graph=True)[0] for v in (bound, plain)]
    torch.testing.assert_close(*pair)
    zero = torch.full((3, 2), -torch.inf)
    assert Renyi(alpha).bound(zero).eq(-torch.inf).all()
    zero[0, 0] = 0.0
    expected = -math.log(3) / rest if rest > 0 else -torch.inf
    assert abs(Renyi(alpha).bound(zero)[0] - expected) < 1e-10 or rest < 0


ITEMS, SD = 500, 1.2  # of the guide's z, relative to the exact posterior's


class Toy(nn.Module):
    """A normal latent per item, its guide wrong in mean and scale, and parameters of both."""

    def __init__(self, shift=0.4, scale=SD):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.3]))
        self.phi = nn.Parameter(torch.tensor([shift, math.log(scale * 0.5**0.5)]))

    def prior(self):
        return dist.Normal(self.theta[0], 1.0)

    def posterior(self, x):
        return dist.Normal((x + self.theta[0].detach()) / 2 + self.phi[0], self.phi[1].exp())

    def model(self, x, size=None, index=None):
        pyro.module("toy", self)
        with pyro.plate("data", size or len(x), subsample=index):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x, size=None, index=None):
        pyro.module("toy", self)
        with pyro.plate("data", size or len(x), subsample=index):
            pyro.sample("z", self.posterior(x))

    def log_w(self, x, eps):
        q = self.posterior(x)
        z = q.mean + q.stddev * eps
        return self.prior().log_prob(z) + dist.Normal(z, 1.0).log_prob(x) - q.log_prob(z)

    def exact(self, x):
        return dist.Normal(self.theta[0], 2**0.5).log_prob(x)


def quadrature(count=40):
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def two_draws(toy, x, bound):
    """The expected bound from two draws of one item, by quadrature."""
    nodes, weights = quadrature()
    pairs = torch.cartesian_prod(nodes, nodes).T  # (2, Q)
    log_w = toy.log_w(x, pairs)
    return (bound(log_w) * torch.outer(weights, weights).flatten()).sum()


def gradients(toy, elbo, runs, *args, **kwargs):
    """The mean gradient of a loss per item, and its standard error."""
    rows = []
    for _ in range(runs):
        toy.zero_grad()
        elbo.differentiable_loss(toy.model, toy.guide, *args, **kwargs).backward()
        rows.append(torch.cat([p.grad for p in toy.parameters()]) / ITEMS)
    rows = torch.stack(rows)
    return rows.mean(0), rows.std(0) / runs**0.5


def iwae(log_w):
    return log_w.logsumexp(0) - math.log(2)


@pytest.mark.parametrize("vectorize", [False, True], ids=["runs", "one run"])
def test_iwae_of_items_in_a_plate_is_the_sum_of_their_bounds(vectorize):
    toy, x = Toy(), torch.tensor(0.8)
    exact = two_draws(toy, x, iwae).detach()
    elbo = IWAE(2).elbo(vectorize_particles=vectorize, max_plate_nesting=1)
    data = x.expand(ITEMS)
    values = torch.tensor([-elbo.loss(toy.model, toy.guide, data) / ITEMS for _ in range(60)])
    assert abs(values.mean() - exact) < 4 * values.std() / 60**0.5
    assert abs(toy.exact(x) - exact) > 20 * values.std() / 60**0.5  # it would show
    sharp = Toy(0.0, 1.0)
    elbo = IWAE(3).elbo(vectorize_particles=vectorize, max_plate_nesting=1)
    data = torch.randn(7)
    torch.testing.assert_close(
        torch.tensor(-elbo.loss(sharp.model, sharp.guide, data)), sharp.exact(data).sum()
    )


@pytest.mark.parametrize(
    ("objective", "bound"),
    [
        (ELBO(samples=2), lambda w: w.mean(0)),
        (StickingTheLanding(2), lambda w: w.mean(0)),
        (IWAE(2), iwae),
        (DReG(2), iwae),
        (Renyi(0.5, 2), lambda w: 2 * iwae(w / 2)),
    ],
    ids=["ELBO", "STL", "IWAE", "DReG", "Renyi"],
)
def test_gradients_are_those_of_the_expected_bound(objective, bound):
    toy, x = Toy(), torch.tensor(0.8)
    two_draws(toy, x, bound).neg().backward()
    exact = torch.cat([p.grad for p in toy.parameters()])
    elbo = objective.elbo(vectorize_particles=True, max_plate_nesting=1)
    mean, se = gradients(toy, elbo, 80, x.expand(ITEMS))
    assert ((mean - exact).abs() < 4 * se).all()
    assert (se < 0.02).all()


def test_the_path_gradient_has_no_variance_at_the_exact_posterior():
    toy, x = Toy(0.0, 1.0), torch.randn(20)
    for objective in (StickingTheLanding(3), DReG(3)):
        toy.zero_grad()
        elbo = objective.elbo(vectorize_particles=True, max_plate_nesting=1)
        elbo.differentiable_loss(toy.model, toy.guide, x).backward()
        torch.testing.assert_close(toy.phi.grad, torch.zeros(2), rtol=0, atol=1e-12)
    toy.zero_grad()
    ELBO().elbo().differentiable_loss(toy.model, toy.guide, x).backward()
    assert toy.phi.grad.abs().max() > 0.1


@pytest.mark.parametrize("objective", [ELBO(), IWAE(3), Renyi(0.5, 3), ChiSquare(samples=3)])
def test_mini_batches_of_a_plate_are_unbiased(objective):
    """At the exact posterior the loss has no variance: the mean over batches is that of all."""
    toy, x = Toy(0.0, 1.0), torch.randn(12)
    elbo = objective.elbo()
    whole = elbo.differentiable_loss(toy.model, toy.guide, x)
    parts = torch.arange(12).reshape(4, 3)
    batches = [
        elbo.differentiable_loss(toy.model, toy.guide, x[part], size=12, index=part)
        for part in parts
    ]
    torch.testing.assert_close(torch.stack(batches).mean(), whole)
    sign = 1 if isinstance(objective, ChiSquare) else -1
    torch.testing.assert_close(whole, sign * toy.exact(x).sum())


def test_mini_batches_scale_what_hangs_on_global_latents():
    x = torch.randn(12) + 1

    def model(x, index=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 12, subsample=index):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    loc = nn.Parameter(torch.tensor([0.5]))

    def guide(x, index=None):
        pyro.sample("mean", dist.Normal(loc[0], 0.3))

    def gradient(*args):
        torch.manual_seed(0)
        loc.grad = None
        ELBO().elbo().differentiable_loss(model, guide, *args).backward()
        return loc.grad

    parts = [gradient(x[part], part) for part in torch.arange(12).reshape(4, 3)]
    torch.testing.assert_close(torch.stack(parts).mean(0), gradient(x))


class Mixed(nn.Module):
    """A discrete latent and a normal one that depends on it."""

    def __init__(self):
        super().__init__()
        self.phi = nn.Parameter(torch.tensor([0.2, -0.3, 0.6, math.log(0.8)]))

    def parts(self):
        a, m, b, s = self.phi
        return dist.Bernoulli(logits=a), lambda c: dist.Normal(m + b * c, s.exp())

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.4)))
            z = pyro.sample("z", dist.Normal(c, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        pyro.module("mixed", self)
        first, second = self.parts()
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", first)
            pyro.sample("z", second(c))

    def exact(self, x, bound):
        """The expected bound from two draws: discrete latents by enumeration."""
        nodes, weights = quadrature(30)
        eps = torch.cartesian_prod(nodes, nodes).T
        mass = torch.outer(weights, weights).flatten()
        first, second = self.parts()
        total = 0.0
        for bits in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)):
            c = torch.tensor(bits)[:, None]
            q = second(c)
            z = q.mean + q.stddev * eps
            log_w = dist.Bernoulli(torch.tensor(0.4)).log_prob(c) - first.log_prob(c)
            log_w = log_w + dist.Normal(c, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)
            chance = first.log_prob(c).sum().exp()
            total = total + chance * (mass * bound(log_w - q.log_prob(z))).sum()
        return total


@pytest.mark.parametrize(
    ("objective", "bound"),
    [
        (Renyi(0.5, 2), lambda w: 2 * iwae(w / 2)),
        (IWAE(2), iwae),
        (ELBO(samples=2), lambda w: w.mean(0)),
    ],
    ids=["Renyi", "IWAE", "ELBO"],
)
def test_discrete_and_reparameterised_sites_together(objective, bound):
    mixed, x = Mixed(), torch.tensor(0.7)
    mixed.exact(x, bound).neg().backward()
    exact = mixed.phi.grad.clone()
    elbo = objective.elbo(vectorize_particles=True, max_plate_nesting=1)
    mean, se = gradients(mixed, elbo, 100, x.expand(ITEMS))
    assert ((mean - exact).abs() < 4 * se).all()
    assert (se < 0.02).all()


def test_a_draw_whose_derivative_is_not_all_of_its_gradient():
    """Of a gamma law by rejection, where Pyro's own Renyi bound gives up."""
    phi = nn.Parameter(torch.tensor([0.9, 0.3]))
    x = torch.tensor(3.0)

    def model(data):
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Gamma(torch.tensor(2.0), torch.tensor(1.0)))
            pyro.sample("x", dist.Poisson(z), obs=data)

    def guide(data):
        pyro.param("phi", phi)
        with pyro.plate("data", len(data)):
            pyro.sample("z", law(*phi.exp()))

    law = ShapeAugmentedGamma  # which the guide reads
    with pytest.raises(NotImplementedError):
        RenyiELBO(0.5, 2).loss_and_grads(model, guide, x.expand(3))
    t = torch.linspace(-9, 4, 300)  # the logarithm of z
    q = dist.Gamma(*phi.exp())
    mass = (q.log_prob(t.exp()) + t).exp() * (t[1] - t[0])
    log_w = dist.Gamma(2.0, 1.0).log_prob(t.exp()) + dist.Poisson(t.exp()).log_prob(x)
    log_w = log_w - q.log_prob(t.exp())
    pairs = torch.stack(torch.broadcast_tensors(log_w[:, None], log_w))
    (torch.outer(mass, mass) * 2 * iwae(pairs / 2)).sum().neg().backward()
    exact = phi.grad.clone()
    elbo = Renyi(0.5, 2).elbo(vectorize_particles=True, max_plate_nesting=1)
    for law in (NonreparameterizedGamma, ShapeAugmentedGamma):  # noqa: B007
        rows = []
        for _ in range(100):
            phi.grad = None
            elbo.differentiable_loss(model, guide, x.expand(ITEMS)).backward()
            rows.append(phi.grad / ITEMS)
        rows = torch.stack(rows)
        se = rows.std(0) / 10
        assert ((rows.mean(0) - exact).abs() < 4 * se).all()
        assert (se < 0.02).all()


def test_path_gradients_of_mixed_sites_are_refused():
    mixed, x = Mixed(), torch.zeros(3)
    for objective in (StickingTheLanding(2), DReG(2)):
        with pytest.raises(ValueError, match="one latent site"):
            objective.elbo().loss(mixed.model, mixed.guide, x)
    toy = Toy()
    with pytest.raises(ValueError, match="vectorize_particles=True"):
        DReG(2).elbo().loss(toy.model, toy.guide, x)


def test_forward_kl_of_a_constrained_site_holds_its_draws():
    """An automatic guide gives the gradient of the same law stated as one site."""

    def model():
        z = pyro.sample("z", dist.LogNormal(0.2, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=torch.tensor(1.5))

    automatic = pg.inference.MeanField(model, scale=0.3)
    automatic()
    q = automatic.distribution
    m, s = (v.detach().clone().requires_grad_() for v in (q().mean[0], q().stddev[0].log()))

    def plain():
        pyro.sample("z", dist.LogNormal(m, s.exp()))

    for guide in (automatic, plain):
        torch.manual_seed(0)
        ForwardKL(20).elbo().differentiable_loss(model, guide).backward()
    torch.testing.assert_close(q.phi.grad, torch.stack([m.grad, s.grad]))


def test_the_evidence_lies_between_the_bounds():
    toy, x = Toy(), torch.randn(6)
    values = [
        float(o.elbo(vectorize_particles=True, max_plate_nesting=1).loss(toy.model, toy.guide, x))
        for o in (ELBO(samples=2000), IWAE(2000), ChiSquare(samples=20_000))
    ]
    evidence = float(toy.exact(x).sum().detach())
    assert -values[0] < -values[1] < evidence + 0.05
    assert evidence < values[2]


def test_a_discrete_latent_of_the_model_alone_is_named():
    """A site that the guide lacks would be drawn from its prior: Pyro's check says so."""

    @config_enumerate
    def model():
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.4)))
        z = pyro.sample("z", dist.Normal(c, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

    guide = pg.inference.MeanField(model)
    for elbo in (IWAE(2).elbo(), Trace_ELBO()):
        with pytest.warns(UserWarning, match="not guide"):
            elbo.loss(model, guide)


def test_support_of_parameters_is_kept():
    """Parameters with a constraint of Pyro's store train under every objective."""
    x = torch.tensor(1.5)

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("z", dist.Normal(loc, scale))

    for objective in (Renyi(0.5, 16), ForwardKL(64), StickingTheLanding(8)):
        pyro.clear_param_store()
        elbo = objective.elbo(vectorize_particles=True, max_plate_nesting=0)
        svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.08, "lrd": 0.975}), elbo)
        for _ in range(150):
            svi.step()
        assert abs(pyro.param("loc").item() - 0.75) < 0.1
        assert abs(pyro.param("scale").item() - 0.5**0.5) < 0.1
