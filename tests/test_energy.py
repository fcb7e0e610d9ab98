"""Known answers of energy-based models."""

import copy
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from sklearn.datasets import load_digits
from torch import nn

import probgen as pg
from probgen import mcmc, objectives
from probgen.distributions import Energy, EnergyDistribution, ProductOfExperts, Tilted
from probgen.distributions.energy.boltzmann import Spins, states
from probgen.mcmc.kernels.lattice import bonds, log_partition_torus
from tests.rosters import moved


def every(units, lower=0):
    return torch.cat(list(states(units, lower, torch.ones((), dtype=torch.double))))


def chi2(count, p):
    """The p-value of counts under probabilities, cells expected below 5 together."""
    expected = count.sum() * p
    few = expected < 5
    count = torch.cat([count[~few], count[few].sum(0, keepdim=True)])
    expected = torch.cat([expected[~few], expected[few].sum(0, keepdim=True)])
    kept = expected > 0
    value = ((count - expected).square()[kept] / expected[kept]).sum()
    return float(torch.special.gammaincc((kept.sum() - 1) / 2, value / 2))


def number(x, lower):
    """The index of states in the order of `every`."""
    up = (x - lower) / (1 - lower)
    return (up @ (2.0 ** torch.arange(x.shape[-1])).to(x)).long()


# Ising models


@pytest.mark.parametrize("beta", [0.2, 0.4407, 0.7, -0.3])
def test_kaufman_equals_enumeration(beta):
    x = every(16, -1).reshape(-1, 4, 4)
    k = torch.tensor(beta, dtype=torch.double)
    value = (k * bonds(x, 2, True)).logsumexp(0)
    assert abs(float(log_partition_torus(4, 4, k) - value)) < 1e-10
    odd = every(15, -1).reshape(-1, 3, 5)
    value = (k * bonds(odd, 2, True)).logsumexp(0)
    found = log_partition_torus(3, 5, k)
    assert found.isnan() if beta < 0 else abs(float(found - value)) < 1e-10


def test_mean_energy_is_that_of_all_states(float64):
    ising = pg.models.Ising((4, 4), 0.4407)
    x = every(16, -1).reshape(-1, 4, 4)
    p = ising().log_prob(x).exp()
    torch.testing.assert_close(p.sum(), torch.tensor(1.0))
    torch.testing.assert_close(ising.mean_energy(), (p * ising.energy(x)).sum().detach())
    field = pg.models.Ising((3, 4), 0.3, periodic=False, field=torch.linspace(-1, 1, 4))
    y = every(12, -1).reshape(-1, 3, 4)
    p = field().log_prob(y).exp()
    torch.testing.assert_close(p.sum(), torch.tensor(1.0))
    torch.testing.assert_close(field.mean_energy(), (p * field.energy(y)).sum().detach())
    critical = pg.models.Ising((64, 64), math.log(1 + math.sqrt(2)) / 2)
    slope = -float(critical.mean_energy()) / 64**2 / float(critical.coupling.detach())
    assert abs(slope - math.sqrt(2) * (1 + 0.6 / 64)) < 0.01  # of the infinite lattice, nearly


@pytest.mark.parametrize(
    ("size", "couplings"),
    [
        (32, [0.2, 0.3, 0.38, 0.42, 0.5, 0.6]),
        pytest.param(64, [0.2, 0.3, 0.38, 0.41, 0.5, 0.6], marks=pytest.mark.slow),
    ],
)
def test_ising_energies_are_those_of_kaufman(size, couplings):
    for k in couplings:
        ising = pg.models.Ising((size, size), k)
        x = torch.ones(48, size, size)  # ordered, since stripes of the cold phase last
        kernel = ising.transition()
        x = kernel.move(x, 400)
        total = torch.zeros(48)
        for _ in range(60):
            x = kernel.move(x, 10)
            total += ising.energy(x).detach()
        energies = (total / 60).double() / size**2
        z = (energies.mean() - ising.mean_energy() / size**2) / (energies.std() / 48**0.5)
        assert abs(float(z)) < 4, k


GRAPH = torch.tensor(
    [[0, 1, 0, -0.5], [1, 0, 0.3, 0], [0, 0.3, 0, 0.8], [-0.5, 0, 0.8, 0]], dtype=torch.double
)


@pytest.mark.parametrize(
    ("build", "lower"),
    [
        (lambda: pg.models.BoltzmannMachine(4).couple(GRAPH, torch.arange(4.0) / 4 - 0.3), 0),
        (lambda: pg.models.BoltzmannMachine(4, lower=-1).couple(GRAPH), -1),
        (lambda: pg.models.Ising((4,), GRAPH, field=torch.tensor([0.5, 0.0, 0.0, -0.2])), -1),
        (lambda: pg.models.Ising((3, 3), 0.4, field=0.1), -1),
        (lambda: pg.models.Ising((2, 2, 2), 0.2), -1),
        (lambda: pg.models.Ising((2, 4), 0.5, periodic=False, field=torch.linspace(-1, 1, 4)), -1),
        (lambda: moved(pg.models.RBM(5, 3), 1.0), 0),
        (lambda: moved(pg.models.RBM(3, 5, "spin"), 0.7), -1),
    ],
)
def test_draws_follow_the_enumerated_law(build, lower, float64):
    module = build().double()
    units = math.prod(module.event_shape)
    x = every(units, lower)
    p = module().log_prob(x.reshape(-1, *module.event_shape)).exp().detach()
    torch.testing.assert_close(p.sum(), torch.tensor(1.0))
    n = 40_000
    start = x[torch.multinomial(p, n, replacement=True)].reshape(n, *module.event_shape)
    after = module.advance(start, None, 2)
    count = torch.bincount(number(after.flatten(1), lower), minlength=len(x)).double()
    assert chi2(count, p) > 1e-6
    drawn = module().sample((n,))
    count = torch.bincount(number(drawn.flatten(1), lower), minlength=len(x)).double()
    assert chi2(count, p) > 1e-6


