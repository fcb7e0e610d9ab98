"""Recipes of diffusions, each one call; of vectors, or of signals and images by a U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..core.contexts import shape_of, size_of
from ..core.validation import check_whole
from ..diffusion import (
    DDIM,
    VE,
    VP,
    Ancestral,
    AnnealedLangevin,
    BetaSchedule,
    Heun,
    Karras,
    NetworkDenoiser,
    PredictorCorrector,
    Rectified,
    Sampler,
    UniformGrid,
    linear_betas,
)
from ..distributions import Diffusion, Flow, StandardNormal
from ..distributions.parametric.base import shape_of as event_shape_of
from ..networks import TimeMLP, UNet
from ..objectives import Denoising
from ..transforms import ContinuousTransform
from ..transforms.continuous import Method
from .stacks import to_data, vector

__all__ = ["CNF", "DDPM", "EDM", "NCSN", "FlowMatching", "ScoreSDE"]


def parts_of(
    given: nn.Module | None,
    features: int | Sequence[int],
    context: Any,
    hidden_features: Sequence[int],
) -> tuple[nn.Module, tuple[int, ...], int]:
    """Return the network, the shape of an item and the number of features of the context."""
    shape, size = tuple(event_shape_of(features)), size_of(shape_of(context))
    if given is not None:
        return given, shape, size
    if len(shape) == 1:
        return TimeMLP(shape[0], size, hidden_features), shape, size
    attention = [level > 0 for level in range(len(hidden_features))]
    return UNet(shape, size, hidden_features, attention=attention), shape, size


class DDPM(Diffusion):
    r"""The denoising diffusion probabilistic model, whose network predicts the noise.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239

    Arguments:
        features: The number of features :math:`D`; or the shape of a signal, (channels, length), or
            an image, (channels, height, width), with sizes that the levels of the network halve.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each block of the network, or the channels of each level of a
            U-Net, which attends to all places in all levels but the first.
        steps: The number :math:`T` of steps of the chain, and of the sampler.
        sampler: Another sampler.
        network: Another network, from values, :math:`\lambda_t` and contexts to values.
        solver_steps: The number of steps by which the density is found.
        probes: The number of random directions of its trace, 0 for the exact one, which costs as
            many products as there are features.

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
        features: int | Sequence[int],
        context: Any = 0,
        hidden_features: Sequence[int] = (128, 128),
        steps: int = 1000,
        sampler: Sampler | None = None,
        network: nn.Module | None = None,
        solver_steps: int = 32,
        probes: int = 0,
    ) -> None:
        check_whole(1, steps=steps, solver_steps=solver_steps)
        part, shape, size = parts_of(network, features, context, hidden_features)
        schedule = BetaSchedule(linear_betas(steps, 0.1 / steps, min(20 / steps, 0.999)))
        super().__init__(
            NetworkDenoiser(part, schedule, shape, size, "eps"),
            Ancestral(steps) if sampler is None else sampler,
            objective=Denoising("eps"),
            context=shape_of(context),
            steps=solver_steps,
            probes=probes,
            chain=UniformGrid(),
        )


class NCSN(Diffusion):
    r"""The noise-conditional score network, drawn by annealed Langevin dynamics.

    Noise grows geometrically over standardised data, and each level counts by its variance,
    :math:`\lambda = \sigma^2`. Averaged parameters, as of ``pg.fit(..., ema=0.999)``, draw better
    (Song & Ermon, 2020).

    References:
        | Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019),
          https://arxiv.org/abs/1907.05600
        | Improved Techniques for Training Score-Based Generative Models (Song & Ermon, 2020),
          https://arxiv.org/abs/2006.09011

    Arguments:
        features: The number of features :math:`D`; or the shape of a signal, (channels, length), or
            an image, (channels, height, width), with sizes that the levels of the network halve.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each block of the network, or the channels of each level of a
            U-Net, which attends to all places in all levels but the first.
        low: The least noise, in standard deviations of the data.
        high: The greatest.
        sampler: Another sampler.
        network: Another network, from values, :math:`\lambda_t` and contexts to values.
        solver_steps: The number of steps by which the density is found.
        probes: The number of random directions of its trace, 0 for the exact one, which costs as
            many products as there are features.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import torch
        >>> NCSN(2, hidden_features=(16,))().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        hidden_features: Sequence[int] = (128, 128),
        low: float = 0.01,
        high: float = 10.0,
        sampler: Sampler | None = None,
        network: nn.Module | None = None,
        solver_steps: int = 32,
        probes: int = 0,
    ) -> None:
        check_whole(1, solver_steps=solver_steps)
        part, shape, size = parts_of(network, features, context, hidden_features)
        super().__init__(
            NetworkDenoiser(part, VE(low, high), shape, size, "eps"),
            AnnealedLangevin() if sampler is None else sampler,
            objective=Denoising("eps"),
            context=shape_of(context),
            steps=solver_steps,
            probes=probes,
        )


class ScoreSDE(Diffusion):
    r"""The variance-preserving process in continuous time, drawn by predictor and corrector.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al.,
          2021), https://arxiv.org/abs/2011.13456

    Arguments:
        features: The number of features :math:`D`; or the shape of a signal, (channels, length), or
            an image, (channels, height, width), with sizes that the levels of the network halve.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each block of the network, or the channels of each level of a
            U-Net, which attends to all places in all levels but the first.
        sampler: Another sampler.
        network: Another network, from values, :math:`\lambda_t` and contexts to values.
        solver_steps: The number of steps by which the density is found.
        probes: The number of random directions of its trace, 0 for the exact one, which costs as
            many products as there are features.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import torch
        >>> ScoreSDE(2, hidden_features=(16,))().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        hidden_features: Sequence[int] = (128, 128),
        sampler: Sampler | None = None,
        network: nn.Module | None = None,
        solver_steps: int = 32,
        probes: int = 0,
    ) -> None:
        check_whole(1, solver_steps=solver_steps)
        part, shape, size = parts_of(network, features, context, hidden_features)
        super().__init__(
            NetworkDenoiser(part, VP(), shape, size, "eps"),
            PredictorCorrector(Ancestral(200)) if sampler is None else sampler,
            objective=Denoising("eps"),
            context=shape_of(context),
            steps=solver_steps,
            probes=probes,
        )


