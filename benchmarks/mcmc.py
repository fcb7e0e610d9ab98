"""Effective draws per second of CPU: probgen's ChEES against samplers of other libraries.

`mcmc_models.py` has twelve models, the same in every library: three of our own choice, and nine of
posteriordb with their data as published. All run in float32, from the library's own initial points
or, with blackjax, from uniform ones between -2 and 2.

A run is what a user waits for, from a model to its draws: warm-up, recording and compilation
included, the first use of a library in a process (its late imports) excluded. The samplers:

- `probgen`: the defaults, 128 chains, 100 steps of warm-up, 250 draws,
- `pyro`: NUTS, one chain; of our own three models alone, for it takes minutes on most others,
- `numpyro`: NUTS, four chains, vectorised,
- `blackjax`: NUTS after `window_adaptation`, four chains, vectorised,
- `blackjax auto`: NUTS after `staged_adaptation(metric="auto")` over four chains together, whose
  metric is of low rank where that seems to pay (in 1.7.1 it is called experimental); of two
  models, for the adaptation is compiled anew in each run,
- `blackjax chees`: `dynamic_hmc` after `chees_adaptation`, 128 chains, with the one metric it has
  besides none, the diagonal,
- `nutpie`: NUTS by `from_pyfunc` on the log density in JAX, four chains on one core.

The score is the least bulk effective sample size of all numbers of the latent sites, by one
function for all, over CPU time of one thread. Each sampler has a process for each model, with
argument validation off for all; those that cannot be imported are left out. A sampler runs with
`--seeds` seeds, fewer if those take longer than `--budget`.

    pip install numpyro==0.22.0 blackjax==1.7.1 nutpie==0.16.8
    python benchmarks/mcmc.py                                    # some thirty minutes
    python benchmarks/mcmc.py --models schools --samplers probgen pyro
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # all of this before the libraries are imported
flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
if flags not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import pyro  # noqa: E402
import torch  # noqa: E402
from mcmc_models import (  # noqa: E402
    PYRO,
    REGRESSIONS,
    SITES,
    Samples,
    constrain,
    log_density,
    numpyro_models,
    reference,
    spreads,
    values,
)
from torch import Tensor  # noqa: E402

from probgen.mcmc import MALA, ULA, Potential, ess, mcse, potential, rhat, run  # noqa: E402

LENGTHS = {  # chains, warm-up and draws of each
    "probgen": (128, 100, 250),
    "pyro": (1, 300, 1000),
    "numpyro": (4, 500, 1000),
    "blackjax": (4, 500, 1000),
    "blackjax auto": (4, 500, 1000),
    "blackjax chees": (128, 500, 250),
    "nutpie": (4, 400, 1000),
}
OWN = ("schools", "normal", "logistic")  # models that Pyro runs, and whose steps are timed
ONLY = {"pyro": OWN, "blackjax auto": ("schools", "earn_height")}
CHAINS = (1, 16, 128, 1024)
BLOCK = 0.1  # seconds that a measurement of gradients or steps takes at least
TRIES = 20  # initial points of a chain in blackjax, of which the first that is finite is taken
RATE = 0.02  # of Adam, which adapts the trajectories of blackjax's ChEES
BARS = {"pyro": 60.0, "numpyro": 3.0, "blackjax": 3.0}  # the least ratios that pass, of OWN
OTHERS = {name: 5.0 if name in {*REGRESSIONS, "arK"} else 1.0 for name in SITES}  # over numpyro
PUBLISHED = {"schools": 11195.0, "normal": 6956.0, "logistic": 7183.0}  # before, elsewhere
FRESH = {"first": 1.5, "second": 0.6}  # the most seconds of runs of schools in a fresh process
MOST = 1.15  # time of a step of ChEES over that of its gradients

Run = Callable[[int], Samples]  # a run with a seed; the first one compiles, where there is to


def probgen_sampler(name: str) -> Run:
    chains, _, draws = LENGTHS["probgen"]
    target = potential(PYRO[name])
    options = {"chains": chains, "draws": draws, "progress": False}
    return lambda seed: run(target, seed=seed, **options).samples


def pyro_sampler(name: str) -> Run:
    _, warmup, draws = LENGTHS["pyro"]

    def go(seed: int) -> Samples:
        pyro.set_rng_seed(seed)
        kernel = pyro.infer.NUTS(PYRO[name])
        chain = pyro.infer.MCMC(kernel, draws, warmup, disable_progbar=True)
        chain.run()
        return chain.get_samples(group_by_chain=True)

    return go


def numpyro_sampler(name: str) -> Run:
    import jax
    import numpyro

    count, warmup, draws = LENGTHS["numpyro"]
    options = {"num_chains": count, "chain_method": "vectorized", "progress_bar": False}
    kernel = numpyro.infer.NUTS(numpyro_models()[name])
    chains = numpyro.infer.MCMC(kernel, num_warmup=warmup, num_samples=draws, **options)

    def go(seed: int) -> Samples:
        chains.run(jax.random.PRNGKey(seed))
        return tensors(chains.get_samples(group_by_chain=True))

    return go


def flat(name: str) -> tuple[int, Any, Any]:
    """The size of a model, its log density of vectors, and the values of its sites from them."""
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    zeros, unravel = ravel_pytree({n: jnp.zeros(shape) for n, (shape, _) in SITES[name].items()})
    density = log_density(name)
    return zeros.size, lambda x: density(unravel(x)), lambda x: constrain(name, unravel(x))[0]


def initial(density: Any, size: int, key: Any) -> Any:
    """A point between -2 and 2, with a finite log density and gradient."""
    import jax
    import jax.numpy as jnp

    points = jax.random.uniform(key, (TRIES, size), minval=-2, maxval=2)
    finite = [jnp.isfinite(v.reshape(TRIES, -1)).all(1) for v in each(density, points)]
    return points[jnp.argmax(finite[0] & finite[1])]


def each(density: Any, points: Any) -> Any:
    import jax

    return jax.vmap(jax.value_and_grad(density))(points)


def compiled(chains: Any) -> Run:
    import jax

    function = jax.jit(chains)
    return lambda seed: tensors(function(jax.random.PRNGKey(seed)))


def blackjax_sampler(name: str) -> Run:
    import blackjax
    import jax

    count, warmup, draws = LENGTHS["blackjax"]
    size, density, sites = flat(name)

    def chain(key: Any) -> Any:
        first, second, third = jax.random.split(key, 3)
        adaptation = blackjax.window_adaptation(blackjax.nuts, density)
        start = initial(density, size, first)
        (state, parameters), _ = adaptation.run(second, start, num_steps=warmup)
        kernel = blackjax.nuts(density, **parameters)

        def step(state: Any, key: Any) -> Any:
            state, _ = kernel.step(key, state)
            return state, sites(state.position)

        return jax.lax.scan(step, state, jax.random.split(third, draws))[1]

    return compiled(lambda key: jax.vmap(chain)(jax.random.split(key, count)))


def auto_sampler(name: str) -> Run:
    import blackjax
    import jax

    count, warmup, draws = LENGTHS["blackjax auto"]
    size, density, sites = flat(name)
    options = {"metric": "auto", "n_chains": count, "max_grad_budget": 64 * count * warmup}
    adaptation = blackjax.staged_adaptation(blackjax.nuts, density, **options)

    @jax.jit
    def begin(key: Any) -> Any:
        return jax.vmap(lambda key: initial(density, size, key))(jax.random.split(key, count))

    @jax.jit
    def record(state: Any, parameters: Any, key: Any) -> Any:
        kernel = blackjax.nuts(density, **parameters)

        def step(state: Any, key: Any) -> Any:
            state, _ = jax.vmap(kernel.step)(jax.random.split(key, count), state)
            return state, jax.vmap(sites)(state.position)

        found = jax.lax.scan(step, state, jax.random.split(key, draws))[1]
        return {n: x.swapaxes(0, 1) for n, x in found.items()}

    def go(seed: int) -> Samples:  # the adaptation cannot be compiled from outside, nor kept
        first, second, third = jax.random.split(jax.random.PRNGKey(seed), 3)
        (state, parameters), _ = adaptation.run(second, begin(first), num_steps=warmup)
        return tensors(record(state, parameters, third))

    return go


def chees_sampler(name: str) -> Run:
    import blackjax
    import jax
    import optax
    from blackjax.adaptation.base import get_filter_adapt_info_fn

    count, warmup, draws = LENGTHS["blackjax chees"]
    size, density, sites = flat(name)
    options = {"mass_matrix_estimation": "diagonal"}
    options["adaptation_info_fn"] = get_filter_adapt_info_fn()
    adaptation = blackjax.chees_adaptation(density, count, **options)

    def chains(key: Any) -> Any:
        first, second, third = jax.random.split(key, 3)
        starts = jax.vmap(lambda key: initial(density, size, key))(jax.random.split(first, count))
        (state, found), _ = adaptation.run(second, starts, 0.1, optax.adam(RATE), warmup)
        kernel = blackjax.dynamic_hmc(density, **found)

        def step(state: Any, key: Any) -> Any:
            state, _ = jax.vmap(kernel.step)(jax.random.split(key, count), state)
            return state, jax.vmap(sites)(state.position)

        found = jax.lax.scan(step, state, jax.random.split(third, draws))[1]
        return {n: x.swapaxes(0, 1) for n, x in found.items()}

    return compiled(chains)


def nutpie_sampler(name: str) -> Run:
    import jax
    import numpy as np
    import nutpie

    count, warmup, draws = LENGTHS["nutpie"]
    size, density, sites = flat(name)
    both = jax.jit(jax.value_and_grad(density))
    moved = jax.jit(jax.vmap(jax.vmap(sites)))

    def make_logp() -> Any:
        def logp(x: Any) -> Any:
            value, gradient = both(x.astype(np.float32))
            return float(value), np.asarray(gradient, dtype=np.float64)

        return logp

    def make_expand(*_: Any) -> Any:
        return lambda x: {"x": np.asarray(x, dtype=np.float64)}

    kinds = ([np.dtype("float64")], [(size,)], ["x"])
    model = nutpie.compiled_pyfunc.from_pyfunc(size, make_logp, make_expand, *kinds)
    options = {"chains": count, "tune": warmup, "draws": draws, "cores": 1, "progress_bar": False}

    def go(seed: int) -> Samples:
        found = nutpie.sample(model, seed=seed, save_warmup=False, **options)
        return tensors(moved(found.posterior["x"].values.astype(np.float32)))

    return go


def tensors(found: Any) -> Samples:
    import jax

    return {name: torch.tensor(jax.device_get(x)) for name, x in found.items()}


SAMPLERS: dict[str, tuple[Callable[[str], Run], tuple[str, ...]]] = {  # and what they import
    "probgen": (probgen_sampler, ()),
    "pyro": (pyro_sampler, ()),
    "numpyro": (numpyro_sampler, ("jax", "numpyro")),
    "blackjax": (blackjax_sampler, ("jax", "blackjax")),
    "blackjax auto": (auto_sampler, ("jax", "blackjax")),
    "blackjax chees": (chees_sampler, ("jax", "blackjax")),
    "nutpie": (nutpie_sampler, ("jax", "nutpie")),
}
LIBRARIES = ("torch", "pyro-ppl", "jax", "numpyro", "blackjax", "nutpie")


def first_run(sampler: str, model: str, seed: int) -> tuple[Run, Samples]:
    go = SAMPLERS[sampler][0](model)
    return go, go(seed)


def timed(function: Callable[..., Any], *inputs: Any) -> tuple[float, Any]:
    """The CPU seconds that a call takes in all threads, and its result."""
    gc.collect()
    start = time.process_time()
    result = function(*inputs)
    return time.process_time() - start, result


def least(samples: Samples) -> float:
    """The least bulk effective sample size of all numbers."""
    return min(float(ess(x).min()) for x in samples.values())


def measure(model: str, seconds: float, samples: Samples) -> dict[str, Any]:
    """What a run has found, to be printed."""
    x = values(model, samples)
    found: dict[str, Any] = {"ess": least(samples), "seconds": seconds}
    found |= {"rhat": max(float(rhat(v).max()) for v in samples.values())}
    means, errors = x.flatten(0, 1).mean(0), mcse(x)
    return found | {
        "means": means.tolist(),
        "errors": errors.tolist(),
        "sds": x.flatten(0, 1).std(0).tolist(),
    }


def cell(model: str, sampler: str, seeds: int, limit: int, budget: float) -> None:
    """Run a sampler on a model and print a line for each run; end after `limit` CPU seconds."""
    lengths, LENGTHS[sampler] = LENGTHS[sampler], (*LENGTHS[sampler][:1], 10, 10)
    first_run(sampler, "schools" if sampler == "probgen" else "one", 0)  # late imports
    LENGTHS[sampler] = lengths
    start = time.process_time()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(start) + limit, int(start) + limit + 5))
    for seed in range(seeds):
        if "jax" in sys.modules:
            sys.modules["jax"].clear_caches()
        seconds, (go, samples) = timed(first_run, sampler, model, seed)
        print(json.dumps({"again": False, **measure(model, seconds, samples)}), flush=True)
        if sampler != "pyro":  # which has nothing to compile
            seconds, samples = timed(go, seed + 100)
            print(json.dumps({"again": True, **measure(model, seconds, samples)}), flush=True)
        if time.process_time() - start > budget:
            return


def fresh() -> None:
    """Print the CPU seconds of two runs of eight schools, the first after the imports alone."""
    model = PYRO["schools"]
    print(json.dumps([timed(lambda: run(model, seed=0, progress=False))[0] for _ in range(2)]))


def child(*inputs: Any) -> tuple[list[Any], str]:
    """The lines that another process of this script prints, and why it ended, if it failed."""
    command = [sys.executable, __file__, *map(str, inputs)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in found.stdout.splitlines() if line[:1] in "[{"]
    why = found.stderr.strip().split("\n")[-1] if found.returncode > 0 else "out of time"
    return lines, "" if not found.returncode else why


def pooled(runs: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Means over runs, and their standard errors."""
    means, errors = (torch.tensor([r[k] for r in runs]).double() for k in ("means", "errors"))
    return means.mean(0), errors.square().mean(0).sqrt() / len(runs) ** 0.5


