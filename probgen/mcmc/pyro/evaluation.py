r"""Evaluation of a log density for many chains at once.

`torch.func.vmap` runs a function of one chain for all of them. The gradient of the sum of their
values is the gradient of each, since chains are independent. What is asked for again is recorded
(:mod:`probgen.mcmc.pyro.graph`) and replayed.
"""

from __future__ import annotations

import contextlib
import gc
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .graph import record
from .model_run import Site, SiteRecorder, unchecked
from .replay import Recording

__all__ = ["Evaluation"]

Batched = Callable[[Tensor], dict[str, Tensor]]


class Evaluation(ABC):
    """The log density of a model, evaluated for many chains at once.

    Arguments:
        point: A point at which they can be evaluated, with shape :math:`(D)`.
        compile: Whether to record operations.
        random: Whether they draw random numbers that do not matter.

    Attributes:
        batched: Whether `vmap` takes the functions; otherwise chains come one after the other.
        room: Whether fresh tensors must be tensors of the chain.
        inner: Whether gradients are taken of one chain, within `vmap`, for functions that take
            gradients themselves.
        eager: Whether operations are recorded when they are first asked for, so that numbers do
            not depend on what was asked for before.
        slopeless: Why there is no gradient, or nothing.
        model: The model.
        layout: Where the numbers of each site are.
        progress: The site that a run came to.
        log_likelihood: The log density of the observed sites.
    """

    model: Callable[[], Any]
    layout: dict[str, Site]
    progress: list[str]
    size: int
    dtype: torch.dtype
    device: torch.device
    log_likelihood: Callable[[Tensor], Tensor]

    @abstractmethod
    def run(self, place: SiteRecorder) -> Tensor:
        """Run the model, and return its log density."""

    @abstractmethod
    def at(self, u: Tensor) -> SiteRecorder:
        """Return a run of the model at one point."""

    @abstractmethod
    def total(self, u: Tensor) -> Tensor:
        """Return the log density of one chain."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        r"""Return the log density at positions with shape :math:`(C, D)`."""

    @abstractmethod
    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density and its gradient."""

    def __init__(self, point: Tensor, compile: bool, random: bool) -> None:
        self.point, self.compile, self.random = point, compile, random
        self.batched, self.room, self.inner, self.slopeless = True, False, False, ""
        self.eager = False
        self.recorded: dict[Any, Recording | None] = {}
        self.asked: Counter[Any] = Counter()

    def check_shape(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.size:
            raise ValueError(
                f"Expected positions with shape (chains, {self.size}), got {tuple(x.shape)}."
            )

    def evaluate(self, kind: str, function: Batched, x: Tensor, *names: str) -> dict[str, Tensor]:
        """Return some values of a function for all chains, recorded at the second call."""
        key = (kind, x.shape, x.dtype, x.device)
        with torch.no_grad():
            if key not in self.recorded:
                self.asked[key] += 1
                if self.asked[key] == 1 and not self.eager:
                    # a chain outside the domain of linear algebra ends all, unless recorded
                    with unchecked(), contextlib.suppress(torch.linalg.LinAlgError):
                        return function(x)
                self.recorded[key] = self.prepare(function, x)
            recording = self.recorded[key]
            if recording is not None:
                return recording(x, *names)
            with unchecked():
                return function(x)

    def prepare(self, function: Batched, x: Tensor) -> Recording | None:
        """Return the operations of a function, if replayed they give its numbers."""
        if not self.compile or not self.batched or x.device.type == "meta":
            return None
        first = self.point.to(x).expand_as(x)
        near = first + torch.linspace(0, 0.01, len(x)).to(x)[:, None]
        own = x.detach().clone(memory_format=torch.contiguous_format)
        try:
            with unchecked(), uncollected(), torch.random.fork_rng(devices=[]):
                recording = record(function, own)
                try:
                    other = x.roll(1, 0) + 0.01
                    found = function(other)
                except torch.linalg.LinAlgError:
                    other = near
                    found = function(other)
                replayed = recording(other, *found)
        except Exception:
            return None  # recording is only a shorter way to the same numbers
        return recording if all(close(found[name], replayed[name]) for name in found) else None

    def map(self, function: Callable[[Tensor], Any], x: Tensor, chunk: int | None = None) -> Any:
        """Return a function of one chain, of each chain."""
        if self.batched:
            randomness = "different" if self.random else "error"
            one = tracked(function) if self.inner else function
            return torch.func.vmap(one, chunk_size=chunk, randomness=randomness)(x)
        results = [function(u) for u in x]
        if isinstance(results[0], Tensor):
            return torch.stack(results)
        return {name: torch.stack([r[name] for r in results]) for name in results[0]}

    def slopes(self, function: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Tensor]:
        """Return the values of a function of one chain, of each chain, and their gradients."""
        if self.slopeless:
            raise ValueError(
                f"Expected a model with a gradient, which this kernel uses, got one without: "
                f"{self.slopeless}. Metropolis and EllipticalSlice use no gradient."
            )
        if self.inner:
            both = torch.func.grad_and_value(function)
            gradient, value = torch.func.vmap(both, randomness="different")(x)
            return {"value": value, "gradient": gradient}
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self.map(function, x)
            if not value.requires_grad:
                return {"value": value, "gradient": torch.zeros_like(x)}
            (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
        gradient = torch.zeros_like(x) if gradient is None else gradient
        return {"value": value.detach(), "gradient": gradient}


def tracked(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Return a function whose argument requires a gradient, which it may ask for itself."""

    def seen(u: Tensor) -> tuple[Tensor, Any]:
        return u.sum(), function(u)

    return lambda u: torch.func.grad(seen, has_aux=True)(u)[1]


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree to the rounding of their greatest finite element."""
    size = torch.nan_to_num(a, posinf=0.0, neginf=0.0).abs().max()
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(size), equal_nan=True)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the collection of garbage, which looks at all that a long recording has made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
