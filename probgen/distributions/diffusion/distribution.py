"""The Pyro distribution of a diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Transform

from ...core.contracts import MadeBy
from ...diffusion import noise
from ..flows.flow import FlowDistribution

__all__ = ["DiffusionDistribution"]


@MadeBy.register
class DiffusionDistribution(FlowDistribution):
    """The Pyro distribution of a diffusion, for given contexts.

    Arguments:
        module: The diffusion.
        context: The contexts, if it takes them.
        base: Other parts than those of the diffusion: a base,
        transforms: and transforms.
        validate_args: Whether to check arguments; by default as Pyro is set.
    """

    def __init__(
        self,
        module: Any,
        context: Any = None,
        base: TorchDistribution | None = None,
        transforms: Sequence[Transform] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.module, self.context = module, context
        self.given = flat = module.flat_context(context)  # vectors, as the denoiser takes them
        super().__init__(
            module.noise(flat) if base is None else base,
            module.flow(flat) if transforms is None else transforms,
            module.parameters,
            module.density,
            validate_args,
            self.draw,
        )

    @property
    def has_rsample(self) -> bool:
        return self.module.denoiser.differentiable

    def draw(self, shape: torch.Size) -> Tensor:
        module, given = self.module, self.given
        given = None if given is None else given.expand(*shape, given.shape[-1])
        start = noise(module.denoiser, shape, module.scale)
        return module.shift + module.scale * module.sampler.sample(module.denoiser, start, given)

    def elbo(self, value: Tensor, steps: int = 1000) -> Tensor:
        r"""Return an unbiased estimate of the evidence lower bound, see :meth:`Diffusion.elbo`.

        Arguments:
            value: The data, with shape :math:`(*, event)`.
            steps: The number of steps :math:`T`.

        Returns:
            Estimates with shape :math:`(*)`: bounds in expectation, not densities.
        """
        return self.module.elbo(value, self.context, steps)
