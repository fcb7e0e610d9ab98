"""The laws of MCMC kernels."""

import dataclasses
import math

import pytest
import torch

from probgen import mcmc
from tests.rosters import KERNELS, UNADJUSTED

ALL = {**KERNELS, **UNADJUSTED}
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.double)
FACTOR = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [-0.3, 0.2, 0.5]], dtype=torch.double)
COVARIANCE = FACTOR @ FACTOR.T
PRECISION = COVARIANCE.inverse()


def normal(x):
    d = x - MEAN.to(x)
    return -(d @ PRECISION.to(x) * d).sum(-1) / 2


def exact_draws(chains):
    return MEAN + torch.randn(chains, 3, dtype=torch.double) @ FACTOR.T


@pytest.fixture(params=ALL)
def kernel(request):
    return ALL[request.param]()


@pytest.fixture(params=KERNELS)
def exact(request):
    return KERNELS[request.param]()


def advance(kernel, state, log_density, steps):
    for _ in range(steps):
        state, info = kernel.step(state, log_density)
    return state, info


def test_a_step_keeps_shapes_and_the_state_is_new(kernel):
    state = kernel.init(exact_draws(7), normal)
    new, info = kernel.step(state, normal)
    assert new.position.shape == (7, 3)
    assert info.acceptance.shape == info.accepted.shape == info.diverged.shape == (7,)
    assert type(new) is type(state)
    assert new is not state


def test_kernels_are_immutable(kernel):
    field = dataclasses.fields(kernel)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kernel, field, 1.0)


def test_the_state_agrees_with_its_position(kernel):
    state, _ = advance(kernel, kernel.init(exact_draws(50), normal), normal, 3)
    torch.testing.assert_close(state.log_density, normal(state.position))
    if hasattr(state, "gradient"):
        torch.testing.assert_close(state.gradient, -(state.position - MEAN) @ PRECISION)


def test_float64_follows_the_position(kernel):
    state, _ = kernel.step(kernel.init(exact_draws(4), normal), normal)
    assert state.position.dtype == state.log_density.dtype == torch.double


def test_float32_follows_the_position(kernel):
    scale = getattr(kernel, "scale", None)
    if scale is not None:
        kernel = dataclasses.replace(kernel, scale=scale.to(torch.float))
    state, _ = kernel.step(kernel.init(exact_draws(4).float(), normal), normal)
    assert state.position.dtype == state.log_density.dtype == torch.float32


def test_runs_on_the_meta_device(kernel):
    scale = getattr(kernel, "scale", None)
    if scale is not None:
        kernel = dataclasses.replace(kernel, scale=scale.to("meta"))

    def log_density(x):
        return -x.square().sum(-1)

    state, info = kernel.step(
        kernel.init(torch.zeros(4, 3, device="meta", dtype=torch.double), log_density), log_density
    )
    assert state.position.device.type == info.accepted.device.type == "meta"


def test_one_seed_gives_one_chain(kernel):
    start = exact_draws(6)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(advance(kernel, kernel.init(start, normal), normal, 5)[0].position)
    assert torch.equal(*runs)


def test_positions_of_any_shape(kernel):
    if getattr(kernel, "scale", None) is not None:
        kernel = dataclasses.replace(kernel, scale=None)

    def log_density(x):
        return -x.square().sum((-1, -2)) / 2

    state, _ = advance(kernel, kernel.init(torch.randn(5, 2, 4), log_density), log_density, 3)
    assert state.position.shape == (5, 2, 4)
    torch.testing.assert_close(state.log_density, log_density(state.position))


def test_invariance_from_exact_draws(exact):
    """Moments stay within 5 standard errors, Bonferroni over 12 kernels and 9 moments."""
    n = 20_000
    x, _ = advance(exact, exact.init(exact_draws(n), normal), normal, 5)
    z = torch.linalg.solve_triangular(FACTOR, (x.position - MEAN).T, upper=False).T
    assert (z.mean(0).abs() < 5 / n**0.5).all()
    second = z.T @ z / n - torch.eye(3, dtype=torch.double)
    assert (second.abs() < 5 * (1 + torch.eye(3, dtype=torch.double)).sqrt() / n**0.5).all()