def test_units_that_are_not_binary_follow_their_joint_law(float64):
    torch.manual_seed(1)
    rbm = moved(pg.models.RBM(3, 2, "categorical", classes=3), 0.8).double()
    x = torch.cartesian_prod(*[torch.arange(3)] * 3)
    p = rbm().log_prob(x).exp().detach()
    torch.testing.assert_close(p.sum(), torch.tensor(1.0))
    drawn = rbm().sample((40_000,))
    count = torch.bincount((drawn @ torch.tensor([9, 3, 1])), minlength=27).double()
    assert chi2(count, p) > 1e-6
    gauss = moved(pg.models.RBM(2, 3, "gaussian"), 1.0).double()
    gauss.initialize(torch.tensor([[1.0, -10.0], [3.0, 30.0]]))
    grid = torch.cartesian_prod(
        torch.linspace(2 - 9, 2 + 9, 401), torch.linspace(10 - 180, 10 + 180, 401)
    )
    density = gauss().log_prob(grid).exp().detach()
    cell = (18 / 400) * (360 / 400)
    assert abs(float(density.sum()) * cell - 1) < 1e-3
    drawn = gauss().sample((20_000,))
    mean = (density[:, None] * grid).sum(0) * cell
    assert ((drawn.mean(0) - mean).abs() < 4 * drawn.std(0) / 20_000**0.5).all()


def test_annealing_finds_the_partition_function(float64):
    torch.manual_seed(0)
    cases = {
        "ising": pg.models.Ising((4, 4), 0.4407),
        "field": pg.models.Ising((3, 4), 0.5, periodic=False, field=0.3),
        "rbm": moved(pg.models.RBM(8, 6), 1.0),
        "spin": moved(pg.models.RBM(6, 5, "spin"), 0.5),
        "gaussian": moved(pg.models.RBM(4, 6, "gaussian"), 0.5),
        "categorical": moved(pg.models.RBM(4, 6, "categorical", classes=3), 0.5),
        "machine": moved(pg.models.BoltzmannMachine(7), 0.7),
    }
    for name, module in cases.items():
        exact = float(module.log_partition())
        for annealing, options in ((mcmc.ais, {"temperatures": 100}), (mcmc.smc, {"islands": 40})):
            found = module.estimate(800, annealing, **options)
            assert abs(found.log_z - exact) < 4 * found.se + 1e-9, (name, annealing)
            assert abs(found.upper - exact) < 4 * found.upper_se + 0.02, (name, annealing)
            assert found.ess > 80
            assert found.upper_ess > 80


def test_replicas_keep_their_laws(float64):
    """From exact draws of each replica, the coldest and the hottest keep their laws."""
    torch.manual_seed(0)
    rbm, n = moved(pg.models.RBM(4, 3), 1.5), 20_000
    betas, x = (0.2, 0.6, 1.0), every(4)
    laws = [rbm.transition(b).log_density(x).softmax(0).detach() for b in betas]
    start = torch.stack([x[torch.multinomial(p, n, replacement=True)] for p in laws], 1)
    kernel = mcmc.ParallelTempering(rbm.transition, betas)
    state = kernel.init(start, rbm.log_density)
    for _ in range(3):
        state, info = kernel.step(state, rbm.log_density)
    assert 0.3 < float(info.acceptance.mean()) < 1
    for k, p in enumerate(laws):
        count = torch.bincount(number(state.position[:, k], 0), minlength=16).double()
        assert chi2(count, p) > 1e-6
    first = {kernel.init(start[:5], rbm.log_density).taken for _ in range(30)}
    assert first == {0, 1}  # so that one step at a time also exchanges every pair
    with pytest.raises(ValueError, match=r"shape \(chains, 3, \*\)"):
        kernel.init(start[:, 0], rbm.log_density)


def test_an_estimate_belongs_to_its_parameters():
    torch.manual_seed(0)
    rbm = moved(pg.models.RBM(30, 24), 0.1)
    x = rbm().sample((5,))
    assert rbm.density is pg.Density.UNNORMALIZED
    with pytest.raises(ValueError, match=r"is not: estimate it by .estimate\(\)"):
        rbm.log_partition()
    raw = rbm().log_prob(x)
    found = rbm.estimate(200, temperatures=100)
    assert abs(found.log_z - found.upper) < 4 * (found.se + found.upper_se) + 0.05
    torch.testing.assert_close(rbm().log_prob(x), raw - found.log_z)
    assert float(rbm.log_partition()) == pytest.approx(found.log_z)
    moved(rbm, 0.01)
    with pytest.raises(ValueError, match=r"before they changed. Estimate it again"):
        rbm().log_prob(x)
    rbm.forget()
    assert rbm().log_prob(x).isfinite().all()


# Restricted Boltzmann machines


