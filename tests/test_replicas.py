"""Parallel tempering: invariance, exchanges, and the ladder that warm-up adapts."""

import itertools

import pytest
import torch

from probgen import mcmc
from probgen.mcmc.kernels.parallel_tempering import between, even

BETAS = (0.1, 0.4, 1.0)


def normal(x):
    return -x.square().sum(-1) / 2


def wide(x):
    return -x.square().sum(-1) / 32


def exact(chains, base=None):
    """Draws of all replicas."""
    b = torch.tensor(BETAS, dtype=torch.double)
    precision = b if base is None else b + (1 - b) / 16
    return torch.randn(chains, 3, 2, dtype=torch.double) / precision.sqrt()[:, None]


@pytest.mark.parametrize("base", [None, wide])
@pytest.mark.parametrize("kernel", [mcmc.HMC(0.5, 3), mcmc.MALA(0.3), mcmc.Metropolis(1.0)])
def test_all_replicas_keep_their_distributions(kernel, base):
    n = 20_000
    tempered = mcmc.ParallelTempering(kernel, BETAS, base)
    state = tempered.init(exact(n, base), normal)
    for _ in range(4):
        state, info = tempered.step(state, normal)
    torch.testing.assert_close(state.log_density, normal(state.position[:, -1]))
    b = torch.tensor(BETAS, dtype=torch.double)
    variance = 1 / (b if base is None else b + (1 - b) / 16)
    z = state.position.square().mean((0, 2)) / variance - 1
    assert (z.abs() < 5 * (2 / (2 * n)) ** 0.5).all()
    assert info.levels.shape == (3,)
    assert int(torch.isnan(info.swaps).sum()) == 1  # even pairs and odd ones in turn


def test_exchanges_have_the_rate_of_metropolis():
    """One batch of replicas gives the rates of one replica after the other."""
    n = 50_000
    rates = []
    for kernel in (mcmc.HMC(1e-6, 1), lambda beta: mcmc.HMC(1e-6, 1)):
        tempered = mcmc.ParallelTempering(kernel, BETAS)
        torch.manual_seed(0)
        state = tempered.init(exact(n), normal)._replace(taken=0)
        rates.append(float(tempered.step(state, normal)[1].acceptance.mean()))
    assert rates[0] == pytest.approx(rates[1], abs=0.01)


def test_float32_and_the_meta_device():
    tempered = mcmc.ParallelTempering(mcmc.HMC(0.5, 2), BETAS, step_sizes=torch.rand(3) + 0.1)
    x = exact(4).float()
    state, _ = tempered.step(tempered.init(x, normal), normal)
    assert state.position.dtype == state.log_density.dtype == torch.float32
    x = x.to("meta")
    state, info = tempered.step(tempered.init(x, normal), normal)
    assert state.position.device.type == info.acceptance.device.type == "meta"


def test_temperatures_are_placed_where_swaps_are_refused():
    ladder = even([0.01, 0.1, 0.5, 1.0], torch.tensor([0.1, 0.1, 0.7]))
    assert ladder[0] == pytest.approx(0.01)
    assert ladder[-1] == 1.0
    assert all(a < b for a, b in itertools.pairwise(ladder))
    assert ladder[1] > 0.5 * 0.9  # two of three steps go to the last third
    assert between([0.0, 1.0], [1.0, 100.0], [0.5]) == pytest.approx([10.0])


def test_a_run_adapts_and_resumes(tmp_path):
    kernel = mcmc.ParallelTempering()
    options = {"kernel": kernel, "init": torch.randn(16, 2), "warmup": 60, "progress": False}
    found = mcmc.run(normal, draws=20, seed=0, checkpoint=tmp_path, **options)
    assert len(found.kernel.betas) == len(found.kernel.step_sizes) == 12
    assert found.kernel.step_sizes[0] > found.kernel.step_sizes[-1]
    more = mcmc.run(normal, draws=30, checkpoint=tmp_path, **options)
    assert torch.equal(more.samples["x"][:, :20], found.samples["x"])
    whole = mcmc.run(normal, draws=30, seed=0, **options)
    assert torch.equal(more.samples["x"], whole.samples["x"])


def test_the_scale_of_each_replica_is_resumed(tmp_path):
    scales = torch.tensor([1e-3, 1e3])

    def log_density(x):
        return -(x / scales).square().sum(-1) / 2

    options = {"kernel": mcmc.ParallelTempering(), "warmup": 60, "progress": False}
    options |= {"init": scales * torch.randn(16, 2)}
    mcmc.run(log_density, draws=10, seed=0, checkpoint=tmp_path, **options)
    more = mcmc.run(log_density, draws=20, checkpoint=tmp_path, **options)
    whole = mcmc.run(log_density, draws=20, seed=0, **options)
    assert torch.equal(more.samples["x"], whole.samples["x"])


def test_given_temperatures_are_kept():
    options = {"init": torch.randn(16, 2), "draws": 5, "progress": False}
    found = mcmc.run(normal, kernel=mcmc.ParallelTempering(betas=BETAS), **options)
    assert found.kernel.betas == BETAS
    assert found.kernel.step_sizes.shape == (3,)


@pytest.mark.parametrize("betas", [(), (0.5, 0.2, 1.0), (0.1, float("nan"), 1.0), (0.1, 0.9)])
def test_temperatures_must_rise_to_one(betas):
    with pytest.raises(ValueError, match="`betas` that rise"):
        mcmc.ParallelTempering(betas=betas)
