"""Several processes: players, shards, and one decision for all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
HEAD = """
import os, sys, torch, probgen as pg
from tests.test_objectives import Critic, Wasserstein, normal, target
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
options = dict(batch_size=20, seed=0, progress=False)
"""


def run(tmp_path, name, script, processes):
    file = tmp_path / f"{name}.py"
    file.write_text(HEAD + script)
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        command += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return subprocess.run(
        [*command, str(file), str(tmp_path / f"{name} {processes}")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


PLAYERS = """
torch.manual_seed(0)
module, critic = normal(), Critic()
torch.distributions.normal._standard_normal = lambda shape, dtype, device: (
    torch.ones(shape, dtype=dtype, device=device)  # each process has its own noise
)
with torch.no_grad():  # only the first process's count
    critic.head.weight.add_(rank)
history = pg.fit(
    module, target(60).double(), objective=Wasserstein(critic, 2), steps=12, validation=0.2,
    optimizer={"critic": torch.optim.Adam, "generator": torch.optim.SGD}, clip=1.0, ema=0.9,
    checkpoint=sys.argv[1], **options,
)
if rank == 0:
    torch.save((list(module.parameters()), list(critic.parameters()), vars(history)),
               sys.argv[1] + "/result.pt")
"""

SHARDS = """
torch.manual_seed(0)
flow = pg.models.NSF(2, transforms=2, hidden_features=(16,))
x = target(60) * (1 + 3 * rank)  # shards of their own
history = pg.fit(flow, x.double(), steps=3000, lr=1e-2, validation=0.5, patience=2, **options)
total = float(sum(p.sum() for p in flow.parameters()))
print(f"ended {len(history.losses)} {history.best_step} {total}\\n", end="", flush=True)
try:
    pg.fit(flow, x[: 60 - rank].double(), steps=3, **options)
except ValueError as error:
    print(f"refused {error}\\n", end="", flush=True)
"""


def test_players_of_two_processes_have_the_gradients_of_one(tmp_path):
    results = []
    for processes in (1, 2):
        done = run(tmp_path, "players", PLAYERS, processes)
        assert done.returncode == 0, done.stderr
        file = tmp_path / f"players {processes}" / "result.pt"
        results.append(torch.load(file, weights_only=False))
    (one, critic, history), (two, other, again) = results
    for p, q in zip([*one, *critic], [*two, *other]):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
    assert again["losses"] == pytest.approx(history["losses"], rel=1e-9)
    assert again["best_step"] == history["best_step"]


def test_shards_of_their_own_stop_together(tmp_path):
    done = run(tmp_path, "shards", SHARDS, 2)
    assert done.returncode == 0, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if line)
    ended = [line for line in lines if line.startswith("ended")]
    assert len(ended) == 2
    assert ended[0] == ended[1]
    assert int(ended[0].split()[1]) < 3000
    refused = [line for line in lines if line.startswith("refused")]
    assert len(refused) == 2
    assert all("as many data in all processes, got [60, 59]" in line for line in refused)
