"""Kills trainings at random moments, and prints how many: `python tests/kills.py FOLDER COUNT`.

One process starts another for each life of a run, kills it after a random time, and starts the
next, until one comes to the end. What is learned must be what an undisturbed run learns, to the
bit, and no life may lose what one before it had written.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import probgen as pg
from probgen.core import CheckpointError, checkpoint

STEPS = 400


def train(folder):
    torch.manual_seed(0)
    flow = pg.models.MAF(2, transforms=2, hidden_features=(8,))
    x = torch.randn(200, 2) * 3 + 1
    options = {"validation": 0.2, "ema": 0.9, "schedule": "cosine", "batch_size": 40}
    return pg.fit(flow, x, steps=STEPS, checkpoint=folder, seed=0, progress=False, **options)


def life(folder, seconds):
    """Train in a process of its own, killed after so many seconds; return whether it ended."""
    child = os.fork()
    if child == 0:
        train(folder)
        os._exit(0)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            if os.waitstatus_to_exitcode(status):
                sys.exit("a life failed")
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def steps(folder):
    try:
        return checkpoint.read(folder / "training")[1]["step"]
    except FileNotFoundError:
        return 0


def main(folder, count):
    torch.set_num_threads(1)
    random.seed(count)
    started = time.monotonic()
    life(folder / "whole", 600.0)
    whole, took = pg.load(folder / "whole"), time.monotonic() - started
    kills = number = 0
    while kills < count:
        run, done, before = folder / f"run {number}", False, 0
        while not done:
            again = kills >= count or before >= STEPS
            done = life(run, 600.0 if again else random.uniform(0, took / 2))
            kills += not done
            try:
                now = steps(run)
            except CheckpointError as error:
                sys.exit(f"kill {kills} left a damaged run: {error}")
            if now < before:
                sys.exit(f"kill {kills} lost steps: {before} to {now}")
            before = now
        found = pg.load(run)
        for name, value in whole.state_dict().items():
            if not torch.equal(found.state_dict()[name], value):
                sys.exit(f"run {number} differs in {name}")
        number += 1
    print(f"{kills} kills in {number} runs", flush=True)
    os._exit(0)  # threads that a fork left need no farewell


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