@pytest.mark.parametrize("name", [name for name in KERNELS if not name.startswith("chees")])
def test_ranks_among_draws_of_one_chain_are_uniform(name):
    """An exact draw and those of a chain through it have uniform ranks, if all steps are alike."""
    exact = KERNELS[name]()
    n, length = 4000, 19
    first = exact_draws(n)
    state, draws = exact.init(first, normal), [first[:, 0]]
    for _ in range(length):
        state, _ = exact.step(state, normal)
        draws.append(state.position[:, 0])
    # the first draw sits at a random place of a stationary chain, which is run both ways
    place = torch.randint(0, length + 1, (n,))
    back, state = [], exact.init(first, normal)
    for _ in range(length):
        state, _ = exact.step(state, normal)
        back.append(state.position[:, 0])
    stack = torch.stack([*draws[1:], *back])
    keep = torch.cat(
        [
            torch.arange(length)[:, None] < length - place,
            torch.arange(length)[:, None] < place,
        ]
    )
    rank = ((stack < first[:, 0]) & keep).sum(0)
    tie = ((stack == first[:, 0]) & keep).sum(0)  # rejected proposals leave the chain in place
    rank = rank + (torch.rand(n) * (tie + 1)).long().clamp(max=tie)
    count = torch.bincount(rank, minlength=length + 1).double()
    chi2 = ((count - n / 20).square() / (n / 20)).sum()
    p = torch.special.gammaincc(torch.tensor(19 / 2.0, dtype=torch.double), chi2 / 2)
    assert float(p) > 1e-6


def test_detailed_balance_on_a_line(exact):
    """The flow of probability between two cells is the same both ways."""
    if getattr(exact, "scale", None) is not None:
        exact = dataclasses.replace(exact, scale=None)

    def skewed(x):
        return (x - x.exp())[:, 0]  # the law of a logarithm of an exponential variable

    n = 200_000
    first = torch.empty(n, 1, dtype=torch.double).exponential_().log()
    last = exact.step(exact.init(first, skewed), skewed)[0].position
    edges = torch.tensor([-2.0, -1.0, 0.0, 0.5], dtype=torch.double)
    a, b = (torch.bucketize(v[:, 0], edges) for v in (first, last))
    flow = torch.zeros(5, 5).index_put_((a, b), torch.ones(n), accumulate=True)
    gap = (flow - flow.T).abs() / (flow + flow.T).clamp(min=1).sqrt()
    assert (gap < 5).all()


def test_a_nan_is_rejected_and_counted_and_stays_alone(exact):
    start = exact_draws(40)

    def holed(x):
        return torch.where(x[:, 0] > 1.5, torch.nan, normal(x))

    start[:, 0] = start[:, 0].clamp(max=1.4)
    state = exact.init(start, holed)
    for _ in range(5):
        state, info = exact.step(state, holed)
        assert torch.isfinite(state.position).all()
        assert torch.isfinite(state.log_density).all()
        assert (state.position[:, 0] <= 1.5).all()
        assert not (info.diverged & info.accepted).any()


def test_a_hole_is_counted():
    kernel = mcmc.MALA(0.5)

    def holed(x):
        return torch.where(x.abs().sum(-1) > 0, torch.nan, x.sum(-1) * 0)

    _, info = kernel.step(kernel.init(torch.zeros(5, 2), holed), holed)
    assert info.diverged.all()
    assert not info.accepted.any()


def test_a_score_without_a_density_is_refused(exact):
    with pytest.raises(TypeError, match=f"{type(exact).__name__} tests proposals.*ULA"):
        exact.init(torch.zeros(3, 2), mcmc.Score(lambda x: -x))


@pytest.mark.parametrize("name", UNADJUSTED)
def test_a_score_is_enough_for_kernels_without_a_test(name):
    kernel = UNADJUSTED[name]()
    score = mcmc.Score(lambda x: -(x - MEAN) @ PRECISION)
    torch.manual_seed(1)
    a, _ = advance(kernel, kernel.init(MEAN.expand(9, 3), score), score, 4)
    torch.manual_seed(1)
    b, _ = advance(kernel, kernel.init(MEAN.expand(9, 3), normal), normal, 4)
    torch.testing.assert_close(a.position, b.position)


def test_a_density_that_is_not_finite_at_the_start_is_refused(exact):
    start = torch.zeros(4, 3, dtype=torch.double)
    start[2] = torch.inf
    with pytest.raises(ValueError, match=r"finite log density.*for chain 2"):
        exact.init(start, lambda x: -x.square().sum(-1))


