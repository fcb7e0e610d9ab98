r"""
Yesterday's posterior is today's prior
======================================

Eight schools coached pupils for a test. School :math:`j` reports the mean gain :math:`y_j` in
points, with a standard error :math:`\sigma_j`. The data are those of Rubin (1981), the model is

.. math:: y_j \sim \mathcal{N}(\theta_j, \sigma_j^2), \qquad
    \theta_j \sim \mathcal{N}(\mu, \tau^2), \qquad
    \mu \sim \mathcal{N}(0, 5^2), \qquad \tau \sim \mathrm{HalfCauchy}(5).

Suppose that its posterior is known by draws only, and that a ninth school reports. Draws have no
density, but a flow learned from them has one: it is the prior of :math:`(\mu, \tau)` for the ninth
school. The effects :math:`\theta_j` integrate out, :math:`y_j \sim \mathcal{N}(\mu, \tau^2 +
\sigma_j^2)`, so that a sum over a grid gives the exact answer.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam

import probgen as pg

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next version
    import arviz

pyro.set_rng_seed(0)

# %%
# Yesterday
# ---------
# ArviZ ships 4 chains of 500 published draws. The flow learns them as :math:`(\mu, \log \tau)`,
# which is unbounded; all densities below are of these two. The exact one is found on a grid.

published = arviz.load_arviz_data("non_centered_eight").posterior[["mu", "tau"]]
mu_tau = torch.tensor(published.to_dataarray().values, dtype=torch.float32).flatten(1).T
yesterday = torch.stack([mu_tau[:, 0], mu_tau[:, 1].log()], -1)

axes = torch.linspace(-25, 35, 401).double(), torch.linspace(-9, 5.5, 401).double()
grid = torch.cartesian_prod(*axes)
mu, tau = grid[:, 0], grid[:, 1].exp()
y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def update(log_p, y, sigma):
    """The log probability of each cell, given one more report."""
    log_p = log_p + dist.Normal(mu, (tau.square() + sigma**2).sqrt()).log_prob(y)
    return log_p - log_p.logsumexp(0)


exact = dist.Normal(0, 5).log_prob(mu) + dist.HalfCauchy(5).log_prob(tau) + tau.log()
for report in zip(y, sigma):
    exact = update(exact, *report)

for name, x, value in zip(["mu", "tau"], mu_tau.T, [mu, tau]):
    se, ess = (float(f(published)[name]) for f in (arviz.mcse, arviz.ess))
    print(f"mean {name:4} exact {(exact.exp() * value).sum():.2f}, ", end="")
    print(f"published draws {x.mean():.2f} +- {se:.2f}, as of {ess:.0f} independent draws")

# %%
# Learn the prior
# ---------------
# A small flow, frozen once it is trained. It is learned a second time from 40,000 independent
# draws of the exact posterior, to tell the error of the flow from that of the published draws.
# The alternatives are normal priors with the moments of the published draws, of
# :math:`(\mu, \log \tau)` or of :math:`(\mu, \tau)`, cut at :math:`\tau = 0`.


def learn(draws):
    flow = pg.models.RealNVP(2, transforms=4, hidden_features=(32,))
    options = {"steps": 600, "lr": 3e-3, "schedule": "cosine", "ema": 0.99, "seed": 0}
    pg.fit(flow, draws, validation=0.2, progress=False, **options)
    return flow.freeze()


def moments(x):
    return dist.MultivariateNormal(x.mean(0), torch.cov(x.T))


prior = learn(yesterday)
cells = dist.Categorical(logits=exact).sample((40_000,))
width = torch.stack([axis[1] - axis[0] for axis in axes])
ideal = learn((grid[cells] + width * (torch.rand(40_000, 2) - 0.5)).float())

cut = moments(mu_tau.double()).log_prob(torch.stack([mu, tau], -1)) + tau.log()
priors = {
    "flow": prior().log_prob(grid.float()).double().log_softmax(0),
    "flow of exact draws": ideal().log_prob(grid.float()).double().log_softmax(0),
    "normal in mu, log tau": moments(yesterday.double()).log_prob(grid).log_softmax(0),
    "normal in mu, tau": cut.log_softmax(0),
}

# %%
# A ninth school
# --------------
# Its report is invented: a gain of 30 points with a standard error of 6, above all the others. The
# model is plain Pyro but for its first site. That would move to the base of the flow by itself;
# here the posterior lies at the edge of the published draws, where splines bend sharply, so that
# chains do better among the values, with ``base=False`` and a diagonal metric. ``LocScaleReparam``
# takes out the funnel of :math:`\theta_9` and :math:`\tau`.

y9, sigma9 = torch.tensor(30.0), 6.0


def model(y9):
    mu, log_tau = pg.sample("hyper", prior).unbind(-1)
    theta = pyro.sample("theta", dist.Normal(mu, log_tau.exp()))
    pyro.sample("y9", dist.Normal(theta, sigma9), obs=y9)


model = poutine.reparam(model, {"theta": LocScaleReparam(0.0)})
options = {"metric": "diagonal", "base": False, "progress": False}
result = pg.mcmc.run(model, y9, draws=1000, seed=0, **options)
draws = result.samples["hyper"]  # (chain, draw, 2)
sampled = {"mu": draws[..., 0].numpy(), "tau": draws[..., 1].exp().numpy()}
for name, x in sampled.items():
    print(f"{name:4} split R-hat {arviz.rhat(x):.3f}, effective draws {arviz.ess(x):.0f}")

# %%
# Compare
# -------
# The chains come with Monte Carlo standard errors. They sample the posterior of the column "flow",
# found by the grid: the difference between that column and the exact one is the error of the
# prior.

truth = update(exact, y9, sigma9)
today = {name: update(log_q, y9, sigma9) for name, log_q in priors.items()}
levels = [0.05, 0.5, 0.95]
rows = ["mean", "sd", "5 %", "50 %", "95 %"]
print(f"{'':10}{'exact':>8}{'flow':>8}{'normal':>8}{'flow, chains':>18}")
for i, (name, x) in enumerate(sampled.items()):
    columns, value = [], axes[1].exp() if i else axes[0]
    for log_p in (truth, today["flow"], today["normal in mu, log tau"]):
        p = log_p.exp().reshape(401, 401).sum(1 - i)
        mean = (p * value).sum()
        sd = (p * (value - mean).square()).sum().sqrt()
        columns.append([mean, sd, *np.interp(levels, p.cumsum(0) - p / 2, value)])
    columns.append([x.mean(), x.std(), *np.quantile(x, levels)])
    errors = [arviz.mcse(x), arviz.mcse(x, method="sd")]
    errors += [arviz.mcse(x, method="quantile", prob=level) for level in levels]
    for row, *cells, se in zip(rows, *columns, errors):
        print(f"{name:4}{row:6}" + "".join(f"{cell:8.2f}" for cell in cells) + f" +- {se:.2f}")

# %%
# The last comparison is the divergence :math:`\mathrm{KL}(p \,\|\, q) = \sum p \log (p / q)` of
# :math:`q` from the exact :math:`p`. It is smaller for the flow of exact draws: what limits the
# prior is the number of published draws. They are few where the ninth school sends the posterior,
# at large :math:`\tau`, and the flow has to guess the tail beyond them. Reweighting the draws by
# the likelihood needs no flow, but rests on these few.


def kl(p, q):
    return float((p.exp() * (p - q)).sum())


print(f"{'KL / nats':24}{'prior':>8}{'posterior':>12}")
for name, log_q in priors.items():
    print(f"{name:24}{kl(exact, log_q):8.3f}{kl(truth, today[name]):12.3f}")

high = tau > 10
print(f"tau > 10: {(mu_tau[:, 1] > 10).sum()} of {len(mu_tau)} published draws", end="")
print(f", probability {exact.exp()[high].sum():.3f} before and {truth.exp()[high].sum():.3f} after")
spread = (mu_tau[:, 1].square() + sigma9**2).sqrt()
w = dist.Normal(mu_tau[:, 0], spread).log_prob(y9).softmax(0)
print(f"reweighted, they are worth at most {1 / w.square().sum():.0f} draws")

# %%
# Contours hold 50 % and 90 % of a distribution. To the right, the divergence for other reports of
# the ninth school.

fig, axs = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
axs[0].scatter(*mu_tau.T, s=2, color="0.6", label="published draws")
shown = [x[:, ::50].ravel() for x in sampled.values()]
axs[1].scatter(*shown, s=2, color="0.6", label="every 50th draw of the chains")
for ax, p, others in zip(axs, (exact, truth), (priors, today)):
    densities = {"exact": p, **others}
    for name, color in {"exact": "black", "flow": "C0", "normal in mu, log tau": "C2"}.items():
        q = densities[name].exp()
        ordered = q.sort(descending=True).values
        heights = [ordered[ordered.cumsum(0) > mass][0] for mass in (0.9, 0.5)]
        ax.contour(axes[0], axes[1].exp(), q.reshape(401, 401).T, heights, colors=color)
        ax.plot([], [], color=color, label=name)
    ax.set(xlabel=r"$\mu$ / points", ylabel=r"$\tau$ / points", yscale="log")
    ax.set(xlim=(-12, 22), ylim=(0.02, 100))
    ax.legend(fontsize=8, loc="lower left")
axs[0].set_title("prior, of eight schools")
axs[1].set_title(f"posterior, $y_9$ = {y9:.0f} points")

reports = torch.linspace(-20, 40, 31)
for color, (name, log_q) in zip(["C0", "C1", "C2", "C3"], priors.items()):
    values = [kl(update(exact, y, sigma9), update(log_q, y, sigma9)) for y in reports]
    axs[2].semilogy(reports, values, color=color, label=name)
axs[2].set(title="error of the posterior", xlabel="$y_9$ / points", ylabel="KL / nats")
axs[2].legend(fontsize=8)
