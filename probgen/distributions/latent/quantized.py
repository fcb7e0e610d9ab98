r"""Latents quantised to a codebook.

A codebook holds vectors :math:`e_1, \dots, e_K`. The encoder's vectors :math:`z(x)`, one for each
place of a grid, become their nearest codes, and a prior over grids of codes gives data by a
likelihood,

.. math:: k(x) = \arg\min_k \| z(x) - e_k \|, \qquad
    \log p(x) = \log \sum_k p(x \mid e_k) \, p(k) \ge \log p(x \mid e_{k(x)}) + \log p(k(x)).

The right-hand side is the density here: the bound of a posterior that is sure of its codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ...core import Density, LazyDistribution, Standardizer, as_lazy, initialize_part
from ...core.contracts import HasCodebook
from ...core.validation import check_event, ends
from ...networks.dense import along_last
from ...objectives import VectorQuantization, Weights
from .base import LatentVariable, check_given
from .codebook import TRIED, Codebook, Quantization

__all__ = ["Quantized"]


@HasCodebook.register
class Quantized(LatentVariable):
    r"""A latent-variable model whose latents are codes on a grid.

    The density is the bound of the codes :math:`k(x)` of the encoder, and its gradient that of the
    bound: none reaches the encoder, which :class:`~probgen.objectives.VectorQuantization` trains.
    :func:`probgen.fit`, or `initialize`, standardises data for the encoder and sets the first
    codes.

    After training, :meth:`with_prior` takes a prior learned from the codes of data.

    References:
        | Neural Discrete Representation Learning (van den Oord et al., 2017)
        | https://arxiv.org/abs/1711.00937

    Arguments:
        encoder: A network from data, flattened and standardised, with shape :math:`(*, D)`, to
            vectors with shape :math:`(*, F m)`, features first.
        codebook: The codebook, of vectors of :math:`F` features.
        likelihood: The lazy likelihood, called with vectors of codes in the encoder's shape.
        prior: The prior over grids of :math:`m` codes, lazy or one of Pyro, of any shape: the
            encoder's places in that order.

    Raises:
        TypeError: If a part is of another type.
        ValueError: If the parts do not fit.

    Example:
        >>> from probgen.distributions import Bernoulli
        >>> prior = dist.Categorical(torch.ones(4)).expand([3]).to_event(1)
        >>> encoder = nn.Linear(5, 6)
        >>> model = Quantized(encoder, Codebook(4, 2), Bernoulli(5, context=6), prior)
        >>> x = model().sample((10,))
        >>> model.encode(x).shape, model().log_prob(x).shape
        (torch.Size([10, 3]), torch.Size([10]))
    """

    variational = False
    site_options = {"vectors": False}

    def __init__(
        self,
        encoder: nn.Module,
        codebook: Codebook,
        likelihood: LazyDistribution,
        prior: LazyDistribution | TorchDistribution,
    ) -> None:
        super().__init__()
        if not isinstance(codebook, Codebook):
            raise TypeError(f"Expected a Codebook as `codebook`, got a {type(codebook).__name__}.")
        if not isinstance(likelihood, LazyDistribution):
            raise TypeError(
                f"Expected a lazy `likelihood`, called with a context, got a "
                f"{type(likelihood).__name__}."
            )
        self.encoder, self.codebook, self.likelihood = encoder, codebook, likelihood
        self.prior = as_lazy(prior)
        self.latent_shape, self.event_shape = self.fit_parts()
        self.standardizer = Standardizer(self.event_shape, "shared")

    def fit_parts(self) -> tuple[tuple[int, ...], torch.Size]:
        """Check that the parts fit, and return the shapes of the codes and of the data."""
        k, features = self.codebook.vectors.shape
        if self.prior.context or self.prior.density not in (Density.EXACT, Density.BOUND):
            raise ValueError(
                f"Expected a `prior` without context, and with a normalised density, got one with "
                f"context={self.prior.context} and {self.prior.density}."
            )
        with torch.no_grad():
            p = self.prior()
            if not p.support.is_discrete or ends(p.support) not in (None, (0, k - 1)):
                raise ValueError(
                    f"Expected a `prior` of codes from 0 to {k - 1}, got one of {p.support}."
                )
            size = features * math.prod(p.event_shape)
            if self.likelihood.context != size:
                raise ValueError(
                    f"Expected a likelihood with context={size}, for {features} features of "
                    f"{tuple(p.event_shape)} codes, got context={self.likelihood.context}."
                )
            like = self.codebook.vectors
            event = self.likelihood(like.new_zeros(size)).event_shape
            z = along_last(self.encoder, like.new_zeros(math.prod(event)))
        if z.shape != (size,):
            raise ValueError(
                f"Expected an `encoder` to {size} numbers, {features} features of "
                f"{tuple(p.event_shape)} codes, got shape {tuple(z.shape)}."
            )
        return tuple(p.event_shape), event

    @property
    def objective(self) -> Callable[..., Tensor]:
        return VectorQuantization()

    @property
    def support(self) -> constraints.Constraint:
        return self.likelihood.support

    def with_prior(self, prior: LazyDistribution | TorchDistribution) -> Quantized:
        """Return the model with another prior, and the same encoder, codebook and likelihood."""
        other = Quantized(self.encoder, self.codebook, self.likelihood, prior)
        other.to(self.standardizer.shift).train(self.training)
        other.standardizer.copy(self.standardizer)
        other.initialized_flag.copy_(self.initialized_flag)
        return other

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        check_event(x, self.event_shape)
        self.standardizer.fit(x, weights)
        initialize_part(self.likelihood, x, None, weights)
        if not self.codebook.initialized:
            x = x if weights is None else x[weights > 0]
            images = TRIED * len(self.codebook.usage) // max(math.prod(self.latent_shape), 1) + 1
            self.codebook.initialize(self.vectors(x[: max(images, 256)]))

    def vectors(self, x: Tensor) -> Tensor:
        """Return the encoder's vectors, one for each place, with shape :math:`(*, grid, F)`."""
        check_event(x, self.event_shape)
        y, dims = self.standardizer(x.to(self.standardizer.shift.dtype)), len(self.event_shape)
        z = along_last(self.encoder, y.flatten(y.ndim - dims) if dims != 1 else y)
        z = z.unflatten(-1, (-1, *self.latent_shape))
        return z.movedim(-1 - len(self.latent_shape), -1)

    def quantize(self, x: Tensor) -> Quantization:
        """Quantises data for training, with a loss for each item; the codebook learns."""
        values, codes, loss = self.codebook(self.vectors(x))
        return Quantization(values, codes, loss.flatten(x.ndim - len(self.event_shape)).sum(-1))

    def likelihood_of(self, vectors: Tensor) -> Any:
        """Return the likelihood of vectors with shape :math:`(*, grid, F)`."""
        first = -1 - len(self.latent_shape)
        return self.likelihood(vectors.movedim(-1, first).flatten(first))

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Return the codes :math:`k(x)`, with shape :math:`(*, grid)`, of data."""
        self.check_context(context)
        with torch.no_grad():
            return self.codebook.nearest(self.vectors(x))

    def decode(self, codes: Tensor) -> Any:
        r"""Return the likelihood :math:`p(x \mid e_k)` of codes with shape :math:`(*, grid)`."""
        check_event(codes, self.latent_shape)
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise TypeError(f"Expected `codes` as whole numbers, got {codes.dtype}.")
        k = len(self.codebook.usage)
        if torch.distributions.Distribution._validate_args and codes.device.type != "meta":
            if not ((codes >= 0) & (codes < k)).all():
                raise ValueError(
                    f"Expected `codes` from 0 to {k - 1}, got {int(codes.min())} to "
                    f"{int(codes.max())}."
                )
        return self.likelihood_of(self.codebook.look_up(codes))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the mean of the likelihood at the codes of data."""
        return self.decode(self.encode(x)).mean

    def perplexity(self, x: Tensor) -> Tensor:
        """How many codes data with shape :math:`(*, event)` make use of, from 1 to :math:`K`."""
        return self.codebook.perplexity(self.encode(x))

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
        self.check_context(context)
        codes = self.encode(x)
        fitted, prior = self.decode(codes).log_prob(x), self.prior().log_prob(codes)
        shape = (samples, *fitted.shape)  # all draws are one
        return Weights(fitted.expand(shape), prior.expand(shape), torch.zeros_like(fitted))

    def draw(self, shape: torch.Size, context: Tensor | None) -> Tensor:
        return self.decode(self.prior().sample(shape).long()).sample()

    def pyro_model(
        self,
        prefix: str,
        name: str,
        context: Any,
        obs: Tensor | None,
        infer: dict[str, Any],
        vectors: bool = True,
    ) -> Tensor:
        """State codes, `z`, their vectors, `z_vectors`, and the data.

        The vectors have no density; from the guide they carry gradients. They are left out inside
        another model, or without `vectors`.
        """
        codes = pyro.sample(f"{prefix}z", self.prior(), infer=dict(infer))
        if not vectors:
            return pyro.sample(name, self.decode(codes.long()), obs=obs, infer=dict(infer))
        law = carried(self.codebook.look_up(codes.long()), len(self.latent_shape) + 1)
        carrying = pyro.sample(f"{prefix}z_vectors", law)
        return pyro.sample(name, self.likelihood_of(carrying), obs=obs, infer=dict(infer))

    def pyro_guide(
        self, prefix: str, x: Tensor | None, context: Any, infer: dict[str, Any]
    ) -> Tensor:
        """State the codes of data, their vectors, and what they cost.

        The loss of codebook and commitment is a factor, which a guide adds to the loss.
        """
        x = check_given(x)
        values, codes, loss = self.quantize(x)
        dims = len(self.latent_shape)
        pyro.sample(f"{prefix}z", dist.Delta(codes, event_dim=dims), infer=dict(infer))
        pyro.sample(f"{prefix}z_vectors", carried(values, dims + 1))
        pyro.factor(f"{prefix}z_loss", loss, has_rsample=True)
        return codes


def carried(value: Tensor, event_dim: int) -> TorchDistribution:
    """Return a value as a site without a density."""
    return dist.Delta(value, event_dim=event_dim).mask(False)
