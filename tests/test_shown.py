"""What objects show of themselves in a notebook: one line that tells what they are."""

import pytest
import torch

import probgen as pg
from tests.rosters import DIFFUSIONS, ENERGIES, FLOWS, HEADS, KERNELS, LATENTS, D

MODULES = {
    **{f"flow {name}": lambda make=make: make(D, 0) for name, make in FLOWS.items()},
    **{f"head {name}": lambda make=make: make[0](D) for name, make in HEADS.items()},
    **{
        f"{kind} {name}": lambda make=make: make(0)
        for kind, roster in (("latent", LATENTS), ("energy", ENERGIES), ("diffusion", DIFFUSIONS))
        for name, make in roster.items()
    },
}


@pytest.mark.parametrize("name", MODULES)
def test_distributions_show_what_made_them_in_one_line(name):
    module = MODULES[name]()
    text = repr(module(None))
    assert "\n" not in text
    assert len(text) < 160
    if not name.startswith("head"):
        assert type(module).__name__ in text
        assert f"event_shape={tuple(module(None).event_shape)}" in text


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_fit_in_one_line(name):
    text = repr(KERNELS[name])
    assert "\n" not in text
    assert len(text) < 160


def test_schedules_show_their_numbers():
    assert repr(pg.diffusion.VP()) == "VP(low=0.1, high=20)"
    assert repr(pg.diffusion.Cosine()) == "Cosine(offset=0.008)"


def test_shapes_are_shown():
    made = pg.models.NSF(3, context=2)(torch.zeros(5, 2))
    assert repr(made) == "FlowDistribution(NSF, batch_shape=(5,), event_shape=(3,))"
    assert (
        repr(made.expand((4, 5))) == "FlowDistribution(NSF, batch_shape=(4, 5), event_shape=(3,))"
    )
