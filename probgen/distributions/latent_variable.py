r"""What distributions with latent variables share.

With draws :math:`z_k \sim q(z \mid x)` and :math:`w_k = p(x, z_k) / q(z_k \mid x)`,

.. math:: \log p(x) \ge E \log \frac{1}{K} \sum_{k=1}^K w_k,

which is the density here: a bound, the tighter the more draws.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..core import Density, LazyDistribution, is_wrapped
from ..core.checks import check_event, check_whole
from ..core.contracts import HasLatents
from ..core.plates import Pair, register
from ..objectives import ELBO, Weights
from ..objectives.variational import log_mean_exp, with_scores
from .stated import ModuleDistribution, check_support

__all__ = ["LatentDistribution", "LatentVariable", "Marginal"]

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

    event_shape: tuple[int, ...] = ()  #: the shape of one item
    samples: int = 1  #: the number of draws of the density
    variational: bool = (
        True  #: whether :class:`~probgen.objectives.Variational` objectives train it
    )

    @property
    def objective(self) -> Callable[..., Tensor]:
        return ELBO()

    @abstractmethod
    def weigh(
        self,
        x: Tensor,
        context: Tensor | None = None,
        samples: int = 1,
        *,
        analytic: bool = False,
        stopped: bool = False,
        held: bool = False,
    ) -> Weights:
        """Draws latents given data, and tells what objectives need of them.

        Arguments:
            x: The data, with shape :math:`(*, event)`.
            context: The contexts, with shape :math:`(*, C)`.
            samples: The number of draws :math:`K`.
            analytic: Whether to give the divergence where it is known.
            stopped: Whether the posterior's density is one of its draws alone, without a gradient
                in its parameters.
            held: Whether draws carry no gradient.
        """

    @abstractmethod
    def generate(self, shape: torch.Size, context: Tensor | None) -> Tensor:
        """Draws data, with shape :math:`(*shape, *event)`."""

    @abstractmethod
    def state(
        self,
        prefix: str,
        name: str,
        context: Tensor | None,
        obs: Tensor | None,
        infer: dict[str, Any],
    ) -> Tensor:
        """States the latents as sites of a model, under names with a prefix, and the data."""

    @abstractmethod
    def explain(self, prefix: str, x: Tensor, context: Tensor | None, infer: dict[str, Any]) -> Any:
        """States the latents as sites of a guide, under the same names, given data."""

    def site(
        self, name: str, context: Tensor | None, obs: Tensor | None, infer: dict[str, Any]
    ) -> Tensor:
        """States the latents, named as the site with `_z` and the like, and the site given them."""
        return self.state(f"{name}_", name, context, obs, infer)

    @property
    def model(self) -> nn.Module:
        return LatentModel(self)

    @property
    def guide(self) -> nn.Module:
        return LatentGuide(self)

    @property
    @abstractmethod
    def support(self) -> constraints.Constraint:
        """The support of one item."""

    def forward(self, context: Tensor | None = None) -> LatentDistribution:
        self.check_context(context)
        batch = torch.Size() if context is None else context.shape[: -self.context_dim]
        return LatentDistribution(self, context, batch)

    def log_marginal(
        self, x: Tensor, context: Tensor | None = None, samples: int = 1000
    ) -> Marginal:
        r"""Estimates :math:`\log p(x)` by importance sampling from the posterior.

        References:
            | Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519

        Arguments:
            x: The data, with shape :math:`(*, event)`.
            context: The contexts, with shape :math:`(*, C)`.
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


class LatentModel(Pair):
    """The model of a Pyro pair: sites of the latents, `z` and the like, and `x` in a data plate.

    Called as `(x=None, context=None, *, size=None, prefix="")`, where `x` has shape
    :math:`(N, *)`, `context` :math:`(N, C)` and `size` is that of the data set if `x` is a
    mini-batch; without `x` it generates.
    """

    def forward(
        self,
        x: Tensor | None = None,
        context: Tensor | None = None,
        *,
        size: int | None = None,
        prefix: str = "",
    ) -> Tensor:
        part: Any = self.distribution
        infer = {"learned": "trained" if register(part) else "frozen"}
        with self.plate(prefix, x, context, size):
            return part.state(prefix, f"{prefix}x", context, x, infer)


class LatentGuide(Pair):
    """The guide of a Pyro pair: the posterior's sites in a data plate."""

    def forward(
        self,
        x: Tensor | None = None,
        context: Tensor | None = None,
        *,
        size: int | None = None,
        prefix: str = "",
    ) -> Any:
        if x is None:
            raise ValueError("Expected data `x`, since the guide is a posterior given them.")
        part: Any = self.distribution
        infer = {"learned": "trained" if register(part) else "frozen"}
        with self.plate(prefix, x, context, size):
            return part.explain(prefix, x, context, infer)


class LatentDistribution(ModuleDistribution):
    """The distribution of data under a latent-variable model; its `log_prob` is a random bound.

    Arguments:
        module: The model.
        context: The contexts, with shape :math:`(*, C)`, if it takes them.
        batch_shape: The batch shape; by default that of the contexts.
        validate_args: Whether to check arguments; by default as Pyro is set.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        wide, context = self.widened(value)
        if self._validate_args and value.device.type != "meta" and not is_wrapped(value):
            check_support(value, self.support)
        w = self.module.weigh(wide, context, self.module.samples)
        return with_scores(log_mean_exp, w.log_weights, w.score)
