"""What several tests of mcmc share."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from probgen.mcmc import run

Y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])

SIGMA = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])

EIGHT = {"mu": 4.397, "tau": 3.598, "theta": 6.212}  # exact, by quadrature


def eight_schools():
    mu = pyro.sample("mu", dist.Normal(0, 5))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(0, 1))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, SIGMA), obs=Y)


def z_score(x, exact):
    """How many standard errors a mean is off, with those of the chains' means."""
    means = x.double().mean(1)
    return float(abs(means.mean() - exact) / (means.std() / len(means) ** 0.5))


@pytest.fixture(scope="module")
def draws():
    return run(eight_schools, chains=16, warmup=50, draws=40, superchains=4, seed=0, progress=False)
