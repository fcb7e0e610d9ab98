r"""Layers of hierarchical VAEs and their posterior parameterizations.

Symbols are those of the hierarchy: the prior of a layer is :math:`\mathcal{N}(\mu, \sigma^2)`, the
statistics a pair :math:`(a, b)`. Scales are given by their logarithms.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ...core import register
from ...core.derive import derived

__all__ = ["LatentLayer", "PosteriorUpdate", "PrecisionWeightedUpdate", "ResidualUpdate"]

Moments = tuple[Tensor, Tensor]  # means and log scales


@register
class LatentLayer(nn.Module):
    """One layer of a hierarchy: its networks on the way up and on the way down.

    They take and return tensors with one batch dimension :math:`B`; features, states and latents
    of a hierarchy all have as many dimensions. The state is none at the top.
    """

    shape: tuple[int, ...]  #: the shape of the latents :math:`z_l`, channels first

    @abstractmethod
    def bottom_up(self, d: Tensor) -> Tensor:
        r"""Return the features :math:`d_l` from :math:`d_{l-1}`."""

    @abstractmethod
    def prior(self, h: Tensor) -> Tensor:
        r"""Means and log scales from the state :math:`h_{l+1}`, along the first axis of the event;
        not called at the top."""

    @abstractmethod
    def statistics(self, h: Tensor | None, d: Tensor) -> Tensor:
        r"""Return the statistics :math:`a` and :math:`b`, along the first axis of the event."""

    @abstractmethod
    def top_down(self, h: Tensor | None, z: Tensor) -> Tensor:
        r"""Return the state :math:`h_l` from :math:`h_{l+1}` and :math:`z_l`."""

    @derived
    def initialize_bottom_up(self, d: Tensor) -> None:
        r"""Set data-dependent starting values of the way up from :math:`d_{l-1}`."""

    @derived
    def initialize_prior(self, h: Tensor) -> None:
        r"""Set data-dependent starting values of the prior from :math:`h_{l+1}`."""


@register
class PosteriorUpdate(nn.Module):
    """A rule that merges the prior of a layer with the statistics into the posterior."""

    @abstractmethod
    def forward(self, prior: Moments, statistics: Moments) -> Moments:
        """Return means and log scales of the posterior from the prior's and the statistics."""


class PrecisionWeightedUpdate(PosteriorUpdate):
    r"""Statistics that are a normal distribution, whose product with the prior is the posterior.

    .. math:: \frac{1}{s^2} = \frac{1}{\sigma^2} + \frac{1}{e^{2 b}}, \qquad
        m = s^2 \left(\frac{\mu}{\sigma^2} + \frac{a}{e^{2 b}}\right)

    References:
        | Ladder Variational Autoencoders (Sonderby et al., 2016), https://arxiv.org/abs/1602.02282

    Example:
        >>> zero, two = torch.zeros(1), torch.full((1,), 2.0)
        >>> mean, log_scale = PrecisionWeightedUpdate()((zero, zero), (two, zero))
        >>> round(float(mean), 3), round(float(log_scale.exp() ** 2), 3)
        (1.0, 0.5)
    """

    def forward(self, prior: Moments, statistics: Moments) -> Moments:
        (mu, log_sigma), (a, b) = prior, statistics
        weight = torch.sigmoid(2 * (log_sigma - b))
        return mu + weight * (a - mu), -torch.logaddexp(-2 * log_sigma, -2 * b) / 2


class ResidualUpdate(PosteriorUpdate):
    r"""The statistics are the posterior's change of the prior, :math:`\mathcal{N}(\mu + a,
    (\sigma e^b)^2)`.

    Without statistics the posterior is the prior.

    References:
        | NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020)
        | https://arxiv.org/abs/2007.03898

    Example:
        >>> zero, two = torch.zeros(1), torch.full((1,), 2.0)
        >>> ResidualUpdate()((two, zero), (two, zero))
        (tensor([4.]), tensor([0.]))
    """

    def forward(self, prior: Moments, statistics: Moments) -> Moments:
        (mu, log_sigma), (a, b) = prior, statistics
        return mu + a, log_sigma + b
