r"""
Associative memories
====================

A Hopfield network falls from any state into a minimum of its energy,

.. math:: E(x) = -\tfrac{1}{2} x^\top W x, \qquad
    x_i \leftarrow \operatorname{sign} \Bigl( \sum_j W_{ij} x_j \Bigr),

and remembers patterns that are minima. How many it can hold is known: of :math:`p` random patterns
in :math:`N` units, with the load :math:`\alpha = (p - 1) / N`, a unit errs in the first step with
probability :math:`\tfrac{1}{2} \operatorname{erfc}(1 / \sqrt{2 \alpha})`, and near
:math:`\alpha = 0.138` recall breaks down.
"""

import matplotlib.pyplot as plt
import torch

import probgen as pg
from probgen.models import HopfieldNetwork, ModernHopfield

torch.manual_seed(0)

# %%
# The capacity
# ------------
# Random patterns, stored by Hebb's rule and recalled from themselves: the fraction of wrong units
# after one step of all, and the overlap :math:`x^\top \xi / N` in the end.

units = 500
loads = torch.linspace(0.04, 0.24, 11)
errors, overlaps = [], []
for load in loads:
    patterns = 1.0 - 2.0 * torch.randint(2, (round(float(load) * units) + 1, units))
    memory = HopfieldNetwork(units)
    memory.store(patterns)
    errors.append(float((memory.together(patterns) != patterns).float().mean()))
    overlaps.append(float((memory.recall(patterns) * patterns).mean()))

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(loads, errors, "o", label=f"{units} units")
left.plot(loads, torch.erfc(1 / (2 * loads).sqrt()) / 2, "k", label="theory")
left.set(xlabel="load $\\alpha$", ylabel="wrong units", title="after one step")
left.legend()
right.plot(loads, overlaps, "o")
right.axvline(0.138, color="black", ls=":")
right.set(xlabel="load $\\alpha$", ylabel="overlap", title="in the end", ylim=(0, 1.05))

# %%
# Real patterns
# -------------
# Ten digits of scikit-learn in 64 units. Digits are alike, and Hebb's rule, made for independent
# patterns, mixes them. MacKay's rule climbs the probability of each unit given the others and
# keeps them apart. The lower half of each digit is hidden, and recalled.

data = pg.datasets.digits()
digits = torch.stack([data.images[data.labels == k][0] for k in range(10)])
patterns = torch.where(digits > 7, 1.0, -1.0)
hidden = patterns.clone()
hidden[:, 32:] = -1.0

hebb, learned = HopfieldNetwork(64), HopfieldNetwork(64)
hebb.store(patterns)
learned.learn(patterns, steps=500)
columns = {"stored": patterns, "seen": hidden}
for name, memory in (("Hebb", hebb), ("MacKay", learned)):
    found = memory.recall(hidden)
    print(f"{name}: {(found == patterns).all(-1).sum()} of 10 digits recalled", end="; ")
    kept = (memory.together(patterns) == patterns).all(-1).sum()
    print(f"{kept} of 10 are fixed points")
    columns[name] = found
pg.plots.images({name: (x + 1) / 2 for name, x in columns.items()}, data.shape)

# %%
# A modern memory
# ---------------
# With the energy of attention, a memory of real patterns holds all 1787 other digits besides these
# ten, and recalls what looks most alike. Likeness is an inner product, so digits are taken about
# their mean and made equally long. Each step is one of scaled dot-product attention, and lowers the
# energy.

mean = data.images.mean(0)
store = torch.nn.functional.normalize(data.images - mean, dim=-1)
modern = ModernHopfield(store, beta=200.0)
chosen = torch.stack([(data.labels == k).nonzero()[0, 0] for k in range(10)])
seen = store[chosen].clone()
seen[:, 40:] = 0.0
states = modern.trajectory(seen, steps=5)
found = (states[-1] @ store.mT).argmax(-1) == chosen
print(f"modern: {found.sum()} of 10 digits recalled among {len(store)}")
length = (data.images - mean)[chosen].norm(dim=-1, keepdim=True)
shown = {"stored": store[chosen], "seen": seen, "1 step": states[1], "5 steps": states[5]}
pg.plots.images({n: mean + x * length for n, x in shown.items()}, data.shape, high=16)
fig, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
ax.plot(modern.energy(states), "o-")
ax.set(xlabel="step", ylabel="energy")
plt.show()
