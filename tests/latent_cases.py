"""What several tests of latent share."""

import pytest
import torch

import probgen as pg


@pytest.fixture
def labelled(float64):
    torch.manual_seed(5)
    model = pg.models.SemiSupervisedVAE(4, classes=3, latent=1, hidden_features=(8,)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return model


def widen(model):
    """Makes the posterior the prior, from which one latent is well sampled."""
    with torch.no_grad():
        for p in model.posterior.parameters():
            p.zero_()
