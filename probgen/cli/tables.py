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

from ..core.validation import check_precision

__all__ = ["Table", "is_number", "read", "write"]

UNNAMED = ("", "Unnamed: 0")  # what pandas calls the index that it wrote into a file
BOOLEANS = {"true": 1.0, "false": 0.0}


class Table(NamedTuple):
    """Cells in rows, and the names of the columns; numbers are made of those that are selected.

    Arguments:
        cells: Numbers, or text from a CSV file, with shape :math:`(N, D)`.
        names: The names of the columns: a file's header, or 0, 1, and so on.
        file: The file.
        first: The number of the file's first row of cells.
        notes: What was understood of the file, in sentences.
    """

    cells: np.ndarray
    names: tuple[str, ...]
    file: Path
    first: int = 1
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> Tensor:
        """All columns, with shape :math:`(N, D)`."""
        return self.select(self.names)

    def select(self, names: Sequence[str]) -> Tensor:
        """Return the columns of these names.

        Raises:
            ValueError: If there is no column of some name, or it holds anything but finite
                numbers and booleans.
        """
        if missing := [name for name in names if name not in self.names]:
            raise ValueError(
                f"Expected columns {', '.join(names)}, found {', '.join(self.names)}, without "
                f"{', '.join(missing)}."
            )
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"Expected columns once each, got {twice[0]} twice.")
        values = np.stack([self.column(name) for name in names], 1)
        dtype = torch.get_default_dtype()
        check_precision(torch.as_tensor(values), f"the numbers in {self.file}", dtype)
        return torch.as_tensor(values, dtype=dtype)

    def column(self, name: str) -> np.ndarray:
        cells = self.cells[:, self.names.index(name)]
        if cells.dtype == object:
            for row, cell in enumerate(cells, self.first):
                if not is_number(cell):
                    raise ValueError(
                        f"Expected a number in row {row}, column {name} of {self.file}, got "
                        f"{cell!r:.80}. Choose columns of numbers with --columns."
                    )
            cells = np.array([number(cell) for cell in cells])
        finite = np.isfinite(cells)
        if not finite.all():
            row = int(finite.argmin())
            raise ValueError(
                f"Expected finite numbers in {self.file}, got {cells[row]} in row "
                f"{self.first + row}, column {name}."
            )
        return cells


def read(path: str | Path) -> Table:
    """Read a `.npy`, `.npz` or `.csv` file.

    A CSV file may have a header. `0,1,2` and so on is taken as one, the names that pandas gives to
    the columns of an array, and the index that pandas writes, a first column without a name, is
    left out. `True` and `False` are 1 and 0.

    Arguments:
        path: The file. One of arrays must hold a single one, or one named `data`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a table, damaged, or empty.
    """
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"Expected a file of data, got the folder {file}.")
    if not file.is_file():
        raise FileNotFoundError(f"Expected a file of data, found none at {file}.")
    if file.suffix.lower() == ".csv":
        table = read_csv(file)
    elif file.suffix.lower() in (".npy", ".npz"):
        cells = read_array(file)
        cells = cells[:, None] if cells.ndim == 1 else cells
        if cells.ndim != 2 or cells.size == 0:
            raise ValueError(f"Expected rows and columns in {file}, got the shape {cells.shape}.")
        table = Table(cells.astype(np.float64), numbered(cells.shape[1]), file)
    else:
        raise ValueError(f"Expected a .npy, .npz or .csv file, got {file.name}.")
    if len(set(table.names)) < len(table.names) or "" in table.names:
        raise ValueError(
            f"Expected different names of columns in {file}, got {', '.join(table.names)}."
        )
    return table


def numbered(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def read_array(file: Path) -> np.ndarray:
    """Return the array in a file, without running anything that the file may hold."""
    names: list[str] = []
    name, found = None, None
    try:
        with open(file, "rb") as stream:
            if stream.read(2) == b"PK":
                stream.seek(0)
                found = np.load(stream, allow_pickle=False)
                names = list(found.keys())
                name = "data" if "data" in names else names[0] if len(names) == 1 else None
                found = found[name] if name is not None else found
            else:  # a map, so that what the header claims is compared with the file first
                found = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged file may raise anything in zipfile, zlib or numpy
        said = f"{type(error).__name__}, {error}".rstrip(", ")
        if "pickle" in said or "object" in said:
            said = "it holds objects, or is no array file"
        raise ValueError(f"Expected arrays of numbers in {file}: {said:.200}") from None
    if names and name is None:
        raise ValueError(f"Expected one array in {file}, or one named data, got {names}.")
    if not isinstance(found, np.ndarray):
        raise ValueError(f"Expected arrays of numbers in {file}, got other data as {name}.")
    if found.dtype.kind not in "fiub":
        raise ValueError(f"Expected numbers in {file}, got an array of {found.dtype}.")
    return found


def read_csv(file: Path) -> Table:
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Expected a text file with commas at {file}: {error}") from None
    names, notes = header_of(rows, file)
    first = 2 if names else 1
    rows = rows[first - 1 :]
    if not rows:
        raise ValueError(f"Expected rows of numbers in {file}, found none.")
    width = len(names or rows[0])
    for at, row in enumerate(rows, first):
        if len(row) != width:
            raise ValueError(f"Expected {width} cells in row {at} of {file}, got {len(row)}.")
    cells = np.array(rows, dtype=object)
    if len(names) > 1 and names[0] in UNNAMED and is_index(cells[:, 0]):
        cells, names = cells[:, 1:], names[1:]
        notes += ("The first column, which has no name, is taken for the index and left out.",)
    return Table(cells, names or numbered(width), file, first, notes)


def header_of(rows: list[list[str]], file: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names of the columns, none if the first row holds numbers, and what to say of them."""
    if not rows:
        return (), ()
    top = tuple(cell.strip() for cell in rows[0])
    if len(top) == 1 and any(mark in top[0] for mark in ";\t"):
        raise ValueError(f"Expected commas between the cells of {file}, got {top[0]!r:.80}.")
    if not all(map(is_number, top)):
        return top, ()
    written = top == numbered(len(top)) and len(rows) > 1
    if written and (len(top) > 1 or not all(is_whole(row[0]) for row in rows)):
        return top, (f"The first row, {', '.join(top[:3])}, ..., is taken for a header.",)
    return (), ()


def is_index(cells: np.ndarray) -> bool:
    """Whether cells may be an index: different whole numbers, or text."""
    return len(set(cells)) == len(cells) and not any(
        is_number(c) and not is_whole(c) for c in cells
    )


def is_whole(cell: str) -> bool:
    return cell.strip().lstrip("-").isdecimal()


def number(cell: str) -> float:
    word = cell.strip().lower()
    return BOOLEANS[word] if word in BOOLEANS else float(cell)


def is_number(cell: str) -> bool:
    try:
        return not math.isnan(number(cell)) or cell.strip().lower() == "nan"
    except ValueError:
        return False


def write(path: str | Path, values: Tensor, names: Sequence[str]) -> None:
    """Write a table to a `.npy` or `.csv` file.

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
