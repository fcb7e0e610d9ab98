r"""
A transform of your own
=======================

The sinh-arcsinh transform (Jones & Pewsey, Biometrika 96:761, 2009) gives a normal variable
skewness and tails,

.. math:: y = m + e^s z, \qquad z = \sinh \bigl( e^a (\operatorname{arsinh} x + b) \bigr), \qquad
    \log \frac{dy}{dx} = s + a + \frac{1}{2} \log \frac{1 + z^2}{1 + x^2}.

The skewness has the sign of :math:`b`; the tails are heavier than those of :math:`x` if
:math:`a > 0`; with :math:`a = b = 0` it is affine. This tutorial writes it, checks it, and uses it
in a plain Pyro model and in flows.
"""

import math
import tempfile

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_value
from scipy import stats
from sklearn.datasets import load_sample_image

import probgen as pg
from probgen import transforms as t

pyro.set_rng_seed(0)

# %%
# The class
# ---------
# An elementwise transform is two maps, each of which gives the value and the log-determinant, and
# the values at which learning starts. Networks will put out the four numbers, so any number has to
# be valid: the ones that could overflow are held within bounds.


class SinhArcsinh(pg.core.Elementwise):
    def __init__(self, shift, log_scale, skew, log_tail):
        arguments = shift, log_scale, skew, log_tail
        super().__init__(torch.broadcast_shapes(*(v.shape for v in arguments)))
        self.shift, self.log_scale = shift, log_scale.clamp(-7, 7)
        self.skew, self.log_tail = skew.clamp(-2, 2), log_tail.clamp(-1, 2)

    @classmethod
    def initial(cls, features):
        return dict.fromkeys(["shift", "log_scale", "skew", "log_tail"], torch.zeros(()))

    def ladj(self, x, z):
        one = torch.ones_like(z)
        return self.log_scale + self.log_tail + (torch.hypot(z, one) / torch.hypot(x, one)).log()

    def call_and_ladj(self, x):
        z = (self.log_tail.exp() * (x.asinh() + self.skew)).sinh()
        return self.shift + self.log_scale.exp() * z, self.ladj(x, z)

    def inverse_and_ladj(self, y):
        z = (y - self.shift) / self.log_scale.exp()
        x = ((-self.log_tail).exp() * z.asinh() - self.skew).sinh()
        return x, self.ladj(x, z)


# %%
# Three checks, in double precision: the round trip, the log-determinant against automatic
# differentiation, and the integral of a density.

