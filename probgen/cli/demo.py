r"""The main job on real data: learn a prior from digits, then infer digits from bad measurements.

A flow prior :math:`p(x)` is learned from the 8 x 8 digits of scikit-learn, saved and loaded
again. Held-out digits are then measured badly: the lower half is missing and the upper has noise,

.. math:: y = x_{\mathrm{upper}} + \sigma \, \epsilon, \qquad p(x \mid y) \propto p(x) \,
    \mathcal{N}(y; x_{\mathrm{upper}}, \sigma^2 I),

and inferred in the prior's base space: by SVI with a conditional flow as guide, by Pyro's NUTS with
one chain, and by ChEES with many chains at once. The baseline is a normal prior with the data's
mean and covariance, whose posterior is exact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import init_to_value
from pyro.infer.reparam import TransformReparam
from torch import Tensor
from torch.optim import AdamW
from tqdm.auto import trange

from ..core import LazyDistribution, load, sample
from ..datasets import digits
from ..distributions import Dequantized, Flow
from ..mcmc import ChEES, diagnostics
from ..mcmc import run as run_chains
from ..metrics import bits_per_dimension, coverage, rmse
from ..models import NSF, RealNVP
from ..plots.fitted import images, training
from ..training.fitting import fit
from ..transforms import NormalCDF

__all__ = ["Settings", "run"]

NOISE = 1.0  # the standard deviation of the measurement, in grey levels


class Settings(NamedTuple):
    """How much work the demonstration does.

    Arguments:
        steps: The number of training steps of the prior.
        guide_steps: The number of steps of SVI.
        cases: The number of held-out digits to infer.
        warmup: The number of warm-up steps of NUTS.
        draws: The number of draws of NUTS.
        chains: The number of chains of ChEES.
        chains_warmup: The number of its warm-up steps.
        chains_draws: The number of draws of each of its chains.
    """

    steps: int = 1200
    guide_steps: int = 600
    cases: int = 10
    warmup: int = 60
    draws: int = 60
    chains: int = 16
    chains_warmup: int = 60
    chains_draws: int = 25


class ResultRow(NamedTuple):
    """One line of the table."""

    name: str
    bits: float
    rmse: float
    cover_50: float
    cover_90: float
    seconds: float
    ess: float


def run(folder: str | Path, settings: Settings | None = None, seed: int = 0) -> list[ResultRow]:
    """Run the demonstration; write the model and a picture to a folder, print a table.

    Arguments:
        folder: Where to write `prior/`, `posterior.png` and `training.png`.
        settings: How much work to do.
        seed: The seed.

    Returns:
        The rows of the table.
    """
    folder, settings = Path(folder), settings or Settings()
    data = digits()
    pyro.set_rng_seed(seed)
    order = torch.randperm(len(data.images))
    train, test = data.images[order[:1500]], data.images[order[1500:]]
    features = train.shape[1]

    start = time.perf_counter()
    learn(train, data.levels, settings.steps, seed, folder)
    prior = load(folder / "prior").freeze()
    learning = time.perf_counter() - start
    with torch.no_grad():
        bound = torch.stack([prior().log_prob(test) for _ in range(10)]).mean(0)
    bits = bits_per_dimension(bound, features).value

    truth = test[: settings.cases] + torch.rand(settings.cases, features)
    seen = features // 2
    y = truth[:, :seen] + NOISE * torch.randn(settings.cases, seen)
    missing = slice(seen, None)

    normal = fitted_normal(train)
    noisy = test + torch.rand_like(test)
    rows = [
        score(
            "normal prior, exact",
            bits_per_dimension(normal.log_prob(noisy), features).value,
            conditioned(normal, y).sample((2000,))[..., missing],
            truth[:, missing],
        )
    ]
    continuous = prior.continuous
    model = poutine.reparam(partial(measurement, continuous), {"x": TransformReparam()})
    start = time.perf_counter()
    guide = infer_by_guide(model, y, features, settings.guide_steps)
    base = Predictive(guide, num_samples=1000)(y)["x_base"].detach()
    x = continuous().push(base)
    seconds = time.perf_counter() - start
    rows.append(score("flow prior, SVI", bits, x[..., missing], truth[:, missing], seconds))

    start = time.perf_counter()
    x = continuous().push(infer_by_nuts(model, y, base.mean(0), settings))
    seconds = time.perf_counter() - start
    ess = float(diagnostics.ess(x[None, ..., missing]).median())
    rows.append(score("flow prior, NUTS", bits, x[..., missing], truth[:, missing], seconds, ess))

    start = time.perf_counter()
    found = run_chains(
        measurement,
        continuous,
        y,
        kernel=ChEES(max_steps=64),
        chains=settings.chains,
        warmup=settings.chains_warmup,
        draws=settings.chains_draws,
        init={"x_base": base[: settings.chains]},
        seed=seed,
    ).samples["x"]
    seconds = time.perf_counter() - start
    ess, x = float(diagnostics.ess(found[..., missing]).median()), found.flatten(0, 1)
    rows.append(score("flow prior, ChEES", bits, x[..., missing], truth[:, missing], seconds, ess))

    picture(folder / "posterior.png", truth, y, x, data.shape, data.levels)
    report(rows, settings, learning, folder)
    return rows


def infer_by_nuts(model: Callable, y: Tensor, first: Tensor, settings: Settings) -> Tensor:
    """Draws of one chain of Pyro's NUTS in the base space, from a first value."""
    start = init_to_value(values={"x_base": first})
    kernel = NUTS(model, max_tree_depth=6, init_strategy=start)
    mcmc = MCMC(kernel, settings.draws, settings.warmup)
    mcmc.run(y)
    return mcmc.get_samples()["x_base"]


