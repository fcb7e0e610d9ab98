r"""
An amortised posterior, checked by simulation
=============================================

A conditional flow :math:`q(\theta \mid y)` is trained on simulated pairs of parameters
:math:`\theta` and data :math:`y`. Then it gives the posterior of any data at the cost of a few
passes: it is *amortised*. How good it is can be measured,

- on simulations, by the ranks of the true parameters among the draws;
- on one data set, by importance weights, if the likelihood can be computed;
- on one data set with few parameters, against the exact posterior on a grid.

All three are done here, on an outbreak of influenza in an English boarding school.
"""

import math

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

import probgen as pg

pyro.set_rng_seed(0)

# %%
# Data and model
# --------------
# There were 763 boys. So many of them were confined to bed on the 14 days from 22 January 1978
# (British Medical Journal, 4 March 1978, p. 587):

boys = 763
school = torch.tensor([3.0, 8, 26, 76, 225, 298, 258, 233, 189, 128, 68, 29, 14, 4])

# %%
# In the SIR model a fraction :math:`s` of the boys is susceptible and a fraction :math:`i` ill,
#
# .. math:: \dot{s} = -\beta s i, \qquad \dot{i} = \beta s i - \gamma i,
#
# from one ill boy on the day before the first count. A count has a negative binomial distribution
# with mean :math:`\mu = 763 \, i` and variance :math:`\mu + \alpha \mu^2`, which can exceed the
# number of boys. In a school of susceptible boys one ill boy infects :math:`R_0 = \beta / \gamma`.
# The priors are log-normal, and :math:`\theta = (\log \beta, \log \gamma, \log \alpha)`.
# The equations are solved for :math:`\log s` and :math:`\log i`, for many :math:`\theta` at once,
# by Runge-Kutta steps of an eighth of a day.

names = [r"$\beta$ / day$^{-1}$", r"$\gamma$ / day$^{-1}$", r"$\alpha$"]
median, log_sd = torch.tensor([1.5, 0.5, 0.1]), torch.tensor([0.5, 0.5, 1.0])
prior = dist.Normal(median.log(), log_sd).to_event(1)


def counts(theta, days=14, steps=8):
    """The distribution of the counts, given theta with shape (*, 3)."""
    beta, gamma, alpha = theta.exp().unbind(-1)

    def rate(x):
        s, i = x.exp().unbind(-1)
        return torch.stack([-beta * i, beta * s - gamma], -1)

    x = torch.tensor([1 - 1 / boys, 1 / boys]).log().expand(*beta.shape, 2)
    h, path = 1 / steps, []
    for _ in range(days):
        for _ in range(steps):
            k1 = rate(x)
            k2 = rate(x + h / 2 * k1)
            k3 = rate(x + h / 2 * k2)
            k4 = rate(x + h * k3)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        path.append(x[..., 1])
    log_mean = torch.stack(path, -1) + math.log(boys)
    return dist.NegativeBinomial(1 / alpha[..., None], logits=log_mean + theta[..., 2:]).to_event(1)


# %%
# Train
# -----
# The context is the logarithm of each count plus one; :func:`probgen.fit` standardises it. The
# parameters with the least loss on 2000 further simulations are kept.

theta, held = prior.sample((200_000,)), prior.sample((2000,))
flow = pg.models.NSF(3, context=14, transforms=3, hidden_features=(128, 128), autoregressive=True)
context, held = counts(theta).sample().log1p(), (held, counts(held).sample().log1p())
options = {"steps": 2500, "lr": 3e-3, "schedule": "cosine", "clip": 5.0, "seed": 0}
pg.fit(flow, theta, context=context, validation=held, progress=False, **options)
flow.freeze()


def weigh(theta, y):
    """The log importance weights that correct draws of the flow."""
    exact = prior.log_prob(theta) + counts(theta).log_prob(y)
    return exact - flow(y.log1p()).log_prob(theta)


# %%
# Check on simulations
# --------------------
# Of an exact posterior, the rank of the truth among the draws is uniform, for every function of
# :math:`\theta` and :math:`y` (`Talts et al., 2018 <https://arxiv.org/abs/1804.06788>`_).
# Parameters do not suffice: draws from the prior, whatever the data, would pass. The
# log-likelihood :math:`\log p(y \mid \theta)` exposes them
# (`Modrak et al., 2023 <https://arxiv.org/abs/2211.02383>`_).
#
# The p-values are those of a chi-square test with 20 bins; 0 stands for one too small for
# float32. The last row weighs the flow's draws: a rank is then a sum of weights.

number = 99
truth = prior.sample((2000,))
y = counts(truth).sample()
draws = flow(y.log1p()).sample((number,))
log_w = weigh(draws, y)


def append(theta):
    """Parameters, and the log-likelihood of the simulated data."""
    return torch.cat([theta, counts(theta).log_prob(y)[..., None]], -1)


