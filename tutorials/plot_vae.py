r"""
A variational autoencoder and its manifold
==========================================

Two latents give a digit,

.. math:: z \sim \mathcal{N}(0, I), \qquad x \sim p_\theta(x \mid z),

and a network learns the way back, :math:`q_\phi(z \mid x)`. Both are trained together on the
evidence lower bound,

.. math:: \log p(x) \ge E_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z)).

With more latents the pictures are sharper, and the latents can be computed with.
"""

import matplotlib.pyplot as plt
import torch

import probgen as pg

torch.manual_seed(0)

# %%
# Data
# ----
# The 1797 digits of scikit-learn have 64 pixels of 17 levels. The last 397 are held out.

data = pg.datasets.digits()
x, labels = data.images, data.labels
train, test = x[:1400], x[1400:]

# %%
# Two latents
# -----------
# The likelihood is a discrete law over levels: a logistic law, cut into 17 bins. `fit` starts from
# the moments of the data, and `log_marginal` estimates the likelihood by importance sampling; the
# density of the model, ``vae().log_prob(x)``, is a bound.


def build(latent):
    head = pg.distributions.DiscretizedLogistic(
        64, levels=17, components=3, context=latent, hidden_features=(128, 128)
    )
    return pg.models.VAE(64, latent, (128, 128), likelihood=head)


def train_and_score(vae):
    pg.fit(vae, train, steps=1200, lr=2e-3, schedule="cosine", ema=0.99, seed=0, progress=False)
    found = vae.log_marginal(test, samples=500)
    bits = pg.metrics.bits_per_dimension(found.value, 64)
    print(f"{bits.value:.2f} +- {bits.se:.2f} bits per pixel, held out; ", end="")
    print(f"effective draws {found.ess.median():.0f} of 500")
    return vae.freeze()


plane = train_and_score(build(2))

# %%
# The manifold: the digits that a grid of latents decodes to, even in the prior's probability.
# Beside it, where the encoder puts the held-out digits.

fig, (left, right) = plt.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
pg.plots.manifold(plane, data.shape, left, count=15)
mean = plane.encode(test).mean
dots = right.scatter(*mean.T, c=labels[1400:], cmap="tab10", s=12)
right.set(
    xlabel="$z_1$", ylabel="$z_2$", aspect="equal", title="posterior means of held-out digits"
)
fig.colorbar(dots, ax=right, label="digit")

# %%
# Sixteen latents
# ---------------
# `diagnose` says which latents are in use: a latent whose posterior never leaves the prior carries
# nothing. A flexible likelihood and few data leave most of them idle.

vae = train_and_score(build(16))
print(pg.inference.diagnose(vae, test))

# %%
# Between two digits
# ------------------
# The straight line between two posteriors' means, and the great circle, which keeps the length that
# draws of a normal law have.

means = vae.encode(test).mean
first, second = means[labels[1400:] == 7][0], means[labels[1400:] == 3][0]
line = vae.decode(pg.inference.interpolate(first, second, 9)).mean
arc = vae.decode(pg.inference.interpolate(first, second, 9, spherical=True)).mean
pg.plots.images({f"{k}/8": torch.stack([line[k], arc[k]]) for k in range(9)}, data.shape, high=16)

# %%
# A direction with a meaning
# --------------------------
# The mean latent of heavy digits less that of light ones makes any digit heavier.

ink = train.sum(-1)
heavy, light = train[ink > ink.quantile(0.8)], train[ink < ink.quantile(0.2)]
direction = pg.inference.attribute(vae, heavy, light)
starts = torch.stack([means[labels[1400:] == k][0] for k in (0, 3, 7)])
pg.plots.images(
    {f"{s:+.1f}": vae.decode(starts + s * direction).mean for s in (-2, -1.5, -1, -0.5, 0, 0.5, 1)},
    data.shape,
    high=16,
)
plt.show()
