"""Draws of many chains, their summary and storage."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from pyro.infer import Predictive
from torch import Tensor

from ..core.checkpoint import CheckpointError
from ..core.folders import read, write
from . import diagnostics
from .convergence import HOTTER, TEMPER, problems
from .kernels.parallel_tempering import ParallelTempering
from .pyro.discrete_sites import infer_discrete

__all__ = ["Draws", "Summary"]

ROWS = 40  # of a summary that are printed
SITES = 6  # of draws that are named
LISTS = ("latent", "moved", "remarks", "standardized")


class Row(NamedTuple):
    """The summary of one element of a site."""

    name: str
    mean: float
    sd: float
    low: float
    median: float
    high: float
    mcse: float
    ess_bulk: float
    ess_tail: float
    rhat: float


class Summary(NamedTuple):
    """A table of numbers per element of each site, which prints itself.

    Arguments:
        rows: The rows: mean, standard deviation, quantiles of 5, 50 and 95 %, the standard error
            of the mean, bulk and tail effective sample size, and R-hat. Rows that have not
            converged come first, the worst at the top.
        notes: Problems found, the worst first, then remarks.
    """

    rows: list[Row]
    notes: list[str]

    def __repr__(self) -> str:  # which notebooks show
        return str(self)

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        names = ("mean", "sd", "5 %", "50 %", "95 %", "mcse", "ess", "tail ess", "r-hat")
        lines = [" " * width + "".join(f"{name:>11}" for name in names)]
        for row in self.rows[:ROWS]:
            numbers = "".join(shown(value, row.sd) for value in row[1:7])
            lines.append(f"{row.name:{width}}{numbers}{row[7]:11.0f}{row[8]:11.0f}{row[9]:11.3f}")
        if len(self.rows) > ROWS:
            lines.append(f"and {len(self.rows) - ROWS} more")
        return "\n".join(lines + self.notes)


@dataclass(frozen=True)
class Draws:
    """Draws of many chains.

    Attributes:
        samples: For each site, values with shape `(chains, draws, *event)`; of a log density that
            is no Pyro model, under the name `"x"`.
        stats: For each draw, with shape `(chains, draws)`: `"log_density"`, `"acceptance"`,
            `"diverged"`, and the number of `"steps"` of the trajectory that led to it.
        latent: The sites that are latent, not deterministic.
        moved: The sites that were sampled in the base of a flow.
        superchains: The number of groups of chains that started at one point, if any.
        kernel: The kernel as adapted.
        seconds: How long the run took.
        remarks: Problems found while the chains ran.
        standardized: The sites that were sampled in standardised form.
    """

    samples: dict[str, Tensor]
    stats: dict[str, Tensor]
    latent: list[str]
    moved: list[str]
    superchains: int | None = None
    kernel: Any = None
    seconds: float = 0.0
    remarks: tuple[str, ...] = ()
    standardized: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        sizes = [f"{name} {tuple(x.shape[2:])}" for name, x in self.samples.items()]
        rest = [f"{len(sizes) - SITES} more"] if len(sizes) > SITES else []
        chains, draws = next(iter(self.samples.values())).shape[:2]
        sites = ", ".join([*sizes[:SITES], *rest])
        return f"Draws({chains} chains of {draws} draws: {sites})"

    def ess(self, kind: Literal["bulk", "tail"] = "bulk") -> dict[str, Tensor]:
        """Return the effective sample size of each element of each site.

        Arguments:
            kind: `"bulk"` or `"tail"`.
        """
        if kind not in ("bulk", "tail"):
            raise ValueError(f"Expected `kind` 'bulk' or 'tail', got {kind!r}.")
        measure = diagnostics.ess if kind == "bulk" else diagnostics.ess_tail
        return {name: measure(x) for name, x in self.samples.items()}

    def rhat(self) -> dict[str, Tensor]:
        """Return the rank-normalised split R-hat of each element of each site."""
        return {name: diagnostics.rhat(x) for name, x in self.samples.items()}

    def nested_rhat(self) -> dict[str, Tensor]:
        """Return the nested R-hat of each element of each site, for chains in superchains.

        Raises:
            ValueError: If the run had no superchains.
        """
        if self.superchains is None:
            raise ValueError("Expected a run with `superchains`, got one without.")
        groups = self.superchains
        return {name: diagnostics.nested_rhat(x, groups) for name, x in self.samples.items()}

    def summary(self, max_rhat: float = 1.01, min_ess: float = 400.0) -> Summary:
        """Summarize all sites in a table.

        Elements that never vary, or are not finite, have no row.

        Arguments:
            max_rhat: The R-hat above which a row counts as not converged.
            min_ess: The effective sample size below which it does.
        """
        rows = []
        for name, x in self.samples.items():
            flat = x.double().reshape(*x.shape[:2], -1)
            pooled = flat.flatten(0, 1)
            columns = [pooled.mean(0), pooled.std(0)]
            columns += [diagnostics.quantile(pooled, q) for q in (0.05, 0.5, 0.95)]
            measures = (diagnostics.mcse, diagnostics.ess, diagnostics.ess_tail, diagnostics.rhat)
            few = torch.full_like(columns[0], torch.nan)  # draws, of which nothing can be told
            columns += [few if flat.shape[1] < 4 else measure(flat) for measure in measures]
            table = torch.stack(columns, 1).tolist()
            fixed = ((pooled == pooled[0]) | ~torch.isfinite(pooled)).all(0).tolist()
            for index, row, constant in zip(names(x.shape[2:]), table, fixed, strict=True):
                if not constant:
                    rows.append(Row(f"{name}{index}", *row))
        bad = [not r.rhat <= max_rhat or not min(r.ess_bulk, r.ess_tail) >= min_ess for r in rows]
        worst = sorted(
            (r for r, b in zip(rows, bad) if b), key=lambda r: -(r.rhat + 1 / r.ess_bulk)
        )
        rest = [r for r, b in zip(rows, bad) if not b]
        return Summary(worst + rest, self.notes(max_rhat, min_ess))

    def problems(self, max_rhat: float = 1.01, min_ess: float = 400.0) -> list[str]:
        """Say what is wrong with the draws; nothing if nothing was found.

        Arguments:
            max_rhat: The greatest R-hat that is not reported.
            min_ess: The least effective sample size that is not reported.
        """
        latent = {name: x for name, x in self.samples.items() if name in self.latent}
        tempered = isinstance(self.kernel, ParallelTempering)
        found = problems(
            latent or self.samples,
            self.stats,
            max_steps=getattr(self.kernel, "max_steps", None),
            max_diverged=0.01 if tempered else 0.001,
            way_out=HOTTER if tempered else TEMPER,
            max_rhat=max_rhat,
            min_ess=min_ess,
        )
        return [*self.remarks, *found]

    def notes(self, max_rhat: float = 1.01, min_ess: float = 400.0) -> list[str]:
        """Problems found, then remarks.

        Arguments:
            max_rhat: The greatest R-hat that is not reported.
            min_ess: The least effective sample size that is not reported.
        """
        notes = self.problems(max_rhat, min_ess)
        if self.kernel is not None and not self.kernel.exact:
            name = type(self.kernel).__name__
            notes.append(f"{name} tests no proposal: draws have a bias that grows with its step")
        if self.superchains is not None:
            nested = torch.cat([v.reshape(-1) for v in self.nested_rhat().values()])
            nested = nested[torch.isfinite(nested)]
            if len(nested):
                most = float(nested.max())
                notes.append(f"nested r-hat of {self.superchains} superchains: at most {most:.4f}")
        if self.moved:
            notes.append(f"sampled in the base of their flow: {', '.join(self.moved)}")
        if self.standardized:
            notes.append(f"sampled in standardised form: {', '.join(self.standardized)}")
        return notes

    def flat(self) -> dict[str, Tensor]:
        """All draws of all chains, with shape `(chains * draws, *event)`."""
        return {name: x.flatten(0, 1) for name, x in self.samples.items()}

    def predictive(
        self, model: Callable[..., Any], *args: Any, draws: int | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Draws from a model given the draws of its latent sites.

        Discrete sites that were summed out are drawn from their law given the others, as for new
        data.

        Arguments:
            model: The Pyro model.
            args: Its arguments, without the data that are to be predicted.
            draws: How many, spread evenly over all chains and draws; all by default.
            kwargs: Its keyword arguments.

        Returns:
            Values of the other sites, with shape `(draws, *event)`.
        """
        return Predictive(model, self.chosen(draws))(*args, **kwargs)

    def infer_discrete(
        self, model: Callable[..., Any], *args: Any, draws: int | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Draw the discrete sites that were summed out, given the data and the other sites.

        Arguments:
            model: The Pyro model.
            args: Its arguments, with the data.
            draws: How many, spread evenly over all chains and draws; all by default.
            kwargs: Its keyword arguments.

        Returns:
            Values of the discrete sites, with shape `(draws, *)`.
        """
        return infer_discrete(model, self.chosen(draws), *args, **kwargs)

    def chosen(self, draws: int | None) -> dict[str, Tensor]:
        """Draws of the latent sites of all chains, or some of them, evenly spread."""
        values = {name: self.samples[name].flatten(0, 1) for name in self.latent}
        count = len(next(iter(values.values())))
        if draws is None:
            return values
        index = torch.linspace(0, count - 1, min(draws, count)).round().long()
        return {name: value[index] for name, value in values.items()}

    def to_arviz(self) -> Any:
        """Return the draws as an `InferenceData` of ArviZ.

        Raises:
            ImportError: If ArviZ is not installed.
        """
        try:
            import arviz
        except ImportError:
            raise ImportError(
                'Expected ArviZ, which is not installed. Try: pip install "probgen[arviz]"'
            ) from None
        posterior = {name: x.cpu().numpy() for name, x in self.samples.items()}
        other = {"log_density": "lp", "acceptance": "acceptance_rate", "diverged": "diverging"}
        stats = {other.get(n, n): x.cpu().numpy() for n, x in self.stats.items()}
        return arviz.from_dict(posterior=posterior, sample_stats=stats)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the draws to a folder, which :meth:`load` reads.

        Arguments:
            path: The folder, made if it does not exist.
        """
        tensors = {f"samples.{name}": x for name, x in self.samples.items()}
        tensors |= {f"stats.{name}": x for name, x in self.stats.items()}
        content: dict[str, Any] = {name: list(getattr(self, name)) for name in LISTS}
        content |= {"superchains": self.superchains, "seconds": self.seconds}
        content |= {"sites": list(self.samples), "measures": list(self.stats)}
        write(path, tensors, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Draws:
        """Read draws that :meth:`save` wrote; the kernel is not among them.

        Arguments:
            path: The folder.

        Raises:
            CheckpointError: If it is damaged, or holds something else.
        """
        tensors, content = read(path)
        try:
            samples = {name: tensors[f"samples.{name}"] for name in content["sites"]}
            stats = {n[6:]: x for n, x in tensors.items() if n.startswith("stats.")}
            stats = {name: stats[name] for name in content.get("measures", stats)}
            lists = {name: strings(content.get(name, [])) for name in LISTS}
            groups, seconds = content["superchains"], float(content["seconds"])
            sizes = {x.shape[:2] for x in (*samples.values(), *stats.values())}
            chains, _ = sizes.pop()
            grouped = groups is None or (int(groups) == groups > 1 and chains % groups == 0)
            if sizes or not samples or not grouped or not set(lists["latent"]) <= set(samples):
                raise ValueError(f"shapes {sizes}, superchains {groups}, latent {lists['latent']}")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"Expected draws in {path}, found another checkpoint ({error})."
            ) from error
        about = groups, None, seconds, tuple(lists["remarks"]), lists["standardized"]
        return cls(samples, stats, lists["latent"], lists["moved"], *about)


def strings(value: Any) -> list[str]:
    """Return the value, if it is a list of strings."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{value!r:.40} for a list of names")
    return value


def shown(value: float, sd: float) -> str:
    """Return number in 11 places, with two digits of the standard deviation where there is room."""
    text = f"{value:11.4g}"
    if abs(value) > 100 * sd > 0 and math.isfinite(value):
        digits = max(0, 1 - math.floor(math.log10(sd)))
        exact = f" {value:10.{digits}f}"
        return exact if len(exact) == 11 else text
    return text


def names(shape: torch.Size) -> list[str]:
    """Return the index of each element, in brackets."""
    if not shape:
        return [""]
    indices = torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, len(shape))
    return [f"[{', '.join(map(str, index))}]" for index in indices.tolist()]