f = SinhArcsinh(*torch.tensor([0.5, -0.3, 0.4, 0.6], dtype=torch.double))
x = torch.linspace(-6, 6, 1001, dtype=torch.double, requires_grad=True)
y, ladj = f.call_and_ladj(x)
(slope,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
p = dist.TransformedDistribution(dist.Normal(x.new_tensor(0.0), 1.0), [f])
values = torch.linspace(-3000, 3000, 1_000_001, dtype=torch.double)
print(f"round trip:      {(f.inv(y) - x).abs().max():.0e}")
print(f"log-determinant: {(ladj - slope.log()).abs().max():.0e}")
print(f"integral - 1:    {torch.trapezoid(p.log_prob(values).exp(), values) - 1:.0e}")

# %%
# Data
# ----
# A photograph is cut into blocks of 5 by 5 pixels. A plane is fitted to the brightness of each.
# Its slope to the right has heavy tails. The standard deviation from the plane, the roughness, is
# skewed even in logs. Half of the blocks are held out.

grey = torch.tensor(load_sample_image("flower.jpg"), dtype=torch.float32).mean(-1)
blocks = grey.unfold(0, 5, 5).unfold(1, 5, 5).reshape(-1, 25)
offset = torch.arange(5.0) - 2
design = torch.stack([torch.ones(25), offset.repeat(5), offset.repeat_interleave(5)], -1)
plane = blocks @ torch.linalg.pinv(design).T
roughness = (blocks - plane @ design.T).square().mean(-1).sqrt()
data = torch.stack([roughness.log(), plane[:, 1]], -1)[torch.randperm(len(blocks))]
names = ["log(roughness / level)", "slope / (level / pixel)"]
train, test = data.tensor_split(2)

# %%
# In plain Pyro
# -------------
# Alone it is a transform for Pyro's ``TransformedDistribution``: here a likelihood of each feature,
# whose parameters NUTS infers. Beyond the bounds of `skew` and `log_tail` it does not depend on
# them, so the chain has to start between the bounds. Printed are posterior means and standard
# deviations; the Monte Carlo error is smaller by the square root of the effective draws.


def likelihood(shift, log_scale, skew, log_tail):
    base = dist.Normal(torch.zeros(2), 1.0)
    return dist.TransformedDistribution(base, [SinhArcsinh(shift, log_scale, skew, log_tail)])


priors = {"shift": 5.0, "log_scale": 2.0, "skew": 0.5, "log_tail": 0.5}


def model(x):
    with pyro.plate("features", 2):
        theta = {name: pyro.sample(name, dist.Normal(0.0, sd)) for name, sd in priors.items()}
    with pyro.plate("blocks", len(x)):
        pyro.sample("x", likelihood(**theta).to_event(1), obs=x)


start = init_to_value(values=dict.fromkeys(priors, torch.zeros(2)))
kernel = NUTS(
    model, full_mass=True, init_strategy=start, jit_compile=True, ignore_jit_warnings=True
)
mcmc = MCMC(kernel, num_samples=200, warmup_steps=150, disable_progbar=True)
mcmc.run(train)
posterior = mcmc.get_samples()
for name, draws in posterior.items():
    text = " and ".join(f"{m:5.2f} +- {sd:.2f}" for m, sd in zip(draws.mean(0), draws.std(0)))
    quality = mcmc.diagnostics()[name]
    print(f"{name:10}{text}, effective draws {quality['n_eff'].min():.0f} or more", end="")
    print(f", split R-hat {quality['r_hat'].max():.2f} or less")


# %%
# The posterior predictive density of held-out blocks, against a normal and a Student t distribution
# that are fitted to the same training data. The log roughness is skewed, which Student t cannot be;
# the slope is not, and there it is the better choice by little. That the roughness has a second
# hump, of the flower against its blurred background, is more than four numbers can say.


def mean_and_error(x):
    return float(x.mean()), float(x.std()) / len(x) ** 0.5


def predictive(x):
    theta = {name: draws[:, None] for name, draws in posterior.items()}
    return likelihood(**theta).log_prob(x).logsumexp(0) - math.log(len(theta["skew"]))


normal = dist.Normal(train.mean(0), train.std(0))
student = dist.StudentT(*torch.tensor([stats.t.fit(x) for x in train.T.numpy()]).float().T)
for other, p in (("normal", normal), ("Student t", student)):
    gains = (predictive(test) - p.log_prob(test)).T
    text = "  and ".join("{:.3f} +- {:.3f}".format(*mean_and_error(gain)) for gain in gains)
    print(f"minus {other:10} {text} nats per block")

fig, axs = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
x = torch.stack([torch.linspace(*column.aminmax(), 500) for column in test.T], -1)
for i, (ax, name) in enumerate(zip(axs, names)):
    ax.hist(test[:, i], 60, density=True, color="0.8", label="held-out blocks")
    ax.plot(x[:, i], predictive(x)[:, i].exp(), label="sinh-arcsinh, NUTS")
    ax.plot(x[:, i], normal.log_prob(x)[:, i].exp(), "--", label="normal")
    ax.plot(x[:, i], student.log_prob(x)[:, i].exp(), ":", label="Student t")
    ax.set(xlabel=name, ylabel="density", yscale="log", ylim=(1e-5, 10))
axs[1].legend(fontsize=8)

# %%
# In flows
# --------
# The same class in three lazy transforms: in ``Learned`` its four numbers are
# parameters, in ``Autoregressive`` and ``Coupling`` a network gives them from the other feature.
# Those two are inverted, so that networks read data and a density takes one pass. Every flow is
# fitted with the library's class ``Affine`` too, which is the case :math:`a = b = 0`.

normal = dist.MultivariateNormal(train.mean(0), torch.cov(train.T))
hidden = {"hidden_features": (32,)}
recipes = {
    "Learned": lambda tau: [t.Learned(t.LU, 2), t.Learned(tau, 2)],
    "Autoregressive": lambda tau: [t.Autoregressive(2, tau, **hidden).inv],
    "2 x Coupling": lambda tau: [t.Coupling(2, tau, kept=k, **hidden).inv for k in (1, -1)],
    "4 x Coupling": lambda tau: [t.Coupling(2, tau, kept=k, **hidden).inv for k in (1, -1) * 2],
}
training = {"steps": 600, "lr": 3e-3, "schedule": "cosine", "ema": 0.99, "clip": 5.0, "seed": 0}
flows = {}
print(f"{'nats per block, minus normal':28}{'Affine':>8}{'SinhArcsinh':>20}{'difference':>19}")
for recipe, build in recipes.items():
    gains = []
    for tau in (t.Affine, SinhArcsinh):
        parts = [*build(tau), t.Standardize(2)]
        flow = pg.distributions.Flow(parts, pg.distributions.StandardNormal(2))
        pg.fit(flow, train, validation=0.2, batch_size=128, progress=False, **training)
        flows[recipe, tau] = flow.freeze()
        gains.append(flow().log_prob(test) - normal.log_prob(test))
    columns = map(mean_and_error, [*gains, gains[1] - gains[0]])
    print(f"{recipe:16}" + "".join(f"{m:10.3f} +- {se:.3f}" for m, se in columns))

# %%
# Alone, the affine transform leaves a normal distribution. Affine couplings make skewness and tails
# between them, and with four of them little is left to gain. Below are draws of the autoregressive
# flows, whose first feature depends on no other: it is normal in the affine one.

clouds = {"held-out blocks": test}
for tau in (t.Affine, SinhArcsinh):
    clouds[f"Autoregressive, {tau.__name__}"] = flows["Autoregressive", tau]().sample((len(test),))
fig, axs = plt.subplots(1, 3, figsize=(11, 3.8), sharex=True, sharey=True, layout="constrained")
for ax, (title, x) in zip(axs, clouds.items()):
    ax.scatter(*x.T, s=3, alpha=0.5, color="black", linewidths=0)
    ax.set(title=title, xlabel=names[0], ylabel=names[1], xlim=(-3, 5), ylim=(-40, 40))
    ax.label_outer()

# %%
# A class registers by being defined, under its own name and that of its module. A program that
# loads the flow has to import it from there.

with tempfile.TemporaryDirectory() as folder:
    flow.save(folder)
    again = pg.load(folder)
print("the same densities:", torch.equal(again().log_prob(test), flow().log_prob(test)))
