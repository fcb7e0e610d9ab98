"""Adapters between these kernels and Pyro's `MCMC`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.mcmc.api import AbstractMCMC
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from .adaptation import warm_up
from .arguments import check_options, check_vector_kernel
from .draws import Draws
from .initial import Initial
from .kernels.base import Kernel
from .kernels.hmc import ChEES
from .pathfinder import prepare
from .pyro.model_run import unchecked
from .pyro.potential import Potential, potential
from .sampling import run

__all__ = ["BatchedMCMC", "PyroKernel"]

PATHS = 16  # of optimisation, one of whose ends is where a chain starts


class PyroKernel(MCMCKernel):
    """A kernel of this package under Pyro's `MCMC`, with one chain.

    Draws come back constrained, as from Pyro's own kernels.

    Arguments:
        kernel: The kernel.
        model: The Pyro model.
        init: The initial point, as of :meth:`Potential.initial`.
        base: Whether sites with a frozen flow move to its base. Default: if the kernel uses
            gradients.
        options: None. Arguments of Pyro's kernels are refused by name, with the way out.

    Raises:
        TypeError: If the kernel is none, or not one that moves a vector; if there are options.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import MCMC
        >>> from probgen.mcmc import MALA
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> kernel = PyroKernel(MALA(), model)
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=20, disable_progbar=True)
        >>> mcmc.run(torch.tensor(0.5))
        >>> mcmc.get_samples()["scale"].shape
        torch.Size([20])
    """

    def __init__(
        self,
        kernel: Kernel,
        model: Callable[..., Any],
        *,
        init: Initial | dict[str, Tensor] = "uniform",
        base: bool | None = None,
        **options: Any,
    ) -> None:
        check_vector_kernel(kernel)
        check_options("PyroKernel", options)
        if options:
            raise TypeError(f"`PyroKernel` has no argument `{next(iter(options))}`.")
        self.kernel, self.model, self.init = kernel, model, init
        self.base = kernel.gradient if base is None else base
        self.transforms: dict[str, Any] = {}  # draws are constrained already
        self.accepted, self.count = 0.0, 0
        self.diverged: list[int] = []
        self.start: dict[str, Tensor] | None = None

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        self.target = potential(self.model, *args, base=self.base, **kwargs)
        free = isinstance(self.init, str) and self.start is None and warmup_steps > 0
        count = PATHS if free else 1
        position = self.target.initial(self.init, count, gradient=self.kernel.gradient)
        if self.start is not None:
            flat = [self.start[name].reshape(-1) for name in self.target.layout]
            position = torch.cat(flat).to(position)[None]
        kernel: Any = self.kernel
        if free:
            kernel, position, _ = prepare(kernel, position, self.target, chains=1)
        self.adapted: Any = kernel
        self.state = kernel.init(position, self.target)
        self.warm = warm_up(kernel, self.state, self.target, warmup_steps)
        self.left = warmup_steps
        self.accepted, self.count, self.diverged = 0.0, 0, []

    @property
    def initial_params(self) -> dict[str, Tensor]:
        return self.values()

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        self.start = params

    def values(self) -> dict[str, Tensor]:
        target: Potential = self.target
        found = target.evaluate(
            "values", lambda x: target.map(target.values, x), self.state.position
        )
        names = [name for name in found if name in target.layout or name in target.moved]
        return {name: found[name][0] for name in names}

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take one step from the chain's own state."""
        if self.left:
            self.left -= 1
            self.adapted, self.state, _ = next(self.warm)
        else:
            self.state, info = self.adapted.step(self.state, self.target)
            self.accepted += float(info.acceptance)
            if bool(info.diverged):
                self.diverged.append(self.count)
            self.count += 1
        return self.values()

    def logging(self) -> dict[str, str]:
        rate = self.accepted / max(self.count, 1)
        size = getattr(self.adapted, "step_size", None)
        shown = {"step size": f"{float(size):.2e}"} if size is not None else {}
        return {**shown, "acc. prob": f"{rate:.3f}"}

    def diagnostics(self) -> dict[str, Any]:
        return {
            "divergences": self.diverged,
            "acceptance rate": self.accepted / max(self.count, 1),
        }


