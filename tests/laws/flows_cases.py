"""What several tests of flows share."""

import pytest
import torch

from tests.rosters import FLOWS, moved

D = 3


@pytest.fixture(params=FLOWS)
def name(request):
    return request.param


@pytest.fixture
def flow(name):
    return moved(FLOWS[name](D, 0))


def draws(module, *shape, context=None):
    return module(context).sample(shape)


def grid(flow, count, reach):
    """Points of one feature, dense at the edges of a bounded support."""
    support = flow().support.base_constraint
    to_support = torch.distributions.biject_to(support)
    if support is torch.distributions.constraints.real:
        return reach * torch.linspace(-1, 1, count) ** 3
    return to_support(torch.linspace(-30.0, 30.0, count))
