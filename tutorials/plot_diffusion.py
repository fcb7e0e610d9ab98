r"""
A diffusion: one network, many samplers
=======================================

A diffusion learns one thing, the datum expected behind noise,

.. math:: \hat x_0(x_t, t) \approx \mathbb{E}[x_0 \mid x_t], \qquad
    x_t = \alpha_t x_0 + \sigma_t \epsilon,

and everything else follows: samplers, a density by the flow of the probability, a bound, and
posteriors given measurements. Here the data are handwritten digits of scikit-learn, 8 x 8 pixels.
"""

import matplotlib.pyplot as plt
import torch

import probgen as pg
from probgen import diffusion as d

torch.manual_seed(0)

# %%
# Training
# --------
# Levels 0 to 16 get uniform noise within a level, so that they have a density. One call trains the
# preconditioned network of EDM; the module holds the units of the data.

data = pg.datasets.digits()
levels = data.images
order = torch.randperm(len(levels))
train, test = levels[order[:1437]], levels[order[1437:]]
train = train.repeat(4, 1)
train = train + torch.rand_like(train)
test = test + torch.rand_like(test)

model = pg.models.EDM(features=64, hidden_features=(256, 256, 256))
history = pg.fit(
    model,
    train,
    steps=1500,
    batch_size=256,
    lr=2e-3,
    schedule="cosine",
    ema=0.99,
    seed=0,
    progress=False,
)
model.freeze()

# %%
# The error at each noise
# -----------------------
# The loss of one datum is a squared error at one time. At little noise there is little to do, and
# at much noise little can be known; most is learned between. The dotted line is the best that can
# be done for pixels that are normal and independent.

denoiser = model.denoiser
y = model.standardized(test)
times = torch.linspace(0, 1, 40)
errors, ratio = [], denoiser.schedule.log_snr(times)
with torch.no_grad():
    for t in times:
        alpha, sigma = denoiser.signal(t)
        mean = denoiser.mean(alpha * y + sigma * torch.randn_like(y), t)
        errors.append(float((mean - y).square().mean()))
noise = denoiser.schedule(times)[1]

fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
ax.loglog(noise, errors, "o-", ms=3, label="denoised")
ax.loglog(noise, noise.square() / (1 + noise.square()), "k:", label="as if pixels were independent")
ax.set(xlabel=r"noise $\sigma$", ylabel="squared error per pixel", ylim=(1e-6, 3))
ax.legend()

# %%
# Many samplers
# -------------
# The same network draws by any sampler. Their quality is compared without another network: the mean
# distance of a draw to its nearest test digit, and of a test digit to its nearest draw, each in
# units of what held-out digits and training digits have between them. Draws are fewer than training
# digits, so that 1 is not reached. Heun's method with 8 evaluations is off the scale.

reference = torch.cdist(test, train[:1437]).min(1).values.mean()


def quality(x: torch.Tensor) -> tuple[float, float]:
    far = torch.cdist(x, test)
    near, covered = far.min(1).values.mean(), far.min(0).values.mean()
    return float(near / reference), float(covered / reference)


def draw(sampler: d.Sampler, count: int = 360) -> torch.Tensor:
    start = d.noise(denoiser, torch.Size([count]), model.scale)
    return model.shift + model.scale * sampler.sample(denoiser, start)