def test_both_enumerations_and_the_gradient_are_exact(float64):
    for units in ("binary", "spin"):
        torch.manual_seed(3)
        rbm = moved(pg.models.RBM(6, 5, units), 1.0)
        visible, hidden = (rbm.log_partition_over(layer) for layer in ("visible", "hidden"))
        assert abs(float((visible - hidden).detach())) < 1e-10
        x = every(6, rbm.lower)[torch.randint(64, (20,))]
        loss = -rbm().log_prob(x).mean()
        auto = torch.autograd.grad(loss, list(rbm.parameters()))
        v = every(6, rbm.lower)
        p = rbm().log_prob(v).exp().detach()
        positive = torch.autograd.grad(rbm.free_energy(x).mean(), list(rbm.parameters()))
        negative = torch.autograd.grad((p * rbm.free_energy(v)).sum(), list(rbm.parameters()))
        for a, b, c in zip(auto, positive, negative):
            assert float((a - (b - c)).abs().max()) < 1e-9


@pytest.mark.parametrize("k", [1, 3])
def test_the_gradient_of_contrastive_divergence_is_that_of_the_transition_matrix(k, float64):
    torch.manual_seed(4)
    rbm = moved(pg.models.RBM(4, 3), 1.0)
    v, h = every(4), every(3)
    up = rbm.hidden(v[:, None]).log_prob(h).exp()  # (states of v, of h)
    down = rbm.visible(h[:, None]).log_prob(v).exp()
    transition = (up @ down).detach()
    torch.testing.assert_close(transition.sum(1), torch.ones(16))
    data = v[torch.tensor([0, 3, 3, 9])]
    start = torch.zeros(16).index_add(0, number(data, 0), torch.full((4,), 0.25))
    after = start @ torch.linalg.matrix_power(transition, k)
    exact = torch.autograd.grad(
        ((start - after) * rbm.free_energy(v)).sum(), list(rbm.parameters())
    )
    batch, found = data.repeat(2500, 1), []
    for _ in range(40):
        loss = objectives.ContrastiveDivergence(k)(rbm, batch).mean()
        found.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(rbm.parameters()))])
        )
    draws = torch.stack(found)
    se = draws.std(0) / len(draws) ** 0.5
    gap = (draws.mean(0) - torch.cat([g.flatten() for g in exact])).abs()
    assert (gap <= 4 * se + 1e-9).all()


def digits():
    x = torch.tensor(load_digits().data / 16 > 0.5).float()
    return x[:1437], x[1437:]


def test_an_rbm_of_digits():
    train, test = digits()
    torch.manual_seed(0)
    rbm = pg.models.RBM(visible=64, hidden=16)
    pg.fit(
        rbm,
        train,
        objective=objectives.ContrastiveDivergence(persistent=True),
        epochs=500,
        batch_size=100,
        lr=0.01,
        schedule="cosine",
        seed=0,
        progress=False,
    )
    rbm.freeze()
    assert float(rbm().log_prob(test).mean()) > -18.8
    assert rbm.chains.shape == (100, 64)


def test_other_ways_of_training_reach_the_exact_likelihood():
    """All but the biased few steps of chains from the data end near maximum likelihood."""
    torch.manual_seed(0)
    truth = moved(pg.models.BoltzmannMachine(6), 1.0).freeze()
    p = truth().log_prob(every(6).float()).exp()
    x = every(6)[torch.multinomial(p, 4000, replacement=True)].float()
    losses = {}
    for objective in (
        objectives.MaximumLikelihood(),
        objectives.ContrastiveDivergence(5, persistent=True, chains=400),
        objectives.ContrastiveDivergence(persistent=True, chains=200, betas=(0.2, 0.6, 1.0)),
        objectives.ContrastiveDivergence(10),
        objectives.PseudoLikelihood(),
        objectives.RatioMatching(),
    ):
        machine = pg.models.BoltzmannMachine(6)
        pg.fit(
            machine,
            x,
            objective=objective,
            steps=400,
            batch_size=1000,
            lr=0.1,
            schedule="cosine",
            progress=False,
            seed=0,
        )
        losses[objective] = -float(machine.freeze()().log_prob(x).mean())
    best = losses[objectives.MaximumLikelihood()]
    for objective, loss in losses.items():
        assert abs(loss - best) < 0.01, objective  # all end a little short of the best


# Score matching


class Quadratic(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.a = nn.Parameter(torch.eye(size))

    def forward(self, x):
        a = (self.a + self.a.mT) / 2
        return (x @ a * x).sum(-1) / 2


def sample_of(covariance, n):
    """Data whose second moment is exactly that."""
    x = torch.randn(n, len(covariance))
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.mT @ x / n)).mT
    return white @ torch.linalg.cholesky(covariance).mT


COVARIANCE = torch.tensor([[1.5, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.8]]).double()


