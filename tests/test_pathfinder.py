"""Optimisation paths, modes, and the points from which chains start."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from probgen import mcmc
from probgen.mcmc.modes import find_modes
from probgen.mcmc.pathfinder import mixture, pathfinder, prepare
from probgen.mcmc.paths import optimize


def normal(scale):
    return lambda x: -((x - 1) / scale).square().sum(-1) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (1e-6, 1.0, 1e6), (1e3,)])
def test_paths_end_at_the_mode_with_its_curvature(scale, dtype):
    scale = torch.tensor(scale, dtype=dtype)
    x = torch.randn(16, len(scale), dtype=dtype)
    modes = find_modes(optimize(x, normal(scale)), normal(scale), x)
    assert len(modes.position) == 1
    assert ((modes.position[0] - 1) / scale).abs().max() < 0.3
    covariance = modes.factor[0] @ modes.factor[0].T
    torch.testing.assert_close(
        covariance.diagonal().sqrt(), scale.double(), rtol=0.05, atol=0, check_dtype=False
    )
    exact = float(scale.double().log().sum())
    assert float(modes.log_mass[0]) == pytest.approx(exact, abs=0.1)


def test_the_log_determinant_of_a_path_is_that_of_its_inverse_hessian():
    x = torch.randn(8, 4, dtype=torch.double)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.double)).Q
    precision = (turn * torch.logspace(-2, 2, 4).double()) @ turn.T

    def log_density(x):
        return -((x @ precision) * x).sum(-1) / 2 - x.pow(4).sum(-1)

    for steps in (3, 7, 20):
        paths = optimize(x, log_density, steps)
        exact = paths.log_density + torch.linalg.slogdet(paths.inverse).logabsdet / 2
        torch.testing.assert_close(paths.log_mass, exact, rtol=1e-4, atol=1e-4)


def test_modes_are_found_with_their_masses_and_start_chains_by_them():
    centers, weights = torch.tensor([[-8.0, 0], [8, 0], [0, 9]]), torch.tensor([0.2, 0.5, 0.3])
    scales = torch.tensor([0.5, 1.0, 2.0])

    def log_density(x):
        d = (x[:, None] - centers) / scales[:, None]
        return (weights.log() - d.square().sum(-1) / 2 - 2 * scales.log()).logsumexp(1)

    x = 6 * torch.randn(256, 2)
    points, _, modes = pathfinder(x, log_density)
    assert len(modes.position) == 3
    order = torch.cdist(modes.position.float(), centers).argmin(1)
    torch.testing.assert_close(
        modes.log_mass.softmax(0).float(), weights[order], rtol=0.05, atol=0.0
    )
    near = torch.cdist(points, centers).argmin(1).bincount(minlength=3) / 256
    assert (near - weights).abs().max() < 0.15


def test_a_density_without_a_mode_gives_points_where_its_mass_is():
    def funnel(x):  # v ~ N(0, 3), the rest N(0, e^v): unbounded as v falls
        v = x[:, 0]
        return -v.square() / 18 - (x[:, 1:].square().sum(-1) * (-v).exp() + 9 * v) / 2

    x = 4 * torch.rand(128, 10) - 2
    points, factor, modes = pathfinder(x, funnel)
    assert len(modes.position) == 0
    assert modes.flat is None
    assert torch.isfinite(factor).all()
    assert float(points[:, 0].min()) > -12


def test_a_flat_direction_is_found():
    direction = torch.tensor([1.0, -2.0, 0.5])
    contrasts = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 4.0]])  # orthogonal to it

    def log_density(x):
        return -(x @ contrasts.T).square().sum(-1) / 2

    x = torch.randn(32, 3)
    modes = find_modes(optimize(x, log_density), log_density, x)
    found = modes.flat / modes.flat.norm()
    assert abs(float(found.float() @ direction / direction.norm())) == pytest.approx(1.0, abs=0.01)


def test_a_bounded_optimum_on_a_wall_leaves_chains_where_they_are():
    def log_density(x):
        return torch.where((x > 0).all(-1), -x.sum(-1) * 0 - x.square().sum(-1), -torch.inf)

    x = torch.rand(64, 2) + 0.1
    kernel, points, _ = prepare(mcmc.ChEES(), x, log_density, move=False)
    assert torch.equal(points, x)
    assert kernel.scale is None or torch.isfinite(kernel.scale).all()


def test_mixtures_are_normalised():
    centers = torch.tensor([[0.0], [3.0]]).double()
    factors = torch.tensor([[[1.0]], [[0.5]]]).double()
    grid = torch.linspace(-10, 10, 4001).double()
    density = mixture(grid[:, None], centers, factors, torch.tensor([0.3, 0.7]).double()).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-6)


def test_many_dimensions():
    scale = torch.logspace(-2, 2, 150)
    x = torch.randn(64, 150)
    kernel, points, modes = prepare(mcmc.ChEES(), x, normal(scale))
    assert len(modes.position) == 1
    assert isinstance(kernel.scale, mcmc.LowRank)
    assert ((points.std(0) / scale).log().abs() < 0.7).all()
    z = (points - 1) / scale
    assert abs(float(z.square().mean()) - 1) < 0.2


def test_a_density_without_a_gradient_is_left_alone():
    def log_density(x):
        return torch.as_tensor(-(x.detach().numpy() ** 2) / 2).sum(-1)

    x = torch.randn(16, 2)
    kernel, points, modes = prepare(mcmc.Metropolis(), x, log_density)
    assert modes is None
    assert kernel == mcmc.Metropolis()
    assert torch.equal(points, x)


def test_given_initial_values_are_kept():
    def model():
        pyro.sample("a", dist.Normal(5.0, 0.01))

    class Spy(mcmc.ChEES):
        def init(self, position, log_density):
            self.seen.append(position.clone())
            return super().init(position, log_density)

    Spy.seen = []
    mcmc.run(model, kernel=Spy(), init={"a": torch.tensor(1.0)}, chains=4, draws=5, progress=False)
    assert torch.equal(Spy.seen[0], torch.ones(4, 1))
    assert math.isfinite(float(Spy.seen[0].sum()))
