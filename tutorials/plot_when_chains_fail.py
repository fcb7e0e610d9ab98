r"""
When chains fail
================

:func:`probgen.mcmc.run` checks its draws, and ends with a ``ConvergenceWarning`` where they may not
follow the posterior. Here is one example of each failure: the message, its cause, and a run that is
right. A message has one line for each problem, the most telling one first. The same lines stand
under ``draws.summary()``, which puts the worst parameters at the top.
"""

import math
import textwrap
import warnings

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy.special import ellipk
from sklearn.datasets import load_iris

import probgen as pg

pyro.set_rng_seed(0)


def attempt(model, *args, rows=4, **options):
    """Run chains, print the warnings or the error, and the first rows of the summary."""
    draws, messages = None, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            draws = pg.mcmc.run(model, *args, seed=0, progress=False, **options)
        except (TypeError, ValueError) as error:
            messages = [f"{type(error).__name__}: {error}"]
    messages += [f"{w.category.__name__}: {w.message}" for w in caught]
    for line in "\n".join(messages or ["no warning"]).split("\n"):
        print(textwrap.fill(line, 95, subsequent_indent="    "))
    if draws is not None:
        summary = draws.summary()
        print(summary._replace(rows=summary.rows[:rows], notes=[]))
    return draws


# %%
# A funnel
# --------
# Eight schools coached their pupils for a test (Rubin, 1981). The effects of the schools have an
# unknown mean and an unknown standard deviation :math:`\tau`. Where :math:`\tau` is small, all
# effects are close to their mean, and the posterior is a narrow neck. A step that suits the wide
# part is too long for the neck: trajectories diverge there, and chains avoid it or get stuck in it.

effect = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
error = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(effect):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(error)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


centred = attempt(schools, effect, noncentered=False)

# %%
# **Remedy.** ``noncentered=True`` samples :math:`(\theta - \mu) / \tau`, which is independent of
# :math:`\tau` under the prior, and returns :math:`\theta` all the same. By default
# :func:`probgen.mcmc.run` does so by itself where the posterior has no mode, as here; the run above
# forbade it. If funnels remain, a line of the warning names the sites. It suits data that tell
# little about each :math:`\theta`. More draws of the model as written would not help.

standard = attempt(schools, effect)

# %%
# The effect of the first school against :math:`\tau`, and the draws of :math:`\log \tau` against
# the exact density, which is known by quadrature. The centred chains miss the neck, below
# :math:`\tau = 0.3`.

log_tau = torch.linspace(-5, 4, 2000).double()
tau = log_tau.exp()
covariance = (tau**2)[:, None, None] * torch.eye(8) + torch.diag(error**2) + 5.0**2
density = dist.MultivariateNormal(torch.zeros(8).double(), covariance).log_prob(effect.double())
density = (density + dist.HalfCauchy(5.0).log_prob(tau) + log_tau).softmax(0)
density = density / (log_tau[1] - log_tau[0])

fig, axs = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
for ax, draws, name in zip(axs, (centred, standard), ("noncentered=False", "default")):
    flat = draws.flat()
    ax.plot(flat["theta"][::8, 0], flat["tau"][::8].log(), ".", ms=2, alpha=0.4)
    ax.set(xlim=(-20, 40), ylim=(-5, 4), xlabel=r"$\theta_1$", ylabel=r"$\log \tau$", title=name)
    bins = torch.linspace(-5, 4, 91).tolist()
    axs[2].hist(flat["tau"].log(), bins, density=True, histtype="step", label=name)
axs[2].plot(log_tau, density, "k", lw=1, label="exact")
axs[2].set(xlabel=r"$\log \tau$", ylabel="density")
axs[2].legend(loc="upper left")

# %%
# Separate modes
# --------------
# A position from the measured distances to three masts, which are almost in line: its mirror image
# on the other side fits nearly as well. Chains do not cross from one side to the other, so the
# share of the draws on a side is that of the chains that started there. It estimates the
# probability only roughly, and further draws do not improve it.

