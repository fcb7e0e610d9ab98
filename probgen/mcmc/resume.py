"""Checkpoints of a run of chains.

All that a step needs is one value, :class:`Point`, and each step makes a new one. So an interrupt
leaves the point before the step or the one after, and nothing between.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import time
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.checkpoint import CheckpointError
from ..core.folders import CheckpointWarning, read, write
from ..core.identity import differences, outline
from ..core.validation import outside
from .adaptation import StepSize, TrajectoryLength, WarmUp
from .kernels.base import Kernel, LowRank
from .kernels.metric import Moments
from .kernels.parallel_tempering import LadderWarmUp, ParallelTempering
from .modes import Modes
from .starting import COLD, WARMUP

__all__ = ["Keeper", "Point", "Saved", "identity", "settings_of"]

PAUSE = 1.0  # seconds between checkpoints, at least
SHARE = 50  # times the cost of a checkpoint that passes before the next one
ADAPTED = frozenset({"step_size", "length", "scale", "max_steps", "step_sizes", "betas"})
CLASSES: dict[str, type] = {
    cls.__name__: cls for cls in (LowRank, Modes, Moments, StepSize, TrajectoryLength)
}
LONGEST = 10**9  # steps of warm-up
FAILURES = (
    OverflowError,
    AttributeError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    RuntimeError,
)


@dataclasses.dataclass(frozen=True)
class Point:
    """Where a run is: what its next step needs.

    Arguments:
        kernel: The kernel of the next draw.
        state: The state of the chains.
        warm: The state of warm-up, while it lasts.
        taken: The number of steps of warm-up.
        done: The number of draws of each chain.
    """

    kernel: Any
    state: Any
    warm: WarmUp | LadderWarmUp | None = None
    taken: int = 0
    done: int = 0


def identity(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kernel: Any
) -> dict[str, str]:
    """Describe what a run is of: its model, the model's arguments and the kernel, by name.

    Example:
        >>> from probgen.mcmc import HMC
        >>> def model(y, scale=1.0): ...
        >>> found = identity(model, (-5,), {"scale": 2.0}, HMC(0.1, 5))
        >>> {name: value for name, value in found.items() if name != "model"}
        {'argument y': '-5', 'argument scale': '2.0', 'kernel': 'HMC', 'kernel.step_size': ...}
    """
    try:
        given = inspect.signature(model).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        given = {**{str(k): value for k, value in enumerate(args)}, **kwargs}
    found = {f"argument {name}": outline(value) for name, value in given.items()}
    return {"model": outline(model), **found, **settings_of(kernel=kernel)}


def settings_of(**settings: Any) -> dict[str, str]:
    """Describe settings by name; those of kernels one by one."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, Kernel):
            found[name] = type(value).__name__
            parts = dataclasses.fields(value)  # type: ignore[arg-type]
            found |= settings_of(**{f"{name}.{f.name}": getattr(value, f.name) for f in parts})
        else:
            found[name] = outline(value)
    return found


