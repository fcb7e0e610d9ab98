"""Folders of checkpoints, written whole and by one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from .rebuild import CheckpointError

try:
    import fcntl
except ImportError:  # where there is none, two writers are not told apart
    fcntl = None  # type: ignore[assignment]

__all__ = ["CheckpointWarning", "MissingCheckpointError", "claim", "probe", "read", "write"]

SCHEMA = 3  # 1 had no edits; folders kept under tests/checkpoints/schema-2 say 1, too
PATIENCE = 5.0  # seconds that a writer waits for another
TRIES = 1000  # reads of a folder that is being written

held: dict[str, tuple[int, int | None]] = {}  # how often this process claims a folder, its lock
lock = threading.RLock()


class CheckpointWarning(UserWarning):
    """A checkpoint that could not be written, while the work itself went on."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """A folder without a checkpoint."""


def write(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], content: dict[str, Any]
) -> None:
    """Write tensors and JSON to a folder, so that a reader sees the old pair or the new one."""
    folder = Path(path)
    make_folder(folder)
    blob = safetensors.torch.save(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    )
    digest = hashlib.sha256(blob).hexdigest()
    weights = f"weights-{digest[:12]}.safetensors"
    head = {"format": "probgen", "schema": SCHEMA, "weights": weights, "sha256": digest}
    head.update(content)
    text = json.dumps({**head, "checksum": checksum(head)}, indent=1)
    with claim(folder, PATIENCE):
        replace(folder / weights, blob)
        replace(folder / "model.json", text.encode())
        for pattern in ("weights-*.safetensors", "*.part"):
            for old in folder.glob(pattern):
                if old.name != weights:
                    old.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write` wrote, or report what is wrong with it."""
    file = Path(path) / "model.json"
    if Path(path).is_file():
        raise CheckpointError(f"Expected the folder that save wrote, got a file, {path}.")
    if not file.is_file():
        raise MissingCheckpointError(f"Expected a checkpoint in {path}, found no model.json there.")
    try:
        for _ in range(TRIES):  # of a folder that another process may be writing
            text = file.read_bytes()
            head = parsed(file, text)
            weights = file.parent / Path(head["weights"]).name
            with contextlib.suppress(FileNotFoundError):
                blob = weights.read_bytes()
                break
            if file.read_bytes() == text:
                raise CheckpointError(f"{file} names {weights.name}, which is missing.")
        else:
            raise CheckpointError(f"{path} is being written too fast to be read.")
    except OSError as error:
        raise CheckpointError(f"{file} or its weights cannot be read: {error}") from error
    if hashlib.sha256(blob).hexdigest() != head["sha256"]:
        raise CheckpointError(f"{weights} is cut short or was changed: its checksum is wrong.")
    try:
        return safetensors.torch.load(blob), head
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{weights} is not a safetensors file: {error}") from error


def parsed(file: Path, text: bytes) -> dict[str, Any]:
    """Return the JSON of a checkpoint, of the right form."""
    try:
        head = json.loads(text)
        schema, found = head["schema"], head.pop("checksum", None)
        expected = checksum(head)
        if type(schema) is not int or schema < 1:
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file} is not a probgen checkpoint, or is cut short.") from error
    if schema > SCHEMA:
        raise CheckpointError(
            f"{file} has schema {schema}, newer than {SCHEMA}, the newest that this version of "
            f"probgen reads. Upgrade with: pip install --upgrade probgen"
        )
    if found != expected:
        raise CheckpointError(f"{file} was changed after it was written: its checksum is wrong.")
    if not isinstance(head.get("weights"), str) or not isinstance(head.get("sha256"), str):
        raise CheckpointError(f"{file} is not a probgen checkpoint: it names no weights.")
    return head


def checksum(head: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()


def replace(file: Path, blob: bytes) -> None:
    """Write a file in one step, as seen by other processes and after a crash."""
    part = file.with_name(file.name + ".part")
    try:
        with open(part, "wb") as stream:
            stream.write(blob)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"Expected a folder to write, got a file, {folder}.")
    folder.mkdir(parents=True, exist_ok=True)


def probe(path: str | os.PathLike[str], size: int = 2**20) -> None:
    """Find out whether a folder can be written, before there is anything to lose.

    Arguments:
        path: The folder, made if it does not exist.
        size: How many bytes there must be room for.

    Raises:
        FileExistsError: If it is a file.
        OSError: If it cannot be written, or is full.
    """
    folder = Path(path)
    file = folder / f"probe-{os.getpid()}.part"
    try:
        make_folder(folder)
        free = shutil.disk_usage(folder).free
        if free < size:
            raise OSError(errno.ENOSPC, f"{free} bytes are free, {size} needed")
        replace(file, b"probgen")
        file.unlink(missing_ok=True)
    except FileExistsError as error:
        raise FileExistsError(
            f"Expected a folder to write, got a file on the way to {path}."
        ) from error
    except OSError as error:
        raise type(error)(
            error.errno, f"Expected a folder that can be written, got {path}: {error.strerror}"
        ) from error


@contextlib.contextmanager
def claim(path: str | os.PathLike[str], patience: float = 0.0) -> Iterator[None]:
    """Keep other processes from writing a folder; this one goes on writing it.

    Arguments:
        path: The folder, made if it does not exist.
        patience: How many seconds to wait for another process.

    Raises:
        CheckpointError: If another process is writing the folder.
    """
    make_folder(Path(path))
    key = f"{os.getpid()} {os.path.realpath(path)}"
    with lock:
        count, opened = held.get(key) or (0, acquire(path, patience))
        held[key] = count + 1, opened
    try:
        yield
    finally:
        with lock:
            count, opened = held.pop(key)
            if count > 1:
                held[key] = count - 1, opened
            elif opened is not None:
                os.close(opened)  # which unlocks it


def acquire(path: str | os.PathLike[str], patience: float) -> int | None:
    """Locks a folder as long as the file that is returned is open; none if that is impossible."""
    if fcntl is None:
        return None
    opened, until = os.open(path, os.O_RDONLY), time.monotonic() + patience
    while True:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return opened
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(opened)
                raise CheckpointError(
                    f"Expected to be alone in writing {path}, but another process writes it. Use "
                    f"a folder of its own for each run."
                ) from None
            time.sleep(0.01)
        except OSError:  # a file system without locks
            os.close(opened)
            return None
