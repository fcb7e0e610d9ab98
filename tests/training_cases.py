"""What several tests of training share."""

import pytest
import torch

import probgen as pg

QUICK = {"progress": False, "seed": 0}


def small(context=0):
    torch.manual_seed(0)
    return pg.models.MAF(2, context, transforms=2, hidden_features=(8,))


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(100, 2) * torch.tensor([1.0, 20.0]) + torch.tensor([0.0, 300.0])
