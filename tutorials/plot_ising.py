r"""
The Ising model, and a photograph restored
==========================================

Spins :math:`x_i = \pm 1` on a lattice, of which neighbours like to agree:

.. math:: p(x) = \frac{1}{Z} \exp \Bigl( K \sum_{\langle i j \rangle} x_i x_j
    + \sum_i b_i x_i \Bigr).

Without field :math:`b`, on a torus, :math:`Z` and the mean energy are known exactly, which puts
draws to the test. With a field it is the oldest prior of pictures: pixels that agree with their
neighbours, and with what was seen.
"""

import math

import matplotlib.pyplot as plt
import torch
from scipy.ndimage import median_filter
from sklearn.datasets import load_sample_image

import probgen as pg

torch.manual_seed(0)

# %%
# Draws against Kaufman's exact answer
# ------------------------------------
# Chains of Gibbs sampling on a torus of 32 x 32 spins, all spins of one colour of the checkerboard
# at a time. They start with all spins up: in the cold phase chains from random spins freeze in
# stripes, which last long. The chains' own spread says how far their mean may be from the truth.

size, chains, blocks = 32, 64, 40
critical = math.log(1 + math.sqrt(2)) / 2
couplings = [0.1, 0.2, 0.3, 0.36, 0.4, 0.42, critical, 0.46, 0.5, 0.6]
means, errors, exact = [], [], []
for k in couplings:
    ising = pg.models.Ising((size, size), coupling=k).freeze()
    x = ising.advance(torch.ones(chains, size, size), steps=300)
    total = torch.zeros(chains)
    for _ in range(blocks):
        x = ising.advance(x, steps=10)
        total += ising.energy(x)
    # The energy is in units of the temperature; over K it is that of a coupling of 1.
    energies = total / (blocks * size**2 * k)
    means.append(float(energies.mean()))
    errors.append(float(energies.std()) / math.sqrt(chains))
    exact.append(float(ising.mean_energy()) / (size**2 * k))
ratios = [(m - e) / s for m, e, s in zip(means, exact, errors)]
print("coupling   draws    +-      exact   error / +-")
for k, m, s, e, z in zip(couplings, means, errors, exact, ratios):
    print(f"{k:8.3f}  {m:7.4f}  {s:.4f}  {e:7.4f}  {z:8.1f}")
rms = math.sqrt(sum(z**2 for z in ratios) / len(ratios))
print(f"root mean square of error / standard error: {rms:.2f}")

fine = torch.linspace(0.05, 0.65, 61).tolist()
curve = [float(pg.models.Ising((size, size), k).mean_energy()) / (size**2 * k) for k in fine]
fig, (left, right) = plt.subplots(
    2, 1, figsize=(6, 4.8), layout="constrained", sharex=True, height_ratios=(2, 1)
)
left.plot(fine, curve, "k", label="Kaufman, exact")
left.plot(couplings, means, "o", label="Gibbs draws")
right.errorbar(couplings, [m - e for m, e in zip(means, exact)], errors, fmt="o")
right.axhline(0.0, color="k", lw=1)
for ax in (left, right):
    ax.axvline(critical, color="k", ls=":", lw=1)
left.set(ylabel="mean energy per spin")
right.set(xlabel="coupling $K$", ylabel="draws minus exact")
left.legend()

# %%
# At the critical coupling, :math:`K = \tfrac{1}{2} \log(1 + \sqrt{2})` (dotted), there are clusters
# of all sizes. Draws on 96 x 96 spins, after 6000 sweeps from all spins up, white:

shown = {"below": 0.8 * critical, "at": critical, "above": 1.1 * critical}
fig, axs = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
for ax, (name, k) in zip(axs, shown.items()):
    ising = pg.models.Ising((96, 96), coupling=k).freeze()
    x = ising.advance(torch.ones(1, 96, 96), steps=6000)
    ax.imshow(x[0], cmap="gray", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=[], title=f"{name}: $K$ = {k:.3f}")

# %%
# A photograph
# ------------
# A pavilion by a lake, of scikit-learn's sample images, in black and white: each pixel above or
# below the median. The left half is to be restored. The right half, clean, says what coupling such
# pictures have. A likelihood would need :math:`Z`; the pseudo-likelihood,
# :math:`\prod_i p(x_i \mid x_{-i})`, does not.

grey = torch.tensor(load_sample_image("china.jpg")).float().mean(-1)
picture = torch.where(grey > grey.median(), 1.0, -1.0)
half = picture.shape[1] // 2
clean, other = picture[:, :half], picture[:, half:]
shape = tuple(clean.shape)

prior = pg.models.Ising(shape, coupling=0.1, periodic=False)
objective = pg.objectives.PseudoLikelihood()
history = pg.fit(prior, other[None], objective=objective, steps=200, lr=0.03, progress=False)
learned = float(prior.freeze().coupling)
print(f"coupling of the right half: {learned:.3f}")
first, last = -history.losses[0] / other.numel(), -history.losses[-1] / other.numel()
print(f"log pseudo-likelihood per pixel: {first:.3f} at the start, {last:.3f} in the end")

