"""The steps of a run of chains, from warm-up to the last draw, and how they are resumed.

Nothing random is carried from step to step: the numbers of a step follow from the seed, the step
and the process. So a run that was interrupted goes on exactly as it would have.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..core.checkpoint import read, write
from ..core.processes import mix
from .adaptation import warm_up
from .hmc import Trajectory
from .kernel import Kernel, LowRank
from .metric import Metric
from .potential import Potential
from .replicas import ParallelTempering, ReplicaState

__all__ = ["Chains"]

PAUSE = 30.0  # seconds between checkpoints
SHOWN = 0.2  # seconds between updates of the progress bar


@dataclasses.dataclass
class Chains:
    """Chains of one kernel on one target.

    Arguments:
        kernel: The kernel.
        target: The log density.
        seed: The seed.
        rank: The number of this process.
        warmup: The number of steps of warm-up.
        draws: The number of draws of each chain.
        thin: The number of steps per draw.
        metric: The form of the scale that warm-up adapts.
        settings: What a resumed run must share with the one that was interrupted.
    """

    kernel: Any
    target: Any
    seed: int
    rank: int
    warmup: int
    draws: int
    thin: int
    metric: Metric
    settings: dict[str, Any]

    def go(
        self, position: Any, checkpoint: str | os.PathLike[str] | None, progress: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
        """Take the steps, from the start or from where an earlier run was interrupted."""
        folder = None if checkpoint is None else Path(checkpoint) / f"chains-{self.rank}"
        kernel, state = self.kernel, self.kernel.init(position, self.target)
        store, stats = self.empty(state)
        done = 0
        if folder is not None and (folder / "model.json").is_file():
            kernel, state, done = self.resume(folder, kernel, state, store, stats)
        total = (self.warmup + self.draws * self.thin) if done == 0 else self.draws * self.thin
        hidden = not progress or self.rank > 0
        with tqdm(total=total, initial=done * self.thin, disable=hidden, leave=False) as bar:
            if done == 0:
                shown, reseed = Progress(bar, "warm-up"), self.reseed(1)
                if isinstance(kernel, ParallelTempering):
                    warm = kernel.warm_up(state, self.target, self.warmup)
                else:
                    warm = warm_up(kernel, state, self.target, self.warmup, metric=self.metric)
                for k in range(self.warmup):
                    reseed(k)
                    kernel, state, info = next(warm)
                    shown.update(kernel, info)
            shown, reseed, written = Progress(bar, "draws"), self.reseed(2), time.monotonic()
            kept = state, done  # set together, so that an interrupt never parts them
            try:
                for k in range(done, self.draws):
                    for t in range(self.thin):
                        reseed(k * self.thin + t)
                        state, info = kernel.step(state, self.target)
                        shown.update(kernel, info)
                    record(store, stats, k, state, info)
                    kept = state, k + 1
                    if folder is not None and time.monotonic() - written > PAUSE:
                        self.save(folder, kernel, store, stats, *kept)
                        written = time.monotonic()
            finally:  # an interrupt too leaves a run that goes on
                if folder is not None and kept[1] > 0:
                    self.save(folder, kernel, store, stats, *kept)
        return store, stats, kernel

    def reseed(self, phase: int) -> Callable[[int], Any]:
        first = mix(self.seed, phase, self.rank)
        device = self.target.device if isinstance(self.target, Potential) else None
        return lambda step: seed_all((first + step) % 2**63, device)

    def empty(self, state: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Room for the draws, with shape :math:`(C, S, *)`."""
        position, chains = positions(state), len(state.log_density)

        def room(like: Tensor, shape: torch.Size, dtype: torch.dtype | None = None) -> Tensor:
            return like.new_zeros((chains, self.draws, *shape), dtype=dtype)

        store = {name: room(value, value.shape[1:]) for name, value in position.items()}
        value, none = state.log_density, torch.Size()
        stats = {name: room(value, none) for name in ("log_density", "acceptance", "steps")}
        return store, {**stats, "diverged": room(value, none, torch.bool)}

    def save(
        self, folder: Path, kernel: Any, store: Any, stats: Any, state: Any, done: int
    ) -> None:
        tensors = {f"draws.{name}": value[:, :done] for name, value in store.items()}
        tensors |= {f"stats.{name}": value[:, :done] for name, value in stats.items()}
        tensors |= {f"state.{name}": value for name, value in tensors_of(state).items()}
        numbers: dict[str, Any] = {}
        for name, value in adapted_of(kernel).items():
            if isinstance(value, Tensor | LowRank):
                tensors |= tensors_of(value, f"kernel.{name}")
            else:
                numbers[name] = value
        write(folder, tensors, {"done": done, "kernel": numbers, **self.description()})

    def description(self) -> dict[str, Any]:
        name = type(self.kernel).__name__
        return {"seed": self.seed, "name": name, "thin": self.thin, **self.settings}

    def resume(
        self, folder: Path, kernel: Any, state: Any, store: Any, stats: Any
    ) -> tuple[Any, Any, int]:
        """Reads what :meth:`save` wrote."""
        tensors, content = read(folder)
        for name, expected in self.description().items():
            if content.get(name, expected) != expected:
                raise ValueError(
                    f"{folder} holds a run with {name} {content.get(name)}, not {expected}. Use "
                    f"another folder, or the same settings."
                )
        done = content["done"]
        for kind, room in (("draws", store), ("stats", stats)):
            for name, value in room.items():
                old = tensors.get(f"{kind}.{name}")
                if old is None or old.shape[0] != len(value) or old.shape[2:] != value.shape[2:]:
                    found = None if old is None else tuple(old.shape)
                    raise ValueError(
                        f"{folder} holds draws of {name!r} with shape {found}, for a run with "
                        f"shape {tuple(value.shape)}. Use another folder, or the same chains."
                    )
                if done > self.draws:
                    raise ValueError(
                        f"{folder} holds {done} draws. Ask for as many or more, got {self.draws}."
                    )
                value[:, :done] = old.to(value)
        values: dict[str, Any] = {n[7:]: v for n, v in tensors.items() if n.startswith("kernel.")}
        kernel = with_adapted(kernel, {**content["kernel"], **values})
        saved = {n[6:]: v for n, v in tensors.items() if n.startswith("state.")}
        return kernel, restored(state, saved), done


