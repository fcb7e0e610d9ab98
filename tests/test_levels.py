"""Levels among continuous data, and shards of several processes."""

import os
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import probgen as pg
from probgen.training.levels import find_levels

from .data_cases import QUICK, Counted, Stream, rounded, small


@pytest.mark.parametrize(
    ("name", "make", "levels"),
    [
        ("normal", lambda g: torch.randn(1000, generator=g), False),
        ("uniform", lambda g: torch.rand(1000, generator=g), False),
        ("cents", lambda g: rounded(torch.randn(1000, generator=g), 0.01), False),
        ("an eighth of a sd", lambda g: rounded(torch.randn(1000, generator=g), 0.125), False),
        ("far from zero", lambda g: 1e4 + torch.randn(1000, generator=g), False),
        ("constant", lambda g: torch.ones(1000), False),
        ("repeated rows", lambda g: torch.randn(40, generator=g).repeat(25), False),
        ("zeros among", lambda g: torch.randn(1000, generator=g).clamp_min(0), False),
        ("few", lambda g: torch.arange(40.0) % 3, False),
        ("bits", lambda g: torch.rand(1000, generator=g).round(), True),
        ("counts", lambda g: torch.poisson(torch.full((1000,), 4.0), g), True),
        ("tenths", lambda g: torch.randint(0, 8, (1000,), generator=g) / 10, True),
        ("scaled", lambda g: 7 + 0.37 * torch.randint(0, 8, (1000,), generator=g), True),
        ("half a sd", lambda g: rounded(torch.randn(1000, generator=g), 0.5), True),
        ("gaps", lambda g: torch.tensor([0.0, 2.0, 5.0, 30.0]).repeat(30), True),
    ],
)
def test_levels_among_continuous_data(name, make, levels):
    column = make(torch.Generator().manual_seed(0))
    other = torch.randn(len(column))
    for x in (column, column.double() * 3.7 + 0.1):
        assert find_levels(torch.stack([other.to(x.dtype), x], 1)) == ([1] if levels else [])


def test_levels_are_warned_of_by_name():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"height": rng.normal(size=200), "rooms": rng.integers(1, 6, 200)})
    with pytest.warns(
        pg.DiscreteDataWarning, match=r"Column 'rooms' of the data hold.*Dequantized"
    ):
        pg.fit(small(), frame, steps=1, **QUICK)
    x = torch.as_tensor(frame.to_numpy())
    for data in (x, Counted(200, x.float().__getitem__), Stream(200, x.float().__getitem__)):
        with pytest.warns(pg.DiscreteDataWarning, match="Column 1 of the data hold") as caught:
            pg.fit(small(), data, steps=1, **QUICK)
        assert caught[0].filename == __file__, "a warning points at the line of the user"
    continuous = pg.distributions.Flow([pg.transforms.NormalCDF(0.0, 6.0)], small())
    levels = torch.as_tensor(rng.integers(0, 6, (200, 2))).float()
    fade = pg.diffusion.FadeDegradation(2, 4)
    without_density = pg.models.ColdDiffusion(2, fade, hidden_features=(8,))
    with warnings.catch_warnings():
        warnings.simplefilter("error", pg.DiscreteDataWarning)
        for module in (pg.distributions.Dequantized(continuous, 6), without_density):
            pg.fit(module, levels, steps=1, **QUICK)


def test_shards_of_several_processes_have_one_length(tmp_path):
    script = tmp_path / "shards.py"
    script.write_text(
        textwrap.dedent(
            """
            import torch, probgen as pg, torch.distributed as distributed
            torch.set_num_threads(1)
            distributed.init_process_group("gloo")
            rank = distributed.get_rank()
            options = dict(steps=4, batch_size=10, seed=0, progress=False)
            pg.fit(pg.models.MAF(2, transforms=1), torch.randn(40, 2) + rank, **options)
            try:
                pg.fit(pg.models.MAF(2, transforms=1), torch.randn(40 - rank, 2), **options)
            except ValueError as error:
                assert "as many data in all processes, got [40, 39]" in str(error), error
                print("said")
            distributed.barrier()
            distributed.destroy_process_group()  # else a thread may outlive it and abort
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(script)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("said") == 2
