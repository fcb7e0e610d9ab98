r"""Convergence checks and warnings of a run of chains.

Chains that have converged have :math:`\hat R` near 1 and many effective draws, at every number of
every site. The rest of the checks find the cause where they have not: chains that never moved,
trajectories cut short, modes between which no chain crosses, numbers that their type cannot
resolve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import diagnostics

__all__ = ["ConvergenceWarning", "Quantity", "problems", "quantities"]

MOST = 30_000_000  # numbers that are checked, evenly spread over the elements of large sites
SHOWN = 5  # elements that a message names
NEAREST = 8  # draws from which the way to a mode is followed
WAY = 16  # points on the way
DIP = 5.0  # nats by which the density falls between modes
FLOAT64 = "torch.set_default_dtype(torch.float64), for priors as for data"
TEMPER = "Use kernel=ParallelTempering() or pg.posterior, which is sequential Monte Carlo."
HOTTER = "Take more temperatures, or hotter ones, by `betas` of ParallelTempering."
EXCUSED = 2  # times the excess of R-hat that short chains may have
ENERGY = 5  # times the excess of R-hat that the log density may have, which mixes last
STRAYS = 0.03  # of all chains, which are no group of their own
GAP = 3.0  # standard deviations of a chain, by which the means of two groups differ


class ConvergenceWarning(UserWarning):
    """Draws may not follow the posterior: the message names what was found and what to do."""


class Quantity(NamedTuple):
    """One number of a site, over all chains and draws.

    Arguments:
        name: The site and the index.
        rhat: The rank-normalised split R-hat.
        ess: The lesser of the bulk and the tail effective sample size.
        draws: The draws, with shape :math:`(C, S)`.
    """

    name: str
    rhat: float
    ess: float
    draws: Tensor


def quantities(samples: dict[str, Tensor]) -> list[Quantity]:
    """Diagnose the numbers of all sites that vary; of large sites, an even selection.

    Arguments:
        samples: Draws by site, with shape :math:`(C, S, *)`.
    """
    found = []
    total = sum(x.numel() for x in samples.values())
    for name, x in samples.items():
        if x.shape[1] < 4 or not x.is_floating_point():
            continue
        flat = x.reshape(*x.shape[:2], -1)
        index = torch.arange(flat.shape[-1], device=x.device)[:: -(-total // MOST)]
        flat = flat[..., index]
        fixed = (flat == flat[:1, :1]).all(0).all(0) | ~torch.isfinite(flat).all(0).all(0)
        index, flat = index[~fixed], flat[..., ~fixed]
        if not len(index):
            continue
        found_rhat, sizes = diagnostics.diagnose(flat)
        rows = zip(index.tolist(), found_rhat.tolist(), sizes.tolist(), strict=True)
        for k, (i, rhat, ess) in enumerate(rows):
            found.append(Quantity(f"{name}{element(i, x.shape[2:])}", rhat, ess, flat[..., k]))
    return found


def element(flat: int, shape: torch.Size) -> str:
    """Return the index of an element of a shape, in brackets."""
    if not shape:
        return ""
    index: list[str] = []
    for size in reversed(shape):
        flat, k = divmod(flat, size)
        index.insert(0, str(k))
    return f"[{', '.join(index)}]"


def problems(
    samples: dict[str, Tensor],
    stats: dict[str, Tensor],
    *,
    max_steps: int | None = None,
    max_diverged: float = 0.001,
    way_out: str = TEMPER,
    max_rhat: float = 1.01,
    min_ess: float = 400.0,
) -> list[str]:
    """Say what is wrong with draws, the worst first; nothing if nothing was found.

    Arguments:
        samples: Draws by site, with shape :math:`(C, S, *)`.
        stats: The statistics of :class:`~probgen.mcmc.Draws`.
        max_steps: The greatest number of leapfrog steps of the kernel.
        way_out: What to do if chains do not cross between modes.
        max_diverged: The greatest fraction of divergences that is not reported.
        max_rhat: The greatest R-hat that is not reported.
        min_ess: The least effective sample size that is not reported.
    """
    energy = {"log_density": stats["log_density"]} if "log_density" in stats else {}
    found = quantities({**samples, **energy})
    if any(x.shape[1] < 4 for x in samples.values()):
        return ["fewer than 4 draws of each chain: convergence cannot be checked. Take more."]
    return list(
        filter(
            None,
            (
                *groups(found, max_rhat, way_out),
                unmixed(found, max_rhat),
                few(found, min_ess),
                unmoved(samples),
                diverged(stats, max_diverged),
                cut(stats, max_steps),
                *unresolved(found, stats),
            ),
        )
    )


def listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def allowed(q: Quantity, limit: float) -> float:
    r"""Return the R-hat up to which a quantity may be converged.

    The means of half chains of :math:`s` draws that have converged and whose autocorrelation time
    is :math:`\tau` give :math:`\hat R^2 \approx 1 + (\tau - 1) / s`, which exceeds the limit
    where chains are short. Half as much again is allowed, up to twice the excess of the limit.
    """
    if q.name == "log_density":
        return 1 + ENERGY * (limit - 1)
    chains, draws = q.draws.shape
    excess = max(chains * draws / max(q.ess, 1.0) - 1, 0.0) / (draws // 2)
    return max(limit, min(math.sqrt(1 + 1.5 * excess), 1 + EXCUSED * (limit - 1)))


def unmixed(found: list[Quantity], limit: float) -> str | None:
    bad = sorted((q for q in found if not q.rhat <= allowed(q, limit)), key=lambda q: -q.rhat)
    if not bad:
        return None
    names = listed([f"{q.name} ({q.rhat:.4g})" for q in bad])
    return (
        f"R-hat above {limit:g} at {names}: chains do not agree yet. Take more draws or warm-up; "
        f"if it stays, reparameterize the model or change the kernel."
    )


def few(found: list[Quantity], limit: float) -> str | None:
    bad = sorted((q for q in found if not q.ess >= limit), key=lambda q: q.ess)
    if not bad:
        return None
    names = listed([f"{q.name} ({q.ess:.0f})" for q in bad])
    return f"effective sample size below {limit:g} at {names}. Take more draws."


def unmoved(samples: dict[str, Tensor]) -> str | None:
    """Count chains whose draws are all the same."""
    if not samples or next(iter(samples.values())).shape[1] < 2:
        return None
    still = torch.stack([(x == x[:, :1]).flatten(1).all(-1) for x in samples.values()]).all(0)
    count = int(still.sum())
    if not count:
        return None
    return (
        f"{count} of {len(still)} chains never moved: every proposal was rejected. Start them "
        f"elsewhere with `init`, or take more warm-up. Work in float64 if the type does not "
        f"resolve the width of the posterior."
    )


def diverged(stats: dict[str, Tensor], limit: float) -> str | None:
    found = stats.get("diverged")
    if found is None or int(found.sum()) <= limit * found.numel():
        return None
    chains = int(found.any(1).sum())
    return (
        f"{int(found.sum())} of {found.numel()} proposals diverged, in {chains} of {len(found)} "
        f"chains: draws may miss regions of high curvature, as the neck of a funnel. "
        f"Reparameterize, or lower the step size."
    )


def cut(stats: dict[str, Tensor], max_steps: int | None) -> str | None:
    steps = stats.get("steps")
    if max_steps is None or max_steps < 2 or steps is None:
        return None
    count = int((steps >= max_steps).sum())
    if count * 100 <= steps.numel():
        return None
    return (
        f"{100 * count / steps.numel():.0f} % of trajectories were cut at `max_steps` {max_steps}: "
        f"the posterior has scales that the metric does not capture. Rescale or reparameterize, or "
        f"raise `max_steps`."
    )


def groups(found: list[Quantity], limit: float, way_out: str) -> Iterator[str]:
    """Find groups of chains whose means are far apart for the spread within a chain."""
    bad = [q for q in found if not q.rhat <= max(limit, 1.05) and q.name != "log_density"]
    for q in sorted(bad, key=lambda q: -q.rhat)[:1]:
        means, order = q.draws.double().mean(1).sort()
        within = q.draws.double().std(1)[order]
        near = torch.maximum(within[1:], within[:-1])
        wide = ((means.diff() > GAP * near) & (near > 0)).nonzero()[:, 0] + 1
        parts = means.tensor_split(wide.cpu()) if len(wide) else []
        sizes = sorted(len(part) for part in parts)
        if len(parts) < 2 or len(parts) > len(means) / 2 or sizes[-2] < STRAYS * len(means):
            continue
        where = listed([f"{len(p)} chains near {float(p.mean()):.4g}" for p in parts])
        yield (
            f"chains stay in {len(parts)} groups, told apart by {q.name} ({where}): modes between "
            f"which they do not cross, weighted by where chains started. {way_out}"
        )


def unresolved(found: list[Quantity], stats: dict[str, Tensor]) -> Iterator[str]:
    """Find numbers that their floating-point type resolves too coarsely."""
    value = stats.get("log_density")
    if value is not None and value.is_floating_point():
        finite = value[torch.isfinite(value)].abs()
        error = float(finite.median()) * torch.finfo(value.dtype).eps if len(finite) else 0.0
        if error > 0.1:
            kind = str(value.dtype).removeprefix("torch.")
            yield (
                f"the log density, about {float(finite.median()):.3g}, has a rounding error of "
                f"{error:.2g} nats in {kind}, which tests of proposals feel. Work in "
                f"float64: {FLOAT64}."
            )
    names = []
    for q in found:
        x = q.draws
        eps = torch.finfo(x.dtype).eps
        if q.name != "log_density" and float(x.double().std()) < 20 * eps * float(x.abs().median()):
            names.append(q.name)
    if names:
        yield (
            f"{listed(names)} varies by less than 20 rounding steps of its type about its mean. "
            f"Subtract a constant, or work in float64: {FLOAT64}."
        )


def unvisited(
    position: Tensor,
    centers: Tensor,
    factors: Tensor,
    mass: Tensor,
    log_density: Callable[[Tensor], Tensor],
) -> str | None:
    """Find modes with more than 1 % of the mass that no chain has visited.

    A mode is one of its own if the density dips on the way to it from each of the nearest draws.

    Arguments:
        position: Draws of the position, with shape :math:`(C, S, D)`.
        centers: The modes, with shape :math:`(M, D)`.
        factors: Factors of their covariances, with shape :math:`(M, D, D)`.
        mass: Their log masses, with shape :math:`(M)`.
        log_density: The log density.
    """
    chains, draws, d = position.shape
    flat = position[:, :: max(1, draws // 10)].reshape(-1, d)
    missed = 0.0
    for center, factor, part in zip(centers, factors, mass.softmax(0).tolist()):
        if part < 0.01:
            continue
        distance = torch.linalg.solve(factor, (flat.double() - center).mT).square().sum(0)
        if float(distance.min()) < 9 * d + 20:
            continue
        near = flat[distance.topk(min(NEAREST, len(flat)), largest=False).indices]
        way = torch.linspace(0, 1, WAY, dtype=flat.dtype, device=flat.device)[:, None]
        points = torch.cat([torch.lerp(x, center.to(x), way) for x in near])
        rest = -len(points) % chains  # a recorded density takes positions of one shape
        batches = torch.cat([points, points[-1:].expand(rest, -1)]).split(chains)
        with torch.no_grad():
            value = torch.cat([log_density(b) for b in batches])[: len(points)]
        value = value.double().nan_to_num(nan=-torch.inf).reshape(len(near), WAY)
        if bool((value.amin(1) < torch.minimum(value[:, 0], value[:, -1]) - DIP).all()):
            missed += part
    if missed == 0:
        return None
    return (
        f"optimisation found a mode with about {100 * missed:.0f} % of the mass that no chain has "
        f"visited. Give `init` there, leave it at its default, or use kernel=ParallelTempering()."
    )
