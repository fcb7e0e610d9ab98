"""Errors for argument names of other libraries."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .kernels.base import Kernel

__all__ = ["check_kernel", "check_options", "check_run_options", "check_vector_kernel"]

KERNELS = ("ChEES", "HMC", "MALA", "ULA", "SGLD", "Metropolis", "EllipticalSlice")
OTHERS = {  # kernels whose positions are no vectors of a Pyro model
    "AnnealedULA": "targets a sequence of scores",
    "BlockGibbs": "updates blocks of units",
    "Checkerboard": "updates a lattice",
    "Direct": "updates one block",
    "Gibbs": "updates a dictionary of positions",
    "GraphGibbs": "updates the units of a graph",
    "ParallelTempering": "keeps replicas at several temperatures",
}
SAME = {
    "chains": "num_chains n_chains nchains chain_count num_walkers nwalkers",
    "draws": (
        "num_samples n_samples nsamples num_draws n_draws ndraws num_results iter num_iter n_iter "
        "iter_sampling iterations samples"
    ),
    "warmup": (
        "num_warmup n_warmup nwarmup warmup_steps num_warmup_steps iter_warmup warm_up tune n_tune "
        "num_burnin_steps burn_in burnin n_burn num_burnin adapt_steps"
    ),
    "thin": "thinning n_thin num_thin thin_by",
    "seed": "random_seed rng_key rng_seed random_state",
    "init": (
        "initial_params init_params init_strategy initial_values initvals inits initial_state "
        "initial_point"
    ),
    "progress": "progress_bar progressbar disable_progbar show_progress show_progress_bar",
    "dense": "full_mass dense_mass",
    "kernel": "sampler step method algorithm",
}
NAMES = {name: own for own, names in SAME.items() for name in names.split()}
WAYS = {
    **dict.fromkeys(
        ("step_size", "target_accept", "target_accept_prob", "adapt_step_size", "max_tree_depth"),
        "It is of the kernel: `kernel=HMC(step_size=..., steps=...)` or `ChEES(...)`.",
    ),
    **dict.fromkeys(
        ("mp_context", "cores", "n_jobs", "num_cores", "chain_method", "parallel_chains"),
        "All chains run at once, in one process; torchrun spreads them over several.",
    ),
    **dict.fromkeys(
        ("jit_compile", "ignore_jit_warnings", "jit_options"),
        "Operations are recorded without asking; `potential(model, compile=False)` does not.",
    ),
    "hook_fn": "Step the kernel yourself, by `kernel.init` and `kernel.step`.",
    "transforms": "Sites move to real vectors by the bijections of their supports.",
    "disable_validation": "Distributions are not validated while chains run.",
    "max_plate_nesting": "It is found from the model.",
    "save_params": "Take the sites of interest from the draws.",
    "potential_fn": "Give a log density, a function of positions, in place of the model.",
}


def check_kernel(kernel: Any, name: str = "kernel") -> None:
    """Refuses what is no kernel of this package, and says which there are.

    Arguments:
        kernel: What was given.
        name: The name of the argument.

    Raises:
        TypeError: If it is a name, a class, a kernel of Pyro or anything else.

    Example:
        >>> check_kernel("hmc")
        Traceback (most recent call last):
            ...
        TypeError: Expected a kernel of probgen.mcmc as `kernel`, got 'hmc'. Take HMC(), made ...
    """
    if isinstance(kernel, Kernel):
        return
    given = kernel if isinstance(kernel, (str, type)) else type(kernel)
    title = given if isinstance(given, str) else given.__name__
    ours = {kind.lower(): kind for kind in (*KERNELS, *OTHERS)}
    ours |= {"nuts": "ChEES", "randomwalkkernel": "Metropolis", "mh": "Metropolis"}
    near = ours.get(title.lower())
    what = f"the class {title}" if isinstance(kernel, type) else repr(kernel)
    if not isinstance(kernel, (str, type)) and given.__module__.startswith("pyro."):
        what = f"Pyro's {title}, which runs under pyro.infer.MCMC"
    way = f"Take {near}(), made with its arguments" if near else "Take one made with its arguments"
    raise TypeError(
        f"Expected a kernel of probgen.mcmc as `{name}`, got {what}. {way}; there are "
        f"{', '.join(f'{kind}()' for kind in KERNELS)} for models of Pyro."
    )


def check_vector_kernel(kernel: Any) -> None:
    """Refuses a kernel that does not move the real vector of a Pyro model.

    Raises:
        TypeError: If it is no kernel, or one with other positions.
    """
    check_kernel(kernel)
    for kind in type(kernel).__mro__:
        if kind.__name__ in OTHERS:
            raise TypeError(
                f"Expected a kernel whose position is one vector for each chain, got "
                f"{type(kernel).__name__}, which {OTHERS[kind.__name__]}. Run it by its own "
                f"`init` and `step`, or take one of {', '.join(f'{k}()' for k in KERNELS)}."
            )


def check_run_options(options: dict[str, Any], model: Callable[..., Any] | None = None) -> None:
    """Refuses arguments of other libraries given to `run` as if they were the model's.

    Arguments:
        options: The keyword arguments that `run` would hand to the model.
        model: The model, whose own parameters are let through.

    Raises:
        TypeError: If there is one that `run` has by another name, or that has another way out.

    Example:
        >>> check_run_options({"num_chains": 4})
        Traceback (most recent call last):
            ...
        TypeError: `run` has no argument `num_chains`. It is called `chains`.
    """
    check_options("run", options, own_of(model))


def check_options(where: str, options: dict[str, Any], known: frozenset[str] = frozenset()) -> None:
    """Refuses arguments of other libraries by name, with the way out.

    Arguments:
        where: The function or class that has no such arguments.
        options: The arguments.
        known: Names that are let through.

    Raises:
        TypeError: If there is one.
    """
    for name in options:
        if name in known or "*" in known:
            continue
        if name in NAMES:
            raise TypeError(f"`{where}` has no argument `{name}`. It is called `{NAMES[name]}`.")
        if name in WAYS:
            raise TypeError(f"`{where}` has no argument `{name}`. {WAYS[name]}")


def own_of(model: Callable[..., Any] | None) -> frozenset[str]:
    """Return the names of a model's parameters; a star if it takes any."""
    if model is None:
        return frozenset()
    try:
        parameters = inspect.signature(model).parameters
    except (TypeError, ValueError):
        return frozenset("*")
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return frozenset(parameters) | (frozenset("*") if any_name else frozenset())
