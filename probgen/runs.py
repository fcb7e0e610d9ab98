"""The state of a training: what its steps change, how it is stored, and how it goes on."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim import Adam, AdamW, Optimizer

from .core import LazyDistribution
from .core.checkpoint import arguments, read, write

__all__ = ["History", "Run"]

FUSED = (Adam, AdamW)  # which torch has in one pass over each parameter, by default in eight


@dataclass
class History:
    """What happened during training.

    Arguments:
        losses: The loss of each step.
        validation: Pairs of a step and the loss on held-out data after it.
        best_step: The step whose parameters were kept, if there are held-out data.
    """

    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    best_step: int | None = None


class Run:
    """Everything that changes during training, and how it is stored."""

    def __init__(
        self,
        module: LazyDistribution,
        optimizer: Callable[..., Optimizer],
        lr: float,
        ema: float | None,
        folder: str | os.PathLike[str] | None,
        seed: int,
    ) -> None:
        self.module, self.ema, self.seed = module, ema, seed
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("Expected a module with parameters to train; is it frozen?")
        if not callable(optimizer):
            raise TypeError(
                f"Expected a class of optimisers, such as torch.optim.Adam, got a "
                f"{type(optimizer).__name__}."
            )
        common = all(p.device.type in ("cpu", "cuda") for p in self.parameters.values())
        options = {"fused": True} if optimizer in FUSED and common else {}
        self.optimizer = optimizer(list(self.parameters.values()), lr=lr, **options)
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()} if ema else {}
        self.best: dict[str, Tensor] = {}
        self.least, self.worse, self.step = math.inf, 0, 0
        self.versions: dict[str, tuple[int, int]] | None = None
        self.history = History()
        self.folder = Path(folder) / "training" if folder is not None else None
        self.written, self.cost = time.monotonic(), 0.0

    def moving(self) -> list[tuple[Tensor, Tensor]]:
        """The buffers that the last step changed, all at first, each with a copy."""
        buffers, before = dict(self.module.named_buffers()), self.versions
        versions = {n: (id(b), b._version) for n, b in buffers.items()}
        self.versions = versions
        changed = (before is None or before.get(n) != versions[n] for n in buffers)
        return [(b, b.detach().clone()) for b, new in zip(buffers.values(), changed) if new]

    def advance(self, loss: Tensor, value: float, clip: float | None, lr: float) -> None:
        """Takes one step of the optimiser, given a loss and its value."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(list(self.parameters.values()), clip)
        self.optimizer.step()
        increment_version(self.parameters.values())  # which a fused one does not
        self.step += 1
        if self.ema:
            decay = min(self.ema, self.step / (self.step + 10))
            for n, p in self.parameters.items():
                self.average[n].lerp_(p.detach(), 1 - decay)
        self.history.losses.append(value)

    def validate(
        self,
        loss: Callable[..., Tensor],
        held: tuple[Tensor, Tensor | None, Tensor | None],
        seed: int,
        batch: int = 1024,
    ) -> None:
        """Scores held-out data under the parameters to keep, and remembers the best."""
        current = {n: p.detach().clone() for n, p in self.parameters.items()}
        x, context, weights = held
        total = float(len(x) if weights is None else weights.sum())
        value = 0.0
        try:
            self.copy(self.average)
            self.module.eval()
            with torch.no_grad():
                torch.manual_seed(seed)
                for start in range(0, len(x), batch):
                    part = slice(start, start + batch)
                    given, w = (t[part] if t is not None else None for t in (context, weights))
                    value += float(loss(x[part], given, w, 1 / total))
            chosen = {n: v.detach().clone() for n, v in self.state().items()}
        finally:  # an interrupt leaves what was trained
            self.copy(current)
            self.module.train()
        self.history.validation.append((self.step, value))
        if value < self.least:
            self.least, self.worse, self.history.best_step = value, 0, self.step
            self.best = chosen
        else:
            self.worse += 1

    def state(self) -> dict[str, Tensor]:
        """What a step may change: the trained parameters, and the buffers that are saved."""
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
        """Leaves the best, else the averaged, else the last parameters in the module."""
        self.copy(self.best or self.average)
        self.module.eval()

    def checkpoint(self, ended: bool) -> None:
        """Writes the state, unless that was done a moment ago."""
        started = time.monotonic()
        if self.folder is None or (not ended and started - self.written < 20 * self.cost):
            return
        tensors = {f"module.{n}": v for n, v in self.module.state_dict().items()}
        tensors.update({f"average.{n}": v for n, v in self.average.items()})
        tensors.update({f"best.{n}": v for n, v in self.best.items()})
        state, plain = self.optimizer.state_dict(), {}
        for i, entry in state["state"].items():
            for key, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{i}.{key}"] = value
                else:
                    plain[f"{i}.{key}"] = value
        content = {
            "step": self.step,
            "least": self.least if self.best else None,
            "worse": self.worse,
            "seed": self.seed,
            "kind": type(self.optimizer).__name__,
            "arguments": arguments(self.module),
            "optimizer": {"groups": state["param_groups"], "plain": plain},
            "history": vars(self.history),
        }
        write(self.folder, tensors, content)
        self.written = time.monotonic()
        self.cost = self.written - started

    def resume(self, folder: str | os.PathLike[str], validated: bool) -> bool:
        """Reads the state that another run wrote, and says if there was one."""
        path = Path(folder) / "training"
        if not (path / "model.json").is_file():
            return False
        tensors, content = read(path)
        kind = type(self.optimizer).__name__
        for name, before, now in (
            ("optimizer", content["kind"], kind),
            ("seed", content["seed"], self.seed),
        ):
            if before != now:
                raise ValueError(f"Expected the run's `{name}` in {folder}, {before}, got {now}.")
        built, given = content.get("arguments", {}), arguments(self.module)
        for name in built:  # none in the first checkpoints
            if built[name] != given.get(name):
                raise ValueError(
                    f"Expected the run's module in {folder}, with `{name}` {built[name]!r:.80}, "
                    f"got {given.get(name)!r:.80}."
                )
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, rest = name.split(".", 1)
            parts.setdefault(kind, {})[rest] = value
        try:
            self.module.load_state_dict(parts["module"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"Expected in {folder} the training of this very module, built with the same "
                f"arguments: {str(error).splitlines()[0]:.200}"
            ) from None
        device = next(iter(self.parameters.values())).device
        state: dict[int, dict[str, Any]] = {}
        for name, value in {**parts.get("optimizer", {}), **content["optimizer"]["plain"]}.items():
            i, key = name.split(".", 1)
            state.setdefault(int(i), {})[key] = value
        groups = content["optimizer"]["groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self.ema:
            kept = parts.get("average") or {n: p.detach() for n, p in self.parameters.items()}
            self.average = {n: v.to(device).clone() for n, v in kept.items()}
        if validated and content["least"] is not None:
            self.best = {n: v.to(device) for n, v in parts["best"].items()}
            self.worse, self.least = content["worse"], content["least"]
        self.step = content["step"]
        self.history = History(**content["history"])
        self.history.validation = [(s, v) for s, v in self.history.validation]
        return True
