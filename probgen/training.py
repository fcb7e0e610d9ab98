r"""One training loop for every family.

Each step minimises the mean of an objective over a batch,

.. math:: \frac{1}{n} \sum_{i=1}^n w_i \, \ell_\theta(x_i, c_i).

Nothing random is carried from step to step: batches follow from the seed and the epoch, noise
from the seed, the step and the process. So a run that was killed goes on exactly as it would have.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer
from tqdm.auto import tqdm

from .batches import Batches
from .core import LazyDistribution
from .core.checkpoint import check_savable
from .core.checks import check_whole
from .core.contexts import index
from .core.processes import (
    agree,
    average,
    check_agreed,
    check_lengths,
    join,
    mix,
    reseed,
    seed_of,
    share,
)
from .data import batches_of, hold_out
from .items import span
from .runs import History, Run

__all__ = ["History", "fit"]

CHECK = 100  # steps between checkpoints, at least


class Loss(nn.Module):
    """The weighted sum of an objective over a batch, times a factor: what engines wrap."""

    def __init__(self, module: LazyDistribution, objective: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.objective = module, objective
        self.current = self.at(1.0)
        self.held_out = self.current  # that of held-out data

    def at(self, fraction: float) -> Callable[..., Tensor]:
        """The objective after a fraction of the training: some change on the way."""
        change = getattr(self.objective, "at", None)
        return self.objective if change is None else change(fraction)

    def forward(
        self, x: Tensor | None, context: Tensor | None, weights: Tensor | None, factor: float
    ) -> Tensor:
        losses = self.current(self.module, x, context)
        shape = tuple(getattr(losses, "shape", ()))
        if not isinstance(losses, Tensor) or (x is not None and shape != (len(x),)):
            wanted = "" if x is None else f", a tensor with shape ({len(x)},)"
            raise ValueError(
                f"Expected `objective` to return one loss per item{wanted}, got "
                f"{shape if isinstance(losses, Tensor) else type(losses).__name__}."
            )
        if self.module.training and torch.is_grad_enabled() and not losses.requires_grad:
            raise ValueError(
                "Expected `objective` to return losses with a gradient, got losses without."
            )
        if x is None:
            return losses.mean()
        if weights is not None:
            losses = losses * weights
        return losses.sum() * factor


def fit(
    module: LazyDistribution,
    data: Any,
    *,
    objective: Callable[..., Tensor] | None = None,
    context: Any = None,
    validation: float | Any = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 256,
    optimizer: Callable[..., Optimizer] = Adam,
    lr: float = 1e-3,
    weights: Any = None,
    names: Mapping[str, str | Sequence[str]] | None = None,
    schedule: str | Callable[[float], float] | None = None,
    clip: float | None = None,
    ema: float | None = None,
    patience: int = 20,
    device: str | torch.device | None = None,
    seed: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> History:
    r"""Trains a lazy distribution.

    Under ``torchrun`` the same call trains data-parallel: each process takes its share of every
    batch, and gradients equal those of one process.

    Arguments:
        module: The lazy distribution. It is trained in place and left in evaluation mode.
        data: The data, a tensor or array with shape :math:`(N, *)`, a list of tensors, a
            `DataFrame` or `Series` of numbers and booleans without missing values, a `Dataset`,
            `IterableDataset` or `DataLoader`, or None if the objective needs none. Items are `x`,
            `(x, context)`, or dicts with the keys `x`, `context` and `weight`. Floating-point
            data are cast to the dtype of the parameters. Memory maps, arrays of more than
            :math:`10^7` numbers and datasets are read, and checked, as they are used: at most
            10,000 items to initialise, then those of each step. Streams, which need `steps`, are
            read from their start again when a run goes on.
        objective: The objective; by default the module's own. One with a method `at`, such as
            :class:`~probgen.objectives.ELBO` with `warm_up`, changes on the way.
        context: The contexts, with shape :math:`(N, C)`, or a shape of the module's own, or a
            tuple or dict of such.
        validation: Held-out data: a fraction of `data`, which streams and loaders do not have,
            or data in any form that `data` takes, or `(x, context)`. The parameters (and buffers)
            with the least loss on them are kept, and training stops early.
        steps: The number of steps, 1000 if `epochs` is not given either.
        epochs: The number of passes through the data, instead of `steps`.
        batch_size: The number of data per step, over all processes.
        optimizer: The class of the optimiser, called with the parameters and `lr`.
        lr: The learning rate.
        weights: The weights of the data, with shape :math:`(N)`, scaled to mean 1. Those of
            items are scaled by the mean of those that the initialisation sees.
        names: Other keys of items that are dicts, such as `{"x": "image", "context": "label"}`; a
            tuple of keys for a context of several tensors.
        schedule: What multiplies `lr`: a function of the elapsed fraction of the steps, or
            `"cosine"`.
        clip: The largest norm of the gradient.
        ema: The decay of an exponential moving average of the parameters, which is validated
            and left in the module.
        patience: How many checks on held-out data (one per epoch, of at least 10 steps) may
            pass without improvement.
        device: Where to train; by default where the module is.
        seed: The seed; by default drawn from torch's generator.
        checkpoint: A folder. The state of training is written there every 100 steps or more,
            and when it ends or is interrupted; called again with the same folder and as many
            `steps` or more, training goes on from it. At the end the module is saved there too.
        progress: Whether to show a progress bar.

    Returns:
        The history of losses.

    Raises:
        TypeError: If the data are integers, but the distribution is continuous.
        ValueError: If data are empty, not finite, or of the wrong shape; the item is named.
        FloatingPointError: If the loss is not finite; the parameters are those before the step.

    Warns:
        DiscreteDataWarning: If columns of the data hold few, repeated levels, at which a
            continuous density grows without limit.
        LengthWarning: If a loader gives fewer batches than its length says.

    Example:
        >>> import probgen as pg
        >>> x = torch.randn(500, 2) * torch.tensor([1.0, 5.0]) + 3.0
        >>> flow = pg.models.MAF(2, transforms=2, hidden_features=(16,))
        >>> history = fit(flow, x, steps=50, batch_size=100, seed=0, progress=False)
        >>> history.losses[-1] < history.losses[0] + 1
        True
    """
    if not isinstance(module, LazyDistribution):
        kind = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise TypeError(
            f"Expected `module` to be a lazy distribution, such as pg.models.NSF(2), got {kind}."
        )
    check_numbers(patience, steps, epochs, clip, lr, ema)
    own = next((p.device for p in module.parameters()), torch.device("cpu"))
    rank, world, device = join(device, own)
    module.to(device)
    share(module.parameters(), world)
    if seed is not None:
        check_whole(0, seed=seed)
    else:
        seed = seed_of(Path(checkpoint) / "training" if checkpoint is not None else None)
    seed = agree(seed, world, device)
    loss = Loss(module, objective or module.objective)
    source = batches_of(module, data, context, weights, batch_size, device, seed, names)
    check_lengths(source.count, world, device)
    held = None
    if validation is not None:
        held = hold_out(source, validation, module, batch_size, device, seed, names)
    if held is not None and hasattr(loss.current, "held_out"):
        loss.held_out = loss.current.held_out(module)
    total = epochs * source.per_epoch if epochs is not None else 1000 if steps is None else steps

    run = Run(module, optimizer, lr, ema, checkpoint if rank == 0 else None, seed)
    task = Task(
        seed, total, rank, world, patience, clip, lambda t: lr * rate(schedule, t, total), device
    )
    with torch.random.fork_rng():
        if checkpoint is not None:
            check_savable(module)  # refuse now what could not be saved at the end
        if checkpoint is None or not run.resume(checkpoint, held is not None):
            begin(module, source, seed)
        check_agreed(run.step, world, device)
        bar = tqdm(
            total=total, initial=run.step, disable=not progress or rank > 0, desc="fit", leave=False
        )
        module.train()
        try:
            loop(run, loss, source, held, task, bar)
        except KeyboardInterrupt:
            run.checkpoint(ended=True)
            raise
        finally:
            bar.close()
        run.checkpoint(ended=True)
        run.finish()
    if rank == 0 and checkpoint is not None:
        module.save(checkpoint)
    return run.history


def begin(module: LazyDistribution, source: Batches, seed: int, initialize: bool = False) -> None:
    """Starts a module from the first of its data."""
    if (sample := source.initial()) is None:
        return
    if module.initialized and not initialize:
        module.compare(sample.x, sample.context)
        return
    torch.manual_seed(mix(seed, 3))
    module.initialize(sample.x, sample.context, sample.weights)


def check_numbers(
    patience: int,
    steps: int | None,
    epochs: int | None,
    clip: float | None,
    lr: float,
    ema: float | None,
) -> None:
    """Raises a ValueError that names a number that is impossible."""
    check_whole(0, patience=patience)
    check_whole(1, **{n: v for n, v in (("steps", steps), ("epochs", epochs)) if v is not None})
    for name, value in (("clip", clip), ("lr", lr)):
        if value is not None and not (isinstance(value, Real) and value > 0):
            raise ValueError(f"Expected a positive `{name}`, got {value!r}.")
    if ema is not None and not 0 <= ema < 1:
        raise ValueError(f"Expected `ema` in [0, 1), got {ema}.")
    if steps is not None and epochs is not None:
        raise ValueError(f"Expected `steps` or `epochs`, got both, {steps} and {epochs}.")


class Task(NamedTuple):
    """What does not change during training."""

    seed: int
    total: int
    rank: int
    world: int
    patience: int
    clip: float | None
    lr: Callable[[int], float]
    device: torch.device


def loop(
    run: Run,
    loss: Loss,
    source: Batches,
    held: Batches | None,
    task: Task,
    bar: tqdm,
) -> None:
    """Takes the steps from where the run stands."""
    rank, world = task.rank, task.world
    engine = distributed(loss) if world > 1 else loss
    for x, given, w in source.batches(run.step, task.total):
        if run.worse > task.patience:
            return
        count = len(x) if x is not None else 1
        shared = world if count >= world else 1  # else every process takes it all
        part = [index(t, slice(rank % shared, None, shared)) for t in (x, given, w)]
        reseed(mix(task.seed, 1, run.step, rank), task.device)
        loss.current = loss.at(run.step / task.total)
        step, kept = run.step, run.moving()
        try:
            value = engine(*part, shared / count)
            if world > 1:
                value = average(value, world)
            number, lr = float(value.detach()), task.lr(step)
            if not math.isfinite(number):
                raise FloatingPointError(explain(number, step, x, lr))
            run.advance(value, number, task.clip, lr)
        except BaseException:  # a step is taken whole or not at all
            if run.step == step:
                for buffer, old in kept:
                    buffer.copy_(old)
            raise
        if not bar.disable:
            bar.set_postfix(loss=f"{number:.4g}", refresh=False)
            bar.update()
        due = run.step % source.period == 0 or run.step == task.total
        if held is not None and due:
            loss.current = loss.held_out  # held-out data are compared under one objective
            run.validate(loss, held, mix(task.seed, 2))
        if run.step % CHECK == 0:
            run.checkpoint(ended=False)


def distributed(loss: Loss) -> nn.Module:
    """The engine of several processes, each of which keeps Markov chains of its own."""
    chains = [n for n, _ in loss.named_buffers() if n.split(".")[-1] == "chains"]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(loss, chains)
    partial = getattr(loss.objective, "partial", False)
    return DistributedDataParallel(loss, find_unused_parameters=partial)


def explain(value: float, step: int, x: Tensor | None, lr: float) -> str:
    data = f" on a batch with values in {span(x)}" if x is not None else ""
    advice = f"Try a smaller learning rate (now {lr:g}), clip=1.0, or float64."
    if step == 0:
        advice = "No step was taken yet: check the objective, the parameters and their support."
    return f"The loss is {value} at step {step}{data}. {advice}"


def rate(schedule: str | Callable[[float], float] | None, step: int, total: int) -> float:
    """The factor of the learning rate."""
    if schedule is None:
        return 1.0
    if callable(schedule):
        return float(schedule(step / total))
    if schedule == "cosine":
        return (1 + math.cos(math.pi * step / total)) / 2
    raise ValueError(f"Expected `schedule` to be a function or 'cosine', got {schedule!r}.")
