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


def test_density_needs_two_features():
    with pytest.raises(ValueError, match=r"two features.*\(3,\)"):
        pg.plots.density(pg.models.MAF(3))


def test_images_are_a_table():
    columns = {"a": torch.rand(3, 12), "b": torch.full((3, 12), torch.nan)}
    axs = pg.plots.images(columns, (3, 4))
    assert axs.shape == (3, 2)
    assert axs[0, 1].get_title() == "b"
