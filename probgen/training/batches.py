"""Batches of data, which follow from the seed and the number of the step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..core import Density
from ..core.distributed import mix
from .items import Batch, ItemReader
from .levels import warn_of_levels
from .sources import Items, RowSource, digest_of

__all__ = [
    "NUMBERS",
    "STARTING",
    "Batches",
    "NoData",
    "RowBatches",
    "look_for_levels",
    "split_rows",
]

STARTING = 10_000  # data that the initialisation sees
STARTING_ITEMS = 9_000  # those of datasets and loaders, whose digests may read 1,000 more
NUMBERS = 10**8  # numbers that it sees
PERIOD = 100  # steps between checks on held-out data, of a stream without length


class Batches(ABC):
    """Data in batches that follow from the seed and the number of the step."""

    #: The mean of the weights that items bring, of those the initialisation sees.
    mean = 1.0
    #: Whether they are a stream without length.
    endless = False

    @property
    @abstractmethod
    def per_epoch(self) -> int:
        """The number of batches of one pass."""

    @property
    def period(self) -> int:
        """The number of steps between two checks on held-out data."""
        return PERIOD if self.endless else max(self.per_epoch, 10)

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of data, or of batches of a loader; 0 if there are none or it is not known."""

    @abstractmethod
    def initial(self) -> Batch | None:
        """Return the data that the initialisation sees, none if there are none."""

    @abstractmethod
    def batches(self, step: int, total: int) -> Iterator[Batch]:
        """Return the batches from a step on."""

    @abstractmethod
    def parts(self, size: int) -> Iterator[Batch]:
        """All data once, in parts, their weights as they were given."""

    @abstractmethod
    def digest(self) -> dict[str, str]:
        """Digests of data, contexts and weights, to tell whether a run goes on with its own.

        Returns:
            A SHA-256 over dtype, shape and bytes by the names `data`, `context` and `weights`; of
            more than a million numbers, and of a dataset, over the length and a sample; nothing
            of a stream.
        """

    @abstractmethod
    def split(self, fraction: float) -> Batches:
        """Take a fraction of the data out, to validate on.

        Raises:
            ValueError: If the data cannot be split, or not so.
        """

    def scaled(self, batch: Batch) -> Batch:
        """Return a batch whose weights have mean 1 over all data, as far as they were seen."""
        if self.mean == 1.0 or batch.weights is None:
            return batch
        return batch._replace(weights=batch.weights / self.mean)


class NoData(Batches):
    """No data, for objectives that need none, with the contexts they may be given."""

    per_epoch = 1
    count = 0

    def __init__(self, context: Any) -> None:
        self.context = context

    def initial(self) -> None:
        return None

    def batches(self, step: int, total: int) -> Iterator[Batch]:
        for _ in range(step, total):
            yield Batch(None, self.context)

    def parts(self, size: int) -> Iterator[Batch]:
        yield Batch(None, self.context)

    def digest(self) -> dict[str, str]:
        return {} if self.context is None else {"context": digest_of(self.context)}

    def split(self, fraction: float) -> Batches:
        raise ValueError("Expected no `validation`, since there are no data, got some.")


class RowBatches(Batches):
    """Batches of rows, in an order of each epoch's own.

    Arguments:
        rows: The rows.
        reader: What checks them.
        chosen: The numbers of the rows that are used; all if none.
        batch_size: The number of rows in a batch.
        seed: The seed.
        columns: The names of the columns.
    """

    def __init__(
        self,
        rows: RowSource,
        reader: ItemReader,
        chosen: Tensor | None,
        batch_size: int,
        seed: int,
        columns: tuple[str, ...] = (),
    ) -> None:
        self.rows, self.reader, self.chosen = rows, reader, chosen
        self.batch_size, self.seed, self.columns = batch_size, seed, columns
        self.sample: Batch | None = None

    def __len__(self) -> int:
        return len(self.rows) if self.chosen is None else len(self.chosen)

    @property
    def count(self) -> int:
        return len(self)

    @property
    def per_epoch(self) -> int:
        return math.ceil(len(self) / self.batch_size)

    def order(self, epoch: int) -> Tensor:
        order = torch.randperm(len(self), generator=generator(mix(self.seed, 0, epoch)))
        return (order if self.chosen is None else self.chosen[order]).to(self.rows.device)

    def initial(self) -> Batch:
        if self.sample is None:
            few, rows, key = STARTING, self.order(0), (self.seed, 6)
            if isinstance(self.rows, Items):
                few = STARTING_ITEMS
                self.rows.take(rows[:1], key)  # which tells how large an item is
            size = max(math.prod(self.reader.event or ()), 1)
            self.sample = self.rows.take(rows[: min(few, NUMBERS // size + 1)], key, exact=True)
            if self.rows.weights is None:
                self.mean = mean_weight(self.sample)
            look_for_levels(self.sample, self.reader, self.columns)
        return self.sample

    def batches(self, step: int, total: int) -> Iterator[Batch]:
        if step == 0 or isinstance(self.rows, Items):
            self.initial()
        self.sample, n = None, self.batch_size
        while step < total:
            epoch, skipped = divmod(step, self.per_epoch)
            order, stop = self.order(epoch), min(self.per_epoch, skipped + total - step)
            for number in range(skipped, stop):
                rows = order[number * n : (number + 1) * n]
                yield self.scaled(self.rows.take(rows, (self.seed, 5, epoch, number)))
            step += stop - skipped

    def parts(self, size: int) -> Iterator[Batch]:
        rows = torch.arange(len(self)) if self.chosen is None else self.chosen
        for start in range(0, len(rows), size):
            part = rows[start : start + size].to(self.rows.device)
            yield self.rows.take(part, (self.seed, 7, start))

    def digest(self) -> dict[str, str]:
        return self.rows.digest()

    def split(self, fraction: float) -> RowBatches:
        held, self.chosen = split_rows(len(self), fraction, self.seed)
        self.check_weights("what `validation` leaves")
        validated = RowBatches(self.rows, self.reader, held, self.batch_size, self.seed)
        validated.check_weights("`validation`")
        return validated

    def check_weights(self, name: str) -> None:
        """Raise a ValueError if the weights are all 0."""
        w = self.rows.weights
        if w is None:
            return
        w = w if self.chosen is None else w[self.chosen.to(w.device)]
        if not w.sum() > 0:
            raise ValueError(
                f"Expected {name} to have a weight above 0, got {len(w)} weights of 0."
            )


def split_rows(count: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of the rows that a fraction holds out, and of those it leaves."""
    if not 0 < fraction < 1:
        raise ValueError(f"Expected a fraction `validation` in (0, 1), got {fraction}.")
    held = round(fraction * count)
    if not 0 < held < count:
        raise ValueError(
            f"Expected a fraction `validation` that holds out at least one of {count} and leaves "
            f"one, got {fraction}."
        )
    order = torch.randperm(count, generator=generator(mix(seed, 4)))
    return order[:held], order[held:]


def mean_weight(batch: Batch) -> float:
    """Return the mean of the weights that items bring, 1 if they bring none."""
    if batch.weights is None:
        return 1.0
    if not batch.weights.sum() > 0:
        raise ValueError(f"Expected weights above 0, got 0 in {len(batch.weights)} items.")
    return float(batch.weights.mean())


def look_for_levels(batch: Batch, reader: ItemReader, columns: tuple[str, ...] = ()) -> None:
    """Warn of columns of levels, unless there is no density that could grow at them."""
    if not reader.support.is_discrete and reader.module.density is not Density.PUSHFORWARD:
        warn_of_levels(batch.x, columns)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
