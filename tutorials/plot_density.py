r"""
Estimate a density and choose a model
=====================================

A flow learns a density :math:`p(x)` from data. This tutorial fits three flows and a normal
distribution to measurements of cell nuclei, and compares them by their log-likelihood on held-out
data,

.. math:: \frac{1}{n} \sum_{i=1}^n \log p(x_i),

a mean with a standard error. Higher is better. All models are scored on the same data in the
same units, so the differences between them do not depend on the units.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_breast_cancer

import probgen as pg

pyro.set_rng_seed(0)

# %%
# Data
# ----
# The Wisconsin breast cancer data hold measurements of the cell nuclei in 569 images. Five
# features are used here, in the units of the source. One datum in four is held out.

names = ["radius", "area", "smoothness", "compactness", "symmetry"]
source = load_breast_cancer(as_frame=True).data
data = torch.tensor(source[[f"mean {name}" for name in names]].to_numpy(), dtype=torch.float32)
data = data[torch.randperm(len(data))]
train, test = data[:427], data[427:]

# %%
# Four models
# -----------
# A normal distribution with the mean and the full covariance matrix of the training data is
# the baseline. The flows need no scaling of the data: each ends in a standardisation, which
# :func:`probgen.fit` sets before its first step.
#
# Data are few, so networks are small. A fifth of the training data is split off for
# validation: training stops when the loss on it has stopped falling, and the best parameters
# are kept. They are those of a moving average over the steps, which is less noisy than the last.

flows = {
    "RealNVP": pg.models.RealNVP(len(names), transforms=4, hidden_features=(32,)),
    "MAF": pg.models.MAF(len(names), transforms=3, hidden_features=(32,)),
    "NSF": pg.models.NSF(len(names), transforms=3, hidden_features=(32,), bins=6),
}
histories = {
    name: pg.fit(
        flow,
        train,
        validation=0.2,
        steps=1500,
        batch_size=128,
        lr=2e-3,
        clip=5.0,
        ema=0.99,
        schedule="cosine",
        seed=0,
        progress=False,
    )
    for name, flow in flows.items()
}

# %%
# Training curves
# ---------------
# The dotted line marks the step whose parameters were kept. The distance between the two
# curves to the right of it is overfitting.

fig, axs = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
for ax, (name, history) in zip(axs, histories.items()):
    pg.plots.training(history, ax)
    ax.set_title(name)
    ax.label_outer()

# %%
# Held-out log-likelihood
# -----------------------
# The models are scored on the same data, so most of the spread between data is common to all of
# them. The difference to the normal distribution, datum by datum, removes it: its standard error
# is the one to judge a model by.

normal = dist.MultivariateNormal(train.mean(0), torch.cov(train.T))
with torch.no_grad():
    scores = {"normal": normal.log_prob(test)}
    scores.update({name: flow().log_prob(test) for name, flow in flows.items()})


def mean_and_error(values):
    return float(values.mean()), float(values.std()) / len(values) ** 0.5


print(f"{'':10}{'nats per datum':>18}{'minus normal':>20}")
for name, score in scores.items():
    value, se = mean_and_error(score)
    gain, gain_se = mean_and_error(score - scores["normal"])
    print(f"{name:10}{value:10.2f} +- {se:4.2f}{gain:12.2f} +- {gain_se:4.2f}")

# %%
# Draws
# -----
# A log-likelihood says which model is better, not what is wrong with the other. Area grows with
# the square of the radius, which no normal distribution can follow. The axes span all data; draws
# beyond them are not shown.

with torch.no_grad():
    draws = {"normal": normal.sample((len(test),))}
    draws.update({name: flow().sample((len(test),)) for name, flow in flows.items()})

rows = [("radius", "area"), ("compactness", "symmetry")]
low, high = data.min(0).values, data.max(0).values
limits = torch.stack([low, high], -1) + 0.2 * (high - low)[:, None] * torch.tensor([-1.0, 1.0])
fig, axs = plt.subplots(2, 4, figsize=(11, 5.5), sharex="row", sharey="row", layout="constrained")
for row, (first, second) in zip(axs, rows):
    i, j = names.index(first), names.index(second)
    for ax, (name, x) in zip(row, draws.items()):
        ax.scatter(test[:, i], test[:, j], s=7, color="black", label="held-out data")
        ax.scatter(x[:, i], x[:, j], s=7, color="tab:orange", alpha=0.6, label=f"draws, {name}")
        ax.set(xlabel=first, xlim=limits[i], ylim=limits[j])
        ax.legend(fontsize=7, loc="upper left")
    row[0].set_ylabel(second)
