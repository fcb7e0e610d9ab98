r"""Objectives of latent-variable models.

For draws :math:`z_1, \dots, z_K \sim q(z \mid x)` and their weights
:math:`w_k = p(x, z_k) / q(z_k \mid x)`, every objective here is a function of
:math:`\log w_1, \dots, \log w_K`, of which

.. math:: \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_k w_k^{1 - \alpha}

is the general form: the evidence lower bound for :math:`\alpha \to 1`, the importance-weighted
bound for :math:`\alpha = 0`, and an upper bound for :math:`\alpha < 0` and many draws.

An objective is called with a module and a batch by :func:`probgen.fit`, and returns a loss per
item. Its method `elbo` gives the same objective to Pyro's `SVI`, for any model and guide. Draws
without a derivative, such as those of discrete latents, get the score-function estimator, each with
the others as its baseline.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.arguments import record
from ..core.contracts import HasLabels, HasLatents, HasPrior
from ..core.distributed import mean_over
from ..core.validation import check_whole
from .base import Around, Objective, as_objective
from .pyro_elbo import TraceObjective
from .weights import Weights

__all__ = [
    "ELBO",
    "IWAE",
    "DReG",
    "StickingTheLanding",
    "Supervised",
    "Variational",
    "Weights",
]


class Variational(Objective):
    """An objective of models with latent variables."""

    samples: int  # the number of draws per item

    requires = (HasLatents,)
    upper: ClassVar[bool] = False  # whether it is an upper bound, which a model must not lower
    stopped: ClassVar[bool] = False  # whether the posterior's own parameters get no gradient
    analytic: ClassVar[bool] = False  # whether a known divergence is of use
    held: ClassVar[bool] = False  # whether draws are held fixed

    def __post_init__(self) -> None:
        check_whole(1, samples=self.samples)

    def losses(self, module: Any, x: Tensor, context: Any) -> Tensor:
        if not module.variational:
            raise ValueError(
                f"Expected a module that {type(self).__name__} trains, got a "
                f"{type(module).__name__}, which {type(module.objective).__name__} trains."
            )
        self.check_frozen(module)
        weights = module.weigh(
            x,
            context,
            self.samples,
            analytic=self.analytic,
            stopped=self.stopped,
            held=self.held,
        )
        return self.bound_losses(weights)

    @abstractmethod
    def bound_losses(self, weights: Weights) -> Tensor:
        """Return the losses of items, whose gradients train model and posterior."""

    def check_frozen(self, module: Any) -> None:
        """Raise for an upper bound unless prior and likelihood are frozen."""
        if not self.upper:
            return
        name = type(self).__name__
        if not isinstance(module, HasPrior):
            raise TypeError(
                f"Expected {HasPrior.models} for {name}, got a {type(module).__name__}."
            )
        for part, held in (("prior", module.prior), ("likelihood", module.likelihood)):
            if any(p.requires_grad for p in held.parameters()):
                raise ValueError(
                    f"Expected a frozen `{part}` for {name}, an upper bound that would lower the "
                    f"evidence, got one that learns. Call .{part}.freeze() first."
                )

    def elbo(self, max_plate_nesting: float = math.inf, vectorize_particles: bool = False) -> Any:
        """Return the objective for Pyro's `SVI`, and any model and guide.

        Plates in which all sites lie hold independent items; without one the whole model is one
        item. Mini-batches are scaled as their plate says, and all draws see one of them. All
        latents of an item are one group for free bits.

        Arguments:
            max_plate_nesting: The greatest number of nested plates, found by a run if not given.
            vectorize_particles: Whether all draws are taken in one plate, the outermost, which
                model and guide must allow, rather than one after the other.

        Returns:
            A loss to hand to `SVI`, with `differentiable_loss` besides.

        Example:
            >>> import probgen as pg, pyro
            >>> vae = pg.models.VAE(4, latent=2, hidden_features=(8,))
            >>> loss = IWAE(samples=5).elbo()
            >>> svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss)
            >>> svi.step(torch.ones(10, 4)) > 0
            True
        """
        if self.at(0.0) is not self:
            raise ValueError(
                f"Expected an objective with no `warm_up`, since SVI does not say how far it is, "
                f"got {self}. Take `at(fraction)` of it."
            )
        return TraceObjective(self, max_plate_nesting, vectorize_particles)


def log_mean_exp(log_w: Tensor, dim: int = 0) -> Tensor:
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])


def with_scores(
    bound: Callable[[Tensor, int], Tensor], log_w: Tensor, score: Tensor | None
) -> Tensor:
    r"""Return a bound with the gradients of draws that have no derivative, each less its baseline.

    The baseline of draw :math:`k` is the bound with :math:`\log w_k` replaced by the mean of the
    others.

    References:
        | Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016)
        | https://arxiv.org/abs/1602.06725
    """
    value = bound(log_w, 0)
    if score is None:
        return value
    fixed = log_w.detach()
    k = len(fixed)
    learned = bound(fixed, 0)
    if k > 1:
        others = (fixed.sum(0) - fixed) / (k - 1)
        one = torch.eye(k, dtype=torch.bool, device=fixed.device).reshape(k, k, *[1] * value.ndim)
        learned = learned - bound(torch.where(one, others.unsqueeze(1), fixed.unsqueeze(0)), 1)
    term = (learned * score).sum(0)
    return value + term - term.detach()


@record
class ELBO(Variational):
    r"""The evidence lower bound,
    :math:`E_q[\log p(x \mid z)] - \beta \, \mathrm{KL}(q(z \mid x) \| p(z))`.

    The divergence is exact where both are normal, else estimated from the draws.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114
        | beta-VAE (Higgins et al., 2017), https://openreview.net/forum?id=Sy2fzU9gl
        | Free bits: Improving Variational Inference with Inverse Autoregressive Flow
        | (Kingma et al., 2016), https://arxiv.org/abs/1606.04934

    Arguments:
        beta: The weight :math:`\beta \ge 0` of the divergence.
        free_bits: The nats :math:`\lambda \ge 0` of divergence of each latent (or group of them)
            that cost nothing more: its mean over the batch counts as :math:`\lambda` at least.
        samples: The number of draws :math:`K` per item.
        warm_up: The fraction of the training, from its start, over which :func:`probgen.fit` raises
            the weight from 0 to `beta`.

    Example:
        >>> import probgen as pg
        >>> vae = pg.models.VAE(4, latent=2, hidden_features=(8,))
        >>> ELBO(beta=0.5)(vae, torch.ones(10, 4)).shape
        torch.Size([10])
    """

    beta: float = 1.0
    free_bits: float = 0.0
    samples: int = 1
    warm_up: float = 0.0

    analytic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("beta", self.beta), ("free_bits", self.free_bits)):
            if not 0 <= value < math.inf:
                raise ValueError(f"Expected `{name}` not to be negative, got {value}.")
        if not 0 <= self.warm_up <= 1:
            raise ValueError(f"Expected `warm_up` in [0, 1], got {self.warm_up}.")

    def at(self, fraction: float) -> ELBO:
        """Return the objective after a fraction of the training."""
        if fraction >= self.warm_up:
            return self if self.warm_up == 0 else replace(self, warm_up=0.0)
        return replace(self, beta=self.beta * fraction / self.warm_up, warm_up=0.0)

    def bound_losses(self, weights: Weights) -> Tensor:
        kl = weights.divergence
        if kl is None and not self.free_bits:
            excess = self.beta * (weights.log_prior - weights.log_posterior)
            return -with_scores(mean, weights.log_likelihood + excess, weights.score)
        if weights.score is not None:
            raise ValueError(
                "Expected no `free_bits`, since a latent is drawn without a derivative, got "
                f"{self.free_bits}."
            )
        if kl is None:
            kl = (weights.log_posterior - weights.log_prior).mean(0).unsqueeze(-1)
        if self.free_bits:
            level = mean_over(kl.detach().reshape(-1, kl.shape[-1]).mean(0))
            kl = torch.where(level > self.free_bits, kl, self.free_bits)
        return self.beta * kl.sum(-1) - weights.log_likelihood.mean(0)


@record
class StickingTheLanding(Variational):
    r"""The evidence lower bound, with the path derivative of the posterior alone.

    Where the posterior is exact, the gradient has no variance.

    References:
        | Sticking the Landing (Roeder et al., 2017), https://arxiv.org/abs/1703.09194

    Arguments:
        samples: The number of draws :math:`K` per item.

    Example:
        >>> import probgen as pg
        >>> vae = pg.models.VAE(4, latent=2, hidden_features=(8,))
        >>> StickingTheLanding()(vae, torch.ones(10, 4)).shape
        torch.Size([10])
    """

    samples: int = 1

    stopped: ClassVar[bool] = True

    def bound_losses(self, weights: Weights) -> Tensor:
        check_path(self, weights)
        return -weights.log_weights.mean(0)


@record
class IWAE(Variational):
    r"""The importance-weighted bound, :math:`E \log \frac{1}{K} \sum_k w_k \le \log p(x)`.

    It does not fall as :math:`K` grows. One draw gives the evidence lower bound.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519

    Arguments:
        samples: The number of draws :math:`K` per item.

    Example:
        >>> import probgen as pg
        >>> vae = pg.models.VAE(4, latent=2, hidden_features=(8,))
        >>> IWAE(samples=5)(vae, torch.ones(10, 4)).shape
        torch.Size([10])
    """

    samples: int = 50

    def bound_losses(self, weights: Weights) -> Tensor:
        return -with_scores(log_mean_exp, weights.log_weights, weights.score)


@record
class DReG(Variational):
    r"""The importance-weighted bound, with the doubly reparameterised gradient.

    The posterior's gradient is
    :math:`\sum_k \tilde w_k^2 \, \partial_z \log w_k \, \partial_\phi z_k` for normalised weights
    :math:`\tilde w`. Its signal does not vanish as :math:`K` grows, as the plain one's does.

    References:
        | Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al.,
          2019), https://arxiv.org/abs/1810.04152

    Arguments:
        samples: The number of draws :math:`K` per item.

    Example:
        >>> import probgen as pg
        >>> vae = pg.models.VAE(4, latent=2, hidden_features=(8,))
        >>> DReG(samples=5)(vae, torch.ones(10, 4)).shape
        torch.Size([10])
    """

    samples: int = 50

    stopped: ClassVar[bool] = True

    def bound_losses(self, weights: Weights) -> Tensor:
        check_path(self, weights)
        if not weights.latents:
            raise ValueError(
                "Expected `vectorize_particles=True` for DReG, whose draws are weighed together, "
                "got one run for each draw."
            )
        if len(weights.latents) != 1:
            raise ValueError(
                f"Expected a model with one latent for DReG, got {len(weights.latents)}. IWAE "
                f"takes any."
            )
        log_w, z = weights.log_weights, weights.latents[0]
        share = log_w.detach().softmax(0)
        batch = next(n for n in range(z.ndim + 1) if z.shape[:n].numel() >= share.numel())
        factor = share.reshape(z.shape[:batch] + (1,) * (z.ndim - batch))
        if z.requires_grad:
            z.register_hook(lambda g: g * factor)
        value = (share * log_w).sum(0)  # whose gradient is that of the bound
        return value.detach() - value - log_mean_exp(log_w.detach())


@record
class Supervised(Around):
    r"""An objective plus that of a classifier, :math:`-\alpha \log q(y \mid x)` at known labels.

    References:
        | Semi-Supervised Learning with Deep Generative Models (Kingma et al., 2014)
        | https://arxiv.org/abs/1406.5298

    Arguments:
        objective: The objective of the data and their labels.
        weight: The weight :math:`\alpha \ge 0`.

    Example:
        >>> import probgen as pg
        >>> model = pg.models.SemiSupervisedVAE(6, classes=3, latent=2, hidden_features=(8,))
        >>> Supervised(weight=5.0)(model, torch.ones(2, 6), torch.tensor([[1.0], [-1.0]])).shape
        torch.Size([2])
    """

    objective: Any = ELBO()
    weight: float = 10.0

    requires = (HasLabels,)
    fits = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", as_objective(self.objective))
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"Expected `weight` not to be negative, got {self.weight}.")

    def losses(self, module: HasLabels, x: Tensor, context: Any) -> Tensor:
        return self.objective(module, x, context) + self.weight * module.label_loss(x, context)


def mean(log_w: Tensor, dim: int) -> Tensor:
    return log_w.mean(dim)


def check_path(objective: Variational, weights: Weights) -> None:
    if weights.score is not None:
        raise ValueError(
            f"Expected draws with a derivative for {type(objective).__name__}, got a latent "
            f"without: it is discrete, or a mixture. IWAE and ForwardKL take it."
        )
