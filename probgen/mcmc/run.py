"""Runs chains: warm-up, draws, and what can be said of them.

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
import torch.distributed
from torch import Tensor
from tqdm.auto import tqdm

from ..core.checkpoint import read, write
from ..core.processes import agree, join, mix, seed_of
from .adaptation import warm_up
from .draws import Draws
from .gibbs import Gibbs
from .hmc import ChEES, Trajectory
from .kernel import Kernel, LowRank
from .metric import Metric
from .pathfinder import prepare
from .potential import Potential, potential

__all__ = ["run"]

PAUSE = 30.0  # seconds between checkpoints


def run(
    model: Callable[..., Any],
    *args: Any,
    kernel: Kernel | None = None,
    chains: int = 128,
    warmup: int = 150,
    draws: int = 250,
    thin: int = 1,
    seed: int | None = None,
    init: str | dict[str, Tensor] | Tensor = "uniform",
    superchains: int | None = None,
    metric: Metric = "auto",
    base: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> Draws:
    r"""Draws from the posterior of a Pyro model, or from a log density, with many chains at once.

    Warm-up adapts the step size, the scale and the length of trajectories from all chains, as far
    as the kernel has them; it starts from those given. Under ``torchrun`` each process runs its
    share of the chains, adapts with them, and gets all draws.

    Arguments:
        model: A Pyro model, a :class:`Potential`, or a log density: a function of positions with
            shape :math:`(C, *)`, for which `init` is a tensor.
        args: The model's arguments.
        kernel: The kernel; :class:`ChEES` by default.
        chains: The number of chains :math:`C`.
        warmup: The number of steps of warm-up.
        draws: The number of draws :math:`S` of each chain.
        thin: The number of steps per draw.
        seed: The seed; by default drawn from torch's generator, whose state the run leaves alone.
        init: The initial points: `"uniform"`, `"prior"`, `"median"`, `"importance"` or values by
            name (:meth:`Potential.initial`); for a log density, positions with shape
            :math:`(C, *)`, or a dictionary of them under :class:`Gibbs`.
        superchains: The number of groups of chains that share an initial point, for the nested
            :math:`\hat R`.
        dense: Whether to adapt a Cholesky factor rather than standard deviations.
        base: Whether sites with a frozen flow move to its base. Default: if the kernel uses
            gradients.
        checkpoint: A folder. The draws so far are written there every 30 seconds or more, at the
            end and when interrupted; called again with the same folder, the run goes on.
        progress: Whether to show a progress bar.
        kwargs: The model's keyword arguments.

    Returns:
        The draws.

    Raises:
        ValueError: If a number is not positive, or no initial point has a finite density: the
            message names the site.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> draws = run(model, torch.tensor([1.0, 2.0, 3.0]), chains=64, seed=0, progress=False)
        >>> draws.samples["mean"].shape
        torch.Size([64, 100])
        >>> abs(float(draws.samples["mean"].mean()) - 1.5) < 0.03
        True
    """
    for name, value, least in (
        ("chains", chains, 1),
        ("draws", draws, 1),
        ("thin", thin, 1),
        ("warmup", warmup, 0),
    ):
        if value < least:
            raise ValueError(f"Expected `{name}` of at least {least}, got {value}.")
    if superchains is not None and (superchains < 2 or chains % superchains):
        raise ValueError(f"Expected `superchains` >= 2 that divide {chains}, got {superchains}.")
    kernel = ChEES() if kernel is None else kernel
    own = isinstance(init, Tensor) or isinstance(kernel, Gibbs)
    if own:
        chains = check_initial(init)
    rank, world, device = join(None, torch.device("cpu"))
    if chains % world:
        raise ValueError(f"Expected chains that divide into {world} processes, got {chains}.")
    if superchains is not None and superchains % world:
        raise ValueError(
            f"Expected superchains that divide into {world} processes, got {superchains}."
        )
    share = chains // world
    folder = None if checkpoint is None else Path(checkpoint) / "chains-0"
    seed = agree(seed_of(folder) if seed is None else seed, world, device)
    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, 0, rank))
        target: Any = model
        if own:
            position: Any = part(init, slice(rank * share, (rank + 1) * share))
        else:
            if not isinstance(model, Potential):
                moves = kernel.gradient if base is None else base
                target = potential(model, *args, base=moves, **kwargs)
            groups = share if superchains is None else superchains // world
            moves = isinstance(init, str)
            position = target.initial(init, share if moves else groups)
            if warmup:
                kernel, position, _ = prepare(
                    kernel, position, target, metric=metric, chains=groups, move=moves
                )
            position = position[:groups].repeat_interleave(share // groups, 0)
        if own and warmup and isinstance(position, Tensor):
            kernel, position, _ = prepare(kernel, position, target, metric=metric, move=False)
        task = Task(kernel, target, seed, rank, warmup, draws, thin, metric)
        start = time.perf_counter()
        store, stats, last = task.go(position, checkpoint, progress)
        seconds = time.perf_counter() - start
        if world > 1:
            store = {name: gather(value, world, device) for name, value in store.items()}
            stats = {name: gather(value, world, device) for name, value in stats.items()}
        values = target.unravel(store["x"]) if isinstance(target, Potential) else store
    if not isinstance(target, Potential):
        return Draws(store, stats, list(store), [], superchains, last, seconds)
    latent = [name for name in values if name in target.layout or name in target.moved]
    return Draws(values, stats, latent, target.moved, superchains, last, seconds)


def check_initial(init: Any) -> int:
    """The number of chains of positions that are given."""
    values = list(init.values()) if isinstance(init, dict) else [init]
    sizes = {len(v) if isinstance(v, Tensor) and v.ndim else 0 for v in values}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"Expected initial positions with shape (chains, *) and as many chains each, got "
            f"{[tuple(v.shape) if isinstance(v, Tensor) else v for v in values]}."
        )
    return sizes.pop()


def part(value: Any, chains: slice) -> Any:
    if isinstance(value, dict):
        return {name: part(inner, chains) for name, inner in value.items()}
    return value[chains]


def gather(value: Tensor, world: int, device: torch.device) -> Tensor:
    """The chains of all processes."""
    own = value.contiguous().to(device)
    parts = [torch.empty_like(own) for _ in range(world)]
    torch.distributed.all_gather(parts, own)
    return torch.cat(parts).to(value.device)


@dataclasses.dataclass
class Task:
    """What does not change during a run."""

    kernel: Any
    target: Any
    seed: int
    rank: int
    warmup: int
    draws: int
    thin: int
    metric: Metric

    def go(
        self, position: Any, checkpoint: str | os.PathLike[str] | None, progress: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
        """Takes the steps, from the start or from where an earlier run was interrupted."""
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
                bar.set_description("warm-up")
                reseed = self.reseed(1)
                warm = warm_up(kernel, state, self.target, self.warmup, metric=self.metric)
                for k in range(self.warmup):
                    reseed(k)
                    kernel, state, info = next(warm)
                    bar.update()
            bar.set_description("draws")
            reseed, written = self.reseed(2), time.monotonic()
            kept = state, done  # set together, so that an interrupt never parts them
            try:
                for k in range(done, self.draws):
                    for t in range(self.thin):
                        reseed(k * self.thin + t)
                        state, info = kernel.step(state, self.target)
                        bar.update()
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
        return lambda step: torch.manual_seed((first + step) % 2**63)

    def empty(self, state: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Room for the draws, with shape :math:`(C, S, *)`."""
        position = state.position if isinstance(state.position, dict) else {"x": state.position}
        chains = len(state.log_density)

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
        adapted = {name: getattr(kernel, name) for name in self.adapted()}
        for name, value in adapted.items():
            if isinstance(value, Tensor | LowRank):
                tensors |= tensors_of(value, f"kernel.{name}")
        numbers = {n: v for n, v in adapted.items() if isinstance(v, (int, float))}
        write(folder, tensors, {"done": done, "kernel": numbers, **self.description()})

    def adapted(self) -> list[str]:
        names = {field.name for field in dataclasses.fields(self.kernel)}
        return sorted(names & {"step_size", "length", "scale"})

    def description(self) -> dict[str, Any]:
        name = type(self.kernel).__name__
        return {"seed": self.seed, "name": name, "warmup": self.warmup, "thin": self.thin}

    def resume(
        self, folder: Path, kernel: Any, state: Any, store: Any, stats: Any
    ) -> tuple[Any, Any, int]:
        """Reads what :meth:`save` wrote."""
        tensors, content = read(folder)
        for name, expected in self.description().items():
            if content.get(name) != expected:
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
        scales: dict[str, Any] = {n[7:]: v for n, v in tensors.items() if n.startswith("kernel.")}
        if "scale.vectors" in scales:
            scales["scale"] = LowRank(*(scales.pop(f"scale.{n}") for n in LowRank._fields))
        kernel = dataclasses.replace(kernel, **content["kernel"], **scales)
        saved = {n[6:]: v for n, v in tensors.items() if n.startswith("state.")}
        return kernel, restored(state, saved), done


def record(
    store: dict[str, Tensor], stats: dict[str, Tensor], k: int, state: Any, info: Any
) -> None:
    """Writes draw `k` of all chains."""
    position = state.position if isinstance(state.position, dict) else {"x": state.position}
    for name, value in position.items():
        store[name][:, k] = value
    stats["log_density"][:, k] = state.log_density
    stats["acceptance"][:, k] = info.acceptance
    stats["diverged"][:, k] = info.diverged
    stats["steps"][:, k] = info.steps if isinstance(info, Trajectory) else 1


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
