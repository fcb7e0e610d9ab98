"""Run chains: initial points, warm-up, draws, and a check that they have converged."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from ..core.distributed import agree, join, mean_over, mix, seed_of
from ..core.folders import claim, probe
from ..core.validation import outside
from .arguments import check_kernel, check_run_options
from .chains import Chains
from .convergence import ConvergenceWarning, unvisited
from .draws import Draws
from .initial import Initial
from .kernels.base import Kernel
from .kernels.gibbs import Gibbs
from .kernels.hmc import ChEES
from .kernels.metric import Metric, metric_kind
from .modes import Modes
from .pyro.potential import Potential
from .pyro.reparam import funnels
from .resume import Saved, identity, settings_of
from .starting import COLD, WARMUP, Start, begin, begin_model

__all__ = ["run"]


def run(
    model: Callable[..., Any],
    *args: Any,
    kernel: Kernel | None = None,
    chains: int = 128,
    warmup: int | None = None,
    draws: int = 250,
    thin: int = 1,
    seed: int | None = None,
    init: Initial | dict[str, Tensor] | Tensor = "uniform",
    superchains: int | None = None,
    metric: Metric = "auto",
    sites: Iterable[str] | None = None,
    noncentered: Iterable[str] | bool | None = None,
    base: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    max_rhat: float = 1.01,
    min_ess: float = 400.0,
    dense: bool | None = None,
    **kwargs: Any,
) -> Draws:
    r"""Draw from the posterior of a Pyro model, or from a log density, with many chains at once.

    Optimisation from all initial points finds the modes and their curvature. Chains start from
    normal approximations there, weighted by importance, unless initial points are given. Warm-up
    then adapts the step size, the metric and the length of trajectories from all chains, as far
    as the kernel has them. Under ``torchrun`` each process runs its share of the chains, adapts
    with them, and gets all draws.

    Arguments:
        model: A Pyro model, a :class:`Potential`, or a log density: a function of positions with
            shape :math:`(C, *)`, for which `init` is a tensor.
        args: The model's arguments.
        kernel: The kernel; :class:`ChEES` by default.
        chains: The number of chains :math:`C`.
        warmup: The number of steps of warm-up; by default 100 where chains start at modes that
            were found, else 300.
        draws: The number of draws :math:`S` of each chain.
        thin: The number of steps per draw.
        seed: The seed; by default drawn from torch's generator, which is left alone otherwise.
        init: The initial points: `"uniform"`, `"prior"`, `"median"`, `"importance"` or values by
            name (:meth:`Potential.initial`); for a log density, positions with shape
            :math:`(C, *)`, or a dictionary of them under :class:`Gibbs`. Chains start exactly at
            values that are given.
        superchains: The number of groups of chains that share an initial point, for the nested
            :math:`\hat R`.
        metric: The form of the scale: `"diagonal"` standard deviations, a `"dense"` Cholesky
            factor, `"low_rank"` directions over a diagonal, or `"auto"`, which is dense up to 100
            dimensions and of low rank above.
        sites: The sites whose draws are kept; all by default.
        noncentered: The sites to sample as :math:`z = (\theta - m) / s`: names, or True for all
            location-scale sites whose scale is latent, for hierarchical models whose data tell
            little of each :math:`\theta` and which make funnels otherwise. By default they are
            standardised if the posterior has no mode as it stands.
        base: Whether sites with a frozen flow move to its base. Default: if the kernel uses
            gradients.
        checkpoint: A folder. The run is written there from its first step on, every second or
            more so that it costs a few percent at most, at the end and when interrupted, in
            warm-up too; called again with the same folder and arguments, it goes on, and gives the
            draws that it would have given. Only `draws` may grow.
        progress: Whether to show a progress bar.
        max_rhat: The R-hat above which a warning names a site. Up to twice its excess over 1 is
            let pass where the autocorrelation of short chains explains it.
        min_ess: The effective sample size below which a warning names a site.
        dense: Deprecated; `metric="dense"` or `"diagonal"`.
        kwargs: The model's keyword arguments.

    Returns:
        The draws.

    Raises:
        ValueError: If a number is not positive, no initial point has a finite density, or the
            folder holds another run: the message names the site, or what differs.
        OSError: If the folder cannot be written.
        CheckpointError: If what it holds is damaged, or another process writes it.

    Warns:
        ConvergenceWarning: If draws may not follow the posterior.
        CheckpointWarning: If the run could not be written on the way or at the end.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> draws = run(model, torch.tensor([1.0, 2.0, 3.0]), chains=64, seed=0, progress=False)
        >>> draws.samples["mean"].shape
        torch.Size([64, 250])
        >>> abs(float(draws.samples["mean"].mean()) - 1.5) < 0.03
        True
    """
    check_run_options(kwargs, model)
    check_numbers(chains=chains, draws=draws, thin=thin)
    check_options(warmup, chains, superchains)
    metric = metric_of(metric, dense)
    kernel = ChEES() if kernel is None else kernel
    check_kernel(kernel)
    own = isinstance(init, Tensor) or isinstance(kernel, Gibbs)
    chains = check_initial(init) if own else chains
    sites, noncentered = listed(sites), listed(noncentered)
    rank, world, device = join(None, torch.device("cpu"))
    share = share_of(chains, superchains, world)
    settings = identity(model, args, kwargs, kernel)
    settings |= settings_of(chains=chains, warmup=warmup, thin=thin, metric=metric, init=init)
    settings |= settings_of(superchains=superchains, sites=sites, noncentered=noncentered)
    settings |= settings_of(base=base, processes=world)
    folder = None if checkpoint is None else Path(checkpoint) / f"chains-{rank}"
    with contextlib.ExitStack() as stack:
        if folder is not None:
            probe(folder)
            stack.enter_context(claim(folder))
        saved = resumed(folder, settings, seed, device)
        start = time.perf_counter() - (0.0 if saved is None else saved.seconds)
        seed = agree(seed_for(seed, saved), world, device)
        stack.enter_context(torch.random.fork_rng())
        torch.manual_seed(mix(seed, 0, rank))
        fresh = saved is None
        if own:
            position: Any = part(init, slice(rank * share, (rank + 1) * share))
            begun = begin(model, position, kernel, metric, warmup != 0 and fresh)
        else:
            begun = begin_model(
                model if isinstance(model, Potential) else lambda: model(*args, **kwargs),
                kernel,
                "uniform" if isinstance(init, Tensor) else init,
                share=share,
                groups=share if superchains is None else superchains // world,
                metric=metric,
                base=kernel.gradient if base is None else base,
                noncentered=noncentered if saved is None else saved.standardized,
                optimize=warmup != 0 and fresh,
                decide=lambda flag: bool(agree(int(flag), world, device)),
            )
        if saved is not None:
            begun.modes = saved.modes
        found = WARMUP if begun.found else COLD
        steps = saved.steps if saved is not None else found if warmup is None else warmup
        target = begun.target
        task = Chains(begun, seed, rank, steps, draws, thin, metric, settings, start)
        store, stats, last = task.go(folder, saved, progress)
        remarks = remarks_of(begun.modes, target, store)
        if world > 1:
            store = {name: gather(value, world, device) for name, value in store.items()}
            stats = {name: gather(value, world, device) for name, value in stats.items()}
        values, latent, moved = values_of(begun, store, sites)
        seconds = time.perf_counter() - start
    about = superchains, last, seconds, remarks, begun.standardized
    result = Draws(values, stats, latent, moved, *about)
    if rank == 0:
        warn(result, target, max_rhat, min_ess)
    return result


def warn(draws: Draws, target: Any, max_rhat: float, min_ess: float) -> None:
    """Warn of what is wrong with draws, and say what to do."""
    wrong = draws.problems(max_rhat, min_ess)
    if wrong:
        wrong += way_out(target, draws.standardized)
        warnings.warn("\n".join(wrong), ConvergenceWarning, stacklevel=outside())


def resumed(
    folder: Path | None, settings: dict[str, str], seed: int | None, device: torch.device
) -> Saved | None:
    """Return the interrupted run of a folder, if every process has one, and that is this one.

    Raises:
        ValueError: If it holds another run.
    """
    saved = Saved.find(folder)
    if saved is not None:
        given = saved.seed if seed is None else seed
        saved.check({**settings, "seed": str(given)})
    there = mean_over(torch.tensor(float(saved is not None), device=device))
    return saved if float(there) == 1 else None


def seed_for(seed: int | None, saved: Saved | None) -> int:
    """Return seed that is given, that of an interrupted run, or a new one of torch's generator."""
    if seed is not None:
        return seed
    return seed_of(None) if saved is None else saved.seed


