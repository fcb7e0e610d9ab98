r"""
A decoder in the place of a Gaussian process
============================================

Inference with a Gaussian process of unknown lengthscale factors a new covariance matrix at every
step. Where the points are fixed, a decoder can learn its draws once,

.. math:: f \approx g_\theta(z, \ell), \qquad z \sim \mathcal{N}(0, I),

and takes its place in every later model, as in PriorCVAE (Semenova et al., 2023): a deterministic
map of independent normal latents, given the lengthscale, which the same model infers. Here heights
along a line of a real landscape are interpolated, and the exact posterior is known to compare with.
"""

import time

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from matplotlib.cbook import get_sample_data

import probgen as pg

torch.manual_seed(0)

# %%
# Data
# ----
# A line through the elevation model of the Jacksboro fault in Tennessee, which comes with
# matplotlib: mean heights of a strip 3.7 km wide at 24 points, 300 m apart. Eight are measured,
# with noise.

with get_sample_data("jacksboro_fault_dem.npz") as source:
    strip = torch.tensor(source["elevation"][150:190, 40:136:4].astype("float32"))
heights = strip.mean(0)
truth = (heights - heights.mean()) / heights.std()
n, noise = len(truth), 0.3
where = torch.randperm(n)[:8].sort().values
y = truth[where] + noise * torch.randn(8)

# %%
# Draws of the process
# --------------------
# Lengthscales between 0.2 and 0.6 of the line, even in their logarithm.

t = torch.linspace(0, 1, n)


def covariance(u):
    scale = 0.2 * 3**u
    square = (t[:, None] - t).square()
    return torch.exp(-square / (2 * scale[..., None, None] ** 2)) + 1e-4 * torch.eye(n)


u = torch.rand(30_000)
factors = torch.linalg.cholesky(covariance(u).double()).float()
f = (factors @ torch.randn(len(u), n, 1))[..., 0]

# %%
# The decoder
# -----------
# A conditional variational autoencoder with one noise scale for all points, which training makes
# small: what is left out of the map. `pushforward` is the map alone.

latent = 10
head = pg.distributions.DiagonalNormal(
    n, latent + 1, hidden_features=(128, 128), activation="silu", scale="shared"
)
vae = pg.models.ConditionalVAE(n, 1, latent, (128, 128), likelihood=head, activation="silu")
options = {"lr": 3e-3, "schedule": "cosine", "seed": 0, "progress": False}
start = time.perf_counter()
pg.fit(vae, f, context=u[:, None], steps=6000, **options)
prior = vae.freeze().pushforward
left = float(vae.decode(torch.zeros(latent), torch.tensor([0.5])).stddev[0])
print(f"trained in {time.perf_counter() - start:.0f} s; noise left out: {left:.3f}")

# %%
# The model
# ---------
# `pg.sample` states the base of the map as the latent site, and its value as a deterministic one.
# As a site with a density the map is refused: it has none.


def model(y):
    u = pyro.sample("u", dist.Uniform(0.0, 1.0))
    f = pg.sample("f", prior, context=u[None])
    pyro.sample("y", dist.Normal(f[where], noise).to_event(1), obs=y)


start = time.perf_counter()
draws = pg.mcmc.run(model, y, seed=0, progress=False)
print(f"inferred in {time.perf_counter() - start:.0f} s")
print(draws.summary())

# %%
# The exact posterior
# -------------------
# A normal law for each of 200 lengthscales, weighted by its evidence.

grid = (torch.arange(200) + 0.5) / 200
k = covariance(grid).double()
seen = k[:, where][:, :, where] + noise**2 * torch.eye(8)
weights = dist.MultivariateNormal(torch.zeros(8).double(), seen).log_prob(y.double()).softmax(0)
gain = torch.linalg.solve(seen, k[:, where]).mT
means = gain @ y.double()
variances = (k - gain @ k[:, where]).diagonal(dim1=-2, dim2=-1)
mean = weights @ means
sd = (weights @ (variances + means.square()) - mean.square()).sqrt()

f = draws.samples["f"].flatten(0, 1)
gap = (f.mean(0) - mean).abs() / sd
ratio = f.std(0) / sd
print(f"means: within {gap.max():.2f} sd; sds: {ratio.min():.2f} to {ratio.max():.2f} of exact")

fig, (line, scale) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
km = 0.3 * torch.arange(n)
line.fill_between(km, mean - 2 * sd, mean + 2 * sd, alpha=0.3, label="exact, 2 sd")
low, high = f.quantile(torch.tensor([0.0228, 0.9772]), 0)
line.plot(km, low, "C1--", km, high, "C1--", lw=1)
line.plot(km, f.mean(0), "C1", label="decoder")
line.plot(km, truth, "k:", label="truth")
line.plot(km[where], y, "ko", ms=4, label="measured")
line.set(xlabel="km", ylabel="height, standardised")
line.legend()
scale.hist(draws.samples["u"].flatten(), 40, density=True, alpha=0.5, color="C1", label="decoder")
scale.plot(grid, 200 * weights, "C0", label="exact")
scale.set(xlabel="lengthscale, $\\log_3(\\ell / 0.2)$", ylabel="density")
scale.legend()
plt.show()
