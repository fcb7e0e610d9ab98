"""Data for training: checked once, then cut into batches that follow from the seed and the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .core import LazyDistribution
from .core.processes import mix

__all__ = ["Batches", "span"]


class Batches:
    """Data in batches that follow from the seed and the number of the step."""

    def __init__(
        self,
        x: Tensor | None,
        context: Tensor | None,
        weights: Tensor | None,
        batch_size: int,
        seed: int,
        loader: DataLoader | None = None,
        prepare: Callable[..., tuple[Tensor, Tensor | None]] | None = None,
    ) -> None:
        self.x, self.context, self.weights = x, context, weights
        self.batch_size, self.seed = batch_size, seed
        self.loader, self.prepare = loader, prepare

    @classmethod
    def of(
        cls,
        module: LazyDistribution,
        data: Any,
        context: Any,
        weights: Any,
        batch_size: int,
        device: torch.device,
        seed: int,
    ) -> Batches:
        """Checks the data and puts them on the device."""
        if batch_size < 1:
            raise ValueError(f"Expected a positive `batch_size`, got {batch_size}.")
        p = next(module.parameters(), None)
        if p is None:
            raise ValueError(f"Expected a module with parameters, got {type(module).__name__}.")

        def prepare(x: Any, c: Any) -> tuple[Tensor, Tensor | None]:
            c = None if c is None else tensor(c, "context", p.dtype, device)
            return tensor(x, "data", p.dtype, device, module, c), c

        if weights is not None and (data is None or isinstance(data, DataLoader)):
            raise ValueError("Expected no `weights` without data or with a DataLoader.")
        if isinstance(data, DataLoader) and context is not None:
            raise ValueError("Expected a DataLoader of pairs (x, context), got `context` besides.")
        if data is None:
            c = None if context is None else tensor(context, "context", p.dtype, device)
            return cls(None, c, None, batch_size, seed)
        if isinstance(data, Dataset):
            items = [pair(data[i]) for i in range(len(data))]  # type: ignore[arg-type]
            first, second = zip(*items)
            data = torch.stack([torch.as_tensor(v) for v in first])
            if second[0] is not None:
                context = torch.stack([torch.as_tensor(v) for v in second])
        if isinstance(data, DataLoader):
            with torch.random.fork_rng():
                torch.manual_seed(mix(seed, 0, 0))
                x, c = prepare(*pair(next(iter(data))))
            return cls(x, c, None, batch_size, seed, data, prepare)
        x, c = prepare(data, context)
        if c is not None and len(c) != len(x):
            raise ValueError(f"Expected as many contexts as data, got {len(c)} and {len(x)}.")
        if weights is not None:
            weights = tensor(weights, "weights", p.dtype, device)
            if weights.shape != (len(x),) or (weights < 0).any() or not weights.sum() > 0:
                raise ValueError(
                    f"Expected `weights` with shape ({len(x)},), not negative nor all zero, got "
                    f"shape {tuple(weights.shape)} and range {span(weights)}."
                )
            weights = weights / weights.mean()
        return cls(x, c, weights, batch_size, seed)

    @property
    def per_epoch(self) -> int:
        if self.loader is not None:
            return len(self.loader)
        return 1 if self.x is None else math.ceil(len(self.x) / self.batch_size)

    def hold_out(
        self, validation: Any, module: LazyDistribution
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Splits held-out data off, or prepares those that were given."""
        if self.x is None or (self.loader is not None and isinstance(validation, float)):
            raise ValueError("Expected `validation` data as a tensor, since `data` is none.")
        if not isinstance(validation, float):
            x, c = pair(validation)
            dtype, device = self.x.dtype, self.x.device
            given = None if c is None else tensor(c, "context", dtype, device)
            return tensor(x, "validation", dtype, device, module, given), given, None
        count = round(validation * len(self.x))
        if not 0 < count < len(self.x):
            raise ValueError(f"Expected a fraction `validation` in (0, 1), got {validation}.")
        order = torch.randperm(len(self.x), generator=generator(mix(self.seed, 4)))
        held, kept = order[:count].to(self.x.device), order[count:].to(self.x.device)
        columns = (self.x, self.context, self.weights)
        x, c, w = (t[held] if t is not None else None for t in columns)
        self.x = self.x[kept]
        self.context = self.context[kept] if self.context is not None else None
        self.weights = self.weights[kept] if self.weights is not None else None
        return x, c, w  # type: ignore[return-value]

    def order(self, epoch: int) -> Tensor:
        size = len(self.x)  # type: ignore[arg-type]
        device = self.x.device  # type: ignore[union-attr]
        return torch.randperm(size, generator=generator(mix(self.seed, 0, epoch))).to(device)

    def batches(self, step: int, total: int) -> Iterator[tuple[Any, Any, Any]]:
        """The batches from a step on."""
        while step < total:
            epoch, skipped = divmod(step, self.per_epoch)
            stop = min(self.per_epoch, skipped + total - step)
            yield from self.epoch(epoch, skipped, stop)
            step += stop - skipped

    def epoch(self, epoch: int, start: int, stop: int) -> Iterator[tuple[Any, Any, Any]]:
        if self.x is None:
            yield None, self.context, None
        elif self.loader is not None and self.prepare is not None:
            torch.manual_seed(mix(self.seed, 0, epoch))
            for number, batch in zip(range(stop), self.loader):
                if number >= start:
                    yield *self.prepare(*pair(batch)), None
        else:
            order, n = self.order(epoch), self.batch_size
            for number in range(start, stop):
                chosen = order[number * n : (number + 1) * n]
                columns = (self.x, self.context, self.weights)
                yield tuple(t[chosen] if t is not None else None for t in columns)  # type: ignore