def test_implicit_score_matching_gives_the_precision(float64):
    torch.manual_seed(0)
    x = sample_of(COVARIANCE, 500)
    module = Energy(Quadratic(3), 3)
    optimizer = torch.optim.LBFGS(
        module.parameters(),
        max_iter=100,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = objectives.ImplicitScoreMatching()(module, x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    a = (module.network.a + module.network.a.mT).detach() / 2
    assert float((a - torch.linalg.inv(COVARIANCE)).abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("objective", "noise"),
    [
        (objectives.ImplicitScoreMatching(), 0.0),
        (objectives.SlicedScoreMatching(4), 0.0),
        (objectives.DenoisingScoreMatching(0.7), 0.7),
        (objectives.ExplicitScoreMatching(lambda x: -x @ torch.linalg.inv(COVARIANCE)), 0.0),
    ],
)
def test_score_matching_fits_the_precision(objective, noise, float64):
    torch.manual_seed(0)
    x = sample_of(COVARIANCE, 4000)
    module = Energy(Quadratic(3), 3)
    pg.fit(
        module,
        x,
        objective=objective,
        steps=500,
        batch_size=1000,
        lr=0.05,
        schedule="cosine",
        progress=False,
        seed=0,
    )
    a = (module.network.a + module.network.a.mT).detach() / 2
    expected = torch.linalg.inv(COVARIANCE + noise**2 * torch.eye(3))
    assert float((a - expected).abs().max()) < 0.05


def test_parzen_scores_are_those_of_the_mixture(float64):
    data, x = torch.randn(7, 2), torch.randn(5, 2).requires_grad_()
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(7)), dist.Normal(data, 0.5).to_event(1)
    )
    (expected,) = torch.autograd.grad(mixture.log_prob(x).sum(), x)
    torch.testing.assert_close(objectives.parzen_score(data, 0.5)(x.detach()), expected)


def test_implicit_explicit_and_sliced_agree_up_to_a_constant(float64):
    """The gradients of all three are one, on data whose score is known."""
    torch.manual_seed(0)
    module = moved(pg.models.EnergyModel(2, hidden_features=(8,)), 0.5)
    x = torch.randn(20_000, 2)
    parameters = [p for p in module.parameters() if p.requires_grad]
    slopes = {}
    for name, objective in (
        ("explicit", objectives.ExplicitScoreMatching(lambda x: -x)),
        ("implicit", objectives.ImplicitScoreMatching()),
        ("sliced", objectives.SlicedScoreMatching(1)),
    ):
        parts = []
        for part in x.split(1000):
            loss = objective(module, part).mean()
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            parts.append(
                torch.cat(
                    [
                        (torch.zeros_like(p) if g is None else g).flatten()
                        for g, p in zip(found, parameters)
                    ]
                )
            )
        slopes[name] = torch.stack(parts)
    for name in ("implicit", "sliced"):
        gap = slopes[name] - slopes["explicit"]
        z = gap.mean(0) / (gap.std(0) / len(gap) ** 0.5 + 1e-12)
        assert float(z.abs().max()) < 5.5, name  # 20 groups, some 30 numbers: Bonferroni's t


# Composition


def test_a_product_of_normal_laws_has_the_summed_precision(float64):
    torch.manual_seed(0)
    a = dist.MultivariateNormal(torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    b = dist.Normal(torch.tensor([0.0, 2.0]), torch.tensor([0.5, 2.0])).to_event(1)
    product = ProductOfExperts([a, b], steps=200)
    precision = torch.linalg.inv(a.covariance_matrix) + torch.diag(torch.tensor([4.0, 0.25]))
    covariance = torch.linalg.inv(precision)
    shift = torch.linalg.solve(a.covariance_matrix, a.loc) + torch.tensor([0.0, 0.5])
    mean = covariance @ shift
    n = 20_000
    x = product().sample((n,))
    gap = (x.mean(0) - mean).abs() / (covariance.diagonal() / n).sqrt()
    assert float(gap.max()) < 4
    deviation = (x - mean)[:, :, None] * (x - mean)[:, None]
    z = (deviation.mean(0) - covariance) / (deviation.std(0) / n**0.5)
    assert float(z.abs().max()) < 4
    joint = torch.distributions.MultivariateNormal(  # whose density at one mean is Z
        torch.tensor([0.0, 2.0]), a.covariance_matrix + torch.diag(torch.tensor([0.25, 4.0]))
    )
    found = product.estimate(1000, temperatures=100)
    assert abs(found.log_z - float(joint.log_prob(a.loc))) < 4 * found.se
    assert abs(found.upper - float(joint.log_prob(a.loc))) < 4 * found.upper_se + 0.01


def conjugate(run):
    """Mean and variance of an energy prior N(1, 2) and two data of unit noise at 3, by chains."""
    prior = EnergyDistribution(lambda x: (x - 1).square().sum(-1) / 4, features=1)

    def model():
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x, 1.0).expand([2]).to_event(1), obs=torch.tensor([3.0, 3.0]))

    x = run(model)
    exact_var = 1 / (0.5 + 2)
    exact_mean = exact_var * (0.5 + 6)
    ess = len(x) if x.ndim == 2 else None
    return x.reshape(-1), exact_mean, exact_var, ess


def test_nuts_with_an_energy_prior_is_conjugate(float64):
    torch.manual_seed(0)

    def nuts(model):
        chain = MCMC(NUTS(model), num_samples=1500, warmup_steps=200, disable_progbar=True)
        chain.run()
        return chain.get_samples()["x"]

    x, mean, var, _ = conjugate(nuts)
    ess = float(mcmc.ess(x.reshape(1, -1)))
    assert abs(float(x.mean()) - mean) < 4 * (var / ess) ** 0.5
    square = float(mcmc.ess((x - mean).square().reshape(1, -1)))
    assert abs(float((x - mean).square().mean()) - var) < 4 * var * (2 / square) ** 0.5


def test_batched_chains_with_an_energy_prior_are_conjugate(float64):
    torch.manual_seed(0)

    def run(model):
        draws = mcmc.run(model, chains=64, warmup=100, draws=50, progress=False, seed=0)
        return draws.samples["x"].flatten(0, 1)

    x, mean, var, n = conjugate(run)
    assert abs(float(x.mean()) - mean) < 4 * (var / n * 2) ** 0.5
    assert abs(float((x - mean).square().mean()) - var) < 4 * var * (4 / n) ** 0.5


