"""Members that lazy distributions and transforms share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from . import contexts
from .registry import register
from .standardize import Standardizer

__all__ = ["DataDependentNetwork", "initialize_part", "register_flag"]


class Probed:
    """An attribute read off the distribution that a module returns, where it declares none.

    Arguments:
        abstract: Whether a class must declare it, or is given one that is not abstract.
    """

    def __init__(self, abstract: bool = False) -> None:
        self.__isabstractmethod__ = abstract
        self.derived = Probed() if abstract else None

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        if self.derived is not None:
            self.derived.name = name

    def __get__(self, module: Any, owner: type) -> Any:
        return self if module is None else getattr(module.probe(), self.name)


def get_context(self: Any) -> Any:
    """Return the context as `context=` takes it: 0, a number of features, or a shape."""
    shape = self.context_shape
    if shape is None:
        return 0
    return shape[0] if contexts.is_vector(shape) else shape


def set_context(self: Any, context: Any) -> None:
    if self.context_shape is None:
        self.context_shape = contexts.shape_of(context)


def check_context(self: Any, context: Any) -> None:
    """Compare a context with what the module was built for.

    Raises:
        ValueError: If it is missing, superfluous, of the wrong shape or not finite (read under
            argument validation).
        TypeError: If its dtype is not that of the parameters.
    """
    if context is None and self.context_optional:
        return
    like = next(self.parameters(), None)
    contexts.check(context, self.context_shape, type(self).__name__, like)


def flat_context(self: Any, context: Any) -> Any:
    """Check a context, and flatten it to vectors, with shape :math:`(*, C)`."""
    self.check_context(context)
    return None if context is None else contexts.flatten(context, self.context_shape)


def is_initialized(self: Any) -> bool:
    """Whether data-dependent values were set; true where there are none."""
    flag = self._buffers.get("initialized_flag")
    return flag is None or flag.device.type == "meta" or bool(flag)


def initialize(self: Any, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
    r"""Set data-dependent values from weighted data: locations and scales, first parameters.

    :func:`probgen.fit` calls it once, before the first step. Parts that were initialized before
    stay as they are, unless the module itself was: then all but frozen parts are set anew.

    Arguments:
        x: The data, with shape :math:`(N, *event)`.
        context: Their contexts, with batch shape :math:`(N)`, if the module takes them.
        weights: Their weights, with shape :math:`(N)`; equal by default.
    """
    with torch.no_grad():
        if self.initialized:
            reset(self)
        self.set_from_data(x, context, weights)
        flag = self._buffers.get("initialized_flag")
        if flag is not None:
            flag.fill_(True)


def initialize_part(
    part: Any, x: Tensor, context: Any = None, weights: Tensor | None = None
) -> None:
    """Initialize a part of a model, unless that was done before or the part is frozen."""
    if not part.initialized and not is_frozen(part):
        part.initialize(x, context if part.context_shape is not None else None, weights)


def is_frozen(module: nn.Module) -> bool:
    """Whether :meth:`freeze` was called, and no parameter was set free since."""
    frozen = module.__dict__.get("frozen") is True
    return frozen and not any(p.requires_grad for p in module.parameters())


def reset(module: nn.Module) -> None:
    """Forget that data were seen, but in frozen parts."""
    if isinstance(module, Standardizer):
        module.reset()
    flag = module._buffers.get("initialized_flag")
    if flag is not None:
        flag.zero_()
    for part in module.children():
        if not is_frozen(part):
            reset(part)


def register_flag(module: nn.Module) -> None:
    """Add the flag that says whether data-dependent values were set."""
    module.register_buffer("initialized_flag", torch.zeros(1, dtype=torch.bool))


@register
class DataDependentNetwork(nn.Module):
    """A network some of whose values are set from data, once."""

    initialized = property(is_initialized)

    def __init__(self) -> None:
        super().__init__()
        register_flag(self)

    @abstractmethod
    def set_from_data(self, x: Tensor, weights: Tensor | None, *options: Any) -> None:
        """Set values from weighted data, with shape :math:`(N, *event)`."""

    def initialize(self, x: Tensor, weights: Tensor | None = None, *options: Any) -> None:
        """Set values from data, unless that was done before."""
        if not self.initialized:
            with torch.no_grad():
                self.set_from_data(x, weights, *options)
                self._buffers["initialized_flag"].fill_(True)  # type: ignore[union-attr]
