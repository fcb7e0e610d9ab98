r"""The base of latent-variable models.

With draws :math:`z_k \sim q(z \mid x)` and :math:`w_k = p(x, z_k) / q(z_k \mid x)`,

.. math:: \log p(x) \ge E \log \frac{1}{K} \sum_{k=1}^K w_k,

which is the density here: a bound, the tighter the more draws.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core import Density, LazyDistribution
from ...core.cards import Traits
from ...core.contracts import HasLatents
from ...core.validation import check_event, check_whole
from ...objectives import Weights
from ...objectives.variational import log_mean_exp, with_scores
from ..module_distribution import ModuleDistribution

__all__ = ["LatentVariable", "Marginal"]

CHUNK = 2**22  # numbers of the draws' data that are held at once


class Marginal(NamedTuple):
    r"""Estimates of :math:`\log p(x)` from importance-weighted draws.

    Arguments:
        value: The estimates, lower bounds in expectation, with shape :math:`(*)`.
        se: Their standard errors, with shape :math:`(*)`.
        ess: The effective sample sizes, with shape :math:`(*)`.
        samples: The number of draws.
    """

    value: Tensor
    se: Tensor
    ess: Tensor
    samples: int

    @staticmethod
    def of(log_w: Tensor) -> Marginal:
        """Estimates from log weights with shape :math:`(K, *)`."""
        k = len(log_w)
        share = log_w.softmax(0)
        ess = 1 / share.square().sum(0)
        variance = (share - 1 / k).square().sum(0) * k / max(k - 1, 1)
        return Marginal(log_mean_exp(log_w), variance.sqrt(), ess, k)


@HasLatents.register
class LatentVariable(LazyDistribution):
    """A lazy distribution of data with latent variables, whose density is a bound."""

    density = Density.BOUND
    traits = Traits("learned, of a chosen size", "one pass")

    samples: int = 1  #: the number of draws of the density
    variational: bool = (
        True  #: whether :class:`~probgen.objectives.Variational` objectives train it
    )

    @abstractmethod
    def weigh(
        self,
        x: Tensor,
        context: Any = None,
        samples: int = 1,
        *,
        analytic: bool = False,
        stopped: bool = False,
        held: bool = False,
    ) -> Weights:
        """Draw latents given data, and tell what objectives need of them.

        Arguments:
            x: The data, with shape :math:`(*, event)`.
            context: The contexts, if the model takes them.
            samples: The number of draws :math:`K`.
            analytic: Whether to give the divergence where it is known.
            stopped: Whether the posterior's density is one of its draws alone, without a gradient
                in its parameters.
            held: Whether draws carry no gradient.
        """

    @abstractmethod
    def draw(self, shape: torch.Size, context: Any) -> Tensor:
        """Draw data, with shape :math:`(*shape, *event)`."""

    def log_prob(self, x: Tensor, context: Any = None) -> Tensor:
        """Return a random lower bound of the log density, from `samples` draws."""
        w = self.weigh(x, context, self.samples)
        return with_scores(log_mean_exp, w.log_weights, w.score)

    def forward(self, context: Any = None) -> ModuleDistribution:
        self.check_context(context)
        return ModuleDistribution(self, context)

    def log_marginal(self, x: Tensor, context: Any = None, samples: int = 1000) -> Marginal:
        r"""Estimate :math:`\log p(x)` by importance sampling from the posterior.

        References:
            | Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519

        Arguments:
            x: The data, with shape :math:`(*, event)`.
            context: The contexts, if the model takes them.
            samples: The number of draws per item.

        Returns:
            The estimates, their standard errors and effective sample sizes.
        """
        check_whole(2, samples=samples)
        check_event(x, self.event_shape)
        part = max(1, CHUNK // max(x.numel(), 1))
        with torch.no_grad():
            log_w = [
                self.weigh(x, context, min(part, samples - done)).log_weights
                for done in range(0, samples, part)
            ]
        return Marginal.of(torch.cat(log_w))


def check_given(x: Tensor | None) -> Tensor:
    """Return the data that a guide is given; raises a ValueError if there are none."""
    if x is None:
        raise ValueError("Expected data `x`, since the guide is a posterior given them.")
    return x