def listed(names: Any) -> Any:
    """Names as a list, which can be read more than once."""
    return names if names is None or isinstance(names, bool) else list(names)


def saturates(target: Any, flat: Tensor) -> bool:
    """Whether far along a direction the type of a site no longer resolves its values."""
    if not isinstance(target, Potential):
        return False
    unit = flat.to(target.point) / flat.abs().max()
    return bool(target.saturated(torch.stack([100 * unit, -100 * unit])))


def way_out(target: Any, standardized: list[str]) -> list[str]:
    """Return advice on funnels, if a model has any."""
    names = funnels(target.model) if isinstance(target, Potential) else []
    names = [name for name in names if name not in standardized]
    if not names:
        return []
    return [
        f"sites with an unknown scale, as {', '.join(names)}, make funnels; "
        f"run(..., noncentered=True) standardises them."
    ]


def check_options(warmup: int | None, chains: int, superchains: int | None) -> None:
    if warmup is not None and warmup < 0:
        raise ValueError(f"Expected `warmup` of at least 0, got {warmup}.")
    if superchains is not None and (superchains < 2 or chains % superchains):
        raise ValueError(f"Expected `superchains` >= 2 that divide {chains}, got {superchains}.")


def metric_of(metric: Metric, dense: bool | None) -> Metric:
    """Return the metric, which had another name once."""
    if dense is not None:
        metric = "dense" if dense else "diagonal"
        message = f"`dense` is deprecated: use metric={metric!r}."
        warnings.warn(message, DeprecationWarning, stacklevel=outside())
    metric_kind(metric, 1)
    return metric