def p_values(ranks, bins=20):
    observed = torch.nn.functional.one_hot(ranks * bins // (number + 1), bins).sum(0)
    expected = len(ranks) / bins
    statistic = (observed - expected).square().sum(-1) / expected
    return torch.special.gammaincc(torch.tensor((bins - 1) / 2), statistic / 2)


true, drawn, blind = append(truth), append(draws), append(prior.sample(log_w.shape))
below = (log_w.softmax(0)[..., None] * (drawn < true)).sum(0)
ranks = {
    "prior": pg.metrics.ranks(blind, true),
    "flow": pg.metrics.ranks(drawn, true),
    "flow, weighted": (below * (number + 1)).long().clamp(0, number),
}
print(f"{'p-values':15}{'beta':>8}{'gamma':>8}{'alpha':>8}{'log-likelihood':>16}")
for name, r in ranks.items():
    print(f"{name:15}" + "{:8.3f}{:8.3f}{:8.3f}{:16.2g}".format(*p_values(r).tolist()))

# %%
# A histogram that slopes upwards says that the truth fits the data better than most draws do: the
# flow is too wide or off the mark. The parameters' own ranks, and all central intervals, can look
# right all the same.

fig, axs = plt.subplots(2, 4, figsize=(12, 6), sharey="row", layout="constrained")
for k, (top, bottom) in enumerate(axs.T):
    pg.plots.ranks(ranks["flow"][:, k], number, top)
    pg.plots.coverage(drawn[..., k], true[:, k], bottom)
    top.set_title([*names, "log-likelihood"][k])
    if k > 0:
        top.set_ylabel("")
        bottom.set_ylabel("")

# %%
# The outbreak
# ------------
# The effective sample size of the weights says how close the flow is to the posterior of one data
# set; it is the number of draws if they agree. Here 20 batches of 1000 draws give standard errors
# too, which are those of drawing, not of training. From as few draws as those of a simulation the
# size comes out a little too high.

draws = flow(school.log1p()).sample((20, 1000))
log_w_school = weigh(draws, school)
print("effective sample size over the number of draws:")
for name, x in {"simulations": log_w.T, "school": log_w_school}.items():
    e = 1 / x.softmax(-1).square().sum(-1) / x.shape[-1]
    print(f"{name:12}{e.mean():.3f} +- {e.std() / len(e) ** 0.5:.3f}")

# %%
# Drawn again in proportion to their weights, many draws are like those of the exact posterior. It
# is also computed on a grid, of 41 points per parameter over 14 standard deviations of the flow.

again = log_w_school.softmax(-1).multinomial(1000, replacement=True)
centre, spread = draws.mean((0, 1)), draws.std((0, 1))
sides = centre + torch.linspace(-7, 7, 41)[:, None] * spread
cell = sides[1] - sides[0]
grid = torch.cartesian_prod(*sides.T)
log_p = (prior.log_prob(grid) + counts(grid).log_prob(school)).log_softmax(0)
exact = grid[log_p.exp().multinomial(20_000, replacement=True)].reshape(draws.shape)
posteriors = {
    "flow": draws,
    "flow, weighted": draws.take_along_dim(again[..., None], 1),
    "exact": exact + cell * (torch.rand_like(exact) - 0.5),
}
kl = log_p.exp() @ (log_p - cell.log().sum() - flow(school.log1p()).log_prob(grid))
print(f"KL divergence of the flow from the exact posterior: {kl:.3f} nats\n")

level = torch.tensor([0.05, 0.5, 0.95])
print(f"{'':22}{'5 %':>18}{'median':>18}{'95 %':>18}")
for k, symbol in enumerate(["beta", "gamma", "alpha", "R0"]):
    for name, x in posteriors.items():
        value = x[..., k].exp() if k < 3 else (x[..., 0] - x[..., 1]).exp()
        q = value.quantile(level, dim=1)
        columns = zip(q.mean(1), q.std(1) / q.shape[1] ** 0.5)
        print(f"{symbol:7}{name:15}" + "".join(f"{m:8.3f} +- {se:.4f}" for m, se in columns))

# %%
# Where the flow is off by more than the standard errors, the weights correct it. Draws of the
# flow and of the exact posterior are shown, except those of the flow beyond all of the others.

x, exact = draws.flatten(0, 1), posteriors["exact"].flatten(0, 1)
within = ((x > exact.min(0).values) & (x < exact.max(0).values)).all(-1)
print(f"{(~within).sum()} of {len(x)} draws of the flow are beyond those of the exact posterior")
pg.plots.corner({"flow": x[within].exp(), "exact": exact.exp()}, names=names)

# %%
# Counts that the weighted draws predict, in central intervals of 50 % and 90 %. The posterior was
# fitted to these very counts, so they can show that the model is wrong, but not that it is right.

predicted = counts(posteriors["flow, weighted"].flatten(0, 1)).sample()
day = range(1, len(school) + 1)
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for level, alpha in {0.9: 0.25, 0.5: 0.5}.items():
    low, high = predicted.quantile(torch.tensor([0.5 - level / 2, 0.5 + level / 2]), dim=0).numpy()
    inside = round(pg.metrics.coverage(predicted, school, level) * len(school))
    label = f"{level:.0%} interval, with {inside} of {len(school)} counts"
    ax.fill_between(day, low, high, color="C0", alpha=alpha, lw=0, label=label)
ax.plot(day, school.numpy(), "ko", ms=4, label="school")
ax.set(xlabel="day, the first being 22 January 1978", ylabel="boys confined to bed", ylim=0)
ax.legend()
