"""What tests of log densities of many chains share."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import eye

from probgen.mcmc.pyro.model_run import unchecked

nan = math.nan


def probs(p):
    return torch.stack([p, 1 - p])


def trans(p, s):
    return torch.stack([torch.stack([p, 1 - p]), torch.stack([1 / (1 + s), s / (1 + s)])]).log()


def mvn(a, s):
    return dist.MultivariateNormal(a.expand(2), s * eye(2))


def tril(s):
    return torch.stack([torch.stack([s, s * 0]), torch.stack([s * 0.3, s])])


def scan():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Beta(2.0, 2.0))
    h = [torch.tensor(1.0)]
    for _ in range(20):
        h.append((0.1 + a.square() * 0.1 + b * h[-1].square()).sqrt())
    pyro.sample("y", dist.Normal(0.0, torch.stack(h)).to_event(1), obs=torch.ones(21))


def check_chains(log_density, x):
    """Values and gradients are those of one chain."""
    value, gradient = log_density.value_and_gradient(x)
    for k in range(len(x)):
        u = x[k].clone().requires_grad_()
        with unchecked():
            exact = log_density.total(u)
        (slope,) = torch.autograd.grad(exact, u)
        torch.testing.assert_close(value[k], exact.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient[k], slope, rtol=1e-3, atol=1e-3)
