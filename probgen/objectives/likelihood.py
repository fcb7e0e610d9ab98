r"""Objectives of distributions with a density.

Maximum likelihood minimises the divergence from the data to the model, reverse KL that from the
model to a target whose log density :math:`\log \tilde p` is known up to a constant,

.. math:: -\mathbb{E}_{x \sim \mathrm{data}} \log p_\theta(x), \qquad
    \mathbb{E}_{x \sim p_\theta} \left[ \log p_\theta(x) - \log \tilde p(x) \right].

The first covers all of the data, the second seeks a mode. An objective is an object: called with
a lazy distribution and a batch it returns one loss per item, which :func:`probgen.fit` averages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import record
from ..core.contracts import HasDensity
from ..core.validation import check_whole
from .base import Objective

__all__ = ["MaximumLikelihood", "ReverseKL"]


@record
class MaximumLikelihood(Objective):
    """The negative log-likelihood of data, or its bound where `log_prob` is one.

    Example:
        >>> import probgen as pg
        >>> MaximumLikelihood()(pg.models.MAF(2), torch.randn(5, 2)).shape
        torch.Size([5])
    """

    requires = (HasDensity,)

    def losses(self, module: HasDensity, x: Tensor, context: Any) -> Tensor:
        return -module(context).log_prob(x)


@record
class ReverseKL(Objective):
    r"""The Kullback-Leibler divergence from the model to an unnormalised target.

    References:
        | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015)
        | https://arxiv.org/abs/1505.05770

    Arguments:
        log_density: The map from :math:`x`, with shape :math:`(*, D)`, to
            :math:`\log \tilde p(x)`, with shape :math:`(*)`; given the context second if the
            module takes one.
        particles: The number of draws per step (per context, if there is one).

    Example:
        >>> import probgen as pg
        >>> target = lambda x: -x.square().sum(-1) / 2
        >>> flow = pg.models.IAF(2)
        >>> history = pg.fit(flow, None, objective=ReverseKL(target), steps=5, progress=False)
        >>> len(history.losses)
        5
    """

    log_density: Callable[..., Tensor]
    particles: int = 64

    requires = (HasDensity,)
    fits = False

    def __post_init__(self) -> None:
        check_whole(1, particles=self.particles)

    def losses(self, module: HasDensity, x: None, context: Any) -> Tensor:
        r"""Losses with shape :math:`(\mathrm{particles})`, or :math:`(N)` for `N` contexts."""
        q = module(context)
        if not q.has_rsample:
            raise ValueError(
                f"Expected a distribution with `rsample`, since ReverseKL differentiates draws, "
                f"got a {type(q).__name__} without: its base is discrete or a mixture."
            )
        z = q.rsample(torch.Size([self.particles]))
        target = self.log_density(z) if context is None else self.log_density(z, context)
        log_prob = q.log_prob(z)
        if not isinstance(target, Tensor) or target.shape != log_prob.shape:
            got = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
            raise ValueError(
                f"Expected `log_density` to return a tensor with shape {tuple(log_prob.shape)}, "
                f"got {got}."
            )
        losses = log_prob - target
        return losses if context is None else losses.mean(0)
