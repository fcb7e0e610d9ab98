"""Learned distributions as sites of Pyro models."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .lazy import LazyDistribution
from .pyro_sites import register

__all__ = ["sample"]


def sample(
    name: str,
    module: LazyDistribution,
    context: Any = None,
    obs: Tensor | None = None,
) -> Tensor:
    """State a learned distribution as a sample site of a Pyro model or guide.

    The site's `infer` dictionary says under `"learned"` whether the module is `"frozen"` or
    `"trained"`; in the second case its parameters are registered, so that `SVI` trains them.

    Arguments:
        name: The site's name.
        module: The lazy distribution.
        context: The context, with shape :math:`(*, C)`, if the module takes one.
        obs: The observed value, if any.

    Returns:
        The value of the site.

    Raises:
        TypeError: If `module` is not a lazy distribution.

    Example:
        >>> import probgen as pg, pyro, torch, pyro.distributions as dist
        >>> prior = pg.models.NSF(features=3).freeze()
        >>> def model(y):
        ...     x = pg.sample("x", prior)
        ...     pyro.sample("y", dist.Normal(x.sum(-1), 0.1), obs=y)
        >>> trace = pyro.poutine.trace(model).get_trace(torch.tensor(1.0))
        >>> trace.nodes["x"]["infer"]["learned"]
        'frozen'
    """
    if not isinstance(module, LazyDistribution):
        raise TypeError(
            f"Expected a lazy distribution, got a {type(module).__name__}. A distribution of Pyro "
            f"is stated with pyro.sample."
        )
    infer = {"learned": "trained" if register(module) else "frozen"}
    return module.pyro_site(name, context, obs, infer)
