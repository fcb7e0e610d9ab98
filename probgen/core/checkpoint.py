"""Checkpoints that cannot run code.

A module is rebuilt by calling its class, found by name in a registry, with the arguments it
was first called with; then its parameters and buffers are read into it. So a checkpoint is two
files: numbers in safetensors and names in JSON. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import hashlib
import inspect
import json
import math
import os
from abc import ABCMeta
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import pyro.distributions.transforms
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from .bijector import BIJECTORS, Bijector, name_of
from .checks import find_device

__all__ = [
    "CheckpointError",
    "CheckpointWarning",
    "Recorded",
    "claim",
    "load",
    "probe",
    "read",
    "save",
    "write",
]

SCHEMA = 1
MODULES: dict[str, type[Recorded]] = {}
RECORDS: dict[str, type] = {}  # frozen dataclasses that modules take as arguments, such as kernels
HELD: dict[str, int] = {}  # folders that this process writes
ALIASES = {  # constructor arguments that a class of torch keeps under another name
    "base_distribution": "base_dist",
    "mixture_distribution": "_mixture_distribution",
    "component_distribution": "_component_distribution",
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, and why."""


class CheckpointWarning(UserWarning):
    """A checkpoint that could not be written, while the work itself went on."""


class Recorded(nn.Module, metaclass=ABCMeta):
    """A module that remembers the arguments it was built with, and so can be rebuilt.

    A subclass registers by being defined.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Recorded:
        self = super().__new__(cls)
        self.__dict__["_recorded"] = (args, kwargs)
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        MODULES[name_of(cls)] = cls

    def __getstate__(self) -> dict[str, Any]:
        for p in self.parameters():  # Pyro's store leaves a weak reference, which no pickle takes
            p.__dict__.pop("unconstrained", None)
        return dict(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorded:
        new = object.__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(
            copy.deepcopy(dict(self.__dict__), memo)
        )  # the parameters stay as they are
        return new

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves the module to a folder, which :func:`probgen.load` reads.

        Arguments:
            path: The folder, made if it does not exist.

        Raises:
            TypeError: If an argument the module was built with cannot be saved.
        """
        save(self, path)


def save(module: Recorded, path: str | os.PathLike[str]) -> None:
    """Saves a module to a folder: its weights in safetensors, its arguments in JSON."""
    encoder = Encoder()
    content = {
        "module": encoder.encode(module),
        "frozen": [name for name, p in module.named_parameters() if not p.requires_grad],
        "evaluating": [name for name, part in module.named_modules() if not part.training],
    }
    state = {f"state.{name}": value for name, value in module.state_dict().items()}
    write(path, {**state, **encoder.tensors}, content)


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Any:
    """Loads a module that was saved with its `save` method.

    The random state is left as it was. Loading cannot run code: classes are looked up among
    those of this package and those that the program has defined.

    Arguments:
        path: The folder that `save` wrote.
        device: Where to put the module.

    Returns:
        The module, with the saved dtype, frozen parameters and training flags.

    Raises:
        FileNotFoundError: If the folder holds no checkpoint.
        CheckpointError: If it is damaged, of a newer schema, or of a class that is not defined.

    Example:
        >>> import probgen as pg, tempfile
        >>> flow = pg.models.MAF(features=2)
        >>> x = torch.randn(5, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     flow.save(folder)
        ...     again = pg.load(folder)
        >>> torch.equal(again().log_prob(x), flow().log_prob(x))
        True
    """
    device = find_device(device)
    tensors, content = read(path)
    if "module" not in content:
        raise CheckpointError(f"{path} holds the state of a training: load its parent folder.")
    try:
        state = {k[6:]: v for k, v in tensors.items() if k.startswith("state.")}
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            module = Decoder(tensors).decode(content["module"])
        module.load_state_dict(state, strict=True, assign=True)
        for name in content["frozen"]:
            module.get_parameter(name).requires_grad_(False)
        for name in content["evaluating"]:
            module.get_submodule(name).training = False
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"The checkpoint in {path} does not fit: {error}") from error
    return module.to(device)


def write(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], content: dict[str, Any]
) -> None:
    """Writes tensors and JSON to a folder, so that a reader sees the old pair or the new one."""
    folder = Path(path)
    if folder.is_file():
        raise FileExistsError(f"Expected a folder to write, got a file, {path}.")
    folder.mkdir(parents=True, exist_ok=True)
    blob = safetensors.torch.save(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    )
    digest = hashlib.sha256(blob).hexdigest()
    weights = f"weights-{digest[:12]}.safetensors"
    head = {"format": "probgen", "schema": SCHEMA, "weights": weights, "sha256": digest}
    head.update(content)
    replace(folder / weights, blob)
    text = json.dumps({**head, "checksum": checksum(head)}, indent=1)
    replace(folder / "model.json", text.encode())
    for old in folder.glob("weights-*.safetensors"):
        if old.name != weights:
            old.unlink()


