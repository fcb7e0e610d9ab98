"""Recipes of variational autoencoders of vectors, each one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pyro.distributions import TorchDistribution
from torch import nn

from ..core import LazyDistribution
from ..core.contexts import shape_of, size_of
from ..core.validation import check_whole
from ..distributions import (
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiagonalNormal,
    FullNormal,
    Latent,
    Poisson,
    SemiSupervised,
    StandardNormal,
    StudentT,
)
from ..networks.dense import Activation

__all__ = ["VAE", "ConditionalVAE", "SemiSupervisedVAE"]

LIKELIHOODS: dict[str, Callable[..., LazyDistribution]] = {
    "bernoulli": Bernoulli,
    "beta": Beta,
    "continuous bernoulli": ContinuousBernoulli,
    "normal": partial(DiagonalNormal, scale="learned"),
    "poisson": Poisson,
    "student": StudentT,
}
POSTERIORS: dict[str, Callable[..., LazyDistribution]] = {
    "diagonal": DiagonalNormal,
    "full": FullNormal,
}


def named(kind: str, name: Any, among: dict[str, Any]) -> Any:
    """Return a part by name.

    Raises:
        ValueError: If there is none of that name.
    """
    if not isinstance(name, str) or name not in among:
        raise ValueError(
            f"Expected a `{kind}` among {sorted(among)}, or a lazy distribution, got {name!r:.80}."
        )
    return among[name]


class VAE(Latent):
    r"""The variational autoencoder of vectors.

    Encoder and decoder are multilayer perceptrons, the decoder's layers in reverse order.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114

    Arguments:
        features: The number of features :math:`D`.
        latent: The number of latents :math:`L`.
        hidden_features: The width of each hidden layer of the encoder.
        likelihood: `"bernoulli"`, `"beta"`, `"continuous bernoulli"`, `"normal"` (a scale for each
            feature, learned), `"poisson"`, `"student"`, or a lazy distribution with `context`
            :math:`L`.
        posterior: `"diagonal"`, `"full"`, or a lazy distribution with `context` :math:`D`, or of
            what `encoder` returns.
        prior: The prior, standard normal if none.
        encoder: A network from data, with shape :math:`(D, *)` if it is one of
            :mod:`probgen.networks`, else :math:`(*, D)`, to the context of the posterior.
        activation: The name of the activation function of both networks.
        samples: The number of draws :math:`K` of the bound that `log_prob` is.

    Raises:
        ValueError: If a size is impossible, or the parts do not fit.

    Example:
        >>> import torch
        >>> import probgen as pg
        >>> _ = torch.manual_seed(0)
        >>> x = (torch.rand(200, 1) < torch.tensor([0.1, 0.9])).repeat_interleave(4, 1).float()
        >>> vae = VAE(8, latent=2, hidden_features=(16,))
        >>> history = pg.fit(vae, x, steps=50, progress=False)
        >>> vae.encode(x).batch_shape, vae.decode(torch.zeros(3, 2)).sample().shape
        (torch.Size([200]), torch.Size([3, 8]))
        >>> vae.log_marginal(x[:5], samples=100).value.shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        latent: int = 50,
        hidden_features: Sequence[int] = (200, 200),
        likelihood: str | LazyDistribution = "bernoulli",
        posterior: str | LazyDistribution = "diagonal",
        prior: LazyDistribution | TorchDistribution | None = None,
        encoder: nn.Module | None = None,
        activation: Activation = "relu",
        samples: int = 1,
    ) -> None:
        parts = build(
            features, latent, 0, hidden_features, likelihood, posterior, prior, activation
        )
        super().__init__(*parts, encoder, samples=samples)