masts = torch.tensor([[0.0, 0.0], [4.0, 0.1], [10.0, 0.0]])
measured = torch.tensor([5.9, 4.6, 6.9])


def position():
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    distance = (x - masts).square().sum(-1).sqrt()
    with pyro.plate("masts", 3):
        pyro.sample("measured", dist.Normal(distance, 0.2), obs=measured)


stuck = attempt(position)

# %%
# **Remedy.** Parallel tempering runs each chain at 12 temperatures. The hot copies cross from mode
# to mode, and exchanges carry this to the cold one, whose draws are kept. Each step costs 12 times
# as much, so take fewer chains and more draws. The exact probability comes from a grid.

mixed = attempt(position, kernel=pg.mcmc.ParallelTempering(), chains=32, draws=2000)

grid = torch.linspace(-15, 15, 1501).double()
points = torch.cartesian_prod(grid, grid)
distance = (points[:, None] - masts).square().sum(-1).sqrt()
log_p = -(points / 10).square().sum(-1) / 2 - ((distance - measured) / 0.2).square().sum(-1) / 2
weight = log_p.softmax(0)
print(f"probability of the upper side, exact: {weight[points[:, 1] > 0].sum():.3f}")
for name, draws in {"separate chains": stuck, "tempering": mixed}.items():
    upper = (draws.samples["x"][..., 1] > 0).float()
    line = f"{name}: {upper.mean():.3f}"
    print(line + (f" +- {pg.mcmc.mcse(upper):.3f}" if name == "tempering" else ""))

# %%
# The mean of the second coordinate of each chain. Chains that stay in a mode have the mean of that
# mode. Chains that cross have the mean of the whole.

fig, axs = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for ax, draws, name in zip(axs, (stuck, mixed), ("default", "ParallelTempering")):
    means = draws.samples["x"][..., 1].mean(1)
    ax.plot(means, ".")
    ax.axhline(float(weight @ points[:, 1]), color="k", lw=0.8, label="exact")
    ax.set(xlabel="chain", ylabel=r"mean of $x_2$", title=name, ylim=(-5.5, 5.5))
axs[0].legend()

# %%
# A mode that no chain has visited
# --------------------------------
# If ``init`` puts all chains on one side, they agree with each other, and R-hat and effective
# sample sizes look fine. But the optimiser had also started from draws of the prior, and found the
# other mode.

attempt(position, init={"x": torch.tensor([4.0, -4.0])})

# %%
# **Remedy.** Leave ``init`` at its default, which then shows that the modes are separate, and take
# parallel tempering as above. An optimiser is no proof: if it finds one mode, there may be others.
#
# An improper posterior
# ---------------------
# The eight schools again, with one effect for all, as the sum of two parts, coaching :math:`a` and
# practice :math:`b`. Both have flat priors. The data determine the sum alone: what is added to
# :math:`a` may be taken from :math:`b`, without end.

flat = dist.ImproperUniform(constraints.real, (), ())


def parts(effect):
    a = pyro.sample("a", flat)
    b = pyro.sample("b", flat)
    with pyro.plate("schools", len(effect)):
        pyro.sample("effect", dist.Normal(a + b, error), obs=effect)


attempt(parts, effect)

# %%
# **Remedy.** Drop a parameter, or give proper priors. Not every improper posterior is recognised as
# such: standard deviations of a million, with an R-hat of 2 or more, are its sign too.


def proper(effect):
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    with pyro.plate("schools", len(effect)):
        pyro.sample("effect", dist.Normal(a + b, error), obs=effect)


attempt(proper, effect)

# %%
# Heavy tails
# -----------
# A logistic regression tells *Iris setosa* from the other species by petal length, without a single
# error. Such separation leaves the slope without an upper limit: under a flat prior the posterior
# is improper. Under the Cauchy prior of Gelman et al. (2008) it is proper, but with tails as heavy
# as those of the prior. Chains go far out and take long to come back.

