"""Lazy transforms."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.distributions import Transform

from .cards import Card, Density, Traits, reorder
from .checkpoint import save
from .contexts import ContextShape
from .derive import derived
from .lazy_parts import check_context, flat_context, get_context, is_initialized, set_context
from .registry import register

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LazyTransform"]


@register
class LazyTransform(nn.Module):
    """A module that, called with an optional context, returns a bijective transform.

    Attributes:
        context_shape: The shape of one context, None if it takes none.
    """

    context_shape: ContextShape | None = None
    context_optional: bool = False
    frozen: bool = False
    density: Density = Density.EXACT  #: what a density through it is
    traits: Traits = Traits("as large as the data", "one pass", True)

    context: Any = property(get_context, set_context)
    check_context = check_context
    flat_context = flat_context
    save = save

    def freeze(self) -> Self:
        """Turn the parameters' gradients off and the module to evaluation; return it."""
        self.frozen = True
        return self.requires_grad_(False).eval()

    if TYPE_CHECKING:  # what torch says of every module is that a call gives anything

        def __call__(self, context: Any = None) -> Transform: ...

    @abstractmethod
    def forward(self, context: Any = None) -> Transform:
        """Build the transform from the current parameters."""

    @property
    def inv(self) -> LazyTransform:
        """The lazy transform of the inverse, which shares the parameters."""
        return self.transform if isinstance(self, LazyInverse) else LazyInverse(self)

    @property
    def card(self) -> Card:
        """The row of the table of models."""
        return Card("as part of a flow", self.density.value, *reorder(self.traits))

    @property
    @derived
    def initialized(self) -> bool:
        """Whether data-dependent values were set; true where there are none."""
        return is_initialized(self)

    @derived
    def initialize(
        self, y: Tensor, context: Any = None, weights: Tensor | None = None, inverse: bool = False
    ) -> None:
        """Set data-dependent values, so that outputs are as the data.

        Arguments:
            y: Outputs, with shape :math:`(N, *)`.
            context: Their contexts, with batch shape :math:`(N)`.
            weights: Their weights, with shape :math:`(N)`.
            inverse: Whether `y` are inputs instead.
        """


class LazyInverse(LazyTransform):
    """The inverse of a lazy transform.

    Arguments:
        transform: The lazy transform to invert.
    """

    def __init__(self, transform: LazyTransform) -> None:
        super().__init__()
        self.transform = transform
        self.context_shape = transform.context_shape
        self.density, self.traits = transform.density, transform.traits

    def forward(self, context: Any = None) -> Transform:
        return self.transform(context).inv

    @property
    def initialized(self) -> bool:
        return self.transform.initialized

    def initialize(
        self, y: Tensor, context: Any = None, weights: Tensor | None = None, inverse: bool = False
    ) -> None:
        self.transform.initialize(y, context, weights, not inverse)
