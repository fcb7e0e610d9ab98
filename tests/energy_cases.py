"""What several tests of energy share."""

import torch
from sklearn.datasets import load_digits

from probgen.distributions.energy.boltzmann import states


def every(units, lower=0):
    return torch.cat(list(states(units, lower, torch.ones((), dtype=torch.double))))


def chi2(count, p):
    """The p-value of counts under probabilities, cells expected below 5 together."""
    expected = count.sum() * p
    few = expected < 5
    count = torch.cat([count[~few], count[few].sum(0, keepdim=True)])
    expected = torch.cat([expected[~few], expected[few].sum(0, keepdim=True)])
    kept = expected > 0
    value = ((count - expected).square()[kept] / expected[kept]).sum()
    return float(torch.special.gammaincc((kept.sum() - 1) / 2, value / 2))


def number(x, lower):
    """The index of states in the order of `every`."""
    up = (x - lower) / (1 - lower)
    return (up @ (2.0 ** torch.arange(x.shape[-1])).to(x)).long()


GRAPH = torch.tensor(
    [[0, 1, 0, -0.5], [1, 0, 0.3, 0], [0, 0.3, 0, 0.8], [-0.5, 0, 0.8, 0]], dtype=torch.double
)


def digits():
    x = torch.tensor(load_digits().data / 16 > 0.5).float()
    return x[:1437], x[1437:]