def test_a_density_with_the_wrong_shape_is_refused(exact):
    with pytest.raises(ValueError, match=r"shape \(4,\), one value per chain, got \(4, 3\)"):
        exact.init(torch.zeros(4, 3), lambda x: -x.square())


@pytest.mark.parametrize("position", [torch.zeros(0, 3), torch.tensor(0.0), [0.0]])
def test_a_position_without_chains_is_refused(exact, position):
    with pytest.raises(ValueError, match=r"position with shape \(chains, \*\)"):
        exact.init(position, normal)


def test_ula_has_the_stationary_covariance_of_its_bias():
    size, n = 0.1, 40_000
    biased = (PRECISION - size * PRECISION @ PRECISION / 2).inverse()
    kernel = mcmc.ULA(size)
    start = MEAN + torch.randn(n, 3, dtype=torch.double) @ torch.linalg.cholesky(biased).T
    state, _ = advance(kernel, kernel.init(start, normal), normal, 60)
    d = state.position - MEAN
    cell = d[:, :, None] * d[:, None, :]
    z = (cell.mean(0) - biased) / (cell.std(0) / n**0.5)
    assert z.abs().max() < 4.3  # 4 standard errors, Bonferroni over six cells
    assert ((biased - COVARIANCE) / (cell.std(0) / n**0.5)).abs().max() > 7  # not the target's


def test_sgld_has_the_stationary_variance_of_its_noise():
    size, sd, n = 0.2, 2.0, 100_000

    def noisy(x):
        return -((x.detach() + sd * torch.randn_like(x)) * x).sum(-1)  # gradient -x + noise

    kernel = mcmc.SGLD(size)
    variance = (2 * size + (size * sd) ** 2) / (1 - (1 - size) ** 2)
    state = kernel.init(variance**0.5 * torch.randn(n, 1, dtype=torch.double), noisy)
    state, _ = advance(kernel, state, noisy, 20)
    found = float(state.position.square().mean())
    assert abs(found - variance) < 4 * variance * (2 / n) ** 0.5


def test_sgld_with_a_falling_step_forgets_the_noise():
    data = 1.0 + torch.randn(500, dtype=torch.double)
    log_density = mcmc.minibatch(
        lambda m: -m.square().sum(-1) / 2, lambda m, x: -(x - m).square() / 2, data, 50
    )
    kernel = mcmc.SGLD(2e-3, decay=0.55, delay=10.0)
    state = kernel.init(torch.zeros(2000, 1, dtype=torch.double), log_density)
    state, _ = advance(kernel, state, log_density, 600)
    exact_mean, exact_sd = data.sum() / 501, 501**-0.5
    assert abs(float(state.position.mean() - exact_mean)) < 0.2 * exact_sd
    assert 0.9 < float(state.position.std()) / exact_sd < 1.25


@pytest.mark.parametrize("size", [0, 501])
def test_a_minibatch_larger_than_the_data_is_refused(size):
    with pytest.raises(ValueError, match="`batch_size` in 1 to 500"):
        mcmc.minibatch(None, None, torch.zeros(500), size)


def mixture_score(x, sigma):
    """The score of 0.2 N(-5, 1) + 0.8 N(5, 1) in two dimensions, with noise added."""
    variance = 1 + sigma**2
    means = torch.tensor([[-5.0, -5.0], [5.0, 5.0]]).to(x)
    d = means - x[:, None]
    logits = -d.square().sum(-1) / (2 * variance) + torch.tensor([0.2, 0.8]).to(x).log()
    return (logits.softmax(-1)[..., None] * d).sum(1) / variance


