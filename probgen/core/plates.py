r"""The bridge to Pyro: learned parts as sites, models and guides.

For :math:`N` data of which a mini-batch :math:`x_1, \dots, x_n` is seen, the pair states

.. math:: \frac{N}{n} \sum_{i=1}^n \log p_\theta(x_i \mid c_i)

as one observed site in a plate of size :math:`N`, and registers :math:`\theta` with Pyro's
parameter store under a name that belongs to one instance.
"""

from __future__ import annotations

import itertools
import uuid
from typing import TYPE_CHECKING

import pyro
import torch
from pyro.params import param_with_module_name
from torch import Tensor, nn

if TYPE_CHECKING:
    from .lazy import LazyDistribution

__all__ = ["Guide", "Model", "register", "sample", "unique_name"]

COUNTER = itertools.count()


def unique_name(module: nn.Module) -> str:
    """A name that no other instance has, in this process or another."""
    return f"{type(module).__name__}-{next(COUNTER)}-{uuid.uuid4().hex[:8]}"


def register(module: LazyDistribution) -> bool:
    """Registers the trainable parameters of a module with Pyro, and says if there are any.

    Raises:
        RuntimeError: If Pyro's store holds other tensors under the module's name, so that an
            optimiser would train those and not the module.
    """
    trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        return False
    for n, p in trainable.items():  # pyro.module would warn of those that are frozen
        if pyro.param(param_with_module_name(module.name, n), p) is not p:
            raise RuntimeError(
                f"Pyro's parameter store holds another tensor for {n!r} of {module.name}, so the "
                f"optimiser would not train this module. Call pyro.clear_param_store() first."
            )
    return True


def sample(
    name: str,
    module: LazyDistribution,
    context: Tensor | None = None,
    obs: Tensor | None = None,
) -> Tensor:
    """States a learned distribution as a sample site of a Pyro model or guide.

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
        >>> import probgen as pg, pyro.distributions as dist
        >>> prior = pg.models.NSF(features=3).freeze()
        >>> def model(y):
        ...     x = pg.sample("x", prior)
        ...     pyro.sample("y", dist.Normal(x.sum(-1), 0.1), obs=y)
        >>> trace = pyro.poutine.trace(model).get_trace(torch.tensor(1.0))
        >>> trace.nodes["x"]["infer"]["learned"]
        'frozen'
    """
    if not callable(getattr(module, "site", None)):
        raise TypeError(
            f"Expected a lazy distribution, got a {type(module).__name__}. A distribution of Pyro "
            f"is stated with pyro.sample."
        )
    trained = register(module)
    return module.site(name, context, obs, infer={"learned": "trained" if trained else "frozen"})


class Pair(nn.Module):
    """One half of a Pyro pair; it holds the distribution and so has its parameters."""

    def __init__(self, distribution: LazyDistribution) -> None:
        super().__init__()
        self.distribution = distribution

    def plate(
        self, prefix: str, x: Tensor | None, context: Tensor | None, size: int | None
    ) -> pyro.plate:
        """The data plate, of the data set's size."""
        for name, value, least in (
            ("x", x, 1 + len(getattr(self.distribution, "event_shape", (0,)))),
            ("context", context, 1 + self.distribution.context_dim),
        ):
            if value is not None and value.ndim < least:
                raise ValueError(
                    f"Expected `{name}` with shape (N, *), an item for each row, got "
                    f"{tuple(value.shape)}."
                )
        known = x if x is not None else context
        count = len(known) if known is not None else (1 if size is None else size)
        if size is not None and size < count:
            raise ValueError(
                f"Expected `size`, that of the data set, to be at least that of the mini-batch, "
                f"got {size} for a batch of {count}."
            )
        if size is None or size == count:
            return pyro.plate(f"{prefix}data", count)
        device = known.device if known is not None else None
        return pyro.plate(f"{prefix}data", size, subsample=torch.arange(count, device=device))


class Model(Pair):
    """The model of a Pyro pair: one site in a data plate.

    Called as `(x=None, context=None, *, size=None, prefix="")`, where `x` has shape
    :math:`(N, *)`, `context` :math:`(N, C)` and `size` is that of the data set if `x` is a
    mini-batch; without `x` it generates. Site names take the prefix, so that two fit in one model.
    """

    def forward(
        self,
        x: Tensor | None = None,
        context: Tensor | None = None,
        *,
        size: int | None = None,
        prefix: str = "",
    ) -> Tensor:
        with self.plate(prefix, x, context, size):
            return sample(f"{prefix}x", self.distribution, context, obs=x)


class Guide(Pair):
    """The guide of a distribution without latent variables: it registers and samples nothing."""

    def forward(
        self,
        x: Tensor | None = None,
        context: Tensor | None = None,
        *,
        size: int | None = None,
        prefix: str = "",
    ) -> None:
        register(self.distribution)
