"""Plots take and return axes."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

import probgen as pg

mpl.use("agg")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_training_draws_losses_and_held_out():
    history = pg.History([3.0, 2.0, 1.0], [(1, 2.5), (3, 1.5)], 3)
    ax = pg.plots.training(history)
    assert ax.get_xlabel() == "step"
    assert len(ax.lines) == 3
    assert pg.plots.training(history, ax) is ax


def test_density_draws_an_image_and_data():
    ax = pg.plots.density(pg.models.MAF(2), torch.randn(10, 2), points=20)
    (image,) = ax.images
    assert image.get_array().shape == (20, 20)
    assert len(ax.collections) == 1


def test_density_needs_one_or_two_features():
    with pytest.raises(ValueError, match=r"one or two features.*\(3,\)"):
        pg.plots.density(pg.models.MAF(3))


def test_a_manifold_is_a_grid_of_images():
    vae = pg.models.VAE(12, 2, (8,))
    ax = pg.plots.manifold(vae, (3, 4), count=5)
    assert ax.images[0].get_array().shape == (15, 20)
    with pytest.raises(ValueError, match=r"two latents.*\(3,\)"):
        pg.plots.manifold(pg.models.VAE(12, 3, (8,)), (3, 4))


def test_images_are_a_table():
    columns = {"a": torch.rand(3, 12), "b": torch.full((3, 12), torch.nan)}
    axs = pg.plots.images(columns, (3, 4))
    assert axs.shape == (3, 2)
    assert axs[0, 1].get_title() == "b"


def test_density_of_one_feature_given_a_context():
    module = pg.models.NSF(1, context=2, autoregressive=True)
    ax = pg.plots.density(module, torch.randn(10, 1), context=torch.zeros(2), limits=(-2, 2))
    assert len(ax.lines) == 1
    assert ax.get_xlim() == (-2, 2)


def test_corner_of_two_sets():
    sets = {"a": torch.randn(50, 3), "b": torch.randn(20, 3)}
    axs = pg.plots.corner(sets, names="xyz", truth=torch.zeros(3))
    assert axs.shape == (3, 3)
    assert not axs[0, 1].get_visible()
    assert axs[2, 0].get_xlabel() == "x"
    assert len(axs[1, 0].collections) == 2
    assert pg.plots.corner(sets["a"], axs) is axs


def test_corner_needs_a_name_and_a_truth_per_feature():
    with pytest.raises(ValueError, match="Expected 3 `names`, got xy"):
        pg.plots.corner(torch.randn(50, 3), names="xy")
    with pytest.raises(ValueError, match=r"`truth` with shape \(3,\), got \(2,\)"):
        pg.plots.corner(torch.randn(50, 3), truth=torch.zeros(2))


def test_corner_is_not_stretched_by_an_outlier():
    draws = torch.randn(5000, 2)
    draws[0] = 1e4
    (shape,) = pg.plots.corner(draws)[0, 0].patches
    assert shape.get_xy()[:, 0].max() < 10


def test_corner_needs_matrices():
    with pytest.raises(ValueError, match=r"one shape \(N, D\).*\(5, 3\).*\(5, 2\)"):
        pg.plots.corner({"a": torch.randn(5, 3), "b": torch.randn(5, 2)})


@pytest.fixture
def exact():
    """Draws of exact posteriors, and the truths."""
    torch.manual_seed(0)
    truth = torch.randn(400)
    mean = (truth + 0.5 * torch.randn(400)) / 1.25
    return mean + 0.2**0.5 * torch.randn(99, 400), truth


def test_coverage_of_an_exact_posterior_lies_in_the_band(exact):
    ax = pg.plots.coverage(*exact)
    x, y = ax.lines[1].get_data()
    assert abs(y - x).max() < 0.08


def test_coverage_of_a_narrow_posterior_lies_below(exact):
    draws, truth = exact
    narrow = draws.mean(0) + 0.3 * (draws - draws.mean(0))
    x, y = pg.plots.coverage(narrow, truth).lines[1].get_data()
    assert y[50] < 0.3 < x[50]


def test_ranks_count_every_case(exact):
    ax = pg.plots.ranks(pg.metrics.ranks(*exact), 99)
    assert len(ax.patches) == 20
    assert sum(bar.get_height() for bar in ax.containers[0]) == 400


def test_ranks_among_any_number_of_draws():
    ranks = torch.arange(101).repeat(4)[:, None].repeat(1, 2)[:, 0]  # strided: torch warned
    ax = pg.plots.ranks(ranks, 100)
    assert [bar.get_height() for bar in ax.containers[0]][:3] == [20, 20, 20]
    assert sum(bar.get_height() for bar in ax.containers[0]) == 404
    assert len(ax.patches) == 20


def test_ranks_beyond_the_draws_are_refused():
    with pytest.raises(ValueError, match="ranks in 0 to 9"):
        pg.plots.ranks(torch.tensor([3, 10]), 9)


def test_posterior_draws_two_intervals_and_medians(exact):
    assert len(pg.plots.posterior(*exact).collections) == 3


def test_two_coverages_share_a_band(exact):
    ax = pg.plots.coverage(*exact, label="a")
    pg.plots.coverage(*exact, ax, label="b")
    assert ax.get_legend_handles_labels()[1] == ["99 %, exact", "a", "b"]


def test_draws_that_are_nan_are_refused(exact):
    draws = exact[0].clone()
    draws[3, 4] = torch.nan
    with pytest.raises(ValueError, match="got 1 nan"):
        pg.metrics.ranks(draws, exact[1])


@pytest.mark.parametrize("plot", [pg.plots.coverage, pg.plots.posterior])
def test_draws_and_truth_must_match(plot, exact):
    with pytest.raises(ValueError, match=r"\(99, 400\) and \(399,\)"):
        plot(exact[0], exact[1][1:])


def test_residuals_state_their_spread():
    ax = pg.plots.residuals(torch.tensor([-1.0, 1.0, -1.0, 1.0]), 0.5)
    assert "residuals, sd 2.31" in ax.get_legend_handles_labels()[1]


def test_the_given_axes_are_used(exact):
    _, ax = plt.subplots()
    assert pg.plots.coverage(*exact, ax) is ax
    assert pg.plots.posterior(*exact, ax) is ax
    assert pg.plots.ranks(pg.metrics.ranks(*exact), 99, ax) is ax
    assert pg.plots.residuals(exact[0] - exact[1], 1.0, ax) is ax
