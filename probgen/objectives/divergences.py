r"""Objectives of latent-variable models other than the evidence lower bound.

With :math:`w = p(x, z) / q(z \mid x)`, they lower the divergence of Renyi of the posterior from the
exact one, the divergence the other way round, and that of :math:`\chi^2`,

.. math:: \frac{1}{1 - \alpha} \log E_q[w^{1 - \alpha}], \qquad
    E_p[\log q(z \mid x)], \qquad \frac{1}{n} \log E_q[w^n].
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..core.arguments import record
from .variational import Variational, Weights, log_mean_exp, with_scores

__all__ = ["ChiSquare", "ForwardKL", "Renyi"]


@record
class Renyi(Variational):
    r"""The variational Renyi bound of order :math:`\alpha`.

    To raise it is to lower Renyi's divergence of the posterior from the exact one, and so Minka's
    and Amari's alpha divergences, which are monotone functions of it: :math:`\alpha \to 1` seeks
    modes, :math:`\alpha \to 0` covers mass, :math:`\alpha < 0` bounds the evidence from above as
    :math:`K` grows.

    References:
        | Renyi Divergence Variational Inference (Li & Turner, 2016)
        | https://arxiv.org/abs/1602.02311

    Arguments:
        alpha: The order :math:`\alpha`; 1 gives the evidence lower bound, 0 the
            importance-weighted one.
        samples: The number of draws :math:`K` per item.

    Example:
        >>> import probgen as pg
        >>> vae = pg.models.VAE(4, latent=2, hidden_features=(8,))
        >>> Renyi(alpha=0.5, samples=5)(vae, torch.ones(10, 4)).shape
        torch.Size([10])
    """

    alpha: float = 0.5
    samples: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.alpha):
            raise ValueError(f"Expected a finite `alpha`, got {self.alpha}.")

    def bound(self, log_w: Tensor, dim: int = 0) -> Tensor:
        """Return the bound of log weights, along their axis of draws."""
        rest = 1 - self.alpha
        if rest == 0:
            return log_w.mean(dim)
        with torch.no_grad():  # the bound does not depend on the shift, which keeps digits near 1
            shift = log_w.amax(dim, keepdim=True) if rest > 0 else log_w.amin(dim, keepdim=True)
            shift = torch.where(shift.isfinite(), shift, 0.0)
        mean = torch.expm1(rest * (log_w - shift)).mean(dim)
        return shift.squeeze(dim) + torch.log1p(mean) / rest

    def bound_losses(self, weights: Weights) -> Tensor:
        return -with_scores(self.bound, weights.log_weights, weights.score)


@record
class ForwardKL(Variational):
    r"""Reweighted wake-sleep: the divergence from the exact posterior to ours.

    Normalised weights :math:`\tilde w_k` stand for the exact posterior. The model climbs
    :math:`\sum_k \tilde w_k \log p(x, z_k)`, the posterior :math:`\sum_k \tilde w_k
    \log q(z_k \mid x)`, each draw held fixed, so latents may be discrete. The posterior covers
    the exact one rather than seek a mode.

    References:
        | The Wake-Sleep Algorithm for Unsupervised Neural Networks (Hinton et al., 1995)
        | Reweighted Wake-Sleep (Bornschein & Bengio, 2015), https://arxiv.org/abs/1406.2751

    Arguments:
        samples: The number of draws :math:`K` per item.

    Example:
        >>> import probgen as pg
        >>> vae = pg.models.VAE(4, latent=2, hidden_features=(8,))
        >>> ForwardKL()(vae, torch.ones(10, 4)).shape
        torch.Size([10])
    """

    samples: int = 10

    held: ClassVar[bool] = True

    def bound_losses(self, weights: Weights) -> Tensor:
        log_w = weights.log_weights.detach()
        share = log_w.softmax(0)
        joint = weights.log_likelihood + weights.log_prior + weights.log_posterior
        value = (share * joint).sum(0)
        return value.detach() - value - log_mean_exp(log_w)


@record
class ChiSquare(Variational):
    r"""The upper bound :math:`\frac{1}{n} \log E_q[w^n] \ge \log p(x)`, to be lowered.

    It trains the posterior of a model whose parameters do not learn: a model would lower the
    evidence. An estimate from few draws is biased downwards.

    References:
        | Variational Inference via chi Upper Bound Minimization (Dieng et al., 2017)
        | https://arxiv.org/abs/1611.00328

    Arguments:
        order: The order :math:`n > 1`.
        samples: The number of draws :math:`K` per item.

    Raises:
        ValueError: If a parameter of the model learns.

    Example:
        >>> import probgen as pg
        >>> vae = pg.models.VAE(4, latent=2, hidden_features=(8,))
        >>> _ = vae.likelihood.freeze()
        >>> ChiSquare()(vae, torch.ones(10, 4)).shape
        torch.Size([10])
    """

    order: float = 2.0
    samples: int = 10

    upper: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.order < math.inf:
            raise ValueError(f"Expected an `order` above 1, got {self.order}.")

    def bound_losses(self, weights: Weights) -> Tensor:
        def bound(log_w: Tensor, dim: int) -> Tensor:
            return log_mean_exp(self.order * log_w, dim) / self.order

        return with_scores(bound, weights.log_weights, weights.score)
