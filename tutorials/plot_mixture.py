r"""
A Bayesian mixture three ways
=============================

An iris has petals of some length; which of three species it is nobody noted. In units of 0.45 cm,
about the spread within a species, the length :math:`x_i` of flower :math:`i` is

.. math:: x_i \mid z_i, \mu \sim \mathcal{N}(\mu_{z_i}, 1), \qquad
    z_i \sim \text{Categorical}(1 / K), \qquad \mu_k \sim \mathcal{N}(\bar\mu, s^2),

with a label :math:`z_i` for each flower and means :math:`\mu_1, \dots, \mu_K` for the species. This
is the example by which Blei, Kucukelbir & McAuliffe (2017, https://arxiv.org/abs/1601.00670)
introduce variational inference. Three ways lead to its posterior: coordinate ascent with updates
worked out by hand, a variational guide trained by gradients, and many Markov chains. The last two
take the model as it stands, and sum the labels out.
"""

import math
import time

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import init_to_value
from sklearn.datasets import load_iris

import probgen as pg

pyro.set_rng_seed(0)

iris = load_iris()
unit = 0.45  # cm
x = torch.tensor(iris.data[:, 2]).float() / unit
species = torch.tensor(iris.target)
K, centre, s = 3, 8.0, 5.0
first = torch.tensor([3.0, 8.0, 13.0])  # where all three begin


@config_enumerate
def model(x):
    mu = pyro.sample("mu", dist.Normal(torch.full((K,), centre), s).to_event(1))
    with pyro.plate("flowers", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(K) / K))
        mean = (mu * torch.nn.functional.one_hot(z, K)).sum(-1)
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


# %%
# Any permutation of the labels gives the same density, so the posterior has :math:`3! = 6` equal
# modes. To describe one of them is all that one can ask for: the others are copies.
#
# Coordinate ascent
# -----------------
# The family is :math:`q(\mu, z) = \prod_k \mathcal{N}(\mu_k; m_k, v_k) \prod_i r_{i z_i}`, in which
# means and labels are independent. Given one factor, the best other has a closed form:
#
# .. math:: r_{ik} \propto \exp\left(x_i m_k - (m_k^2 + v_k) / 2\right), \qquad
#     v_k = \frac{1}{1 / s^2 + \sum_i r_{ik}}, \qquad
#     m_k = v_k \left(\bar\mu / s^2 + \sum_i r_{ik} x_i\right).
#
# Each update raises the evidence lower bound (ELBO).


def responsibilities(m, v):
    return (x[:, None] * m - (m**2 + v) / 2).softmax(-1)


def bound(m, v, r):
    prior = -(math.log(2 * math.pi * s**2) + ((m - centre) ** 2 + v) / s**2) / 2
    entropy = (2 * math.pi * math.e * v).log() / 2
    fit = -(math.log(2 * math.pi) + (x[:, None] - m) ** 2 + v) / 2
    labels = torch.special.xlogy(r, r * K)
    return float((prior + entropy).sum() + (r * fit - labels).sum())


m, v, ascent = first, torch.ones(K), []
start = time.process_time()
for _ in range(40):
    r = responsibilities(m, v)
    v = 1 / (1 / s**2 + r.sum(0))
    m = v * (centre / s**2 + (r * x[:, None]).sum(0))
    ascent.append(bound(m, v, responsibilities(m, v)))
r = responsibilities(m, v)
seconds = {"coordinate ascent": time.process_time() - start}

# %%
# A guide trained by gradients
# ----------------------------
# :class:`~probgen.inference.MeanField` covers the continuous sites of any model; the labels are
# left to Pyro's ``TraceEnum_ELBO``, which sums them out. So its bound is the tighter one: no label
# is taken to be independent of the means. :class:`~probgen.inference.FullCovariance` lets the means
# depend on each other as well.


def train(guide, steps=400):
    elbo = TraceEnum_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    optim = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.01 ** (1 / steps)})
    svi = SVI(model, guide, optim, elbo)
    losses = [svi.step(x) for _ in range(steps)]
    return losses, -sum(svi.evaluate_loss(x) for _ in range(100)) / 100


begin = init_to_value(values={"mu": first})
guides = {
    "mean field": pg.inference.MeanField(model, init_loc_fn=begin),
    "full covariance": pg.inference.FullCovariance(model, init_loc_fn=begin),
}
losses, bounds = {}, {"coordinate ascent": ascent[-1]}
for name, guide in guides.items():
    start = time.process_time()
    losses[name], bounds[name] = train(guide)
    seconds[name] = time.process_time() - start

# %%
# Markov chains
# -------------
# :func:`probgen.mcmc.run` sums the labels out too, and runs all chains at once. It is exact but for
# the error of a finite number of draws, and so the judge of the other two. Chains do not cross from
# one copy to another, so they are given the means in rising order, which leaves one copy.


def in_order(x):
    support = dist.constraints.ordered_vector
    mu = pyro.sample("ordered", dist.ImproperUniform(support, (), (K,)))
    poutine.condition(model, {"mu": mu})(x)


start = time.process_time()
chains = pg.mcmc.run(in_order, x, seed=0, progress=False)
seconds["Markov chains"] = time.process_time() - start
print(chains.summary())
ordered = chains.samples["ordered"]