def learn(train: Tensor, levels: int, steps: int, seed: int, folder: Path) -> None:
    """Learns the prior of digits and saves it."""
    flow = NSF(train.shape[1], transforms=6, hidden_features=(64,), randperm=True)
    prior = Dequantized(Flow([NormalCDF(0.0, float(levels))], flow), levels)
    history = fit(
        prior,
        train,
        validation=0.1,
        steps=steps,
        batch_size=128,
        optimizer=partial(AdamW, weight_decay=3.0),
        schedule="cosine",
        clip=5.0,
        ema=0.995,
        seed=seed,
    )
    prior.save(folder / "prior")
    training(history).figure.savefig(folder / "training.png", dpi=120)


def measurement(prior: LazyDistribution, y: Tensor) -> None:
    """Return Pyro model: digits from the prior, of which the first pixels are seen with noise."""
    with pyro.plate("cases", len(y)):
        x = sample("x", prior)
        seen = x[..., : y.shape[-1]]
        pyro.sample("y", dist.Normal(seen, NOISE).to_event(1), obs=y)


def infer_by_guide(model: Callable, y: Tensor, features: int, steps: int) -> Callable:
    """Fits a flow, conditional on the measurement, to the posterior in base space."""
    posterior = RealNVP(
        features, context=y.shape[1], transforms=6, hidden_features=(64,), randperm=True
    )

    def guide(y: Tensor) -> None:
        with pyro.plate("cases", len(y)):
            sample("x_base", posterior, context=(y - y.mean()) / y.std())

    pyro.clear_param_store()
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 2e-3, "lrd": 0.1 ** (1 / steps)}), elbo)
    bar = trange(steps, desc="svi", leave=False)
    for step in bar:
        loss = svi.step(y)
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss:.4g}")
    return guide


def fitted_normal(train: Tensor, copies: int = 20) -> dist.MultivariateNormal:
    """Return the normal distribution with the mean and covariance of dequantised data."""
    x = train.repeat(copies, 1)
    x = x + torch.rand_like(x)
    return dist.MultivariateNormal(x.mean(0), torch.cov(x.T))


def conditioned(prior: dist.MultivariateNormal, y: Tensor) -> dist.MultivariateNormal:
    """Return the exact posterior of a normal prior whose first pixels are seen with noise."""
    n = y.shape[1]
    m, c = prior.loc, prior.covariance_matrix
    gain = torch.linalg.solve(c[:n, :n] + NOISE**2 * torch.eye(n), c[:n]).T
    covariance = c - gain @ c[:n]
    covariance = (covariance + covariance.T) / 2 + 1e-4 * torch.eye(len(m))
    return dist.MultivariateNormal(m + (y - m[:n]) @ gain.T, covariance)


def score(
    name: str,
    bits: float,
    draws: Tensor,
    truth: Tensor,
    seconds: float = math.nan,
    ess: float = math.nan,
) -> ResultRow:
    return ResultRow(
        name,
        bits,
        rmse(draws.mean(0), truth),
        coverage(draws, truth, 0.5),
        coverage(draws, truth, 0.9),
        seconds,
        ess,
    )


def picture(
    file: Path, truth: Tensor, y: Tensor, x: Tensor, shape: tuple[int, int], levels: int
) -> None:
    """Draws truth, measurement, posterior mean and standard deviation, and draws."""
    seen = torch.full_like(truth, math.nan)
    seen[:, : y.shape[1]] = y
    columns = {"truth": truth, "measured": seen, "mean": x.mean(0), "sd x 2": 2 * x.std(0)}
    chosen = torch.linspace(0, len(x) - 1, 5).long()
    columns.update({f"draw {n + 1}": x[i] for n, i in enumerate(chosen)})
    axs = images({k: v[:8] for k, v in columns.items()}, shape, high=float(levels))
    axs[0, 0].figure.savefig(file, dpi=120)


def report(rows: list[ResultRow], settings: Settings, learning: float, folder: Path) -> None:
    print(f"\nPrior learned in {learning:.0f} s. {settings.cases} held-out digits, the lower half")
    print(f"missing, noise of {NOISE:g} grey levels on the rest.")
    print(f"NUTS: one chain of {settings.warmup} + {settings.draws} steps; ", end="")
    steps = f"{settings.chains_warmup} + {settings.chains_draws}"
    print(f"ChEES: {settings.chains} chains of {steps} steps.\n")
    names = ("bits/dim", "RMSE", "in 50 %", "in 90 %", "seconds", "ESS", "ESS/s")
    print(" " * 22 + "".join(f"{name:>9}" for name in names))
    for row in rows:
        cells = [f"{row.bits:.3f}", *(f"{value:.2f}" for value in row[2:5]), f"{row.seconds:.0f}"]
        cells += [f"{row.ess:.0f}", f"{row.ess / row.seconds:.1f}"]
        print(f"{row.name:22}" + "".join(f"{cell.replace('nan', ''):>9}" for cell in cells))
    print("\nbits/dim: of held-out digits (an upper bound for the flow); RMSE, in grey levels, and")
    print("coverage of central posterior intervals: of the missing pixels. A guide fitted by SVI")
    print("seeks modes, and so is narrower than the posterior of the chains. ESS: the effective")
    print("sample size, the median over missing pixels; seconds include warm-up.")
    print(f"\nModel: {folder / 'prior'}\nPicture: {folder / 'posterior.png'}")
