r"""
From a regression to a thousand chains
======================================

How do the test scores of children depend on their mothers? Gelman and Hill (2007) regress the
scores :math:`y_i` of 434 children of three or four years on whether the mother finished high
school, :math:`h_i`, and on her IQ, :math:`q_i`,

.. math:: y_i \sim \mathcal{N}(\beta_1 + \beta_2 h_i + \beta_3 q_i, \sigma^2), \qquad
    p(\beta) \propto 1, \qquad \sigma \sim \text{HalfCauchy}(2.5).

:func:`probgen.mcmc.run` draws from the posterior of such a model with 128 chains at once, and
checks the draws. The second part has a hierarchical model, eight schools.

The data are in ``kidiq.csv``. They come from posteriordb (BSD-3-Clause), which has them from
Gelman & Hill, "Data Analysis Using Regression and Multilevel/Hierarchical Models", 2007.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_value
from pyro.infer.reparam import LocScaleReparam

import probgen as pg

pyro.set_rng_seed(0)

data = torch.tensor(np.loadtxt("kidiq.csv", delimiter=",", skiprows=1), dtype=torch.float)
score, high_school, iq = data.T


predictors = torch.stack([torch.ones(len(iq)), high_school, iq], 1)


def regression(predictors, score=None):
    flat = dist.ImproperUniform(dist.constraints.real_vector, (), (3,))
    beta = pyro.sample("beta", flat)
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("children", len(predictors)):
        pyro.sample("score", dist.Normal(predictors @ beta, sigma), obs=score)


# %%
# Draw from the posterior
# -----------------------
# The defaults are 128 chains with 250 draws each. An optimiser finds the mode first, chains start
# near it, and 100 steps of warm-up adapt the sampler. Where draws cannot be trusted, a
# ``ConvergenceWarning`` says why. There is none here.

start = time.process_time()
draws = pg.mcmc.run(regression, predictors, score, seed=0, progress=False)
seconds = time.process_time() - start
print(draws.summary())

# %%
# In the table, ``ess`` is the effective sample size: as many independent draws would give the same
# error of the mean, ``mcse``. R-hat compares the chains with each other, and should be below 1.01.
#
# The check
# ---------
# Given :math:`\sigma`, the coefficients are normal around the least-squares estimate, and integrate
# out. What is left is one integral over :math:`\sigma`, done on a grid. The reference draws of
# posteriordb, from Stan, agree with both.

x, y = predictors.double(), score.double()
gram = x.T @ x
least = torch.linalg.solve(gram, x.T @ y)
squares = (y - x @ least).square().sum()
grid = torch.linspace(15, 22, 4000).double()
log_p = -(len(y) - 3) * grid.log() - squares / (2 * grid**2) - (1 + (grid / 2.5) ** 2).log()
weight = log_p.softmax(0)
sigma_mean = weight @ grid
sigma_sd = (weight @ (grid - sigma_mean).square()).sqrt()
beta_sd = (weight @ grid**2 * torch.linalg.inv(gram).diagonal()).sqrt()

stan = {
    "beta[0]": (25.794, 5.861),
    "beta[1]": (5.987, 2.216),
    "beta[2]": (0.5630, 0.0605),
    "sigma": (18.139, 0.619),
}
exact = dict(zip(stan, [*zip(least, beta_sd), (sigma_mean, sigma_sd)]))
rows = {row.name: row for row in draws.summary().rows}
print(f"{'':10}{'mean':>9}{'exact':>9}{'Stan':>9}{'sd':>11}{'exact':>9}{'Stan':>9}")
for name, (mean, sd) in exact.items():
    cells = f"{rows[name].mean:9.3f}{mean:9.3f}{stan[name][0]:9.3f}"
    print(f"{name:10}{cells}  {rows[name].sd:9.4f}{sd:9.4f}{stan[name][1]:9.4f}")

# %%
# Pyro's NUTS
# -----------
# The same model under Pyro's ``NUTS``, one chain of 500 draws. What counts is the least effective
# sample size of all parameters per second of CPU, warm-up included. Pyro compiles the model
# (``jit_compile``), which is its faster way.


def report(name, samples, seconds):
    size = min(float(pg.mcmc.ess(x).min()) for x in samples.values())
    print(f"{name:12} {seconds:6.1f} s, least ESS {size:7.0f}, {size / seconds:7.0f} per second")
    return size / seconds


compiled = {"full_mass": True, "jit_compile": True, "ignore_jit_warnings": True}
begin = init_to_value(values={"beta": torch.zeros(3), "sigma": torch.tensor(20.0)})
start = time.process_time()
kernel = NUTS(regression, init_strategy=begin, max_plate_nesting=1, **compiled)
mcmc = MCMC(kernel, num_samples=500, warmup_steps=300, disable_progbar=True)
mcmc.run(predictors, score)
report("NUTS", mcmc.get_samples(group_by_chain=True), time.process_time() - start)
report("probgen", draws.samples, seconds)

# %%
# Eight schools
# -------------
# Eight schools coached their pupils for a test (Rubin, 1981). School :math:`j` measured an effect
# :math:`y_j` with a standard error :math:`\sigma_j`. The effects :math:`\theta_j` come from a
# normal distribution whose mean :math:`\mu` and standard deviation :math:`\tau` are unknown too,
#
# .. math:: y_j \sim \mathcal{N}(\theta_j, \sigma_j^2), \qquad
#     \theta_j \sim \mathcal{N}(\mu, \tau^2), \qquad \mu \sim \mathcal{N}(0, 5^2), \qquad
#     \tau \sim \text{HalfCauchy}(5).
#
# As written, it is hard to sample: where :math:`\tau` is small, all :math:`\theta_j` are close to
# :math:`\mu`, and the posterior narrows to a funnel. ``noncentered=True`` samples
# :math:`z_j = (\theta_j - \mu) / \tau` instead, and returns :math:`\theta` all the same. It is the
# default where the posterior has no mode, as here.

effect = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
error = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(effect=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(error)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


sites = ["mu", "tau", "theta"]
draws = pg.mcmc.run(schools, effect, noncentered=True, sites=sites, seed=0, progress=False)
print(draws.summary())

# %%
# Given :math:`\tau`, all else is normal, so the exact posterior of :math:`\tau` is one integral. It
# is done on a grid that is even in the arc tangent of :math:`\tau`, under which the half-Cauchy
# prior is uniform.

unit = (torch.arange(4000).double() + 0.5) / 4000
grid = 5 * torch.tan(unit * torch.pi / 2)
covariance = (grid**2)[:, None, None] * torch.eye(8) + torch.diag(error**2) + 5.0**2
marginal = dist.MultivariateNormal(torch.zeros(8).double(), covariance).log_prob(effect.double())
weight = marginal.softmax(0)
density = weight * len(grid) * 2 / (torch.pi * 5 * (1 + (grid / 5) ** 2))
mu_given_tau = 25 * torch.linalg.solve(covariance, effect.double().expand(4000, 8)).sum(-1)
print(f"exact means: mu {weight @ mu_given_tau:.3f}, tau {weight @ grid:.3f}")

# %%
# Does the model explain the data? Without data, the model predicts those of eight schools with
# effects as drawn. The share of predictions whose best school does better than the best one
# measured should be far from 0 and 1.

predicted = draws.predictive(schools, draws=4000)["effect"]
share = (predicted.max(1).values > effect.max()).double().mean()
error_of_share = (share * (1 - share) / 4000) ** 0.5
print(f"best school above {effect.max():.0f}: {share:.3f} +- {error_of_share:.3f}")

# %%
# How many chains?
# ----------------
# All chains take each step together, so more of them cost little until the processor is busy. The
# R-hat of single chains needs chains that are long enough. For many short ones there is the nested
# R-hat: groups of chains, here 16 superchains, start from the same point, and it tells whether the
# groups have forgotten their starts.

rates = {}
for chains in (16, 64, 256, 1024):
    start = time.process_time()
    options = {"chains": chains, "superchains": 16, "noncentered": True, "sites": sites}
    draws = pg.mcmc.run(schools, effect, seed=0, progress=False, **options)
    rates[chains] = report(f"{chains} chains", draws.samples, time.process_time() - start)
nested = {site: float(value.max()) for site, value in draws.nested_rhat().items()}
print("nested R-hat: " + ", ".join(f"{site} {value:.4f}" for site, value in nested.items()))

# %%
# One line to change
# ------------------
# ``BatchedMCMC`` has the interface of Pyro's ``MCMC``, for code that is written already. For the
# standardised form it takes the model that Pyro's ``LocScaleReparam`` makes, which Pyro's NUTS
# takes too.

noncentered = poutine.reparam(schools, {"theta": LocScaleReparam(0.0)})
start = time.process_time()
mcmc = MCMC(NUTS(noncentered, **compiled), num_samples=500, warmup_steps=300, disable_progbar=True)
mcmc.run(effect)
pyro_rate = report("NUTS", mcmc.get_samples(group_by_chain=True), time.process_time() - start)

options = {"num_samples": 250, "warmup_steps": 100, "disable_progbar": True}
mcmc = pg.mcmc.BatchedMCMC(pg.mcmc.ChEES(), noncentered, chains=128, **options)
mcmc.run(effect)
print({site: tuple(x.shape) for site, x in mcmc.get_samples().items()})

# %%
# On the left, effective draws per second by the number of chains; the dotted line is for as much
# gain as chains. On the right, the draws of :math:`\tau` against the exact density.

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.loglog(list(rates), list(rates.values()), "o-", label="probgen.mcmc.run")
left.loglog(1, pyro_rate, "s", label="Pyro NUTS, one chain")
left.loglog(
    list(rates), [rates[16] * n / 16 for n in rates], ":", color="0.5", label="proportional"
)
left.set(xlabel="chains", ylabel="least ESS per second of CPU")
left.legend()
tau = draws.flat()["tau"]
right.hist(tau, torch.linspace(0, 60, 181), density=True, color="0.8", label="draws")
right.plot(grid, density, label="exact")
right.set(xlim=(0, 20), xlabel=r"$\tau$ / points of the test", ylabel="density")
right.legend()
plt.show()
