r"""Non-centred sites: the geometry of hierarchical models made easy.

A site :math:`\theta \sim p(\theta; m, s)` of a location-scale family whose scale :math:`s` is
itself unknown makes a funnel: the less :math:`s`, the narrower the density in :math:`\theta`. Its
standardised form :math:`z = (\theta - m) / s` is independent of :math:`s` a priori.

References:
    | Papaspiliopoulos, Roberts & Skold, "A general framework for the parametrization of
      hierarchical models", 2007, https://doi.org/10.1214/088342307000000014
    | Betancourt & Girolami, "Hamiltonian Monte Carlo for hierarchical models", 2013,
      https://arxiv.org/abs/1312.0906
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .place import Place, unchecked

__all__ = ["funnels", "noncentered"]


class Funnels(Messenger):
    """Finds latent sites of location-scale families whose scale depends on other latent sites."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn = msg["fn"]
        while not hasattr(fn, "scale") and hasattr(fn, "base_dist"):
            fn = fn.base_dist
        loc, scale = getattr(fn, "loc", None), getattr(fn, "scale", None)
        known = msg["is_observed"] or msg["name"].endswith("_decentered")
        if known or not isinstance(loc, Tensor) or not isinstance(scale, Tensor):
            return
        if scale.requires_grad:
            self.names.append(msg["name"])

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        value = msg["value"]
        if not msg["is_observed"] and isinstance(value, Tensor) and value.is_floating_point():
            msg["value"] = value.detach().requires_grad_()


def funnels(model: Callable[[], Any]) -> list[str]:
    """Name the latent location-scale sites whose scale depends on other latent sites.

    Arguments:
        model: A Pyro model without arguments.
    """
    found, place = Funnels(), Place(marginal=True)
    with torch.random.fork_rng(), unchecked(), torch.enable_grad(), poutine.block(), place, found:
        model()
    return found.names


def noncentered(model: Callable[..., Any], sites: Iterable[str]) -> Callable[..., Any]:
    """Standardise sites of a Pyro model: each is sampled as :math:`z = (\\theta - m) / s`.

    Arguments:
        model: The Pyro model.
        sites: The names of the sites.

    Returns:
        The model, with each site deterministic and a latent site `"<name>_decentered"`.
    """
    return poutine.reparam(model, config={name: LocScaleReparam(0.0) for name in sites})
