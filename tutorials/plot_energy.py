r"""
Deep energy models
==================

An energy is a network, and a density up to its normaliser,

.. math:: p(x) = \frac{q(x) \, e^{f(x)}}{Z}, \qquad Z = \mathbb{E}_q \, e^{f(x)},

where a simple law or a flow :math:`q` keeps it a density whatever the network does far from the
data. Nothing about :math:`f` need be invertible, but :math:`Z` is unknown: it must be avoided in
training, and estimated afterwards. First three ways of training are compared where the truth is
known. Then a flow of digits is corrected by an energy, and both stand in a Pyro model as the prior
of digits of which half is missing.
"""

import time
from functools import partial

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch.optim import AdamW

import probgen as pg

pyro.set_rng_seed(0)

# %%
# Three ways of training
# ----------------------
# Contrastive divergence climbs the likelihood, with draws of Markov chains that persist from step
# to step in place of draws of the model. Noise-contrastive estimation tells data from draws of
# :math:`q`, here the normal law of the data's mean and width. Denoising score matching fits
# :math:`\nabla \log p` of data with noise of 0.1 added.

truth = pg.datasets.eight_gaussians(sd=0.2)
data, fresh = truth.sample((4000,)), truth.sample((4000,))
chains = {"steps": 10, "persistent": True, "chains": 256, "renewal": 0.02}
ways = {
    "contrastive divergence": (
        pg.objectives.ContrastiveDivergence(**chains),
        {"steps": 500, "lr": 2e-3, "clip": 1.0},
    ),
    "noise contrast": (pg.objectives.NoiseContrastive(), {"steps": 1200, "lr": 5e-3}),
    "denoising": (pg.objectives.DenoisingScoreMatching(0.1), {"steps": 1200, "lr": 5e-3}),
}

# %%
# Afterwards annealing from :math:`q` to the model estimates :math:`\log Z`, from below, and
# annealing back from above. Each model is compared with the truth on fresh draws, by the mean of
# :math:`\log p^* - \log p`, which is the divergence :math:`KL(p^* \| p)`.

common = {"schedule": "cosine", "ema": 0.99, "seed": 0, "progress": False}
models = {}
print(f"{'':24}{'log Z, below':>15}{'above':>15}{'divergence':>17}{'seconds':>9}")
for name, (objective, options) in ways.items():
    start = time.perf_counter()
    model = pg.models.EnergyModel(2, hidden_features=(128, 128), activation="tanh")
    pg.fit(model, data, objective=objective, **options, **common)
    seconds = time.perf_counter() - start
    z = model.freeze().estimate(1000, temperatures=100)
    gap = truth.log_prob(fresh) - model().log_prob(fresh)
    print(
        f"{name:24}{z.log_z:8.2f} +- {z.se:.2f}{z.upper:8.2f} +- {z.upper_se:.2f}"
        f"{gap.mean():9.3f} +- {gap.std() / len(gap) ** 0.5:.3f}{seconds:9.1f}"
    )
    models[name] = model

# %%
# The same densities as pictures.

edge, points = 2.4, 150
line = torch.linspace(-edge, edge, points)
grid = torch.cartesian_prod(line, line)
fig, axs = plt.subplots(1, 4, figsize=(12, 3.2), sharey=True, layout="constrained")
top = float(truth.log_prob(grid).exp().max())
for ax, (name, law) in zip(axs, {"truth": truth, **{n: m() for n, m in models.items()}}.items()):
    density = law.log_prob(grid).exp().reshape(points, points).T
    extent = (-edge, edge, -edge, edge)
    shown = ax.imshow(density, extent=extent, origin="lower", vmin=0, vmax=top)
    ax.set(title=name, xlabel="$x_1$")
axs[0].set_ylabel("$x_2$")
fig.colorbar(shown, ax=axs, label="density", shrink=0.9)

# %%
# Modes weigh 1 to 4, here counted from the right, counter-clockwise. Noise contrast, whose noise
# covers them all, comes closest in weights and shapes. Contrastive divergence has the weights, but
# after as many steps as time allows its modes are blurred, with bridges between them. Denoising has
# the shapes, a little wide by the noise, but not the weights: a score says how the density changes,
# and where there are next to no data, between modes, it is not learned.