# %%
# What they agree on, and what not
# --------------------------------
# The means agree. Not so the widths: the petals of two species overlap, so that where one mean lies
# depends on which flowers are the other's. Labels that are independent of the means cannot know
# it, and coordinate ascent is too sure of both. Without labels in the family the widths are nearly
# right, and right once the means may depend on each other. The bounds say the same, and so does
# k-hat, the shape of the importance weights of guide against model: it is small where the weights
# can be relied upon.

draws = {name: guide.draws(4000, x).samples["mu"][0] for name, guide in guides.items()}
draws["Markov chains"] = ordered.flatten(0, 1)
means = {"coordinate ascent": m} | {name: value.mean(0) for name, value in draws.items()}
widths = {"coordinate ascent": v.sqrt()} | {name: value.std(0) for name, value in draws.items()}
shapes = {name: float(guide.khat(x, samples=4000)) for name, guide in guides.items()}
print(f"{'':18}{'means':>21}{'standard deviations':>24}{'bound':>10}{'k-hat':>8}{'seconds':>9}")
for name, mean in means.items():
    numbers = "".join(f"{value:7.2f}" for value in mean.tolist()) + "   "
    numbers += "".join(f"{value:7.3f}" for value in widths[name].tolist())
    numbers += f"{bounds[name]:10.2f}" if name in bounds else f"{'':10}"
    numbers += f"{shapes[name]:8.2f}" if name in shapes else f"{'':8}"
    print(f"{name:18}{numbers}{seconds[name]:9.2f}")

# %%
# Who is who
# ----------
# Given the means, the label of a flower has a known law; its mean over draws is the posterior. The
# species were known all along: how often is the likeliest label right?


def labels(mu):
    return (-((x[:, None] - mu[:, None]) ** 2) / 2).softmax(-1).mean(0)


chance = labels(draws["Markov chains"][::10])
for name, value in {"coordinate ascent": r, "Markov chains": chance}.items():
    right = float((value.argmax(-1) == species).float().mean())
    print(f"{name}: {100 * right:.1f} % of flowers right, rows sum to {float(value[0].sum()):.6f}")

# %%
# On the left the flowers and the fitted densities (one spread for all is a rough model of setosa),
# in the middle the posterior of the two means whose species overlap, on the right the labels.

fig, (left, middle, right) = plt.subplots(1, 3, figsize=(10.5, 3.4), layout="constrained")
colours = ["tab:blue", "tab:orange", "tab:green"]
grid = torch.linspace(0, 17, 400)
parts = dist.Normal(means["Markov chains"][:, None], 1.0).log_prob(grid).exp() / K
left.hist([x[species == k] * unit for k in range(K)], 30, stacked=True, density=True,
          color=colours, alpha=0.5, label=iris.target_names)  # fmt: skip
for part, colour in zip(parts, colours):
    left.plot(grid * unit, part / unit, color=colour)
left.plot(grid * unit, parts.sum(0) / unit, "k--", lw=1, label="mixture")
left.set(xlabel="petal length / cm", ylabel="density")
left.legend(fontsize=8)

for name, style in {"Markov chains": "k-", "full covariance": "C2--", "mean field": "C3:"}.items():
    value = draws[name].double() * unit
    pair, mean = torch.cov(value[:, 1:].T), value[:, 1:].mean(0)
    angle = torch.linspace(0, 2 * math.pi, 100).double()
    ring = torch.stack([angle.cos(), angle.sin()], 1) * 2
    ring = mean + ring @ torch.linalg.cholesky(pair).T
    middle.plot(ring[:, 0], ring[:, 1], style, label=name)
angle, reach = angle.float(), 2 * v.sqrt()
ring = [(m[1] + reach[1] * angle.cos()) * unit, (m[2] + reach[2] * angle.sin()) * unit]
middle.plot(*ring, "C0-.", label="coordinate ascent")
cloud = draws["Markov chains"][::40] * unit
middle.plot(cloud[:, 1], cloud[:, 2], "k.", ms=2, alpha=0.3, zorder=0)
middle.set(xlabel=r"$\mu_2$ / cm", ylabel=r"$\mu_3$ / cm", title="two standard deviations")
middle.title.set_fontsize(10)
middle.legend(fontsize=7, loc="lower right")

order = x.argsort()
for k, colour in enumerate(colours):
    right.plot(x[order] * unit, chance[order, k], color=colour)
    right.plot(x[order] * unit, r[order, k], "--", color=colour)
    right.plot(x[species == k] * unit, torch.full((50,), -0.05 - 0.03 * k), "|", color=colour)
right.plot([], [], "k-", label="Markov chains")
right.plot([], [], "k--", label="coordinate ascent")
right.set(xlabel="petal length / cm", ylabel="probability of label")
right.legend(fontsize=8, loc="center left")

# %%
# Coordinate ascent needs a derivation for every model, and its bound rises at each step. Gradients
# need none, and get to a tighter bound with a little noise.

fig, ax = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
for (name, values), colour in zip(losses.items(), ("C3", "C2")):
    ax.plot(range(1, len(values) + 1), [-value for value in values], colour, lw=0.8, label=name)
ax.plot(range(1, len(ascent) + 1), ascent, "C0-", label="coordinate ascent")
ax.axhline(ascent[-1], color="C0", lw=0.8, ls="--")
ax.set(xlabel="step", ylabel="evidence lower bound / nat", xscale="log")
ax.set_ylim(ascent[-1] - 12, max(bounds.values()) + 4)
ax.legend()
