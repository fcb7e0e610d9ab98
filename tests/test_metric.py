"""Metrics, step sizes and trajectory lengths: what warm-up learns."""

import math

import pytest
import torch

from probgen import mcmc
from probgen.mcmc import LowRank, Moments, StepSize, TrajectoryLength, warm_up
from probgen.mcmc.kernels.base import pull, shrink, stretch
from probgen.mcmc.kernels.metric import metric_kind


def normal(d, condition, seed=0):
    """A precision matrix of a given condition number, and its inverse."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.double)).Q
    values = torch.logspace(0, math.log10(condition), d, dtype=torch.double)
    return (turn * values) @ turn.T, (turn / values) @ turn.T


def factor_of(scale, d):
    """A scale as a matrix."""
    return stretch(scale, torch.eye(d, dtype=torch.double)).T


def test_a_dense_metric_is_exact_for_a_normal_target_wherever_positions_are():
    """C G C = X at C = A^-1, for any covariance X of positions."""
    precision, covariance = normal(6, 1e4)
    spread = torch.randn(6, 6, dtype=torch.double)
    x = torch.randn(4000, 6, dtype=torch.double) @ spread + 7.0
    moments = Moments("dense")
    for part in x.split(400):  # ten steps of 400 chains, each around its own mean
        moments.update(part, -part @ precision)
    pooled = torch.linalg.cholesky(torch.cov(x.T))
    factor = moments.scale()
    wide = torch.linalg.eigvalsh(
        torch.linalg.solve(pooled, torch.linalg.solve(pooled, factor @ factor.T).T)
    )
    assert wide.max() < 4.2  # at most four times as wide as positions in any direction
    factor = None
    for window in range(2):  # the second in the coordinates of the first
        near = Moments("dense", factor)
        x = torch.randn(4000, 6, dtype=torch.double) @ torch.linalg.cholesky(3 * covariance).T
        for part in x.split(400):
            near.update(part, -part @ precision)
        factor = near.scale()
        values = torch.linalg.eigvalsh(factor.T @ precision @ factor)
        slack = 0.5 if window == 0 else 0.01
        assert values.min() > 1 - slack
        assert values.max() < 1 + slack


@pytest.mark.parametrize("scales", [1.0, 1e8])
def test_a_metric_does_not_depend_on_units(scales):
    units = torch.tensor([1.0, scales, 1 / scales], dtype=torch.double)
    precision, covariance = normal(3, 100)
    x = torch.randn(50, 20, 3, dtype=torch.double) @ torch.linalg.cholesky(covariance).T
    moments = Moments("dense")
    for part in x:
        moments.update(part * units, -(part @ precision) / units)
    factor = moments.scale() / units[:, None]
    torch.testing.assert_close(
        factor @ factor.T @ precision, torch.eye(3).double(), rtol=0, atol=0.3
    )


def test_modes_far_apart_do_not_stretch_a_metric():
    center = torch.tensor([[-50.0], [50.0]], dtype=torch.double).repeat_interleave(10, 0)
    moments = Moments("dense")
    for _ in range(200):
        z = torch.randn(20, 1, dtype=torch.double)
        moments.update(center + z, -z)
    assert float(moments.scale()) == pytest.approx(1.0, rel=0.05)


def test_positions_without_gradients_give_their_covariance():
    moments = Moments("dense")
    x = torch.randn(200, 50, 2, dtype=torch.double) * torch.tensor([1.0, 5.0]).double()
    for part in x:
        moments.update(part, None)
    factor = moments.scale()
    torch.testing.assert_close(
        (factor @ factor.T).diagonal(), torch.tensor([1.0, 25.0]).double(), rtol=0.1, atol=0
    )


def test_a_low_rank_metric_finds_the_directions_that_differ():
    d = 150
    direction = torch.nn.functional.normalize(torch.randn(d, dtype=torch.double), dim=0)
    sd = torch.logspace(-2, 2, d, dtype=torch.double)
    covariance = torch.eye(d).double() + 99 * torch.outer(direction, direction)
    factor = torch.linalg.cholesky(covariance)
    moments = Moments("low_rank")
    for _ in range(20):
        z = torch.randn(128, d, dtype=torch.double) @ factor.T
        moments.update(z * sd, -torch.cholesky_solve(z.T, factor).T / sd)
    scale = moments.scale()
    assert isinstance(scale, LowRank)
    assert scale.vectors.shape[1] >= 1
    whitened = torch.linalg.solve(factor_of(scale, d), torch.diag(sd) @ factor)
    values = torch.linalg.svdvals(whitened)
    assert values.max() / values.min() < 3  # from 10


def test_low_rank_factors_are_the_matrices_that_they_stand_for():
    d, k = 6, 2
    vectors = torch.linalg.qr(torch.randn(d, k, dtype=torch.double)).Q
    scale = LowRank(torch.rand(d).double() + 0.5, vectors, torch.tensor([3.0, 0.2]).double())
    matrix, v = factor_of(scale, d), torch.randn(4, d, dtype=torch.double)
    torch.testing.assert_close(stretch(scale, v), v @ matrix.T)
    torch.testing.assert_close(pull(scale, v), v @ matrix)
    torch.testing.assert_close(shrink(scale, stretch(scale, v)), v)


def test_metrics_by_size():
    assert metric_kind("auto", 100) == "dense"
    assert metric_kind("auto", 101) == "low_rank"
    assert metric_kind("diagonal", 3) == "diagonal"
    with pytest.raises(ValueError, match=r"Expected `metric` among auto, .*got 'full'"):
        metric_kind("full", 3)


def test_step_sizes_settle_where_acceptance_is_right():
    size = StepSize(30.0, target=0.6)
    for _ in range(300):
        size.update(1 / (1 + size.current**2))
    assert size.average == pytest.approx((1 / 0.6 - 1) ** 0.5, rel=0.02)


def test_a_trajectory_grows_to_a_quarter_of_a_period(float64):
    kernel = mcmc.ChEES(0.1, 0.2)
    state = kernel.init(torch.randn(256, 5), lambda x: -x.square().sum(-1) / 2)
    length = TrajectoryLength(0.2)
    for _ in range(400):
        before = state.position
        state, info = kernel.step(state, lambda x: -x.square().sum(-1) / 2)
        length.update(before, info, None)
        length.limit(0.01, 100.0)
        kernel = mcmc.ChEES(0.1, length.current)
    assert 1.2 < length.average < 2.2


@pytest.mark.parametrize("metric", ["diagonal", "dense", "low_rank"])
def test_warm_up_finds_scales_of_eight_decades(metric, float64):
    scales = torch.logspace(-4, 4, 12)
    kernel = mcmc.ChEES()

    def log_density(x):
        return -(x / scales).square().sum(-1) / 2

    state = kernel.init(scales * torch.randn(64, 12), log_density)
    *_, (kernel, _, _) = warm_up(kernel, state, log_density, 100, metric=metric)
    ratio = factor_of(kernel.scale, 12).norm(dim=1) / scales
    assert (ratio.log().abs() < 0.3).all()
    assert kernel.max_steps == 1000


def test_chains_that_never_moved_join_the_others():
    def log_density(x):  # a needle at 100, which no step of this size leaves
        return torch.logaddexp(-x.square().sum(-1) / 2, 40 - 1e8 * (x - 100).square().sum(-1))

    kernel = mcmc.HMC(0.5, 3)
    start = torch.randn(64, 2)
    start[0] = 100.0
    state = kernel.init(start, log_density)
    *_, (_, state, _) = warm_up(kernel, state, log_density, 100)
    assert (state.position.abs() < 10).all()
