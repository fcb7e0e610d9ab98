"""Evidence by annealing, priors that are flows, and what came up in use."""

import math
import os
import subprocess
import sys
import textwrap

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import probgen as pg
from probgen import mcmc
from probgen.mcmc import potential, run

from .mcmc_cases import draws as draws
from .mcmc_cases import eight_schools, z_score


@pytest.fixture
def frozen():
    """A flow that is known exactly: N(1, 2^2) in two dimensions."""
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    shift = pg.transforms.Affine(torch.ones(2), torch.full((2,), math.log(2.0)))
    return pg.distributions.Flow([shift], base).freeze()


def test_a_frozen_flow_moves_to_its_base(frozen):
    def model(y):
        x = pg.sample("x", frozen)
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    y = torch.tensor([3.0, -1.0])
    result = run(model, y, chains=128, seed=0, progress=False)
    assert result.moved == ["x"]
    assert set(result.samples) == {"x"}
    exact = (1 / 4 + y) / (1 / 4 + 1)
    for k in range(2):
        assert z_score(result.samples["x"][..., k], float(exact[k])) < 4
    assert float(result.samples["x"].flatten(0, 1).var(0).mean()) == pytest.approx(0.8, rel=0.05)
    assert "base of their flow: x" in str(result.summary())
    plain = run(model, y, chains=64, base=False, seed=0, progress=False)
    assert plain.moved == []
    for k in range(2):
        assert z_score(plain.samples["x"][..., k], float(exact[k])) < 4


def test_an_unfrozen_flow_stays_where_it_is():
    flow = pg.models.MAF(2, transforms=1, hidden_features=(4,))
    assert potential(lambda: pg.sample("x", flow)).moved == []
    flow.freeze()
    assert potential(lambda: pg.sample("x", flow)).moved == ["x"]


def ising(n=4, beta=0.4407):
    """The bonds of an n x n torus, between black sites and white ones."""
    index = torch.arange(n * n).reshape(n, n)
    row, column = index // n, index % n
    black, white = index[(row + column) % 2 == 0], index[(row + column) % 2 == 1]
    bonds = torch.zeros(n * n, n * n, dtype=torch.double)
    for step in ((0, 1), (1, 0)):
        other = index.roll((-step[0], -step[1]), (0, 1))
        bonds[index.flatten(), other.flatten()] += 1
    bonds = bonds + bonds.T
    return beta * bonds[black][:, white], len(black)


def bits(n, low):
    return torch.cartesian_prod(*[torch.tensor([low, 1.0], dtype=torch.double)] * n)


def exact_log_z(kernel, n):
    return float(kernel.log_density(bits(n, float(kernel.units))).logsumexp(0))


@pytest.mark.parametrize("beta", [0.2, 0.4407, 0.7])
def test_ais_of_an_ising_model_agrees_with_enumeration(beta):
    w, half = ising(beta=beta)
    zero, n = torch.zeros(half, dtype=torch.double), 2000

    def at(b):
        return mcmc.BlockGibbs(b * w, zero, zero, units=-1)

    start = 2.0 * torch.randint(2, (n, half)).double() - 1
    found = mcmc.ais(
        lambda v: 0 * v[:, 0] - half * math.log(2), at(1.0).log_density, start, at, 200
    )
    assert abs(found.log_z - exact_log_z(at(1.0), half)) < 4 * found.se
    assert found.ess > n / 10


