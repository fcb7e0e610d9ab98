r"""One training loop for every family.

Each step minimises the mean of an objective over a batch,

.. math:: \frac{1}{n} \sum_{i=1}^n w_i \, \ell_\theta(x_i, c_i).

Nothing random is carried from step to step: batches follow from the seed and the epoch, noise
from the seed, the step and the process. So a run that was killed goes on exactly as it would have.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Adam, Optimizer
from tqdm.auto import tqdm

from ..core import LazyDistribution
from ..core.checkpoint import check_savable
from ..core.digests import describe
from ..core.distributed import agree, gather, join, mix, seed_of, share
from ..core.folders import CheckpointWarning, claim, probe
from ..core.validation import check_whole
from ..objectives import Objective
from ..objectives.base import as_objective, modules_of
from .batches import Batches
from .data import batches_of, hold_out
from .loop import Task, loop
from .players import Loss, Players
from .state import History, Run, saving

__all__ = ["CheckpointWarning", "History", "fit"]


def fit(
    module: LazyDistribution,
    data: Any,
    *,
    objective: Objective | Callable[..., Any] | None = None,
    context: Any = None,
    validation: float | Any = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 256,
    optimizer: Callable[..., Optimizer] | dict[str, Callable[..., Optimizer]] = Adam,
    lr: float | dict[str, float] = 1e-3,
    weights: Any = None,
    names: Mapping[str, str | Sequence[str]] | None = None,
    schedule: Literal["cosine"] | Callable[[float], float] | None = None,
    clip: float | None = None,
    ema: float | None = None,
    patience: int = 20,
    device: str | torch.device | None = None,
    seed: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    initialize: bool = False,
    progress: bool = True,
) -> History:
    r"""Train a lazy distribution.

    Under ``torchrun`` the same call trains data-parallel: each process takes its share of every
    batch, and gradients equal those of one process. Give all processes the same data, or shards of
    one size; held-out losses are averaged over them, so that all stop at the same step.

    An interrupt, or any error, leaves the state before the step or after it, never one in between.

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
        objective: The :class:`~probgen.objectives.Objective`, by default the module's own; or a
            function of the module, data and contexts that returns a loss per item. Its players,
            if there are several, train by turns.
        context: The contexts, with shape :math:`(N, C)`, or a shape of the module's own, or a
            tuple or dict of such.
        validation: Held-out data: a fraction of `data`, which streams and loaders do not have,
            or data in any form that `data` takes, or `(x, context)`. The parameters (and buffers)
            with the least loss on them are kept, and training stops early.
        steps: The number of steps, 1000 if `epochs` is not given either.
        epochs: The number of passes through the data, instead of `steps`.
        batch_size: The number of data per step, over all processes.
        optimizer: The class of the optimiser, called with the parameters and `lr`; or a
            dictionary of one for each player of the objective.
        lr: The learning rate, or a dictionary of one for each player.
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
            `steps` or more, training goes on from it, to the same bits. Another run is refused:
            one of other data, contexts, weights, held-out data, objective, optimiser or numbers.
            Functions are compared by their names and code, without what they close over, since
            that may be anything. At the end the module is saved there too.
        initialize: Whether to set data-dependent values, such as the scale of the data, anew on a
            module that was initialized before.
        progress: Whether to show a progress bar.

    Returns:
        The history of losses.

    Raises:
        TypeError: If the data are integers, but the distribution is continuous.
        ValueError: If data are empty, not finite, or of the wrong shape (the item is named); if
            the folder holds another run; under ``torchrun``, if processes have data of different
            sizes.
        OSError: If the folder cannot be written.
        FloatingPointError: If the loss is not finite; the parameters are those before the step.

    Warns:
        CheckpointWarning: If the state cannot be written on the way or at the end. The module is
            trained all the same.
        DiscreteDataWarning: If columns of the data hold few, repeated levels, at which a
            continuous density grows without limit.
        LengthWarning: If a loader gives fewer batches than its length says.
        OutlierWarning: If a few values dominate the scale of the data.
        ScaleWarning: If the data are on another scale than those that the module was initialized
            with.

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
    objective = as_objective(module.objective if objective is None else objective)
    own = next((p.device for p in module.parameters()), torch.device("cpu"))
    rank, world, device = join(device, own)
    parts = nn.ModuleDict({f"{n}_module": m for n, m in modules_of(objective).items()})
    for part in (module, parts):
        part.to(device)
        share(part.parameters(), world)
    if checkpoint is not None:
        if rank == 0:
            probe(checkpoint)
        check_savable(module)  # refuse now what could not be saved at the end
    if seed is not None:
        check_whole(0, seed=seed)
    else:
        seed = seed_of(Path(checkpoint) / "training" if checkpoint is not None else None)
    seed = agree(seed, world, device)
    source = batches_of(module, data, context, weights, batch_size, device, seed, names)
    known = [*module.parameters(), *parts.parameters()]
    described = describe("dtype", known[0].dtype)
    if checkpoint is not None:
        described.update(source.digest())  # before data are held out
    held = None
    if validation is not None:
        held = hold_out(source, validation, module, batch_size, device, seed, names)
    total = epochs * source.per_epoch if epochs is not None else 1000 if steps is None else steps
    check_shards(source, total, world, device)

    players = Players(objective.players(module), known, optimizer, lr)
    if checkpoint is not None:
        fraction = held is None or isinstance(validation, Real)
        given = validation if fraction else held.digest()  # type: ignore[union-attr]
        described.update(describe("validation", given))
        described = {k: united(v, world, device) for k, v in described.items()}
        options: dict[str, Any] = {"batch_size": batch_size, "clip": clip, "ema": ema}
        options.update(patience=patience, schedule=schedule, objective=objective)
        options.update(seed=seed, steps=total)
        for name, value in options.items():
            described.update(describe(name, value))
        described.update(players.describe())
    folder = checkpoint if rank == 0 else None
    run = Run(module, parts, players, ema, folder, described)
    loss = Loss(module, objective, parts, list(players.every))
    task = Task(
        seed,
        total,
        rank,
        world,
        patience,
        clip,
        lambda t: rate(schedule, t, total),
        device,
        objective,
        compared(objective, module, held),
    )
    alone = nullcontext() if folder is None else claim(folder)
    with torch.random.fork_rng(), alone:
        if checkpoint is None or not run.resume(checkpoint, held is not None, total):
            begin(module, source, seed, initialize)
        found = gather(run.step, world, device)
        if len(set(found)) > 1:
            raise ValueError(
                f"Expected all processes to start at one step, got {found}, a step for each. "
                f"`checkpoint` must be a folder that all of them see."
            )
        bar = tqdm(
            total=total, initial=run.step, disable=not progress or rank > 0, desc="fit", leave=False
        )
        module.train()
        try:
            with run.interrupts.installed():
                loop(run, loss, source, held, task, bar)
        except BaseException:
            with suppress(Exception):  # the first error is the one to see
                run.checkpoint(ended=True)
            raise
        finally:
            bar.close()
        run.checkpoint(ended=True)
        run.finish()
    if folder is not None:
        with saving(folder):
            module.save(folder)
    return run.history


