"""Effective draws per second of CPU: probgen's ChEES against NUTS of Pyro, numpyro and blackjax.

Three models, the same in every library, in float32:

- `schools`: eight schools, non-centred (10 numbers),
- `normal`: a normal law of 50 numbers with correlation 0.9 between neighbours and scales from 0.1
  to 10,
- `logistic`: logistic regression of 1000 outcomes on 20 features.

A run is what a user waits for, from a model to its draws: warm-up, recording and compilation
included, the first use of a library in a process (its late imports) excluded. probgen runs its
defaults: 128 chains, 200 steps of warm-up, 100 draws. Pyro runs one chain, numpyro and blackjax
four, vectorised. The score is the least bulk effective sample size of all numbers of the latent
sites, by one function for all, over CPU time of one thread. Libraries take turns, with argument
validation off for all; those that cannot be imported are left out.

    pip install numpyro==0.22.0 blackjax==1.7.1
    python benchmarks/mcmc.py                                    # some ten minutes
    python benchmarks/mcmc.py --models schools --samplers probgen pyro
"""

from __future__ import annotations

import argparse
import gc
import importlib
import math
import os
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # all of this before the libraries are imported
flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import pyro  # noqa: E402
import pyro.distributions as dist  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from probgen.mcmc import MALA, ULA, Potential, ess, mcse, potential, run  # noqa: E402