def test_ais_and_smc_of_a_boltzmann_machine_agree_with_enumeration():
    torch.manual_seed(2)
    w = torch.randn(8, 6, dtype=torch.double)
    b, c = torch.randn(8, dtype=torch.double), torch.randn(6, dtype=torch.double)
    n = 2000

    def at(beta):
        return mcmc.BlockGibbs(beta * w, b, beta * c)

    def base(v):
        return dist.Bernoulli(logits=b).to_event(1).log_prob(v)

    start = dist.Bernoulli(logits=b).sample((n,))
    exact = exact_log_z(at(1.0), 8)
    found = mcmc.ais(base, at(1.0).log_density, start, at, 200)
    assert abs(found.log_z - exact) < 4 * found.se

    def joint(x):  # on the path of visible and hidden units together, as a dictionary
        v, h = x["v"], x["h"]
        return v @ b + h @ c + ((v @ w) * h).sum(-1)

    def joint_base(x):
        return base(x["v"]) - 6 * math.log(2)

    def blocks(beta):
        def draw(field):
            return (torch.rand_like(field) < field.sigmoid()).double()

        return mcmc.Gibbs(
            {
                "h": lambda x: draw(beta * (x["v"] @ w + c)),
                "v": lambda x: draw(b + beta * (x["h"] @ w.T)),
            }
        )

    hidden = torch.randint(2, (n, 6)).double()
    found = mcmc.smc(joint_base, joint, {"v": start, "h": hidden}, blocks, steps=2)
    assert abs(found.log_z - exact) < 4 * found.se
    found = mcmc.ais(joint_base, joint, {"v": start, "h": hidden}, blocks, 100)
    assert abs(found.log_z - exact) < 4 * found.se


@pytest.mark.parametrize("kernel", [mcmc.HMC(0.3, 3), mcmc.MALA(0.1), mcmc.ChEES(0.3, 0.8)])
def test_evidence_of_a_linear_normal_model(kernel, float64):
    a = torch.randn(4, 3)
    y = torch.tensor([1.0, -2.0, 0.5, 3.0])
    exact = float(
        dist.MultivariateNormal(torch.zeros(4), a @ a.T + 0.3**2 * torch.eye(4)).log_prob(y)
    )

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(a @ x, 0.3).to_event(1), obs=y)

    log_density = potential(model)
    start = log_density.initial("prior", 800)
    for found in (
        mcmc.smc(log_density.log_prior, log_density, start, kernel),
        mcmc.ais(log_density.log_prior, log_density, start, kernel, 200),
    ):
        assert abs(found.log_z - exact) < 4 * found.se
        assert found.se < 0.2
    gain = a.T @ torch.linalg.inv(a @ a.T + 0.09 * torch.eye(4))
    x = mcmc.smc(log_density.log_prior, log_density, start, kernel, steps=10).position
    sd = (torch.eye(3) - gain @ a).diagonal().sqrt()
    assert ((x.mean(0) - gain @ y).abs() / sd < 0.25).all()


def test_annealing_warns_of_few_effective_chains():
    def base(x):
        return -x.square().sum(-1) / 2

    with pytest.warns(UserWarning, match="effective sample size is .* of 200"):
        mcmc.ais(base, lambda x: -50 * (x - 4).square().sum(-1), torch.randn(200, 5), mcmc.HMC(), 1)


@pytest.mark.parametrize(
    "temperatures", [0, torch.tensor([0.0, 0.5]), torch.tensor([0.0, 0.5, 0.4, 1.0])]
)
def test_temperatures_are_checked(temperatures):
    with pytest.raises(ValueError, match="temperature"):
        mcmc.ais(None, None, torch.zeros(3, 1), mcmc.HMC(), temperatures)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"islands": 3}, "divide 8, got 3"), ({"threshold": 1.5}, r"in \(0, 1\), got 1.5")],
)
def test_arguments_of_smc_are_checked(options, message):
    def flat(x):
        return 0 * x[:, 0]

    with pytest.raises(ValueError, match=message):
        mcmc.smc(flat, flat, torch.zeros(8, 1), mcmc.HMC(), **options)


