r"""
When Langevin is biased, and how MALA mends it
==============================================

A step of the unadjusted Langevin algorithm (ULA) of size :math:`\epsilon` follows the gradient of
the log density :math:`\log \pi` and adds noise,

.. math:: x' = x + \epsilon \nabla \log \pi(x) + \sqrt{2 \epsilon} \, \xi,
    \qquad \xi \sim \mathcal{N}(0, I).

Its draws are too wide, however long it runs. For a normal target with precision :math:`A` their
covariance is :math:`(A - \epsilon A^2 / 2)^{-1}`: a direction of precision :math:`a` is too wide
by :math:`(1 - \epsilon a / 2)^{-1/2}`. MALA takes the same step as a proposal, and a test of
Metropolis mends it. SGLD, with the gradient of a mini-batch, is wider still. How much does it
matter in a posterior that is only nearly normal?
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_breast_cancer
from torch.nn.functional import logsigmoid

import probgen as pg

pyro.set_rng_seed(0)

# %%
# The posterior
# -------------
# A logistic regression tells benign tumours from malignant ones by four features, in standard
# deviations from the mean. One matrix holds the features, signed by the class.

names = ["texture", "smoothness", "symmetry", "fractal dimension"]
source = load_breast_cancer(as_frame=True)
features = torch.tensor(source.data[[f"mean {name}" for name in names]].to_numpy())
features = ((features - features.mean(0)) / features.std(0)).float()
data = features * (2.0 * torch.tensor(source.target.to_numpy()) - 1)[:, None]


def model():
    x = pyro.sample("x", dist.Normal(torch.zeros(len(names)), 1.0).to_event(1))
    pyro.factor("classes", logsigmoid(data @ x).sum())


# %%
# A long run of ChEES, which has no bias, gives the mean, and the directions in which the posterior
# is narrow or wide: the eigenvectors of the precision :math:`A`, with eigenvalues :math:`a`.

draws = pg.mcmc.run(model, chains=64, draws=400, seed=0, progress=False)
print(draws.summary())
reference = draws.samples["x"]
mean = reference.mean((0, 1))
variance, directions = torch.linalg.eigh(torch.cov(reference.flatten(0, 1).T))
variance, directions = variance[:1], directions[:, :1]  # the narrowest one, where bias is greatest
a = 1 / float(variance)

# %%
# The loop
# --------
# A kernel is two functions, ``init`` and ``step``, of a log density and a batch of chains. A step
# size may differ from chain to chain, so one batch holds all step sizes, with 48 chains each. The
# standard deviations come as ratios to those of ChEES, with the standard errors of both.

log_density = pg.mcmc.potential(model)
sizes = torch.tensor([0.1, 0.4, 0.8, 1.2, 1.6]) / a
chains, burn, steps = 48, 100, 500


def run(kernel, log_density, position):
    state, kept = kernel.init(position, log_density), []
    rate = 0.0
    for k in range(burn + steps):
        state, info = kernel.step(state, log_density)
        rate = rate + info.acceptance / (burn + steps)
        if k >= burn:
            kept.append(state.position)
    return torch.stack(kept, 1), rate


def ratio(x):
    """The ratio of standard deviations, from draws with shape (chains, draws, 4)."""
    squares = [((v - mean) @ directions[:, 0]).square().mean(0) for v in (x, reference)]
    means = [float(v.mean()) for v in squares]
    errors = [float(pg.mcmc.mcse(v[None])) / m for v, m in zip(squares, means)]
    value = (means[0] / means[1]) ** 0.5
    return value, value / 2 * sum(e**2 for e in errors) ** 0.5


first = log_density.initial("prior", chains * len(sizes))
each = sizes.repeat_interleave(chains)
found = {}
for kernel in (pg.mcmc.ULA(each), pg.mcmc.MALA(each)):
    x, rate = run(kernel, log_density, first)
    found[type(kernel).__name__] = [ratio(v) for v in x.split(chains)]
print("acceptance of MALA: " + ", ".join(f"{v:.2f}" for v in rate.reshape(-1, chains).mean(1)))

# %%
# SGLD sees a tenth of the data at each step. Its gradient has a covariance :math:`V`, which for a
# direction of precision :math:`a` adds :math:`\epsilon^2 V` to the noise of each step. All chains
# of a batch see the same data, so they are not independent: the standard errors above come from
# the mean over chains as a series in time.

batch = len(data) // 10
log_prior = lambda x: -x.square().sum(-1) / 2
log_likelihood = lambda x, d: logsigmoid(x @ d.T)
estimate = pg.mcmc.minibatch(log_prior, log_likelihood, data, batch)
found["SGLD"] = []
for size in sizes.tolist():
    x, _ = run(pg.mcmc.SGLD(size), estimate, first[:chains])
    found["SGLD"].append(ratio(x))
gradients = torch.sigmoid(-data @ mean)[:, None] * data
noise = len(data) ** 2 / batch * float((gradients @ directions).var())

# %%
# The exact ratios of normal theory, for ULA and SGLD, against those found. ULA blows up where
# :math:`\epsilon a = 2`; MALA, which cannot, moves less and less instead.

theory = {
    "ULA": lambda e: (1 - e * a / 2) ** -0.5,
    "MALA": lambda e: 1 + 0 * e,
    "SGLD": lambda e: ((2 * e + e**2 * noise) * a / (1 - (1 - e * a) ** 2)) ** 0.5,
}
print(f"{'step * a':>8}" + "".join(f"{name:>15}{'theory':>8}" for name in found))
for k, size in enumerate(sizes):
    cells = [f"{found[n][k][0]:7.3f} +- {found[n][k][1]:.3f}{theory[n](size):8.3f}" for n in found]
    print(f"{size * a:8.2f} " + " ".join(cells))

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
line = torch.linspace(0.01, 1.7, 200)
for k, (name, values) in enumerate(found.items()):
    value, se = zip(*values)
    ax.errorbar(sizes * a, value, se, fmt="o", ms=4, color=f"C{k}", label=name)
    ax.plot(line, theory[name](line / a), color=f"C{k}", lw=1)
ax.set(xlabel=r"step $\epsilon a$", ylabel="sd / that of ChEES", yscale="log")
ax.set(yticks=[1, 2, 4], yticklabels=["1", "2", "4"])
ax.minorticks_off()
ax.legend(title="lines: normal theory")
