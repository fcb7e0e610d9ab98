r"""
A deep hierarchical autoencoder
===============================

Latents in layers, each given those above it, and a posterior that comes down the same way,

.. math:: p(x, z) = p(x \mid z) \prod_{l=1}^L p(z_l \mid z_{>l}), \qquad
    q(z \mid x) = \prod_{l=1}^L q(z_l \mid z_{>l}, x).

The bound has one divergence per layer,

.. math:: \log p(x) \ge E_q[\log p(x \mid z)] - \sum_{l=1}^L
    E_q[\mathrm{KL}(q(z_l \mid z_{>l}, x) \,\|\, p(z_l \mid z_{>l}))],

which is what the layer tells of the data, in nats. Higher layers tend to tell nothing: whatever
they could say, the layer next to the data can say alone. A warm-up, which raises the weight of the
divergences from 0, and free bits, which let each layer tell a little at no cost, keep them alive.
"""

import matplotlib.pyplot as plt
import torch

import probgen as pg
from probgen.objectives import ELBO, SpectralRegularized

torch.manual_seed(0)

# %%
# Data
# ----
# The 1797 digits of scikit-learn, 8 x 8 pixels, black or white. After shuffling 397 are held out.

data = pg.datasets.digits()
x = (data.images > 7).float()[torch.randperm(len(data.images))]
train, test = x[:1400], x[1400:]

# %%
# Four models
# -----------
# A plain autoencoder; two ladders, whose posteriors merge what rises from the data with the prior
# that descends, each weighted by its precision; and a small convolutional hierarchy with a layer of
# 4 x 4 latents per channel and one of 2 x 2, whose posteriors are changes of the priors. Its
# penalty on the spectral norms of all convolutions keeps the divergences stable when it is deep.
# The three dense models have about equally many parameters.

sizes = {"latents": (16, 8, 4), "hidden_features": (64, 64, 64)}
warm, free = ELBO(warm_up=0.5), ELBO(warm_up=0.5, free_bits=1.0)
models = {
    "plain": (pg.models.VAE(64, 16, (120, 120)), warm),
    "ladder": (pg.models.LadderVAE(64, **sizes), warm),
    "ladder, free bits": (pg.models.LadderVAE(64, **sizes), free),
    "images": (
        pg.models.HierarchicalVAE((1, 8, 8), latent=2, channels=12, layers=(1, 1)),
        SpectralRegularized(free, weight=0.003),
    ),
}


def shaped(name, x):
    return x.reshape(-1, 1, 8, 8) if name == "images" else x


# %%
# Train, then estimate held-out log-likelihoods by importance sampling. The last column is the
# difference from the plain autoencoder, digit by digit, with its standard error.

divergences, scores = {}, {}
print(f"{'':18}{'log p(x)':>10}{'more than plain':>20}{'KL by layer, from the data up':>34}")
for name, (model, objective) in models.items():
    torch.manual_seed(0)
    pg.fit(
        model,
        shaped(name, train),
        objective=objective,
        steps=600,
        batch_size=100,
        lr=5e-3,
        schedule="cosine",
        seed=0,
        progress=False,
    )
    model.freeze()
    seen = shaped(name, test)
    kl = model.weigh(seen, samples=4, analytic=True).divergence.mean(0)
    divergences[name] = kl.sum(-1, keepdim=True) if name == "plain" else kl
    scores[name] = model.log_marginal(seen, samples=200).value
    gain = scores[name] - scores["plain"]
    print(
        f"{name:18}{scores[name].mean():10.2f}"
        f"{gain.mean():12.2f} +- {gain.std() / len(gain) ** 0.5:.2f}"
        f"{', '.join(f'{k:.2f}' for k in divergences[name]):>34}"
    )

# %%
# What the layers tell
# --------------------
# The divergence of each layer, from that next to the data up; the dotted line is at the free bits.
# With a warm-up alone the second layer of the ladder speaks and the third does not; free bits keep
# all three, at little cost in the likelihood. The convolutional hierarchy is made for larger images
# and longer training, and is behind here.

fig, axs = plt.subplots(1, 4, figsize=(11, 2.8), sharey=True, layout="constrained")
for ax, (name, kl) in zip(axs, divergences.items()):
    ax.bar(range(1, len(kl) + 1), kl, width=0.6)
    ax.axhline(1.0, color="0.5", lw=1, ls=":")
    ax.set(title=name, xlabel="layer", xticks=range(1, len(kl) + 1), xlim=(0.5, 3.5))
axs[0].set_ylabel("KL / nats")

# %%
# Samples
# -------
# Held-out digits, and draws of each model, pixel by pixel.

draws = [test[:14], *(model().sample((14,)).flatten(1) for model, _ in models.values())]
fig, axs = plt.subplots(5, 14, figsize=(9, 3.4), layout="constrained")
pg.plots.images({" " * j: torch.stack([d[j] for d in draws]) for j in range(14)}, data.shape, axs)
for ax, name in zip(axs[:, 0], ["data", *models]):
    ax.set_ylabel(name.replace(", ", "\n"), rotation=0, ha="right", va="center", fontsize=8)

# %%
# What each layer decides
# -----------------------
# Latents of a held-out digit are drawn from the posterior. Those of upper layers are then kept, and
# those of the layers below drawn anew from the prior given them. What all pictures of a row have
# in common is what the kept layers decide. Shown are the means of pixels.

model = models["ladder, free bits"][0]
latents = model.encode(test[:5])


def redrawn(lowest):
    def choose(i, prior, posterior):
        return latents[i] if i >= lowest else prior.sample()

    return model.walk(None, choose).mean


columns = {"data": test[:5], "all kept": redrawn(0)}
for lowest, title in ((1, "$z_2, z_3$ kept"), (2, "$z_3$ kept")):
    columns |= {title + " " * k: redrawn(lowest) for k in range(5)}
fig, axs = plt.subplots(5, 12, figsize=(10, 4.6), layout="constrained")
pg.plots.images(columns, data.shape, axs)
for ax in axs[0, [3, 4, 5, 6, 8, 9, 10, 11]]:
    ax.set_title("")
plt.show()
