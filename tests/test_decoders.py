"""A decoder in the place of a Gaussian process, against the exact posterior."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import probgen as pg

N, LATENT, NOISE = 24, 10, 0.3
T = torch.linspace(0, 1, N)


def covariance(u):
    """Of a process whose lengthscale is 0.2 to 0.6 of the line, for u between 0 and 1."""
    scale = 0.2 * 3**u
    square = (T[:, None] - T).square()
    return torch.exp(-square / (2 * scale[..., None, None] ** 2)) + 1e-4 * torch.eye(N)


def draw(u):
    factor = torch.linalg.cholesky(covariance(u).double()).float()
    return (factor @ torch.randn(*u.shape, N, 1))[..., 0]


@pytest.mark.slow
def test_a_decoder_stands_for_a_gaussian_process_of_unknown_lengthscale():
    torch.manual_seed(0)
    u = torch.rand(40_000)
    f = draw(u)
    head = pg.distributions.DiagonalNormal(
        N, LATENT + 1, hidden_features=(128, 128), activation="silu", scale="shared"
    )
    vae = pg.models.ConditionalVAE(N, 1, LATENT, (128, 128), likelihood=head, activation="silu")
    options = {"lr": 3e-3, "schedule": "cosine", "seed": 0, "progress": False}
    pg.fit(vae, f, context=u[:, None], steps=3500, **options)
    prior = vae.freeze().pushforward

    torch.manual_seed(100)
    where = torch.randperm(N)[:8]
    y = draw(torch.tensor(0.5))[where] + NOISE * torch.randn(8)

    def model():
        u = pyro.sample("u", dist.Uniform(0.0, 1.0))
        f = pg.sample("f", prior, u[None])
        pyro.sample("y", dist.Normal(f[where], NOISE).to_event(1), obs=y)

    draws = pg.mcmc.run(model, chains=64, warmup=200, draws=200, seed=0, progress=False)
    found = draws.samples["f"].flatten(0, 1)
    assert float(draws.rhat()["f"].max()) < 1.02

    # a normal law for each lengthscale of a grid, weighted by its evidence
    grid = (torch.arange(200) + 0.5) / 200
    k = covariance(grid).double()
    seen = k[:, where][:, :, where] + NOISE**2 * torch.eye(8)
    weights = dist.MultivariateNormal(torch.zeros(8).double(), seen).log_prob(y.double()).softmax(0)
    gain = torch.linalg.solve(seen, k[:, where]).mT
    means = gain @ y.double()
    variances = (k - gain @ k[:, where]).diagonal(dim1=-2, dim2=-1)
    mean = weights @ means
    sd = (weights @ (variances + means.square()) - mean.square()).sqrt()
    assert ((found.mean(0) - mean).abs() / sd).max() < 0.1
    assert (found.std(0) / sd - 1).abs().max() < 0.1
