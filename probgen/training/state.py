"""The state of a training: what its steps change, how it is stored, and how it goes on."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core import LazyDistribution
from ..core.checkpoint import arguments
from ..core.digests import compare
from ..core.distributed import mean_over
from ..core.folders import CheckpointWarning, read, write
from ..core.validation import outside
from ..objectives.base import SINGLE
from .batches import Batches
from .interrupts import Interrupts
from .players import Loss, Players, Undo

__all__ = ["CheckpointWarning", "History", "Run", "saving"]


@dataclass(repr=False)
class History:
    """The losses and validation scores of a training.

    Arguments:
        losses: The loss of each step, of several players the sum of theirs.
        validation: Pairs of a step and the loss on held-out data after it.
        best_step: The step whose parameters were kept, if there are held-out data.
        players: The losses of each step by player, if there are several.

    Example:
        >>> History([3.0, 2.5], [(2, 2.75)], 2)
        History(2 steps, loss 3 -> 2.5, held-out loss 2.75 at best, in step 2)
    """

    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    best_step: int | None = None
    players: dict[str, list[float]] = field(default_factory=dict)

    def __repr__(self) -> str:
        parts = [f"{len(self.losses)} steps"]
        for name, losses in (self.players or {"": self.losses}).items():
            if losses:
                of = f"loss of {name}" if name else "loss"
                parts.append(f"{of} {losses[0]:.4g} -> {losses[-1]:.4g}")
        if self.best_step is not None:
            best = dict(self.validation)[self.best_step]
            parts.append(f"held-out loss {best:.4g} at best, in step {self.best_step}")
        return f"History({', '.join(parts)})"


class Verdict(NamedTuple):
    """The scores of held-out data, replaced as a whole."""

    values: tuple[tuple[int, float], ...] = ()
    step: int | None = None  #: the best one
    least: float = math.inf
    worse: int = 0  #: checks without improvement
    best: dict[str, Tensor] = {}


class Run:
    """Everything that changes during training, and how it is stored.

    A step that fails before it changes parameters is undone. The change itself is not interrupted:
    signals wait for its end. After an error of an optimiser, in its midst, the state that was
    written before stands.
    """

    def __init__(
        self,
        module: LazyDistribution,
        parts: nn.Module,
        players: Players,
        ema: float | None,
        folder: str | os.PathLike[str] | None,
        described: dict[str, str],
    ) -> None:
        self.module, self.parts, self.players = module, parts, players
        self.ema, self.described = ema, described
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()} if ema else {}
        self.aside: dict[str, Tensor] = {}  #: what is trained, while others are validated
        self.verdict, self.step = Verdict(), 0
        self.losses: dict[str, list[float]] = {name: [] for name in players.every}
        self.undo, self.interrupts, self.torn = Undo(module, parts), Interrupts(), False
        self.folder = Path(folder) / "training" if folder is not None else None
        self.written, self.cost = time.monotonic(), 0.0

    @property
    def history(self) -> History:
        """What happened so far."""
        found = {name: losses[: self.step] for name, losses in self.losses.items()}
        several = len(found) > 1
        return History(
            [sum(values) for values in zip(*found.values())],
            list(self.verdict.values),
            self.verdict.step,
            found if several else {},
        )

    def begin(self) -> None:
        """Prepare to undo the step that begins."""
        self.undo.begin(self.step)

    def advance(
        self,
        values: dict[str, Tensor],
        numbers: list[float],
        clip: float | None,
        rate: float,
        world: int,
    ) -> None:
        """Take one step of the players' optimisers, given their losses, also as numbers."""
        due = self.players.due(self.step)
        self.players.differentiate(values, due, world)
        with self.interrupts.held():
            self.torn = True
            self.players.move(due, clip, rate)
            if self.ema:
                decay = min(self.ema, (self.step + 1) / (self.step + 11))
                old = [self.average[n] for n in self.parameters]
                torch._foreach_lerp_(old, [p.detach() for p in self.parameters.values()], 1 - decay)
            for losses, number in zip(self.losses.values(), numbers):
                losses.append(number)
            self.step += 1
            self.torn = False

    def revert(self) -> None:
        """Undo the step that began and does not count."""
        self.undo.restore(self.step)

    def validated(self) -> bool:
        """Whether held-out data were scored after the last step."""
        return bool(self.verdict.values) and self.verdict.values[-1][0] == self.step

    def validate(
        self,
        loss: Loss,
        held: Batches,
        seed: int,
        batch: int = 1024,
    ) -> None:
        """Score held-out data under the parameters to keep, and remember the best."""
        self.aside = {n: p.detach().clone() for n, p in self.parameters.items()}
        value = total = 0.0
        try:
            self.copy(self.average)
            self.module.eval()
            with torch.no_grad():
                torch.manual_seed(seed)
                for x, context, w in held.parts(batch):
                    value += float(loss.score(x, context, w, 1.0))
                    total += len(x) if w is None else float(w.sum())
            if not total > 0:
                raise ValueError(
                    "Expected held-out data with a positive weight, got weights that are all 0. "
                    "Hold out more by `validation`, or give data of its own."
                )
            value /= total
            chosen = {n: v.detach().clone() for n, v in self.state().items()}
        finally:  # an interrupt leaves what was trained
            self.back()
        device = next(iter(self.parameters.values())).device
        value = float(mean_over(torch.tensor(value, dtype=torch.double, device=device)))
        values = (*self.verdict.values, (self.step, value))
        if value < self.verdict.least:
            self.verdict = Verdict(values, self.step, value, 0, chosen)
        else:
            self.verdict = self.verdict._replace(values=values, worse=self.verdict.worse + 1)

    def back(self) -> None:
        """Put what is trained back in its place after others were validated."""
        if self.aside:
            self.copy(self.aside)
            self.module.train()
            self.aside = {}

    def state(self) -> dict[str, Tensor]:
        """Return what a step may change: the trained parameters and the saved buffers."""
        saved = self.module.state_dict()
        buffers = {n: b for n, b in self.module.named_buffers() if n in saved}
        return {**buffers, **self.parameters}

    def copy(self, values: dict[str, Tensor]) -> None:
        places = self.state()
        with torch.no_grad():
            for n, value in values.items():
                if places[n].shape == value.shape:  # not chains that came into being since
                    places[n].copy_(value)

    def finish(self) -> None:
        """Leave the best, else the averaged, else the last parameters in the module."""
        self.copy(self.verdict.best or self.average)
        self.module.eval()

    def checkpoint(self, ended: bool) -> None:
        """Write the state, unless that was done a moment ago.

        Warns:
            CheckpointWarning: If it cannot be written. The state that was written before is whole.
        """
        started = time.monotonic()
        if (
            self.folder is None
            or self.torn
            or (not ended and started - self.written < 20 * self.cost)
        ):
            return
        self.back()
        states, content = self.players.state()
        tensors = {f"module.{n}": v for n, v in self.module.state_dict().items()}
        tensors.update({f"objective.{n}": v for n, v in self.parts.state_dict().items()})
        tensors.update({f"average.{n}": v for n, v in self.average.items()})
        tensors.update({f"best.{n}": v for n, v in self.verdict.best.items()})
        tensors.update({f"optimizer.{n}": v for n, v in states.items()})
        verdict = self.verdict._asdict()
        del verdict["best"]
        if not self.verdict.best:
            verdict["least"] = None
        head = {
            "step": self.step,
            "seed": int(self.described["seed"]),
            "described": self.described,
            "arguments": arguments(self.module),
            "optimizers": content,
            "verdict": verdict,
            "losses": {name: losses[: self.step] for name, losses in self.losses.items()},
        }
        with saving(self.folder):
            write(self.folder, tensors, head)
        self.written = time.monotonic()
        self.cost = self.written - started

    def resume(self, folder: str | os.PathLike[str], validated: bool, total: int) -> bool:
        """Read the state that another run wrote, and say if there was one.

        Raises:
            ValueError: If that was another run, or had more steps.
        """
        path = Path(folder) / "training"
        if not (path / "model.json").is_file():
            return False
        tensors, content = modern(*read(path))
        built, given = content["arguments"], arguments(self.module)
        for name in built:  # none in the first checkpoints
            if built[name] != given.get(name):
                raise ValueError(
                    f"Expected the run's module in {folder}, with `{name}` {built[name]!r:.80}, "
                    f"got {given.get(name)!r:.80}."
                )
        before = dict(content["described"])
        steps = max(int(before.pop("steps", 0)), content["step"])
        now = {k: v for k, v in self.described.items() if k != "steps"}
        if not content["whole"]:  # of a version that noted less
            now = {k: v for k, v in now.items() if k in before}
        compare(before, now, folder)
        if total < steps:
            raise ValueError(
                f"Expected at least the {steps} steps of the run in {folder}, got {total}. Its "
                f"module can be loaded from there; fewer steps need another folder."
            )
        groups: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, rest = name.split(".", 1)
            groups.setdefault(kind, {})[rest] = value
        try:
            self.module.load_state_dict(groups["module"])
            self.parts.load_state_dict(groups.get("objective", {}))
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"Expected in {folder} the training of this very module, built with the same "
                f"arguments: {str(error).splitlines()[0]:.200}"
            ) from None
        device = next(iter(self.players.everything)).device
        self.players.load(groups.get("optimizer", {}), content["optimizers"])
        if self.ema:
            kept = groups.get("average") or {n: p.detach() for n, p in self.parameters.items()}
            self.average = {n: v.to(device).clone() for n, v in kept.items()}
        verdict = content["verdict"]
        values = tuple((s, v) for s, v in verdict["values"])
        self.verdict = Verdict(values, verdict["step"])
        if validated and verdict["least"] is not None:
            self.verdict = self.verdict._replace(
                least=verdict["least"],
                worse=verdict["worse"],
                best={n: v.to(device) for n, v in groups["best"].items()},
            )
        self.step, self.losses = content["step"], content["losses"]
        return True


def modern(
    tensors: dict[str, Tensor], content: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a checkpoint as it is written now, also of those from before there were players."""
    if "described" in content:
        return tensors, {**content, "whole": True}
    tensors = {
        f"optimizer.{SINGLE}.{n[10:]}" if n.startswith("optimizer.") else n: v
        for n, v in tensors.items()
    }
    history = content["history"]
    optimizer = content["optimizer"]
    return tensors, {
        **content,
        "whole": False,
        "described": {"seed": str(content["seed"]), "optimizer": content["kind"]},
        "arguments": content.get("arguments", {}),
        "optimizers": {SINGLE: optimizer},
        "verdict": {
            "values": history["validation"],
            "step": history["best_step"],
            "least": content["least"],
            "worse": content["worse"],
        },
        "losses": {SINGLE: history["losses"]},
    }


@contextmanager
def saving(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an error of writing into a warning."""
    try:
        yield
    except OSError as error:
        warnings.warn(
            f"Could not write to {folder}: {error}. What was trained is in memory: make room, or "
            f"save the module to another folder.",
            CheckpointWarning,
            stacklevel=outside(),
        )