angle = torch.atan2(grid[:, 1], grid[:, 0])
mode = (angle / (torch.pi / 4)).round().long() % 8
fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
for k, (name, law) in enumerate({"truth": truth, **{n: m() for n, m in models.items()}}.items()):
    mass = torch.zeros(8).index_add(0, mode, law.log_prob(grid).softmax(0))
    ax.bar(torch.arange(8) + 0.2 * (k - 1.5), mass, 0.2, label=name)
ax.set(xlabel="mode", ylabel="mass")
ax.legend()

# %%
# A flow, corrected by an energy
# ------------------------------
# Digits of 8 x 8 pixels and 17 levels get uniform noise within a level, several times over, and are
# cast to (-2, 2). A small flow of couplings, kept on that interval, learns them first.

source = pg.datasets.digits()
images = source.images[torch.randperm(len(source.images))]


def cast(levels):
    return (levels + torch.rand_like(levels)) * (4 / source.levels) - 2


def grey(x):
    return (x + 2) * (source.levels / 4)


train, held = cast(images[:1350].repeat(20, 1)), cast(images[1350:1500].repeat(4, 1))
test = cast(images[1500:])
couplings = pg.models.RealNVP(64, transforms=4, hidden_features=(128,), randperm=True)
flow = pg.distributions.Flow([pg.transforms.NormalCDF(-2.0, 2.0)], couplings)
decay = {"optimizer": partial(AdamW, weight_decay=1.0), "batch_size": 128}
pg.fit(flow, train, validation=held, steps=1000, lr=2e-3, clip=5.0, **decay, **common)
flow.freeze()

# %%
# Then a convolutional network learns to tell digits from draws of the frozen flow: the log ratio of
# the two densities is what the flow lacks. Held-out digits say when to stop.

network = torch.nn.Sequential(
    torch.nn.Unflatten(-1, (1, 8, 8)),
    pg.networks.EnergyNetwork((1, 8, 8), hidden_features=(16, 32, 32)),
)
energy = pg.distributions.Tilted(flow, network)
contrast = pg.objectives.NoiseContrastive()
decay["optimizer"] = partial(AdamW, weight_decay=0.1)
pg.fit(energy, train, objective=contrast, validation=held, steps=1000, **decay, **common)
energy.freeze()

# %%
# The flow is so near that :math:`Z = \mathbb{E}_q \, e^{f(x)}` needs no annealing: many draws of
# the flow will do. As a log ratio of densities, :math:`f` has a :math:`\log Z` near zero.

f = network(flow().sample((20000,)))
log_z = f.logsumexp(0) - torch.tensor(len(f)).log()
ess = (2 * f.logsumexp(0) - (2 * f).logsumexp(0)).exp()
print(f"log Z: {log_z:.2f} +- {ess**-0.5:.2f}, of an effective sample of {ess:.0f}")
gain = network(test) - log_z
print(f"held-out log-likelihood, energy minus flow: {gain.mean():.2f} +- ", end="")
print(f"{(gain.var() / len(gain) + 1 / ess).sqrt():.2f} nats per digit")

# %%
# Draws of the energy come from a Markov chain that starts at draws of the flow.

sets = {"digit": test[:12], "flow": flow().sample((18,)), "energy": energy().sample((18,))}
columns = {f"{n} {k + 1}": x for n, xs in sets.items() for k, x in enumerate(xs.split(6))}
pg.plots.images({name: grey(x) for name, x in columns.items()}, source.shape, high=17.0)

# %%
# Half of a digit
# ---------------
# The lower half of held-out digits is missing, and the upper has noise of two grey levels. The flow
# is stated as a prior by ``pg.sample``, and the rest is plain Pyro. It is frozen, so that chains
# move in its base, where the prior is a standard normal law.
#
# ``pg.sample("x", energy)`` would state the energy, but its chains would move among pixels, and
# seldom from one digit to another. With the factor :math:`e^{f(x)}` beside the flow the posterior
# is the same, and chains still move in the flow's base.

noise = 2 * 4 / source.levels
truth = test[:6]
y = truth[:, :32] + noise * torch.randn(len(truth), 32)