def agreement(model: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    """The worst distance of each sampler's averages from known ones, or from others', in errors.

    Also the least and the largest ratio of standard deviations to reference draws', and R-hat.
    """
    found = {name: pooled(r) for name, r in runs.items() if r}
    cells = {}
    for name, (mean, error) in found.items():
        known = reference(model)
        others = [known] if known else [f for other, f in found.items() if other != name]
        z = [
            float(((mean[: len(m)] - m) / torch.hypot(error[: len(m)], e)).abs().max())
            for m, e in others
        ]
        sd, ratio = spreads(model), ""
        if sd is not None:
            ratios = torch.tensor([r["sds"] for r in runs[name]]).double().mean(0) / sd
            ratio = f"{ratios.min():.2f} to {ratios.max():.2f}"
        worst = max(r["rhat"] for r in runs[name])
        cells[name] = [f"{max(z, default=math.nan):.1f}", ratio, f"{worst:.3f}"]
    return cells


def repeat(function: Callable[..., Any], calls: int, *inputs: Any) -> None:
    for _ in range(calls):
        function(*inputs)


def gradient_cost(target: Potential, chains: int, rounds: int) -> float:
    """The CPU microseconds of a gradient with its value, per chain."""
    x = target.initial("uniform", chains)
    calls = max(1, int(10 * BLOCK / timed(repeat, target.value_and_gradient, 10, x)[0]))
    times = [timed(repeat, target.value_and_gradient, calls, x)[0] for _ in range(rounds)]
    return 1e6 * median(times) / calls / chains


def overhead(kernel: Any, target: Potential, rounds: int) -> tuple[float, float]:
    """The CPU time of steps at 128 chains over that of as many gradients with values.

    And over that of what was evaluated: a trajectory asks for the value at its end alone.
    """
    state = kernel.init(target.initial("uniform", 128), target)
    ratios = []
    for number in range(rounds + 1):
        start, gradients, steps = time.process_time(), 0, 0
        while time.process_time() - start < BLOCK:
            state, info = kernel.step(state, target)
            gradients, steps = gradients + getattr(info, "steps", 1), steps + 1
        seconds = time.process_time() - start
        both = timed(repeat, target.value_and_gradient, gradients, state.position)[0]
        alone = timed(repeat, target.gradient, gradients - steps, state.position)[0]
        asked = both * steps / gradients + alone
        ratios += [(seconds / both, seconds / asked)] if number else []  # after a round
    return median(r[0] for r in ratios), median(r[1] for r in ratios)


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def speed(runs: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Medians of effective sample size, CPU seconds and of the one over the other."""
    sizes, seconds = [r["ess"] for r in runs], [r["seconds"] for r in runs]
    rates = [size / second for size, second in zip(sizes, seconds)]
    return median(sizes), median(seconds), median(rates)


def row(model: str, name: str, runs: list[dict[str, Any]], why: str, best: float) -> list[str]:
    """A row of the table of speeds."""
    chains, warmup, draws = LENGTHS[name]
    start = [model, name, f"{chains} x ({warmup} + {draws})"]
    first, again = ([r for r in runs if r["again"] == a] for a in (False, True))
    if not first:
        return [*start, "0", why, "", "", "", "", ""]
    size, seconds, rate = speed(first)
    start += [str(len(first)), f"{size:.0f}", f"{seconds:.2f}", f"{rate:.1f}", f"{best / rate:.1f}"]
    return [*start, *([f"{speed(again)[1]:.2f}", f"{speed(again)[2]:.0f}"] if again else ["", ""])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15, help="of gradients and steps")
    parser.add_argument("--models", nargs="*", default=[name for name in PYRO if name != "one"])
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS))
    parser.add_argument("--limit", type=int, default=60, help="CPU seconds of a sampler's runs")
    parser.add_argument("--budget", type=float, default=10, help="after which no run is begun")
    parser.add_argument("--results", help="a file for runs, of which none is done again")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--fresh", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments.fresh:
        return fresh()
    torch.distributions.Distribution.set_default_validate_args(False)
    pyro.enable_validation(False)
    limits = (arguments.seeds, arguments.limit, arguments.budget)
    if arguments.cell:
        return cell(*arguments.cell, *limits)
    names = []
    for name, (_, needs) in SAMPLERS.items():
        missing = [need for need in needs if not find_spec(need)]
        if missing:
            print(f"{name} is left out: no {missing[0]}")
        elif name in arguments.samplers:
            names.append(name)

    kept: dict[str, Any] = {}
    if arguments.results and Path(arguments.results).is_file():
        kept = json.loads(Path(arguments.results).read_text())
    speeds, checks, costs, steps, verdicts = [], [], [], [], []
    for model in arguments.models:
        runs: dict[str, list[dict[str, Any]]] = {}
        rates: dict[str, float] = {}
        for name in names:
            if model not in ONLY.get(name, (model,)):
                continue
            options = [f"--{k}={v}" for k, v in zip(("seeds", "limit", "budget"), limits)]
            key = f"{model}, {name}"
            if key not in kept:
                kept[key] = child("--cell", model, name, *options)
                if arguments.results:
                    Path(arguments.results).write_text(json.dumps(kept))
            runs[name], why = kept[key]
            first = [r for r in runs[name] if not r["again"]]
            rates[name] = speed(first)[2] if first else 0.0
            speeds.append(row(model, name, runs[name], why, rates.get("probgen", math.nan)))
            print(*speeds[-1], sep=", ", flush=True)
            bar = OTHERS[model] if name == "numpyro" else 0.0
            bar = BARS.get(name, 0.0) if model in OWN else bar
            if bar and "probgen" in rates:
                ratio = rates["probgen"] / rates[name] if first else math.inf
                verdicts.append((f"{model}: probgen over {name}", ratio, bar, ratio >= bar))
        if model in OWN and "probgen" in rates:
            rate, bar = rates["probgen"], PUBLISHED[model]
            verdicts.append((f"{model}: effective draws per second", rate, bar, rate >= bar))
        for name, found in agreement(model, runs).items():
            checks.append([model, name, *found])
            print(*checks[-1], sep=", ", flush=True)
        if model not in OWN or not arguments.rounds:
            continue
        target = potential(PYRO[model])
        cells = [gradient_cost(target, chains, arguments.rounds) for chains in CHAINS]
        costs.append([model, *(f"{cell:.2f}" for cell in cells)])
        adapted = run(target, seed=0, progress=False).kernel
        kernels = (adapted, MALA(0.01, adapted.scale), ULA(0.01, adapted.scale))
        ratios = [overhead(kernel, target, arguments.rounds) for kernel in kernels]
        steps.append([model, *(f"{v:.2f}" for v in (*ratios[0], ratios[1][0], ratios[2][0]))])
        ratio = ratios[0][0]
        verdicts.append((f"{model}: ChEES over its gradients", ratio, MOST, ratio <= MOST))

    found = [child("--fresh")[0][0] for _ in range(arguments.seeds)]
    for (which, bar), seconds in zip(FRESH.items(), zip(*found)):
        seconds = median(seconds)
        verdicts.append((f"schools, fresh process: {which} run, s", seconds, bar, seconds <= bar))

    versions = [f"{name} {version(name)}" for name in LIBRARIES if installed(name)]
    print("\n" + ", ".join(versions) + ", medians over seeds")
    print("\nLeast bulk ESS per CPU second of a run; again: a second run, all compiled\n")
    header = ["model", "sampler", "chains x (warm-up + draws)", "seeds", "ess", "cpu s", "ess/s"]
    print(table([*header, "probgen /", "again cpu s", "again ess/s"], speeds))
    print("\nDistances of means from known ones, in standard errors, and of spreads\n")
    print(table(["model", "sampler", "largest z", "sd / reference", "R-hat"], checks))
    print("\nGradient with value: CPU microseconds per chain, by number of chains\n")
    print(table(["model", *map(str, CHAINS)], costs))
    print("\nCPU time of steps at 128 chains over that of their gradients with values\n")
    print(table(["model", "ChEES", "ChEES, over what it asks for", "MALA", "ULA"], steps))
    print("\nBars\n")
    rows = [[n, f"{r:.4g}", f"{b:g}", "pass" if p else "FAIL"] for n, r, b, p in verdicts]
    print(table(["what", "measured", "bar", "verdict"], rows))


def installed(name: str) -> bool:
    return find_spec(name.removesuffix("-ppl")) is not None


if __name__ == "__main__":
    main()
