"""Recipes of convolutional autoencoders of images, each one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import nn

from ..core import LazyDistribution
from ..core.validation import check_whole
from ..distributions import Codebook, DiagonalNormal, Latent, Quantized, StandardNormal
from ..networks import Decoder, Encoder
from ..networks.convolution import check_channels, check_image
from ..networks.dense import Activation
from ..objectives import ELBO
from .vae import LIKELIHOODS, POSTERIORS, named

__all__ = ["VQVAE", "AutoencoderKL", "ConvVAE"]


def likelihood_of(
    likelihood: str | LazyDistribution,
    inputs: int | Sequence[int],
    shape: Sequence[int],
    channels: Sequence[int],
    blocks: int,
    activation: Activation,
) -> LazyDistribution:
    """Build a likelihood of images, with a convolutional decoder of vectors or a grid."""
    if isinstance(likelihood, LazyDistribution):
        return likelihood
    head: Any = named("likelihood", likelihood, LIKELIHOODS)
    size = check_image(shape)
    plain = head(size)  # which tells how many parameters it takes from a network
    rows = (len(plain.phi) - plain.free) // math.prod(size)
    network = Decoder(inputs, size, rows, channels, blocks, activation)
    return head(size, network.inputs, network=network)


class ConvVAE(Latent):
    r"""The convolutional variational autoencoder of images.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114
        | Deep ResidualUpdate Learning for Image Recognition (He et al., 2016)
        | https://arxiv.org/abs/1512.03385

    Arguments:
        shape: The shape :math:`(C, H, W)` of an image.
        latent: The number of latents :math:`L`.
        channels: The width of each level, each of which halves height and width, rounded up.
        likelihood: As for :class:`VAE`; a lazy distribution has `context` :math:`L` and events of
            the image's shape, its `network` perhaps a :class:`~probgen.networks.Decoder`.
        posterior: `"diagonal"`, `"full"`, or a lazy distribution with as many features of context
            as the encoder returns.
        prior: The prior, standard normal if none.
        encoder: A network instead, from images flattened to :math:`(*, C H W)` to the context of
            the posterior, with shape :math:`(*, n)`; named posteriors need its `outputs`.
        blocks: The number of residual blocks of each network.
        activation: The name of the activation function of both networks.
        samples: The number of draws :math:`K` of the bound that `log_prob` is.

    Raises:
        ValueError: If a size is impossible, or the parts do not fit.

    Example:
        >>> vae = ConvVAE((1, 8, 8), latent=2, channels=(8, 16))
        >>> x = vae().sample((5,))
        >>> x.shape, vae.encode(x).mean.shape, vae().log_prob(x).shape
        (torch.Size([5, 1, 8, 8]), torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        shape: Sequence[int] = (1, 28, 28),
        latent: int = 32,
        channels: Sequence[int] = (32, 64),
        likelihood: str | LazyDistribution = "bernoulli",
        posterior: str | LazyDistribution = "diagonal",
        prior: LazyDistribution | TorchDistribution | None = None,
        encoder: nn.Module | None = None,
        blocks: int = 1,
        activation: Activation = "silu",
        samples: int = 1,
    ) -> None:
        check_whole(1, latent=latent)
        likelihood = likelihood_of(likelihood, latent, shape, channels, blocks, activation)
        if encoder is None:
            widths = check_channels(channels)
            encoder = Encoder(shape, widths[-1], widths, blocks, activation)
        tail: Any = posterior
        if not isinstance(posterior, LazyDistribution):
            outputs = getattr(encoder, "outputs", None)
            if outputs is None:
                raise ValueError(
                    f"Expected an `encoder` with its number of `outputs`, or a lazy `posterior`, "
                    f"got a {type(encoder).__name__} and {posterior!r:.80}."
                )
            tail = named("posterior", posterior, POSTERIORS)(latent, outputs, ())
        prior = StandardNormal(latent) if prior is None else prior
        super().__init__(prior, likelihood, tail, encoder, samples=samples)


