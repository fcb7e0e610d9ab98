"""Data for training: checked once, then cut into batches that follow from the seed and the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from .core import LazyDistribution
from .core.checks import check_precision, check_whole
from .core.digests import digest
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
        check_whole(1, batch_size=batch_size)
        p = next(module.parameters(), None)
        if p is None:
            raise ValueError(f"Expected a module with parameters, got {type(module).__name__}.")

        def prepare(x: Any, c: Any) -> tuple[Tensor, Tensor | None]:
            return items(x, c, "data", p.dtype, device, module)

        if weights is not None and (data is None or isinstance(data, DataLoader)):
            raise ValueError("Expected no `weights` without data or with a DataLoader.")
        if isinstance(data, DataLoader) and context is not None:
            raise ValueError("Expected a DataLoader of pairs (x, context), got `context` besides.")
        if data is None:
            c = None if context is None else contexts(context, p.dtype, device, module)
            return cls(None, c, None, batch_size, seed)
        if isinstance(data, Dataset):
            if not hasattr(data, "__len__") or len(data) == 0:
                raise ValueError(
                    f"Expected `data` with at least one item and a length, got a "
                    f"{type(data).__name__} without."
                )
            first, second = zip(*(pair(data[i]) for i in range(len(data))))
            data = torch.stack([torch.as_tensor(v) for v in first])
            if second[0] is not None:
                if context is not None:
                    raise ValueError(
                        "Expected a Dataset of items x, since `context` is given besides, got "
                        "pairs (x, context)."
                    )
                context = torch.stack([torch.as_tensor(v) for v in second])
        if isinstance(data, DataLoader):
            if isinstance(data.sampler, DistributedSampler):
                raise ValueError(
                    "Expected a DataLoader of all data, since fit splits each batch over the "
                    "processes, got one with a DistributedSampler."
                )
            with torch.random.fork_rng():
                torch.manual_seed(mix(seed, 0, 0))
                x, c = prepare(*pair(next(iter(data))))
            return cls(x, c, None, batch_size, seed, data, prepare)
        x, c = prepare(data, context)
        if weights is not None:
            weights = tensor(weights, "weights", p.dtype, device)
            if weights.shape != (len(x),) or (weights < 0).any() or not weights.sum() > 0:
                raise ValueError(
                    f"Expected `weights` with shape ({len(x)},), not negative nor all zero, got "
                    f"shape {tuple(weights.shape)} and range {span(weights)}."
                )
            weights = weights / weights.mean()
        return cls(x, c, weights, batch_size, seed)

    def digest(self) -> dict[str, str]:
        """Return texts that differ where other data do: of a loader those of its first batch."""
        columns = {"data": self.x, "context": self.context, "weights": self.weights}
        return {name: digest(t) for name, t in columns.items()}

    @property
    def per_epoch(self) -> int:
        if self.loader is not None:
            return len(self.loader)
        return 1 if self.x is None else math.ceil(len(self.x) / self.batch_size)

    def hold_out(
        self, validation: Any, module: LazyDistribution
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Splits held-out data off, or prepares those that were given."""
        if self.x is None:
            raise ValueError("Expected no `validation`, since there are no data, got some.")
        if not isinstance(validation, Real):
            x, c = pair(validation)
            return *items(x, c, "validation", self.x.dtype, self.x.device, module), None
        if self.loader is not None:
            raise ValueError(
                f"Expected `validation` data as a tensor, or (x, context), since a DataLoader has "
                f"no fraction to hold out, got {validation}."
            )
        fraction = float(validation)
        if not 0 < fraction < 1:
            raise ValueError(f"Expected a fraction `validation` in (0, 1), got {validation}.")
        count = round(fraction * len(self.x))
        if not 0 < count < len(self.x):
            raise ValueError(
                f"Expected a fraction `validation` that holds out at least one of {len(self.x)} "
                f"and leaves one, got {validation}."
            )
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


def items(
    x: Any, c: Any, name: str, dtype: torch.dtype, device: torch.device, module: LazyDistribution
) -> tuple[Tensor, Tensor | None]:
    """Checks data and their contexts, one for each."""
    context = None if c is None else contexts(c, dtype, device, module)
    data = tensor(x, name, dtype, device, module, context)
    if context is not None and len(context) != len(data):
        raise ValueError(
            f"Expected as many contexts as data in `{name}`, got {len(context)} and {len(data)}."
        )
    return data, context


def contexts(
    value: Any, dtype: torch.dtype, device: torch.device, module: LazyDistribution
) -> Tensor:
    c = tensor(value, "context", dtype, device)
    if module.context and c.ndim != 1 + module.context_dim:
        wanted = ", ".join(["N", *["*"] * (module.context_dim - 1), str(module.context)])
        raise ValueError(f"Expected `context` with shape ({wanted}), got {tuple(c.shape)}.")
    return c


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
        t = torch.as_tensor(value).detach()
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        advice = f": {error}"
        if hasattr(value, "to_numpy"):
            advice = ". Give its .to_numpy()."
        elif isinstance(value, (list, tuple)):
            advice = f" of {len(value)}. Stack tensors with torch.stack; contexts are `context`."
        raise TypeError(
            f"Expected `{name}` to be a tensor or array, got a {type(value).__name__}{advice}"
        ) from None
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
    check_precision(t, name, dtype)
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
        if not 1 <= len(item) <= 2:
            raise ValueError(
                f"Expected items x or (x, context), got a {type(item).__name__} of {len(item)}. "
                f"Weights are given by `weights`."
            )
        return (item[0], item[1]) if len(item) > 1 else (item[0], None)
    return item, None


def span(x: Tensor) -> str:
    return f"[{float(x.min()):.4g}, {float(x.max()):.4g}]"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