class EDM(Diffusion):
    r"""The preconditioned model of Karras et al., drawn by Heun's method.

    Noise in training is spread evenly in its angle, with the half of it above the data's size.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Arguments:
        features: The number of features :math:`D`; or the shape of a signal, (channels, length), or
            an image, (channels, height, width), with sizes that the levels of the network halve.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each block of the network, or the channels of each level of a
            U-Net, which attends to all places in all levels but the first.
        sampler: Another sampler.
        network: Another network, from values, :math:`\lambda_t` and contexts to values.
        solver_steps: The number of steps by which the density is found.
        probes: The number of random directions of its trace, 0 for the exact one, which costs as
            many products as there are features.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import torch
        >>> EDM(2, hidden_features=(16,))().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        hidden_features: Sequence[int] = (128, 128),
        sampler: Sampler | None = None,
        network: nn.Module | None = None,
        solver_steps: int = 32,
        probes: int = 0,
    ) -> None:
        check_whole(1, solver_steps=solver_steps)
        part, shape, size = parts_of(network, features, context, hidden_features)
        super().__init__(
            NetworkDenoiser(part, Karras(), shape, size, "edm"),
            Heun() if sampler is None else sampler,
            objective=Denoising("v", times="angle"),
            context=shape_of(context),
            steps=solver_steps,
            probes=probes,
        )


class FlowMatching(Diffusion):
    r"""Straight lines from data to noise, whose network predicts the velocity.

    With the objective ``pg.objectives.Denoising("flow", pairing="optimal")`` the lines cross less.

    References:
        | Flow Matching for Generative Modeling (Lipman et al., 2023)
        | https://arxiv.org/abs/2210.02747

    Arguments:
        features: The number of features :math:`D`; or the shape of a signal, (channels, length), or
            an image, (channels, height, width), with sizes that the levels of the network halve.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each block of the network, or the channels of each level of a
            U-Net, which attends to all places in all levels but the first.
        sampler: Another sampler; by default 50 steps of :class:`~probgen.diffusion.DDIM`, which on
            straight lines are Euler's.
        network: Another network, from values, :math:`\lambda_t` and contexts to values.
        solver_steps: The number of steps by which the density is found.
        probes: The number of random directions of its trace, 0 for the exact one, which costs as
            many products as there are features.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import torch
        >>> FlowMatching(2, hidden_features=(16,))().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        hidden_features: Sequence[int] = (128, 128),
        sampler: Sampler | None = None,
        network: nn.Module | None = None,
        solver_steps: int = 32,
        probes: int = 0,
    ) -> None:
        check_whole(1, solver_steps=solver_steps)
        part, shape, size = parts_of(network, features, context, hidden_features)
        super().__init__(
            NetworkDenoiser(part, Rectified(), shape, size, "flow"),
            DDIM(50) if sampler is None else sampler,
            objective=Denoising("flow"),
            context=shape_of(context),
            steps=solver_steps,
            probes=probes,
        )


class CNF(Flow):
    r"""A continuous normalising flow, trained by maximum likelihood.

    References:
        | FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models (Grathwohl
          et al., 2019), https://arxiv.org/abs/1810.01367

    Arguments:
        features: The number of features :math:`D`.
        context: The number of features :math:`C` of the context, or its shape.
        hidden_features: The width of each block of the network.
        steps: The number of Runge-Kutta steps.
        probes: The number of random directions of the trace, 0 for the exact one.
        method: The solver's method, see :class:`~probgen.transforms.Continuous`.
        tolerance: The tolerance of a method that chooses its steps.
        adjoint: Whether such a method finds gradients by the adjoint equation.

    Raises:
        ValueError: If a size is impossible.

    Example:
        >>> import torch
        >>> CNF(2, hidden_features=(16,), steps=2)().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: Any = 0,
        hidden_features: Sequence[int] = (64, 64),
        steps: int = 8,
        probes: int = 0,
        method: Method = "rk4",
        tolerance: float = 1e-5,
        adjoint: bool = False,
    ) -> None:
        size = vector(features)
        network = TimeMLP(size, size_of(shape_of(context)), hidden_features)
        flow = ContinuousTransform(
            network, size, context, steps, method, probes, tolerance, adjoint
        )
        super().__init__([flow, *to_data(features)], StandardNormal(size))