class Saved:
    """The state that an interrupted run has written.

    Arguments:
        folder: Its folder.

    Raises:
        CheckpointError: If it is damaged, or holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors, content = read(folder)
        try:
            self.settings: dict[str, str] = dict(content["settings"])
            self.standardized: list[str] = list(content["standardized"])
            self.steps, self.seed = int(content["steps"]), int(self.settings["seed"])
            self.seconds, self.density = float(content["seconds"]), content["density"]
            self.modes: Modes | None = unpack(content["modes"], self.tensors)
            self.point: dict[str, Any] = content["point"]
            self.done, self.taken = int(self.point["done"]), int(self.point["taken"])
            given = self.settings["warmup"]
            steps = [WARMUP, COLD] if given == "None" else [int(given)]
            known = all(isinstance(text, str) for text in self.standardized)
            kinds = isinstance(self.modes, Modes | None) and isinstance(self.density, float | None)
            whole = self.done >= 0 and 0 <= self.taken <= self.steps in steps
            if not (known and kinds and whole and (self.done == 0 or self.taken == self.steps)):
                raise ValueError("numbers that no run writes")
        except FAILURES as error:
            raise CheckpointError(
                f"Expected an interrupted run of chains in {folder}, as this version writes it, "
                f"found another checkpoint. Use another folder."
            ) from error

    @classmethod
    def find(cls, folder: Path | None) -> Saved | None:
        """Return the run that a folder holds, or None."""
        if folder is None or not (folder / "model.json").is_file():
            return None
        return cls(folder)

    def check(self, settings: dict[str, str]) -> None:
        """Refuse a run that is not the one that was interrupted.

        Raises:
            ValueError: If something differs: the message has it with the old and the new value.
        """
        found = differences(self.settings, settings)
        if found:
            said = "; ".join(f"{name} {old}, not {new}" for name, (old, new) in found.items())
            raise ValueError(
                f"{self.folder} holds a run with {said}. Use another folder, or the same "
                f"{', '.join(found)}."
            )

    def check_density(self, density: float | None) -> None:
        """Refuse a model with another log density at one point.

        Raises:
            ValueError: If it differs by more than rounding.
        """
        old, new = (math.nan if v is None else float(v) for v in (self.density, density))
        same = old == new or (math.isnan(old) and math.isnan(new))
        if not same and not math.isclose(old, new, rel_tol=1e-4, abs_tol=1e-4):
            raise ValueError(
                f"{self.folder} holds a run with log density at a fixed point {old:.9g}, not "
                f"{new:.9g}: the model or its data have changed. Use another folder, or the same "
                f"model."
            )

    def restore(self, first: Point, store: dict[str, Tensor], draws: int) -> Point:
        """Return the point where the run was interrupted, whose draws are copied to a store.

        Arguments:
            first: The first point of the run.
            store: Room for the draws by name, with shape :math:`(C, S, *)`.
            draws: The number :math:`S` of draws asked for.

        Raises:
            ValueError: If there are more draws than are asked for.
            CheckpointError: If something is missing.
        """
        try:
            done, taken = self.done, self.taken
            place = first.state.log_density.device
            tensors = {name: x.to(place) for name, x in self.tensors.items()}
            state = like(first.state, unpack(self.point["state"], tensors))
            kernel = with_adapted(first.kernel, unpack(self.point["kernel"], tensors))
            warm: Any = unpack(self.point["warm"], tensors)
            if warm is not None:
                kind = LadderWarmUp if isinstance(kernel, ParallelTempering) else WarmUp
                warm = kind(kernel=kernel, **warm)
            for name, room in store.items() if 0 < done <= draws else ():
                room[:, :done] = tensors[f"draws.{name}"]
        except FAILURES as error:
            raise CheckpointError(f"The run in {self.folder} does not fit: {error}") from error
        if done > draws:
            raise ValueError(
                f"{self.folder} holds {done} draws. Ask for as many or more, got {draws}."
            )
        return Point(kernel, state, warm, taken, done)


class Keeper:
    """Writes a run to a folder from time to time, so that it costs little.

    Arguments:
        folder: The folder, if there is one.
        content: What is written beside the point and the draws.
        store: The draws by name.
        started: When the run started, by `time.perf_counter`.
    """

    def __init__(
        self, folder: Path | None, content: dict[str, Any], store: dict[str, Tensor], started: float
    ) -> None:
        self.folder, self.content, self.store, self.started = folder, content, store, started
        self.next = -math.inf
        self.kept: Point | None = None
        self.failed = False

    def keep(self, point: Point, ended: bool = False) -> None:
        """Write a point, unless that was done a moment ago.

        Arguments:
            point: The point.
            ended: Whether this is the last one, which is written in any case.

        Warns:
            CheckpointWarning: If it cannot be written.
        """
        now = time.monotonic()
        if self.folder is None or point is self.kept or (now < self.next and not ended):
            return
        try:
            self.write(self.folder, point)
            self.kept, self.failed = point, False
        except OSError as error:
            if ended or not self.failed:
                warnings.warn(
                    f"The run could not be written to {self.folder}: {error}. Its draws are "
                    f"returned all the same; save them elsewhere.",
                    CheckpointWarning,
                    stacklevel=outside(),
                )
            self.failed = True
        cost = time.monotonic() - now
        self.next = now + cost + max(PAUSE, SHARE * cost)

    def write(self, folder: Path, point: Point) -> None:
        tensors = {f"draws.{n}": x[:, : point.done] for n, x in self.store.items() if point.done}
        warm = None if point.warm is None else fields_of(point.warm)
        content = {
            **self.content,
            "seconds": time.perf_counter() - self.started,
            "modes": pack(self.content["modes"], tensors, "modes"),
            "point": {
                "taken": point.taken,
                "done": point.done,
                "state": pack(point.state, tensors, "state"),
                "kernel": pack(adapted_of(point.kernel), tensors, "kernel"),
                "warm": pack(warm, tensors, "warm"),
            },
        }
        write(folder, tensors, content)


def fields_of(warm: WarmUp | LadderWarmUp) -> dict[str, Any]:
    """Return the state of warm-up, without the kernel."""
    found = {field.name: getattr(warm, field.name) for field in dataclasses.fields(warm)}
    return {name: value for name, value in found.items() if name != "kernel"}


def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Return a nested value as JSON, whose tensors go to a dictionary.

    Example:
        >>> import torch
        >>> tensors = {}
        >>> found = pack({"a": (torch.zeros(2), math.inf)}, tensors, "x")
        >>> found
        {'dict': {'a': {'tuple': [{'tensor': 'x.a.0'}, {'float': 'inf'}]}}}
        >>> unpack(found, tensors)
        {'a': (tensor([0., 0.]), inf)}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    named: Any = value
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = named._asdict()
    if CLASSES.get(type(named).__name__) is type(named):
        parts = value if isinstance(value, dict) else vars(value)
        return {"class": type(named).__name__, "parts": pack(dict(parts), tensors, name)}
    if isinstance(value, dict):
        return {"dict": {key: pack(part, tensors, f"{name}.{key}") for key, part in value.items()}}
    kind = "tuple" if isinstance(value, tuple) else "list"
    return {kind: [pack(part, tensors, f"{name}.{k}") for k, part in enumerate(value)]}


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the value of which :func:`pack` made JSON; states come back as dictionaries."""
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float(value["float"])
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "dict" in value:
        return {key: unpack(part, tensors) for key, part in value["dict"].items()}
    if "class" in value:
        cls, parts = CLASSES[value["class"]], unpack(value["parts"], tensors)
        if issubclass(cls, tuple):
            return cls(**parts)
        new = object.__new__(cls)
        vars(new).update(parts)
        return new
    kind = tuple if "tuple" in value else list
    return kind(unpack(part, tensors) for part in value[kind.__name__])