class BatchedMCMC(AbstractMCMC):
    """Many chains at once, with the interface of Pyro's `MCMC`.

    Arguments:
        kernel: The kernel; :class:`ChEES` by default.
        model: The Pyro model.
        num_samples: The number of draws of each chain.
        warmup_steps: The number of steps of warm-up; by default as of :func:`run`.
        chains: The number of chains; `num_chains` is another name.
        disable_progbar: Whether to hide the progress bar.
        num_chains: The number of chains, by Pyro's name.
        initial_params: Initial points by site, in real numbers as for Pyro's `MCMC`, with chains
            along the leading axis.
        save_params: The names of the sites whose draws are given; by default all latent ones.
        options: Further arguments of :func:`probgen.mcmc.run`. Those of Pyro's `MCMC` that have no
            meaning here are refused by name, with the way out.

    Raises:
        TypeError: If the kernel is none, or not one that moves a vector; if an option is unknown.
        ValueError: If `chains` and `num_chains` differ.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> mcmc = BatchedMCMC(ChEES(), model, num_samples=20, chains=8, disable_progbar=True)
        >>> mcmc.run(torch.tensor(0.5))
        >>> mcmc.get_samples()["scale"].shape
        torch.Size([160])
        >>> mcmc.get_samples(group_by_chain=True)["scale"].shape
        torch.Size([8, 20])
    """

    draws: Draws

    def __init__(
        self,
        kernel: Kernel | None,
        model: Callable[..., Any],
        num_samples: int = 250,
        warmup_steps: int | None = None,
        chains: int | None = None,
        disable_progbar: bool = False,
        *,
        num_chains: int | None = None,
        initial_params: dict[str, Tensor] | None = None,
        save_params: list[str] | None = None,
        **options: Any,
    ) -> None:
        own = ChEES() if kernel is None else kernel
        check_vector_kernel(own)
        if options.get("disable_validation") is True:  # as here
            del options["disable_validation"]
        known = frozenset(inspect.signature(run).parameters) - {"model", "args", "kwargs"}
        given = {name for name, value in options.items() if value is not None or name in known}
        options = {name: options[name] for name in options if name in given}
        check_options("BatchedMCMC", options, known)
        unknown = sorted(set(options) - known)
        if unknown:
            raise TypeError(f"`BatchedMCMC` has no argument `{unknown[0]}`.")
        if chains is not None and num_chains is not None and chains != num_chains:
            raise ValueError(
                f"Expected one number of chains, got chains={chains} and num_chains={num_chains}."
            )
        if initial_params is not None and "init" in options:
            raise TypeError("Expected `initial_params` or `init`, got both.")
        count = next((n for n in (chains, num_chains) if n is not None), 128)
        base = options.get("base")
        super().__init__(PyroKernel(own, model, base=base), count, {})
        self.model, self.num_samples, self.warmup_steps = model, num_samples, warmup_steps
        self.progress, self.options = not disable_progbar, options
        self.initial_params, self.save_params = initial_params, save_params
        self._args: tuple[Any, ...] = ()  # where ArviZ looks for them
        self._kwargs: dict[str, Any] = {}

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Run the chains, given the model's arguments."""
        self._args, self._kwargs = args, kwargs
        options, kernel = dict(self.options), self.kernel.kernel
        target = potential(self.model, *args, base=self.kernel.base, **kwargs)
        if self.initial_params is not None:
            options["init"] = constrained(target, self.initial_params, self.num_chains)
        self.draws = run(
            target,
            kernel=kernel,
            chains=self.num_chains,
            warmup=self.warmup_steps,
            draws=self.num_samples,
            progress=self.progress,
            **options,
        )

    def get_samples(
        self, num_samples: int | None = None, group_by_chain: bool = False
    ) -> dict[str, Tensor]:
        """Return the draws of the latent sites.

        Arguments:
            num_samples: How many, drawn with replacement; all by default.
            group_by_chain: Whether to keep the chains apart, along the leading axis.
        """
        kept = self.draws.latent if self.save_params is None else self.save_params
        latent = {name: self.draws.samples[name] for name in kept}
        if num_samples is not None:
            axis = 1 if group_by_chain else 0
            latent = latent if group_by_chain else {n: x.flatten(0, 1) for n, x in latent.items()}
            count = next(iter(latent.values())).shape[axis]
            chosen = torch.randint(count, (num_samples,))
            return {n: x.index_select(axis, chosen.to(x.device)) for n, x in latent.items()}
        return latent if group_by_chain else {n: x.flatten(0, 1) for n, x in latent.items()}

    def diagnostics(self) -> dict[str, Any]:
        """Effective sample sizes and R-hat of each site, divergences and acceptance by chain."""
        ess, rhat = self.draws.ess(), self.draws.rhat()
        found: dict[str, Any] = {n: {"n_eff": ess[n], "r_hat": rhat[n]} for n in ess}
        width = len(str(self.num_chains - 1))  # so that their order is that of the alphabet
        names = [f"chain {k:0{width}}" for k in range(self.num_chains)]
        diverged, rate = self.draws.stats["diverged"], self.draws.stats["acceptance"].mean(1)
        found["divergences"] = {
            name: row.nonzero()[:, 0].tolist() for name, row in zip(names, diverged)
        }
        found["acceptance rate"] = dict(zip(names, rate.tolist()))
        return found

    def summary(self, prob: float = 0.9) -> None:
        """Print a table of the draws.

        Arguments:
            prob: For Pyro's interface; the table shows the central 90 %.
        """
        print(self.draws.summary())


def constrained(target: Potential, params: dict[str, Tensor], chains: int) -> dict[str, Tensor]:
    """Return initial values of sites from unconstrained values by site.

    Raises:
        ValueError: If a site is missing or unknown, or numbers have another shape.
    """
    if set(params) != set(target.layout):
        raise ValueError(
            f"Expected `initial_params` of the sites {list(target.layout)}, got {list(params)}."
        )
    parts = []
    for name, site in target.layout.items():
        value = torch.as_tensor(params[name], dtype=target.dtype, device=target.device)
        if value.shape != (chains, *site.shape):
            raise ValueError(
                f"Expected `initial_params` of {name!r} with shape {(chains, *site.shape)}, as "
                f"many as chains, got {tuple(value.shape)}."
            )
        parts.append(value.reshape(chains, -1))

    def values(u: Tensor) -> dict[str, Tensor]:
        place = target.at(u)
        target.run(place)
        return {name: place.values[name] for name in target.layout}

    with unchecked(), torch.no_grad():
        return target.map(values, torch.cat(parts, 1))
