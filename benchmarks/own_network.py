"""A network that was trained elsewhere, in azula, as a denoiser and a prior here.

Prints how far means and draws are from azula's own, and what azula does not have: the density, the
bound, and a posterior under a Pyro model.

    pip install azula==0.11.1
    OMP_NUM_THREADS=1 python benchmarks/own_network.py
"""

import itertools
import math
import warnings

import pyro
import pyro.distributions as dist
import torch
from azula.denoise import KarrasDenoiser
from azula.noise import VPSchedule
from azula.sample import DDIMSampler

import probgen as pg
from probgen.diffusion import DDIM, MMPS, CustomSchedule, NetworkDenoiser

torch.set_num_threads(1)
warnings.simplefilter("ignore")


class Backbone(torch.nn.Module):
    """A perceptron of values and the log of noise over signal."""

    def __init__(self, features, width=128):
        super().__init__()
        sizes = (features + 1, width, width, width, features)
        layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        parts = [part for layer in layers for part in (layer, torch.nn.SiLU())]
        self.net = torch.nn.Sequential(*parts[:-1])

    def forward(self, x, t):
        t = t.reshape(*t.shape, *[1] * (x.ndim - t.ndim)).expand(*x.shape[:-1], 1)
        return self.net(torch.cat([x, t], -1))


def logs(t):
    """Azula's schedule, whose noise does not end at 0."""
    log_alpha = math.log(1e-3) * t.square()
    return log_alpha, torch.log(-torch.expm1(2 * log_alpha) + 1e-6) / 2


def main(steps=4000):
    torch.manual_seed(0)
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    law = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.1, 0.2, 0.3, 0.4])), dist.Normal(corners, 0.2).to_event(1)
    )
    theirs = KarrasDenoiser(Backbone(2), VPSchedule())
    optimizer = torch.optim.Adam(theirs.parameters(), 2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        theirs.loss(law.sample((512,)), torch.rand(512)).backward()
        optimizer.step()
        decay.step()
    theirs.requires_grad_(False)

    ours = NetworkDenoiser(
        lambda x, t: theirs(x, t).mean, CustomSchedule(logs), (2,), predicts="x_0", plain=True
    )
    x, t = torch.randn(1000, 2), torch.rand(1000)
    print(f"means of noisy values: {float((ours.mean(x, t) - theirs(x, t).mean).abs().max()):.1e}")
    start = torch.randn(10_000, 2)
    drawn = DDIMSampler(theirs, steps=64, silent=True)(start)
    again = DDIM(65).sample(ours, start)
    print(
        f"draws by 64 steps of DDIM from the same noise: {float((drawn - again).abs().max()):.1e}"
    )

    prior = pg.distributions.Diffusion(ours, DDIM(64)).freeze()
    x = law.sample((2000,))
    gap = law.log_prob(x) - prior().log_prob(x)
    print(
        f"KL of the law from the model, by the flow: {float(gap.mean()):.3f} +- "
        f"{float(gap.std()) / 2000**0.5:.3f} nats, solver "
        f"{float(prior().solver_error(x).mean()):.1e}"
    )
    bound = law.log_prob(x) - prior().elbo(x)
    print(f"and by the bound: {float(bound.mean()):.3f} +- {float(bound.std()) / 2000**0.5:.3f}")

    def model(y):
        x = pg.sample("x", prior)
        pyro.sample("y", dist.Normal(x[0], 0.5), obs=y)

    y = torch.tensor(0.3)
    fine = torch.linspace(-2, 2, 401)
    grid = torch.stack(torch.meshgrid(fine, fine, indexing="ij"), -1)
    weight = (law.log_prob(grid) + dist.Normal(grid[..., 0], 0.5).log_prob(y)).flatten().softmax(0)
    exact = weight @ grid.reshape(-1, 2)
    for name, method in (("exact in base space", None), ("MMPS", MMPS)):
        found = pg.inference.posterior(model, y, method=method, draws=1024, seed=0, progress=False)
        mean = found.log_weights.softmax(0) @ found.draws["x"]
        print(f"posterior mean, {name}: {mean.tolist()}; by quadrature {exact.tolist()}")


if __name__ == "__main__":
    main()
