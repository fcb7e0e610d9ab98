"""Posteriors of `pg.mcmc` against the reference posteriors that sbibm publishes.

Three tasks with a tractable likelihood, read from the wheel without its dependencies:

    pip download --no-deps sbibm==1.1.0
    python benchmarks/references.py sbibm-1.1.0-py2.py3-none-any.whl

- `gaussian_linear`: ten numbers with a normal prior and likelihood; ChEES.
- `gaussian_mixture`: two numbers, uniform prior, a likelihood with a narrow and a wide part; ChEES.
- `slcp`: five numbers, uniform prior, four modes by symmetry; sequential Monte Carlo.

Ours and the reference are both draws. For each marginal the table has the largest distance of
means over the reference's standard deviation, the range of the ratios of standard deviations, and
the largest Kolmogorov-Smirnov distance; between two sets of 10 000 independent draws of one law the
last is above 0.023 in one of a hundred marginals.
"""

from __future__ import annotations

import argparse
import bz2
import io
import time
import zipfile

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import probgen as pg


def gaussian_linear(x: Tensor) -> None:
    theta = pyro.sample("theta", dist.Normal(torch.zeros(10), 0.1**0.5).to_event(1))
    pyro.sample("x", dist.Normal(theta, 0.1**0.5).to_event(1), obs=x)


def gaussian_mixture(x: Tensor) -> None:
    theta = pyro.sample("theta", dist.Uniform(-10 * torch.ones(2), 10.0).to_event(1))
    wide, narrow = (dist.Normal(theta, sd).to_event(1).log_prob(x) for sd in (1.0, 0.1))
    pyro.factor("x", torch.logaddexp(wide, narrow))


def slcp(x: Tensor) -> None:
    theta = pyro.sample("theta", dist.Uniform(-3 * torch.ones(5), 3.0).to_event(1))
    a, b, r = theta[2] ** 2, theta[3] ** 2, theta[4].tanh()
    scale = torch.stack([a, a * 0, r * b, b * (1 - r**2).sqrt()]).reshape(2, 2)
    law = dist.MultivariateNormal(theta[:2], scale_tril=scale + 1e-3 * torch.eye(2))
    pyro.factor("x", law.log_prob(x.reshape(4, 2)).sum())


def chains(model, x: Tensor, seed: int) -> Tensor:
    options = {"init": "importance", "seed": seed, "progress": False}
    return pg.mcmc.run(model, x, chains=128, warmup=300, draws=400, **options).flat()["theta"]


def annealed(model, x: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    target = pg.mcmc.potential(model, x)
    start = target.initial("prior", 10_240)
    kernel = pg.mcmc.HMC(0.3, 5)
    found = pg.mcmc.smc(target.log_prior, target, start, kernel, threshold=0.7, steps=40)
    chosen = torch.multinomial(found.log_weights.softmax(0), 10_000, replacement=True)
    return target.unravel(found.position[chosen])["theta"]


TASKS = {
    "gaussian_linear": (gaussian_linear, chains),
    "gaussian_mixture": (gaussian_mixture, chains),
    "slcp": (slcp, annealed),
}


def table(wheel: zipfile.ZipFile, task: str, number: int, name: str) -> Tensor:
    raw = wheel.read(f"sbibm/tasks/{task}/files/num_observation_{number}/{name}")
    text = bz2.decompress(raw) if name.endswith("bz2") else raw
    values = np.loadtxt(io.BytesIO(text), delimiter=",", skiprows=1, ndmin=2)
    return torch.tensor(values, dtype=torch.float32)


def distance(a: Tensor, b: Tensor) -> float:
    """The Kolmogorov-Smirnov distance of two samples of a number."""
    both = torch.cat([a, b])
    below = [torch.searchsorted(v.sort().values, both, right=True) / len(v) for v in (a, b)]
    return float((below[0] - below[1]).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("wheel")
    parser.add_argument("--observations", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| task | observation | CPU s | means / sd | sd ratio | KS |")
    print("| --- | --- | --- | --- | --- | --- |")
    with zipfile.ZipFile(given.wheel) as wheel:
        for task, (model, infer) in TASKS.items():
            for number in range(1, given.observations + 1):
                x = table(wheel, task, number, "observation.csv")[0]
                reference = table(wheel, task, number, "reference_posterior_samples.csv.bz2")
                start = time.process_time()
                draws = infer(model, x, number)
                seconds = time.process_time() - start
                sd = reference.std(0)
                gap = ((draws.mean(0) - reference.mean(0)).abs() / sd).max()
                ratio = draws.std(0) / sd
                far = max(distance(a, b) for a, b in zip(draws.T, reference.T, strict=True))
                print(
                    f"| {task} | {number} | {seconds:.0f} | {gap:.3f} | {ratio.min():.3f} to "
                    f"{ratio.max():.3f} | {far:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
