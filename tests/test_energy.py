"""Known answers of energy-based models."""

import math

import pytest
import torch

import probgen as pg
from probgen import mcmc, objectives
from probgen.mcmc.kernels.lattice import bonds, log_partition_torus
from tests.rosters import moved

from .energy_cases import GRAPH, chi2, digits, every, number


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
