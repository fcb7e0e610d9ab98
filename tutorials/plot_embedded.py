r"""
An image as a context
=====================

A conditional density :math:`p(x \mid c)` may depend on more than a few numbers: on an image, a set
of measurements, a series. ``Embedded`` puts a network :math:`e` before the context of any family,

.. math:: p(x \mid c) = q(x \mid e(c)),

and trains both together. Here :math:`c` is an image, twice. First it is a handwritten digit that
was turned by an unknown angle :math:`x`. A six may be a nine upside down, so the answer is a
density on the circle that may have several modes: a circular spline flow. Then it is the upper
half of a digit, and :math:`x` the 32 pixels below; a class, where it is known, is a second context.
"""

import math
import tempfile
import time
from functools import partial

import matplotlib.pyplot as plt
import pyro
import torch
from torch import nn

import probgen as pg

pyro.set_rng_seed(0)

# %%
# Digits that were turned
# -----------------------
# Each of 1200 digits is turned by 15 angles. Of the others 200 tell when to stop, and 397 are for
# the test. Contexts keep the shape of an image, with one channel.


def turned(images, angle):
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rotation = torch.stack([cos, -sin, zero, sin, cos, zero], -1).reshape(-1, 2, 3)
    grid = nn.functional.affine_grid(rotation, images.shape, align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)


def pairs(images):
    angle = math.pi * (2 * torch.rand(len(images)) - 1)
    return angle[:, None], turned(images, angle)


digits = pg.datasets.digits()
images = digits.images.reshape(-1, 1, 8, 8)
x, context = pairs(images[:1200].repeat(15, 1, 1, 1))
held = pairs(images[1200:1400].repeat(3, 1, 1, 1))
test, given = pairs(images[1400:])

# %%
# A network of one's own
# ----------------------
# Any module of torch will do. The line ``@pg.register`` lets it be saved with the model. Contexts
# are standardised before they reach it: an image as a whole, since pixels have one unit.


@pg.register
class Embedding(nn.Module):
    """Map images with shape (N, 1, 8, 8) to vectors with shape (N, features)."""

    def __init__(self, features):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(1024, 128),
            nn.SiLU(),
            nn.Linear(128, features),
        )

    def forward(self, c):
        return self.layers(c)


# %%
# Training
# --------
# One call for both: a flow that takes the image as its 64 numbers in a row, and the same flow with
# the network before it. Without any context the best density is the uniform one, with
# :math:`-\log 2 \pi = -1.838`. Differences are taken digit by digit.


def flow(context):
    return pg.models.CircularNSF(1, context, transforms=2, hidden_features=(64,))


def row(name, score, seconds, base):
    gain = score - base
    mean, se, more, more_se = (
        float(v) for s in (score, gain) for v in (s.mean(), s.std() / len(s) ** 0.5)
    )
    print(f"{name:18}{mean:8.2f} +- {se:.2f}{more:11.2f} +- {more_se:.2f}{seconds:9.0f} s")


angles = {
    "64 numbers": flow(context=(1, 8, 8)),
    "embedded": pg.distributions.Embedded(flow(context=32), Embedding(32), (1, 8, 8)),
}
common = {"schedule": "cosine", "ema": 0.99, "seed": 0, "progress": False}
base = torch.full((len(test),), -math.log(2 * math.pi))
print(f"{'':18}{'nats per digit':>16}{'minus uniform':>19}")
for name, model in angles.items():
    start = time.process_time()
    options = {"context": context, "validation": held, "epochs": 10, "batch_size": 200, "lr": 2e-3}
    pg.fit(model, x, **options, **common)
    model.freeze()
    row(name, model(given).log_prob(test), time.process_time() - start, base)

# %%
# The network that reads images as images knows more, and about itself too: ranks of the true angles
# among draws are uniform where a posterior is calibrated.

model = angles["embedded"]
ranks = pg.metrics.ranks(model(given).sample((99,)), test)

# %%
# Test images, and the density of the angle around the circle; the truth is the red dot. A zero or a
# one looks much the same upside down, and a six like a nine: their densities have two modes. The
# radius is the fourth root of the density, so that small modes are seen.