def like(template: Any, value: Any) -> Any:
    """Return a state of the classes, types and devices of another one."""
    if isinstance(template, Tensor):
        if value.shape != template.shape:
            raise KeyError(f"shape {tuple(value.shape)} for {tuple(template.shape)}")
        return value.to(template)
    if isinstance(template, int):
        return int(value)
    items = template._asdict() if hasattr(template, "_asdict") else template
    new = {name: like(part, value[name]) for name, part in items.items()}
    return type(template)(**new) if hasattr(template, "_asdict") else new


def adapted_of(kernel: Any, prefix: str = "") -> dict[str, Any]:
    """Return the adapted fields of a kernel, and of one that it holds."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kernel):
        value = getattr(kernel, field.name)
        if isinstance(value, Kernel):
            found |= adapted_of(value, f"{prefix}{field.name}.")
        elif field.name in ADAPTED and value is not None:
            found[prefix + field.name] = value
    return found


def with_adapted(kernel: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """Return a kernel with what another one has adapted."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(kernel):
        name, value = prefix + field.name, getattr(kernel, field.name)
        if isinstance(value, Kernel):
            changes[field.name] = with_adapted(value, values, f"{name}.")
        elif name in values:
            changes[field.name] = values[name]
    return dataclasses.replace(kernel, **changes)