def probe(path: str | os.PathLike[str]) -> None:
    """Check that a folder can be written, before work is done whose results go there.

    Raises:
        OSError: If it cannot.
    """
    folder = Path(path)
    if folder.is_file():
        raise FileExistsError(f"Expected a folder to write, got a file, {path}.")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "probe.part"
    replace(file, bytes(4096))
    file.unlink()


@contextlib.contextmanager
def claim(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes from writing a folder.

    Raises:
        CheckpointError: If another process is writing it.
    """
    key = f"{os.getpid()} {os.path.realpath(path)}"
    if key not in HELD:  # an interrupt may have left it to this process
        opened = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(opened)
            raise CheckpointError(
                f"Expected to be alone in writing {path}, but another process writes it."
            ) from None
        HELD[key] = opened
    try:
        yield
    finally:
        os.close(HELD.pop(key))


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`write` wrote, or says what is wrong with it."""
    file = Path(path) / "model.json"
    if Path(path).is_file():
        raise CheckpointError(f"Expected the folder that save wrote, got a file, {path}.")
    if not file.is_file():
        raise FileNotFoundError(f"Expected a checkpoint in {path}, found no model.json there.")
    try:
        head = json.loads(file.read_text())
        schema = int(head["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is not a probgen checkpoint, or is cut short.") from error
    if schema > SCHEMA:
        raise CheckpointError(
            f"{file} has schema {schema}, newer than {SCHEMA}, the newest that this version of "
            f"probgen reads. Upgrade with: pip install --upgrade probgen"
        )
    if head.pop("checksum", None) != checksum(head):
        raise CheckpointError(f"{file} was changed after it was written: its checksum is wrong.")
    weights = file.parent / Path(head["weights"]).name
    if not weights.is_file():
        raise CheckpointError(f"{file} names {weights.name}, which is missing.")
    blob = weights.read_bytes()
    if hashlib.sha256(blob).hexdigest() != head["sha256"]:
        raise CheckpointError(f"{weights} is cut short or was changed: its checksum is wrong.")
    try:
        return safetensors.torch.load(blob), head
    except SafetensorError as error:
        raise CheckpointError(f"{weights} is not a safetensors file: {error}") from error


def checksum(head: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()


def replace(file: Path, blob: bytes) -> None:
    """Writes a file in one step, as seen by other processes and after a crash."""
    part = file.with_name(file.name + ".part")
    with open(part, "wb") as stream:
        stream.write(blob)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)


def describe(thing: Distribution | Transform) -> tuple[str, dict[str, Any]]:
    """The class and constructor arguments of a distribution or transform.

    Raises:
        TypeError: If the class does not keep its constructor's arguments where they can be read.
    """
    cls = type(thing)
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name in ("self", "validate_args", "cache_size") or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            continue
        if isinstance(thing, Bijector) and name in thing.given:
            arguments[name] = thing.given[name]
            continue
        key = ALIASES.get(name, name)
        if parameter.default is None and key not in thing.__dict__:
            continue  # one of several parameterisations, not the one in use
        try:
            arguments[name] = getattr(thing, key)
        except AttributeError:
            raise TypeError(
                f"Expected a {cls.__name__} that keeps its argument `{name}`, so that it can be "
                f"moved and saved. Write a LazyDistribution or LazyTransform instead."
            ) from None
    if "probs" in arguments and "logits" in arguments:
        del arguments["probs"]
    takes = inspect.signature(cls.__init__).parameters
    if "logits" in takes and not {"probs", "logits"} & arguments.keys():
        arguments["logits"] = thing.logits  # type: ignore[union-attr]  # kept in a part
    if "validate_args" in takes and "_validate_args" in vars(thing):
        arguments["validate_args"] = vars(thing)["_validate_args"]
    if isinstance(thing, torch.distributions.MultivariateNormal):
        for name in ("covariance_matrix", "precision_matrix", "scale_tril"):
            arguments.pop(name, None)
        arguments["scale_tril"] = thing.scale_tril
    return find_name(cls), arguments


def find_name(cls: type) -> str:
    name = name_of(cls) if issubclass(cls, Bijector) else cls.__name__
    found = find_class(name)
    if found is None or not issubclass(found, cls):  # Pyro's Normal is a torch Normal
        raise TypeError(
            f"Expected a distribution or transform of Pyro or of this package, got a "
            f"{cls.__module__}.{cls.__qualname__}. Write a LazyDistribution or LazyTransform."
        )
    return name


def find_class(name: str) -> type | None:
    """A distribution or transform by name: ours, a user's, or one of Pyro and torch."""
    if name in BIJECTORS:
        return BIJECTORS[name]
    for place in (
        pyro.distributions,
        pyro.distributions.transforms,
        torch.distributions,
        torch.distributions.transforms,
    ):
        found = getattr(place, name, None)
        if isinstance(found, type) and issubclass(found, (Distribution, Transform)):
            return found
    return None


def arguments(module: Recorded) -> dict[str, Any]:
    """The class and all arguments of a module, defaults included, as JSON to compare."""
    args, kwargs = module.__dict__["_recorded"]
    bound = inspect.signature(type(module).__init__).bind(module, *args, **kwargs)
    bound.apply_defaults()
    named = list(bound.arguments.items())[1:]
    return {"class": name_of(type(module)), **{name: outline(value) for name, value in named}}


def outline(value: Any) -> Any:
    """What is compared of an argument: not the values of tensors."""
    if isinstance(value, Recorded):
        return arguments(value)
    if isinstance(value, (list, tuple)):
        return [outline(v) for v in value]
    if isinstance(value, dict):
        return {str(key): outline(v) for key, v in value.items()}
    if isinstance(value, Tensor):
        return list(value.shape)
    if isinstance(value, Integral):
        return int(value)
    plain = value is None or isinstance(value, (float, str))
    return value if plain else name_of(value if isinstance(value, type) else type(value))


class Encoder:
    """Turns arguments into JSON, and collects the tensors among them."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.seen: dict[int, int] = {}
        self.owners: list[str] = []  # the modules whose arguments are being encoded

    def encode(self, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": repr(value)}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Integral):  # of numpy
            return int(value)
        if isinstance(value, (list, tuple)):
            return {"list" if isinstance(value, list) else "tuple": [self.encode(v) for v in value]}
        if isinstance(value, dict):
            return {"dict": [[self.encode(k), self.encode(v)] for k, v in value.items()]}
        if isinstance(value, Tensor):
            name = f"argument.{len(self.tensors)}"
            self.tensors[name] = value
            return {"tensor": name}
        if isinstance(value, type) and issubclass(value, Bijector):
            return {"bijector": name_of(value)}
        if isinstance(value, Recorded):
            return self.encode_module(value)
        if RECORDS.get(name_of(type(value))) is type(value) and is_dataclass(value):
            given = {f.name: self.encode(getattr(value, f.name)) for f in fields(value)}
            return {"record": name_of(type(value)), "fields": given}
        if isinstance(value, (Distribution, Transform)):
            name, arguments = describe(value)
            return {"object": name, "arguments": self.encode(arguments)}
        raise TypeError(
            f"Expected arguments that can be saved (numbers, strings, tuples, tensors, bijector "
            f"classes, Pyro distributions, kernels, modules of this package), got a "
            f"{type(value).__name__} in {' > '.join(self.owners)}: {value!r:.80}"
        )

    def encode_module(self, module: Recorded) -> dict[str, Any]:
        if id(module) in self.seen:
            return {"shared": self.seen[id(module)]}
        args, kwargs = module.__dict__["_recorded"]
        self.owners.append(name_of(type(module)))
        entry = {
            "class": self.owners[-1],
            "args": [self.encode(v) for v in args],
            "kwargs": {k: self.encode(v) for k, v in kwargs.items()},
        }
        self.owners.pop()
        self.seen[id(module)] = len(self.seen)
        return {**entry, "number": self.seen[id(module)]}


class Decoder:
    """Turns JSON back into arguments, by looking names up and calling nothing else."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.seen: dict[int, Recorded] = {}

    def decode(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "float" in value:
            return float(value["float"])
        if "tuple" in value:
            return tuple(self.decode(v) for v in value["tuple"])
        if "list" in value:
            return [self.decode(v) for v in value["list"]]
        if "dict" in value:
            return {self.decode(k): self.decode(v) for k, v in value["dict"]}
        if "tensor" in value:
            return self.tensors[value["tensor"]]
        if "bijector" in value:
            return self.look_up(BIJECTORS, value["bijector"])
        if "shared" in value:
            return self.seen[value["shared"]]
        if "object" in value:
            cls = find_class(value["object"]) or self.look_up(BIJECTORS, value["object"])
            return cls(**self.decode(value["arguments"]))
        if "record" in value:
            cls = self.look_up(RECORDS, value["record"])
            return cls(**{k: self.decode(v) for k, v in value["fields"].items()})
        cls = self.look_up(MODULES, value["class"])
        kwargs = {k: self.decode(v) for k, v in value["kwargs"].items()}
        module = cls(*[self.decode(v) for v in value["args"]], **kwargs)
        self.seen[value["number"]] = module
        return module

    @staticmethod
    def look_up(registry: dict[str, Any], name: str) -> Any:
        if name not in registry:
            raise CheckpointError(
                f"Expected a class that is defined, got {name!r}. Import the module that defines "
                f"it before loading."
            )
        return registry[name]
