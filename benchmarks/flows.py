"""Speed of normalising flows: probgen against zuko, nflows, normflows and Pyro.

Each cell is one model at one number of features D, built in every library with the same layers:
affine coupling (8 transforms), MAF, coupling and autoregressive NSF (5 transforms, 8 bins on
[-5, 5]), all with hidden layers (128, 128), ReLU, no batch normalisation and a standard normal
base. On a batch of 1024 in float32 it times

- `log_prob`: the density, without a graph,
- `backward`: the mean negative density and its gradient, with gradients cleared first,
- `sample`: 1024 draws, without a graph, where the density is the fast direction (MAF and
  autoregressive NSF, at D = 64).

Times are CPU times of one thread, medians over rounds in which the libraries take turns, with
argument validation off for all. A ratio is probgen's time over the other's: below 1 is faster.

    pip install zuko==1.6.0 nflows==0.14 normflows==1.7.3 pyro-ppl==1.9.2
    python benchmarks/flows.py                               # all cells, a few minutes
    python benchmarks/flows.py --cells maf-64 nsf-coupling   # those whose names start so
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median

import nflows.distributions
import nflows.flows
import nflows.nn.nets
import nflows.transforms
import normflows
import pyro
import pyro.distributions.transforms
import pyro.nn
import torch
import zuko
from normflows.flows.neural_spline.autoregressive import (
    MaskedPiecewiseRationalQuadraticAutoregressive,
)
from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling
from torch import Tensor, nn

import probgen as pg

BATCH, WIDTH, BINS, BOUND = 1024, 128, 8, 5.0
HIDDEN = (WIDTH, WIDTH)
LAYERS = {"coupling": 8, "maf": 5, "nsf-coupling": 5, "nsf-autoregressive": 5}
CELLS = [
    *[("coupling", d) for d in (2, 16, 64)],
    *[("maf", d) for d in (2, 16, 64)],
    *[("nsf-coupling", d) for d in (16, 64)],
    *[("nsf-autoregressive", d) for d in (16, 64)],
]
SLOW_ROUNDS = 3  # of the other libraries' sequential sampling
BLOCK = 0.02  # seconds: a turn is as many calls as the slowest library fits in, at least one


def bar(kind: str, task: str) -> float:
    """The largest ratio to the fastest other library that passes."""
    if task == "sample":
        return 0.1
    if kind.startswith("nsf"):
        return {"log_prob": 0.5, "backward": 0.6}[task]
    return 1.0


@dataclass
class Model:
    """One library's flow: its parameters, its log density and its sampler."""

    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[], Tensor]

    def backward(self, x: Tensor) -> None:
        self.module.zero_grad(set_to_none=True)
        self.log_prob(x).mean().neg().backward()