def united(text: str, world: int, device: torch.device) -> str:
    """Return what is true of the data of all processes."""
    found = gather(int(hashlib.sha256(text.encode()).hexdigest()[:15], 16), world, device)
    return text if len(set(found)) == 1 else f"{text} of {found}"


def begin(module: LazyDistribution, source: Batches, seed: int, initialize: bool) -> None:
    """Initialise a module from a sample of its data, unless that was done before."""
    if (sample := source.initial()) is None:
        return
    if module.initialized and not initialize:
        module.compare(sample.x, sample.context)
        return
    torch.manual_seed(mix(seed, 3))
    module.initialize(sample.x, sample.context, sample.weights)


def compared(objective: Objective, module: LazyDistribution, held: Batches | None) -> Objective:
    """Return the objective of held-out data, for the module inside of wrappers."""
    if held is None:
        return objective
    with torch.no_grad():
        _, context, _ = next(iter(held.parts(1)))
        inner, _ = objective.resolve(module, context)
    found = as_objective(objective.at(1.0).held_out(inner))
    if len(found.players(module)) > 1:
        raise ValueError(
            f"Expected an objective whose `held_out` gives one with a loss per item, since "
            f"`validation` compares one number, got {type(found).__name__} of several players."
        )
    return found


def check_shards(source: Batches, total: int, world: int, device: torch.device) -> None:
    """Raise a ValueError, in every process, unless all have as many data and steps."""
    for what, number in (("data", source.count), ("steps", total)):
        found = gather(number, world, device)
        if len(set(found)) > 1:
            raise ValueError(
                f"Expected as many {what} in all processes, got {found}. Give all of them the same "
                f"data, of which each takes its part, or shards of one size."
            )


def check_numbers(
    patience: int,
    steps: int | None,
    epochs: int | None,
    clip: float | None,
    lr: float | dict[str, float],
    ema: float | None,
) -> None:
    """Raise a ValueError that names a number that is impossible."""
    check_whole(0, patience=patience)
    check_whole(1, **{n: v for n, v in (("steps", steps), ("epochs", epochs)) if v is not None})
    rates = lr.values() if isinstance(lr, dict) else (lr,)
    for name, value in (("clip", clip), *(("lr", r) for r in rates)):
        if value is not None and not (isinstance(value, Real) and value > 0):
            raise ValueError(f"Expected a positive `{name}`, got {value!r}.")
    if ema is not None and not 0 <= ema < 1:
        raise ValueError(f"Expected `ema` in [0, 1), got {ema}.")
    if steps is not None and epochs is not None:
        raise ValueError(f"Expected `steps` or `epochs`, got both, {steps} and {epochs}.")


def rate(schedule: str | Callable[[float], float] | None, step: int, total: int) -> float:
    """Return the factor of the learning rate."""
    if schedule is None:
        return 1.0
    if callable(schedule):
        return float(schedule(step / total))
    if schedule == "cosine":
        return (1 + math.cos(math.pi * step / total)) / 2
    raise ValueError(f"Expected `schedule` to be a function or 'cosine', got {schedule!r}.")