def test_posterior_of_a_learned_prior_and_a_function(frozen):
    y = torch.tensor([3.0, -1.0])

    def log_likelihood(x):
        return dist.Normal(x, 1.0).to_event(1).log_prob(y)

    before = torch.get_rng_state()
    found = pg.posterior(frozen, log_likelihood, draws=2048, seed=1, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    exact = dist.Normal(torch.ones(2), 5**0.5).to_event(1).log_prob(y)
    assert abs(found.log_evidence - float(exact)) < 4 * found.se
    mean = (1 / 4 + y) / (1 / 4 + 1)
    weights = found.log_weights.softmax(0)[:, None]
    assert ((weights * found.draws).sum(0) - mean).abs().max() < 0.1
    assert found.resampled(50).shape == (50, 2)


def test_posterior_of_a_prior_of_pyro_with_a_support():
    found = pg.posterior(
        dist.Beta(torch.tensor(2.0), torch.tensor(2.0)),
        lambda x: dist.Binomial(10, x).log_prob(torch.tensor(7.0)),
        seed=0,
        progress=False,
    )
    assert abs(float(found.draws.mean()) - 9 / 14) < 0.02
    exact = math.log(math.comb(10, 7)) + math.lgamma(9) + math.lgamma(5) - math.lgamma(14)
    exact += math.lgamma(4)  # the Beta-binomial law
    assert abs(found.log_evidence - exact) < 4 * found.se


def test_chains_spread_over_processes_and_gather(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import pyro, pyro.distributions as dist, torch
            import probgen as pg

            torch.set_num_threads(1)

            def model(y):
                mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

            for draws in (10, 20):
                found = pg.mcmc.run(
                    model, torch.tensor(2.0), chains=64, warmup=50, draws=draws, seed=5,
                    checkpoint=r"{tmp_path / "run"}", progress=False,
                )
            rank = torch.distributed.get_rank()
            found.save(rf"{tmp_path / "draws"}-{{rank}}")
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(script)], check=True, capture_output=True, env=environment)
    a, b = (mcmc.Draws.load(tmp_path / f"draws-{rank}").samples["mean"] for rank in (0, 1))
    assert torch.equal(a, b)
    assert a.shape == (64, 20)
    assert len(a[:, -1].unique()) == 64  # no chain twice
    assert abs(float(a.mean()) - 1) < 0.1


def test_step_sizes_per_chain_become_one():
    kernel = mcmc.MALA(torch.full((8,), 0.01))
    options = {"chains": 8, "draws": 5, "seed": 0, "progress": False}
    assert isinstance(
        run(eight_schools, kernel=kernel, warmup=20, **options).kernel.step_size, float
    )
    assert run(eight_schools, kernel=kernel, warmup=0, **options).samples["mu"].shape == (8, 5)


def test_the_summary_warns_of_a_biased_kernel(draws):
    biased = run(eight_schools, kernel=mcmc.ULA(), chains=4, warmup=0, draws=5, progress=False)
    assert "ULA tests no proposal" in str(biased.summary())
    assert "nested r-hat of 4 superchains: at most" in str(draws.summary())


def test_names_that_look_like_a_base_are_not_one():
    def model():
        b = pyro.sample("x_base", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=torch.tensor(2.0))

    log_density = potential(model)
    exact = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.5)) * 2 - 1.0
    torch.testing.assert_close(log_density(torch.tensor([[0.5]]))[0], exact)
    assert set(log_density.unravel(torch.zeros(2, 1))) == {"x_base"}


def test_a_zero_density_stays_zero_where_discrete_sites_are_summed_out():
    def model():
        theta = pyro.sample("theta", dist.HalfNormal(1.0))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        law = dist.Uniform(0.0, theta * (1 + z), validate_args=False)
        pyro.sample("y", law, obs=torch.tensor(5.0))

    value, gradient = potential(model).value_and_gradient(torch.tensor([[0.0], [1.0]]))
    assert value[0] == -torch.inf
    assert torch.isfinite(value[1])
    assert torch.isfinite(gradient[1])


def unplated():
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
    pyro.sample("y", dist.Normal(w + z, 1.0), obs=torch.tensor([0.0, 1.0, 2.0]))


def scaled():
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=2.0), pyro.plate("d", 2):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(w + z, 1.0), obs=torch.tensor([1.0, 2.0]))


def widening():
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Uniform(torch.zeros(()), 1 + z))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (unplated, r"plates around site 'y' with batch shape \(3,\)"),
        (scaled, "no scale at site 'z'"),
        (widening, "support of site 'x' that depends on no discrete site"),
    ],
)
def test_discrete_sites_that_cannot_be_summed_out_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        potential(model)


def test_an_interrupt_within_a_draw_repeats_nothing(tmp_path):
    calls, cut = [], 0

    def log_density(x):
        calls.append(1)
        if len(calls) == cut:
            raise KeyboardInterrupt
        return -x.square().sum(-1) / 2

    options = {"kernel": mcmc.Metropolis(1.0), "init": torch.zeros(4, 2), "warmup": 0, "draws": 6}
    options |= {"thin": 5, "seed": 1, "progress": False}
    whole = run(log_density, **options)
    cut, calls[:] = 15, []
    with pytest.raises(KeyboardInterrupt):
        run(log_density, checkpoint=tmp_path, **options)
    cut = 0
    again = run(log_density, checkpoint=tmp_path, **options)
    assert torch.equal(whole.samples["x"], again.samples["x"])


