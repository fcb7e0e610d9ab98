r"""One training loop for every family.

Each step minimises the mean of an objective over a batch,

.. math:: \frac{1}{n} \sum_{i=1}^n w_i \, \ell_\theta(x_i, c_i).

Nothing random is carried from step to step: batches follow from the seed and the epoch, noise
from the seed, the step and the process. So a run that was killed goes on exactly as it would have.
"""

from __future__ import annotations

import atexit
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .core import LazyDistribution
from .core.checkpoint import Encoder, read, write

__all__ = ["History", "fit"]

CHECK = 100  # steps between checkpoints, at least
STARTING = 10_000  # how many data the data-dependent starting values see


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


class Loss(nn.Module):
    """The weighted sum of an objective over a batch, times a factor: what engines wrap."""

    def __init__(self, module: LazyDistribution, objective: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.objective = module, objective

    def forward(
        self, x: Tensor | None, context: Tensor | None, weights: Tensor | None, factor: float
    ) -> Tensor:
        losses = self.objective(self.module, x, context)
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
        data: The data, a tensor or array with shape :math:`(N, *)`, a `Dataset` or `DataLoader`
            of items `x` or `(x, context)`, or None if the objective needs none. Floating-point
            data are cast to the dtype of the parameters.
        objective: The objective; by default the module's own.
        context: The contexts, with shape :math:`(N, C)`.
        validation: Held-out data: a fraction of `data`, or a tensor, or `(x, context)`. The
            parameters with the least loss on them are kept, and training stops early.
        steps: The number of steps, 1000 if `epochs` is not given either.
        epochs: The number of passes through the data, instead of `steps`.
        batch_size: The number of data per step, over all processes.
        optimizer: The class of the optimiser, called with the parameters and `lr`.
        lr: The learning rate.
        weights: The weights of the data, with shape :math:`(N)`, scaled to mean 1.
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
        ValueError: If data are empty, not finite, or of the wrong shape.
        FloatingPointError: If the loss is not finite; the parameters are those before the step.

    Example:
        >>> import probgen as pg
        >>> x = torch.randn(500, 2) * torch.tensor([1.0, 5.0]) + 3.0
        >>> flow = pg.models.MAF(2, transforms=2, hidden_features=(16,))
        >>> history = fit(flow, x, steps=50, batch_size=100, seed=0, progress=False)
        >>> history.losses[-1] < history.losses[0] + 1
        True
    """
    rank, world, device = processes(module, device)
    module.to(device)
    if seed is None:
        seed = int(torch.randint(2**31, ()))
    seed = agree(seed, world, device)
    loss = Loss(module, objective or module.objective)
    source = Batches.of(module, data, context, weights, batch_size, device, seed)
    held = source.hold_out(validation) if validation is not None else None
    total = steps if steps is not None else epochs * source.per_epoch if epochs else 1000
    if total < 1:
        raise ValueError(f"Expected at least one step, got steps={steps}, epochs={epochs}.")

    run = Run(module, optimizer, lr, ema, checkpoint if rank == 0 else None)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if checkpoint is not None:
            Encoder().encode(module)  # refuse now what could not be saved at the end
        if not (checkpoint is not None and run.resume(checkpoint)) and source.x is not None:
            chosen = source.order(0)[:STARTING]
            given = source.context[chosen] if source.context is not None else None
            torch.manual_seed(mix(seed, 3))
            module.start(source.x[chosen], given)
        engine: nn.Module = loss
        if world > 1:
            engine = DistributedDataParallel(loss)
        module.train()
        bar = tqdm(
            total=total, initial=run.step, disable=not progress or rank > 0, desc="fit", leave=False
        )
        try:
            for x, given, w in source.batches(run.step, total):
                if run.worse > patience:
                    break
                count = len(x) if x is not None else 1
                shared = world if count >= world else 1  # else every process takes it all
                part = [
                    t[rank % shared :: shared] if t is not None else None for t in (x, given, w)
                ]
                torch.manual_seed(mix(seed, 1, run.step, rank))
                value = engine(*part, shared / count)
                if world > 1:
                    value = average(value, world)
                if not value.isfinite():
                    raise FloatingPointError(explain(float(value.detach()), run.step, x, lr))
                run.advance(value, clip, rate(schedule, run.step, total) * lr)
                bar.set_postfix(loss=f"{run.history.losses[-1]:.4g}", refresh=False)
                bar.update()
                if held is not None and run.step % max(source.per_epoch, 10) == 0:
                    run.validate(loss, held, mix(seed, 2))
                if run.step % CHECK == 0:
                    run.checkpoint(ended=False)
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


class Run:
    """Everything that changes during training, and how it is stored."""

    def __init__(
        self,
        module: LazyDistribution,
        optimizer: Callable[..., Optimizer],
        lr: float,
        ema: float | None,
        folder: str | os.PathLike[str] | None,
    ) -> None:
        self.module, self.ema = module, ema
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("Expected a module with parameters to train; is it frozen?")
        self.optimizer = optimizer(list(self.parameters.values()), lr=lr)
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()} if ema else {}
        self.best: dict[str, Tensor] = {}
        self.least, self.worse, self.step = math.inf, 0, 0
        self.history = History()
        self.folder = Path(folder) / "training" if folder is not None else None
        self.written, self.cost = time.monotonic(), 0.0

    def advance(self, loss: Tensor, clip: float | None, lr: float) -> None:
        """Takes one step of the optimiser."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(list(self.parameters.values()), clip)
        self.optimizer.step()
        self.step += 1
        if self.ema:
            decay = min(self.ema, self.step / (self.step + 10))
            for n, p in self.parameters.items():
                self.average[n].lerp_(p.detach(), 1 - decay)
        self.history.losses.append(float(loss.detach()))

    def validate(
        self, loss: Loss, held: tuple[Tensor, Tensor | None], seed: int, batch: int = 1024
    ) -> None:
        """Scores held-out data under the parameters to keep, and remembers the best."""
        current = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.copy(self.average)
        self.module.eval()
        x, context = held
        with torch.no_grad():
            torch.manual_seed(seed)
            value = 0.0
            for start in range(0, len(x), batch):
                part = slice(start, start + batch)
                given = context[part] if context is not None else None
                value += float(loss(x[part], given, None, 1 / len(x)))
        self.module.train()
        self.history.validation.append((self.step, value))
        if value < self.least:
            self.least, self.worse, self.history.best_step = value, 0, self.step
            self.best = {n: p.detach().clone() for n, p in self.parameters.items()}
        else:
            self.worse += 1
        self.copy(current)

    def copy(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for n, value in values.items():
                self.parameters[n].copy_(value)

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
            "optimizer": {"groups": state["param_groups"], "plain": plain},
            "history": vars(self.history),
        }
        write(self.folder, tensors, content)
        self.written = time.monotonic()
        self.cost = self.written - started

    def resume(self, folder: str | os.PathLike[str]) -> bool:
        """Reads the state that another run wrote, and says if there was one."""
        path = Path(folder) / "training"
        if not path.exists():
            return False
        tensors, content = read(path)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, rest = name.split(".", 1)
            parts.setdefault(kind, {})[rest] = value
        try:
            self.module.load_state_dict(parts["module"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"Expected in {folder} the training of this very module, built with the same "
                f"arguments: {error}"
            ) from None
        device = next(iter(self.parameters.values())).device
        state: dict[int, dict[str, Any]] = {}
        for name, value in {**parts.get("optimizer", {}), **content["optimizer"]["plain"]}.items():
            i, key = name.split(".", 1)
            state.setdefault(int(i), {})[key] = value
        groups = content["optimizer"]["groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.average = {n: v.to(device) for n, v in parts.get("average", {}).items()}
        self.best = {n: v.to(device) for n, v in parts.get("best", {}).items()}
        self.step, self.worse = content["step"], content["worse"]
        self.least = math.inf if content["least"] is None else content["least"]
        self.history = History(**content["history"])
        self.history.validation = [(s, v) for s, v in self.history.validation]
        return True


class Batches:
    """Data in batches that follow from the seed and the number of the step."""

    def __init__(
        self,
        x: Tensor | None,
        context: Tensor | None,
        weights: Tensor | None,
        batch_size: int,
        seed: int,
        loader: DataLoader | None = None,
        prepare: Callable[..., tuple[Tensor, Tensor | None]] | None = None,
    ) -> None:
        self.x, self.context, self.weights = x, context, weights
        self.batch_size, self.seed = batch_size, seed
        self.loader, self.prepare = loader, prepare

    @classmethod
    def of(
        cls,
        module: LazyDistribution,
        data: Any,
        context: Any,
        weights: Any,
        batch_size: int,
        device: torch.device,
        seed: int,
    ) -> Batches:
        """Checks the data and puts them on the device."""
        if batch_size < 1:
            raise ValueError(f"Expected a positive `batch_size`, got {batch_size}.")
        p = next(module.parameters())

        def prepare(x: Any, c: Any) -> tuple[Tensor, Tensor | None]:
            c = None if c is None else tensor(c, "context", p.dtype, device)
            return tensor(x, "data", p.dtype, device, module, c), c

        if data is None:
            c = None if context is None else tensor(context, "context", p.dtype, device)
            return cls(None, c, None, batch_size, seed)
        if isinstance(data, Dataset):
            items = [pair(data[i]) for i in range(len(data))]  # type: ignore[arg-type]
            first, second = zip(*items)
            data = torch.stack([torch.as_tensor(v) for v in first])
            if second[0] is not None:
                context = torch.stack([torch.as_tensor(v) for v in second])
        if isinstance(data, DataLoader):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(mix(seed, 0, 0))
                x, c = prepare(*pair(next(iter(data))))
            return cls(x, c, None, batch_size, seed, data, prepare)
        x, c = prepare(data, context)
        if c is not None and len(c) != len(x):
            raise ValueError(f"Expected as many contexts as data, got {len(c)} and {len(x)}.")
        if weights is not None:
            weights = tensor(weights, "weights", p.dtype, device)
            if weights.shape != (len(x),) or (weights < 0).any() or not weights.sum() > 0:
                raise ValueError(
                    f"Expected `weights` with shape ({len(x)},), not negative nor all zero, got "
                    f"shape {tuple(weights.shape)} and range {span(weights)}."
                )
            weights = weights / weights.mean()
        return cls(x, c, weights, batch_size, seed)

    @property
    def per_epoch(self) -> int:
        if self.loader is not None:
            return len(self.loader)
        return 1 if self.x is None else math.ceil(len(self.x) / self.batch_size)

    def hold_out(self, validation: Any) -> tuple[Tensor, Tensor | None]:
        """Splits held-out data off, or prepares those that were given."""
        if self.x is None or (self.loader is not None and isinstance(validation, float)):
            raise ValueError("Expected `validation` data as a tensor, since `data` is none.")
        if not isinstance(validation, float):
            x, c = pair(validation)
            dtype, device = self.x.dtype, self.x.device
            given = None if c is None else tensor(c, "context", dtype, device)
            return tensor(x, "validation", dtype, device, integers=True), given
        count = round(validation * len(self.x))
        if not 0 < count < len(self.x):
            raise ValueError(f"Expected a fraction `validation` in (0, 1), got {validation}.")
        order = torch.randperm(len(self.x), generator=generator(mix(self.seed, 4)))
        held, kept = order[:count].to(self.x.device), order[count:].to(self.x.device)
        parts = [t[held] if t is not None else None for t in (self.x, self.context)]
        self.x = self.x[kept]
        self.context = self.context[kept] if self.context is not None else None
        self.weights = self.weights[kept] if self.weights is not None else None
        return parts[0], parts[1]  # type: ignore[return-value]

    def order(self, epoch: int) -> Tensor:
        size = len(self.x)  # type: ignore[arg-type]
        device = self.x.device  # type: ignore[union-attr]
        return torch.randperm(size, generator=generator(mix(self.seed, 0, epoch))).to(device)

    def batches(self, step: int, total: int) -> Iterator[tuple[Any, Any, Any]]:
        """The batches from a step on."""
        while step < total:
            epoch, skipped = divmod(step, self.per_epoch)
            stop = min(self.per_epoch, skipped + total - step)
            yield from self.epoch(epoch, skipped, stop)
            step += stop - skipped

    def epoch(self, epoch: int, start: int, stop: int) -> Iterator[tuple[Any, Any, Any]]:
        if self.x is None:
            yield None, self.context, None
        elif self.loader is not None and self.prepare is not None:
            torch.manual_seed(mix(self.seed, 0, epoch))
            for number, batch in zip(range(stop), self.loader):
                if number >= start:
                    yield *self.prepare(*pair(batch)), None
        else:
            order, n = self.order(epoch), self.batch_size
            for number in range(start, stop):
                chosen = order[number * n : (number + 1) * n]
                columns = (self.x, self.context, self.weights)
                yield tuple(t[chosen] if t is not None else None for t in columns)  # type: ignore


def tensor(
    value: Any,
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    module: LazyDistribution | None = None,
    context: Tensor | None = None,
    integers: bool = False,
) -> Tensor:
    """Checks data and makes them a tensor of the right dtype on the right device."""
    try:
        t = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"Expected `{name}` to be a tensor or array: {error}") from None
    if t.ndim == 0 or len(t) == 0:
        raise ValueError(f"Expected `{name}` with at least one item, got shape {tuple(t.shape)}.")
    if t.is_complex():
        raise TypeError(f"Expected real `{name}`, got {t.dtype}.")
    if not t.isfinite().all():
        row = int((~t.isfinite()).reshape(len(t), -1).any(1).nonzero()[0])
        raise ValueError(f"Expected finite `{name}`, got nan or inf, first in item {row}.")
    if module is not None:
        with torch.no_grad():
            distribution = module(context[:1] if context is not None else None)
        event = tuple(distribution.event_shape)
        if tuple(t.shape[1:]) != event:
            wanted = ", ".join(["N", *map(str, event)])
            raise ValueError(f"Expected `{name}` with shape ({wanted}), got {tuple(t.shape)}.")
        support = distribution.support
        integers = support.is_discrete
    if not t.is_floating_point() and name != "weights" and not integers:
        raise TypeError(
            f"Expected floating-point `{name}`, got {t.dtype}. Dequantise levels with "
            f"probgen.distributions.Dequantized, or cast with .float()."
        )
    t = t.to(device, dtype)
    if module is not None and not (inside := support.check(t)).all():
        item = int((~inside).nonzero()[0])
        raise ValueError(
            f"Expected `{name}` in the support of the distribution, {support}, got values in "
            f"{span(t)}, the first outside in item {item}."
        )
    return t


def pair(item: Any) -> tuple[Any, Any]:
    """An item of data as `(x, context)`."""
    if isinstance(item, (tuple, list)):
        return (item[0], item[1]) if len(item) > 1 else (item[0], None)
    return item, None


def explain(value: float, step: int, x: Tensor | None, lr: float) -> str:
    data = f" on a batch with values in {span(x)}" if x is not None else ""
    return (
        f"The loss is {value} at step {step}{data}. Try a smaller learning rate (now {lr:g}), "
        f"clip=1.0, data closer to unit scale, or float64."
    )


def span(x: Tensor) -> str:
    return f"[{float(x.min()):.4g}, {float(x.max()):.4g}]"


def rate(schedule: str | Callable[[float], float] | None, step: int, total: int) -> float:
    """The factor of the learning rate."""
    if schedule is None:
        return 1.0
    if callable(schedule):
        return float(schedule(step / total))
    if schedule == "cosine":
        return (1 + math.cos(math.pi * step / total)) / 2
    raise ValueError(f"Expected `schedule` to be a function or 'cosine', got {schedule!r}.")


def mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def processes(
    module: nn.Module, device: str | torch.device | None
) -> tuple[int, int, torch.device]:
    """The rank, the number of processes and the device, joining the group under torchrun."""
    torchrun = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ
    if device is None and torchrun and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    place = torch.device(device) if device is not None else next(module.parameters()).device
    if torchrun and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
        atexit.register(torch.distributed.destroy_process_group)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1, place
    return torch.distributed.get_rank(), torch.distributed.get_world_size(), place


def agree(number: int, world: int, device: torch.device) -> int:
    """The first process's number."""
    if world == 1:
        return number
    shared = torch.tensor([number], device=device)
    torch.distributed.broadcast(shared, 0)
    return int(shared)


def average(value: Tensor, world: int) -> Tensor:
    """The mean over processes, of which only this one's part has a gradient."""
    mean = value.detach().clone()
    torch.distributed.all_reduce(mean)
    return value + (mean / world - value.detach())
