r"""
Evidence by annealing
=====================

Ten measurements of 442 patients with diabetes predict how the disease goes on. How many of
them are worth a weight? Model :math:`k` takes the first :math:`k` columns :math:`X_k` of a list,

.. math:: y \mid w \sim \mathcal{N}(X_k w, \sigma^2 I), \qquad w \sim \mathcal{N}(0, s^2 I),

and models are compared by their evidence :math:`Z_k = \int p(y \mid w) \, p(w) \, dw`. Here it is
known, as :math:`y` is normal with covariance :math:`\sigma^2 I + s^2 X_k X_k^\top`, so that the
estimates by annealing can be put to the test. For any other model they take the same lines.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_diabetes

import probgen as pg

pyro.set_rng_seed(0)

# %%
# Data and model
# --------------
# All in standard deviations. The columns come in the order in which a greedy search adds them:
# each time the one that leaves the least squared residual. The search sees the same data, so the
# evidence is that of a model given the list. Noise and width of the prior are taken as known.

source = load_diabetes(as_frame=True)
columns = torch.tensor(source.data.to_numpy())
columns = (columns - columns.mean(0)) / columns.std(0)
target = torch.tensor(source.target.to_numpy())
target = (target - target.mean()) / target.std()


def residual(chosen):
    x = columns[:, chosen]
    return float((target - x @ torch.linalg.lstsq(x, target[:, None]).solution[:, 0]).norm())


order = []
while len(order) < columns.shape[1]:
    rest = [j for j in range(columns.shape[1]) if j not in order]
    order.append(min(rest, key=lambda j: residual([*order, j])))
names = [source.data.columns[j] for j in order]
print("order: " + ", ".join(names))

noise, width = 0.7, 0.3
x, y = columns[:, order].float(), target.float()


def model(x, y):
    prior = dist.Normal(torch.zeros(x.shape[1]), width).to_event(1)
    w = pyro.sample("w", prior)
    with pyro.plate("patients", len(y)):
        pyro.sample("y", dist.Normal(x @ w, noise), obs=y)


# %%
# Three estimates
# ---------------
# ``potential`` turns the model into a log density, and its part ``log_prior`` is the base of the
# path. Annealed importance sampling takes one step at each of many temperatures :math:`\beta`. It
# needs a kernel for each: the steps shrink with the largest precision,
# :math:`s^{-2} + \beta \lambda \sigma^{-2}`, with the largest eigenvalue :math:`\lambda` of
# :math:`X_k^\top X_k`. Sequential Monte Carlo finds the temperatures and adapts its kernel by
# itself. ``pg.posterior`` is the same from a prior and a log likelihood, without a Pyro model.


def annealed(x):
    log_density = pg.mcmc.potential(model, x, y)
    first = log_density.initial("prior", 400)
    largest = float(torch.linalg.matrix_norm(x, 2)) ** 2

    def kernel(beta):
        return pg.mcmc.HMC(1.2 * (width**-2 + beta * largest / noise**2) ** -0.5, steps=2)

    betas = torch.linspace(0, 1, 251) ** 3  # finer where the weights change fastest
    return (
        pg.mcmc.ais(log_density.log_prior, log_density, first, kernel, betas),
        pg.mcmc.smc(log_density.log_prior, log_density, first, pg.mcmc.HMC(0.1, steps=5)),
    )


def without_pyro(x):
    prior = dist.Normal(torch.zeros(x.shape[1]), width).to_event(1)
    log_likelihood = lambda w: dist.Normal(x @ w, noise).log_prob(y).sum()
    return pg.posterior(prior, log_likelihood, draws=400, seed=0, progress=False)


sizes = list(range(1, len(order) + 1))
rows = []
for k in sizes:
    wide = x[:, :k].double()
    covariance = noise**2 * torch.eye(len(y)) + width**2 * wide @ wide.T
    exact = dist.MultivariateNormal(torch.zeros(len(y)).double(), covariance).log_prob(y.double())
    (ais, smc), post = annealed(x[:, :k]), without_pyro(x[:, :k])
    estimates = [ais.log_z, ais.se, smc.log_z, smc.se, post.log_evidence, post.se]
    rows.append([float(exact), *estimates])
rows = torch.tensor(rows, dtype=torch.double)

# %%
# The log evidence, in nats. Errors should be about as large as standard errors. Those of SMC come
# from 8 islands of particles only, and so are rough themselves.

print(
    "weights" + "".join(f"{v:>10}" for v in ("exact", "AIS", "+-", "SMC", "+-", "posterior", "+-"))
)
for k, row in zip(sizes, rows.tolist()):
    print(f"{k:7}" + "".join(f"{v:10.2f}" for v in row))
ratio = (rows[:, 1::2] - rows[:, :1]) / rows[:, 2::2]
print("root mean square of error / standard error: ", end="")
print(", ".join(f"{v:.2f}" for v in ratio.square().mean(0).sqrt().tolist()))
chances = rows[:, 0].softmax(0)
best = int(chances.argmax())
print(f"most probable: {', '.join(names[: best + 1])}, with probability {chances[best]:.2f}")

# %%
# A weight that does not earn its keep costs evidence: it spreads the prior over data that did not
# come. The squared residual, which only falls, would never say so.

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(sizes, rows[:, 0], "k-", label="exact")
for j, (name, mark) in enumerate({"AIS": "o", "SMC": "s", "pg.posterior": "^"}.items()):
    value, se = rows[:, 1 + 2 * j], rows[:, 2 + 2 * j]
    shift = torch.tensor(sizes) + 0.2 * (j - 1)
    left.errorbar(shift, value, se, fmt=mark, ms=4, label=name)
    right.errorbar(shift, value - rows[:, 0], se, fmt=mark, ms=4, label=name)
right.axhline(0.0, color="k", lw=1)
left.set(xlabel="weights", ylabel="log evidence / nat", xticks=sizes)
right.set(xlabel="weights", ylabel="estimate minus exact / nat", xticks=sizes)
left.legend()
