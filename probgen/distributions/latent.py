r"""Latent-variable models.

A latent :math:`z` from a prior gives data by a likelihood, and a posterior approximates the way
back,

.. math:: p(x) = \int p(x \mid z) \, p(z) \, dz, \qquad q(z \mid x) \approx p(z \mid x).

With draws :math:`z_k \sim q(z \mid x)` and :math:`w_k = p(x, z_k) / q(z_k \mid x)`,

.. math:: \log p(x) \ge E \log \frac{1}{K} \sum_{k=1}^K w_k,

which is the density here: a bound, the tighter the more draws. Each part is a lazy distribution, so
a flow as prior or posterior is an argument.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import detach
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, constraints

from ..core import Density, LazyDistribution, Recorded, as_lazy
from ..core.checks import check_event, check_whole
from ..core.plates import Pair, register
from ..networks.dense import along_last
from ..objectives import ELBO, Weights
from ..objectives.variational import log_mean_exp
from ..transforms.linear import moments
from .parametric import NormalMixture, UnitNormal
from .pushforward import Pushforward
from .ranges import is_real

__all__ = ["Latent", "LatentDistribution", "LatentVariable", "Marginal", "VampPrior"]

CHUNK = 2**22  # numbers of one part of the likelihood's event that are held at once


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


class LatentVariable(LazyDistribution):
    """A lazy distribution of data with latent variables, whose density is a bound."""

    density = Density.BOUND

    event_shape: tuple[int, ...] = ()  #: the shape of one item
    samples: int = 1  #: the number of draws of the density

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


class LatentDistribution(TorchDistribution):
    """The distribution of data under a latent-variable model; its `log_prob` is a random bound.

    Arguments:
        module: The model.
        context: The contexts, with shape :math:`(*, C)`, if it takes them.
        batch_shape: The batch shape, that of the contexts.
        validate_args: Whether to check arguments; by default as Pyro is set.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    density = Density.BOUND

    def __init__(
        self,
        module: LatentVariable,
        context: Tensor | None,
        batch_shape: torch.Size,
        validate_args: bool | None = None,
    ) -> None:
        self.module, self.context = module, context
        super().__init__(batch_shape, torch.Size(module.event_shape), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return self.module.support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> LatentDistribution:
        batch = torch.Size(batch_shape)
        context = self.context
        if context is not None:
            context = context.expand(*batch, *context.shape[-self.module.context_dim :])
        return LatentDistribution(self.module, context, batch)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            return self.module.generate(shape, self.spread(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        check_event(value, self.module.event_shape)
        if self._validate_args:
            check_support(value, self.support)
        batch = value.shape[: value.ndim - len(self.event_shape)]
        shape = torch.broadcast_shapes(batch, self.batch_shape)
        value = value.expand(shape + self.event_shape)
        return log_mean_exp(
            self.module.weigh(value, self.spread(shape), self.module.samples).log_weights
        )

    def spread(self, shape: torch.Size) -> Tensor | None:
        """The contexts, one for each item."""
        if self.context is None:
            return None
        return self.context.expand(*shape, *self.context.shape[-self.module.context_dim :])


def check_support(value: Tensor, support: constraints.Constraint) -> None:
    """Raises a ValueError that names a value outside a support."""
    inner = support.base_constraint if isinstance(support, constraints.independent) else support
    inside = inner.check(value)
    if not inside.all():
        wrong = value[~inside].flatten()[0] if inside.shape == value.shape else value[~inside][0]
        raise ValueError(f"Expected values in the support, {support}, got {wrong.tolist()!r:.80}.")


class Latent(LatentVariable):
    r"""A latent-variable model of three parts: prior, likelihood and posterior.

    With a context :math:`c` it is a conditional one: :math:`p(x \mid z, c)` and
    :math:`q(z \mid x, c)`, and :math:`p(z \mid c)` if the prior takes it.

    :func:`probgen.fit`, or `start`, sets the moments by which data and contexts are standardised
    before they reach the posterior's network, per feature, or all alike where the likelihood is
    discrete or bounded.

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
            posterior.
        context: The number of features :math:`C` of the context.
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

    x_shift: Tensor
    x_scale: Tensor
    context_shift: Tensor
    context_scale: Tensor

    def __init__(
        self,
        prior: LazyDistribution | TorchDistribution,
        likelihood: LazyDistribution,
        posterior: LazyDistribution,
        encoder: nn.Module | None = None,
        context: int = 0,
        samples: int = 1,
    ) -> None:
        super().__init__()
        check_whole(0, context=context)
        check_whole(1, samples=samples)
        for name, part in (("likelihood", likelihood), ("posterior", posterior)):
            if not isinstance(part, LazyDistribution):
                raise TypeError(
                    f"Expected a lazy `{name}`, called with a context, got a {type(part).__name__}."
                )
        self.prior, self.likelihood, self.posterior = as_lazy(prior), likelihood, posterior
        self.encoder, self.context, self.samples = encoder, context, samples
        self.latent_shape, self.event_shape = self.fit_parts()
        size = math.prod(self.event_shape)
        self.register_buffer("x_shift", torch.zeros(size))
        self.register_buffer("x_scale", torch.ones(size))
        if context:
            self.register_buffer("context_shift", torch.zeros(context))
            self.register_buffer("context_scale", torch.ones(context))

    def fit_parts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Checks that the parts fit, and gives the shapes of the latents and of the data."""
        like = next(self.likelihood.parameters(), torch.zeros(()))
        given = like.new_zeros(self.context) if self.context else None
        if self.prior.context not in (0, self.context):
            raise ValueError(
                f"Expected a prior without context, or with {self.context} features, got "
                f"{self.prior.context}."
            )
        with torch.no_grad():
            p = self.prior(given if self.prior.context else None)
            latent = math.prod(p.event_shape)
            if self.likelihood.context != latent + self.context:
                raise ValueError(
                    f"Expected a likelihood with context={latent + self.context}, for {latent} "
                    f"latents of the prior and {self.context} features of the context, got "
                    f"context={self.likelihood.context}."
                )
            data = self.likelihood(like.new_zeros(latent + self.context))
            size = math.prod(data.event_shape) + self.context
            if self.encoder is None and self.posterior.context != size:
                raise ValueError(
                    f"Expected a posterior with context={size}, for the features of the data and "
                    f"of the context, or an `encoder`, got context={self.posterior.context}."
                )
            code = like.new_zeros(size)
            q = self.posterior(code if self.encoder is None else along_last(self.encoder, code))
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
        return tuple(p.event_shape), tuple(data.event_shape)

    @property
    def support(self) -> constraints.Constraint:
        like = self.x_shift
        with torch.no_grad():
            return self.likelihood(like.new_zeros(self.likelihood.context)).support

    def start(self, x: Tensor, context: Tensor | None = None) -> None:
        check_event(x, self.event_shape)
        flat = x.reshape(-1, len(self.x_shift)).to(self.x_shift.dtype)
        with torch.no_grad():
            shift, scale = moments(flat)
            if not is_real(self.support):
                scale = scale.square().mean().sqrt().expand_as(scale)
            self.x_shift.copy_(shift)
            self.x_scale.copy_(scale)
            if self.context and context is not None:
                shift, scale = moments(context)
                self.context_shift.copy_(shift)
                self.context_scale.copy_(scale)
            self.likelihood.start(x)
            if isinstance(self.prior, VampPrior):
                self.prior.start(self.code(x, self.standard(context)))

    def standard(self, context: Tensor | None) -> Tensor | None:
        """The context, standardised."""
        self.check_context(context)
        return None if context is None else (context - self.context_shift) / self.context_scale

    def code(self, x: Tensor, given: Tensor | None) -> Tensor:
        """What the posterior or its encoder reads."""
        flat = x.flatten(x.ndim - len(self.event_shape)) if len(self.event_shape) != 1 else x
        flat = (flat.to(self.x_shift.dtype) - self.x_shift) / self.x_scale
        if given is None:
            return flat
        return torch.cat([flat, given.expand(*flat.shape[:-1], -1)], -1)

    def encode(self, x: Tensor, context: Tensor | None = None) -> Any:
        r"""The posterior :math:`q(z \mid x)` of data with shape :math:`(*, event)`."""
        check_event(x, self.event_shape)
        code = self.code(x, self.standard(context))
        return self.posterior(code if self.encoder is None else along_last(self.encoder, code))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Any:
        r"""The likelihood :math:`p(x \mid z)` of latents with shape :math:`(*, latent)`."""
        check_event(z, self.latent_shape)
        flat = z.flatten(z.ndim - len(self.latent_shape)) if len(self.latent_shape) != 1 else z
        given = self.standard(context)
        if given is not None:
            shape = torch.broadcast_shapes(flat.shape[:-1], given.shape[:-1])
            flat = torch.cat([flat.expand(*shape, -1), given.expand(*shape, -1)], -1)
        return self.likelihood(flat)

    def reconstruct(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The mean of the likelihood at the mean of the posterior (at a draw, if it has none)."""
        q = self.encode(x, context)
        try:
            z = q.mean
        except NotImplementedError:
            z = q.sample()
        return self.decode(z, context).mean

    def prior_of(self, context: Tensor | None) -> Any:
        return self.prior(self.standard(context) if self.prior.context else None)

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

    def generate(self, shape: torch.Size, context: Tensor | None) -> Tensor:
        p = self.prior_of(context)
        z = (
            p.expand(shape).sample()
            if context is not None and self.prior.context
            else p.sample(shape)
        )
        return self.decode(z, context).sample()

    def site(
        self, name: str, context: Tensor | None, obs: Tensor | None, infer: dict[str, Any]
    ) -> Tensor:
        """States a latent site, named as the site with `_z`, and the site given it."""
        return self.state(f"{name}_z", name, context, obs, infer)

    def state(
        self,
        latent: str,
        name: str,
        context: Tensor | None,
        obs: Tensor | None,
        infer: dict[str, Any],
    ) -> Tensor:
        z = pyro.sample(latent, self.prior_of(context), infer=dict(infer))
        return pyro.sample(name, self.decode(z, context), obs=obs, infer=dict(infer))

    @property
    def pushforward(self) -> Pushforward:
        """The decoder's mean as a deterministic map of the prior, which shares the parameters."""
        if self.prior.context:
            raise ValueError(
                f"Expected a prior without context, got one of {self.prior.context} features."
            )
        return Pushforward(self.prior, Mean(self), self.context)

    @property
    def model(self) -> nn.Module:
        return LatentModel(self)

    @property
    def guide(self) -> nn.Module:
        return LatentGuide(self)


class Mean(Recorded):
    """The mean of a model's likelihood, as a map of latents flattened, followed by the context.

    Arguments:
        module: The model.
    """

    def __init__(self, module: Latent) -> None:
        super().__init__()
        self.module = module

    def forward(self, z: Tensor) -> Tensor:
        flat, context = z, None
        if self.module.context:
            size = z.shape[-1] - self.module.context
            flat, context = z[..., :size], z[..., size:]
        return self.module.decode(flat.unflatten(-1, self.module.latent_shape), context).mean


class VampPrior(LazyDistribution):
    r"""The prior that is a mixture of posteriors at learned inputs,
    :math:`p(z) = \frac{1}{M} \sum_m q(z \mid u_m)`.

    In a :class:`Latent` the inputs start at data, standardised as the posterior reads them.

    References:
        | VAE with a VampPrior (Tomczak & Welling, 2018), https://arxiv.org/abs/1705.07120

    Arguments:
        posterior: The lazy posterior, normal, which :class:`Latent` is given too.
        features: The number of features of the data.
        components: The number of inputs :math:`M`.
        encoder: The network before the posterior, if there is one.

    Example:
        >>> from probgen.distributions import Bernoulli, DiagonalNormal
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
        self.inputs = nn.Parameter(torch.randn(components, features))

    @property
    def objective(self) -> Callable[..., Tensor]:
        raise TypeError("A VampPrior is trained with the model whose prior it is.")

    def start(self, x: Tensor, context: Tensor | None = None) -> None:
        chosen = torch.randint(len(x), (len(self.inputs),), device=x.device)
        with torch.no_grad():
            self.inputs.copy_(x[chosen])

    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        self.check_context(context)
        u = self.inputs
        q = self.posterior(u if self.encoder is None else along_last(self.encoder, u))
        return NormalMixture(dist.Categorical(logits=u.new_zeros(len(u))), q)


class LatentModel(Pair):
    """The model of a Pyro pair: a latent site `z` and a site `x` in a data plate.

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
        infer = {"learned": "trained" if register(self.distribution) else "frozen"}
        with self.plate(prefix, x, context, size):
            part: Any = self.distribution
            return part.state(f"{prefix}z", f"{prefix}x", context, x, infer)


class LatentGuide(Pair):
    """The guide of a Pyro pair: the posterior's site `z` in a data plate."""

    def forward(
        self,
        x: Tensor | None = None,
        context: Tensor | None = None,
        *,
        size: int | None = None,
        prefix: str = "",
    ) -> Tensor:
        if x is None:
            raise ValueError("Expected data `x`, since the guide is a posterior given them.")
        infer = {"learned": "trained" if register(self.distribution) else "frozen"}
        with self.plate(prefix, x, context, size):
            part: Any = self.distribution
            return pyro.sample(f"{prefix}z", part.encode(x, context), infer=infer)


def draw(q: Any, samples: int, held: bool) -> tuple[Tensor, Tensor | None]:
    """Draws of a posterior, with their log density where it costs nothing more."""
    shape = torch.Size([samples])
    if held or not q.has_rsample:
        return q.sample(shape), None
    if hasattr(q, "rsample_and_log_prob"):
        return q.rsample_and_log_prob(shape)
    return q.rsample(shape), None


def divergence(q: Distribution, p: Distribution) -> Tensor | None:
    """The divergence of a normal law from another by feature, or as one number; else none."""
    first, second = normal_of(q), normal_of(p)
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
    """The means and scales of independent normal features."""
    if isinstance(p, UnitNormal):
        return p.centre, torch.ones_like(p.centre)
    if isinstance(p, Independent) and isinstance(p.base_dist, Normal):
        if p.reinterpreted_batch_ndims == len(p.event_shape):
            return p.base_dist.loc, p.base_dist.scale
    return None
