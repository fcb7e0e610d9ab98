"""Batches of loaders and streams, which give them pass after pass.

What is random about a batch follows from the seed, the pass and its number in it, so a run goes on
as it would have: what comes before its step is read again and left, of a loader of rows only from
the pass on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sized
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from ..core.distributed import mix
from ..core.validation import outside
from .batches import NUMBERS, STARTING_ITEMS, Batches, look_for_levels, mean_weight
from .items import Batch, ItemReader, parts_of
from .sources import collate, digest_of, seeded

__all__ = ["LengthWarning", "StreamBatches", "is_stream"]


class LengthWarning(UserWarning):
    """Warns that data came in fewer batches than their length says."""


class StreamBatches(Batches):
    """Batches as a loader or a stream gives them, pass after pass.

    What is random about a batch follows from the seed, the pass and its number. What comes before
    the step of a resumed run is read and left; of a loader of rows, only from the pass on.

    Arguments:
        data: A `DataLoader`, an `IterableDataset`, or another object that can be iterated anew.
        reader: What checks the items.
        batch_size: The number of items in a batch of a stream; a loader has its own.
        seed: The seed.
        word: What the data are called in the messages.

    Raises:
        ValueError: If it is a loader with a `DistributedSampler`, or has no batches.
    """

    def __init__(
        self, data: Iterable[Any], reader: ItemReader, batch_size: int, seed: int, word: str
    ) -> None:
        self.data, self.reader, self.seed, self.word = data, reader, seed, word
        self.loader = data if isinstance(data, DataLoader) else None
        self.batch_size = batch_size
        self.sampler: Any = None  # of the numbers of rows
        if self.loader is not None:
            if isinstance(self.loader.sampler, DistributedSampler):
                raise ValueError(
                    "Expected a DataLoader of all data, since fit splits each batch over the "
                    "processes, got one with a DistributedSampler."
                )
            if not isinstance(self.loader.dataset, IterableDataset):
                self.sampler = self.loader.batch_sampler or self.loader.sampler
        try:
            length = len(data)  # type: ignore[arg-type]
        except TypeError:  # of a loader of a stream as well
            self.length = None
        else:
            self.length = length if self.loader is not None else math.ceil(length / batch_size)
        self.endless = self.length is None
        if self.length == 0:
            raise ValueError(f"Expected `{word}` with at least one item, got none.")
        self.sample: Batch | None = None
        self.opened: Iterator[Any] | None = None  # the first pass, begun by `initial`

    @property
    def per_epoch(self) -> int:
        if self.length is None:
            raise ValueError(
                f"Expected `steps` for a {type(self.data).__name__} without a length, got `epochs`."
            )
        return self.length

    @property
    def count(self) -> int:
        return self.length or 0

    def open(self, epoch: int) -> Iterator[Any]:
        """One pass through the batches, as they come."""
        seed = mix(self.seed, 0, epoch)
        with seeded(seed):
            for source in (self.loader, self.sampler and self.loader and self.loader.sampler):
                own = getattr(source, "generator", None)
                if isinstance(own, torch.Generator):
                    own.manual_seed(seed)
            iterator = iter(self.data)
        end = object()
        for number in count():
            with seeded(mix(self.seed, 5, epoch, number)), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Length of IterableDataset")
                if self.loader is not None:
                    batch = next(iterator, end)
                else:
                    batch = list(islice(iterator, self.batch_size)) or end
            if batch is end:
                return
            yield batch

    def read(self, batch: Any, number: int) -> Batch:
        if self.loader is not None:
            return self.reader.read(
                parts_of(batch, self.reader.names),
                self.word,
                lambda row: f"item {row} of batch {number}",
                exact=number == 0,
            )
        start = number * self.batch_size
        where = [f"item {start + k}" for k in range(len(batch))]
        parts = [parts_of(item, self.reader.names) for item in batch]
        return collate(parts, self.reader, where, self.word, exact=number == 0)

    def initial(self) -> Batch:
        if self.sample is None:
            opened, total = self.open(0), 0
            seen: list[Batch] = []
            for batch in opened:
                seen.append(self.read(batch, len(seen)))
                total += len(seen[-1].x)
                if total >= STARTING_ITEMS or seen[-1].x[0].numel() * total >= NUMBERS:
                    break
            if not seen:
                raise ValueError(f"Expected `{self.word}` with at least one item, got none.")
            self.opened = chain(seen, opened)
            self.sample = join(seen, STARTING_ITEMS)
            self.mean = mean_weight(self.sample)
            look_for_levels(self.sample, self.reader)
        return self.sample

    def batches(self, step: int, total: int) -> Iterator[Batch]:
        self.initial()
        self.sample = None
        epoch, skipped = self.locate(step)
        while step < total:
            first = epoch == 0 and self.opened is not None
            batches, number = self.opened if first else self.open(epoch), 0
            self.opened = None
            for number, batch in enumerate(batches or (), 1):
                if number > skipped:
                    read = batch if isinstance(batch, Batch) else self.read(batch, number - 1)
                    yield self.scaled(read)
                    step += 1
                    if step == total:
                        return
            self.check_length(number, epoch, step)
            epoch, skipped = epoch + 1, max(skipped - number, 0)

    def check_length(self, number: int, epoch: int, step: int) -> None:
        """Warn if a pass was shorter than it should be, and raise a ValueError if it was empty."""
        if number == 0:
            raise ValueError(
                f"Expected `{self.word}` that can be read again and again, got nothing in pass "
                f"{epoch} at step {step}. Give fewer `steps`, or an IterableDataset whose __iter__ "
                f"begins anew."
            )
        if self.length is not None and number < self.length and epoch == 0:
            warnings.warn(
                f"`{self.word}` gave {number} batches in a pass, fewer than its length, "
                f"{self.length}. Training goes on with the next pass, so `epochs` are longer than "
                f"a pass. Make its __len__ say how many there are.",
                LengthWarning,
                stacklevel=outside(),
            )

    def locate(self, step: int) -> tuple[int, int]:
        """Return the pass to begin with, and how many batches of it to leave."""
        if self.sampler is None or self.length is None or step < self.length:
            return 0, step
        if self.count_batches(0) == self.length:
            return divmod(step, self.length)
        epoch = 0
        while step >= (number := self.count_batches(epoch)) > 0:
            epoch, step = epoch + 1, step - number
        return epoch, step

    def count_batches(self, epoch: int) -> int:
        with seeded(mix(self.seed, 0, epoch)):
            return sum(1 for _ in self.sampler)

    def parts(self, size: int) -> Iterator[Batch]:
        for number, batch in enumerate(self.open(0)):
            yield self.read(batch, number)

    def digest(self) -> dict[str, str]:
        if self.sampler is None:
            return {}
        first, again = (self.read(next(self.open(0)), 0) for _ in range(2))
        if digest_of(first.x) != digest_of(again.x):  # drawn from a generator of its own
            return {"data": digest_of(torch.tensor(self.length))}
        values = zip(("data", "context", "weights"), first)
        return {name: digest_of(v, self.length) for name, v in values if v is not None}

    def split(self, fraction: float) -> Batches:
        raise ValueError(
            f"Expected `validation` data as a tensor, or (x, context), since a "
            f"{type(self.data).__name__} has no fraction to hold out, got {fraction}."
        )


def is_stream(data: Any) -> bool:
    """Whether data give items or batches one after the other, and can do so again."""
    if isinstance(data, (DataLoader, IterableDataset)):
        return True
    return isinstance(data, Iterable) and not isinstance(data, (Iterator, Sized, Tensor))


def join(batches: list[Batch], most: int) -> Batch:
    """One batch of several."""
    first = batches[0]
    x = torch.cat([b.x for b in batches])[:most]
    weights = None
    if first.weights is not None:
        weights = torch.cat([b.weights for b in batches])[:most]
    if isinstance(first.context, dict):
        given: Any = {k: torch.cat([b.context[k] for b in batches])[:most] for k in first.context}
    elif isinstance(first.context, tuple):
        given = tuple(torch.cat(parts)[:most] for parts in zip(*(b.context for b in batches)))
    else:
        given = None if first.context is None else torch.cat([b.context for b in batches])[:most]
    return Batch(x, given, weights)
