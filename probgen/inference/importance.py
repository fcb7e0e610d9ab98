r"""Pareto-smoothed importance sampling and its diagnostic.

The largest of the weights :math:`w_s = p(x, z_s) / q(z_s)`, :math:`s = 1, \dots, S`, follow a
generalised Pareto distribution above a cutoff :math:`u`, with distribution function

.. math:: F(w) = 1 - \left(1 + k \, \frac{w - u}{\sigma}\right)^{-1 / k},

and :math:`1 / k` moments. With :math:`k > 1/2` weights have no variance; with :math:`k > 0.7` no
number of draws that one can afford makes them reliable, and :math:`q` is far from the posterior.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.arguments import checked
from ..core.contracts import HasLatents
from ..core.validation import check_whole, outside
from ..objectives import IWAE

__all__ = ["GOOD", "Smoothed", "khat", "psis"]

GOOD = 0.7  #: the shape up to which weights can be relied upon
CHUNK = 2**22  # numbers of the data that are held at once


class Smoothed(NamedTuple):
    r"""Smoothed importance weights.

    Arguments:
        log_weights: Normalised log weights, with the shape of those given.
        khat: The estimated shape :math:`\hat k`, without their dimension of draws.
    """

    log_weights: Tensor
    khat: Tensor


@checked
def psis(log_weights: Tensor, dim: int = 0) -> Smoothed:
    r"""Replace the largest weights by quantiles of the Pareto distribution fitted to them.

    Weights whose largest do not differ beyond rounding have :math:`\hat k = -\infty`, and those of
    which four or fewer are not negligible :math:`\hat k = \infty`.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646
        | Zhang & Stephens, "A new and efficient estimation method for the generalized Pareto
          distribution", Technometrics 51, 2009

    Arguments:
        log_weights: Log weights, with :math:`S` draws along `dim`, each other index on its own.
        dim: The dimension of the draws.

    Returns:
        The smoothed, normalised log weights and :math:`\hat k`.

    Raises:
        ValueError: If a log weight is nan or plus infinity, or there are fewer than 25 draws.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> heavy = torch.distributions.Exponential(1.25).sample((100_000, 2))  # k = 0.8
        >>> smoothed, k = psis(heavy)
        >>> smoothed.shape, bool(((k - 0.8).abs() < 0.2).all())
        (torch.Size([100000, 2]), True)
    """
    x = log_weights.detach().movedim(dim, -1)
    size = x.shape[-1]
    if size < 25:
        raise ValueError(f"Expected at least 25 draws along dimension {dim}, got {size}.")
    if bool((x.isnan() | (x == torch.inf)).any()):
        raise ValueError("Expected log weights that are numbers or -inf, got nan or inf.")
    if bool((x == -torch.inf).all(-1).any()):
        raise ValueError("Expected a weight that is not zero among the draws, got none.")
    rounding = 8 * torch.finfo(x.dtype).eps * x.amax(-1).abs().clamp(min=1)
    w = x.double()
    w = w - w.amax(-1, keepdim=True)
    count = math.ceil(min(size / 5, 3 * math.sqrt(size)))
    top, where = w.topk(count + 1, -1)  # from the largest
    cutoff = top[..., -1:].clamp(min=math.log(torch.finfo(torch.double).tiny))
    top, where = top[..., :-1], where[..., :-1]
    inside = top > cutoff
    n = inside.sum(-1, keepdim=True)
    k, sigma = fit_pareto(torch.where(inside, top.exp() - cutoff.exp(), 0.0), n)
    fitted = (n > 4) & k.isfinite()
    place = (n.double() - torch.arange(count, device=n.device) - 0.5) / n.clamp(min=1)
    p = torch.where(inside, place, 0.5)
    value = torch.where(k.abs() < 1e-12, -torch.log1p(-p), torch.expm1(-k * torch.log1p(-p)) / k)
    smooth = (sigma * value + cutoff.exp()).log().clamp(max=0.0)
    w = w.scatter(-1, where, torch.where(inside & fitted, smooth, top))
    khat = torch.where(fitted, k, torch.inf)[..., 0]
    khat = torch.where(-cutoff[..., 0] <= rounding, -torch.inf, khat)
    w = (w - w.logsumexp(-1, keepdim=True)).to(x.dtype)
    return Smoothed(w.movedim(-1, dim), khat.to(x.dtype))


def fit_pareto(y: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    r"""Estimate shape and scale of a generalised Pareto distribution by empirical Bayes.

    Arguments:
        y: Excesses in falling order, with zeros after the first `n`, with shape :math:`(*, M)`.
        n: Their number, with shape :math:`(*, 1)`.
    """
    size = n.clamp(min=5).double()
    quarter = (size - (size / 4 + 0.5).floor()).long().clamp(max=y.shape[-1] - 1)
    first, last = y.gather(-1, quarter), y[..., :1]
    grid = 30 + size.sqrt().floor()
    j = torch.arange(1, 31 + math.isqrt(y.shape[-1]), device=y.device)
    theta = (1 - (grid / (j - 0.5)).sqrt()) / (3 * first) + 1 / last
    shape = torch.log1p(-theta.unsqueeze(-1) * y.unsqueeze(-2)).sum(-1) / size  # zeros add none
    profile = size * ((-theta / shape).log() - shape - 1)
    weight = torch.where(j <= grid, profile, -torch.inf).softmax(-1)
    best = (torch.where(j <= grid, theta, 0.0) * weight).sum(-1, keepdim=True)
    k = torch.log1p(-best * y).sum(-1, keepdim=True) / size
    return (size * k + 5) / (size + 10), -k / best  # a prior of ten data at 1/2 steadies the shape


def khat(module: Any, *args: Any, guide: Any = None, samples: int = 1000, **kwargs: Any) -> Tensor:
    r"""Return the shape :math:`\hat k` of the importance weights of an approximate posterior.

    Up to 0.5 the approximation is good, up to 0.7 weights can mend it; beyond, there is a warning.

    References:
        | Yes, but Did It Work?: Evaluating Variational Inference (Yao et al., 2018)
        | https://arxiv.org/abs/1802.02538

    Arguments:
        module: A module with latent variables, such as :class:`probgen.models.VAE`, or a Pyro
            model.
        args: The data, with shape :math:`(*, event)`, and the contexts of a module; the arguments
            of a Pyro model.
        guide: The guide of a Pyro model. The two are run once for each draw; the guides of
            :mod:`probgen.inference` have a faster method `khat`.
        samples: The number of draws :math:`S`.
        kwargs: The keyword arguments of a Pyro model.

    Returns:
        :math:`\hat k` of each item, with shape :math:`(*)`; of a Pyro model, of each item of the
        plates in which all sites lie, or of all as one.

    Raises:
        TypeError: If `module` has no latent variables, and there is no `guide`.

    Example:
        >>> import probgen as pg
        >>> vae = pg.models.VAE(4, latent=2, hidden_features=(8,))
        >>> khat(vae, torch.ones(3, 4), samples=200).shape
        torch.Size([3])
    """
    check_whole(25, samples=samples)
    with torch.no_grad():
        if guide is not None:
            objective = IWAE(samples).elbo()
            traces = objective._get_traces(module, guide, args, kwargs)
            log_w = torch.cat([objective.weights(*pair)[0].log_weights for pair in traces])
        elif isinstance(module, HasLatents):
            x, context = (*args, None, None)[:2] if args else (kwargs.get("x"), None)
            context = kwargs.get("context", context)
            if not isinstance(x, Tensor):
                raise TypeError(f"Expected a tensor of data, got a {type(x).__name__}.")
            part = max(1, CHUNK // max(x.numel(), 1))
            sizes = [min(part, samples - done) for done in range(0, samples, part)]
            log_w = torch.cat([module.weigh(x, context, size).log_weights for size in sizes])
        else:
            raise TypeError(
                f"Expected a module with latent variables, such as pg.models.VAE, or a Pyro model "
                f"with its `guide`, got a {type(module).__name__}."
            )
    return warned(psis(log_w).khat)


def warned(k: Tensor) -> Tensor:
    """Return the shapes as they are, after a warning if one is too large."""
    bad = ~(k <= GOOD)
    if bool(bad.any()):
        part = f"{int(bad.sum())} of {k.numel()} items" if k.numel() > 1 else "the weights"
        warnings.warn(
            f"Pareto k-hat is above {GOOD} for {part}, at most {float(k.max()):.2f}: the "
            f"approximation is far from the posterior, and importance weights cannot mend it. "
            f"Train longer, or take a richer one.",
            stacklevel=outside(),
        )
    return k