chosen = [int((digits.labels[1400:] == label).nonzero()[3]) for label in (0, 1, 2, 3, 6, 8)]
grid = torch.linspace(-math.pi, math.pi, 800)
fig = plt.figure(figsize=(13, 4), layout="constrained")
top = fig.subplots(2, 7, gridspec_kw={"width_ratios": [2] * 6 + [3]})
for k, i in enumerate(chosen):
    top[0, k].imshow(given[i, 0], cmap="gray_r")
    top[0, k].set(xticks=[], yticks=[], title=f"a {int(digits.labels[1400 + i])}")
    place = top[1, k].get_subplotspec()
    top[1, k].remove()
    low = fig.add_subplot(place, projection="polar")
    height = model(given[i]).log_prob(grid[:, None]).exp() ** 0.25
    low.fill_between(grid, height, alpha=0.4)
    low.plot(grid, height, lw=0.8)
    low.plot(float(test[i]), 2.3, "o", color="tab:red", ms=5)
    low.set(xticks=[0, math.pi / 2, math.pi, 3 * math.pi / 2], yticks=[], ylim=(0, 2.4))
    low.set_xticklabels(["0", "", r"$\pi$", ""])
top[0, 6].axis("off")
pg.plots.ranks(ranks, 99, top[1, 6], bins=10)

# %%
# The lower half
# --------------
# Now the context is the upper half of a digit and :math:`x` the lower one, 32 pixels, to whose
# whole levels uniform noise is added, several times over. The last model also knows the class: its
# context is a dictionary of two tensors, which the network takes as arguments of these names.


@pg.register
class TopAndClass(nn.Module):
    """Map upper halves, and classes if they are known, to vectors with shape (N, features)."""

    def __init__(self, features, classes=0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(256, features),
        )
        self.classes = nn.Linear(classes, features, bias=False) if classes else None

    def forward(self, top, label=None):
        out = self.layers(top)
        return out if self.classes is None else out + self.classes(label)


def halves(part, copies):
    image = digits.images[part].repeat(copies, 1)
    label = nn.functional.one_hot(digits.labels[part], 10).repeat(copies, 1).float()
    top = image[:, :32].reshape(-1, 1, 4, 8)
    return image[:, 32:] + torch.rand(len(image), 32), {"top": top, "label": label}


def spline(context):
    inner = pg.models.NSF(32, context, transforms=5, hidden_features=(64,), randperm=True)
    return pg.distributions.Flow([pg.transforms.NormalCDF(0.0, 17.0)], inner)


def embedded(network, shape):
    return pg.distributions.Embedded(spline(context=16), network, shape)


lower = {
    "nothing": (spline(context=0), lambda c: None),
    "32 numbers": (spline(context=32), lambda c: c["top"].flatten(1)),
    "top": (embedded(TopAndClass(16), (1, 4, 8)), lambda c: c["top"]),
    "top and class": (
        embedded(TopAndClass(16, classes=10), {"top": (1, 4, 8), "label": 10}),
        lambda c: c,
    ),
}
order = torch.randperm(len(digits.images))
(x, c), (hx, hc), (test, given) = (
    halves(part, copies)
    for part, copies in ((order[:1200], 10), (order[1200:1400], 4), (order[1400:], 1))
)
decayed = partial(torch.optim.AdamW, weight_decay=1.0)
options = {"steps": 450, "batch_size": 128, "lr": 2e-3, "clip": 5.0, "optimizer": decayed}
base = None
print(f"{'':18}{'nats per digit':>16}{'minus nothing':>19}")
for name, (model, pick) in lower.items():
    start = time.process_time()
    held = hx if name == "nothing" else (hx, pick(hc))
    pg.fit(model, x, context=pick(c), validation=held, **options, **common)
    score = model.freeze()(pick(given)).log_prob(test)
    base = score if base is None else base
    row(name, score, time.process_time() - start, base)

# %%
# The upper half tells about 2.4 nats of the lower one, and the class 1.5 more. Here the network is
# not ahead of 32 numbers in a row: their difference lies within its error, so for halves this small
# it need not be an image. Draws without a context fit no upper half, draws given it make some
# digit, and draws given the class too, mostly that digit.

rows = 6
upper, truth = given["top"][:rows].flatten(1), test[:rows]
columns = {"truth": torch.cat([upper, truth], 1)}
columns["seen"] = torch.cat([upper, torch.full_like(truth, torch.nan)], 1)
for name, count in {"nothing": 2, "top": 3, "top and class": 3}.items():
    model, pick = lower[name]
    law = model(pick({key: value[:rows] for key, value in given.items()}))
    drawn = law.expand((rows,)).sample((count,))
    columns |= {f"{name}, {k + 1}": torch.cat([upper, drawn[k]], 1) for k in range(count)}
pg.plots.images(columns, digits.shape, high=17.0)

# %%
# Saving
# ------
# The model and its network are one module: they are saved together and come back together.

model, _ = lower["top and class"]
with tempfile.TemporaryDirectory() as folder:
    model.save(folder)
    again = pg.load(folder)
print("the same density:", torch.equal(again(given).log_prob(test), model(given).log_prob(test)))
print("contexts:", again.context_shape)
plt.show()
