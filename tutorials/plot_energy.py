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
import warnings
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
pg.fit(flow, train, validation=held, steps=1200, lr=2e-3, clip=5.0, **decay, **common)
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
pg.fit(energy, train, objective=contrast, validation=held, steps=1200, **decay, **common)
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
# The lower half of held-out digits is missing, and the upper has noise of one grey level. Either
# prior is stated by ``pg.sample``, and the rest is plain Pyro.

noise = 4 / source.levels
truth = test[:16]
y = truth[:, :32] + noise * torch.randn(len(truth), 32)


def model(prior, y):
    with pyro.plate("digits", len(y)):
        x = pg.sample("x", prior)
        pyro.sample("y", dist.Normal(x[..., :32], noise).to_event(1), obs=y)


# %%
# A frozen flow is moved to its base, where it is a standard normal and many chains mix well. The
# runs are short to save time. Their warning is silenced, since the table below shows R-hat.

warnings.simplefilter("ignore", pg.mcmc.ConvergenceWarning)
options = {"chains": 32, "seed": 0, "progress": False}
kernel = pg.mcmc.ChEES(max_steps=32)
start = time.perf_counter()
first = pg.mcmc.run(model, flow, y, kernel=kernel, warmup=70, draws=70, **options)
print(f"flow: {time.perf_counter() - start:.0f} s")

# %%
# An energy stays among pixels, where chains seldom change from one digit to another. But its
# posterior is that of the flow with weights :math:`e^{f(x)}`: so its chains start from draws of the
# flow's posterior, drawn anew by these weights, and each moves about there.

found = first.samples["x"].flatten(0, 1)
tilts = network(found)
weights = tilts.softmax(0)
sizes = 1 / weights.square().sum(0)
print(f"weights of {len(found)} draws: effective sizes {sizes.min():.0f} to {sizes.max():.0f}")
index = torch.multinomial(weights.T, options["chains"], replacement=True).T
begin = {"x": found[index, torch.arange(len(y))]}
kernel = pg.mcmc.HMC(0.1, 8)
start = time.perf_counter()
second = pg.mcmc.run(model, energy, y, kernel=kernel, init=begin, warmup=30, draws=30, **options)
print(f"energy: {time.perf_counter() - start:.0f} s")
draws = {"flow": first.samples["x"], "energy": second.samples["x"]}

# %%
# The weighted mean of the flow's draws is another estimate of the energy's posterior mean. It
# checks the chains, and has less noise than so few of them that stay near where they start, which
# R-hat shows.

missing = truth[:, 32:]
unit = source.levels / 4
print(f"{'':10}{'RMSE':>6}{'in 50 %':>9}{'in 90 %':>9}{'median R-hat':>14}{'largest':>9}")
for name, x in draws.items():
    lower = x[..., 32:].flatten(0, 1)
    rhat = pg.mcmc.rhat(x[..., 32:])
    print(
        f"{name:10}{unit * pg.metrics.rmse(lower.mean(0), missing):6.2f}"
        f"{pg.metrics.coverage(lower, missing, 0.5):9.2f}"
        f"{pg.metrics.coverage(lower, missing, 0.9):9.2f}{rhat.median():14.2f}{rhat.max():9.2f}"
    )
mean = (weights[..., None] * found[..., 32:]).sum(0)
print(f"{'weighted':10}{unit * pg.metrics.rmse(mean, missing):6.2f}")
before, after = ((m - missing).square().mean(-1) for m in (found.mean(0)[:, 32:], mean))
change = unit**2 * (before - after)
print(f"squared error, flow minus weighted: {change.mean():.1f} +- ", end="")
print(f"{change.std() / len(change) ** 0.5:.1f} squared grey levels")

# %%
# The weights also say how much more density the energy's posterior has at the true digit:
# :math:`f` there, less the log of the mean of :math:`e^f` over the flow's posterior.

more = network(truth) - (tilts.logsumexp(0) - torch.tensor(len(tilts)).log())
print(f"log density of the true digit, energy minus flow: {more.mean():.2f} +- ", end="")
print(f"{more.std() / len(more) ** 0.5:.2f} nats per digit")

# %%
# So the energy is the better density of whole digits and, as far as so few can say, of true ones
# given their upper half. Its intervals are as well calibrated. But its posterior mean errs no less
# than the flow's, within the standard error, and it costs chains that mix worse than those in the
# base of a flow.

seen = torch.full_like(truth, torch.nan)
seen[:, :32] = y
columns = {"truth": grey(truth), "measured": grey(seen)}
columns |= {f"{name}, mean": grey(x.flatten(0, 1).mean(0)) for name, x in draws.items()}
columns |= {f"{name}, 2 sd": 2 * unit * x.flatten(0, 1).std(0) for name, x in draws.items()}
columns |= {f"{name}, draw": grey(x[0, -1]) for name, x in draws.items()}
shown = {name: column[:8] for name, column in columns.items()}
pg.plots.images(shown, source.shape, high=17.0)
plt.show()
