r"""
Bounded and circular data
=========================

A flow on the real line gives probability to values that cannot occur, and cannot know that
:math:`-\pi` and :math:`\pi` are one angle. Two remedies, on numbers taken from a photograph:

- **bounded data**: a last transform from the line to the interval,
  :class:`~probgen.transforms.Bounded` or :class:`~probgen.transforms.NormalCDF`;
- **angles**: :class:`~probgen.models.CircularNSF`, a flow on the torus.
"""

import math

import matplotlib.pyplot as plt
import pyro
import torch
from sklearn.datasets import load_sample_image

import probgen as pg
from probgen.transforms import Bounded, NormalCDF

pyro.set_rng_seed(0)
photograph = torch.tensor(load_sample_image("flower.jpg"), dtype=torch.float32)

# %%
# Bounded data
# ------------
# A pixel has three colours, each one of 256 levels. The red and the green one of random pixels
# are used: 10,000 to learn from, 10,000 held out. Uniform noise is added to each whole level, so
# that the data are continuous, on :math:`[0, 256)`. Many pixels have no red at all.

pixels = photograph.reshape(-1, 3)[:, :2]
chosen = pixels[torch.randperm(len(pixels))[:20_000]]
colours = chosen + torch.rand_like(chosen)
train, test = colours[:10_000], colours[10_000:]

# %%
# Three flows differ in their last transform only.

settings = {"transforms": 3, "hidden_features": (32,)}
flows = {
    "unbounded": pg.models.NSF(2, **settings),
    "Bounded": pg.distributions.Flow([Bounded(0.0, 256.0)], pg.models.NSF(2, **settings)),
    "NormalCDF": pg.distributions.Flow([NormalCDF(0.0, 256.0)], pg.models.NSF(2, **settings)),
}
training = {
    "steps": 600,
    "batch_size": 256,
    "lr": 3e-3,
    "schedule": "cosine",
    "validation": 0.1,
    "seed": 0,
    "progress": False,
}
for flow in flows.values():
    pg.fit(flow, train, **training)


def mean_and_error(values):
    return float(values.mean()), float(values.std()) / len(values) ** 0.5


with torch.no_grad():
    scores = {name: flow().log_prob(test) for name, flow in flows.items()}
    draws = {name: flow().sample((10_000,)) for name, flow in flows.items()}

print(f"{'':12}{'nats per datum':>18}{'minus unbounded':>20}{'draws out of bounds':>22}")
for name, score in scores.items():
    value, se = mean_and_error(score)
    gain, gain_se = mean_and_error(score - scores["unbounded"])
    outside = float(((draws[name] < 0) | (draws[name] > 256)).any(-1).float().mean())
    print(f"{name:12}{value:9.3f} +- {se:.3f}{gain:12.3f} +- {gain_se:.3f}{outside:20.1%}")

# %%
# Outside its bounds a bounded flow has the log density :math:`-\infty`, and Pyro knows its
# support, so NUTS and guides move to an unbounded space by themselves.

bounded = flows["NormalCDF"]()
print(bounded.support, bounded.log_prob(torch.tensor([-1.0, 100.0])).item())

# %%
# The densities of dark pixels. A dot is a pixel; nothing can lie to the left of 0.

limits = (-10.0, 30.0, 0.0, 60.0)
fig, axs = plt.subplots(1, 3, figsize=(11, 3.8), sharey=True, layout="constrained")
for ax, (name, flow) in zip(axs, flows.items()):
    pg.plots.density(flow, test[:2000], ax, limits=limits)
    ax.set(title=name, xlabel="red / level", ylabel="green / level")
    ax.label_outer()

# %%
# Circular data
# -------------
# The direction in which the brightness grows, at a pixel and at its neighbour two pixels to the
# right, is a pair of angles. It is found from the differences of the smoothed photograph, and
# kept where the brightness changes by at least 2 levels per pixel.

grey = photograph.mean(-1)[None, None]
smooth = torch.nn.functional.avg_pool2d(grey, 5, stride=1)[0, 0]
down = (smooth[2:, 1:-1] - smooth[:-2, 1:-1]) / 2
right = (smooth[1:-1, 2:] - smooth[1:-1, :-2]) / 2
angle, slope = torch.atan2(-down, right), torch.hypot(down, right)
steep = (slope[:, :-2] > 2) & (slope[:, 2:] > 2)
angles = torch.stack([angle[:, :-2], angle[:, 2:]], -1)[steep]
angles = angles[torch.randperm(len(angles))[:20_000]]
train, test = angles[:10_000], angles[10_000:]

# %%
# A flow on the line sees the angles as numbers between :math:`-\pi` and :math:`\pi`.

flows = {
    "NSF, on the line": pg.models.NSF(2, **settings),
    "CircularNSF": pg.models.CircularNSF(2, **settings),
}
for flow in flows.values():
    pg.fit(flow, train, **training)

with torch.no_grad():
    line, circle = (flow().log_prob(test) for flow in flows.values())

print(f"{'':18}{'nats per datum':>18}")
for name, score in zip(flows, (line, circle)):
    print("{:18}{:9.3f} +- {:.3f}".format(name, *mean_and_error(score)))
print("{:18}{:9.3f} +- {:.3f}".format("difference", *mean_and_error(circle - line)))

# %%
# The corners :math:`(\pi, -\pi)` and :math:`(-\pi, \pi)` hold pairs of nearly equal angles. On the
# torus they are the same point as the ends of the diagonal, and so is the density there. Nothing
# makes the flow on the line agree with itself across the cut.

limits = (-math.pi, math.pi, -math.pi, math.pi)
ticks = [-math.pi, 0, math.pi]
fig, axs = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
axs[0].scatter(*train[:4000].T, s=2, color="black", linewidths=0)
axs[0].set(title="data", xlim=limits[:2], ylim=limits[2:])
for ax, (name, flow) in zip(axs[1:], flows.items()):
    pg.plots.density(flow, None, ax, limits=limits)
    ax.set_title(name)
for ax in axs:
    ax.set(xlabel="angle here / rad", ylabel="angle 2 pixels right / rad")
    ax.set(xticks=ticks, yticks=ticks, aspect="equal")
    ax.set_xticklabels([r"$-\pi$", "0", r"$\pi$"])
    ax.set_yticklabels([r"$-\pi$", "0", r"$\pi$"])

# %%
# The density of the second angle where the first is :math:`\pi`, the whole turn around the cut,
# against the held-out pairs whose first angle is within 0.1 rad of it.

turn = torch.linspace(0, 2 * math.pi, 1000)
wrapped = torch.where(turn > math.pi, turn - 2 * math.pi, turn)
pairs = torch.stack([torch.full_like(turn, math.pi - 1e-3), wrapped], -1)
near = test[math.pi - test[:, 0].abs() < 0.1, 1].remainder(2 * math.pi)

fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
ax.hist(near, bins=80, range=(0, 2 * math.pi), density=True, color="0.8", label="held-out data")
for name, flow in flows.items():
    with torch.no_grad():
        p = flow().log_prob(pairs).exp()
    ax.plot(turn, p / torch.trapezoid(p, turn), label=name)
ax.axvline(math.pi, color="black", ls=":", label="the cut")
ax.set(xlabel="angle 2 pixels right / rad", ylabel="density / rad$^{-1}$")
ax.set(title=r"given that the angle here is $\pi$", xlim=(1.5, 5))
ax.legend()
