"""Training steps of two checkouts of probgen, side by side.

Each checkout runs `pg.fit` on the same seven models in a process of its own, on one thread, in
turns. A cell is the median over the rounds of the CPU milliseconds of a step, batch 64, float32.

    git worktree add /tmp/before 1b9fcba
    python benchmarks/steps.py /tmp/before .        # about five minutes of one core
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from statistics import median

NAMES = ("MAF", "NSF", "NSF, context", "VAE", "ConditionalVAE", "EDM", "EDM, context")


def measure(steps: int) -> dict[str, float]:
    """CPU milliseconds of a step of each model, of the probgen that is imported."""
    import torch

    import probgen as pg

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, c, bits = torch.randn(2000, 8), torch.randn(2000, 3), torch.rand(2000, 64).round()
    models = pg.models
    built = (
        (models.MAF(8), x, None),
        (models.NSF(8), x, None),
        (models.NSF(8, 3), x, c),
        (models.VAE(64, latent=8), bits, None),
        (models.ConditionalVAE(64, 3, latent=8), bits, c),
        (models.EDM(8), x, None),
        (models.EDM(8, 3), x, c),
    )
    found = {}
    for name, (module, data, context) in zip(NAMES, built):
        options = {"context": context, "batch_size": 64, "progress": False, "seed": 0}
        pg.fit(module, data, steps=10, **options)
        start = time.process_time()
        pg.fit(module, data, steps=steps, **options)
        found[name] = 1000 * (time.process_time() - start) / steps
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkouts", nargs="*", default=["."])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.steps)))
        return
    runs: dict[str, list[dict[str, float]]] = {c: [] for c in given.checkouts}
    for _ in range(given.rounds):
        for checkout, found in runs.items():
            environment = {**os.environ, "PYTHONPATH": str(Path(checkout).resolve())}
            command = [
                sys.executable,
                str(Path(__file__).resolve()),
                "--child",
                "--steps",
                str(given.steps),
            ]
            done = subprocess.run(
                command, env={**environment, "OMP_NUM_THREADS": "1"}, cwd="/", capture_output=True
            )
            if done.returncode:
                raise SystemExit(done.stderr.decode())
            found.append(json.loads(done.stdout.splitlines()[-1]))
    print("| model | " + " | ".join(runs) + " | last / first |")
    print("| --- |" + " --- |" * (len(runs) + 1))
    for name in NAMES:
        values = [median(f[name] for f in found) for found in runs.values()]
        cells = " | ".join(f"{v:.2f}" for v in values)
        print(f"| {name} | {cells} | {values[-1] / values[0]:.3f} |")


if __name__ == "__main__":
    main()
