r"""Latent-variable models.

A latent :math:`z` from a prior gives data by a likelihood, and a posterior approximates the way
back,

.. math:: p(x) = \int p(x \mid z) \, p(z) \, dz, \qquad q(z \mid x) \approx p(z \mid x).

Each part is a lazy distribution, so a flow as prior or posterior is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import detach
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, constraints

from ...core import (
    Density,
    LazyDistribution,
    Standardizer,
    as_lazy,
    broadcast,
    initialize_part,
    register,
)
from ...core.contexts import flatten, size_of, spell, unflatten, zeros
from ...core.contracts import HasPrior
from ...core.standardize import ContextStandardizer, Per
from ...core.validation import check_event, check_whole
from ...networks.dense import along_last, start_apart
from ...objectives import ELBO, Weights
from ..implicit.pushforward import Pushforward
from ..parametric.standard import UnitNormal
from ..supports import is_real
from .base import LatentVariable, check_given
from .vamp_prior import VampPrior

__all__ = ["Latent"]


@HasPrior.register
class Latent(LatentVariable):
    r"""A latent-variable model of three parts: prior, likelihood and posterior.

    With a context :math:`c` it is a conditional one: :math:`p(x \mid z, c)` and
    :math:`q(z \mid x, c)`, and :math:`p(z \mid c)` if the prior takes it.

    :func:`probgen.fit`, or `initialize`, sets the location and scale by which data and contexts
    are standardised before they reach the posterior's network: of each feature, or one scale for
    all where the likelihood is discrete or bounded, or data are images.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114
        | Stochastic Backpropagation and Approximate Inference in Deep Generative Models (Rezende et
          al., 2014), https://arxiv.org/abs/1401.4082

    Arguments:
        prior: The prior :math:`p(z)`, lazy or one of Pyro.
        likelihood: The lazy likelihood, called with :math:`z` flattened, followed by the context.
        posterior: The lazy posterior, called with :math:`x` flattened, followed by the context; or
            with what `encoder` makes of it.
        encoder: A network from data and context, with shape :math:`(*, n)`, to the context of the
            posterior. The output layer of one of :mod:`probgen.networks` starts at random.
        context: The number of features :math:`C` of the context, or its shape.
        samples: The number of draws :math:`K` of the bound that `log_prob` is.

    Raises:
        TypeError: If a part is of another type.
        ValueError: If the parts do not fit: their sizes, or the supports of prior and posterior.

    Example:
        >>> import pyro.distributions as dist
        >>> from probgen.distributions import Bernoulli, DiagonalNormal
        >>> prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> model = Latent(prior, Bernoulli(5, context=2), DiagonalNormal(2, context=5), samples=10)
        >>> x = model().sample((3,))
        >>> x.shape, model().log_prob(x).shape
        (torch.Size([3, 5]), torch.Size([3]))
    """

    beta: float = 1.0  #: the weight of the divergence in the default objective

    def __init__(
        self,
        prior: LazyDistribution | TorchDistribution,
        likelihood: LazyDistribution,
        posterior: LazyDistribution,
        encoder: nn.Module | None = None,
        context: Any = 0,
        samples: int = 1,
    ) -> None:
        super().__init__()
        check_whole(1, samples=samples)
        for name, part in (("likelihood", likelihood), ("posterior", posterior)):
            if not isinstance(part, LazyDistribution):
                raise TypeError(
                    f"Expected a lazy `{name}`, called with a context, got a {type(part).__name__}."
                )
        self.prior, self.likelihood, self.posterior = as_lazy(prior), likelihood, posterior
        self.encoder, self.context, self.samples = encoder, context, samples
        start_apart(encoder)
        self.latent_shape, self.event_shape = self.fit_parts()
        self.standardizer = Standardizer(self.event_shape)
        if self.context_shape is not None:
            self.context_standardizer = ContextStandardizer(self.context_shape)

    def fit_parts(self) -> tuple[tuple[int, ...], torch.Size]:
        """Check that the parts fit, and return the shapes of the latents and of the data."""
        like = next(self.likelihood.parameters(), torch.zeros(()))
        count = size_of(self.context_shape)
        given = zeros(self.context_shape, like)
        if self.prior.context_shape not in (None, self.context_shape):
            raise ValueError(
                f"Expected a prior without context, or with context={spell(self.context_shape)}, "
                f"got {spell(self.prior.context_shape)}."
            )
        for name, part, allowed in (
            ("prior", self.prior, (Density.EXACT, Density.ODE)),
            ("likelihood", self.likelihood, (Density.EXACT, Density.ODE, Density.BOUND)),
            ("posterior", self.posterior, (Density.EXACT, Density.ODE)),
        ):
            if part.density not in allowed:
                kinds = " or ".join(d.value for d in allowed)
                raise ValueError(
                    f"Expected a `{name}` whose density is {kinds}, got a {type(part).__name__}, "
                    f"whose density is {part.density.value}: the bound would not hold."
                )
        with torch.no_grad():
            p = self.prior(given if self.prior.context_shape is not None else None)
            latent = math.prod(p.event_shape)
            if self.likelihood.context != latent + count:
                raise ValueError(
                    f"Expected a likelihood with context={latent + count}, for {latent} "
                    f"latents of the prior and {count} features of the context, got "
                    f"context={self.likelihood.context}."
                )
            data = self.likelihood(like.new_zeros(latent + count))
            size = math.prod(data.event_shape) + count
            if self.encoder is None and self.posterior.context != size:
                raise ValueError(
                    f"Expected a posterior with context={size}, for the features of the data and "
                    f"of the context, or an `encoder`, got context={self.posterior.context}."
                )
            code = like.new_zeros(size)
            if self.encoder is not None:
                code = along_last(self.encoder, code)
                if code.shape[-1:] != (self.posterior.context,):
                    raise ValueError(
                        f"Expected an `encoder` that returns the posterior's "
                        f"context={self.posterior.context} features, got {tuple(code.shape)}."
                    )
            q = self.posterior(code)
        if q.event_shape != p.event_shape:
            raise ValueError(
                f"Expected a posterior of the prior's latents, with shape {tuple(p.event_shape)}, "
                f"got {tuple(q.event_shape)}."
            )
        if is_real(p.support) != is_real(q.support) or (
            not is_real(p.support) and repr(p.support) != repr(q.support)
        ):
            raise ValueError(
                f"Expected a posterior with the prior's support, {p.support}, got {q.support}."
            )
        return tuple(p.event_shape), data.event_shape

    @property
    def objective(self) -> Callable[..., Tensor]:
        return ELBO(beta=self.beta)

    @property
    def support(self) -> constraints.Constraint:
        return self.likelihood.support

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        check_event(x, self.event_shape)
        self.standardizer.fit(x, weights, per=self.per)
        if context is not None:
            self.context_standardizer.fit(context, weights)
        if trainable(self.likelihood) and not self.likelihood.initialized:
            self.likelihood.initialize(x, None, weights)
        if isinstance(self.prior, VampPrior):
            initialize_part(self.prior, self.code(x, self.standard(context)), None, weights)

    @property
    def per(self) -> Per:
        """What of the data has a scale of its own."""
        return "feature" if is_real(self.support) and len(self.event_shape) == 1 else "shared"

    def standard(self, context: Any) -> Any:
        """Return the context, checked and standardised."""
        self.check_context(context)
        return None if context is None else self.context_standardizer(context)

    def flat(self, given: Any) -> Tensor | None:
        """Return a standardised context as vectors."""
        return None if given is None else flatten(given, self.context_shape)  # type: ignore[arg-type]

    def code(self, x: Tensor, given: Any) -> Tensor:
        """Return the inputs of the posterior or its encoder: data and a standardised context."""
        dims, given = len(self.event_shape), self.flat(given)
        flat = self.standardizer(x.to(self.standardizer.shift.dtype))
        flat = flat.flatten(flat.ndim - dims) if dims != 1 else flat
        if given is None:
            return flat
        shape = broadcast(flat.shape[:-1], given.shape[:-1])
        return torch.cat([flat.expand(*shape, -1), given.expand(*shape, -1)], -1)

    def encode(self, x: Tensor, context: Any = None) -> Any:
        r"""Return the posterior :math:`q(z \mid x)` of data with shape :math:`(*, event)`."""
        check_event(x, self.event_shape)
        code = self.code(x, self.standard(context))
        return self.posterior(code if self.encoder is None else along_last(self.encoder, code))

    def decode(self, z: Tensor, context: Any = None) -> Any:
        r"""Return the likelihood :math:`p(x \mid z)` of latents with shape :math:`(*, latent)`."""
        check_event(z, self.latent_shape)
        flat = z.flatten(z.ndim - len(self.latent_shape)) if len(self.latent_shape) != 1 else z
        flat = flat.to(self.standardizer.shift.dtype)
        given = self.flat(self.standard(context))
        if given is not None:
            shape = torch.broadcast_shapes(flat.shape[:-1], given.shape[:-1])
            flat = torch.cat([flat.expand(*shape, -1), given.expand(*shape, -1)], -1)
        return self.likelihood(flat)

    def reconstruct(self, x: Tensor, context: Any = None) -> Tensor:
        """Return the likelihood's mean at the posterior's mean (at a draw, if it has none)."""
        q = self.encode(x, context)
        try:
            z = q.mean
        except NotImplementedError:
            z = q.sample()
        return self.decode(z, context).mean

    def prior_of(self, context: Any) -> Any:
        """Return the prior given a context."""
        return self.prior(self.standard(context) if self.prior.context_shape is not None else None)

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
        q, p = self.encode(x, context), self.prior_of(context)
        z, log_q = draw(q, samples, held)
        if stopped:
            log_q = detach(q).log_prob(z)
        known = divergence(q, p) if analytic and not held else None
        fitted = self.decode(z, context).log_prob(x)
        if known is not None:
            unknown = fitted.new_full((), torch.nan)  # nobody asks
            return Weights(fitted, unknown, unknown, known)
        log_q = q.log_prob(z) if log_q is None else log_q
        score = None if q.has_rsample or held else log_q
        return Weights(fitted, p.log_prob(z), log_q, None, score, (z,))

    def draw(self, shape: torch.Size, context: Any) -> Tensor:
        return self.decode(self.prior_of(context).expand(shape).sample(), context).sample()

    def pyro_model(
        self, prefix: str, name: str, context: Any, obs: Tensor | None, infer: dict[str, Any]
    ) -> Tensor:
        z = pyro.sample(f"{prefix}z", self.prior_of(context), infer=dict(infer))
        return pyro.sample(name, self.decode(z, context), obs=obs, infer=dict(infer))

    def pyro_guide(
        self, prefix: str, x: Tensor | None, context: Any, infer: dict[str, Any]
    ) -> Tensor:
        x = check_given(x)
        return pyro.sample(f"{prefix}z", self.encode(x, context), infer=dict(infer))

    @property
    def pushforward(self) -> Pushforward:
        """The decoder's mean as a deterministic map of the prior, which shares the parameters."""
        if self.prior.context_shape is not None:
            raise ValueError(
                f"Expected a prior without context, got one with context={self.prior.context}."
            )
        return Pushforward(self.prior, Mean(self), self.context)


