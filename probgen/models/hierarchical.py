"""Recipes of hierarchical variational autoencoders, each one call."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..core import LazyDistribution
from ..core.validation import check_whole
from ..distributions import Hierarchy, LatentLayer, PrecisionWeightedUpdate, ResidualUpdate
from ..networks.dense import Activation, activation_named, check_sizes
from ..networks.residual import InvertedResidual, Pixels, zeroed
from .vae import LIKELIHOODS, named

__all__ = ["HierarchicalVAE", "LadderVAE"]


LEAST = 1e-3  # standard deviation to be made 1


def level(layer: nn.Linear, x: Tensor, rows: int | None = None) -> None:
    """Give the (first) outputs of a layer mean 0 and variance 1 over inputs."""
    with torch.no_grad():
        out = layer(x)[:, :rows]
        shift, scale = out.mean(0), out.std(0, correction=0)
        scale = torch.where(scale > 0, scale, 1).clamp_min(LEAST)
        layer.weight[:rows] /= scale.unsqueeze(-1)
        layer.bias[:rows] = (layer.bias[:rows] - shift) / scale


class DenseLatentLayer(LatentLayer):
    """A layer of vectors; its state is its latents, its statistics come from below alone.

    Units start standardised over the data, and so do the means of prior and statistics, with
    scales of 1. So the statistics of each layer differ between data from the start; else those of
    higher layers are nearly constant and get no weight.
    """

    def __init__(
        self, inputs: int, latent: int, parent: int, width: int, activation: Activation = "relu"
    ) -> None:
        super().__init__()
        self.shape = (latent,)
        self.bottom_up_layers, self.posterior_head = dense(inputs, width, latent)
        self.top_down_layers: Any = None
        self.prior_head: Any = None
        if parent:
            self.top_down_layers, self.prior_head = dense(parent, width, latent)
        self.activation = activation_named(activation)

    def feed(self, layers: Any, x: Tensor) -> Tensor:
        for layer in layers:
            x = self.activation(layer(x))
        return x

    def bottom_up(self, d: Tensor) -> Tensor:
        return self.feed(self.bottom_up_layers, d)

    def prior(self, h: Tensor) -> Tensor:
        return self.prior_head(self.feed(self.top_down_layers, h))

    def statistics(self, h: Tensor | None, d: Tensor) -> Tensor:
        return self.posterior_head(d)

    def top_down(self, h: Tensor | None, z: Tensor) -> Tensor:
        return z

    def initialize_bottom_up(self, d: Tensor) -> None:
        self.start(self.bottom_up_layers, self.posterior_head, d)

    def initialize_prior(self, h: Tensor) -> None:
        self.start(self.top_down_layers, self.prior_head, h)

    def start(self, layers: Any, last: nn.Linear, x: Tensor) -> None:
        for layer in layers:
            level(layer, x)
            x = self.activation(layer(x))
        level(last, x, self.shape[0])


def dense(inputs: int, width: int, latent: int) -> tuple[Any, Any]:
    """Two hidden layers, and one of means and log scales, which start at zero."""
    last = nn.Linear(width, 2 * latent)
    with torch.no_grad():
        last.weight[latent:] = 0
        last.bias[latent:] = 0
    return nn.ModuleList([nn.Linear(inputs, width), nn.Linear(width, width)]), last


class LadderVAE(Hierarchy):
    r"""The ladder variational autoencoder of vectors.

    Each layer's posterior is the precision-weighted merge of what rises from the data with the
    prior that descends. Each network has two hidden layers of its layer's width. The paper keeps
    higher layers from falling silent by batch normalisation; here units start standardised over
    the data instead, once, by :func:`probgen.fit` or `start`, so that an item's density does not
    depend on its batch. With a warm-up the second layer then speaks by itself; free bits, which
    count by layer, keep all others: `objective=pg.objectives.ELBO(warm_up=0.5, free_bits=1.0)`.

    References:
        | Ladder Variational Autoencoders (Sonderby et al., 2016), https://arxiv.org/abs/1602.02282

    Arguments:
        features: The number of features :math:`D`.
        latents: The number of latents of each layer, from that next to the data to the top.
        hidden_features: The width of each layer's networks.
        likelihood: `"bernoulli"`, `"beta"`, `"continuous bernoulli"`, `"normal"` (a scale for each
            feature, learned), `"poisson"`, `"student"`, or a lazy distribution whose `context` is
            the number of latents of the first layer.
        activation: The name of the activation function of all networks.
        checkpoint: Whether to keep no activations within networks, but to compute them again.
        samples: The number of draws :math:`K` of the bound that `log_prob` is.

    Raises:
        ValueError: If a size is impossible, or the parts do not fit.

    Example:
        >>> import torch
        >>> import probgen as pg
        >>> _ = torch.manual_seed(0)
        >>> x = (torch.rand(200, 1) < torch.tensor([0.1, 0.9])).repeat_interleave(4, 1).float()
        >>> vae = LadderVAE(8, latents=(3, 2), hidden_features=(16, 16))
        >>> history = pg.fit(vae, x, steps=20, progress=False)
        >>> vae.reconstruct(x).shape, vae().sample((3,)).shape
        (torch.Size([200, 8]), torch.Size([3, 8]))
    """

    def __init__(
        self,
        features: int,
        latents: Sequence[int] = (32, 16, 8),
        hidden_features: Sequence[int] = (256, 128, 64),
        likelihood: str | LazyDistribution = "bernoulli",
        activation: Activation = "relu",
        checkpoint: bool = False,
        samples: int = 1,
    ) -> None:
        check_sizes(features=features, hidden_features=hidden_features)
        check_whole(1, **{f"latents[{i}]": n for i, n in enumerate(latents)})
        if len(latents) != len(hidden_features) or not latents:
            raise ValueError(
                f"Expected as many `hidden_features` as `latents`, one at least, got "
                f"{tuple(hidden_features)} for {tuple(latents)}."
            )
        inputs, parents = (features, *hidden_features), (*latents[1:], 0)
        rungs = [
            DenseLatentLayer(n, latent, parent, width, activation)
            for n, latent, parent, width in zip(inputs, latents, parents, hidden_features)
        ]
        if not isinstance(likelihood, LazyDistribution):
            head: Callable[..., LazyDistribution] = named("likelihood", likelihood, LIKELIHOODS)
            likelihood = head(features, latents[0], (hidden_features[0],) * 2, activation)
        super().__init__(rungs, likelihood, PrecisionWeightedUpdate(), checkpoint, samples)


class ImageLatentLayer(LatentLayer):
    """A layer of images, with a residual cell on the way up and one on the way down.

    It may be half as wide and high as the layer below.
    """

    def __init__(
        self, inputs: int, state: tuple[int, int, int], latent: int, top: bool, halved: bool
    ) -> None:
        super().__init__()
        channels = state[0]
        self.shape = (latent, *state[1:])
        up: list[nn.Module] = [InvertedResidual(channels)]
        down: list[nn.Module] = [InvertedResidual(channels)]
        if halved:
            up.insert(0, nn.Conv2d(inputs, channels, 3, stride=2, padding=1))
            down += [nn.Upsample(scale_factor=2), nn.Conv2d(channels, max(channels // 2, 1), 1)]
        self.up, self.down = nn.Sequential(*up), nn.Sequential(*down)
        self.posterior_head = zeroed(nn.Conv2d(channels, 2 * latent, 3, padding=1))
        self.prior_head: Any = None if top else zeroed(nn.Conv2d(channels, 2 * latent, 1))
        self.embed = nn.Conv2d(latent, channels, 1)
        self.first: Any = nn.Parameter(torch.zeros(state)) if top else None

    def bottom_up(self, d: Tensor) -> Tensor:
        return self.up(d)

    def prior(self, h: Tensor) -> Tensor:
        return self.prior_head(silu(h))

    def statistics(self, h: Tensor | None, d: Tensor) -> Tensor:
        return self.posterior_head(silu(d + (self.first if h is None else h)))

    def top_down(self, h: Tensor | None, z: Tensor) -> Tensor:
        return self.down(self.embed(z) + (self.first if h is None else h))


class HierarchicalVAE(Hierarchy):
    r"""The deep hierarchical variational autoencoder of images.

    Layers of latents at one scale or several, each half as wide and high as that below, the first
    half as the data. Posteriors are residual to the priors, cells convolve depthwise, channels
    double from scale to scale. Batch normalisation is left out: cells start as the identity
    instead, so that an item's density does not depend on its batch. A deep one is trained with
    spectral regularisation, warm-up and free bits::

        objective = SpectralRegularized(ELBO(warm_up=0.3, free_bits=0.1), weight=0.01)

    References:
        | NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020)
        | https://arxiv.org/abs/2007.03898

    Arguments:
        shape: The shape :math:`(n, H, W)` of the data.
        latent: The number of channels of the latents of each layer.
        channels: The number of channels :math:`C` of states next to the data; scales have
            :math:`2 C, 4 C, \dots`
        layers: The number of layers at each scale, from the finest to the coarsest.
        likelihood: `"bernoulli"`, `"beta"`, `"continuous bernoulli"`, `"normal"` (a scale for each
            feature, learned), `"poisson"`, `"student"`, or a lazy distribution whose `context` is
            :math:`C H W`, with a network such as :class:`~probgen.networks.Pixels`.
        checkpoint: Whether to keep no activations within cells, but to compute them again: less
            memory, more time.
        samples: The number of draws :math:`K` of the bound that `log_prob` is.

    Raises:
        ValueError: If a size is impossible, or the parts do not fit.

    Example:
        >>> vae = HierarchicalVAE((1, 8, 8), latent=2, channels=4, layers=(2, 1))
        >>> x = vae().sample((3,))
        >>> [tuple(z.shape) for z in vae.encode(x)]
        [(3, 2, 4, 4), (3, 2, 4, 4), (3, 2, 2, 2)]
    """

    def __init__(
        self,
        shape: Sequence[int] = (1, 28, 28),
        latent: int = 4,
        channels: int = 16,
        layers: Sequence[int] = (2, 2),
        likelihood: str | LazyDistribution = "bernoulli",
        checkpoint: bool = False,
        samples: int = 1,
    ) -> None:
        check_whole(1, latent=latent, channels=channels)
        for name, sizes in (("layers", layers), ("shape", shape)):
            check_whole(1, **{f"{name}[{i}]": n for i, n in enumerate(sizes)})
        part = 2 ** len(layers)
        if len(shape) != 3 or not layers or shape[1] % part or shape[2] % part:
            raise ValueError(
                f"Expected a `shape` of the form (channels, H, W), with H and W divisible by "
                f"{part} since `layers` has {len(layers)} scales, got {tuple(shape)}."
            )
        states = [(channels << s, shape[1] >> s, shape[2] >> s) for s in range(len(layers) + 1)]
        depth = sum(layers)
        rungs: list[LatentLayer] = []
        for s, (below, state) in enumerate(itertools.pairwise(states)):
            inputs = below[0] if s else shape[0]
            for i in range(layers[s]):
                top = len(rungs) == depth - 1
                rungs.append(ImageLatentLayer(inputs, state, latent, top, halved=i == 0))
        if not isinstance(likelihood, LazyDistribution):
            head = named("likelihood", likelihood, LIKELIHOODS)
            likelihood = pixelwise(head, shape, states[0])
        super().__init__(rungs, likelihood, ResidualUpdate(), checkpoint, samples)


def pixelwise(head: Any, shape: Sequence[int], state: tuple[int, int, int]) -> LazyDistribution:
    """Return a head of images whose network is convolutional, with as many rows as the head has."""
    blank = head(shape, math.prod(state), network=nn.Identity())
    rows = (len(blank.phi) - blank.free) // math.prod(shape)
    return head(shape, math.prod(state), network=Pixels(state, rows * shape[0]))