class AutoencoderKL(Latent):
    r"""The autoencoder of images with a grid of latents and a small weight on their divergence.

    The first stage of latent diffusion: latents :math:`z` of shape :math:`(c, h, w)` keep nearly
    all of an image, and the small weight keeps them near the scale of a standard normal
    distribution. A model of their distribution then takes the place of that law. Its default
    objective is
    :class:`~probgen.objectives.ELBO` with the weight `beta`.

    References:
        | High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)
        | https://arxiv.org/abs/2112.10752

    Arguments:
        shape: The shape :math:`(C, H, W)` of an image.
        latent: The number of latents :math:`c` at each place of the grid.
        channels: The width of each level, each of which halves height and width, rounded up.
        likelihood: As for :class:`VAE`; a lazy distribution has `context` :math:`c h w` and events
            of the image's shape.
        beta: The weight of the divergence. The Pyro pair has it under `objective.elbo()`.
        prior: The prior of events with shape :math:`(c, h, w)`, standard normal if none.
        blocks: The number of residual blocks of each network.
        activation: The name of the activation function of both networks.
        samples: The number of draws :math:`K` of the bound that `log_prob` is.

    Raises:
        ValueError: If a size is impossible, or the parts do not fit.

    Example:
        >>> model = AutoencoderKL((1, 8, 8), latent=2, channels=(8, 16))
        >>> model.encode(torch.zeros(5, 1, 8, 8)).mean.shape
        torch.Size([5, 2, 2, 2])
    """

    def __init__(
        self,
        shape: Sequence[int] = (1, 28, 28),
        latent: int = 4,
        channels: Sequence[int] = (32, 64),
        likelihood: str | LazyDistribution = "bernoulli",
        beta: float = 1e-2,
        prior: LazyDistribution | TorchDistribution | None = None,
        blocks: int = 1,
        activation: Activation = "silu",
        samples: int = 1,
    ) -> None:
        check_whole(1, latent=latent)
        network = Encoder(shape, 2 * latent, channels, blocks, activation)
        grid = (latent, *network.grid[1:])
        posterior = DiagonalNormal(grid, math.prod(shape), network=network)
        likelihood = likelihood_of(likelihood, grid, shape, channels, blocks, activation)
        if prior is None:
            prior = dist.Normal(torch.zeros(grid), 1.0).to_event(3)
        super().__init__(prior, likelihood, posterior, samples=samples)
        self.beta = ELBO(beta=beta).beta


class VQVAE(Quantized):
    r"""The vector-quantised variational autoencoder of images.

    A prior learned from `encode(x)` of the data makes a new model by `with_prior`.

    References:
        | Neural Discrete Representation Learning (van den Oord et al., 2017)
        | https://arxiv.org/abs/1711.00937

    Arguments:
        shape: The shape :math:`(C, H, W)` of an image.
        codes: The number of codes :math:`K`.
        code_features: The number of features :math:`F` of each.
        channels: The width of each level, each of which halves height and width, rounded up.
        likelihood: As for :class:`VAE`; a lazy distribution has `context` :math:`F h w` and events
            of the image's shape.
        commitment: The weight :math:`\beta` of the encoder's commitment to its codes.
        ema: The decay of the moving average that codes follow; none for codes that learn by
            gradient.
        prior: The prior over grids of :math:`(h, w)` codes, uniform if none.
        dead: The share of the mean usage below which a code is revived, 0 for never.
        blocks: The number of residual blocks of each network.
        activation: The name of the activation function of both networks.

    Raises:
        ValueError: If a size is impossible, or the parts do not fit.

    Example:
        >>> vq = VQVAE((1, 8, 8), codes=16, code_features=4, channels=(8, 16))
        >>> x = vq().sample((5,))
        >>> vq.encode(x).shape, vq.decode(vq.encode(x)).mean.shape, vq().log_prob(x).shape
        (torch.Size([5, 2, 2]), torch.Size([5, 1, 8, 8]), torch.Size([5]))
    """

    def __init__(
        self,
        shape: Sequence[int] = (1, 28, 28),
        codes: int = 512,
        code_features: int = 64,
        channels: Sequence[int] = (32, 64),
        likelihood: str | LazyDistribution = "bernoulli",
        commitment: float = 0.25,
        ema: float | None = 0.99,
        prior: LazyDistribution | TorchDistribution | None = None,
        dead: float = 0.05,
        blocks: int = 1,
        activation: Activation = "silu",
    ) -> None:
        encoder = Encoder(shape, code_features, channels, blocks, activation)
        codebook = Codebook(codes, code_features, commitment, ema, dead)
        likelihood = likelihood_of(likelihood, encoder.grid, shape, channels, blocks, activation)
        if prior is None:
            prior = dist.Categorical(logits=torch.zeros(*encoder.grid[1:], codes)).to_event(2)
        super().__init__(encoder, codebook, likelihood, prior)