class ConditionalVAE(Latent):
    r"""The variational autoencoder of vectors given a context, :math:`p(x \mid c)`.

    References:
        | Learning Structured Output Representation using Deep Conditional Generative Models
        | (Sohn et al., 2015), https://papers.nips.cc/paper/5775
        | Semi-Supervised Learning with Deep Generative Models (Kingma et al., 2014)
        | https://arxiv.org/abs/1406.5298

    Arguments:
        features: The number of features :math:`D`.
        context: The number of features :math:`C` of the context, or its shape.
        latent: The number of latents :math:`L`.
        hidden_features: The width of each hidden layer of the encoder.
        likelihood: As for :class:`VAE`; a lazy distribution has `context` :math:`L + C`.
        posterior: As for :class:`VAE`; a lazy distribution has `context` :math:`D + C`.
        prior: The prior, standard normal if none; it may take the context.
        activation: The name of the activation function of both networks.
        samples: The number of draws :math:`K` of the bound that `log_prob` is.

    Raises:
        ValueError: If a size is impossible, or the parts do not fit.

    Example:
        >>> import torch
        >>> model = ConditionalVAE(8, context=3, latent=2, hidden_features=(16,))
        >>> model(torch.randn(5, 3)).sample((2,)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        features: int,
        context: Any,
        latent: int = 50,
        hidden_features: Sequence[int] = (200, 200),
        likelihood: str | LazyDistribution = "bernoulli",
        posterior: str | LazyDistribution = "diagonal",
        prior: LazyDistribution | TorchDistribution | None = None,
        activation: Activation = "relu",
        samples: int = 1,
    ) -> None:
        size = size_of(shape_of(context))
        if not size:
            raise ValueError(f"Expected a `context`, got {context!r:.80}. VAE takes none.")
        parts = build(
            features, latent, size, hidden_features, likelihood, posterior, prior, activation
        )
        super().__init__(*parts, context=context, samples=samples)


class SemiSupervisedVAE(SemiSupervised):
    r"""The variational autoencoder of vectors whose class is known for some.

    The context is the class, with shape :math:`(*, 1)`, -1 where it is unknown. Trained under
    :class:`~probgen.objectives.Supervised` of the evidence lower bound.

    References:
        | Semi-Supervised Learning with Deep Generative Models (Kingma et al., 2014)
        | https://arxiv.org/abs/1406.5298

    Arguments:
        features: The number of features :math:`D`.
        classes: The number of classes :math:`K`.
        latent: The number of latents :math:`L`.
        hidden_features: The width of each hidden layer of encoder and classifier.
        likelihood: As for :class:`VAE`; a lazy distribution has `context` :math:`L + K`.
        posterior: As for :class:`VAE`; a lazy distribution has `context` :math:`D + K`.
        activation: The name of the activation function of all networks.
        samples: The number of draws of the bound that `log_prob` is, for each class.

    Raises:
        ValueError: If a size is impossible, or the parts do not fit.

    Example:
        >>> import torch
        >>> import probgen as pg
        >>> model = SemiSupervisedVAE(8, classes=3, latent=2, hidden_features=(16,))
        >>> y = torch.randint(-1, 3, (50, 1)).float()
        >>> x = torch.bernoulli(torch.full((50, 8), 0.5))
        >>> history = pg.fit(model, x, context=y, steps=5, progress=False)
        >>> model.classify(x).probs.shape
        torch.Size([50, 3])
    """

    def __init__(
        self,
        features: int,
        classes: int,
        latent: int = 50,
        hidden_features: Sequence[int] = (200, 200),
        likelihood: str | LazyDistribution = "bernoulli",
        posterior: str | LazyDistribution = "diagonal",
        activation: Activation = "relu",
        samples: int = 1,
    ) -> None:
        check_whole(2, classes=classes)
        conditional = ConditionalVAE(
            features,
            classes,
            latent,
            hidden_features,
            likelihood,
            posterior,
            activation=activation,
            samples=samples,
        )
        classifier = Categorical(1, classes, features, hidden_features, activation)
        super().__init__(conditional, classifier)


def build(
    features: int,
    latent: int,
    context: int,
    hidden_features: Sequence[int],
    likelihood: str | LazyDistribution,
    posterior: str | LazyDistribution,
    prior: LazyDistribution | TorchDistribution | None,
    activation: Activation,
) -> tuple[Any, Any, Any]:
    """Prior, likelihood and posterior, those named built."""
    check_whole(1, features=features, latent=latent)
    widths = tuple(hidden_features)
    if not isinstance(likelihood, LazyDistribution):
        head = named("likelihood", likelihood, LIKELIHOODS)
        likelihood = head(features, latent + context, widths[::-1], activation)
    if not isinstance(posterior, LazyDistribution):
        tail = named("posterior", posterior, POSTERIORS)
        posterior = tail(latent, features + context, widths, activation)
    return StandardNormal(latent) if prior is None else prior, likelihood, posterior
