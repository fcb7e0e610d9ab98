"""Recipes of diffusions of vectors, each one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..diffusion import (
    DDIM,
    VP,
    Ancestral,
    Heun,
    Karras,
    NetworkDenoiser,
    PredictorCorrector,
    Rectified,
    Sampler,
    Tabulated,
    linear_betas,
)
from ..distributions import Diffusion, Flow, StandardNormal
from ..networks import TimeMLP
from ..objectives import Denoising
from ..transforms import ContinuousTransform, Standardize

__all__ = ["CNF", "DDPM", "EDM", "FlowMatching", "ScoreSDE"]


def network_of(
    given: nn.Module | None, features: int, context: int, hidden_features: Sequence[int]
) -> nn.Module:
    return TimeMLP(features, context, hidden_features) if given is None else given


class DDPM(Diffusion):
    r"""The denoising diffusion probabilistic model, whose network says the noise.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239

    Arguments:
        features: The number of features :math:`D`.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each block of the network.
        steps: The number :math:`T` of steps of the chain, and of the sampler.
        sampler: Another sampler.
        network: Another network, from values, :math:`\lambda_t` and contexts to values.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import probgen as pg, torch
        >>> _ = torch.manual_seed(0)
        >>> model = DDPM(2, hidden_features=(32, 32), steps=50)
        >>> history = pg.fit(model, 5 + torch.randn(500, 2), steps=200, lr=3e-3, progress=False)
        >>> x = model.freeze()().sample((500,))
        >>> float((x.mean() - 5).abs()) < 0.5
        True
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] = (256, 256, 256),
        steps: int = 1000,
        sampler: Sampler | None = None,
        network: nn.Module | None = None,
    ) -> None:
        part = network_of(network, features, context, hidden_features)
        schedule = Tabulated(linear_betas(steps, 0.1 / steps, min(20 / steps, 0.999)))
        super().__init__(
            NetworkDenoiser(part, schedule, (features,), context, "eps"),
            Ancestral(steps) if sampler is None else sampler,
            objective=Denoising("eps"),
        )


class ScoreSDE(Diffusion):
    r"""The variance-preserving process in continuous time, drawn by predictor and corrector.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al.,
          2021), https://arxiv.org/abs/2011.13456

    Arguments:
        features: The number of features :math:`D`.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each block of the network.
        sampler: Another sampler.
        network: Another network, from values, :math:`\lambda_t` and contexts to values.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import torch
        >>> ScoreSDE(2, hidden_features=(16,))().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] = (256, 256, 256),
        sampler: Sampler | None = None,
        network: nn.Module | None = None,
    ) -> None:
        part = network_of(network, features, context, hidden_features)
        super().__init__(
            NetworkDenoiser(part, VP(), (features,), context, "eps"),
            PredictorCorrector(Ancestral(200)) if sampler is None else sampler,
            objective=Denoising("eps"),
        )


class EDM(Diffusion):
    r"""The preconditioned model of Karras et al., drawn by Heun's method.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Arguments:
        features: The number of features :math:`D`.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each block of the network.
        sampler: Another sampler.
        network: Another network, from values, :math:`\lambda_t` and contexts to values.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import torch
        >>> EDM(2, hidden_features=(16,))().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] = (256, 256, 256),
        sampler: Sampler | None = None,
        network: nn.Module | None = None,
    ) -> None:
        part = network_of(network, features, context, hidden_features)
        super().__init__(
            NetworkDenoiser(part, Karras(), (features,), context, "edm"),
            Heun() if sampler is None else sampler,
        )


class FlowMatching(Diffusion):
    r"""Straight lines from data to noise, whose network says the velocity.

    References:
        | Flow Matching for Generative Modeling (Lipman et al., 2023)
        | https://arxiv.org/abs/2210.02747

    Arguments:
        features: The number of features :math:`D`.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each block of the network.
        sampler: Another sampler; by default 50 steps of :class:`~probgen.diffusion.DDIM`, which on
            straight lines are Euler's.
        network: Another network, from values, :math:`\lambda_t` and contexts to values.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import torch
        >>> FlowMatching(2, hidden_features=(16,))().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] = (256, 256, 256),
        sampler: Sampler | None = None,
        network: nn.Module | None = None,
    ) -> None:
        part = network_of(network, features, context, hidden_features)
        super().__init__(
            NetworkDenoiser(part, Rectified(), (features,), context, "flow"),
            DDIM(50) if sampler is None else sampler,
            objective=Denoising("flow"),
        )


class CNF(Flow):
    r"""A continuous normalising flow, trained by maximum likelihood.

    References:
        | FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models (Grathwohl
          et al., 2019), https://arxiv.org/abs/1810.01367

    Arguments:
        features: The number of features :math:`D`.
        context: The number of features :math:`C` of the context.
        hidden_features: The width of each block of the network.
        steps: The number of Runge-Kutta steps.
        probes: The number of random directions of the trace, 0 for the exact one.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import torch
        >>> CNF(2, hidden_features=(16,), steps=2)().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        steps: int = 8,
        probes: int = 0,
    ) -> None:
        network = TimeMLP(features, context, hidden_features)
        flow = ContinuousTransform(network, features, context, steps, probes=probes)
        super().__init__([flow, Standardize(features)], StandardNormal(features))