class WithoutContext(nn.Module):
    """A network of the input alone, for libraries that also pass it a context."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.network(x)


def probgen_model(kind: str, d: int) -> Model:
    sizes = {"transforms": LAYERS[kind], "hidden_features": HIDDEN}
    if kind == "coupling":
        flow = pg.models.RealNVP(d, **sizes)
    elif kind == "maf":
        flow = pg.models.MAF(d, **sizes)
    else:
        auto = kind == "nsf-autoregressive"
        flow = pg.models.NSF(d, bins=BINS, bound=BOUND, autoregressive=auto, **sizes)
    return Model(flow, lambda x: flow().log_prob(x), lambda: flow().sample((BATCH,)))


def zuko_model(kind: str, d: int) -> Model:
    sizes = {"transforms": LAYERS[kind], "hidden_features": HIDDEN}
    if kind == "coupling":
        flow = zuko.flows.RealNVP(d, **sizes)
    elif kind == "maf":
        flow = zuko.flows.MAF(d, **sizes)
    elif kind == "nsf-coupling":
        # zuko's own NSF(passes=2) masks a network of both halves, larger and slower than this.
        spline = zuko.transforms.MonotonicRQSTransform
        shapes = [(BINS,), (BINS,), (BINS - 1,)]
        flow = zuko.flows.RealNVP(d, univariate=spline, shapes=shapes, **sizes)
    else:
        flow = zuko.flows.NSF(d, bins=BINS, **sizes)
    return Model(flow, lambda x: flow().log_prob(x), lambda: flow().sample((BATCH,)))


def nflows_model(kind: str, d: int) -> Model:
    # With one feed-forward block MADE has hidden layers (128, 128).
    made = {"hidden_features": WIDTH, "num_blocks": 1, "use_residual_blocks": False}
    spline = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    t = nflows.transforms

    def network(inputs: int, outputs: int) -> nn.Module:
        return WithoutContext(nflows.nn.nets.MLP((inputs,), (outputs,), HIDDEN))

    parts: list[nn.Module] = []
    for i in range(LAYERS[kind]):
        mask = (torch.arange(d) + i) % 2
        if "coupling" not in kind and i > 0:
            parts.append(t.ReversePermutation(d))
        if kind == "coupling":
            parts.append(t.AffineCouplingTransform(mask, network))
        elif kind == "maf":
            parts.append(t.MaskedAffineAutoregressiveTransform(d, **made))
        elif kind == "nsf-coupling":
            parts.append(t.PiecewiseRationalQuadraticCouplingTransform(mask, network, **spline))
        else:
            layer = t.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(d, **made, **spline)
            parts.append(layer)
    flow = nflows.flows.Flow(t.CompositeTransform(parts), nflows.distributions.StandardNormal([d]))
    return Model(flow, flow.log_prob, lambda: flow.sample(BATCH))


def normflows_model(kind: str, d: int) -> Model:
    # CoupledRationalQuadraticSpline would also put splines on the unchanged half, and both of
    # its splines residual blocks of two layers each; the layers inside, in reverse, match the
    # others in size. One feed-forward block gives MADE hidden layers (128, 128); the ReLU that
    # it leaves out after the first is put back, so that all compute the same.
    made = {"hidden_features": WIDTH, "num_blocks": 1, "use_residual_blocks": False}
    spline = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    f = normflows.flows

    def network(inputs: int, outputs: int) -> nn.Module:
        return WithoutContext(normflows.nets.MLP([inputs, *HIDDEN, outputs]))

    def autoregressive(layer: normflows.flows.Flow) -> nn.Module:
        made = layer.autoregressive_net
        made.initial_layer = nn.Sequential(made.initial_layer, nn.ReLU())
        return f.Reverse(layer)

    parts: list[nn.Module] = []
    for i in range(LAYERS[kind]):
        mask = (torch.arange(d) + i) % 2
        if "coupling" not in kind and i > 0:
            parts.append(f.Permute(d, mode="shuffle"))
        if kind == "coupling":
            split = "channel" if i % 2 == 0 else "channel_inv"
            parts.append(f.AffineCouplingBlock(network(d // 2, d), split_mode=split))
        elif kind == "maf":
            parts.append(autoregressive(f.MaskedAffineAutoregressive(d, **made)))
        elif kind == "nsf-coupling":
            parts.append(f.Reverse(PiecewiseRationalQuadraticCoupling(mask, network, **spline)))
        else:
            layer = MaskedPiecewiseRationalQuadraticAutoregressive(d, **made, **spline)
            parts.append(autoregressive(layer))
    base = normflows.distributions.DiagGaussian(d, trainable=False)
    flow = normflows.NormalizingFlow(base, parts)
    return Model(flow, flow.log_prob, lambda: flow.sample(BATCH)[0])


def pyro_model(kind: str, d: int) -> Model:
    # Pyro's transforms go from the base to the data; where its evaluation is the faster
    # direction the inverse is taken, so that the density has it, as in the others.
    t = pyro.distributions.transforms
    half, spline = d // 2, {"count_bins": BINS, "bound": BOUND, "order": "quadratic"}
    shapes = [BINS, BINS, BINS - 1]
    modules, parts = nn.ModuleList(), []
    for i in range(LAYERS[kind]):
        order = torch.arange(d) if i % 2 == 0 else torch.arange(d).flip(0)
        if "coupling" in kind and i > 0:
            parts.append(t.Permute(torch.arange(d).flip(0)))
        if kind == "coupling":
            layer = t.AffineCoupling(half, pyro.nn.DenseNN(half, HIDDEN, [half, half]))
        elif kind == "maf":
            layer = t.AffineAutoregressive(pyro.nn.AutoRegressiveNN(d, HIDDEN, permutation=order))
        elif kind == "nsf-coupling":
            network = pyro.nn.DenseNN(half, HIDDEN, [half * n for n in shapes])
            layer = t.SplineCoupling(d, half, network, **spline, identity=True)
            layer.lower_spline = None  # unused under identity=True
        else:
            network = pyro.nn.AutoRegressiveNN(d, HIDDEN, shapes, permutation=order)
            layer = t.SplineAutoregressive(d, network, **spline)
        modules.append(layer)
        parts.append(layer if kind == "coupling" else layer.inv)
    base = pyro.distributions.Normal(torch.zeros(d), torch.ones(d)).to_event(1)
    flow = pyro.distributions.TransformedDistribution(base, parts)
    return Model(modules, flow.log_prob, lambda: flow.sample((BATCH,)))


LIBRARIES = {
    "probgen": probgen_model,
    "zuko": zuko_model,
    "nflows": nflows_model,
    "normflows": normflows_model,
    "pyro": pyro_model,
}


def build(kind: str, d: int) -> dict[str, Model]:
    """The cell's models, each away from the identity and checked on a batch."""
    x = torch.randn(BATCH, d)
    base = -0.5 * x.square().sum(-1) - 0.5 * d * torch.log(torch.tensor(2 * torch.pi))
    models = {}
    for name, make in LIBRARIES.items():
        torch.manual_seed(0)
        model = models[name] = make(kind, d)
        with torch.no_grad():
            for p in model.module.parameters():
                p.add_(0.05 * torch.randn_like(p))
            log_prob = model.log_prob(x.clone())
        assert log_prob.shape == (BATCH,), f"{name}: shape {tuple(log_prob.shape)}"
        assert log_prob.isfinite().all(), f"{name}: a log density that is not finite"
        assert (log_prob - base).abs().mean() > 0.01, f"{name}: hardly a transform"
        model.backward(x.clone())
        grads = [p.grad for p in model.module.parameters()]
        assert all(g is not None and g.isfinite().all() for g in grads), f"{name}: gradients"
    return models


