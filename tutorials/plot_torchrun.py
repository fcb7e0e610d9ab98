r"""
Training on several processes
=============================

A script that calls :func:`probgen.fit` trains on one process when Python starts it, and on several
when ``torchrun`` does. The call is the same. Of each batch of :math:`n` data, process :math:`r` of
:math:`R` takes a part :math:`B_r`, and gradients are averaged over processes,

.. math:: \nabla \frac{1}{n} \sum_{i=1}^n \ell_\theta(x_i) = \frac{1}{R} \sum_{r=1}^R
    \nabla \frac{R}{n} \sum_{i \in B_r} \ell_\theta(x_i).

Both sides are the same number added up in another order, so only their rounding may differ. This
tutorial measures by how much.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.nn.utils import parameters_to_vector

import probgen as pg

# %%
# The script
# ----------
# A flow learns digits of 8 x 8 pixels, in float32 and again in float64. Noise is added to the
# whole levels beforehand, so that every run sees the same data. The first seed decides where the
# parameters start, that of ``fit`` which data form a batch. Runs that are compared need both.
#
# Every process runs the whole script. What should happen once, such as writing a file, is left to
# the process of rank 0; ``fit`` returns the same history on each.

SCRIPT = """
import json, os, sys
import torch
import probgen as pg

for dtype in ("float32", "float64"):
    folder = f"{sys.argv[1]}-{dtype}"
    torch.manual_seed(0)
    images = pg.datasets.digits().images
    x = images + torch.rand_like(images)
    flow = pg.models.MAF(64, transforms=2, hidden_features=(64,))
    flow = pg.distributions.Flow([pg.transforms.NormalCDF(0.0, 17.0)], flow)
    flow.to(getattr(torch, dtype))
    options = {"batch_size": 256, "validation": 0.2, "seed": 0, "progress": False}
    history = pg.fit(flow, x, steps=int(sys.argv[2]), checkpoint=folder, **options)
    if os.environ.get("RANK", "0") == "0":
        with open(f"{folder}/history.json", "w") as file:
            json.dump(vars(history), file)
"""

# %%
# One process and two
# -------------------
# In a shell the first two commands are ``python train.py one 200`` and ``torchrun --standalone
# --nproc_per_node 2 train.py two 200``. Each process has one thread, and on the CPU they talk
# through gloo. The third run takes 100 steps on two processes, then goes on from its checkpoint to
# step 200 on one.

directory = tempfile.TemporaryDirectory()
folder = Path(directory.name)
(folder / "train.py").write_text(SCRIPT)
environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": directory.name}
python = [sys.executable]
torchrun = [*python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
runs = [(python, "one 200"), (torchrun, "two 200"), (torchrun, "both 100"), (python, "both 200")]

for start, arguments in runs:
    command = [*start, "train.py", *arguments.split()]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)

# %%
# Compare
# -------
# The largest differences from the run on one process, in a loss and in a parameter. The last panel
# has the differences of losses, over the value of the loss times :math:`2^{-23}` in float32 and
# :math:`2^{-52}` in float64: a rounding error is about 1 there.


def load(name):
    history = pg.History(**json.loads((folder / name / "history.json").read_text()))
    parameters = parameters_to_vector(pg.load(folder / name).freeze().parameters())
    return history, torch.tensor(history.losses, dtype=torch.float64), parameters


fig, axs = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
print(f"{'':16}{'last loss':>12}{'any loss':>12}{'any parameter':>16}")
for dtype in ("float32", "float64"):
    _, reference, wanted = load(f"one-{dtype}")
    for name in ("two", "both"):
        _, losses, parameters = load(f"{name}-{dtype}")
        gap, distance = (losses - reference).abs(), (parameters - wanted).abs().max()
        print(f"{name + ', ' + dtype:16}{losses[-1]:12.3f}{gap.max():12.1e}{distance:16.1e}")
        if name == "two":
            units = gap / reference / torch.finfo(parameters.dtype).eps
            axs[2].plot(range(1, len(gap) + 1), units, ".", label=dtype)
axs[2].set(title="two against one", xlabel="step", ylabel="difference / precision")
axs[2].legend()
for ax, name in zip(axs, ("one", "two")):
    pg.plots.training(load(f"{name}-float32")[0], ax)
    ax.set(title=f"{name}, float32", ylabel="loss / nats", ylim=(95, 120))
directory.cleanup()

# %%
# What is split
# -------------
# - **Batches** are. ``batch_size`` counts the data of a step over all processes, so neither it nor
#   the learning rate changes with their number. Each process keeps all data and held-out data.
# - **Noise** that an objective draws, as under :class:`~probgen.distributions.Dequantized`, differs
#   between processes. Then one process and two are no longer equal.
# - **Checkpoints** are written by rank 0, and read by all processes when they start. Several
#   machines need a folder that all of them see, and this command on each: ``torchrun --nnodes 2
#   --nproc_per_node 4 --rdzv_backend c10d --rdzv_endpoint HOST:29500 train.py``.
# - **GPUs** are taken by local rank, one for each process, so ``--nproc_per_node`` is their number.
#   Neither GPUs nor several machines are part of what was run here.
