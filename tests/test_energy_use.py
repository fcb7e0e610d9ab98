"""Energies in use: normalisers, supports, errors."""

import copy
import itertools
import math

import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen import mcmc, objectives
from probgen.distributions import Energy, EnergyDistribution, ProductOfExperts, Tilted
from probgen.distributions.energy.boltzmann import Spins
from tests.rosters import moved


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
