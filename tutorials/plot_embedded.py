r"""
An image as a context
=====================

A conditional density :math:`p(x \mid c)` may depend on more than a few numbers: on an image, a set
of measurements, a series. ``Embedded`` puts a network :math:`e` before the context of any family,

.. math:: p(x \mid c) = q(x \mid e(c)),

and trains both together. Here :math:`c` is a handwritten digit that was turned by an unknown angle
:math:`x`. What is the angle? A six may be a nine upside down, so the answer is a density on the
circle that may have several modes: a circular spline flow, whose context is an image.
"""

import math
import tempfile
import time

import matplotlib.pyplot as plt
import pyro
import torch
from torch import nn

import probgen as pg

pyro.set_rng_seed(0)

# %%
# Digits that were turned
# -----------------------
# Each of 1400 digits is turned by 15 angles; 397 others are for the test. Contexts keep the shape
# of an image, with one channel.


def turned(images, angle):
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rotation = torch.stack([cos, -sin, zero, sin, cos, zero], -1).reshape(-1, 2, 3)
    grid = nn.functional.affine_grid(rotation, images.shape, align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)


def pairs(images):
    angle = math.pi * (2 * torch.rand(len(images)) - 1)
    return angle[:, None], turned(images, angle)


digits = pg.datasets.digits()
images = (digits.images / 16).reshape(-1, 1, 8, 8)
x, context = pairs(images[:1400].repeat(15, 1, 1, 1))
test, given = pairs(images[1400:])

# %%
# A network of one's own
# ----------------------
# Any module of torch will do. The line ``@pg.register`` lets it be saved with the model.


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
# :math:`-\log 2 \pi = -1.838`.


def flow(context):
    return pg.models.CircularNSF(1, context, transforms=2, hidden_features=(64,))


models = {
    "64 numbers": flow(context=(1, 8, 8)),
    "embedded": pg.distributions.Embedded(flow(context=32), Embedding(32), (1, 8, 8)),
}
options = {"epochs": 12, "batch_size": 200, "lr": 2e-3, "schedule": "cosine", "ema": 0.99}
for name, model in models.items():
    start = time.process_time()
    history = pg.fit(model, x, context=context, seed=0, progress=False, **options)
    model.freeze()
    score = model(given).log_prob(test)
    se = float(score.std()) / len(score) ** 0.5
    seconds = time.process_time() - start
    print(f"{name}: mean log density of the test {score.mean():.2f} +- {se:.2f}, {seconds:.0f} s")

# %%
# The network that reads images as images knows more, and about itself too: ranks of the true angles
# among draws are uniform where a posterior is calibrated.

model = models["embedded"]
ranks = pg.metrics.ranks(model(given).sample((99,)), test)

# %%
# What the model believes
# -----------------------
# Test images, and the density of the angle. A zero or a one looks much the same upside down, and a
# six like a nine: their densities have two modes.

chosen = [int((digits.labels[1400:] == label).nonzero()[3]) for label in (0, 1, 2, 3, 6, 8)]
grid = torch.linspace(-math.pi, math.pi, 400)
fig, axs = plt.subplots(2, 7, figsize=(12, 4), layout="constrained")
for ax, low, i in zip(axs[0], axs[1], chosen):
    ax.imshow(given[i, 0], cmap="gray_r")
    ax.set(xticks=[], yticks=[], title=f"a {int(digits.labels[1400 + i])}")
    density = model(given[i]).log_prob(grid[:, None]).exp()
    low.fill_between(grid, density, alpha=0.4)
    low.axvline(float(test[i]), color="tab:red", lw=1)
    low.set(xticks=[-math.pi, 0, math.pi], xticklabels=[r"$-\pi$", "0", r"$\pi$"], yticks=[])
axs[1, 0].set_ylabel("density; true angle in red")
axs[0, 6].axis("off")
pg.plots.ranks(ranks, 99, axs[1, 6], bins=10)

# %%
# Saving
# ------
# The model and its network are one module: they are saved together and come back together.

with tempfile.TemporaryDirectory() as folder:
    model.save(folder)
    again = pg.load(folder)
print("the same density:", torch.equal(again(given).log_prob(test), model(given).log_prob(test)))
plt.show()
