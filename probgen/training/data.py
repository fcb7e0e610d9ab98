"""Data as users have them, cut into batches."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch.utils.data import TensorDataset

from ..core import LazyDistribution
from ..core.validation import check_whole
from .batches import Batches, NoData, RowBatches
from .items import Batch, ItemReader, check_one_variable, column_names, parts_of
from .sources import Arrays, Items, RowSource, is_dataset
from .streams import StreamBatches, is_stream

__all__ = ["batches_of", "hold_out"]


def batches_of(
    module: LazyDistribution,
    data: Any,
    context: Any,
    weights: Any,
    batch_size: int,
    device: torch.device,
    seed: int,
    names: Mapping[str, Any] | None = None,
    word: str = "data",
) -> Batches:
    """Check the data, and cut them into batches.

    Arguments:
        module: The lazy distribution.
        data: The data, in any form that :func:`probgen.fit` takes.
        context: Their contexts.
        weights: Their weights.
        batch_size: The number of data in a batch.
        device: Where batches are put.
        seed: The seed.
        names: The keys of items that are dicts.
        word: What the data are called in the messages.
    """
    check_whole(1, batch_size=batch_size)
    reader = ItemReader(module, device, names)
    check_one_variable(data, word)
    if isinstance(data, Mapping):
        data, context, weights = once(parts_of(data, names), context, weights, word)
    if data is None:
        if weights is not None:
            raise ValueError("Expected no `weights` without data, got some.")
        return NoData(None if context is None else reader.context(context))
    if is_stream(data):
        if weights is not None or context is not None:
            raise ValueError(
                f"Expected a {type(data).__name__} of pairs (x, context), or of dicts with the "
                f"keys x, context and weight, got `context` or `weights` besides."
            )
        return StreamBatches(data, reader, batch_size, seed, word)
    columns = column_names(data)
    if type(data) is TensorDataset and len(data) > 0:
        data, context, weights = once(parts_of(data.tensors), context, weights, word)
    if is_dataset(data):
        rows: RowSource = Items(data, reader, context, weights, word)
    else:
        rows = Arrays(Batch(data, context, weights), reader, word)
    return RowBatches(rows, reader, None, batch_size, seed, columns)


def once(batch: Batch, context: Any, weights: Any, word: str) -> tuple[Any, Any, Any]:
    """Return data, contexts and weights, each given with the data or apart, not twice."""
    for name, within, besides in zip(("context", "weights"), batch[1:], (context, weights)):
        if within is not None and besides is not None:
            raise ValueError(
                f"Expected `{word}` of items x, since `{name}` is given besides, got pairs "
                f"(x, {name})."
            )
    x, c, w = batch
    return x, context if c is None else c, weights if w is None else w


def hold_out(
    source: Batches,
    validation: Any,
    module: LazyDistribution,
    batch_size: int,
    device: torch.device,
    seed: int,
    names: Mapping[str, Any] | None = None,
) -> Batches:
    """Split held-out data off, or prepare those that were given.

    Arguments:
        source: The data.
        validation: A fraction, or data in any form that :func:`probgen.fit` takes, or
            `(x, context)`.
        module: The lazy distribution.
        batch_size: The number of data in a batch of a stream.
        device: Where batches are put.
        seed: The seed.
        names: The keys of items that are dicts.
    """
    if isinstance(validation, Real) or isinstance(source, NoData):
        return source.split(validation)
    pair = isinstance(validation, (tuple, list)) and not is_dataset(validation)
    x, c, w = parts_of(validation) if pair else Batch(validation)
    held = batches_of(module, x, c, w, batch_size, device, seed, names, "validation")
    if isinstance(held, RowBatches):
        held.check_weights("`validation`")
    return held