def values_of(
    begun: Start, store: dict[str, Tensor], sites: Iterable[str] | None
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return draws of sites, the latent ones, and those moved to the base of a flow."""
    target = begun.target
    if not isinstance(target, Potential):
        return store, list(store), []
    values = target.unravel(store["x"], sites)
    hidden = {f"{name}_decentered" for name in begun.standardized}
    values = {name: x for name, x in values.items() if name not in hidden}
    known = {*target.layout, *target.moved, *begun.standardized}
    return values, [name for name in values if name in known], target.moved


def check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"Expected `{name}` of at least 1, got {value}.")


def share_of(chains: int, superchains: int | None, world: int) -> int:
    """Return the number of chains of each process."""
    if chains % world:
        raise ValueError(f"Expected chains that divide into {world} processes, got {chains}.")
    if superchains is not None and superchains % world:
        raise ValueError(
            f"Expected superchains that divide into {world} processes, got {superchains}."
        )
    return chains // world


def remarks_of(modes: Modes | None, target: Any, store: dict[str, Tensor]) -> tuple[str, ...]:
    """Problems that optimisation found before the chains ran."""
    remarks = []
    if modes is not None and modes.flat is not None and not saturates(target, modes.flat):
        size = modes.flat.abs() / modes.flat.abs().max()
        names = [f"x[{k}]" for k in (size > 0.05).nonzero()[:, 0].tolist()]
        if isinstance(target, Potential):
            layout = target.layout.items()
            names = [n for n, s in layout if bool((size[s.start : s.stop] > 0.05).any())]
        remarks.append(
            f"the posterior is improper along {', '.join(names)}: its density does not fall in "
            f"that direction, and draws mean nothing there. Give a proper prior, or drop a "
            f"parameter that the data do not determine."
        )
    if isinstance(target, Potential):
        names = target.saturated(store["x"].flatten(0, 1))
        if names:
            remarks.append(
                f"draws of {', '.join(names)} reach the edge of what their type resolves near the "
                f"boundary of the support, and mass beyond it is lost. Work in float64, or sample "
                f"a transformed variable."
            )
    if modes is not None and len(modes.position) and "x" in store:
        missed = unvisited(store["x"], modes.position, modes.factor, modes.log_mass, target)
        remarks += [] if missed is None else [missed]
    return tuple(remarks)


def check_initial(init: Any) -> int:
    """Return the number of chains of positions that are given."""
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
    """Return the chains of all processes."""
    own = value.contiguous().to(device)
    parts = [torch.empty_like(own) for _ in range(world)]
    torch.distributed.all_gather(parts, own)
    return torch.cat(parts).to(value.device)
