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

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.infer.reparam import LocScaleReparam
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .model_run import SiteRecorder, unchecked

__all__ = ["funnels", "named", "noncentered"]


FAMILIES = (
    *(dist.Normal, dist.StudentT, dist.Cauchy, dist.Laplace, dist.Gumbel, dist.Logistic),
    *(dist.SoftLaplace, dist.AsymmetricLaplace),
)


class Funnels(Messenger):
    """Finds latent sites of location-scale families, and those of a scale that is latent too."""

    def __init__(self) -> None:
        super().__init__()
        self.located: list[str] = []
        self.names: list[str] = []

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn, name = msg["fn"], msg["name"]
        while isinstance(fn, (dist.Independent, MaskedDistribution, ExpandedDistribution)):
            fn = fn.base_dist
        if msg["is_observed"] or not isinstance(fn, FAMILIES):
            return
        if name.endswith(("_decentered", "_unobserved")):  # of a reparameterised or observed site
            return
        self.located.append(name)
        if isinstance(fn.scale, Tensor) and fn.scale.requires_grad:
            self.names.append(name)

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        value = msg["value"]
        if not msg["is_observed"] and isinstance(value, Tensor) and value.is_floating_point():
            msg["value"] = value.detach().requires_grad_()


def funnels(model: Callable[[], Any]) -> list[str]:
    """Name the latent location-scale sites whose scale depends on other latent sites.

    Arguments:
        model: A Pyro model without arguments.
    """
    return search(model).names


def search(model: Callable[[], Any]) -> Funnels:
    found, place = Funnels(), SiteRecorder(marginal=True)
    with torch.random.fork_rng(), unchecked(), torch.enable_grad(), poutine.block(), place, found:
        model()
    return found


def named(model: Callable[[], Any], sites: Iterable[str] | bool) -> list[str]:
    """Return the sites to standardise by their names.

    Arguments:
        model: A Pyro model without arguments.
        sites: The names, or True for all that :func:`funnels` finds.

    Raises:
        ValueError: If there is none, or a name is of no latent site of a location-scale family.
    """
    if sites is False:
        return []
    found = search(model)
    if sites is True:
        if not found.names:
            raise ValueError(
                "Expected sites to standardise under `noncentered`, got a model without a latent "
                "location-scale site whose scale depends on another site."
            )
        return found.names
    names = [sites] if isinstance(sites, str) else list(sites)
    unknown = sorted(set(names) - set(found.located))
    if unknown:
        raise ValueError(
            f"Expected `noncentered` to name latent sites of location-scale families on the real "
            f"line, among {found.located}, got {unknown}."
        )
    return names


def noncentered(model: Callable[..., Any], sites: Iterable[str]) -> Callable[..., Any]:
    """Standardise sites of a Pyro model: each is sampled as :math:`z = (\\theta - m) / s`.

    Arguments:
        model: The Pyro model.
        sites: The names of the sites.

    Returns:
        The model, with each site deterministic and a latent site `"<name>_decentered"`.
    """
    return poutine.reparam(model, config={name: LocScaleReparam(0.0) for name in sites})