def test_svi_with_an_energy_prior_is_conjugate(float64):
    torch.manual_seed(0)

    def svi(model):
        guide = pyro.infer.autoguide.AutoDiagonalNormal(model, init_scale=0.5)
        loop = SVI(
            model,
            guide,
            pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.995}),
            Trace_ELBO(num_particles=5, vectorize_particles=False),
        )
        for _ in range(600):
            loop.step()
        return guide.get_posterior().sample((20_000,))

    x, mean, var, _ = conjugate(svi)
    assert abs(float(x.mean()) - mean) < 0.05
    assert abs(float(x.var()) - var) < 0.05


def test_noise_contrastive_estimation_learns_the_normaliser(float64):
    torch.manual_seed(0)
    x = 0.5 + 0.7 * torch.randn(4000, 1)

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return self.a[0] + self.a[1] * x + self.a[2] * x.square()

    tilted = Tilted(dist.Normal(torch.zeros(1), 1.5).to_event(1), Line())
    pg.fit(
        tilted,
        x,
        objective=objectives.NoiseContrastive(ratio=4),
        steps=800,
        batch_size=2000,
        lr=0.05,
        schedule="cosine",
        seed=0,
        progress=False,
    )
    tilted.freeze()
    grid = torch.linspace(-4, 5, 200)[:, None]
    exact = dist.Normal(x.mean(), x.std()).log_prob(grid[:, 0])
    near = (grid[:, 0] - 0.5).abs() < 1.4
    assert float((tilted().log_prob(grid) - exact)[near].abs().max()) < 0.1
    assert abs(tilted.estimate(500, temperatures=50).log_z) < 0.1
    assert abs(float(tilted().sample((4000,)).std() - x.std())) < 0.05


def test_a_tilted_flow_stays_exact_about_its_normaliser(float64):
    """A flow tilted by a line in base space: E exp is known for a normal base."""
    flow = pg.models.MAF(2, transforms=1, hidden_features=(4,)).freeze()  # the identity at first
    tilted = Tilted(flow, lambda x: x[..., 0] - x[..., 1])
    found = tilted.estimate(1000, temperatures=50)
    assert abs(found.log_z - 1.0) < 4 * found.se + 1e-6
    x = tilted().sample((4000,))
    assert abs(float(x[:, 0].mean()) - 1) < 0.1


def test_an_energy_within_bounds(float64):
    torch.manual_seed(0)
    module = Energy(lambda x: -3 * x[..., 0], 1, bounds=(0.0, 1.0))
    x = module().sample((4000,))
    z = math.expm1(3) / 3
    mean = (math.exp(3) * (3 - 1) + 1) / 9 / z
    assert abs(float(x.mean()) - mean) < 4 * float(x.std()) / 4000**0.5
    assert module().log_prob(torch.tensor([[1.5], [-0.1]])).eq(-math.inf).all()
    found = module.estimate(1000, temperatures=50)
    assert abs(found.log_z - math.log(z)) < 4 * found.se
    for bounds, support in (((0.0, None), "GreaterThan"), ((None, 0.0), "LessThan")):
        assert support in repr(Energy(lambda x: x.abs().sum(-1), 2, bounds=bounds).support)


def test_training_a_network_by_its_default(float64):
    """Persistent chains fit a mixture whose densities are known, up to the constant."""
    torch.manual_seed(0)
    x = (torch.randint(2, (2000, 1)) * 2.0 - 1) * torch.tensor([1.0, 0.5])
    x = x + 0.5 * torch.randn(2000, 2)
    model = pg.models.EnergyModel(2, hidden_features=(64, 64))
    objective = objectives.ContrastiveDivergence(10, persistent=True, chains=400, renewal=0.02)
    pg.fit(
        model,
        x,
        objective=objective,
        steps=500,
        batch_size=400,
        lr=3e-3,
        schedule="cosine",
        seed=0,
        progress=False,
    )
    model.freeze()
    model.estimate(500, temperatures=100)
    means = torch.tensor([[1.0, 0.5], [-1.0, -0.5]])
    exact = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(means, 0.5).to_event(1)
    )
    y = exact.sample((2000,))
    gap = float((exact.log_prob(y) - model().log_prob(y)).mean())  # the divergence
    assert 0 < gap + 0.02 < 0.1
    drawn = model().sample((2000,))
    assert float((drawn.std(0) - x.std(0)).abs().max()) < 0.1


def test_a_joint_energy_classifies_and_draws_by_class():
    torch.manual_seed(0)
    y = torch.randint(3, (900, 1)).float()
    x = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 3.0]])[y[:, 0].long()]
    x = x + 0.6 * torch.randn(900, 2)
    model = pg.models.JointEnergyModel(2, 3, (64,))
    known = torch.where(torch.rand(900, 1) < 0.1, y, -1.0)
    pg.fit(model, x, context=known, steps=300, lr=5e-3, seed=0, progress=False)
    guess = model.classify(x).logits.argmax(-1)
    assert float((guess == y[:, 0]).float().mean()) > 0.97
    for k in range(3):
        drawn = model(torch.tensor([float(k)])).sample((200,))
        assert float((model.classify(drawn).logits.argmax(-1) == k).float().mean()) > 0.9
    assert model().sample((5,)).shape == (5, 2)
    torch.testing.assert_close(model.log_density(x, torch.full_like(y, -1)), model.log_density(x))


