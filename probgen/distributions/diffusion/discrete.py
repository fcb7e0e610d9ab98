r"""Diffusions of discrete data as distributions.

A denoiser :math:`p(x_0 \mid x_t)`, independent over sites, makes each step of a corruption
reversible, and so a distribution of data, whose log-likelihood has the bound

.. math:: \log p(x_0) \ge -\operatorname{KL}(q(x_T \mid x_0) \,|\, p(x_T)) - \sum_{t=1}^T
    \mathbb{E}_{q(x_t \mid x_0)} \operatorname{KL}(q(x_{t-1} \mid x_t, x_0) \,|\,
    p(x_{t-1} \mid x_t)).

For one site it is tight if the denoiser is exact; sites that depend on one another are taken back
independently within a step, which costs the less the more steps there are. In continuous time,
where only one site jumps at a time, the sum becomes an integral, and the bound is tight for all
sites together.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ...core import DataDependentNetwork, Density, LazyDistribution
from ...core.cards import Traits
from ...core.contexts import expand_context, flatten
from ...core.contracts import HasCorruption
from ...core.standardize import ContextStandardizer
from ...core.validation import check_event, check_whole
from ...diffusion import ContinuousTimeCorruption, Corruption
from ...diffusion.discrete.corruptions import along
from ...diffusion.discrete.corruptions import draw as draw_state
from ...objectives import DiscreteDenoising, MaximumLikelihood
from ...objectives.denoising import spread
from ..module_distribution import ModuleDistribution
from ..parametric.base import shape_of

__all__ = ["DiscreteDiffusion", "JumpDiffusion"]


@HasCorruption.register
class StateDiffusion(LazyDistribution):
    """The base of diffusions of discrete data, in steps and in continuous time.

    Arguments:
        network: The denoiser.
        corruption: The corruption.
        features: The number of features, or the shape of an item.
        context: The number of features :math:`C` of the context, or its shape.
        times: The number of times that stand for all in `log_prob`.
    """

    density = Density.BOUND
    traits = Traits("noisy data, of the same size", "a network pass for each step")
    like: Tensor

    def __init__(
        self,
        network: Callable[..., Tensor],
        corruption: Corruption,
        features: int | Sequence[int],
        context: Any = 0,
        times: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(corruption, Corruption):
            raise TypeError(
                f"Expected a Corruption as `corruption`, got a {type(corruption).__name__}."
            )
        self.network, self.corruption = network, corruption
        self.check_times(times)
        self.event_shape = shape_of(features)
        self.context, self.times = context, times
        if self.context_shape is not None:
            self.context_standardizer = ContextStandardizer(self.context_shape)
        self.register_buffer("like", torch.zeros(1))  # of the dtype and on the device of results

    @abstractmethod
    def check_times(self, times: int) -> None:
        """Raise a ValueError unless so many times can stand for all."""

    @abstractmethod
    def estimate(self, x: Tensor, context: Any, u: Tensor, times: int) -> Tensor:
        """Return an estimate of the negative bound for each site, from numbers in [0, 1)."""

    @abstractmethod
    def back(self, x: Tensor, context: Any, steps: int) -> Iterator[Tensor]:
        """Take values back from the end in `steps` steps; yield them after each."""

    @property
    def support(self) -> constraints.Constraint:
        levels = constraints.integer_interval(0, self.corruption.classes - 1)
        return constraints.independent(levels, len(self.event_shape))

    def forward(self, context: Any = None) -> ModuleDistribution:
        self.check_context(context)
        return ModuleDistribution(self, context)

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        check_event(x, self.event_shape)
        if context is not None:
            self.context_standardizer.fit(context, weights)
        if isinstance(self.network, DataDependentNetwork):
            self.network.initialize(x, weights)

    def log_prob(self, x: Tensor, context: Any = None) -> Tensor:
        """Return a random lower bound of the log probabilities, see :meth:`elbo`."""
        return self.elbo(x, context, self.times)

    def denoise(self, noisy: Tensor, t: Tensor, context: Any = None) -> Tensor:
        r"""Return the logits of :math:`p(x_0 \mid x_t)`.

        Arguments:
            noisy: The noisy values :math:`x_t`, with shape :math:`(*, event)`.
            t: The steps, with shape :math:`(*)`.
            context: The contexts, with shape :math:`(*, C)`.

        Returns:
            Logits with shape :math:`(*, event, K)`.
        """
        given: tuple[Any, ...] = ()
        if context is not None:
            context = self.context_standardizer(context)
            given = (flatten(context, self.context_shape),)  # type: ignore[arg-type]
        logits = self.network(noisy, t, *given)
        wanted = (*noisy.shape, self.corruption.classes)
        if logits.shape != wanted:
            raise ValueError(
                f"Expected a `network` to logits with shape {wanted}, got {tuple(logits.shape)}."
            )
        return logits

    def elbo(self, x: Tensor, context: Any = None, times: int | None = None) -> Tensor:
        r"""Return an unbiased estimate of the evidence lower bound.

        The times are cut into as many stretches as there are `times`, and one of each is drawn,
        with one noisy value.

        Arguments:
            x: The data, whole numbers with shape :math:`(*, event)`.
            context: The contexts, with shape :math:`(*, C)`.
            times: The number of times that stand for all, by default that of the module; with
                all of them only the noisy values are random.

        Returns:
            Estimates with shape :math:`(*)`.
        """
        times = self.times if times is None else times
        check_event(x, self.event_shape)
        self.check_context(context)
        self.check_times(times)
        x, dims = x.long(), len(self.event_shape)
        batch = x.shape[: x.ndim - dims]
        u = spread(math.prod(batch), self.like).reshape(batch)
        ends = self.corruption.end_divergence(x, self.like)
        return -(ends + self.estimate(x, context, u, times)).flatten(x.ndim - dims).sum(-1)

    def walk(
        self, shape: Sequence[int], context: Any = None, steps: int | None = None
    ) -> Iterator[Tensor]:
        """Draws the end and takes the steps back; yields values after each, data the last.

        Arguments:
            shape: The shape of the draws, that of the contexts if there are any.
            context: The contexts, with shape :math:`(*, C)`.
            steps: The number of steps; by default that of the corruption, and in steps no other.
        """
        corruption, shape = self.corruption, torch.Size(shape)
        ends = corruption.log_end(self.like)
        x = draw_state(ends.expand(*shape, *self.event_shape, corruption.states))
        yield x
        yield from self.back(x, context, corruption.steps if steps is None else steps)

    def draw(self, shape: torch.Size, context: Any) -> Tensor:
        """Draw values with a batch shape, of contexts that broadcast to it."""
        context = expand_context(context, self.context_shape, shape)
        for x in self.walk(shape, context):
            last = x
        return last


class DiscreteDiffusion(StateDiffusion):
    r"""A diffusion of discrete data: a denoiser and a corruption.

    Called, it is a distribution of Pyro: `sample` takes all steps back, and `log_prob` is a random
    bound, whose expectation is the evidence lower bound.

    References:
        | Structured Denoising Diffusion Models in Discrete State-Spaces (Austin et al., 2021)
        | https://arxiv.org/abs/2107.03006

    Arguments:
        network: The denoiser, a map from noisy values, whole numbers with shape
            :math:`(*, event)`, and steps from 1 to :math:`T`, with shape :math:`(*)`, followed by
            contexts, if it takes them, to the logits of :math:`x_0`, with shape
            :math:`(*, event, K)`.
        corruption: The corruption.
        features: The number of features, or the shape of an item.
        context: The number of features :math:`C` of the context, or its shape.
        times: The number of steps that stand for all in `log_prob`.

    Raises:
        ValueError: If a size is impossible.
        TypeError: If `corruption` is none.

    Example:
        >>> from probgen.diffusion import AbsorbingCorruption
        >>> class Independent(torch.nn.Module):
        ...     def forward(self, x, t):
        ...         return torch.tensor([0.3, 0.7]).log().expand(*x.shape, 2)
        >>> d = DiscreteDiffusion(Independent(), AbsorbingCorruption(2, steps=10), 4)()
        >>> d.sample((3,)).shape, d.log_prob(torch.ones(3, 4)).shape
        (torch.Size([3, 4]), torch.Size([3]))
    """

    @property
    def objective(self) -> Callable[..., Tensor]:
        return DiscreteDenoising()

    def check_times(self, times: int) -> None:
        check_whole(1, times=times)
        if times > self.corruption.steps:
            raise ValueError(
                f"Expected `times` of at most {self.corruption.steps}, all steps, got {times}."
            )

    def estimate(self, x: Tensor, context: Any, u: Tensor, times: int) -> Tensor:
        steps, total = self.corruption.steps, torch.zeros_like(self.like)
        for low, high in pairwise([k * steps // times for k in range(times + 1)]):
            width = high - low
            t = 1 + low + (u * width).floor().long().clamp_max(width - 1)
            noisy = self.corruption.noisy(x, t)
            logits = self.denoise(noisy, t, context)
            total = total + width * self.corruption.divergence(logits, x, noisy, t)
        return total

    def back(self, x: Tensor, context: Any, steps: int) -> Iterator[Tensor]:
        corruption = self.corruption
        if steps != corruption.steps:
            raise ValueError(f"Expected `steps` of {corruption.steps}, all of them, got {steps}.")
        shape = x.shape[: x.ndim - len(self.event_shape)]
        for k in range(steps, 0, -1):
            t = torch.full((), k, device=x.device)  # one for all, so that its matrix is too
            x = draw_state(corruption.reverse(self.denoise(x, t.expand(shape), context), x, t))
            yield x


class JumpDiffusion(StateDiffusion):
    r"""A diffusion of discrete data in continuous time: a denoiser and a corruption by jumps.

    Called, it is a distribution of Pyro. Its `log_prob` is a random bound, whose expectation is the
    evidence lower bound: an integral over time, from a time with density
    :math:`1 / (2 \sqrt{t T})`, and one last step, of all sites at once, from the least time.
    Without it a network that is never quite sure would have no finite bound, unless data can only
    be masked. With an exact denoiser next to nothing is lost. `sample` goes back in steps, of each
    site by itself; `walk` takes any number of them.

    References:
        | A Continuous Time Framework for Discrete Denoising Models (Campbell et al., 2022)
        | https://arxiv.org/abs/2205.14987
        | Simplified and Generalized Masked Diffusion for Discrete Data (Shi et al., 2024)
        | https://arxiv.org/abs/2406.04329

    Arguments:
        network: The denoiser, a map from noisy values, whole numbers with shape
            :math:`(*, event)`, and times from 0 to :math:`T`, real numbers with shape :math:`(*)`,
            followed by contexts, if it takes them, to the logits of :math:`x_0`, with shape
            :math:`(*, event, K)`.
        corruption: The corruption, one by jumps.
        features: The number of features, or the shape of an item.
        context: The number of features :math:`C` of the context, or its shape.
        times: The number of times that stand for all in `log_prob`.
        cut: The least time, a share of :math:`T`; 0 for the integral alone.

    Raises:
        ValueError: If a number is impossible.
        TypeError: If `corruption` is none, or only one in steps.

    Example:
        >>> from probgen.diffusion import AbsorbingCorruption
        >>> class Independent(torch.nn.Module):
        ...     def forward(self, x, t):
        ...         return torch.tensor([0.3, 0.7]).log().expand(*x.shape, 2)
        >>> d = JumpDiffusion(Independent(), AbsorbingCorruption(2, steps=10), 4)()
        >>> d.sample((3,)).shape, d.log_prob(torch.ones(3, 4)).shape
        (torch.Size([3, 4]), torch.Size([3]))
    """

    corruption: ContinuousTimeCorruption

    def __init__(
        self,
        network: Callable[..., Tensor],
        corruption: Corruption,
        features: int | Sequence[int],
        context: Any = 0,
        times: int = 1,
        cut: float = 1e-3,
    ) -> None:
        if not 0 <= cut < 1:
            raise ValueError(f"Expected `cut` in [0, 1), got {cut}.")
        if not isinstance(corruption, ContinuousTimeCorruption):
            raise TypeError(
                f"Expected a corruption by ContinuousTimeCorruption as `corruption`, got a "
                f"{type(corruption).__name__}."
            )
        super().__init__(network, corruption, features, context, times)
        self.cut = cut

    @property
    def objective(self) -> Callable[..., Tensor]:
        return MaximumLikelihood()

    def check_times(self, times: int) -> None:
        check_whole(1, times=times)

    def estimate(self, x: Tensor, context: Any, u: Tensor, times: int) -> Tensor:
        corruption, total, least = self.corruption, torch.zeros_like(self.like), self.cut**0.5
        for k in range(times):
            root = ((u + k) / times).clamp(max(least, 1e-6), 1 - 1e-6)
            t = corruption.steps * root.square()
            noisy = corruption.noisy(x, t)
            logits = self.denoise(noisy, t, context)
            each = along(2 * corruption.steps * root, x) * corruption.excess(logits, x, noisy, t)
            if least:
                last, _ = corruption.log_data(logits, noisy, t)
                last = -last.gather(-1, x.unsqueeze(-1)).squeeze(-1) / least
                each = torch.where(along(root > least, x), each, last)
            total = total + each / times
        return total

    def back(self, x: Tensor, context: Any, steps: int) -> Iterator[Tensor]:
        check_whole(1, steps=steps)
        corruption, ends = self.corruption, self.corruption.steps
        shape = x.shape[: x.ndim - len(self.event_shape)]
        times = torch.linspace(ends, 0, steps + 1, dtype=self.like.dtype, device=x.device)
        for t, s in pairwise(times.unbind()):
            x = draw_state(corruption.leap(self.denoise(x, t.expand(shape), context), x, s, t))
            yield x