def find(name: str) -> Any:
    """A library, or None where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name} is left out: {error}")
        return None


jax, numpyro, blackjax = find("jax"), find("numpyro"), find("blackjax")
numpyro, blackjax = (numpyro, blackjax) if jax else (None, None)

Samples = dict[str, Tensor]  # values of the latent sites, with shape (chains, draws, *)

torch.manual_seed(0)
EFFECTS = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
ERRORS = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
LOCATION = torch.zeros(50)
SCALES = 10 ** (2 * torch.rand(50) - 1)
LAGS = (torch.arange(50)[:, None] - torch.arange(50)).abs()
FACTOR = torch.linalg.cholesky((0.9**LAGS * torch.outer(SCALES, SCALES)).double()).float()
FEATURES = torch.randn(1000, 20)
OUTCOMES = torch.bernoulli(torch.sigmoid(FEATURES @ torch.randn(20)))
THETA = [6.2119, 4.9402, 3.9270, 4.7571, 3.6155, 4.0426, 6.2967, 4.8543]
SCHOOLS = torch.tensor([4.3968, 3.5977, *THETA])  # means of mu, tau and theta, by quadrature
SHAPES = {
    "schools": {"mu": (), "tau": (), "eta": (8,)},
    "normal": {"x": (50,)},
    "logistic": {"beta": (20,)},
}
LENGTHS = {  # chains, warm-up and draws of each
    "probgen": (128, 200, 100),
    "pyro": (1, 300, 1000),
    "numpyro": (4, 500, 1000),
    "blackjax": (4, 500, 1000),
}
CHAINS = (1, 16, 128, 1024)
BLOCK = 0.1  # seconds that a measurement of gradients or steps takes at least
BARS = {"pyro": 60.0, "numpyro": 3.0, "blackjax": 3.0}  # the least ratios that pass
MOST = 1.15  # time of a step of ChEES over that of its gradients


def schools() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, ERRORS), obs=EFFECTS)


def normal() -> None:
    pyro.sample("x", dist.MultivariateNormal(LOCATION, scale_tril=FACTOR))


def logistic() -> None:
    prior = dist.Normal(torch.zeros(20), 1.0).to_event(1)
    beta = pyro.sample("beta", prior)
    with pyro.plate("data", 1000):
        pyro.sample("y", dist.Bernoulli(logits=FEATURES @ beta), obs=OUTCOMES)


MODELS: dict[str, Callable[[], None]] = {"schools": schools, "normal": normal, "logistic": logistic}


def jax_models() -> tuple[dict[str, Any], dict[str, Any]]:
    """The models of numpyro, and their log densities for blackjax."""
    jnp, norm = jax.numpy, jax.scipy.stats.norm
    tensors = (EFFECTS, ERRORS, LOCATION, FACTOR, FEATURES, OUTCOMES)
    effects, errors, location, factor, features, outcomes = (
        jnp.asarray(t.numpy()) for t in tensors
    )
    models: dict[str, Any] = {}
    if numpyro:
        law, sample = numpyro.distributions, numpyro.sample

        def schools() -> None:
            mu = sample("mu", law.Normal(0.0, 5.0))
            tau = sample("tau", law.HalfCauchy(5.0))
            with numpyro.plate("schools", 8):
                eta = sample("eta", law.Normal(0.0, 1.0))
                sample("y", law.Normal(mu + tau * eta, errors), obs=effects)

        def normal() -> None:
            sample("x", law.MultivariateNormal(location, scale_tril=factor))

        def logistic() -> None:
            beta = sample("beta", law.Normal(jnp.zeros(20), 1.0).to_event(1))
            with numpyro.plate("data", 1000):
                sample("y", law.Bernoulli(logits=features @ beta), obs=outcomes)

        models = {"schools": schools, "normal": normal, "logistic": logistic}

    def schools_density(z: Any) -> Any:
        tau = jnp.exp(z["tau"])
        prior = norm.logpdf(z["mu"], 0, 5) - jnp.log1p((tau / 5) ** 2) + z["tau"]
        likelihood = norm.logpdf(effects, z["mu"] + tau * z["eta"], errors)
        return prior + norm.logpdf(z["eta"]).sum() + likelihood.sum()

    def normal_density(z: Any) -> Any:
        solved = jax.scipy.linalg.solve_triangular(factor, z["x"] - location, lower=True)
        return -jnp.square(solved).sum() / 2

    def logistic_density(z: Any) -> Any:
        logits = features @ z["beta"]
        likelihood = outcomes * logits - jax.nn.softplus(logits)
        return norm.logpdf(z["beta"]).sum() + likelihood.sum()

    densities = {"schools": schools_density, "normal": normal_density}
    return models, {**densities, "logistic": logistic_density}


Run = Callable[[int], Samples]  # a run with a seed; the first one compiles, where there is to


def probgen_sampler(name: str) -> Run:
    chains, warmup, draws = LENGTHS["probgen"]
    target = potential(MODELS[name])
    options = {"chains": chains, "warmup": warmup, "draws": draws, "progress": False}
    return lambda seed: run(target, seed=seed, **options).samples


def pyro_sampler(name: str) -> Run:
    _, warmup, draws = LENGTHS["pyro"]

    def go(seed: int) -> Samples:
        pyro.set_rng_seed(seed)
        kernel = pyro.infer.NUTS(MODELS[name])
        chain = pyro.infer.MCMC(kernel, draws, warmup, disable_progbar=True)
        chain.run()
        return chain.get_samples(group_by_chain=True)

    return go


def numpyro_sampler(name: str) -> Run:
    count, warmup, draws = LENGTHS["numpyro"]
    options = {"num_chains": count, "chain_method": "vectorized", "progress_bar": False}
    kernel = numpyro.infer.NUTS(jax_models()[0][name])
    chains = numpyro.infer.MCMC(kernel, num_warmup=warmup, num_samples=draws, **options)

    def go(seed: int) -> Samples:
        chains.run(jax.random.PRNGKey(seed))
        return tensors(chains.get_samples(group_by_chain=True))

    return go


def blackjax_sampler(name: str) -> Run:
    count, warmup, draws = LENGTHS["blackjax"]
    log_density, shapes = jax_models()[1][name], SHAPES[name]

    def chain(key: Any) -> Any:
        first, second, third = jax.random.split(key, 3)
        keys = jax.random.split(first, len(shapes))
        uniform = {
            n: jax.random.uniform(k, s, minval=-2, maxval=2)
            for k, (n, s) in zip(keys, shapes.items())
        }
        adaptation = blackjax.window_adaptation(blackjax.nuts, log_density)
        (state, parameters), _ = adaptation.run(second, uniform, num_steps=warmup)
        kernel = blackjax.nuts(log_density, **parameters)

        def step(state: Any, key: Any) -> Any:
            state, _ = kernel.step(key, state)
            return state, state.position

        return jax.lax.scan(step, state, jax.random.split(third, draws))[1]

    chains = jax.jit(jax.vmap(chain))

    def go(seed: int) -> Samples:
        found = tensors(chains(jax.random.split(jax.random.PRNGKey(seed), count)))
        return {n: x.exp() if n == "tau" else x for n, x in found.items()}

    return go


def tensors(values: Any) -> Samples:
    return {name: torch.tensor(jax.device_get(value)) for name, value in values.items()}


SAMPLERS: dict[str, Callable[[str], Run]] = {"probgen": probgen_sampler, "pyro": pyro_sampler}
SAMPLERS |= {"numpyro": numpyro_sampler} if numpyro else {}
SAMPLERS |= {"blackjax": blackjax_sampler} if blackjax else {}


def first_run(sampler: str, model: str, seed: int) -> tuple[Run, Samples]:
    go = SAMPLERS[sampler](model)
    return go, go(seed)


def timed(function: Callable[..., Any], *inputs: Any) -> tuple[float, Any]:
    """The CPU seconds that a call takes, and its result."""
    gc.collect()
    start = time.process_time()
    result = function(*inputs)
    return time.process_time() - start, result


def least(samples: Samples) -> float:
    """The least bulk effective sample size of all numbers."""
    return min(float(ess(x).min()) for x in samples.values())


def averages(model: str, samples: Samples) -> tuple[Tensor, Tensor]:
    """Means of numbers and of their squares, and their standard errors."""
    x = torch.cat([x.double().reshape(*x.shape[:2], -1) for x in samples.values()], -1)
    if model == "schools":
        mu, tau = samples["mu"].double()[..., None], samples["tau"].double()[..., None]
        x = torch.cat([mu, tau, mu + tau * samples["eta"]], -1)
    x = torch.cat([x, x.square()], -1)
    return x.flatten(0, 1).mean(0), mcse(x)


def agreement(model: str, runs: dict[str, list[Samples]]) -> dict[str, tuple[float, float]]:
    """The worst distances of each sampler's averages from exact ones and others', in errors."""
    exact = {"schools": SCHOOLS, "normal": torch.cat([LOCATION, SCALES.square()])}
    known = exact.get(model, torch.empty(0)).double()
    pooled, worst = {}, {}
    for name, found in runs.items():
        means, errors = (torch.stack(v) for v in zip(*(averages(model, s) for s in found)))
        pooled[name] = means.mean(0), errors.square().mean(0).sqrt() / len(found) ** 0.5
    for name, (mean, error) in pooled.items():
        z = [
            ((mean - m) / torch.hypot(error, e)).abs().max()
            for other, (m, e) in pooled.items()
            if other != name
        ]
        off = ((mean[: len(known)] - known) / error[: len(known)]).abs()
        worst[name] = float(off.max()) if len(known) else 0.0, float(max(z, default=0.0))
    return worst


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15, help="of gradients and steps")
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS))
    arguments = parser.parse_args()

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.distributions.Distribution.set_default_validate_args(False)
    pyro.enable_validation(False)
    names = [name for name in SAMPLERS if name in arguments.samplers]
    for name in names:  # late imports
        if name != "pyro":
            first_run(name, "schools", 0)

    speeds, checks, costs, steps, verdicts = [], [], [], [], []
    for model in arguments.models:
        scores: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
        runs: dict[str, list[Samples]] = {name: [] for name in names}
        for seed in range(arguments.seeds):
            for name in names:
                if jax:
                    jax.clear_caches()
                seconds, (go, samples) = timed(first_run, name, model, seed)
                runs[name].append(samples)
                score = (least(samples), seconds, least(samples) / seconds)
                if name != "pyro":  # which has nothing to compile
                    seconds, samples = timed(go, seed + 100)
                    runs[name].append(samples)
                    score += (seconds, least(samples) / seconds)
                scores[name].append(score)
                shown = ", ".join(f"{value:.2f}" for value in score)
                print(f"{model} {name} {seed}: {shown}", flush=True)
        medians = {name: [median(v) for v in zip(*scores[name])] for name in names}
        for name, (size, seconds, speed, *again) in medians.items():
            ratio = medians["probgen"][2] / speed if "probgen" in names else math.nan
            chains, warmup, draws = LENGTHS[name]
            row = [model, name, f"{chains} x ({warmup} + {draws})", f"{size:.0f}", f"{seconds:.2f}"]
            rest = [f"{again[0]:.2f}", f"{again[1]:.0f}"] if again else ["", ""]
            speeds.append([*row, f"{speed:.1f}", f"{ratio:.1f}", *rest])
            if name != "probgen":
                verdicts.append((f"{model}: probgen over {name}", ratio, BARS[name]))
        for name, (exact, others) in agreement(model, runs).items():
            checks.append([model, name, f"{exact:.1f}" if exact else "", f"{others:.1f}"])
            assert max(exact, others) < 5, f"{model}, {name}: averages that do not agree"

        target = potential(MODELS[model])
        cells = [gradient_cost(target, chains, arguments.rounds) for chains in CHAINS]
        costs.append([model, *(f"{cell:.2f}" for cell in cells)])
        adapted = run(target, seed=0, progress=False).kernel
        kernels = (adapted, MALA(0.01, adapted.scale), ULA(0.01, adapted.scale))
        ratios = [overhead(kernel, target, arguments.rounds) for kernel in kernels]
        steps.append([model, *(f"{v:.2f}" for v in (*ratios[0], ratios[1][0], ratios[2][0]))])
        verdicts.append((f"{model}: ChEES over its gradients", ratios[0][0], MOST))

    libraries = ["torch", "pyro-ppl"] + [m.__name__ for m in (jax, numpyro, blackjax) if m]
    print("\n" + ", ".join(f"{name} {version(name)}" for name in libraries), end=", ")
    print(f"medians over {arguments.seeds} seeds")
    print("\nLeast bulk ESS per CPU second of a run; again: a second run, all compiled\n")
    header = [
        "model",
        "sampler",
        "chains x (warm-up + draws)",
        "ess",
        "cpu s",
        "ess/s",
        "probgen /",
    ]
    print(table([*header, "again cpu s", "again ess/s"], speeds))
    print("\nMeans and mean squares: the worst distance in standard errors\n")
    print(table(["model", "sampler", "from exact", "from others"], checks))
    print("\nGradient with value: CPU microseconds per chain, by number of chains\n")
    print(table(["model", *map(str, CHAINS)], costs))
    print("\nCPU time of steps at 128 chains over that of their gradients with values\n")
    print(table(["model", "ChEES", "ChEES, over what it asks for", "MALA", "ULA"], steps))
    print("\nBars\n")
    passed = {n: r <= b if b == MOST else r >= b for n, r, b in verdicts}
    rows = [[n, f"{r:.3g}", f"{b:g}", "pass" if passed[n] else "FAIL"] for n, r, b in verdicts]
    print(table(["ratio", "measured", "bar", "verdict"], rows))


if __name__ == "__main__":
    main()
