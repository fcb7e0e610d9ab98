r"""
An autoencoder as a prior
=========================

A variational autoencoder of digits is learned, frozen, and stands in a Pyro model as the prior of a
digit of which little is seen: every second pixel is missing, and the rest has noise,

.. math:: z \sim \mathcal{N}(0, I), \qquad x \sim \mathcal{N}(g(z), \tau^2), \qquad
    y \sim \mathcal{N}(A x, \sigma^2 I).

`pg.sample` states the latent and the digit as two sites, so that inference is exact under the
model: by Markov chains, and by variational inference for comparison. Both are checked against
digits that were drawn from the prior, and against real ones.
"""

import time

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import probgen as pg

pyro.set_rng_seed(0)

# %%
# The prior
# ---------
# Levels are dequantised by the noise of the likelihood, whose scale is learned, one for all pixels.

data = pg.datasets.digits()
x = data.images / 16
train, test = x[:1400], x[1400:]
head = pg.distributions.DiagonalNormal(64, 10, (64, 128), scale="shared")
vae = pg.models.VAE(64, 10, (128, 64), likelihood=head)
options = {"lr": 2e-3, "schedule": "cosine", "ema": 0.99, "seed": 0, "progress": False}
pg.fit(vae, train, steps=1200, **options)
vae.freeze()
spread = float(vae.decode(torch.zeros(10)).stddev[0])
print(
    f"noise of the decoder: {spread:.3f}; {pg.inference.diagnose(vae, test).active.sum()} latents"
)

# %%
# Measurements
# ------------
# Half of the pixels of 10 held-out digits, and of 10 digits that the prior itself drew, with noise
# of a fifth of the range. For the latter the model is true, and calibration must hold.

row, column = torch.arange(64) // 8, torch.arange(64) % 8
seen, noise = (row + column) % 2 == 0, 0.2
cases = {"held out": test[:10], "from the prior": vae().sample((10,))}


def model(y):
    with pyro.plate("digits", len(y)):
        x = pg.sample("x", vae)
        pyro.sample("y", dist.Normal(x[..., seen], noise).to_event(1), obs=y)


# %%
# Inference
# ---------

results = {}
for name, truth in cases.items():
    y = truth[:, seen] + noise * torch.randn(len(truth), 32)
    start = time.perf_counter()
    chains = pg.mcmc.run(model, y, chains=32, warmup=200, draws=100, seed=0, progress=False)
    seconds = time.perf_counter() - start
    rhat = float(chains.rhat()["x_z"].max())
    print(f"{name}: chains in {seconds:.0f} s, largest split R-hat {rhat:.3f}")
    guide = AutoNormal(model)
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.998}), elbo)
    for _ in range(1000):
        svi.step(y)
    guessed = torch.stack([guide(y)["x"] for _ in range(400)]).detach()
    pyro.clear_param_store()
    results[name] = truth, y, {"chains": chains.samples["x"].flatten(0, 1), "SVI": guessed}

# %%
# Calibration
# -----------
# Coverage of the 50 % and 90 % intervals of the missing pixels; the residual of the seen ones over
# the noise, whose expectation is known from the draws; and the rank of the true digit's likelihood
# among the draws', which catches what coverage misses.

fig, axs = plt.subplots(1, 4, figsize=(14, 3.2), layout="constrained")
for k, (name, (truth, y, methods)) in enumerate(results.items()):
    for method, draws in methods.items():
        cover = [pg.metrics.coverage(draws[..., ~seen], truth[:, ~seen], q) for q in (0.5, 0.9)]
        rmse = pg.metrics.rmse(draws.mean(0)[:, ~seen], truth[:, ~seen])
        law = dist.Normal(y, noise).to_event(1)
        ranks = pg.metrics.ranks(law.log_prob(draws[::8, :, seen]), law.log_prob(truth[:, seen]))
        share = ranks.double().mean() / len(draws[::8])
        print(f"{name:15s}{method:8s}", end="")
        print(f"coverage {cover[0]:.2f} / {cover[1]:.2f}, RMSE {rmse:.3f}, mean rank {share:.2f}")
        pg.plots.coverage(draws[..., ~seen], truth[:, ~seen], axs[k], label=method)
        if method == "chains":
            pg.plots.ranks(ranks, len(draws[::8]), axs[2 + k], bins=5)
    axs[k].set_title(f"missing pixels, {name}")
    axs[2 + k].set_title(f"rank of the likelihood, {name}")

# %%
# The digits
# ----------

truth, y, methods = results["held out"]
picture = torch.full_like(truth, torch.nan)
picture[:, seen] = y
shown = {"truth": truth, "seen": picture}
for method, draws in methods.items():
    shown |= {f"{method}, mean": draws.mean(0), f"{method}, sd": 3 * draws.std(0)}
shown |= {"a draw": methods["chains"][0], "another": methods["chains"][-1]}
pg.plots.images({name: column[:6] for name, column in shown.items()}, data.shape)
plt.show()
