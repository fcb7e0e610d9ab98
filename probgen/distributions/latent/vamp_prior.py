r"""A prior made of a model's own posteriors.

.. math:: p(z) = \frac{1}{M} \sum_{m=1}^M q(z \mid u_m).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ...core import Density, LazyDistribution
from ...core.validation import check_whole
from ...networks.dense import along_last
from ..parametric.mixture import NormalMixture

__all__ = ["VampPrior"]


class VampPrior(LazyDistribution):
    r"""The prior that is a mixture of posteriors at learned inputs :math:`u_m`.

    In a :class:`Latent` the inputs start at data, standardised as the posterior reads them.

    References:
        | VAE with a VampPrior (Tomczak & Welling, 2018), https://arxiv.org/abs/1705.07120

    Arguments:
        posterior: The lazy posterior, normal, which :class:`Latent` is given too.
        features: The number of features of the data.
        components: The number of inputs :math:`M`.
        encoder: The network before the posterior, if there is one.

    Example:
        >>> from probgen.distributions import Bernoulli, DiagonalNormal, Latent
        >>> posterior = DiagonalNormal(2, context=5)
        >>> prior = VampPrior(posterior, features=5, components=3)
        >>> Latent(prior, Bernoulli(5, context=2), posterior)().sample((4,)).shape
        torch.Size([4, 5])
    """

    density = Density.EXACT

    def __init__(
        self,
        posterior: LazyDistribution,
        features: int,
        components: int = 64,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_whole(1, features=features, components=components)
        self.posterior, self.encoder = posterior, encoder
        self.features, self.components = features, components
        self.inputs = nn.Parameter(torch.randn(components, features))

    @property
    def objective(self) -> Callable[..., Tensor]:
        raise AttributeError("A VampPrior is trained with the model whose prior it is.")

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        w = x.new_ones(len(x)) if weights is None else weights
        self.inputs.copy_(x[torch.multinomial(w, len(self.inputs), replacement=True)])

    def forward(self, context: Any = None) -> TorchDistribution:
        self.check_context(context)
        u = self.inputs
        q = self.posterior(u if self.encoder is None else along_last(self.encoder, u))
        return NormalMixture(dist.Categorical(logits=u.new_zeros(len(u))), q)
