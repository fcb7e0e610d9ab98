r"""
A learned prior in a Pyro model
===============================

A flow :math:`p(x)` is learned from measurements of cell nuclei and frozen. New nuclei are then
measured badly: only the area and one sum of features are seen, both with noise,

.. math:: y = A x + \sigma \epsilon, \qquad \epsilon \sim \mathcal{N}(0, I), \qquad
    p(x \mid y) \propto p(x) \, \mathcal{N}(y; A x, \sigma^2 I),

and Pyro infers all four features. The baseline is a normal prior with the mean and the covariance
of the same data, whose posterior is known exactly.
"""

import time
from functools import partial

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_value
from pyro.infer.reparam import TransformReparam
from sklearn.datasets import load_breast_cancer
from torch.optim import AdamW

import probgen as pg

pyro.set_rng_seed(0)

# %%
# Data
# ----
# Four features of the nuclei of 569 images, in standard deviations from the mean. After shuffling
# 100 are held out, and the nuclei of the first 25 of them are inferred.

names = ["radius", "area", "compactness", "fractal dimension"]
source = load_breast_cancer(as_frame=True).data
data = torch.tensor(source[[f"mean {name}" for name in names]].to_numpy(), dtype=torch.float32)
data = data[torch.randperm(len(data))]
train, test = data[:-100], data[-100:]
mean, sd = train.mean(0), train.std(0)
train, test = (train - mean) / sd, (test - mean) / sd

# %%
# Learn the prior
# ---------------
# Data are few, so weights decay: it keeps the flow smooth, and its posterior easy to sample.
# `freeze` turns the gradients of the parameters off. A prior that is not frozen would be trained
# again by SVI.

prior = pg.models.NSF(len(names), transforms=2, hidden_features=(32,), bins=6)
history = pg.fit(
    prior,
    train,
    validation=0.2,
    steps=1500,
    batch_size=128,
    optimizer=partial(AdamW, weight_decay=1.0),
    lr=2e-3,
    schedule="cosine",
    clip=5.0,
    ema=0.99,
    seed=0,
    progress=False,
)
prior.freeze()

normal = dist.MultivariateNormal(train.mean(0), torch.cov(train.T))
with torch.no_grad():
    gain = prior().log_prob(test) - normal.log_prob(test)
se = gain.std() / len(gain) ** 0.5
print(f"held-out log-likelihood, flow minus normal: {gain.mean():.2f} +- {se:.2f} nats per datum")

# %%
# The model
# ---------
# The area and the sum of compactness and fractal dimension are measured, with noise of 0.3
# standard deviations of a feature. ``pg.sample`` states
# the learned prior as a sample site; everything else is plain Pyro.

mixing = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
noise = 0.3
truth = test[:25]
y = truth @ mixing.T + noise * torch.randn(len(truth), 2)


def model(y):
    with pyro.plate("nuclei", len(y)):
        x = pg.sample("x", prior)
        pyro.sample("y", dist.Normal(x @ mixing.T, noise).to_event(1), obs=y)


# %%
# Infer
# -----
# Pyro's ``TransformReparam`` moves the site `x` to the base of the flow, where the prior is a
# standard normal and no log-determinant is needed. The site is then called `x_base`, and its
# draws are pushed through the flow.
#
# The chain starts from prior draws that fit the measurements: a warm-up that starts far away
# spends its steps on getting there, and learns the wrong step size.

candidates = torch.randn(2000, len(y), len(names))
error = (y - prior().push(candidates) @ mixing.T) / noise
best = dist.Categorical(logits=-error.square().sum(-1).T / 2).sample()
first = candidates[best, torch.arange(len(y))]

start = time.perf_counter()
base_model = poutine.reparam(model, {"x": TransformReparam()})
kernel = NUTS(base_model, max_tree_depth=5, init_strategy=init_to_value(values={"x_base": first}))
mcmc = MCMC(kernel, num_samples=150, warmup_steps=80, disable_progbar=True)
mcmc.run(y)
draws = prior().push(mcmc.get_samples()["x_base"])
r_hat = mcmc.diagnostics()["x_base"]["r_hat"]
print(f"{len(draws)} draws of {len(y)} nuclei in {time.perf_counter() - start:.0f} s")
print(f"split R-hat: median {r_hat.median():.2f}, largest {r_hat.max():.2f}")

# %%
# The exact posterior under the normal prior, by the formula for a linear measurement.

covariance = normal.covariance_matrix
innovation = mixing @ covariance @ mixing.T + noise**2 * torch.eye(2)
kalman = covariance @ mixing.T @ torch.linalg.inv(innovation)
posterior = dist.MultivariateNormal(
    normal.loc + (y - normal.loc @ mixing.T) @ kalman.T, covariance - kalman @ mixing @ covariance
)
baseline = posterior.sample((2000,))

# %%
# Compare
# -------
# A central interval of probability 50 % should hold half of the true values, one of 90 % nine
# tenths of them. The four values of a nucleus are not independent, so the standard error of a
# coverage is that of 25 trials at worst: 0.10 at 50 %, 0.06 at 90 %.

results = {"normal prior, exact": baseline, "flow prior, NUTS": draws}
print(f"{'':22}{'RMSE / sd':>10}{'in 50 %':>10}{'in 90 %':>10}{'width of 90 % / sd':>20}")
for name, x in results.items():
    low, high = x.quantile(torch.tensor([0.05, 0.95]), dim=0)
    print(
        f"{name:22}{pg.metrics.rmse(x.mean(0), truth):10.3f}"
        f"{pg.metrics.coverage(x, truth, 0.5):10.3f}{pg.metrics.coverage(x, truth, 0.9):10.3f}"
        f"{(high - low).mean():20.2f}"
    )

# %%
# One nucleus per column: draws of two features and their true values. Area grows with the square
# of the radius, which the flow has learned and the normal prior cannot say.

shown = y[:, 0].argsort()[torch.tensor([2, 12, 22])]
fig, axs = plt.subplots(2, 3, figsize=(10, 6), sharex=True, sharey=True, layout="constrained")
for row, (name, x) in zip(axs, results.items()):
    for ax, k in zip(row, shown.tolist()):
        ax.scatter(train[:, 0], train[:, 1], s=3, color="0.8", label="training data")
        ax.scatter(x[:150, k, 0], x[:150, k, 1], s=5, alpha=0.6, label="draws")
        ax.plot(truth[k, 0], truth[k, 1], "k*", ms=10, label="truth")
        ax.set(title=name, xlabel=f"{names[0]} / sd", ylabel=f"{names[1]} / sd")
        ax.label_outer()
axs[0, 0].legend()
