r"""Normalising flows.

A flow moves a base distribution through bijectors, :math:`x = f(z)` with :math:`z \sim p_z`, so

.. math:: \log p(x) = \log p_z(f^{-1}(x)) - \log |\det J_f(f^{-1}(x))|.

Transforms are listed from the base to the data, as in Pyro. What a flow has just drawn it need
not invert: a draw keeps its log density, as long as neither it nor a parameter changes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from inspect import ismethod
from typing import Any

import torch
from pyro.distributions import TorchDistribution, TransformedDistribution
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Distribution,
    Transform,
)

from ...core import (
    Density,
    LazyDistribution,
    LazyTransform,
    as_lazy,
    as_lazy_transform,
    broadcast,
    call_and_ladj,
    detached,
    initialize_part,
    inverse_and_ladj,
)
from ...core.bijector import Inverse
from ...core.cards import Traits
from ...core.contexts import spell
from ...core.lazy import shown
from ...core.standardize import ContextStandardizer
from ...core.validation import check_event
from ...objectives import MaximumLikelihood
from ...transforms import Standardize
from ..supports import check_parts, interior, is_real, mask_outside, sum_last

__all__ = ["Flow", "FlowDistribution"]


class FlowDistribution(TransformedDistribution):
    r"""The distribution of :math:`f(z)`, for :math:`z` from a base and bijective :math:`f`.

    It is a Pyro ``TransformedDistribution``: ``base_dist`` and ``transforms`` are there, and
    Pyro's ``TransformReparam`` moves a latent site with it to base space. Values outside the
    support have log density :math:`-\infty`, with gradients left finite.

    Arguments:
        base: The base distribution.
        transforms: The transforms, from the base to the data.
        parameters: Gives the tensors that all of this was built from, whose changes make a
            remembered draw stale.
        density: What `log_prob` is.
        validate_args: Whether to check arguments; by default as Pyro is set.
        sampler: Draws values of a shape in another way than from the base, for `sample`.

    Raises:
        ValueError: If a transform is not bijective, or the parts do not fit: their numbers of
            features, or what one gives and the next takes.

    Example:
        >>> import pyro.distributions as dist
        >>> from probgen.transforms import Bounded
        >>> base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        >>> flow = FlowDistribution(base, [Bounded(0.0, 1.0)])
        >>> flow.log_prob(torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 1.5]]))
        tensor([1.4021,   -inf])
    """

    def __init__(
        self,
        base: TorchDistribution,
        transforms: Sequence[Transform],
        parameters: Callable[[], Iterable[Tensor]] = tuple,
        density: Density = Density.EXACT,
        validate_args: bool | None = None,
        sampler: Callable[[torch.Size], Tensor] | None = None,
    ) -> None:
        for t in transforms:
            if not t.bijective:
                raise ValueError(f"Expected bijective transforms, got a {type(t).__name__}.")
        wanted = ComposeTransform(list(transforms)).domain.event_dim if transforms else 0
        if len(base.event_shape) < wanted:
            if len(base.batch_shape + base.event_shape) < wanted:
                raise ValueError(
                    f"Expected a base with {wanted} dimensions, got a {type(base).__name__} with "
                    f"shape {tuple(base.batch_shape + base.event_shape)}."
                )
            base = base.to_event(wanted - len(base.event_shape))
        self.density, self.sampler = density, sampler
        self._tensors = parameters
        self._draw: tuple[Any, ...] | None = None
        self._cuts = check_parts(base, transforms)
        super().__init__(unchecked(base), list(transforms), validate_args=validate_args)
        self._inner = interior(self.support), interior(self.base_dist.support)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        new = self.over(self.base_dist.expand(torch.Size(batch_shape)), self.transforms)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        of: Any = self._tensors  # the parameters of the module that made it
        return shown(self, of.__self__ if ismethod(of) else self.base_dist)

    def over(self, base: TorchDistribution, transforms: Sequence[Transform]) -> FlowDistribution:
        """Return the same flow of other parts."""
        new = copy.copy(self)
        FlowDistribution.__init__(
            new, base, transforms, self._tensors, self.density, False, self.sampler
        )
        return new

    def tempered(self, temperature: float) -> FlowDistribution:
        r"""Return the flow with its base narrowed about its mean, :math:`z \to m + T (z - m)`.

        References:
            | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma & Dhariwal, 2018)
            | https://arxiv.org/abs/1807.03039

        Arguments:
            temperature: The factor :math:`T > 0`.

        Raises:
            ValueError: If the temperature is not positive, or the base not on the real line.
        """
        if not temperature > 0:
            raise ValueError(f"Expected a positive `temperature`, got {temperature}.")
        if not is_real(self.base_dist.support):
            raise ValueError(
                f"Expected a base on the real line, got the support {self.base_dist.support}."
            )
        centre = self.base_dist.mean * (1 - temperature)
        scale = AffineTransform(centre, temperature, event_dim=self.base_dist.event_dim)
        return FlowDistribution(
            self.base_dist, [scale, *self.transforms], self._tensors, self.density
        )

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        if self.sampler is None:
            return super().sample(torch.Size(sample_shape))
        with torch.no_grad():
            return self.sampler(torch.Size(sample_shape) + self.batch_shape)

    def rsample_and_log_prob(
        self, sample_shape: Sequence[int] = torch.Size()
    ) -> tuple[Tensor, Tensor]:
        """Draws and their log density in one pass, differentiable in the parameters."""
        z = self.base_dist.rsample(torch.Size(sample_shape))
        log_prob = self.base_dist.log_prob(z)
        event_dim = self.base_dist.event_dim
        for t in self.transforms:
            z, ladj = call_and_ladj(t, z)
            log_prob = log_prob - sum_last(ladj, event_dim - t.domain.event_dim)
            event_dim += t.codomain.event_dim - t.domain.event_dim
        return z, log_prob

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Draws as `pyro.sample` does, and remembers the log density of the draw.

        The remembered log density has the gradient of the draw's noise and of the parameters,
        which is what SVI needs. It is no function of the draw itself: for that gradient take
        :meth:`score`, or `rsample`, which remembers nothing.
        """
        if not (self.has_rsample and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        x, log_prob = self.rsample_and_log_prob(*args, **kwargs)
        self._draw = (x, log_prob, self.stamp(x))
        return x

    def stamp(self, x: Tensor) -> tuple[Any, ...]:
        return x._version, x.requires_grad, *(p._version for p in self._tensors())

    def log_prob(self, value: Tensor) -> Tensor:
        if self._draw is not None and value is self._draw[0]:
            if self._draw[2] == self.stamp(value):
                return self._draw[1]
        if self._validate_args:
            self.check_value(value)
        if value.numel() == 0:
            empty = sum_last(value, self.event_dim)
            return empty.expand(torch.broadcast_shapes(empty.shape, self.batch_shape))
        y, inside = mask_outside(value, self.support, self._inner[0], self.event_dim)
        log_det: Tensor | float = 0.0
        event_dim = self.event_dim
        insides = [inside]
        for t, cut in zip(reversed(self.transforms), reversed(self._cuts)):
            if cut is not None:
                support, inner = cut
                y, inside = mask_outside(y, support, inner, event_dim)
                insides.append(inside)
            y, ladj = inverse_and_ladj(t, y)
            event_dim += t.domain.event_dim - t.codomain.event_dim
            log_det = log_det + sum_last(ladj, event_dim - t.domain.event_dim)
        base = self.base_dist
        y, inside = mask_outside(y, base.support, self._inner[1], len(base.event_shape))
        log_prob = base.log_prob(y) - log_det
        for ok in (*insides, inside):
            log_prob = log_prob if ok is None else torch.where(ok, log_prob, -torch.inf)
        return log_prob

    def push(self, z: Tensor) -> Tensor:
        """Move values of the base, as `TransformReparam` draws them, to the data."""
        for t in self.transforms:
            z = t(z)
        return z

    def solver_error(self, value: Tensor) -> Tensor:
        """How far the log density moves if equations are solved more coarsely, with shape `(*)`.

        With half as many steps, or ten times the tolerance, and the same random directions. For a
        method of order :math:`p` with fixed steps the error is about :math:`1 / (2^p - 1)` of that.

        Raises:
            TypeError: If the flow solves no equation.
        """
        parts = [coarser(t) for t in self.transforms]
        if all(a is b for a, b in zip(parts, self.transforms)):
            raise TypeError("Expected a flow that solves an equation, got one in closed form.")
        rough = self.over(self.base_dist, parts)
        seed = int(torch.randint(2**31, ()))
        found = []
        for law in (self, rough):
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(seed)
                found.append(law.log_prob(value))
        return (found[0] - found[1]).abs()

    def score(self, value: Tensor) -> Tensor:
        r"""Return the gradient of the log density in :math:`x`, with the shape of `value`."""
        with torch.enable_grad():
            x = value.detach().requires_grad_()
            return torch.autograd.grad(self.log_prob(x).sum(), x)[0]

    def check_value(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"Expected a tensor as value, got a {type(value).__name__}. Convert it with "
                f"torch.as_tensor."
            )
        if not value.is_floating_point():
            raise TypeError(
                f"Expected a floating-point value, got {value.dtype}. Integer data are dequantised "
                f"by probgen.distributions.Dequantized, or cast with .float()."
            )
        tensors = list(self._tensors())
        dtypes = {p.dtype for p in tensors if p.is_floating_point()}
        if dtypes and value.dtype not in dtypes:
            raise TypeError(
                f"Expected a value of {dtypes.pop()}, the dtype of the parameters, got "
                f"{value.dtype}. Cast the value, or the module with .to(dtype)."
            )
        if tensors and value.device != tensors[0].device:
            raise ValueError(
                f"Expected a value on {tensors[0].device}, the device of the parameters, got one "
                f"on {value.device}. Move it with .to({str(tensors[0].device)!r})."
            )
        check_event(value, self.event_shape)
        batch = value.shape[: value.ndim - self.event_dim]
        try:
            broadcast(batch, self.batch_shape)
        except RuntimeError:
            raise ValueError(
                f"Expected a value whose batch fits that of the distribution, "
                f"{tuple(self.batch_shape)}, from its context or plate, got {tuple(batch)}."
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_draw": None, "_tensors": tuple}
        return {name: detached(value) for name, value in state.items()}


def coarser(t: Transform) -> Transform:
    """Return a transform that solves its equation more coarsely, if it solves any."""
    if isinstance(t, Inverse):
        part = coarser(t.transform)
        return t if part is t.transform else part.inv
    change = getattr(t, "coarser", None)
    return t if change is None else change()


def unchecked(distribution: TorchDistribution) -> TorchDistribution:
    """Switch off the validation of a base, which costs and fails on empty batches."""
    new = object.__new__(type(distribution))  # a copy that keeps the graph
    new.__dict__.update(vars(distribution), _validate_args=False)
    for name, part in vars(new).items():
        if isinstance(part, Distribution):
            setattr(new, name, unchecked(part))
    return new


class Flow(LazyDistribution):
    """A normalising flow: lazy transforms of a lazy base.

    Contexts may be on any scale: :func:`probgen.fit`, or `initialize`, sets the location and scale
    by which they are standardised before they reach the parts.

    Arguments:
        transforms: The transforms from the base to the data, lazy or not.
        base: The base, a distribution of Pyro or a lazy one, which may take the context too. A
            base that is itself a flow is taken apart: its transforms come first.

    Raises:
        TypeError: If a part is of another type.
        ValueError: If the parts take contexts of different sizes.

    Example:
        >>> import pyro.distributions as dist
        >>> from probgen.transforms import Autoregressive, Bounded
        >>> base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        >>> flow = Flow([Autoregressive(3, context=2).inv, Bounded(0.0, 1.0)], base)
        >>> flow(torch.randn(5, 2)).sample((10,)).shape
        torch.Size([10, 5, 3])
    """

    traits = Traits("as large as the data", "one pass", True)

    def __init__(
        self,
        transforms: Sequence[LazyTransform | Transform],
        base: LazyDistribution | TorchDistribution,
    ) -> None:
        super().__init__()
        first: Any = as_lazy(base)
        start = first
        parts = [as_lazy_transform(t) for t in transforms]
        if isinstance(start, Flow):
            parts, start = [*start.transforms, *parts], start.base
        self.transforms: Any = nn.ModuleList(parts)
        self.base: LazyDistribution = start
        shapes = [part.context_shape for part in (start, *parts) if part.context_shape is not None]
        if any(shape != shapes[0] for shape in shapes):
            found = sorted({spell(shape) for shape in shapes})
            raise ValueError(f"Expected parts with one shape of context, got {', '.join(found)}.")
        if shapes:
            self.context_shape = shapes[0]
            inner = isinstance(first, Flow) and first.context_shape is not None
            self.context_standardizer = (
                first.context_standardizer if inner else ContextStandardizer(shapes[0])
            )

    @property
    def density(self) -> Density:
        return Density.weakest(self.base.density, *(t.density for t in self.transforms))

    @property
    def objective(self) -> Callable[..., Tensor]:
        return MaximumLikelihood()

    def forward(self, context: Any = None) -> FlowDistribution:
        self.check_context(context)
        if context is not None:
            context = self.context_standardizer(context)
        return FlowDistribution(
            self.base(context if self.base.context_shape is not None else None),
            [t(context if t.context_shape is not None else None) for t in self.transforms],
            self.parameters,
            self.density,
        )

    def standardized_parts(self, x: Tensor, context: Any) -> list[tuple[Any, Any, str]]:
        last = self.transforms[-1] if len(self.transforms) else None
        part = last.standardizer if isinstance(last, Standardize) else None
        return [(part, x, "data"), (self.context_standardizer, context, "context")]

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        event = tuple(self(context).event_shape)
        if x.ndim <= len(event) or tuple(x.shape[-len(event) :]) != event:
            wanted = ", ".join(["N", *map(str, event)])
            raise ValueError(f"Expected `x` with shape ({wanted}), got {tuple(x.shape)}.")
        if context is not None:
            self.context_standardizer.fit(context, weights)
            context = self.context_standardizer(context)
        for t in reversed(self.transforms):
            given = context if t.context_shape is not None else None
            t.initialize(x, given, weights)
            x = t(given).inv(x)
        initialize_part(self.base, x, context, weights)