def timed(function: Callable[..., object], *inputs: Tensor) -> float:
    start = time.process_time()
    function(*inputs)
    return time.process_time() - start


def measure(models: dict[str, Model], task: str, d: int, rounds: int) -> dict[str, float]:
    """The median CPU seconds of one call, by library."""
    x = torch.randn(BATCH, d)

    def once(name: str) -> float:
        # a fresh copy of the batch, since Pyro remembers the last one
        inputs = () if task == "sample" else (x.clone(),)
        with torch.set_grad_enabled(task == "backward"):
            return timed(getattr(models[name], task), *inputs)

    if task == "sample":
        with torch.no_grad():
            for name, model in models.items():
                draws = model.sample()
                assert draws.shape == (BATCH, d), f"{name}: {tuple(draws.shape)}"
                assert draws.isfinite().all(), f"{name}: draws that are not finite"
    calls = max(1, int(BLOCK / max(once(name) for name in models)))
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds):
        for name in models:
            if task == "sample" and name != "probgen" and number >= SLOW_ROUNDS:
                continue
            times[name].append(sum(once(name) for _ in range(calls)) / calls)
    return {name: median(values) for name, values in times.items()}


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cells", nargs="*", default=[""], help="starts of names, such as maf-64")
    parser.add_argument("--tasks", nargs="*", default=["log_prob", "backward", "sample"])
    arguments = parser.parse_args()

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.distributions.Distribution.set_default_validate_args(False)
    pyro.enable_validation(False)

    others = [name for name in LIBRARIES if name != "probgen"]
    sizes, results, verdicts = [], [], []
    for kind, d in CELLS:
        cell = f"{kind}-{d}"
        if not cell.startswith(tuple(arguments.cells)):
            continue
        models = build(kind, d)
        counts = {n: sum(p.numel() for p in m.module.parameters()) for n, m in models.items()}
        assert max(counts.values()) <= 1.02 * min(counts.values()), f"{cell}: {counts}"
        sizes.append([cell, *[f"{n:,}" for n in counts.values()]])
        own = {}
        for task in arguments.tasks:
            if task == "sample" and (d != 64 or "coupling" in kind):
                continue
            times = measure(models, task, d, arguments.rounds)
            own[task] = times["probgen"]
            ratios = {name: times["probgen"] / times[name] for name in others}
            worst = max(ratios.values())
            shown = [f"{ratios[name]:.2f}" for name in others]
            fastest = max(ratios, key=ratios.__getitem__)
            ms = f"{1000 * times['probgen']:.2f}"
            results.append([cell, task, ms, *shown, f"{worst:.3f} ({fastest})"])
            verdicts.append((f"{cell} {task} / fastest", worst, bar(kind, task)))
        if {"sample", "log_prob"} <= own.keys():
            ratio = own["sample"] / own["log_prob"]
            verdicts.append((f"{cell} sample / log_prob", ratio, 6.0))
        print(f"{cell} done", flush=True)

    versions = [f"{n} {version(n)}" for n in ("torch", "zuko", "nflows", "normflows", "pyro-ppl")]
    print(f"\n{', '.join(versions)}, {arguments.rounds} rounds")
    print("\nParameters\n")
    print(table(["cell", *LIBRARIES], sizes))
    print("\nCPU time of probgen, and its ratio to each library\n")
    print(table(["cell", "task", "probgen ms", *others, "fastest"], results))
    print("\nBars\n")
    rows = [[n, f"{r:.3f}", f"{b:g}", "pass" if r <= b else "FAIL"] for n, r, b in verdicts]
    print(table(["ratio", "measured", "bar", "verdict"], rows))


if __name__ == "__main__":
    main()