samplers = {
    "DDIM": lambda n: d.DDIM(n, grid=d.KarrasGrid()),
    "DPM-Solver++": lambda n: d.DPMSolver(n),
    "Heun": lambda n: d.Heun(max(n // 2, 1)),
    "ancestral": lambda n: d.Ancestral(n, grid=d.KarrasGrid()),
}
counts = [8, 16, 32, 64, 128]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharex=True)
for name, build in samplers.items():
    found = [quality(draw(build(n))) for n in counts]
    left.semilogx(counts, [f[0] for f in found], "o-", ms=4, label=name)
    right.semilogx(counts, [f[1] for f in found], "o-", ms=4)
    print(f"{name:14} {found[-1][0]:.2f} {found[-1][1]:.2f} with {counts[-1]} evaluations")
left.set(xlabel="evaluations of the network", ylabel="distance", title="draw to test digits")
right.set(xlabel="evaluations of the network", title="test digit to draws")
for ax in (left, right):
    ax.set(ylim=(1.1, 2))
left.legend()

# %%
# Draws, and the way of four of them from noise.

steps = []
start = d.noise(denoiser, torch.Size([4]), model.scale)
d.DPMSolver(16).sample(denoiser, start, callback=lambda k, x: steps.append(x))
x = draw(d.DPMSolver(32), 40)

fig = plt.figure(figsize=(9, 4.6), layout="constrained")
top, bottom = fig.subfigures(2, 1, height_ratios=[4, 4])
for k, ax in enumerate(top.subplots(4, 10).flat):
    ax.imshow(x[k].reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
    ax.set_axis_off()
top.suptitle("draws")
for row, axes in enumerate(bottom.subplots(4, 16)):
    for k, ax in enumerate(axes):
        shown = model.shift + model.scale * steps[k][row]
        ax.imshow(shown.reshape(8, 8), cmap="gray_r")
        ax.set_axis_off()
bottom.suptitle("from noise to digits in 16 steps")

# %%
# Density and bound
# -----------------
# The flow of the probability gives the log density of any value, up to the solver's error; the
# bound needs one evaluation for each datum. In bits per pixel, beside a flow of this package.

few = test[:40]
bits = 1 / (64 * torch.log(torch.tensor(2.0)))
density = -float(model().log_prob(few).mean()) * bits
bound = -float(torch.stack([model.elbo(test) for _ in range(50)]).mean()) * bits
flow = pg.models.MAF(64, transforms=5, hidden_features=(256,))
pg.fit(
    flow,
    train,
    validation=0.1,
    steps=600,
    batch_size=256,
    schedule="cosine",
    seed=0,
    progress=False,
)
peer = -float(flow.freeze()().log_prob(few).mean()) * bits
print(f"bits per pixel: flow of the probability {density:.2f}, bound {bound:.2f}, MAF {peer:.2f}")

# %%
# Given a measurement
# -------------------
# The lower half of held-out digits is missing and the upper has noise of one level. A guide makes
# another denoiser of this one, and the same samplers draw. Moment matching takes the covariance of
# the denoiser itself; diffusion posterior sampling takes the datum as known.

mask = (torch.arange(64) < 32).float()
cases = test[:6]
seen = cases[:, :32] + torch.randn(6, 32)
scale, shift = model.scale[:32], model.shift[:32]
sd = 1 / scale  # of the noise, in the denoiser's units
draws, guides = {}, ("moment matching", "point estimate")
for name in guides:
    found = []
    for y in (seen - shift) / scale:
        if name == guides[0]:
            guided = d.MMPS(denoiser, lambda x: x[..., :32], y, sd, steps=5)
        else:
            law = torch.distributions.Independent(torch.distributions.Normal(y, sd), 1)
            guided = d.DPS(denoiser, lambda x, law=law: law.log_prob(x[..., :32]), weight=0.1)
        start = d.noise(denoiser, torch.Size([48]), model.scale)
        x = d.Ancestral(64, grid=d.KarrasGrid()).sample(guided, start)
        found.append(model.shift + model.scale * x)
    draws[name] = torch.stack(found)

for name, x in draws.items():
    low, high = x.quantile(0.05, 1), x.quantile(0.95, 1)
    inside = ((cases > low) & (cases < high))[:, 32:].float().mean()
    miss = (x.mean(1) - cases)[:, 32:].square().mean().sqrt()
    residual = ((x[..., :32] - seen[:, None]).square().mean()).sqrt()
    print(
        f"{name}: error {miss:.2f} levels on the missing half, {inside:.2f} of its pixels in their "
        f"90 % intervals, residual {residual:.2f} levels of noise on the seen half"
    )

fig, axes = plt.subplots(6, 8, figsize=(8, 6), layout="constrained")
for row, case in zip(range(6), cases):
    shown = torch.cat([seen[row], torch.full((32,), 8.0)])
    mm = draws[guides[0]][row]
    pictures = [case, shown, mm.mean(0), 2 * mm.std(0), *mm[:2], *draws[guides[1]][row][:2]]
    for ax, picture in zip(axes[row], pictures):
        ax.imshow(picture.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        ax.set(xticks=[], yticks=[])
titles = ["truth", "seen", "mean", "2 sd", "draw", "draw", "point", "point"]
for ax, title in zip(axes[0], titles):
    ax.set_title(title, fontsize=9)