def seed_all(seed: int, device: torch.device | None) -> None:
    """Seed the generators that chains use; torch's own way asks every kind of device."""
    if device is None or device.type != "cpu":
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


class Progress:
    """Shows the phase, the step size, the acceptance and divergences on a progress bar.

    Arguments:
        bar: The bar.
        phase: The name of the phase.
    """

    def __init__(self, bar: Any, phase: str) -> None:
        self.bar, self.diverged, self.shown = bar, 0, 0.0
        bar.set_description(phase)

    def update(self, kernel: Any, info: Any) -> None:
        """Account for one step."""
        self.bar.update()
        if self.bar.disable:
            return
        self.diverged += int(info.diverged.sum())
        if time.monotonic() - self.shown < SHOWN:
            return
        self.shown = time.monotonic()
        facts = {"acceptance": f"{float(info.acceptance.mean()):.2f}"}
        size = getattr(kernel, "step_size", None)
        if isinstance(size, float):
            facts = {"step size": f"{size:.3g}", **facts}
        self.bar.set_postfix({**facts, "diverged": self.diverged}, refresh=False)


ADAPTED = frozenset({"step_size", "length", "scale", "step_sizes", "betas"})


def adapted_of(kernel: Any, prefix: str = "") -> dict[str, Any]:
    """What warm-up has adapted of a kernel, and of one that it holds."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kernel):
        value = getattr(kernel, field.name)
        if isinstance(value, Kernel):
            found |= adapted_of(value, f"{prefix}{field.name}.")
        elif field.name in ADAPTED and value is not None:
            found[prefix + field.name] = value
    return found


def with_adapted(kernel: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """A kernel with what another one has adapted."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(kernel):
        name, value = prefix + field.name, getattr(kernel, field.name)
        if isinstance(value, Kernel):
            changes[field.name] = with_adapted(value, values, f"{name}.")
        elif name in values:
            changes[field.name] = values[name]
        elif f"{name}.vectors" in values:
            changes[field.name] = LowRank(*(values[f"{name}.{part}"] for part in LowRank._fields))
    return dataclasses.replace(kernel, **changes)


def record(
    store: dict[str, Tensor], stats: dict[str, Tensor], k: int, state: Any, info: Any
) -> None:
    """Writes draw `k` of all chains."""
    for name, value in positions(state).items():
        store[name][:, k] = value
    stats["log_density"][:, k] = state.log_density
    stats["acceptance"][:, k] = info.acceptance
    stats["diverged"][:, k] = info.diverged
    stats["steps"][:, k] = info.steps if isinstance(info, Trajectory) else 1


def positions(state: Any) -> dict[str, Tensor]:
    """The positions by name; of replicas, those of the coldest."""
    if isinstance(state, ReplicaState):
        return {"x": state.position[:, -1]}
    return state.position if isinstance(state.position, dict) else {"x": state.position}


def tensors_of(value: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors and counts of a state, by name."""
    if isinstance(value, Tensor):
        return {prefix: value}
    if isinstance(value, int):
        return {prefix: torch.tensor(value)}
    items = value._asdict() if hasattr(value, "_asdict") else value
    found: dict[str, Tensor] = {}
    for name, inner in items.items():
        found |= tensors_of(inner, f"{prefix}.{name}" if prefix else name)
    return found


def restored(template: Any, saved: dict[str, Tensor], prefix: str = "") -> Any:
    """A state like another one, with saved numbers."""
    if isinstance(template, Tensor):
        return saved[prefix].to(template)
    if isinstance(template, int):
        return int(saved[prefix])
    items = template._asdict() if hasattr(template, "_asdict") else template
    new = {
        name: restored(inner, saved, f"{prefix}.{name}" if prefix else name)
        for name, inner in items.items()
    }
    return type(template)(**new) if hasattr(template, "_asdict") else new
