r"""
Inverse problems under a learned diffusion
==========================================

A prior of handwritten digits is learned twice, as a diffusion and as a flow. Held-out digits are
then measured badly, with half of the pixels hidden or all of them blurred, and noise,

.. math:: y = A x + \sigma \epsilon, \qquad p(x \mid y) \propto p(x) \, \mathcal{N}(y; A x,
    \sigma^2 I),

and inferred from one Pyro model, whatever the prior: a diffusion is guided by moment matching or by
twisted particles, a flow is sampled by chains in its base space. First, why a prior must have more
than a score.
"""

import math
import time
from functools import partial

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch.optim import AdamW

import probgen as pg
from probgen import diffusion as d

torch.manual_seed(0)

# %%
# A score is not enough
# ---------------------
# A diffusion network is a score, the gradient of a log density. It is tempting to hand it to
# Hamiltonian Monte Carlo as the gradient of a prior whose value is left at 0. Trajectories then are
# right, but the test at their end keeps the balance of another law, that of the likelihood alone,
# and the chains settle at neither. Here the prior is standard normal and a datum of 1 has standard
# deviation 2, so that the posterior is normal, with mean 0.2 and variance 0.8.


class ScoreAlone:
    """The log likelihood as value; as gradient that of prior and likelihood."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return -(1 - x).square().sum(-1) / 8

    def value_and_gradient(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self(x), (1 - x) / 4 - x


kernel, target = pg.mcmc.HMC(0.5, 6), ScoreAlone()
state, rates = kernel.init(torch.zeros(4000, 1), target), []
for _ in range(60):
    state, info = kernel.step(state, target)
    rates.append(info.acceptance.mean())
wrong = state.position[:, 0]

# %%
# A diffusion here is a distribution with a density, by the flow of the probability, and chains run
# in its base space.

normal = pg.distributions.Diffusion(
    d.GaussianDenoiser(torch.zeros(1), torch.eye(1), d.VP()), steps=8
).freeze()


def scalar(y: torch.Tensor) -> None:
    x = pg.sample("x", normal)
    pyro.sample("y", dist.Normal(x, 2.0).to_event(1), obs=y)


draws = pg.mcmc.run(scalar, torch.ones(1), seed=0, progress=False)
right = draws.samples["x"].flatten()
print("           mean  variance")
print("exact      0.20  0.80")
print(f"score only {wrong.mean():.2f}  {wrong.var():.2f}  (acceptance {sum(rates) / 60:.2f})")
print(f"diffusion  {right.mean():.2f}  {right.var():.2f}")

fig, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
grid = torch.linspace(-4, 4, 200)
bins = torch.linspace(-4, 4, 60).tolist()
ax.hist(wrong.tolist(), bins, density=True, alpha=0.5, label="score alone")
ax.hist(right.tolist(), bins, density=True, alpha=0.5, label="diffusion, with a density")
ax.plot(grid, dist.Normal(0.2, math.sqrt(0.8)).log_prob(grid).exp(), "k", label="exact posterior")
ax.set(xlabel="x", yticks=[])
ax.legend()

# %%
# Two priors of digits
# --------------------
# Levels 0 to 16 get uniform noise within a level. The flow's data pass through the quantile
# function of the normal law first. Its couplings are affine: splines would learn a better density,
# but chains take hundreds of thousands of steps, and affine ones are cheap.

levels = pg.datasets.digits().images
order = torch.randperm(len(levels))
train, test = levels[order[:1437]].repeat(4, 1), levels[order[1437:]]
train, test = train + torch.rand_like(train), test + torch.rand_like(test)

options = {"schedule": "cosine", "seed": 0, "progress": False}
started = time.process_time()
diffusion = pg.models.EDM(64, hidden_features=(256, 256))
pg.fit(diffusion, train, steps=1000, batch_size=256, lr=2e-3, ema=0.99, **options)
diffusion.freeze()
between = time.process_time()
flow = pg.distributions.Flow(
    [pg.transforms.NormalCDF(0.0, 17.0)],
    pg.models.RealNVP(64, transforms=4, hidden_features=(128,), randperm=True),
)
decayed = partial(AdamW, weight_decay=1.0)
options |= {"lr": 2e-3, "clip": 5.0, "ema": 0.99}
pg.fit(flow, train, steps=800, batch_size=128, optimizer=decayed, **options)
flow.freeze()
print(f"CPU s: diffusion {between - started:.0f}, flow {time.process_time() - between:.0f}")

# %%
# One model
# ---------
# The model states one digit and what is seen of it. The upper half is seen in one measurement, a
# blurred picture in the other; noise is of two grey levels.

NOISE, CASES = 2.0, 4
place = torch.arange(8.0)
row = (-(place[:, None] - place).square() / 2).exp()
row = row / row.sum(1, keepdim=True)
operators = {"inpainting": torch.eye(64)[:32], "deblurring": torch.kron(row, row)}
truth = test[:CASES]
data = {name: truth @ a.T for name, a in operators.items()}
data = {name: y + NOISE * torch.randn_like(y) for name, y in data.items()}


def model(prior, a: torch.Tensor, y: torch.Tensor) -> None:
    x = pg.sample("x", prior)
    pyro.sample("y", dist.Normal(x @ a.T, NOISE).to_event(1), obs=y)


# %%
# A guide knows the measurement from the model. Moment matching takes the law of a digit given a
# noisy one to be normal, with the covariance that the network's derivatives give; twisted particles
# are weighed, so that no such guess remains in the limit of many. The chains of the flow need no
# guess either. They move in its base, one digit after the other: a posterior of 64 dimensions is
# small enough for a dense metric, with which a trajectory takes a few steps.


def guided(name: str, method, sampler: d.Sampler | None, draws: int) -> torch.Tensor:
    found = []
    for y in data[name]:
        result = pg.inference.posterior(
            model,
            diffusion,
            operators[name],
            y,
            method=method,
            sampler=sampler,
            draws=draws,
            progress=False,
        )
        found.append(result.resampled(128)["x"] if draws > 128 else result.draws["x"])
    return torch.stack(found, 1)


def chains(name: str) -> torch.Tensor:
    settings = {"chains": 32, "draws": 300, "seed": 0, "progress": False}
    runs = [pg.mcmc.run(model, flow, operators[name], y, **settings) for y in data[name]]
    rhat = torch.stack([run.rhat()["x"] for run in runs])
    print(f"flow, {name}: R-hat {rhat.median():.3f} in the median, {rhat.max():.3f} at most")
    return torch.stack([run.samples["x"].flatten(0, 1) for run in runs], 1)


TWISTED = d.TwistedSMC(d.Ancestral(100, "step"))
methods = {
    "diffusion, MMPS": lambda name: guided(name, d.MMPS, d.DPMSolver(32), 128),
    "diffusion, twisted": lambda name: guided(name, TWISTED, None, 512),
    "flow, ChEES": chains,
}
found, seconds = {}, {}
for name in operators:
    for label, method in methods.items():
        started = time.process_time()
        found[name, label] = method(name)
        seconds[name, label] = time.process_time() - started

# %%
# Scores: the root mean square error of the mean in grey levels, how many true pixels lie in central
# intervals of 90 %, both of the pixels that were not seen, or of all if all are blurred; and the
# mean square of the residual over the noise, which is near 1 where draws fit the data as well as
# they can. Under the same diffusion moment matching and particles differ on the hidden half: the
# former keeps digits that the seen half excludes, which its residual shows. Chains and particles
# are exact in the limit, and R-hat says that the chains are near it; so what sets them apart is the
# prior, and the diffusion's means are nearer to the truth than those of so cheap a flow.

print(f"{'':12}{'':20}   RMSE  in 90 %  residual  CPU s")
for (name, label), x in found.items():
    part = slice(32, None) if name == "inpainting" else slice(None)
    error = pg.metrics.rmse(x.mean(0)[:, part], truth[:, part])
    cover = pg.metrics.coverage(x[..., part], truth[:, part], 0.9)
    residual = ((x @ operators[name].T - data[name]) / NOISE).square().mean()
    print(
        f"{name:12}{label:20} {error:6.2f}  {cover:7.2f}  {residual:8.2f}"
        f"  {seconds[name, label]:5.0f}"
    )

# %%
# The truth, what was seen, and for each method the mean, twice the standard deviation and two
# draws.

fig = plt.figure(figsize=(11, 9), layout="constrained")
for part, name in zip(fig.subfigures(2, 1), operators):
    axes = part.subplots(4, 2 + 4 * len(methods))
    for k in range(4):
        y = data[name][k]
        pictures = [truth[k], torch.cat([y, torch.full((64 - len(y),), 8.0)])]
        for label in methods:
            x = found[name, label]
            pictures += [x[:, k].mean(0), 2 * x[:, k].std(0), x[len(x) // 3, k], x[-1, k]]
        for ax, picture in zip(axes[k], pictures):
            ax.imshow(picture.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
            ax.set(xticks=[], yticks=[])
    titles = ["truth", "seen"]
    for label in methods:
        titles += [f"{label.split(', ')[1]}:\nmean", "2 sd", "draw", "draw"]
    for ax, title in zip(axes[0], titles):
        ax.set_title(title, fontsize=8)
    part.suptitle(name)