def test_annealed_langevin_recovers_the_weights_that_plain_langevin_misses():
    n = 20_000
    sigmas = torch.logspace(math.log10(20), -1, 50, dtype=torch.double)
    start = 20 * torch.randn(n, 2, dtype=torch.double)
    kernel = mcmc.AnnealedULA(sigmas, steps=20, step_size=0.1)
    x = kernel.sample(start, mixture_score)
    assert abs(float((x.sum(-1) > 0).double().mean()) - 0.8) < 0.02
    score = mcmc.Score(lambda x: mixture_score(x, 0.0))
    plain = mcmc.ULA(0.05)
    start = 8 * (2 * torch.rand(n, 2, dtype=torch.double) - 1)
    state, _ = advance(plain, plain.init(start, score), score, 300)
    assert abs(float((state.position.sum(-1) > 0).double().mean()) - 0.8) > 0.2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mcmc.MALA(0.0), "positive `step_size`, got 0.0"),
        (lambda: mcmc.HMC(0.1, 0), "positive `steps`, got 0"),
        (lambda: mcmc.ChEES(length=-1.0), "positive `length`, got -1.0"),
        (lambda: mcmc.SGLD(decay=-1.0), "`decay` of at least 0, got -1.0"),
        (lambda: mcmc.AnnealedULA(torch.zeros(2, 2)), r"shape \(K,\), got \(2, 2\)"),
        (lambda: mcmc.Gibbs({}), "at least one block"),
        (
            lambda: mcmc.BlockGibbs(torch.zeros(2, 3), torch.zeros(3), torch.zeros(2)),
            r"\(V, H\) = \(3, 2\), got \(2, 3\)",
        ),
        (
            lambda: mcmc.BlockGibbs(torch.zeros(2, 3), torch.zeros(2), torch.zeros(3), units=2),
            "`units` of 0 or -1",
        ),
    ],
)
def test_arguments_are_checked(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def rbm():
    torch.manual_seed(5)
    w, b, c = torch.randn(4, 3).double(), torch.randn(4).double(), torch.randn(3).double()
    return w, b, c


@pytest.mark.parametrize("units", [0, -1])
def test_block_gibbs_draws_from_the_enumerated_law(units):
    kernel = mcmc.BlockGibbs(*rbm(), units=units)
    states = torch.cartesian_prod(*[torch.tensor([float(units), 1.0])] * 4).double()
    p = kernel.log_density(states).softmax(0)
    n = 100_000
    start = states[torch.multinomial(p, n, replacement=True)]
    state, _ = advance(kernel, kernel.init(start), None, 3)
    index = ((state.position - units) / (1 - units) @ torch.tensor([8.0, 4, 2, 1]).double()).long()
    count = torch.bincount(index, minlength=16).double()
    chi2 = ((count - n * p).square() / (n * p)).sum()
    assert float(torch.special.gammaincc(torch.tensor(7.5).double(), chi2 / 2)) > 1e-6
    w, b, c = rbm()
    h = torch.cartesian_prod(*[torch.tensor([float(units), 1.0])] * 3).double()
    joint = states @ w @ h.T + (states @ b)[:, None] + h @ c
    torch.testing.assert_close(kernel.log_density(states), joint.logsumexp(1))


def test_gibbs_draws_a_normal_in_blocks():
    a, b = MEAN[0], MEAN[1:]
    gain = COVARIANCE[:1, 1:] @ COVARIANCE[1:, 1:].inverse()
    left = (COVARIANCE[0, 0] - (gain @ COVARIANCE[1:, :1])[0, 0]).sqrt()

    def draw(x):
        return a + (x["b"] - b) @ gain.T + left * torch.randn_like(x["a"])

    def log_density(x):
        return normal(torch.cat([x["a"], x["b"]], 1))

    kernel = mcmc.Gibbs({"a": draw, "b": mcmc.HMC(0.4, 4)})
    first = exact_draws(20_000)
    state = kernel.init({"a": first[:, :1], "b": first[:, 1:]}, log_density)
    state, info = advance(kernel, state, log_density, 4)
    x = torch.cat([state.position["a"], state.position["b"]], 1)
    assert (x.mean(0) - MEAN).abs().max() < 0.05
    assert (torch.cov(x.T) - COVARIANCE).abs().max() < 0.06
    assert 0.5 < float(info.blocks["b"].acceptance.mean()) < 1


def test_gibbs_names_what_is_wrong():
    kernel = mcmc.Gibbs({"a": lambda x: x["a"][:2], "b": mcmc.HMC()})
    with pytest.raises(ValueError, match=r"names \['a', 'b'\], got \['a'\]"):
        kernel.init({"a": torch.zeros(3, 1)}, normal)

    def log_density(x):
        return -(x["a"] + x["b"]).square().sum(-1)

    start = {"a": torch.zeros(3, 1), "b": torch.zeros(3, 1)}
    with pytest.raises(ValueError, match=r"draws of 'a' with shape \(3, 1\), got \(2, 1\)"):
        kernel.step(kernel.init(start, log_density), log_density)