def tensor(
    value: Any,
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    module: LazyDistribution | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """Checks data and makes them a tensor of the right dtype on the right device."""
    try:
        t = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"Expected `{name}` to be a tensor or array: {error}") from None
    if t.ndim == 0 or len(t) == 0:
        raise ValueError(f"Expected `{name}` with at least one item, got shape {tuple(t.shape)}.")
    if t.is_complex():
        raise TypeError(f"Expected real `{name}`, got {t.dtype}.")
    if not t.isfinite().all():
        row = int((~t.isfinite()).reshape(len(t), -1).any(1).nonzero()[0])
        raise ValueError(f"Expected finite `{name}`, got nan or inf, first in item {row}.")
    integers = False
    if module is not None:
        with torch.no_grad():
            distribution = module(context[:1] if context is not None else None)
        event = tuple(distribution.event_shape)
        if tuple(t.shape[1:]) != event:
            wanted = ", ".join(["N", *map(str, event)])
            raise ValueError(f"Expected `{name}` with shape ({wanted}), got {tuple(t.shape)}.")
        support = distribution.support
        integers = support.is_discrete
    if not t.is_floating_point() and name != "weights" and not integers:
        raise TypeError(
            f"Expected floating-point `{name}`, got {t.dtype}. Dequantise levels with "
            f"probgen.distributions.Dequantized, or cast with .float()."
        )
    t = t.to(device, dtype)
    if module is not None and not (inside := support.check(t)).all():
        item = int((~inside).nonzero()[0])
        raise ValueError(
            f"Expected `{name}` in the support of the distribution, {support}, got values in "
            f"{span(t)}, the first outside in item {item}."
        )
    return t


def pair(item: Any) -> tuple[Any, Any]:
    """An item of data as `(x, context)`."""
    if isinstance(item, (tuple, list)):
        return (item[0], item[1]) if len(item) > 1 else (item[0], None)
    return item, None


def span(x: Tensor) -> str:
    return f"[{float(x.min()):.4g}, {float(x.max()):.4g}]"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
