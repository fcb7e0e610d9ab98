"""What chains on a diffusion cost: each gradient, its recording, and whole calls.

Two Pyro models, `x ~ prior; y ~ Normal(x_1 + x_2, 1)` with y = 1, in two dimensions:

- `EDM`: `pg.mcmc.run` on `pg.models.EDM(2).freeze()`, a network that has not been trained, since
  the time does not depend on what it has learned; 8 chains of 4 iterations of HMC, each of 10
  leapfrog steps;
- `normal`: `pg.inference.posterior` without a method, 64 draws, for the exact denoiser of normal
  data of variance 1 and correlation 0.8.

Columns: the steps of the solver of the probability flow; `plain`, CPU milliseconds of a gradient
for as many chains; `record`, CPU seconds of the 101st one, which records the operations of the log
density; `next`, milliseconds of each one after that; `in all`, CPU seconds of the whole call, too
short for a recording; `error`, the mean of `solver_error` over draws of the prior, in nats.

The last row is another way: particles instead of chains.

    OMP_NUM_THREADS=1 python benchmarks/chains_on_diffusions.py  # three minutes of one core
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyro
import pyro.distributions as dist
import torch

import probgen as pg
from probgen import diffusion as d


def model(prior: Any) -> None:
    x = pg.sample("x", prior)
    pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=torch.tensor(1.0))


def edm(steps: int) -> Any:
    torch.manual_seed(0)
    return pg.models.EDM(2, solver_steps=steps).freeze()


def normal(steps: int) -> Any:
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    denoiser = d.GaussianDenoiser(torch.zeros(2), covariance, d.VP())
    return pg.distributions.Diffusion(denoiser, steps=steps).freeze()


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def chains(model: Any, *args: Any) -> None:
    kernel = pg.mcmc.HMC()
    pg.mcmc.run(model, *args, kernel=kernel, chains=8, warmup=2, draws=2, seed=0, progress=False)


def draws(model: Any, *args: Any, method: Any = None) -> None:
    pg.inference.posterior(model, *args, method=method, draws=64, seed=0, progress=False)


def row(name: str, prior: Any, count: int, call: Callable[..., None], steps: int) -> None:
    x = torch.randn(count, 2)
    target = pg.mcmc.potential(model, prior, base=True)
    bare = 10 * seconds(lambda: [target.value_and_gradient(x) for _ in range(100)])
    record = seconds(lambda: target.value_and_gradient(x))
    later = 50 * seconds(lambda: [target.value_and_gradient(x) for _ in range(20)])
    error = float(prior().solver_error(prior().sample((256,))).mean())
    whole = seconds(lambda: call(model, prior))
    times = f"{bare:.0f} | {record:.1f} | {later:.0f} | {whole:.1f}"
    print(f"| {name} | {steps} | {times} | {error:.1e} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    print("| model | steps | plain, ms | record, s | next, ms | in all, s | error |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for steps in (32, 8):
        row("EDM", edm(steps), 8, chains, steps)
        row("normal", normal(steps), 64, draws, steps)
    guided = partial(draws, model, normal(32), method=d.TwistedSMC())
    print(f"| normal, `TwistedSMC` |  |  |  |  | {seconds(guided):.1f} |  |")


if __name__ == "__main__":
    main()
