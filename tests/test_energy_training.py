"""Energies that are trained and stand as priors."""

import copy
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
from probgen.mcmc.kernels.lattice import log_partition_torus
from tests.rosters import moved

from .energy_cases import GRAPH, chi2, digits, every, number


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
