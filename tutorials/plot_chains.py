r"""
From Pyro NUTS to a thousand chains
===================================

Eight schools coached their pupils for a test (Rubin, 1981). School :math:`j` measured an effect
:math:`y_j` with a standard error :math:`\sigma_j`. The effects :math:`\theta_j` come from a normal
law whose mean :math:`\mu` and standard deviation :math:`\tau` are unknown too,

.. math:: y_j \sim \mathcal{N}(\theta_j, \sigma_j^2), \qquad \theta_j = \mu + \tau z_j, \qquad
    z_j \sim \mathcal{N}(0, 1), \qquad \mu \sim \mathcal{N}(0, 5^2), \qquad
    \tau \sim \text{HalfCauchy}(5).

The model is the same for Pyro's NUTS, which runs one chain, and for :func:`probgen.mcmc.run`,
which runs many at once. The exact posterior is known by quadrature.
"""

import time

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS

import probgen as pg

pyro.set_rng_seed(0)

y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def model(y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(sigma)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


# %%
# The exact answer
# ----------------
# Given :math:`\tau`, everything is normal, so :math:`\mu` and the effects integrate out. What is
# left is one integral over :math:`\tau`, on a grid that is even in its arc tangent: that turns the
# half Cauchy prior into a uniform one.

unit = (torch.arange(4000, dtype=torch.double) + 0.5) / 4000
grid = 5 * torch.tan(unit * torch.pi / 2)
covariance = (grid**2)[:, None, None] * torch.eye(8) + torch.diag(sigma**2) + 5.0**2
marginal = dist.MultivariateNormal(torch.zeros(8).double(), covariance).log_prob(y.double())
weight = marginal.softmax(0)
density = weight * len(grid) * 2 / (torch.pi * 5 * (1 + (grid / 5) ** 2))
mu_given_tau = 25 * torch.linalg.solve(covariance, y.double().expand(4000, 8)).sum(-1)
exact = {"mu": float(weight @ mu_given_tau), "tau": float(weight @ grid)}

# %%
# One chain of NUTS
# -----------------
# What counts is the effective sample size (ESS), the number of independent draws that would be
# worth as much. The smallest one of all sites is taken, by the same estimator for all runs. Time
# is that of the processor, warm-up included.


def report(name, samples, seconds):
    size = min(float(pg.mcmc.ess(x).min()) for x in samples.values())
    line = f"{name:12} {seconds:6.1f} s, least ESS {size:7.0f}, {size / seconds:7.0f} per second"
    for site in ("mu", "tau"):
        mean, error = samples[site].mean(), pg.mcmc.mcse(samples[site])
        line += f", {site} {mean:.2f} +- {error:.2f}"
    print(line)
    return size / seconds


sites = ("mu", "tau", "z")
start = time.process_time()
mcmc = MCMC(NUTS(model), num_samples=300, warmup_steps=200, disable_progbar=True)
mcmc.run(y)
samples = {site: mcmc.get_samples(group_by_chain=True)[site] for site in sites}
rates = {1: report("NUTS", samples, time.process_time() - start)}

# %%
# A thousand chains
# -----------------
# The same model, without change. All chains take each step together, and adapt together. Groups
# of chains, here 16 superchains, start from the same point. A first run of a few steps loads what
# later ones share, as NUTS did above.

pg.mcmc.run(model, y, chains=16, warmup=4, draws=4, seed=0, progress=False)
for chains in (16, 128, 1024):
    start = time.process_time()
    draws = pg.mcmc.run(model, y, chains=chains, superchains=16, seed=0, progress=False)
    samples = {site: draws.samples[site] for site in sites}
    rates[chains] = report(f"{chains} chains", samples, time.process_time() - start)
print("exact: " + ", ".join(f"{site} {mean:.3f}" for site, mean in exact.items()))

# %%
# The summary is that of the largest run. R-hat compares the halves of single chains, so it stays
# above 1 where each holds few independent draws, wherever they started. The nested R-hat compares
# superchains, which hold many, and tells whether they have forgotten their starts.

print(draws.summary())
nested = {site: float(value.max()) for site, value in draws.nested_rhat().items()}
print("nested R-hat: " + ", ".join(f"{site} {value:.4f}" for site, value in nested.items()))

# %%
# Does the model explain the data? Without data, the model predicts those of eight schools with
# effects as drawn. The share of predictions whose best school does better than the best one
# measured should be far from 0 and 1.

predicted = draws.predictive(model, draws=4000)["y"]
share = (predicted.max(1).values > y.max()).double().mean()
print(f"best school above {y.max():.0f}: {share:.3f} +- {(share * (1 - share) / 4000) ** 0.5:.3f}")

# %%
# One line to change
# ------------------
# ``BatchedMCMC`` has the interface of Pyro's ``MCMC``, for code that is written already.

mcmc = pg.mcmc.BatchedMCMC(pg.mcmc.ChEES(), model, chains=128, disable_progbar=True)
mcmc.run(y)
print({site: tuple(x.shape) for site, x in mcmc.get_samples().items()})

# %%
# Many chains
# -----------
# On the left, the gain by chains; the line is for as much gain as chains. On the right, the draws
# of :math:`\tau` against the exact density.

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
many = [n for n in rates if n > 1]
left.loglog(many, [rates[n] for n in many], "o-", label="probgen.mcmc.run")
left.loglog(1, rates[1], "s", label="Pyro NUTS")
left.loglog(many, [rates[16] * n / 16 for n in many], ":", color="0.5", label="proportional")
left.set(xlabel="chains", ylabel="least ESS per second of CPU")
left.legend()
tau = draws.flat()["tau"]
right.hist(tau, torch.linspace(0, 60, 181), density=True, color="0.8", label="draws")
right.plot(grid, density, label="exact")
right.set(xlim=(0, 20), xlabel=r"$\tau$ / points of the test", ylabel="density")
right.legend()