def model(y, corrected=False):
    x = pg.sample("x", flow)
    if corrected:
        pyro.factor("energy", network(x))
    pyro.sample("y", dist.Normal(x[..., :32], noise).to_event(1), obs=y)


# %%
# Each digit has chains of its own. Draws of the flow's posterior with weights :math:`e^{f(x)}` are
# draws of the energy's too, which costs no more than a pass of the network. Chains check it for the
# digit whose weights are most uneven.

options = {"chains": 32, "seed": 0, "progress": False}
start = time.process_time()
runs = [pg.mcmc.run(model, row, draws=250, **options) for row in y]
print(f"flow: {(time.process_time() - start) / len(y):.1f} s for each digit, ", end="")
print(f"R-hat at most {max(float(run.rhat()['x'].max()) for run in runs):.3f}")
x = torch.stack([run.samples["x"].flatten(0, 1) for run in runs], 1)
tilts = network(x)
weights = tilts.softmax(0)
sizes = 1 / weights.square().sum(0)
print(f"weights of {len(x)} draws: effective sizes {sizes.min():.0f} to {sizes.max():.0f}")

k = int(sizes.argmin())
start = time.process_time()
run = pg.mcmc.run(model, y[k], corrected=True, draws=400, **options)
print(f"energy: {time.process_time() - start:.1f} s for digit {k}, ", end="")
print(f"R-hat at most {run.rhat()['x'].max():.3f}")
unit = source.levels / 4  # grey levels
by_chains = run.samples["x"].mean((0, 1))
for name, mean in {"weights": weights[:, k] @ x[:, k], "the flow": x[:, k].mean(0)}.items():
    gap = unit * pg.metrics.rmse(mean, by_chains)
    print(f"its mean by chains is {gap:.2f} grey levels from that by {name}")

# %%
# Draws are drawn anew by their weights, and compared with the missing pixels.

index = torch.multinomial(weights.T, 2000, replacement=True).T
draws = {"flow": x, "energy": x.take_along_dim(index[..., None], 0)}
missing = truth[:, 32:]
print(f"{'':8}{'RMSE':>6}{'in 50 %':>9}{'in 90 %':>9}")
for name, value in draws.items():
    lower = value[..., 32:]
    print(
        f"{name:8}{unit * pg.metrics.rmse(lower.mean(0), missing):6.2f}"
        f"{pg.metrics.coverage(lower, missing, 0.5):9.2f}"
        f"{pg.metrics.coverage(lower, missing, 0.9):9.2f}"
    )
before, after = (
    unit**2 * (value.mean(0) - truth)[:, 32:].square().mean(-1) for value in draws.values()
)
change = before - after
print(f"squared error, flow minus energy: {change.mean():.1f} +- ", end="")
print(f"{change.std() / len(change) ** 0.5:.1f} squared grey levels")

# %%
# The weights also say how much more density the energy's posterior has at the true digit:
# :math:`f` there, less the log of the mean of :math:`e^f` over the flow's posterior.

more = network(truth) - (tilts.logsumexp(0) - torch.tensor(len(tilts)).log())
print(f"log density of the true digit, energy minus flow: {more.mean():.2f} +- ", end="")
print(f"{more.std() / len(more) ** 0.5:.2f} nats per digit")

# %%
# So the energy is the better density of whole digits and, by nearly two standard errors, of true
# ones given their upper half. Its intervals are as well calibrated. But on these six its posterior
# mean errs more than the flow's: a better density makes a better mean on average over many digits,
# and six are few. It costs a pass of the network in each step of a chain, or weights alone where
# they are as even as here.

seen = torch.full_like(truth, torch.nan)
seen[:, :32] = y
columns = {"truth": grey(truth), "measured": grey(seen)}
columns |= {f"{name}, mean": grey(value.mean(0)) for name, value in draws.items()}
columns |= {f"{name}, 2 sd": 2 * unit * value.std(0) for name, value in draws.items()}
columns |= {f"{name}, draw": grey(value[-1]) for name, value in draws.items()}
pg.plots.images(columns, source.shape, high=17.0)
plt.show()
