"""The steps of a run of chains, from warm-up to the last draw, and how they are resumed.

Nothing random is carried from step to step: the numbers of a step follow from the seed, the step
and the process. So a run that was interrupted goes on exactly as it would have.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..core.distributed import mix
from .adaptation import WarmUp
from .kernels.hmc import Trajectory
from .kernels.metric import Metric
from .kernels.parallel_tempering import LadderWarmUp, ParallelTempering, ReplicaState
from .pyro.evaluation import Evaluation
from .pyro.model_run import unchecked
from .pyro.potential import Potential
from .resume import Keeper, Point, Saved
from .starting import Start

__all__ = ["Chains"]

SHOWN = 0.2  # seconds between updates of the progress bar


@dataclasses.dataclass
class Chains:
    """Chains of one kernel on one target.

    Arguments:
        start: What they start from.
        seed: The seed.
        rank: The number of this process.
        warmup: The number of steps of warm-up.
        draws: The number of draws of each chain.
        thin: The number of steps per draw.
        metric: The form of the scale that warm-up adapts.
        settings: What a resumed run must share with the one that was interrupted.
        started: When the run started, by `time.perf_counter`.
    """

    start: Start
    seed: int
    rank: int
    warmup: int
    draws: int
    thin: int
    metric: Metric
    settings: dict[str, str]
    started: float

    def go(
        self, folder: Path | None, saved: Saved | None, progress: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
        """Take the steps, from the start or from where an earlier run was interrupted.

        Arguments:
            folder: The folder to write the run to, if any.
            saved: The run that was interrupted, if any.
            progress: Whether to show a progress bar.

        Returns:
            The positions by name and the statistics, with shape :math:`(C, S, *)`, and the kernel
            as adapted.
        """
        target = self.start.target
        if isinstance(target, Evaluation):
            target.eager = True  # so that a run that goes on has the same numbers
        self.reseed(3)(0)
        point = Point(self.start.kernel, self.start.kernel.init(self.start.position, target))
        store, stats = self.empty(point.state)
        everything = {**store, **{f"stats.{name}": value for name, value in stats.items()}}
        density = None if folder is None else density_at(self.start, point.state)
        if saved is not None:
            saved.check_density(density)
            point = saved.restore(point, everything, self.draws)
        keeper = Keeper(folder, self.content(density), everything, self.started)
        keeper.kept = None if saved is None else point
        total = self.warmup + self.draws * self.thin
        first = point.taken + point.done * self.thin
        hidden = not progress or self.rank > 0
        with tqdm(total=total, initial=first, disable=hidden, leave=False) as bar:
            try:
                for new in self.steps(point, store, stats, bar):
                    point = new
                    keeper.keep(point)
            finally:  # an interrupt too leaves a run that goes on
                keeper.keep(point, ended=True)
        self.reseed(4)(0)  # the same numbers after the last step, however many were taken
        return store, stats, point.kernel

    def steps(
        self, point: Point, store: dict[str, Tensor], stats: dict[str, Tensor], bar: Any
    ) -> Iterator[Point]:
        """Take the steps from a point on, each of which gives the next point."""
        target, kernel, state = self.start.target, point.kernel, point.state
        warm, shown, reseed = point.warm, Progress(bar, "warm-up"), self.reseed(1)
        for k in range(point.taken, self.warmup):
            reseed(k)
            if warm is None:
                warm = self.begin(kernel, state)
            warm, state, info = warm.step(state, target)
            kernel = warm.kernel
            shown.update(kernel, info)
            yield Point(kernel, state, warm, k + 1)
        shown, reseed = Progress(bar, "draws"), self.reseed(2)
        for k in range(point.done, self.draws):
            for t in range(self.thin):
                reseed(k * self.thin + t)
                state, info = kernel.step(state, target)
                shown.update(kernel, info)
            record(store, stats, k, state, info)
            yield Point(kernel, state, None, self.warmup, k + 1)

    def begin(self, kernel: Any, state: Any) -> WarmUp | LadderWarmUp:
        if isinstance(kernel, ParallelTempering):
            return LadderWarmUp.begin(kernel, state, self.warmup)
        return WarmUp.begin(kernel, state, self.start.target, self.warmup, self.metric)

    def reseed(self, phase: int) -> Callable[[int], Any]:
        first = mix(self.seed, phase, self.rank)
        target = self.start.target
        device = target.device if isinstance(target, Potential) else None
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

    def content(self, density: float | None) -> dict[str, Any]:
        """Return the fields of a run that are written beside its point and its draws."""
        return {
            "settings": {**self.settings, "seed": str(self.seed)},
            "steps": self.warmup,
            "standardized": self.start.standardized,
            "modes": self.start.modes,
            "density": density,
        }


def density_at(start: Start, state: Any) -> float | None:
    """Return a log density at fixed points, by which other models and data are told."""
    target = start.target
    if not start.kernel.exact:  # which takes a score, or an estimate from some of the data
        return None
    if not isinstance(target, Potential):
        return float(state.log_density.double().mean())
    with torch.no_grad(), unchecked():
        x = torch.full_like(target.point, 0.37)[None]
        try:
            return float(target.map(target.total, x))
        except (RuntimeError, ValueError):  # outside of what the model takes
            return None


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


def record(
    store: dict[str, Tensor], stats: dict[str, Tensor], k: int, state: Any, info: Any
) -> None:
    """Write draw `k` of all chains."""
    for name, value in positions(state).items():
        store[name][:, k] = value
    stats["log_density"][:, k] = state.log_density
    stats["acceptance"][:, k] = info.acceptance
    stats["diverged"][:, k] = info.diverged
    stats["steps"][:, k] = info.steps if isinstance(info, Trajectory) else 1


def positions(state: Any) -> dict[str, Tensor]:
    """Return the positions by name; of replicas, those of the coldest."""
    if isinstance(state, ReplicaState):
        return {"x": state.position[:, -1]}
    return state.position if isinstance(state.position, dict) else {"x": state.position}
