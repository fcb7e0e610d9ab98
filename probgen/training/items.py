"""Data as users have them, made tensors: arrays, tables, lists, and the parts of an item."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core import LazyDistribution, contexts
from ..core.contexts import Context
from ..core.validation import check_precision

__all__ = [
    "Batch",
    "ItemReader",
    "as_tensor",
    "check_one_variable",
    "column_names",
    "parts_of",
    "span",
]

FIELDS = ("x", "context", "weight")  # the keys of an item that is a dict


class Batch(NamedTuple):
    """Data with their contexts and weights."""

    x: Any
    context: Any = None
    weights: Any = None


def parts_of(item: Any, names: Mapping[str, Any] | None = None) -> Batch:
    """Split an item, or a batch of items, into `x`, context and weight.

    Arguments:
        item: `x`, `(x,)`, `(x, context)`, or a dict with the keys `x`, `context` and `weight`,
            of which the last two may be missing.
        names: Other keys of such a dict; a tuple of keys for a context of several tensors.

    Raises:
        ValueError: If the item is a tuple of another length, or a dict without `x`.

    Example:
        >>> parts_of({"image": 1, "age": 2, "sex": 3}, {"x": "image", "context": ("age", "sex")})
        Batch(x=1, context=(2, 3), weights=None)
    """
    if isinstance(item, Mapping):
        keys = {name: name for name in FIELDS} | dict(names or {})
        missing = [k for f in ("x", *(names or ())) for k in tuple_of(keys[f]) if k not in item]
        if missing:
            raise ValueError(
                f"Expected items that are dicts with {missing[0]!r}, got the keys "
                f"{', '.join(map(repr, item))}. Name them, as in names={{'x': 'image', "
                f"'context': 'label'}}."
            )

        def found(key: Any) -> Any:
            return tuple(item[k] for k in key) if isinstance(key, (tuple, list)) else item.get(key)

        return Batch(*(found(keys[field]) for field in FIELDS))
    if isinstance(item, (tuple, list)):
        if not 1 <= len(item) <= 2:
            raise ValueError(
                f"Expected items x or (x, context), or dicts with the keys x, context and weight, "
                f"got a {type(item).__name__} of {len(item)}. Weights are given by `weights`."
            )
        return Batch(*item)
    return Batch(item)


def tuple_of(key: Any) -> tuple[Any, ...]:
    return tuple(key) if isinstance(key, (tuple, list)) else (key,)


def library_of(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def is_pandas(value: Any) -> bool:
    return library_of(value) == "pandas"


def column_names(value: Any) -> tuple[str, ...]:
    """Return the names of the columns of a table of pandas, none of anything else."""
    if not is_pandas(value):
        return ()
    return tuple(map(str, value.columns if hasattr(value, "columns") else [value.name or 0]))


def as_tensor(value: Any, name: str) -> Tensor:
    """Make a tensor of an array, a table, or a list of numbers, arrays or tensors.

    A memory map is not copied. Of a table of pandas, numbers and booleans are taken, as float64,
    in the order of its columns and without its index.

    Arguments:
        value: The data.
        name: What they are called in the messages.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If a table has missing values.

    Example:
        >>> as_tensor([torch.zeros(2), torch.ones(2)], "data")
        tensor([[0., 0.],
                [1., 1.]])
    """
    check_one_variable(value, name)
    if is_pandas(value):
        return from_table(value, name)
    try:
        if isinstance(value, list) and value and hasattr(value[0], "shape"):
            return torch.stack([torch.as_tensor(v).detach() for v in value])
        with warnings.catch_warnings():  # nothing is written to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            array = np.asarray(value) if library_of(value) == "xarray" else value
            return torch.as_tensor(array).detach()
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        advice = f": {error}"
        if hasattr(value, "to_numpy"):
            advice = ". Give its .to_numpy()."
        elif isinstance(value, Iterator):
            advice = ". Wrap what makes it in a torch.utils.data.IterableDataset."
        elif isinstance(value, list):
            advice = f" of {len(value)}: {error}"
        elif isinstance(value, tuple):
            advice = f" of {len(value)}. Stack tensors with torch.stack; contexts are `context`."
        raise TypeError(
            f"Expected `{name}` to be a tensor or array, got a {type(value).__name__}{advice}"
        ) from None


def check_one_variable(value: Any, name: str) -> None:
    """Raise a TypeError if data are of ArviZ or xarray, and many variables."""
    kind = type(value).__name__
    if library_of(value) in ("arviz", "xarray") and kind in (
        "DataTree",
        "Dataset",
        "InferenceData",
    ):
        raise TypeError(
            f"Expected `{name}` to be a tensor or array, got a {kind}, which has many variables. "
            f"Give the draws of one, as in "
            f'torch.as_tensor(idata.posterior["x"].to_numpy()).flatten(0, 1).'
        )


def from_table(value: Any, name: str) -> Tensor:
    """Return the numbers of a DataFrame, with shape `(N, D)`, or of a Series, with shape `(N)`."""
    if type(value).__name__ not in ("DataFrame", "Series"):
        raise TypeError(
            f"Expected `{name}` to be a tensor or array, got a {type(value).__name__} of pandas. "
            f"Give its .to_numpy()."
        )
    frame = value.to_frame() if not hasattr(value, "columns") else value
    columns = []
    for i, label in enumerate(frame.columns):
        column = frame.iloc[:, i]
        kind = getattr(column.dtype, "kind", "O")
        if kind not in "fiub":
            raise TypeError(
                f"Expected numbers in `{name}`, got column {str(label)!r} of {column.dtype}. Make "
                f"numbers of it, as in pd.get_dummies(data, columns=[{label!r}]) for categories, "
                f"or leave it out, as in data.drop(columns=[{label!r}])."
            )
        if column.isna().any():
            row = int(column.isna().to_numpy().argmax())
            raise ValueError(
                f"Expected finite `{name}`, got a missing value in column {str(label)!r}, first in "
                f"item {row}. Leave such rows out with data.dropna(), or fill them with "
                f"data.fillna()."
            )
        columns.append(column.to_numpy(dtype=np.float64))
    if not columns:
        raise ValueError(f"Expected `{name}` with at least one column, got none.")
    array = np.stack(columns, 1)
    return torch.from_numpy(array if frame is value else array[:, 0])


def item(row: int) -> str:
    return f"item {row}"


def first(where: Callable[[int], str]) -> str:
    """Return the first of the items that were read, unless they are all data."""
    return "" if where is item else f", first in {where(0)}"


class ItemReader:
    """A reader that checks data and makes them tensors of a module's dtype and device.

    Arguments:
        module: The lazy distribution.
        device: The device.
        names: The keys of items that are dicts.

    Raises:
        ValueError: If the module has no parameters.
    """

    def __init__(
        self,
        module: LazyDistribution,
        device: torch.device,
        names: Mapping[str, Any] | None = None,
    ) -> None:
        p = next(module.parameters(), None)
        if p is None:
            raise ValueError(f"Expected a module with parameters, got {type(module).__name__}.")
        if unknown := sorted(set(names or ()) - set(FIELDS)):
            raise ValueError(
                f"Expected `names` of {', '.join(FIELDS)}, got {unknown[0]!r:.80} among them."
            )
        self.module, self.device, self.dtype, self.names = module, device, p.dtype, names
        self.shape: Any = module.context_shape
        self.event: tuple[int, ...] | None = None
        self.support: Any = None

    def read(
        self,
        batch: Batch,
        name: str = "data",
        where: Callable[[int], str] = item,
        exact: bool = True,
    ) -> Batch:
        """Check data, contexts and weights, and cast them.

        Arguments:
            batch: The data, as they were given.
            name: What they are called in the messages.
            where: What a row is called in the messages.
            exact: Whether to compare what varies with the precision of the dtype, which takes
                more than a few data.
        """
        context = None if batch.context is None else self.context(batch.context, where, exact)
        x = self.data(batch.x, context, name, where, exact)
        if self.shape is not None and context is not None:
            count = contexts.batch_of(context, self.shape)[0]
            if count != len(x):
                raise ValueError(
                    f"Expected as many contexts as data in `{name}`, got {count} and {len(x)}."
                )
        return Batch(x, context, self.weights(batch.weights, len(x), where))

    def context(
        self, value: Any, where: Callable[[int], str] = item, exact: bool = True
    ) -> Context:
        found, shape = self.tensors(value), self.shape
        if isinstance(found, dict):
            found = {k: self.cast(t, f"context[{k!r}]", where, exact) for k, t in found.items()}
        elif isinstance(found, tuple):
            several = enumerate(found)
            found = tuple(self.cast(t, f"context[{i}]", where, exact) for i, t in several)
        elif shape is not None:
            found = self.cast(found, "context", where, exact)
        if shape is None or not contexts.is_single(shape):
            contexts.check(found, shape, type(self.module).__name__)
        leaves = contexts.leaves(found, shape)
        for leaf, entry in zip(leaves, contexts.entries(shape)):
            if tuple(leaf.shape[1:]) != entry:
                wanted = ", ".join(["N", *map(str, entry)])
                raise ValueError(
                    f"Expected `context` with shape ({wanted}), got {tuple(leaf.shape)}."
                )
        if len(counts := {len(leaf) for leaf in leaves}) > 1:
            raise ValueError(f"Expected as many rows in every `context`, got {sorted(counts)}.")
        return found

    def tensors(self, value: Any) -> Any:
        """Return a context as tensors of any dtype, in the structure of the module's contexts."""
        shape = self.shape
        if isinstance(shape, dict) and isinstance(value, Mapping):
            return {k: as_tensor(v, f"context[{k!r}]") for k, v in value.items()}
        if shape and not contexts.is_single(shape):
            if isinstance(value, (tuple, list)):
                return tuple(as_tensor(v, f"context[{i}]") for i, v in enumerate(value))
            return value
        t = as_tensor(value, "context")
        return t[:, None] if shape == (1,) and t.ndim == 1 and is_pandas(value) else t

    def weights(self, value: Any, count: int, where: Callable[[int], str] = item) -> Tensor | None:
        if value is None:
            return None
        w = self.cast(value, "weights", where)
        if w.shape != (count,) or (w < 0).any():
            raise ValueError(
                f"Expected `weights` with shape ({count},), not negative nor all zero, got shape "
                f"{tuple(w.shape)} and range {span(w)}."
            )
        return w

    def cast(
        self, value: Any, name: str, where: Callable[[int], str], exact: bool = True
    ) -> Tensor:
        """Check what holds for all: real finite numbers, which the dtype can tell apart."""
        t = as_tensor(value, name)
        self.check_kind(t, name, where, integers=name == "weights")
        check_finite(t, f"finite `{name}`, got nan or inf", where)
        if exact:
            check_precision(t, name, self.dtype)
        cast = t.to(self.device, self.dtype)
        if not exact and cast.dtype != t.dtype:
            check_finite(cast, f"`{name}` in the range of {self.dtype}, got {span(t)}", where)
        return cast

    def check_kind(self, t: Tensor, name: str, where: Callable[[int], str], integers: bool) -> None:
        """Raise unless a tensor has items, of floating-point numbers if integers are not let in."""
        if t.ndim == 0 or len(t) == 0:
            raise ValueError(
                f"Expected `{name}` with at least one item, got shape {tuple(t.shape)}."
            )
        if t.is_complex():
            raise TypeError(f"Expected real `{name}`, got {t.dtype}.")
        if not t.is_floating_point() and not integers:
            raise TypeError(
                f"Expected floating-point `{name}`, got {t.dtype}{first(where)}. Dequantise levels "
                f"with probgen.distributions.Dequantized, or cast with .float()."
            )

    def data(
        self,
        value: Any,
        context: Context | None,
        name: str,
        where: Callable[[int], str],
        exact: bool,
    ) -> Tensor:
        t = as_tensor(value, name)
        if t.ndim > 0 and len(t) > 0:
            self.learn(context)
        if self.event == (1,) and t.ndim == 1 and is_pandas(value):
            t = t[:, None]
        self.check_data(t, name, where)
        t = self.cast(t if t.is_floating_point() else t.to(self.dtype), name, where, exact)
        if not (inside := self.support.check(t)).all():
            row = int((~inside).nonzero()[0])
            raise ValueError(
                f"Expected `{name}` in the support of the distribution, {self.support}, got values "
                f"in {span(t)}, the first outside in {where(row)}."
            )
        return t

    def check_data(self, t: Tensor, name: str, where: Callable[[int], str]) -> None:
        """Raise unless the shape and dtype of data are those of the module's events."""
        self.check_kind(t, name, where, self.event is None or self.support.is_discrete)
        if tuple(t.shape[1:]) != self.event:
            wanted = ", ".join(["N", *map(str, self.event or ())])
            raise ValueError(
                f"Expected `{name}` with shape ({wanted}), got {tuple(t.shape)}{first(where)}."
            )

    def learn(self, context: Context | None) -> None:
        """Learn what an event is from the distribution of the first context."""
        if self.event is None:
            with torch.no_grad():
                distribution = self.module(contexts.index(context, slice(0, 1)))
            self.event, self.support = tuple(distribution.event_shape), distribution.support


def check_finite(t: Tensor, wanted: str, where: Callable[[int], str]) -> None:
    finite = t.isfinite()
    if not finite.all():
        row = int((~finite).reshape(len(t), -1).any(1).nonzero()[0])
        raise ValueError(f"Expected {wanted}, first in {where(row)}.")


def span(x: Tensor) -> str:
    return f"[{float(x.min()):.4g}, {float(x.max()):.4g}]"
