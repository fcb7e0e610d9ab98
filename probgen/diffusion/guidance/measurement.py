"""Measurement models y = A(x) + noise, and checks of the operator A."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..denoisers import Denoiser

__all__ = ["GaussianMeasurement"]


class GaussianMeasurement(nn.Module):
    r""":math:`\log p(y \mid x_0)` in one of three forms, see :class:`DPS`."""

    y: Tensor | None
    scale: Tensor | None
    width: Tensor

    def __init__(
        self,
        operator: Callable[[Tensor], Any],
        y: Tensor | None,
        scale: float | Tensor | None,
        dims: int,
    ) -> None:
        super().__init__()
        if y is None and scale is not None:
            raise ValueError("Expected a measurement `y`, since there is a `scale`, got none.")
        self.operator, self.dims = operator, dims
        self.register_buffer("y", y if y is None else finite(y))
        self.register_buffer("scale", None if scale is None else positive(scale, y))  # type: ignore[arg-type]

    def widen(self, x: Tensor) -> None:
        """Record how an operator spreads standard normal draws, with shape :math:`(N, event)`."""
        if self.scale is not None:
            with torch.no_grad():
                seen = self.operator(x) - self.operator(torch.zeros_like(x))
                self.width = seen.abs().square().mean(0).sqrt()

    def forward(self, x: Tensor, spread: Tensor | None = None) -> Tensor:
        """Values with shape `(*)` of a normal distribution, widened for data of a given spread."""
        batch = x.shape[: x.ndim - self.dims]
        seen = self.operator(x)
        if self.y is not None and self.scale is not None:
            check_shape(self.y, seen.shape[len(batch) :], len(batch))
        if self.y is None:
            value = seen
        elif self.scale is None:
            value = seen.log_prob(self.y)
        else:
            s = self.scale
            if spread is not None:
                s = (s.square() + (spread * self.width).square()).sqrt()
            gap = (seen - self.y) / s
            part = -gap.abs().square() / 2 - math.log(2 * math.pi) / 2 - s.log()
            if gap.is_complex():
                part = part - math.log(2 * math.pi) / 2 - s.log()
            value = part.flatten(len(batch)).sum(-1)
        if value.shape != batch:
            raise ValueError(
                f"Expected an `operator` that gives one log likelihood for each item, with shape "
                f"{tuple(batch)}, got {tuple(value.shape)}."
            )
        return value


def check_graph(mean: Tensor, denoiser: Denoiser) -> None:
    if not mean.requires_grad:
        raise TypeError(
            f"Expected a denoiser with derivatives to guide, got {type(denoiser).__name__}, whose "
            f"own are spent. State all measurements in one operator."
        )


def finite(y: Tensor) -> Tensor:
    if y.device.type != "meta" and not bool(y.isfinite().all()):
        raise ValueError(
            "Expected a finite `y`, got one that is not. Leave out of the operator what was not "
            "measured."
        )
    return y


def positive(scale: float | Tensor | None, y: Tensor) -> Tensor:
    if scale is None:
        raise ValueError("Expected a `scale`, the standard deviation of the noise, got none.")
    s = torch.as_tensor(scale, dtype=y.real.dtype, device=y.device)
    if s.device.type != "meta" and not bool(((s > 0) & s.isfinite()).all()):
        raise ValueError(
            "Expected a positive and finite `scale`, got one that is not. Leave out of the "
            "operator what was not measured."
        )
    return s


def like_of(denoiser: Denoiser, y: Tensor | None) -> Tensor:
    """Return a tensor of the dtype and on the device of data."""
    tensors = (*denoiser.parameters(), *denoiser.buffers(), *(() if y is None else (y.real,)))
    return next((v for v in tensors if v.is_floating_point()), torch.zeros(()))


def check_shape(y: Tensor, event: tuple[int, ...], dims: int | None = None) -> None:
    """Raise a ValueError unless `y` is one for all of a batch of so many dimensions, or each."""
    extra = y.ndim - len(event)
    if extra < 0 or y.shape[extra:] != event or (dims is not None and extra > dims):
        raise ValueError(
            f"Expected `y` with the shape of what the operator gives for one item, "
            f"{tuple(event)}, got {tuple(y.shape)}."
        )


def points(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zero, two irregular points and their sum, with shape `(4, *shape)`."""
    k = torch.arange(math.prod(shape), dtype=like.dtype, device=like.device).reshape(shape)
    u, v = 2 * (1 + 1.7 * k).cos(), 1.3 * (0.6 + 2.3 * k).sin()
    return torch.stack([torch.zeros_like(u), u, v, u + v])


def called(operator: Callable[[Tensor], Any], x: Tensor) -> Any:
    try:
        with torch.enable_grad():
            return operator(x)
    except (IndexError, RuntimeError) as error:
        raise ValueError(
            f"Expected an `operator` of data with shape {('*', *x.shape[1:])}, got one that failed "
            f"on {tuple(x.shape)}: {error}"
        ) from error


def check_gradient(likelihood: GaussianMeasurement, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise a ValueError if a likelihood changes but its gradient does not say so."""
    if like.device.type == "meta":
        return
    x = points(shape, like).requires_grad_()
    values = called(likelihood, x)
    if values.requires_grad:
        (slope,) = torch.autograd.grad(values.sum(), x)
    changes = bool((values.detach().diff() != 0).any())
    if not values.requires_grad or (changes and not bool((slope != 0).any())):
        raise ValueError(
            "Expected an `operator` with a gradient, got one without, or with one that is zero "
            "though its values change. TwistedSMC with gradient=False takes such a likelihood."
        )


def check_linear(
    operator: Callable[[Tensor], Tensor], shape: tuple[int, ...], y: Tensor, like: Tensor
) -> None:
    """Raise a ValueError unless an operator is linear or affine and gives what was measured."""
    if like.device.type == "meta":
        return
    seen = called(operator, points(shape, like)).detach()
    check_shape(y, seen.shape[1:])
    u, v, both = seen[1:] - seen[0]
    if not bool((both - u - v).abs().max() <= 1e-3 * torch.maximum(u.abs(), v.abs()).max()):
        raise ValueError(
            "Expected a linear `operator`, got one whose values do not add up. DPS and TwistedSMC "
            "take any."
        )


def check_adjoint(
    operator: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor] | None,
    shape: tuple[int, ...],
    like: Tensor,
) -> None:
    """Raise a ValueError unless an operator has an adjoint, its own one."""
    if like.device.type == "meta":
        return
    x = points(shape, like)
    if adjoint is None:
        if not called(operator, x.requires_grad_()).requires_grad:
            raise ValueError(
                "Expected an `operator` with a gradient, or its `adjoint`, got neither. "
                "TwistedSMC with gradient=False takes such an operator."
            )
        return
    seen = called(operator, x).detach()
    u, v = seen[1:3] - seen[0]
    there = (v.conj() * u).real
    back = called(adjoint, v.unsqueeze(0)).real.squeeze(0) * x[1]
    if not bool((there.sum() - back.sum()).abs() <= 1e-3 * (there.abs().sum() + back.abs().sum())):
        raise ValueError("Expected the `adjoint` of the operator, got that of another one.")
