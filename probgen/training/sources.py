"""Rows of data: arrays, in memory or mapped from a file, and datasets read item by item."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..core import contexts
from ..core.contexts import map_context
from ..core.distributed import mix
from .items import Batch, ItemReader, as_tensor, is_pandas, parts_of

__all__ = ["Arrays", "Items", "RowSource", "collate", "digest_of", "is_dataset", "seeded"]

LARGE = 10**7  # numbers in an array that is read as it is used
DIGEST = 10**6  # numbers in an array of which every one goes into its digest


class RowSource(ABC):
    """Data of which any rows can be taken."""

    #: The weights of all rows, with mean 1, if they are given besides the rows.
    weights: Tensor | None
    #: The device of the numbers of rows.
    device: torch.device

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, rows: Tensor, key: tuple[int, ...] = (0,), exact: bool = False) -> Batch:
        """Read rows by their numbers.

        Arguments:
            rows: The numbers.
            key: Numbers from which all follows that is random about them.
            exact: Whether to compare what varies with the precision of the dtype.
        """

    @abstractmethod
    def digest(self) -> dict[str, str]:
        """Return a digest of data, contexts and weights, each by its name."""


class Arrays(RowSource):
    """RowSource of arrays, checked at once, or as they are used if they are large or memory maps.

    Arguments:
        batch: The data, contexts and weights, as they were given.
        reader: What checks and casts them.
        name: What the data are called in the messages.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If there are none, they do not fit the module, or each other.
    """

    def __init__(self, batch: Batch, reader: ItemReader, name: str = "data") -> None:
        self.reader, self.name = reader, name
        check_indices(batch)
        self.lazy = any(is_large(v) for v in (batch.x, *leaves_of(batch.context)))
        if not self.lazy:
            read = reader.read(batch, name)
            self.batch, self.weights = read, scaled(read.weights)
            self.device = read.x.device
            return
        x = as_tensor(batch.x, name)
        given = None if batch.context is None else reader.tensors(batch.context)
        if x.ndim > 0:
            reader.read(Batch(x[:1], contexts.index(given, slice(0, 1))), name, exact=False)
        if counts := {len(t) for t in leaves_of(given)} - {len(x)}:
            raise ValueError(
                f"Expected as many contexts as data in `{name}`, got {counts.pop()} and {len(x)}."
            )
        self.batch, self.device = Batch(x, given), torch.device("cpu")
        self.weights = scaled(reader.weights(batch.weights, len(x)))

    def __len__(self) -> int:
        return len(self.batch.x)

    def take(self, rows: Tensor, key: tuple[int, ...] = (0,), exact: bool = False) -> Batch:
        part = Batch(self.batch.x[rows], contexts.index(self.batch.context, rows))
        if self.lazy:
            part = self.reader.read(part, self.name, lambda k: f"item {int(rows[k])}", exact)
        return part if self.weights is None else with_weights(part, self.weights, rows)

    def digest(self) -> dict[str, str]:
        found = {"data": digest_of(self.batch.x)}
        if self.batch.context is not None:
            found["context"] = digest_of(self.batch.context)
        return found if self.weights is None else {**found, "weights": digest_of(self.weights)}


class Items(RowSource):
    """Items of a map-style dataset, read as they are used.

    Arguments:
        dataset: The dataset.
        reader: What checks and casts items.
        context: The contexts, if the items have none.
        weights: The weights, if the items have none.
        name: What the data are called in the messages.

    Raises:
        ValueError: If there are no items, or as many contexts or weights as items.
    """

    def __init__(
        self,
        dataset: Any,
        reader: ItemReader,
        context: Any = None,
        weights: Any = None,
        name: str = "data",
    ) -> None:
        if not hasattr(dataset, "__len__") or len(dataset) == 0:
            raise ValueError(
                f"Expected `{name}` with at least one item and a length, got a "
                f"{type(dataset).__name__} without."
            )
        self.dataset, self.reader, self.name = dataset, reader, name
        self.context = None if context is None else reader.context(context)
        self.weights = scaled(reader.weights(weights, len(dataset)))
        self.device = torch.device("cpu")
        if counts := {len(t) for t in leaves_of(self.context)} - {len(dataset)}:
            raise ValueError(
                f"Expected as many contexts as data in `{name}`, got {counts.pop()} and "
                f"{len(dataset)}."
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, rows: Tensor, key: tuple[int, ...] = (0,), exact: bool = False) -> Batch:
        numbers, items = rows.tolist(), []
        with seeded(mix(*key)):
            for i in numbers:
                try:
                    items.append(self.dataset[i])
                except IndexError:
                    raise ValueError(
                        f"Expected `{self.name}` of {len(self)} items, its length, got an "
                        f"IndexError at item {i}."
                    ) from None
        where = [f"item {i}" for i in numbers]
        parts = [parts_of(item, self.reader.names) for item in items]
        if self.context is not None:
            if any(part.context is not None for part in parts):
                raise ValueError(
                    "Expected a Dataset of items x, since `context` is given besides, got pairs "
                    "(x, context)."
                )
            given = contexts.index(self.context, rows.to(self.reader.device))
            parts = [p._replace(context=contexts.index(given, k)) for k, p in enumerate(parts)]
        batch = collate(parts, self.reader, where, self.name, exact)
        return batch if self.weights is None else with_weights(batch, self.weights, rows)

    def digest(self) -> dict[str, str]:
        n = len(self)
        rows = torch.linspace(0, n - 1, min(n, 500), dtype=torch.float64).long()
        sample = self.take(rows)
        found = {"data": hashlib.sha256(str(n).encode()).hexdigest()}
        if digest_of(self.take(rows[:1]).x[0]) != digest_of(sample.x[0]):
            return found  # a dataset that draws from a generator of its own
        for name, value in zip(("data", "context", "weights"), sample):
            if value is not None:
                found[name] = digest_of(value, n)
        return found


def scaled(weights: Tensor | None) -> Tensor | None:
    """Return the weights of all data, with mean 1."""
    if weights is None:
        return None
    if not weights.sum() > 0:
        raise ValueError(f"Expected `weights` not negative nor all zero, got {len(weights)} of 0.")
    return weights / weights.mean()


def with_weights(batch: Batch, weights: Tensor, rows: Tensor) -> Batch:
    return batch._replace(weights=weights[rows.to(weights.device)])


def is_dataset(value: Any) -> bool:
    """Whether data are items to be read one by one, by `value[i]`."""
    if isinstance(value, list):
        first = value[0] if value else None
        parts = first if isinstance(first, tuple) else ()
        return isinstance(first, Mapping) or any(hasattr(v, "shape") for v in parts)
    if isinstance(value, Dataset):
        return True
    others = (Tensor, Sequence, Mapping)
    if isinstance(value, others) or hasattr(value, "__array__") or hasattr(value, "to_numpy"):
        return False
    return hasattr(value, "__getitem__") and hasattr(value, "__len__")


def is_large(value: Any) -> bool:
    size = value.size if isinstance(value, np.ndarray) else 0
    size = value.numel() if isinstance(value, Tensor) else size
    return isinstance(value, np.memmap) or size > LARGE


def leaves_of(context: Any) -> list[Any]:
    if isinstance(context, Mapping):
        return list(context.values())
    return list(context) if isinstance(context, tuple) else [] if context is None else [context]


def check_indices(batch: Batch) -> None:
    """Raise unless the tables of pandas among the data have one index."""
    tables = [v for v in (batch.x, *leaves_of(batch.context), batch.weights) if is_pandas(v)]
    for table in tables[1:]:
        if len(table) == len(tables[0]) and not table.index.equals(tables[0].index):
            raise ValueError(
                "Expected tables of data, contexts and weights with one index, since they are put "
                "together by position, got different ones. Use .loc[data.index], or "
                ".reset_index(drop=True) on both."
            )


def collate(
    parts: Sequence[Batch],
    reader: ItemReader,
    where: Sequence[str],
    name: str = "data",
    exact: bool = False,
) -> Batch:
    """Stack items to a checked batch; errors name the item."""
    xs, cs, ws = ([part[i] for part in parts] for i in range(3))
    for values, word in ((cs, "context"), (ws, "weight")):
        missing = [v is None for v in values]
        if any(missing) and not all(missing):
            raise ValueError(f"Expected a {word} in every item, got none in "
                             f"{where[missing.index(True)]}.")  # fmt: skip
    context: Any = None
    if cs[0] is not None:
        shape = reader.shape
        if isinstance(shape, dict) and all(isinstance(c, Mapping) for c in cs):
            keys = [k for k in cs[0] if all(k in c for c in cs)]
            context = {k: stack([c[k] for c in cs], where, f"context[{k!r}]") for k in keys}
        elif shape is not None and not contexts.is_single(shape):
            for c, place in zip(cs, where):
                if not isinstance(c, (tuple, list)) or len(c) != len(cs[0]):
                    raise ValueError(
                        f"Expected a tuple of {len(shape)} tensors as context, got a "
                        f"{type(c).__name__} in {place}."
                    )
            context = tuple(stack(c, where, f"context[{i}]") for i, c in enumerate(zip(*cs)))
        else:
            context = stack(cs, where, "context")
    x = stack(xs, where, name)
    weights = None if ws[0] is None else stack(ws, where, "weights").reshape(len(ws), -1)[:, 0]
    return reader.read(Batch(x, context, weights), name, where.__getitem__, exact)


def stack(values: Sequence[Any], where: Sequence[str], name: str) -> Tensor:
    tensors = []
    for value, place in zip(values, where):
        try:
            tensors.append(as_tensor(value, name))
        except (TypeError, ValueError) as error:
            raise type(error)(f"In {place}: {error}") from None
        if tensors[-1].shape != tensors[0].shape:
            raise ValueError(
                f"Expected items of `{name}` of one shape, got {tuple(tensors[0].shape)} in "
                f"{where[0]} and {tuple(tensors[-1].shape)} in {place}."
            )
    return torch.stack(tensors)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of torch, numpy and Python inside, and leave them as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def digest_of(value: Any, count: int | None = None) -> str:
    """Return the digest of a tensor, or of a tuple or dict of tensors: dtype, shape and bytes.

    Of more than a million numbers, 1000 rows go into it.

    Example:
        >>> digest_of(torch.zeros(3)) == digest_of(torch.zeros(3).double())
        False
    """
    total = hashlib.sha256(str(count).encode())

    def add(t: Tensor) -> Tensor:
        total.update(f"{t.dtype} {tuple(t.shape)}".encode())
        if t.numel() > DIGEST:
            t = t[torch.linspace(0, len(t) - 1, min(len(t), 1000), dtype=torch.float64).long()]
        total.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return t

    if isinstance(value, Mapping):
        total.update(repr(sorted(value)).encode())
        value = dict(sorted(value.items()))
    map_context(add, value)
    return total.hexdigest()