# %%
# Restoration
# -----------
# One pixel in eight is flipped. The likelihood of a pixel seen as :math:`y_i`, with
# :math:`p(y_i \ne x_i) = \epsilon`, is :math:`\exp(b_i x_i)` up to a constant, with
#
# .. math:: b_i = \tfrac{1}{2} \log \frac{1 - \epsilon}{\epsilon} \, y_i,
#
# so the posterior is an Ising model too, with that field. The mean of draws of a pixel gives the
# probability that it is white, and its sign the most probable value, which has the fewest wrong
# pixels in expectation. The named peer is scipy's median filter, in windows of 3 and of 5 pixels.

flips = 1 / 8


def noisy(x):
    return torch.where(torch.rand_like(x) < flips, -x, x)


def restore(seen, coupling):
    field = 0.5 * math.log((1 - flips) / flips) * seen
    posterior = pg.models.Ising(seen.shape, coupling, periodic=False, field=field).freeze()
    x = posterior.advance(seen.repeat(8, 1, 1), steps=50)
    total = torch.zeros_like(seen)
    for _ in range(50):
        x = posterior.advance(x, steps=2)
        total += x.mean(0)
    return total / 50


def wrong(x):
    return float((x != clean).float().mean())


seen = noisy(clean)
tried = [0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 1.0]
scores = [wrong(restore(seen, k).sign()) for k in tried]
mean = restore(seen, learned)
restored = mean.sign()
medians = {w: torch.tensor(median_filter(seen.numpy(), w)) for w in (3, 5)}
print("wrong pixels")
print(f"  as seen               {100 * wrong(seen):6.2f} %")
for w, x in medians.items():
    print(f"  median filter, {w} x {w}  {100 * wrong(x):6.2f} %")
print(f"  Ising, K = {learned:.3f}      {100 * wrong(restored):6.2f} %")
best = min(range(len(tried)), key=lambda j: scores[j])
print(f"  Ising, best K tried   {100 * scores[best]:6.2f} %, at {tried[best]:.2f}")

views = {
    "clean": clean,
    f"seen: {100 * wrong(seen):.1f} % wrong": seen,
    f"median, 3 x 3: {100 * wrong(medians[3]):.1f} % wrong": medians[3],
    f"Ising: {100 * wrong(restored):.1f} % wrong": restored,
}
fig, axs = plt.subplots(2, 2, figsize=(7.5, 10), layout="constrained")
for ax, (name, x) in zip(axs.flat, views.items()):
    ax.imshow(x, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[], title=name)

# %%
# Is it sure where it is right?
# -----------------------------
# A median filter says black or white. The posterior says how sure it is: of the pixels to whose
# value it gives a probability in a bin, that share should be right. It is so if the prior is:
# a picture that is itself a draw of an Ising model shows it. The photograph is no such draw. Where
# the posterior gives 0.6 to 0.9 it is right less often than it says, as one coupling for all pixels
# knows nothing of rows of tiles.

edges = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0])


def calibration(mean, truth):
    sure, hit = (1 + mean.abs()) / 2, (mean.sign() == truth).float()
    bins = torch.bucketize(sure, edges[1:-1], right=True)
    inside = [bins == j for j in range(len(edges) - 1)]
    rows = [(float(sure[b].mean()), float(hit[b].mean()), int(b.sum())) for b in inside]
    print("stated   right   pixels")
    for stated, share, count in rows:
        print(f"{stated:6.3f}  {share:6.3f}  {count:7d}")
    print(f"all: stated {float(sure.mean()):.3f}, right {float(hit.mean()):.3f}")
    return rows


warm = pg.models.Ising(shape, coupling=0.42, periodic=False).freeze()
drawn = warm.advance(torch.ones(1, *shape), steps=500)[0]
print("the photograph")
photograph = calibration(mean, clean)
print("a draw of the prior")
control = calibration(restore(noisy(drawn), 0.42), drawn)

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(tried, [100 * s for s in scores], "o-", label="Ising")
left.axhline(100 * wrong(medians[3]), color="k", ls="--", label="median filter, 3 x 3")
left.axvline(learned, color="C1", ls=":", label="$K$ by pseudo-likelihood")
left.set(xlabel="coupling $K$", ylabel="wrong pixels / %", ylim=(0, None))
left.legend()
right.plot([0.5, 1], [0.5, 1], "k", lw=1)
for name, rows in {"photograph": photograph, "draw of the prior": control}.items():
    right.plot([r[0] for r in rows], [r[1] for r in rows], "o-", label=name)
right.set(xlabel="stated probability", ylabel="share that is right", aspect="equal")
right.legend()
plt.show()
