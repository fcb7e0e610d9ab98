r"""
A score and its Langevin chain; one network, many samplers
==========================================================

A denoiser says which way data are, the score of data with noise,

.. math:: \nabla \log p_\sigma(x) = \frac{\hat x_0(x) - x}{\sigma^2}, \qquad
    p_\sigma = p * \mathcal{N}(0, \sigma^2 I),

by the rule of Tweedie. First such a score is drawn from by Langevin dynamics, in two dimensions
where it can be seen; then one network of digits is drawn from by many samplers and under schedules
that it has not been trained with.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_sample_image

import probgen as pg
from probgen import diffusion as d
from probgen import mcmc

torch.manual_seed(0)

# %%
# The colours of a photograph
# ---------------------------
# The data are the pixels of a photograph of scikit-learn, in the two measures of chroma that JPEG
# stores, blueness and redness: a large mode of leaves, and a smaller one of petals.

photo = torch.from_numpy(load_sample_image("flower.jpg").copy()).float()


def chroma(rgb: torch.Tensor) -> torch.Tensor:
    luma = rgb @ torch.tensor([0.299, 0.587, 0.114])
    return torch.stack([0.564 * (rgb[:, 2] - luma), 0.713 * (rgb[:, 0] - luma)], 1)


def colour(x: torch.Tensor, luma: float = 140.0) -> torch.Tensor:
    red, blue = luma + x[:, 1] / 0.713, luma + x[:, 0] / 0.564
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    return torch.stack([red, green, blue], 1).clamp(0, 255) / 255


pixels = photo.reshape(-1, 3)
pixels = pixels[torch.randperm(len(pixels))]
data = chroma(pixels + torch.rand_like(pixels))  # uniform noise within a level
train, test = data[:100_000], data[100_000:]

model = pg.models.NCSN(2, hidden_features=(64, 64, 64), high=5.0)
options = {"lr": 3e-3, "schedule": "cosine", "ema": 0.995, "seed": 0, "progress": False}
pg.fit(model, train, steps=2000, batch_size=256, **options)
model.freeze()

# %%
# Three scores
# ------------
# Arrows are :math:`\sigma \nabla \log p_\sigma`, at data with as much noise; noise is in units of
# the standard deviation of each measure, and long arrows are cut. With much noise they point to the
# whole, from anywhere. With little noise they point to the near mode; far from data, where the
# network has seen nothing in training, they say anything, and at the top nothing.

schedule = model.denoiser.schedule
low, high = torch.tensor([-80.0, -65.0]), torch.tensor([45.0, 125.0])
line = [torch.linspace(float(a), float(b), 15) for a, b in zip(low, high)]
points = torch.cartesian_prod(*line)
fig, axes = plt.subplots(1, 4, figsize=(11, 3.2), layout="constrained", width_ratios=[1.2, 1, 1, 1])
axes[0].imshow(photo / 255)
axes[0].set_axis_off()
axes[0].set_title("the data")
for ax, sigma in zip(axes[1:], (1.0, 0.3, 0.03)):
    t = schedule.time(-2 * torch.tensor(sigma).log())
    noisy = data[:3000] + sigma * model.scale * torch.randn(3000, 2)
    ax.scatter(*noisy.T, s=2, c=pixels[:3000] / 255, alpha=0.6)
    with torch.no_grad():
        arrows = sigma * model.scale.square() * model.score(points, t)
    arrows = arrows / arrows.norm(dim=1, keepdim=True).clamp_min(30)  # no longer than this
    ax.quiver(*points.T, *arrows.T, width=0.006, scale=17, pivot="mid")
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="blueness")
    ax.set_title(rf"noise $\sigma = {sigma}$")
axes[1].set_ylabel("redness")

# %%
# Langevin chains
# ---------------
# Annealed Langevin dynamics takes steps :math:`x \leftarrow x + \epsilon \sigma_k^2
# \nabla \log p_{\sigma_k}(x) + \sqrt{2 \epsilon} \, \sigma_k \xi` at levels of falling noise, here
# 20 at each of 25. Plain Langevin dynamics takes as many at one level. It starts anywhere in the
# frame.

levels, moves, count = 25, 20, 3000


def split(x: torch.Tensor) -> float:
    return float((x[:, 1] > 10).float().mean())  # the share of petals


def energy(x: torch.Tensor, y: torch.Tensor) -> float:
    within = [torch.cdist(v, v).sum() / (len(v) * (len(v) - 1)) for v in (x, y)]
    return float(2 * torch.cdist(x, y).mean() - sum(within))


def report(name: str, x: torch.Tensor) -> tuple[float, float]:
    wrong, far = abs(split(x) - split(test)), energy(x, test[:5000])
    print(f"{name}: petals {split(x):.3f}, total variation {wrong:.3f}, energy distance {far:.2f}")
    return wrong, far


def plain(sigma: float, parts: int = 4) -> list[torch.Tensor]:
    """The particles on their way under the score of one level."""
    t = schedule.time(-2 * torch.tensor(sigma).log())
    kernel = mcmc.AnnealedULA(torch.tensor([sigma]), levels * moves // parts, 0.2)
    x = low + (high - low) * torch.rand(1000, 2)
    way = [x]
    with torch.no_grad():
        for _ in range(parts):
            y = kernel.sample(model.standardized(way[-1]), lambda y, _: model.denoiser.score(y, t))
            way.append(model.shift + model.scale * y)
    return way


way: list[torch.Tensor] = []
start = d.noise(model.denoiser, torch.Size([count]), model.scale)
d.AnnealedLangevin(levels, moves, 0.2).sample(
    model.denoiser, start, callback=lambda k, y: way.append(model.shift + model.scale * y)
)
print(f"held-out pixels: petals {split(test):.3f}")
print(f"training pixels: energy distance {energy(train[:count], test[:5000]):.2f}")
best = report("annealed", way[-1])
single = {sigma: plain(sigma) for sigma in (0.01, 0.1, 0.3, 1.0)}
found = [report(f"plain, noise {sigma}", x[-1]) for sigma, x in single.items()]

fig, axes = plt.subplots(3, 5, figsize=(10, 6), layout="constrained", sharex=True, sharey=True)
noise = (schedule.high / schedule.low) ** (-torch.arange(levels) / (levels - 1)) * schedule.high
for column, k in enumerate((3, 7, 11, 15, len(way) - 1)):  # the last has no noise
    title = rf"annealed, $\sigma = {noise[k]:.2g}$" if k < levels else "annealed, denoised"
    pictures = [(title, way[k][:1000])]
    for sigma in (0.1, 0.01):
        title = rf"$\sigma = {sigma}$, {column * levels * moves // 4} steps"
        pictures.append((title, single[sigma][column]))
    for ax, (title, x) in zip(axes[:, column], pictures):
        ax.scatter(*x.T, s=1, c=colour(x))
        ax.set_title(title, fontsize=9)
axes[0, 0].set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
fig.supxlabel("blueness", fontsize=10)
fig.supylabel("redness", fontsize=10)

# %%
# Petals are 0.24 of the photograph. The annealed chain gives them 0.26, with an energy distance to
# held-out pixels of 0.02. With one noise of 0.01, the last level of the others, particles have not
# even arrived after 500 steps. With 0.1 each goes to the mode that is near, so that petals get
# 0.61, as they have 0.61 of the frame. With 0.3 the modes exchange particles, and petals have
# 0.34, but draws are blurred, and with 1 they are one cloud.

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for ax, k, name in ((left, 0, "total variation of mode weights"), (right, 1, "energy distance")):
    ax.semilogx(list(single), [f[k] for f in found], "o-", label="plain, one level")
    ax.axhline(best[k], color="tab:orange", label="annealed, all levels")
    ax.set(xlabel=r"noise $\sigma$ of the level", title=name)
left.set(ylim=(0, None))
right.set(yscale="log")
left.legend()

# %%
# One network, many samplers
# --------------------------
# The network of EDM, trained on digits under the schedule of Karras et al. What samplers make of it
# is compared by the sliced Wasserstein distance of 720 draws to held-out digits, the mean distance
# of quantiles along 400 directions, in levels. The floor is that of training digits, which differ
# from held-out ones too. Evaluations of the network are counted.

digits = pg.datasets.digits().images
digits = digits[torch.randperm(len(digits))]
train, test = digits[:1437].repeat(4, 1), digits[1437:] + torch.rand(360, 64)
train = train + torch.rand_like(train)
model = pg.models.EDM(64, hidden_features=(256, 256))
options |= {"lr": 2e-3, "ema": 0.99}
pg.fit(model, train, steps=1500, batch_size=128, **options)
model.freeze()
denoiser, network, count = model.denoiser, model.denoiser.network, 720
evaluations = []
network.register_forward_hook(lambda *_: evaluations.append(1))

directions = torch.nn.functional.normalize(torch.randn(64, 400), dim=0)
places = (torch.arange(180) + 0.5) / 180
truth = torch.quantile(test @ directions, places, 0)


def distance(x: torch.Tensor) -> float:
    return float((torch.quantile(x @ directions, places, 0) - truth).abs().mean())


def draw(sampler: d.Sampler, denoiser: d.Denoiser, seed: int = 1) -> tuple[int, float]:
    """The evaluations and the distance."""
    torch.manual_seed(seed)
    evaluations.clear()
    x = sampler.sample(denoiser, d.noise(denoiser, torch.Size([count]), model.scale))
    return len(evaluations), distance(model.shift + model.scale * x)


parts = torch.stack([torch.randperm(1437)[:count] for _ in range(20)])
floors = torch.tensor([distance(train[part]) for part in parts])
print(f"training digits: {floors.mean():.3f} +- {floors.std():.3f}")

rho = d.KarrasGrid()
samplers = {
    "DPM-Solver++": lambda n: d.DPMSolver(n),
    "Heun": lambda n: d.Heun(n // 2),
    "Runge-Kutta": lambda n: d.ODESolver(n // 4),
    "DDIM": lambda n: d.DDIM(n, grid=rho),
    r"DDIM, $\eta = 1$, or ancestral": lambda n: d.DDIM(n, eta=1.0, grid=rho),
    "predictor-corrector": lambda n: d.PredictorCorrector(d.Ancestral(n // 2, grid=rho)),
}
counts = [8, 16, 32, 64, 128]
marks = dict(zip(samplers, ["o-", "s-", "^-", "o-", "o-", "v-"]))
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
for name, build in samplers.items():
    found = [draw(build(n), denoiser) for n in counts]
    left.loglog(*zip(*found), marks[name], ms=4, label=name)
    print(f"{name:30}", " ".join(f"{n}: {far:.2f}" for n, far in found))
same = [draw(s, denoiser)[1] for s in (d.DDIM(16, 1.0, rho), d.Ancestral(16, grid=rho))]
print(f"DDIM with eta = 1 and ancestral differ by {abs(same[0] - same[1]):.1e}")
langevin = [draw(d.AnnealedLangevin(n, 4, 0.2), denoiser) for n in (32, 64, 128)]
print(f"{'annealed Langevin':30}", " ".join(f"{n}: {far:.2f}" for n, far in langevin))
half = draw(d.AnnealedLangevin(128, 4, 0.1), denoiser)
print(f"{'with half the step':30}", "{}: {:.2f}".format(*half))
left.loglog(*zip(*langevin), "d-", ms=4, label="annealed Langevin")

# %%
# The network sees the ratio of signal to noise, so that any schedule can be put around it. The
# samplers have a grid of their own above. With one that is even in time, the schedule is nothing
# but the grid.

schedules = {
    "Karras": d.Karras(),
    "VP": d.VP(),
    "cosine": d.Cosine(),
    "rectified": d.Rectified(),
}
others = {
    name: d.NetworkDenoiser(network, schedule, (64,), predicts="edm")
    for name, schedule in schedules.items()
}
for name, other in others.items():
    found = [draw(d.DPMSolver(n, grid=d.UniformGrid()), other) for n in counts]
    right.loglog(*zip(*found), "o-", ms=4, label=name)
    print(f"{name:10}", " ".join(f"{n}: {far:.2f}" for n, far in found))
for ax in (left, right):
    ax.axhspan(
        *(floors.mean() + torch.tensor([-2, 2]) * floors.std()).tolist(),
        color="0.85",
        zorder=0,
        label="training digits",
    )
    ax.set(xlabel="evaluations of the network", ylim=(0.25, 5), xticks=counts, xticklabels=counts)
    ax.set(yticks=[0.3, 0.5, 1, 2, 4], yticklabels=[0.3, 0.5, 1, 2, 4])
    ax.minorticks_off()
    ax.legend(fontsize=8)
left.set(ylabel="sliced Wasserstein distance", title="samplers, schedule of training")
right.set(title="DPM-Solver++, schedules after training")

# %%
# Solvers of the flow of the probability need few evaluations: measured, 0.38 with 8 of
# DPM-Solver++, 0.36 with 9 of Runge-Kutta, and 0.37 with 128, where the floor is 0.35. Heun's
# method is useless with 7 and has 0.34 with 31. DDIM, of first order, has 0.46 with 32. What adds
# noise needs more: 0.45 with 128 for the ancestral sampler, which is DDIM with
# :math:`\eta = 1`, number for number, and 0.47 with 127 for predictor and corrector. The annealed
# chain has 0.43 with 129 and 0.39 with four times as many levels.
#
# Even in time, grids differ with 8 evaluations, from 0.42 for the rectified schedule to 0.56 for
# that of Karras et al., by 0.04 with 16, and with 32 no more.
#
# One noise, one digit
# --------------------
# The flow is that of the network, whatever the schedule: from one noise, all solvers of it draw the
# same digits, 32 evaluations each. Samplers with noise draw others, and again others.

torch.manual_seed(3)
start = torch.randn(12, 64)
rows = {
    "DPM-Solver++": (d.DPMSolver(32), "Karras"),
    "Heun": (d.Heun(16), "Karras"),
    "DDIM": (d.DDIM(32, grid=rho), "Karras"),
    "DPM-Solver++, VP": (d.DPMSolver(32), "VP"),
    "Runge-Kutta, cosine": (d.ODESolver(8), "cosine"),
    "ancestral": (d.Ancestral(32, grid=rho), "Karras"),
    "ancestral again": (d.Ancestral(32, grid=rho), "Karras"),
}
fig, axes = plt.subplots(len(rows), 12, figsize=(9, 5), layout="constrained")
for line, (name, (sampler, key)) in zip(axes, rows.items()):
    alpha, sigma = schedules[key](torch.tensor(schedules[key].latest))
    x = sampler.sample(others[key], (alpha.square() + sigma.square()).sqrt() * start)
    for ax, picture in zip(line, model.shift + model.scale * x):
        ax.imshow(picture.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        ax.set(xticks=[], yticks=[])
    line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