@register
class Mean(nn.Module):
    """The mean of a model's likelihood, as a map of latents flattened, followed by the context.

    Arguments:
        module: The model.
    """

    def __init__(self, module: Latent) -> None:
        super().__init__()
        self.module = module

    def forward(self, z: Tensor) -> Tensor:
        flat, context = z, None
        shape = self.module.context_shape
        if shape is not None:
            size = z.shape[-1] - size_of(shape)
            flat, context = z[..., :size], unflatten(z[..., size:], shape)
        return self.module.decode(flat.unflatten(-1, self.module.latent_shape), context).mean


def trainable(module: nn.Module) -> bool:
    """Whether a module has parameters that learn."""
    return any(p.requires_grad for p in module.parameters())


def draw(q: Any, samples: int, held: bool) -> tuple[Tensor, Tensor | None]:
    """Draws of a posterior, with their log density where it costs nothing more."""
    shape = torch.Size([samples])
    if held or not q.has_rsample:
        return q.sample(shape), None
    if hasattr(q, "rsample_and_log_prob"):
        return q.rsample_and_log_prob(shape)
    return q.rsample(shape), None


def divergence(q: Distribution, p: Distribution) -> Tensor | None:
    """Return the divergence of two normal distributions by feature, or in all; else None."""
    first = normal_of(q)
    if first is not None and isinstance(p, UnitNormal) and not p.batch_shape:
        m, s = first
        kl = torch.addcmul(s * s, m, m).sub(1).mul(0.5) - s.log()
        return kl.flatten(kl.ndim - len(q.event_shape))
    second = normal_of(p)
    if first is not None and second is not None:
        (m, s), (n, t) = first, second
        ratio = (s / t).square()
        kl = (ratio + ((m - n) / t).square() - 1 - ratio.log()) / 2
        return kl.flatten(kl.ndim - len(q.event_shape))
    if isinstance(q, MultivariateNormal) and second is not None:
        n, t = second
        factor = q.scale_tril / t.unsqueeze(-1)
        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        squares = factor.square().sum((-2, -1)) + ((q.loc - n) / t).square().sum(-1)
        kl = (squares - q.event_shape[-1]) / 2 - diagonal.log().sum(-1)
        return kl.unsqueeze(-1)
    return None


def normal_of(p: Distribution) -> tuple[Tensor, Tensor] | None:
    """Return the means and scales of independent normal features."""
    if isinstance(p, UnitNormal):
        return p.centre, torch.ones_like(p.centre)
    if isinstance(p, Independent) and isinstance(p.base_dist, Normal):
        if p.reinterpreted_batch_ndims == len(p.event_shape):
            return p.base_dist.loc, p.base_dist.scale
    return None
