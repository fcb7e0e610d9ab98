"""Tables of numbers in files, for the command line."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .core.checks import check_precision

__all__ = ["Table", "read", "write"]


class Table(NamedTuple):
    """Numbers in rows, and the names of the columns.

    Arguments:
        values: The numbers, with shape :math:`(N, D)`.
        names: The names of the columns: a file's header, or 0, 1, and so on.
    """

    values: Tensor
    names: tuple[str, ...]

    def select(self, names: Sequence[str]) -> Tensor:
        """The columns of these names.

        Raises:
            ValueError: If there is no column of some name.
        """
        if missing := [name for name in names if name not in self.names]:
            raise ValueError(
                f"Expected columns {', '.join(names)}, found {', '.join(self.names)}, without "
                f"{', '.join(missing)}."
            )
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"Expected columns once each, got {twice[0]} twice.")
        return self.values[:, [self.names.index(name) for name in names]]


def read(path: str | Path) -> Table:
    """Reads a `.npy`, `.npz` or `.csv` file; a CSV file may have a header.

    Arguments:
        path: The file. One of arrays must hold a single one, or one named `data`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a table of finite numbers, or empty.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"Expected a file of data, found none at {file}.")
    if file.suffix.lower() == ".csv":
        values, names = read_csv(file)
    elif file.suffix.lower() in (".npy", ".npz"):
        values, names = read_array(file), ()
    else:
        raise ValueError(f"Expected a .npy, .npz or .csv file, got {file.name}.")
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"Expected rows and columns in {file}, got the shape {values.shape}.")
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"Expected finite numbers in {file}, got {values[row, column]} in row "
                         f"{row + 1}, column {column + 1}.")  # fmt: skip
    given = names or tuple(str(i) for i in range(values.shape[1]))
    if len(set(given)) < len(given) or "" in given:
        raise ValueError(f"Expected different names of columns in {file}, got {', '.join(given)}.")
    dtype = torch.get_default_dtype()
    check_precision(torch.as_tensor(values), f"the numbers in {file}", dtype)
    return Table(torch.as_tensor(values, dtype=dtype), given)


def read_array(file: Path) -> np.ndarray:
    try:
        found = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        said = str(error) if "pickle" not in str(error) else "it holds objects, or is no array file"
        raise ValueError(f"Expected arrays of numbers in {file}: {said}") from None
    if not isinstance(found, np.ndarray):
        names = list(found.keys())
        name = "data" if "data" in names else names[0] if len(names) == 1 else None
        if name is None:
            raise ValueError(f"Expected one array in {file}, or one named data, got {names}.")
        found = found[name]
    if found.dtype.kind not in "fiub":
        raise ValueError(f"Expected numbers in {file}, got an array of {found.dtype}.")
    return found.astype(np.float64)


def read_csv(file: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Expected a text file with commas at {file}: {error}") from None
    names: tuple[str, ...] = ()
    if rows and len(rows[0]) == 1 and any(mark in rows[0][0] for mark in ";\t"):
        raise ValueError(f"Expected commas between the cells of {file}, got {rows[0][0]!r:.80}.")
    if rows and not all(is_number(cell) for cell in rows[0]):
        names, rows = tuple(cell.strip() for cell in rows[0]), rows[1:]
    if not rows:
        raise ValueError(f"Expected rows of numbers in {file}, found none.")
    first = 2 if names else 1
    for number, row in enumerate(rows, first):
        if len(row) != len(rows[0]) or (names and len(row) != len(names)):
            raise ValueError(
                f"Expected {len(names or rows[0])} cells in row {number} of {file}, got {len(row)}."
            )
        for column, cell in enumerate(row):
            if not is_number(cell):
                name = names[column] if names else column + 1
                raise ValueError(
                    f"Expected a number in row {number}, column {name} of {file}, got {cell!r}."
                )
    return np.array(rows, dtype=np.float64), names


def is_number(cell: str) -> bool:
    try:
        return not math.isnan(float(cell)) or cell.strip().lower() == "nan"
    except ValueError:
        return False


def write(path: str | Path, values: Tensor, names: Sequence[str]) -> None:
    """Writes a table to a `.npy` or `.csv` file.

    Raises:
        ValueError: If the name ends otherwise.
        OSError: If the file cannot be written.
    """
    file = Path(path)
    array = values.detach().cpu().numpy()
    if file.suffix == ".npy":
        np.save(file, array)
    elif file.suffix == ".csv":
        with open(file, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(names)
            writer.writerows(array.reshape(len(array), -1).tolist())
    else:
        raise ValueError(f"Expected a .npy or .csv file to write, got {file.name}.")