iris = load_iris()
length, species = torch.tensor(iris.data[:, 2]).float(), torch.tensor(iris.target)
x = (length - length.mean()) / (2 * length.std())
setosa = (species == 0).float()


def logistic(prior):
    a = pyro.sample("a", prior)
    b = pyro.sample("b", prior)
    with pyro.plate("flowers", len(x)):
        pyro.sample("setosa", dist.Bernoulli(logits=a + b * x), obs=setosa)


attempt(logistic, dist.Cauchy(0.0, 2.5))

# %%
# **Remedy.** More draws. Do not report the mean or the standard deviation where they may not exist,
# as for a Cauchy distribution, but the median and quantiles. If such slopes are not credible, the
# prior should say so: under a normal one the default run is enough.

attempt(logistic, dist.Cauchy(0.0, 2.5), draws=3000)
attempt(logistic, dist.Normal(0.0, 2.5))

# %%
# Numbers that single precision cannot hold
# -----------------------------------------
# The new moons of 2024 as Julian dates, days since the year -4712, and the length of the month by
# regression. Near 2.46 million the numbers of ``float32`` are a quarter of a day apart, about as
# much as the date of the first new moon is uncertain.

january, day = 2460310.5, [10, 39, 69, 98, 128, 157, 186, 216, 246, 275, 305, 335, 364]
hour = [11.95, 22.98, 9.0, 18.35, 3.37, 12.63, 22.95, 11.22, 1.92, 18.82, 12.78, 6.35, 22.45]
date = january + torch.tensor(day).double() + torch.tensor(hour).double() / 24
number = torch.arange(13)


def months(date):
    first = pyro.sample("first", flat)
    month = pyro.sample("month", flat)
    sd = pyro.sample("sd", dist.HalfNormal(1.0))
    with pyro.plate("moons", len(date)):
        pyro.sample("date", dist.Normal(first + month * number, sd), obs=date)


attempt(months, date.float())

# %%
# **Remedy.** Subtract a constant, before the conversion to ``float32``. Years as 2024 are harmless
# by themselves, but centred predictors help there too.

attempt(months, (date - date[0]).float())

# %%
# Or compute in double precision throughout, priors included.

torch.set_default_dtype(torch.double)
attempt(months, date)
torch.set_default_dtype(torch.float)

# %%
# Walls
# -----
# How many tanks are there, if the serial numbers 19, 40, 42 and 60 have been seen? (Ruggles &
# Brodie, 1947.) Serial numbers are uniform up to the number of tanks :math:`n`, so that the density
# is 0 below 60. Chains cannot start there, and the error names the site.

serial = torch.tensor([19.0, 40.0, 42.0, 60.0])


def tanks(serial):
    n = pyro.sample("n", dist.Exponential(0.01))
    with pyro.plate("seen", len(serial)):
        pyro.sample("serial", dist.Uniform(0.0, n), obs=serial)


attempt(tanks, serial)

# %%
# **Remedy.** Start from draws of the prior, some of which are possible. The limit is then a wall in
# the middle of the support. A trajectory that ends behind it is rejected, which is no divergence.
# Draws are right, but chains mix more slowly.

draws = attempt(tanks, serial, init="prior")
print("divergences:", int(draws.stats["diverged"].sum()))

# %%
# **Remedy.** More draws, or a support that ends at the wall. Chains then move in
# :math:`\log (n - 60)`, which has no wall.


def bounded(serial):
    support = constraints.greater_than(serial.max())
    n = pyro.sample("n", dist.ImproperUniform(support, (), ()))
    pyro.factor("prior", dist.Exponential(0.01).log_prob(n))
    with pyro.plate("seen", len(serial)):
        pyro.sample("serial", dist.Uniform(0.0, n), obs=serial)


attempt(tanks, serial, init="prior", draws=2000)
attempt(bounded, serial)
fine = torch.linspace(60, 6000, 1_000_000).double()
print(f"exact mean: {(-4 * fine.log() - 0.01 * fine).softmax(0) @ fine:.2f}")

