r"""Energies of a network, tilted distributions and products of experts.

.. math:: p(x) \propto e^{-E(x)}, \qquad p(x) \propto q(x) \, e^{f(x)}, \qquad
    p(x) \propto \prod_k q_k(x).

The second stays a density whatever :math:`f` does far from the data, as long as it grows slower
than :math:`\log q` falls, and :math:`\log Z = \log \mathbb{E}_q e^{f(x)}` starts at zero with
:math:`f`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from ...core import Density, LazyDistribution, as_lazy, initialize_part
from ...core.contexts import batch_of, spell
from ...core.contracts import HasTilt
from ...mcmc import Kernel
from ..supports import is_real
from .base import EnergyBased

__all__ = ["Energy", "ProductOfExperts", "Tilted"]

DENSITIES = (Density.EXACT, Density.ODE, Density.UNNORMALIZED)


def scalar(network: Callable[..., Tensor], x: Tensor, context: Tensor | None, dims: int) -> Tensor:
    """Return the output of a network, one number for each value."""
    out = network(x) if context is None else network(x, context)
    shape = x.shape[: x.ndim - dims]
    if out.shape == (*shape, 1):
        out = out.squeeze(-1)
    if out.shape != shape:
        raise ValueError(
            f"Expected one number per value, with shape {tuple(shape)}, of values with shape "
            f"{tuple(x.shape)}, got {tuple(out.shape)}."
        )
    return out


class Energy(EnergyBased):
    r"""The distribution of an energy that a network computes.

    The energy must grow fast enough for :math:`e^{-E}` to have an integral, which nobody can check;
    :class:`Tilted` needs less of a network.

    Arguments:
        network: The energy, from values with shape :math:`(*, event)`, and contexts with shape
            :math:`(*, C)` second if there are any, to shape :math:`(*)` or :math:`(*, 1)`.
        features: The number of features, or the shape of an event.
        context: The number of features of the context, or its shape.
        bounds: The least and the greatest value, none where infinite.
        kernel: The kernel that draws; :class:`~probgen.mcmc.MALA` by default.
        steps: The number of steps of a draw.

    Raises:
        ValueError: If bounds do not rise.

    Example:
        >>> import probgen as pg
        >>> _ = torch.manual_seed(0)
        >>> module = Energy(pg.networks.EnergyNetwork(2, hidden_features=(32,)), 2, bounds=(0, 1))
        >>> module().sample((5,)).shape, module().density
        (torch.Size([5, 2]), <Density.UNNORMALIZED: 'unnormalized'>)
    """

    def __init__(
        self,
        network: nn.Module | Callable[..., Tensor],
        features: int | Sequence[int],
        context: Any = 0,
        bounds: tuple[float | None, float | None] = (None, None),
        kernel: Kernel | None = None,
        steps: int = 100,
    ) -> None:
        super().__init__(features, context, kernel, steps, located=True)
        self.network, self.bounds = network, bounds
        low, high = bounds
        if low is not None and high is not None and not low < high:
            raise ValueError(f"Expected `bounds` that rise, got {bounds}.")

    @property
    def support(self) -> constraints.Constraint:
        low, high = self.bounds
        inner: Any = constraints.real
        if low is not None and high is not None:
            inner = constraints.interval(low, high)
        elif low is not None:
            inner = constraints.greater_than(low)
        elif high is not None:
            inner = constraints.less_than(high)
        return constraints.independent(inner, len(self.event_shape))

    def log_density(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return -scalar(self.network, x, self.network_context(context), len(self.event_shape))

    def base(self, context: Tensor | None = None) -> TorchDistribution:
        """Return a normal distribution of the data's mean and width, mapped into the bounds."""
        batch, dims = batch_of(context, self.context_shape), len(self.event_shape)
        unit: Any = self.standardizer
        normal = dist.Normal(unit.shift, unit.scale).expand((*batch, *self.event_shape))
        t = self.bijection
        return (
            normal.to_event(dims)
            if t is None
            else dist.TransformedDistribution(normal.to_event(dims), t)
        )


