r"""The bridge to Pyro: learned parts as sites, models and guides.

For :math:`N` data of which a mini-batch :math:`x_1, \dots, x_n` is seen, the pair states

.. math:: \frac{N}{n} \sum_{i=1}^n \log p_\theta(x_i \mid c_i)

as one observed site in a plate of size :math:`N`, and registers :math:`\theta` with Pyro's
parameter store under a name that belongs to one instance.
"""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import pyro
import torch
from pyro.params import param_with_module_name
from torch import Tensor, nn

from .contexts import batch_of

__all__ = ["PyroGuide", "PyroModel", "register", "unique_name"]

COUNTER = itertools.count()


def unique_name(module: nn.Module) -> str:
    """Return a name that no other instance has, in this process or another."""
    return f"{type(module).__name__}-{next(COUNTER)}-{uuid.uuid4().hex[:8]}"


def register(module: Any) -> bool:
    """Register the trainable parameters of a module with Pyro; return whether there are any.

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


class Pair(nn.Module):
    """One half of a Pyro pair; it holds the distribution and so has its parameters.

    Arguments:
        distribution: The lazy distribution.
        **options: What its `pyro_model` and `pyro_guide` take besides.
    """

    def __init__(self, distribution: nn.Module, **options: Any) -> None:
        super().__init__()
        self.distribution: Any = distribution
        self.options = options

    def plate(self, prefix: str, x: Tensor | None, context: Any, size: int | None) -> pyro.plate:
        """Return the data plate, of the data set's size."""
        part = self.distribution
        batch = batch_of(context, part.context_shape) if context is not None else None
        if (x is not None and x.ndim < 1 + len(part.event_shape)) or (
            batch is not None and not batch
        ):
            value = x if batch is None or batch else context
            raise ValueError(
                f"Expected `x` and `context` with shape (N, *), an item for each row, got "
                f"{tuple(value.shape) if isinstance(value, Tensor) else 'a context of one'}."
            )
        known = len(x) if x is not None else batch[0] if batch is not None else None
        count = known if known is not None else (1 if size is None else size)
        if size is not None and size < count:
            raise ValueError(
                f"Expected `size`, that of the data set, to be at least that of the mini-batch, "
                f"got {size} for a batch of {count}."
            )
        if size is None or size == count:
            return pyro.plate(f"{prefix}data", count)
        device = next((p.device for p in part.parameters()), None) if x is None else x.device
        return pyro.plate(f"{prefix}data", size, subsample=torch.arange(count, device=device))


class PyroModel(Pair):
    """The model of a Pyro pair: the sites of a distribution in a data plate.

    Called as `(x=None, context=None, *, size=None, prefix="")`, where `x` has shape
    :math:`(N, *event)`, `context` the batch shape :math:`(N)` and `size` is that of the data set if
    `x` is a mini-batch; without `x` it generates. The site of the data is `x`, latent ones are `z`
    and the like. Site names take the prefix, so that two fit in one model.
    """

    def forward(
        self,
        x: Tensor | None = None,
        context: Any = None,
        *,
        size: int | None = None,
        prefix: str = "",
    ) -> Tensor:
        part = self.distribution
        infer = {"learned": "trained" if register(part) else "frozen"}
        with self.plate(prefix, x, context, size):
            return part.pyro_model(prefix, f"{prefix}x", context, x, infer, **self.options)


class PyroGuide(Pair):
    """The guide of a Pyro pair: the latents of a distribution given data, in a data plate."""

    def forward(
        self,
        x: Tensor | None = None,
        context: Any = None,
        *,
        size: int | None = None,
        prefix: str = "",
    ) -> Any:
        part = self.distribution
        infer = {"learned": "trained" if register(part) else "frozen"}
        with self.plate(prefix, x, context, size):
            return part.pyro_guide(prefix, x, context, infer, **self.options)
