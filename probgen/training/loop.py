"""The steps of a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from ..core.contexts import index
from ..core.distributed import average, mix, reseed, share
from ..objectives import Objective
from ..objectives.base import is_partial
from .batches import Batches
from .items import span
from .players import Loss
from .state import Run

__all__ = ["Task", "distributed", "explain", "loop", "take"]

CHECK = 100  # steps between checkpoints, at least


class Task(NamedTuple):
    """The settings of a training."""

    seed: int
    total: int
    rank: int
    world: int
    patience: int
    clip: float | None
    rate: Callable[[int], float]  # what multiplies the learning rates
    device: torch.device
    objective: Objective
    held_out: Objective


def loop(
    run: Run, loss: Loss, source: Batches, held: Batches | None, task: Task, bar: tqdm
) -> None:
    """Take the steps from where the run stands."""
    period = source.period

    def validate() -> None:
        due = run.step > 0 and (run.step % period == 0 or run.step == task.total)
        if held is not None and due and not run.validated():
            loss.at(task.held_out)  # held-out data are compared under one objective
            run.validate(loss, held, mix(task.seed, 2))

    engine = distributed(loss) if task.world > 1 and run.players.alone else loss
    validate()  # an interrupt may have come before
    for batch in source.batches(run.step, task.total):
        if run.verdict.worse > task.patience:
            return
        step = run.step
        try:
            number = take(run, loss, engine, batch, task)
        except BaseException:
            if run.step == step:
                run.revert()
            raise
        if not bar.disable:
            bar.set_postfix(loss=f"{number:.4g}", refresh=False)
            bar.update()
        validate()
        if run.step % CHECK == 0:
            run.checkpoint(ended=False)


def take(run: Run, loss: Loss, engine: nn.Module, batch: tuple[Any, ...], task: Task) -> float:
    """Take one step, and return its loss."""
    x, rank, world = batch[0], task.rank, task.world
    count = len(x) if x is not None else 1
    shared = world if count >= world else 1  # else every process takes it all
    part = [index(t, slice(rank % shared, None, shared)) for t in batch]
    run.begin()
    reseed(mix(task.seed, 1, run.step, rank), task.device)
    loss.at(task.objective.at(run.step / task.total))
    if world > 1 and not run.players.alone:
        share((b for n, b in loss.named_buffers() if n.split(".")[-1] != "chains"), world)
    values = engine(*part, shared / count)
    if world > 1:
        values = {name: average(value, world) for name, value in values.items()}
    numbers = [float(value.detach()) for value in values.values()]
    rate = task.rate(run.step)
    for name, number in zip(values, numbers):
        if not math.isfinite(number):
            raise FloatingPointError(explain(number, run.step, x, run.players.lr[name] * rate))
    run.advance(values, numbers, task.clip, rate, world)
    return sum(numbers)


def distributed(loss: Loss) -> nn.Module:
    """Return the engine of several processes, each of which keeps Markov chains of its own."""
    chains = [n for n, _ in loss.named_buffers() if n.split(".")[-1] == "chains"]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(loss, chains)
    return DistributedDataParallel(loss, find_unused_parameters=is_partial(loss.current))


def explain(value: float, step: int, x: Tensor | None, lr: float) -> str:
    data = f" on a batch with values in {span(x)}" if x is not None else ""
    advice = f"Try a smaller learning rate (now {lr:g}), clip=1.0, or float64."
    if step == 0:
        advice = "No step was taken yet: check the objective, the parameters and their support."
    return f"The loss is {value} at step {step}{data}. {advice}"
