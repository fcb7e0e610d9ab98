r"""Diagnostics of and arithmetic with latent codes.

The divergence :math:`\mathrm{KL}(q(z_j \mid x) \,\|\, p(z_j))`, averaged over data, is what latent
:math:`j` tells of them in nats; a latent whose posterior is the prior whatever :math:`x` has
collapsed, and tells nothing.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.arguments import checked
from ..core.contracts import Encodes, HasLatents
from ..core.validation import check_whole, outside

__all__ = ["Diagnosis", "attribute", "diagnose", "interpolate"]

ACTIVE = 0.01  # the least variance of a mean, or divergence, of an active latent
ROWS = 40  # of a table that are printed


class Diagnosis(NamedTuple):
    r"""A report of latent units, printed as a table.

    Arguments:
        divergence: The mean divergence from the prior, in nats, of each latent or group of
            latents, with shape :math:`(G)`.
        spread: The variance over the data of the posterior mean of each latent, with shape
            :math:`(D)`; none if the model has no such mean.
        active: Which latents tell of the data: those with a spread above 0.01; where there is
            none, which groups of them: those with a divergence above 0.01.
        reconstruction: The mean of :math:`-\log p(x \mid z)`.
        total: The mean divergence of all latents together; with the reconstruction it is the
            negative evidence lower bound.
    """

    divergence: Tensor
    spread: Tensor | None
    active: Tensor
    reconstruction: float
    total: float

    def __str__(self) -> str:
        count, size = int(self.active.sum()), len(self.active)
        lines = [
            f"reconstruction {self.reconstruction:.4g} nats, divergence {self.total:.4g} nats, "
            f"active latents {count} of {size}"
        ]
        same = len(self.divergence) == size
        spread = self.spread if same else None
        kind = "group" if spread is None else "latent"
        lines.append(f"{kind:>8}{'divergence':>12}{'spread':>10}  active")
        for j in range(min(len(self.divergence), ROWS)):
            value = f"{float(spread[j]):10.4g}" if spread is not None else f"{'':10}"
            mark = ("  yes" if bool(self.active[j]) else "  no") if same else ""
            lines.append(f"{j:8}{float(self.divergence[j]):12.4g}{value}{mark}")
        if len(self.divergence) > ROWS:
            lines.append(f"and {len(self.divergence) - ROWS} more")
        return "\n".join(line.rstrip() for line in lines)


def diagnose(module: Any, x: Tensor, context: Tensor | None = None, samples: int = 1) -> Diagnosis:
    """Tells which latents of a model hold what the data are, and warns if hardly any does.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519

    Arguments:
        module: A model with latent variables, such as :class:`probgen.models.VAE`.
        x: Data, with shape :math:`(N, *)`.
        context: The contexts, with shape :math:`(N, C)`.
        samples: The number of draws per item, of what is not known exactly.

    Raises:
        TypeError: If the module has no latent variables.
        ValueError: If there are fewer than two data.

    Example:
        >>> import probgen as pg
        >>> _ = torch.manual_seed(0)
        >>> vae = pg.models.VAE(4, latent=2, hidden_features=(8,), likelihood="normal")
        >>> x = torch.randn(500, 1) * torch.ones(4)
        >>> history = pg.fit(vae, x, steps=300, lr=1e-2, progress=False)
        >>> diagnose(vae, x).active.any()
        tensor(True)
    """
    if not isinstance(module, HasLatents):
        raise TypeError(
            f"Expected a module with latent variables, such as pg.models.VAE, got a "
            f"{type(module).__name__}."
        )
    check_whole(1, samples=samples)
    if len(x) < 2:
        raise ValueError(f"Expected at least two data, got {len(x)}.")
    with torch.no_grad():
        weights = module.weigh(x, context, samples, analytic=True)
        kl = weights.divergence
        if kl is None:
            kl = (weights.log_posterior - weights.log_prior).mean(0).unsqueeze(-1)
        divergence = kl.reshape(-1, kl.shape[-1]).mean(0)
        spread = spread_of(module, x, context)
    active = (divergence if spread is None else spread) > ACTIVE
    found = Diagnosis(
        divergence,
        spread,
        active,
        -float(weights.log_likelihood.mean()),
        float(divergence.sum()),
    )
    count, size = int(active.sum()), len(active)
    if 10 * count < size or count == 0:
        warnings.warn(
            f"Posterior collapse: {count} of {size} latents depend on the data. Train with warm-up "
            f"of the divergence or free bits, such as ELBO(warm_up=0.5), or take fewer latents.",
            stacklevel=outside(),
        )
    return found


def spread_of(module: Any, x: Tensor, context: Tensor | None) -> Tensor | None:
    """Return variance over the data of the posterior mean of each latent, where there is one."""
    if not isinstance(module, Encodes):
        return None
    try:
        return module.encode(x, context).mean.flatten(1).var(0)
    except (AttributeError, NotImplementedError):
        return None


@checked
def interpolate(a: Tensor, b: Tensor, count: int, spherical: bool = False) -> Tensor:
    r"""Points between two latents, the ends included.

    They lie on a line, or on the arc :math:`(\sin((1 - t) \omega) \, a + \sin(t \omega) \, b) /
    \sin \omega`, where :math:`\omega` is the angle between :math:`a` and :math:`b`: points of a
    normal prior in many dimensions lie near a sphere, which a line leaves.

    References:
        Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985

    Arguments:
        a: The first latents, with shape :math:`(*, D)`.
        b: The last latents, with shape :math:`(*, D)`.
        count: The number of points.
        spherical: Whether they lie on an arc.

    Returns:
        The points, with shape :math:`(\mathrm{count}, *, D)`.

    Raises:
        ValueError: If the shapes differ, or `count` is below 2.

    Example:
        >>> interpolate(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 3, spherical=True)
        tensor([[1.0000, 0.0000],
                [0.7071, 0.7071],
                [0.0000, 1.0000]])
    """
    check_whole(2, count=count)
    if a.shape != b.shape or a.ndim == 0:
        raise ValueError(
            f"Expected `a` and `b` with one shape (*, D), got {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    t = torch.linspace(0, 1, count, dtype=a.dtype, device=a.device)
    t = t.reshape(-1, *[1] * a.ndim)
    line = (1 - t) * a + t * b
    if not spherical:
        return line
    first, last = (v / torch.linalg.vector_norm(v, dim=-1, keepdim=True) for v in (a, b))
    chord = torch.linalg.vector_norm(last - first, dim=-1, keepdim=True)
    angle = 2 * torch.asin((chord / 2).clamp(max=1.0))
    sine = angle.sin()
    arc = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / sine
    return torch.where(sine.abs() > 1e-6, arc, line)  # an arc of no angle is a line


def attribute(
    module: Any,
    with_: Tensor,
    without: Tensor,
    contexts: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    r"""Return the direction of an attribute among the latents, from data with and data without it.

    .. math:: a = \frac{1}{N} \sum_{x \text{ with}} E_q[z \mid x] -
        \frac{1}{M} \sum_{x \text{ without}} E_q[z \mid x].

    References:
        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma & Dhariwal, 2018)
        | https://arxiv.org/abs/1807.03039

    Arguments:
        module: A model with a method `encode`, such as :class:`probgen.models.VAE`.
        with_: Data with the attribute, with shape :math:`(N, *)`.
        without: Data without it, with shape :math:`(M, *)`.
        contexts: The contexts of both, if the model takes them.

    Returns:
        The direction, with the shape of a latent.

    Raises:
        TypeError: If the module does not encode.

    Example:
        >>> import probgen as pg
        >>> vae = pg.models.VAE(4, latent=2, hidden_features=(8,))
        >>> attribute(vae, torch.ones(10, 4), torch.zeros(20, 4)).shape
        torch.Size([2])
    """
    if not isinstance(module, Encodes):
        raise TypeError(
            f"Expected a module with a method `encode`, such as pg.models.VAE, got a "
            f"{type(module).__name__}."
        )
    try:
        with torch.no_grad():
            first, last = (
                module.encode(x, c).mean.mean(0) for x, c in zip((with_, without), contexts)
            )
    except AttributeError:
        raise TypeError(
            f"Expected a module whose `encode` gives a law with a mean, got a "
            f"{type(module).__name__}."
        ) from None
    return first - last