# Deep belief networks


def test_a_belief_network_is_a_distribution(float64):
    torch.manual_seed(0)
    network = moved(pg.models.DeepBeliefNetwork([5, 4, 3, 3]), 0.5)
    x = every(5)
    exact = network.exact_log_prob(x).detach()
    torch.testing.assert_close(exact.logsumexp(0), torch.tensor(0.0))
    drawn = network().sample((40_000,))
    count = torch.bincount(number(drawn, 0), minlength=32).double()
    assert chi2(count, exact.exp()) > 1e-6
    found = network.log_marginal(x, samples=4000)
    assert ((found.value - exact).abs() < 5 * found.se + 0.05).all()
    bound = torch.stack([network().log_prob(x) for _ in range(300)]).detach().mean(0)
    assert (bound < exact + 0.1).all()


def test_greedy_training_and_the_up_down_algorithm():
    train, test = digits()
    torch.manual_seed(0)
    network = pg.models.DeepBeliefNetwork([64, 12, 8])
    assert isinstance(network.objective, objectives.GreedyLayerwise)
    pg.fit(network, train, epochs=60, batch_size=100, lr=0.01, seed=0, progress=False)
    assert torch.equal(network.up[0], network.machines[0].weight)
    with torch.no_grad():
        greedy = float(network.exact_log_prob(test).mean())
    pg.fit(
        network,
        train,
        objective=objectives.UpDown(),
        epochs=30,
        batch_size=100,
        lr=3e-3,
        seed=0,
        progress=False,
    )
    assert not torch.equal(network.up[0], network.machines[0].weight)
    with torch.no_grad():
        fine = float(network.exact_log_prob(test).mean())
    alone = float(dist.Bernoulli(train.mean(0).clamp(0.01, 0.99)).log_prob(test).sum(-1).mean())
    assert alone + 3 < greedy < fine
    assert network.features(test).shape == (360, 8)
    svi = SVI(network.model, network.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    before = copy.deepcopy(dict(network.named_parameters()))
    assert svi.step(train[:50], size=1437) > 0
    moved_by_svi = {n for n, p in network.named_parameters() if not p.equal(before[n])}
    assert {"machines.0.weight", "machines.1.weight", "up.0"} <= moved_by_svi


# What goes wrong, and how it is said


def test_colours_follow_the_graph(float64):
    """Spins that start without couplings are still drawn right once they have some."""
    ring = pg.models.Ising((5,), coupling=0.0)
    graph = pg.models.Ising((4,), torch.zeros(4, 4))
    with torch.no_grad():
        ring.coupling.fill_(0.6)
        graph.coupling.copy_(2 * GRAPH)
    for module in (ring, graph):
        x = module().sample((20_000,))
        gap = module.energy(x).detach().mean() - module.mean_energy()
        assert abs(float(gap)) < 4 * float(module.energy(x).detach().std()) / 20_000**0.5
    with torch.no_grad():
        odd = pg.models.Ising((5, 5), 0.1)
        odd.coupling.fill_(-0.2)
    with pytest.raises(ValueError, match="at least 0 on a torus with odd sides"):
        odd.log_partition()
    cold = log_partition_torus(4, 6, torch.tensor(400.0))
    assert abs(float(cold) - (48 * 400 + math.log(2))) < 1e-6


def test_weights_weigh_chains_too(float64):
    torch.manual_seed(0)
    x = every(4)[torch.randint(16, (600,))]
    weights = torch.where(x[:, 0] > 0, 1.0, 0.1)
    machines = {}
    for name, data, w in (
        ("weighted", x, weights),
        ("drawn", x[torch.multinomial(weights, 4000, replacement=True)], None),
    ):
        machine = pg.models.BoltzmannMachine(4)
        pg.fit(
            machine,
            data,
            weights=w,
            steps=500,
            lr=0.05,
            schedule="cosine",
            progress=False,
            batch_size=600,
            seed=0,
        )
        machines[name] = machine.freeze()
    p = {name: machine().log_prob(every(4)).exp() for name, machine in machines.items()}
    assert float((p["weighted"] - p["drawn"]).abs().sum()) < 0.1


@pytest.mark.filterwarnings("ignore::probgen.core.standardize.ScaleWarning")
def test_a_second_fit_goes_on_from_the_first():
    torch.manual_seed(0)
    train, _ = digits()
    grey = torch.tensor(load_digits().data).float()
    for module, x in (
        (pg.models.RBM(64, 8), train),
        (pg.models.RBM(64, 8, "gaussian"), grey),
        (pg.models.DeepBeliefNetwork([64, 8, 4]), train),
        (pg.models.EnergyModel(64, hidden_features=(8,)), grey),
    ):
        pg.fit(module, x, steps=30, lr=0.01, progress=False, seed=0)
        before = copy.deepcopy(dict(module.named_parameters()))
        other = 3 * x + 1 if x is grey else 1 - x
        pg.fit(module, other, steps=1, lr=1e-9, progress=False, seed=0)
        for n, p in module.named_parameters():
            torch.testing.assert_close(p, before[n], atol=1e-6, rtol=0)
    model = pg.models.EnergyModel(64, hidden_features=(8,))
    pg.fit(model, grey, steps=1, progress=False)
    torch.testing.assert_close(model.law().mean, grey.mean(0))


def test_held_out_data_are_compared_by_a_measure_of_fit():
    torch.manual_seed(0)
    train, test = digits()
    rbm = pg.models.RBM(64, 8)
    history = pg.fit(rbm, train, validation=test, epochs=30, lr=0.02, progress=False, seed=0)
    best = min(v for _, v in history.validation)
    assert abs(-float(rbm.freeze()().log_prob(test).mean()) - best) < 1e-3
    persistent = objectives.ContrastiveDivergence(persistent=True)
    assert persistent.held_out(pg.models.RBM(64, 30)) == objectives.PseudoLikelihood()
    assert persistent.held_out(pg.models.EnergyModel(2)) == objectives.SlicedScoreMatching()
    for module, x in (
        (pg.models.DeepBeliefNetwork([64, 4, 4]), train),
        (pg.models.RBM(64, 30, "categorical", classes=2), train.long()),
    ):
        with pytest.raises(ValueError, match="Expected no `validation`"):
            pg.fit(module, x, validation=0.2, steps=2, progress=False)


def test_normalisers_follow_every_change():
    torch.manual_seed(0)
    rbm, x = moved(pg.models.RBM(6, 4), 1.0).freeze(), torch.ones(6)

    def fresh():
        return copy.deepcopy(rbm)().log_prob(x)

    torch.testing.assert_close(rbm().log_prob(x), fresh())
    rbm.weight.data.fill_(3.0)  # behind autograd's back
    torch.testing.assert_close(rbm().log_prob(x), fresh())
    large = pg.models.BoltzmannMachine(40)
    large.keep(40 * math.log(2), 0.0)
    assert float(large().log_prob(torch.ones(40)).detach()) == pytest.approx(-40 * math.log(2))
    large.double()
    assert large().log_prob(torch.ones(40).double()).isfinite()
    large.bias.data[7] += 1e-9
    with pytest.raises(ValueError, match="before they changed"):
        large().log_prob(torch.ones(40).double())
    with torch.inference_mode():
        inside = pg.models.RBM(4, 3)
        assert inside().log_prob(torch.ones(4)).isfinite()


def test_outside_the_support_is_minus_infinity():
    gamma = dist.Gamma(torch.full((2,), 3.0), 1.0).to_event(1)
    beta = dist.Beta(torch.full((2,), 2.0), 2.0).to_event(1)
    for module in (Tilted(gamma, lambda x: -x.sum(-1)), ProductOfExperts([beta, beta])):
        x = torch.tensor([[-1.0, 0.5], [0.3, 0.4]])
        assert module().log_prob(x).isfinite().tolist() == [False, True]
        assert module().sample((5,)).shape == (5, 2)


def test_a_training_that_runs_away_is_stopped_with_advice():
    model = pg.models.EnergyModel(2, hidden_features=(16,), kernel=mcmc.ULA(1e-4))
    x = 5 * torch.randn(100, 2)
    objective = objectives.ContrastiveDivergence(persistent=True, limit=1.0)
    with pytest.raises(FloatingPointError, match="nats apart: the chains do not follow"):
        pg.fit(model, x, objective=objective, steps=500, lr=1.0, progress=False)
    assert all(p.isfinite().all() for p in model.parameters())


def test_bad_input_is_named():
    normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    cases = [
        (lambda: pg.models.Ising((4,), torch.triu(torch.ones(4, 4), 1)), "symmetric weights"),
        (lambda: pg.models.Ising((4,), torch.eye(4)), "no self-connections"),
        (lambda: pg.models.Ising((4,), torch.ones(3, 3)), r"shape \(4, 4\), got \(3, 3\)"),
        (lambda: pg.models.Ising((4,), torch.ones(3)), r"a number or to have shape \(4, 4\)"),
        (lambda: pg.models.Ising((4, 4), field=torch.ones(3)), r"broadcasts to \(4, 4\)"),
        (lambda: pg.models.Ising((1, 4)), "at least 2 spins each way"),
        (lambda: pg.models.Ising((4, 4))().log_prob(torch.zeros(4, 4)), "in the support"),
        (lambda: pg.models.Ising((4, 4))().log_prob(torch.ones(4, 5)), r"shape \(\*, 4, 4\)"),
        (lambda: pg.models.Ising((6, 6), field=0.1).mean_energy(), "a torus of two dimensions"),
        (lambda: pg.models.BoltzmannMachine(3, lower=2), "`lower` of 0 or -1, got 2"),
        (lambda: pg.models.BoltzmannMachine(3).couple(torch.ones(3, 3)), "no self-connections"),
        (lambda: pg.models.RBM(4, 0), "`hidden` to be a whole number >= 1, got 0"),
        (lambda: pg.models.RBM(4, 2, "ternary"), "`units` among"),
        (lambda: pg.models.RBM(4, 2, "categorical"), "Expected `classes`"),
        (lambda: pg.models.RBM(4, 2)().log_prob(torch.full((4,), 0.5)), "in the support"),
        (lambda: pg.models.DeepBeliefNetwork([4, 2]), "at least three layers"),
        (
            lambda: pg.models.DeepBeliefNetwork([4, 30, 25])().log_prob(torch.ones(4)),
            "estimate it by",
        ),
        (
            lambda: pg.models.DeepBeliefNetwork([4, 30, 2]).exact_log_prob(torch.ones(4)),
            "hidden layers of up to 20",
        ),
        (lambda: ProductOfExperts([]), "at least one expert"),
        (
            lambda: ProductOfExperts([normal, dist.Normal(torch.zeros(3), 1.0).to_event(1)]),
            r"one event shape, got \(2,\) and \(3,\)",
        ),
        (
            lambda: ProductOfExperts([normal, dist.Beta(torch.ones(2), 1.0).to_event(1)]),
            "one support",
        ),
        (lambda: ProductOfExperts([normal, pg.models.VAE(2)]), "expert 1` with a density"),
        (lambda: ProductOfExperts([dist.Normal(torch.zeros(2), 1.0)]), "got the batch shape"),
        (lambda: Tilted(dist.Bernoulli(torch.ones(2) / 2).to_event(1), len), "of real numbers"),
        (lambda: Tilted(normal, lambda x: x).log_density(torch.ones(5, 2)), "One number|one numb"),
        (lambda: Energy(len, 2, bounds=(1.0, 0.0)), "`bounds` that rise"),
        (
            lambda: Tilted(Energy(lambda x: x.square().sum(-1), 2), lambda x: x.sum(-1)),
            "a normalised `base`, got a Energy",
        ),
        (
            lambda: Tilted(dist.Dirichlet(torch.ones(3)), lambda x: x.sum(-1)),
            "as many free numbers as features",
        ),
        (
            lambda: Energy(len, 2, kernel=mcmc.ParallelTempering(mcmc.MALA(0.1), (1.0,))),
            "`kernel` of one real vector per chain",
        ),
        (
            lambda: objectives.SlicedScoreMatching()(
                Energy(lambda x: x.sum(-1), 1, bounds=(0.0, 1.0)), torch.full((3, 1), 0.5)
            ),
            "miss what happens at a bound",
        ),
        (
            lambda: pg.models.JointEnergyModel(2, 3)(torch.ones(1, 1) / 2).log_prob(torch.ones(2)),
            "labels 0 to 2, or -1",
        ),
        (
            lambda: objectives.ContrastiveDivergence(persistent=True, betas=(0.5, 0.9)),
            "rise from 0 or more to 1",
        ),
        (lambda: objectives.ContrastiveDivergence(0), "`steps` to be a whole number"),
        (lambda: objectives.ContrastiveDivergence(betas=(0.5, 1.0)), "Expected `persistent`"),
        (lambda: objectives.ContrastiveDivergence(renewal=2), r"`renewal` in \[0, 1\]"),
        (lambda: objectives.DenoisingScoreMatching(0.0), "positive `sigma`"),
        (
            lambda: objectives.ImplicitScoreMatching()(pg.models.RBM(2, 2), torch.ones(3, 2)),
            "PseudoLikelihood and RatioMatching take binary",
        ),
        (
            lambda: objectives.NoiseContrastive(dist.Normal(torch.zeros(3), 1.0).to_event(1))(
                pg.models.EnergyModel(2), torch.ones(4, 2)
            ),
            r"noise of the data's shape \(2,\), got \(3,\)",
        ),
        (
            lambda: pg.models.JointEnergyModel(2, 3).label_loss(
                torch.ones(1, 2), torch.full((1, 1), 7.0)
            ),
            "labels 0 to 2, or -1",
        ),
        (lambda: mcmc.Checkerboard((3, 4), 0.1), "even along every axis"),
        (lambda: mcmc.ParallelTempering(mcmc.MALA(0.1), (1.0, 0.5)), "rise from 0 or more to 1"),
    ]
    for build, message in cases:
        with pytest.raises(ValueError, match=message):
            build()
    for build, message in [
        (lambda: EnergyDistribution(lambda x: x.sum(-1)), "Expected `features`"),
        (
            lambda: objectives.ContrastiveDivergence()(pg.models.MAF(2), torch.ones(3, 2)),
            "an energy-based model",
        ),
        (
            lambda: objectives.PseudoLikelihood()(pg.models.EnergyModel(2), torch.ones(3, 2)),
            "a model of binary units",
        ),
        (
            lambda: objectives.GreedyLayerwise()(pg.models.RBM(2, 2), torch.ones(3, 2)),
            "stack of machines",
        ),
        (
            lambda: objectives.SlicedScoreMatching()(pg.models.VAE(2), torch.ones(3, 2)),
            "a model with a density",
        ),
    ]:
        with pytest.raises(TypeError, match=message):
            build()


def test_spins_are_a_law_of_pyro():
    logits = torch.randn(3, 2)
    for lower in (0, -1):
        law = Spins(logits, lower)
        total = sum(
            law.to_event(1).log_prob(torch.tensor(x, dtype=torch.float)).exp()
            for x in itertools.product((lower, 1), repeat=2)
        )
        torch.testing.assert_close(total, torch.ones(3))
        mean = law.sample((20_000,)).mean(0)
        p = logits.sigmoid()
        assert (mean - (p + lower * (1 - p))).abs().max() < 0.05
        with pytest.raises(ValueError, match="support"):
            law.log_prob(torch.full((3, 2), 0.5))


@pytest.mark.parametrize("coupling", [1.0, -1.0])
def test_cold_spins_do_not_freeze_into_stripes(coupling):
    ising = pg.models.Ising((8, 8), coupling=coupling).freeze()
    x = ising().sample((1000,))
    parity = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    ordered = x if coupling > 0 else x * (1 - 2 * parity)
    assert (ordered.mean((-1, -2)).abs() > 0.8).all()
    assert abs(float((ordered.mean((-1, -2)) > 0).float().mean()) - 0.5) < 0.07
    gap = ising.energy(x).mean() - ising.mean_energy()
    assert abs(float(gap)) < 4 * float(ising.energy(x).std()) / 1000**0.5