# %%
# Labels that change places
# -------------------------
# A mixture of three normal distributions for the petal lengths. The order of the components is
# arbitrary, so the posterior has six equal modes, one for each order.


def mixture(ordered):
    prior = dist.Normal(torch.full((3,), 4.0), 2.0).to_event(1)
    if ordered:
        support = dist.ImproperUniform(constraints.ordered_vector, (), (3,))
        mean = pyro.sample("mean", support)
        pyro.factor("prior", prior.log_prob(mean))
    else:
        mean = pyro.sample("mean", prior)
    share = pyro.sample("share", dist.Dirichlet(torch.full((3,), 5.0)))
    sd = pyro.sample("sd", dist.HalfNormal(1.0))
    parts = dist.Normal(mean, sd)
    with pyro.plate("flowers", len(length)):
        pyro.sample("length", dist.MixtureSameFamily(dist.Categorical(share), parts), obs=length)


attempt(mixture, False)

# %%
# **Remedy.** Ask for one order: the support ``ordered_vector`` has rising means, and one mode
# remains.

attempt(mixture, True)

# %%
# A model that cannot run for all chains at once
# ----------------------------------------------
# Chains run in one batch, by ``torch.func.vmap``. It does not take what leaves torch, such as
# ``.item()``, NumPy or SciPy. Here a pendulum of one metre is timed for small swings, and for wide
# ones from an unknown angle. The period of these has an elliptic integral, for which SciPy is
# called.

small, wide = torch.tensor([2.01, 2.00, 2.02, 2.00]), torch.tensor([2.34, 2.33, 2.35, 2.34])


def pendulum(integral):
    g = pyro.sample("g", dist.Normal(9.8, 0.3))
    angle = pyro.sample("angle", dist.Normal(1.5, 0.3))
    period = 4 * g**-0.5 * integral(angle)
    with pyro.plate("times", 4):
        pyro.sample("small", dist.Normal(2 * math.pi * g**-0.5, 0.02), obs=small)
        pyro.sample("wide", dist.Normal(period, 0.02), obs=wide)


def by_scipy(angle):
    return torch.tensor(ellipk(math.sin(angle.item() / 2) ** 2)).float()


attempt(pendulum, by_scipy, chains=4, warmup=10, draws=10)

# %%
# Models that only branch on values still run, one chain after the other. But SciPy gives no
# gradient, which trajectories need: the gradient is compared with differences, and the model is
# refused.
#
# **Remedy** for code that cannot be changed: a kernel without gradients.
# :class:`~probgen.mcmc.Metropolis` does for a few parameters, and
# :class:`~probgen.mcmc.EllipticalSlice` for normal priors. Both need many steps, and start best
# from the prior, since no optimisation helps them.

metropolis = pg.mcmc.Metropolis()
attempt(pendulum, by_scipy, kernel=metropolis, init="prior", chains=4, warmup=200, draws=4000)

# %%
# Better, if you can: write it in torch. The elliptic integral is an arithmetic-geometric mean, and
# a hundred chains take less time than four did.


def by_torch(angle):
    a, b = torch.ones_like(angle), torch.cos(angle / 2)
    for _ in range(5):
        a, b = (a + b) / 2, (a * b).sqrt()
    return math.pi / (2 * a)


attempt(pendulum, by_torch)

# %%
# What is refused
# ---------------
# Some things are errors, since no draws could be right. A plate that takes a subsample of the data
# has another density at every step.


def subsampled(effect):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("schools", len(effect), subsample_size=4) as index:
        pyro.sample("effect", dist.Normal(mu, error[index]), obs=effect[index])


attempt(subsampled, effect)

# %%
# **Remedy.** All data at once; or, for data too many to look at, :func:`probgen.mcmc.minibatch`
# with :class:`~probgen.mcmc.SGLD`, whose draws have a bias. A kernel is an object, not a name:

attempt(schools, effect, kernel="hmc")
plt.show()
