"""Log densities of latent draws for each item."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Weights"]


class Weights(NamedTuple):
    r"""Log densities of :math:`K` draws of the latents for each item.

    Arguments:
        log_likelihood: :math:`\log p(x \mid z_k)`, with shape :math:`(K, *)`.
        log_prior: :math:`\log p(z_k)`, with shape :math:`(K, *)`.
        log_posterior: :math:`\log q(z_k \mid x)`, with shape :math:`(K, *)`.
        divergence: The divergence of posterior from prior by latent or group :math:`G`, with shape
            :math:`(*, G)`, where it is known; else none.
        score: The part of :math:`\log q(z_k \mid x)` whose draws have no derivative, with shape
            :math:`(K, *)`; none if all have one.
        latents: The draws :math:`z`, whose gradients an objective may weigh.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor
    divergence: Tensor | None = None
    score: Tensor | None = None
    latents: tuple[Tensor, ...] = ()

    @property
    def log_weights(self) -> Tensor:
        r""":math:`\log w_k`, with shape :math:`(K, *)`."""
        return self.log_likelihood + self.log_prior - self.log_posterior