def test_seeds_hold_where_initial_points_are_drawn_again_and_sites_are_discrete():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Bernoulli(0.5))
        pyro.factor("wall", torch.where(a > 0, 0.0, -torch.inf))

    log_density, before = potential(model), torch.get_rng_state()
    options = {"chains": 8, "warmup": 5, "draws": 5, "seed": 3, "progress": False}
    a, b = (run(log_density, **options).samples["a"] for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(before, torch.get_rng_state())


def test_a_covariance_that_is_not_positive_definite_rejects_its_chain_alone():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 0.3))
        k = torch.eye(3) + a * (1 - torch.eye(3))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), k), obs=torch.zeros(3))

    log_density = potential(model)
    value, _ = log_density.value_and_gradient(torch.tensor([[0.1], [3.0]]))
    assert torch.isfinite(value[0])
    assert not torch.isfinite(value[1])
    found = run(log_density, chains=16, warmup=30, draws=10, seed=0, progress=False)
    assert torch.isfinite(found.samples["a"]).all()


def test_annealing_over_a_wall():
    def base(x):
        return dist.Normal(0.0, 1.0).log_prob(x[:, 0])

    def target(x):
        return torch.where(x[:, 0] > 0.5, base(x), -torch.inf)

    exact = math.log(1 - float(dist.Normal(0.0, 1.0).cdf(torch.tensor(0.5))))
    start = torch.randn(800, 1)
    for found in (
        mcmc.ais(base, target, start, mcmc.Metropolis(0.5), 20),
        mcmc.smc(base, target, start, mcmc.Metropolis(0.5)),
    ):
        assert abs(found.log_z - exact) < 4 * found.se
    with pytest.raises(ValueError, match="positive at some draw"):
        mcmc.smc(base, lambda x: x[:, 0] * 0 - torch.inf, start, mcmc.Metropolis(0.5))


def test_values_of_a_users_own_reparameterisation_are_kept():
    def model():
        s = pyro.sample("s", dist.HalfNormal(1.0))
        pyro.sample("x", dist.Normal(0.0, s))

    moved = poutine.reparam(model, {"x": pyro.infer.reparam.LocScaleReparam(0.0)})
    assert set(potential(moved).unravel(torch.zeros(3, 2))) == {"s", "x_decentered", "x"}


def test_gibbs_with_a_biased_kernel_is_biased():
    assert not mcmc.Gibbs({"a": mcmc.ULA(0.5)}).exact
    assert mcmc.Gibbs({"a": mcmc.MALA(0.5)}).exact


LARGE = torch.eye(20)


@pytest.mark.parametrize(
    ("kernel", "text"),
    [
        (mcmc.HMC(0.1, 5, LARGE), "HMC(step_size=0.1, steps=5, scale=tensor of shape (20, 20))"),
        (
            mcmc.MALA(0.2, mcmc.LowRank(torch.ones(9), torch.eye(9)[:, :2], torch.ones(2))),
            "MALA(step_size=0.2, scale=LowRank(9 numbers, 2 directions))",
        ),
        (
            mcmc.Gibbs({"a": mcmc.Metropolis(), "b": eight_schools}),
            "Gibbs(blocks={'a': Metropolis(step_size=0.5, scale=None), 'b': eight_schools})",
        ),
        (mcmc.Metropolis(0.1, torch.ones(2)), "Metropolis(step_size=0.1, scale=tensor([1., 1.]))"),
    ],
)
def test_kernels_show_themselves_in_one_line(kernel, text):
    assert repr(kernel) == text


def test_draws_show_their_sites_in_one_line(draws):
    assert repr(draws) == "Draws(16 chains of 40 draws: mu (), tau (), eta (8,), theta (8,))"
    many = mcmc.Draws({f"x{k}": torch.zeros(4, 5) for k in range(100)}, {}, ["x0"], [])
    assert repr(many).endswith("x5 (), 94 more)")
    assert repr(draws.summary()) == str(draws.summary())
