r"""The Pyro distribution of an energy, :math:`p(x) = e^{-E(x)} / Z`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...core import LazyDistribution
from ...core.arguments import checked
from ...core.registry import MODULES
from ..module_distribution import ModuleDistribution

__all__ = ["EnergyDistribution"]


class EnergyDistribution(ModuleDistribution):
    r"""The distribution of an energy, :math:`p(x) = e^{-E(x)} / Z`.

    Its `log_prob` subtracts :math:`\log Z` if that is known or was estimated; `density` says which:
    `EXACT`, else `UNNORMALIZED`. It draws by its module's kernel.

    Arguments:
        energy: An :class:`~probgen.distributions.EnergyBased` module; or a map from values with
            shape :math:`(*, event)` to energies with shape :math:`(*)`, which makes it that of an
            :class:`~probgen.distributions.Energy`. Parameters inside a plain function are not seen,
            so that nothing raises where their gradient is wrong: hand over the module that has
            them.
        context: The contexts, with shape :math:`(*, C)`, if the module takes them.
        batch_shape: The batch shape; by default that of the contexts.
        validate_args: Whether to check arguments; by default as Pyro is set.
        **options: What :class:`~probgen.distributions.Energy` takes, `features` first, where
            `energy` is a map.

    Raises:
        TypeError: If `energy` is a map and there are no `features`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> d = EnergyDistribution(lambda x: x.square().sum(-1) / 2, features=2)
        >>> d.log_ratio(torch.zeros(2), torch.ones(2))
        tensor(1.)
        >>> abs(float(d.sample((2000,)).var()) - 1) < 0.1
        True
    """

    @partial(checked, trusted=True)
    def __init__(
        self,
        energy: LazyDistribution | Callable[..., Tensor],
        context: Tensor | None = None,
        batch_shape: torch.Size | None = None,
        validate_args: bool | None = None,
        **options: Any,
    ) -> None:
        if isinstance(energy, LazyDistribution):
            module: Any = energy
            if options:
                raise TypeError(f"Expected no more options for a module, got {sorted(options)}.")
        else:
            if "features" not in options:
                raise TypeError("Expected `features`, the size of an event, with a map as energy.")
            if context is not None:
                options.setdefault("context", context.shape[-1])
            module = MODULES["Energy"](energy, **options)  # which stands on this class
        super().__init__(module, context, batch_shape, validate_args)

    def unnormalized_log_prob(self, value: Tensor) -> Tensor:
        """Return the log density without the normaliser; minus infinity outside the support."""
        x, context, inside = self.inside(value)
        log_prob = self.module.unnormalized(x, context)
        return log_prob if inside is None else torch.where(inside, log_prob, -torch.inf)

    def log_partition(self) -> Tensor:
        r""":math:`\log Z`, see :meth:`~probgen.distributions.EnergyBased.log_partition`."""
        return self.module.log_partition()

    def energy(self, value: Tensor) -> Tensor:
        """Return the energy of values with shape :math:`(*, event)`."""
        return -self.unnormalized_log_prob(value)

    def log_ratio(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`\log p(x) - \log p(y)`, which needs no normaliser."""
        return self.unnormalized_log_prob(x) - self.unnormalized_log_prob(y)

    def score(self, value: Tensor) -> Tensor:
        r"""Return the gradient of the log density in :math:`x`, with the shape of `value`."""
        return self.module.score(*self.widened(value))