@HasTilt.register
class Tilted(EnergyBased):
    r"""A distribution tilted by a network, :math:`p(x) \propto q(x) \, e^{f(x)}`.

    Trained by :class:`~probgen.objectives.NoiseContrastive`, with :math:`q` as the noise,
    :math:`f` is the log ratio of the data's density to :math:`q`.

    References:
        | Exponential Tilting of Generative Models (Floto et al., 2023)
        | VAEBM: A Symbiosis between Variational Autoencoders and Energy-Based Models (Xiao et al.,
          2021), https://arxiv.org/abs/2010.00654

    Arguments:
        base: The base :math:`q`, lazy or of Pyro, with a density; it is frozen or learns along.
        network: The tilt :math:`f`, from values with shape :math:`(*, event)`, and contexts second
            if there are any, to shape :math:`(*)` or :math:`(*, 1)`.
        context: The number of features of the context, or its shape.
        kernel: The kernel that draws; :class:`~probgen.mcmc.MALA` by default.
        steps: The number of steps of a draw.

    Raises:
        ValueError: If the base has no density, is discrete, or takes another context.

    Example:
        A normal distribution tilted by a line is that law moved:

        >>> _ = torch.manual_seed(0)
        >>> base = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> tilted = Tilted(base, lambda x: 2 * x)
        >>> abs(float(tilted().sample((3000,)).mean()) - 2) < 0.1
        True
        >>> abs(tilted.estimate(500, temperatures=100).log_z - 2) < 0.1  # E exp(2 x) = exp(2)
        True
    """

    def __init__(
        self,
        base: LazyDistribution | TorchDistribution,
        network: nn.Module | Callable[..., Tensor],
        context: Any = 0,
        kernel: Kernel | None = None,
        steps: int = 100,
    ) -> None:
        law = as_lazy(base)
        probe = law.probe()
        check_expert(law, probe, "base")
        if law.density is Density.UNNORMALIZED:
            raise ValueError(
                f"Expected a normalised `base`, got a {type(law).__name__}. ProductOfExperts takes "
                f"those that are not."
            )
        super().__init__(tuple(probe.event_shape), context, kernel, steps, located=True)
        if law.context_shape not in (None, self.context_shape):
            raise ValueError(
                f"Expected a `base` with context={spell(self.context_shape)} or none, got "
                f"{spell(law.context_shape)}."
            )
        self.law, self.network = law, network

    @property
    def support(self) -> constraints.Constraint:
        return self.law.support

    def base(self, context: Any = None) -> TorchDistribution:
        law = self.law(context if self.law.context_shape is not None else None)
        if context is None or self.law.context_shape is not None:
            return law
        return law.expand(batch_of(context, self.context_shape))

    def set_base(self, x: Tensor, context: Any, weights: Tensor | None) -> None:
        initialize_part(self.law, x, context, weights)

    def tilt(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return tilt :math:`f` of values with shape :math:`(*, event)`, with shape :math:`(*)`."""
        return scalar(self.network, x, self.network_context(context), len(self.event_shape))

    def log_density(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        law = self.law(context if self.law.context_shape is not None else None)
        return law.log_prob(x) + self.tilt(x, context)


class ProductOfExperts(EnergyBased):
    r"""The normalised product of distributions, :math:`p(x) \propto \prod_k q_k(x)`.

    References:
        Hinton, "Training products of experts by minimizing contrastive divergence", 2002,
        https://doi.org/10.1162/089976602760128018

    Arguments:
        experts: The experts :math:`q_k`, lazy or of Pyro, of one event shape. Chains start from
            the first that is normalised.
        kernel: The kernel that draws; :class:`~probgen.mcmc.MALA` by default.
        steps: The number of steps of a draw.

    Raises:
        ValueError: If there is none, one has no density or takes a context, or shapes or supports
            differ.

    Example:
        Two normal distributions make one with the sum of their precisions:

        >>> _ = torch.manual_seed(0)
        >>> normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> product = ProductOfExperts([normal, normal])
        >>> abs(float(product().sample((3000,)).var()) - 0.5) < 0.05
        True
    """

    def __init__(
        self,
        experts: Sequence[LazyDistribution | TorchDistribution],
        kernel: Kernel | None = None,
        steps: int = 100,
    ) -> None:
        parts = [as_lazy(e) for e in experts]
        if not parts:
            raise ValueError("Expected at least one expert, got none.")
        for i, part in enumerate(parts):
            if part.context_shape is not None:
                raise ValueError(
                    f"Expected experts without context, got context={part.context} of expert {i}."
                )
        laws = [part() for part in parts]
        for i, (part, law) in enumerate(zip(parts, laws)):
            check_expert(part, law, f"expert {i}")
            if law.event_shape != laws[0].event_shape:
                raise ValueError(
                    f"Expected experts of one event shape, got {tuple(laws[0].event_shape)} and "
                    f"{tuple(law.event_shape)} of expert {i}."
                )
            if not same_support(law.support, laws[0].support):
                raise ValueError(
                    f"Expected experts of one support, got {laws[0].support} and {law.support} of "
                    f"expert {i}."
                )
        if all(part.density is Density.UNNORMALIZED for part in parts):
            raise ValueError("Expected a normalised expert to start from, got none.")
        super().__init__(tuple(laws[0].event_shape), 0, kernel, steps, located=True)
        self.experts = nn.ModuleList(parts)

    @property
    def support(self) -> constraints.Constraint:
        return self.experts[0]().support

    def base(self, context: Tensor | None = None) -> TorchDistribution:
        normal = (e for e in self.experts if e.density is not Density.UNNORMALIZED)
        return next(normal)()

    def log_density(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        logs = [
            e.log_density(x) if isinstance(e, EnergyBased) else e().log_prob(x)
            for e in self.experts
        ]
        return torch.stack(logs).sum(0)


def check_expert(part: LazyDistribution, law: TorchDistribution, name: str) -> None:
    if part.density not in DENSITIES:
        raise ValueError(
            f"Expected `{name}` with a density, got a {type(part).__name__}, whose log_prob is "
            f"{part.density.value}."
        )
    if law.batch_shape:
        raise ValueError(
            f"Expected `{name}` of one value, got the batch shape {tuple(law.batch_shape)}. "
            f"Declare it an event by .to_event."
        )
    if not law.event_shape:
        raise ValueError(f"Expected `{name}` of vectors, got one of numbers. Give it shape (1,).")
    if law.support.is_discrete:
        raise ValueError(f"Expected `{name}` of real numbers, got the support {law.support}.")
    if biject_to(law.support).inverse_shape(law.event_shape) != law.event_shape:
        raise ValueError(
            f"Expected `{name}` of as many free numbers as features, got the support {law.support}."
        )


def same_support(a: constraints.Constraint, b: constraints.Constraint) -> bool:
    if is_real(a) and is_real(b):
        return True
    x, y = (biject_to(s)(torch.linspace(-3, 3, 7)[:, None]) for s in (a, b))
    return torch.equal(x, y)
