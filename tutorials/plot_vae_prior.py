r"""
An autoencoder as a prior
=========================

A variational autoencoder of digits is learned, frozen, and stands in a Pyro model as the prior of a
digit of which little is seen: every second pixel is missing, and the rest has noise,

.. math:: z \sim \mathcal{N}(0, I), \qquad x \sim \mathcal{N}(g(z), \tau^2 I), \qquad
    y \sim \mathcal{N}(A x, \sigma^2 I).

``pg.sample("x", vae)`` would state latent and digit as two sites. Here the second is normal given
the first and can be left out, :math:`y \sim \mathcal{N}(A g(z), (\tau^2 + \sigma^2) I)`, so the
decoder's mean is enough: the pushforward of the prior. Inference is exact under the model: by
Markov chains over the latents, and by variational inference for comparison. Both are checked
against digits that were drawn from the prior, and against real ones.
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
# Levels get uniform noise within a level. The noise of the likelihood has one scale for all pixels,
# which is learned.

data = pg.datasets.digits()
x = (data.images + torch.rand_like(data.images)) / data.levels
train, test = x[:1400], x[1400:]
head = pg.distributions.DiagonalNormal(64, 6, (64, 128), scale="shared")
vae = pg.models.VAE(64, 6, (128, 64), likelihood=head)
options = {"lr": 2e-3, "schedule": "cosine", "ema": 0.99, "seed": 0, "progress": False}
pg.fit(vae, train, steps=1200, **options)
vae.freeze()
spread = float(vae.decode(torch.zeros(6)).stddev[0])
print(
    f"noise of the decoder: {spread:.3f}; {pg.inference.diagnose(vae, test).active.sum()} latents"
)

# %%
# Measurements
# ------------
# Half of the pixels of 20 held-out digits, and of 20 digits that the prior itself drew, with noise
# of a fifth of the range. For the latter the model is true, and calibration must hold.

row, column = torch.arange(64) // 8, torch.arange(64) % 8
seen, noise = (row + column) % 2 == 0, 0.2
cases = {"held out": test[:20], "from the prior": vae().sample((20,))}

decoder = vae.pushforward
total = (noise**2 + spread**2) ** 0.5


def model(y):
    with pyro.plate("digits", len(y)):
        mean = pg.sample("mean", decoder)
        pyro.sample("y", dist.Normal(mean[..., seen], total).to_event(1), obs=y)


# %%
# Given the mean, pixels are independent: one that was not seen has the decoder's noise, one that
# was is normal between its mean and its measurement.


def complete(mean, y):
    x = mean + spread * torch.randn_like(mean)
    precision = spread**-2 + noise**-2
    between = (mean[..., seen] * spread**-2 + y * noise**-2) / precision
    x[..., seen] = between + precision**-0.5 * torch.randn_like(between)
    return x


# %%
# Inference
# ---------
# All digits run at once, in a plate. The warning names the latents of one held-out digit: its
# posterior has two separate modes, which weigh as many chains as started at each. The others have
# converged, as R-hat by digit shows.

results = {}
for name, truth in cases.items():
    y = truth[:, seen] + noise * torch.randn(len(truth), 32)
    start = time.perf_counter()
    chains = pg.mcmc.run(model, y, chains=32, seed=0, progress=False)
    seconds = time.perf_counter() - start
    rhat = chains.rhat()["mean_base"].amax(-1)
    print(
        f"{name}: chains in {seconds:.0f} s; split R-hat above 1.05 for {(rhat > 1.05).sum()}",
        end="",
    )
    print(f" of {len(y)} digits, largest {rhat.max():.2f}")
    guide = AutoNormal(model)
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.998}), elbo)
    for _ in range(1000):
        svi.step(y)
    base = torch.stack([guide(y)["mean_base"] for _ in range(800)]).detach()
    pyro.clear_param_store()
    means = {"chains": chains.samples["mean"].flatten(0, 1), "SVI": decoder.push(base)}
    results[name] = truth, y, {method: complete(m, y) for method, m in means.items()}

# %%
# Calibration
# -----------
# Coverage of the 50 % and 90 % intervals of the missing pixels; the residual of the seen ones over
# the noise, beside that of the truth; and the rank of the true digit's likelihood among the draws',
# which catches what coverage misses. For digits of the prior all must hold, and do. Real digits
# differ from what six latents can draw: one noise scale for all pixels is too wide for those that
# never change. There the variational posterior, which settles on one of several digits that fit,
# has the larger error.

fig, axs = plt.subplots(1, 4, figsize=(14, 3.2), layout="constrained")
for k, (name, (truth, y, methods)) in enumerate(results.items()):
    law = dist.Normal(y, noise).to_event(1)
    exact = float(((y - truth[:, seen]) / noise).square().mean().sqrt())
    for method, draws in methods.items():
        cover = [pg.metrics.coverage(draws[..., ~seen], truth[:, ~seen], q) for q in (0.5, 0.9)]
        rmse = pg.metrics.rmse(draws.mean(0)[:, ~seen], truth[:, ~seen])
        residual = float(((y - draws[..., seen]) / noise).square().mean().sqrt())
        ranks = pg.metrics.ranks(law.log_prob(draws[::8, :, seen]), law.log_prob(truth[:, seen]))
        share = float(ranks.double().mean()) / len(draws[::8])
        print(
            f"{name:15s}{method:7s}coverage {cover[0]:.2f} / {cover[1]:.2f}, RMSE {rmse:.3f}, ",
            end="",
        )
        print(f"residual {residual:.2f} (truth {exact:.2f}), mean rank {share:.2f}")
        pg.plots.coverage(draws[..., ~seen], truth[:, ~seen], axs[k], label=method)
        if method == "chains":
            pg.plots.ranks(ranks, len(draws[::8]), axs[2 + k], bins=8)
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
