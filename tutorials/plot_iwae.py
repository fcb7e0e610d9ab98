r"""
Importance weights and the marginal likelihood
==============================================

With :math:`K` draws of the posterior and :math:`w_k = p(x, z_k) / q(z_k \mid x)`,

.. math:: \mathcal{L}_K = E \log \frac{1}{K} \sum_k w_k, \qquad
    \mathcal{L}_1 \le \mathcal{L}_5 \le \dots \le \log p(x).

One bound is a training objective (Burda et al., 2016), and many draws estimate :math:`\log p(x)`,
with which models are compared.
"""

import matplotlib.pyplot as plt
import torch

import probgen as pg

torch.manual_seed(0)

# %%
# Data
# ----
# The digits of scikit-learn, made binary at half of their levels; the last 397 are held out.

x = (pg.datasets.digits().images > 7).float()
train, test = x[:1400], x[1400:]

# %%
# Three objectives
# ----------------
# The evidence lower bound, the bound of 20 draws, and the same bound with the doubly
# reparameterised gradient (Tucker et al., 2019), whose noise does not grow with the draws. A bound
# of many draws asks less of the posterior, since its best draw counts most: the model may use more
# of its latents.

objectives = {
    "ELBO": pg.objectives.ELBO(),
    "IWAE, 20 draws": pg.objectives.IWAE(20),
    "DReG, 20 draws": pg.objectives.DReG(20),
}
models = {}
for name, objective in objectives.items():
    torch.manual_seed(1)
    vae = pg.models.VAE(64, 10, (64, 64), activation="tanh")
    options = {"lr": 2e-3, "schedule": "cosine", "ema": 0.99, "batch_size": 200}
    pg.fit(vae, train, objective=objective, steps=800, seed=0, progress=False, **options)
    models[name] = vae.freeze()
    spread = vae.encode(test).mean.var(0)
    print(f"{name:15s} active latents: {int((spread > 0.01).sum())} of 10")

# %%
# Bounds rise with the draws
# --------------------------
# The mean over held-out digits of the bound of :math:`K` draws. All bounds of one model lie below
# one number, its log-likelihood, to which importance sampling converges.

counts = [1, 2, 5, 10, 20, 50, 200, 1000]
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for name, vae in models.items():
    with torch.no_grad():
        bounds = [-pg.objectives.IWAE(k)(vae, test).mean() for k in counts]
    ax.semilogx(counts, bounds, "o-", label=name)
    found = vae.log_marginal(test, samples=2000)
    se = found.value.std() / len(test) ** 0.5
    low = (found.ess < 20).float().mean()
    print(f"{name:15s} log-likelihood {found.value.mean():.2f} +- {se:.2f} nats, ", end="")
    print(f"ELBO {bounds[0]:.2f}; fewer than 20 effective draws of 2000: {low:.0%} of digits")
ax.set(xlabel="draws $K$", ylabel="bound, nats per digit")
ax.legend()

# %%
# Each digit's estimate
# ---------------------
# `log_marginal` gives a standard error and an effective sample size per digit. Digits that the
# encoder does not know have few effective draws, and there the estimate is a lower bound still.
# Two models are compared digit by digit.

first, second = (models[name].log_marginal(test, samples=2000) for name in list(models)[:2])
gain = second.value - first.value
print(f"IWAE minus ELBO: {gain.mean():.2f} +- {gain.std() / len(gain) ** 0.5:.2f} nats per digit")
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
dots = ax.scatter(first.value, gain, c=first.ess.log10(), s=10)
ax.axhline(0, color="black", lw=0.8)
ax.set(xlabel="log-likelihood under the model of the ELBO", ylabel="gain of IWAE, nats")
fig.colorbar(dots, ax=ax, label="effective draws, log10")
plt.show()
