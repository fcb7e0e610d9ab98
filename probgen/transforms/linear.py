r"""Linear transforms: permutations, triangular factors, standardisation.

A linear transform :math:`y = W x + m` has the constant log-determinant
:math:`\log |\det W|`, cheap where :math:`W` is a permutation (0), triangular or diagonal (the
sum over its diagonal).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from ..core import Bijector, LazyTransform, Standardizer, broadcast
from ..core.lazy_parts import register_flag
from ..core.validation import check_whole

__all__ = ["LU", "ActNorm", "Diagonal", "Permutation", "Standardize"]


class Permutation(Bijector):
    r"""The permutation :math:`y_i = x_{\pi_i}` of features.

    Arguments:
        order: The indices :math:`\pi`, with shape :math:`(D)`.

    Raises:
        ValueError: If `order` is not a permutation (read on the CPU, under argument
            validation).

    Example:
        >>> Permutation(torch.tensor([2, 0, 1]))(torch.tensor([0.1, 0.2, 0.3]))
        tensor([0.3000, 0.1000, 0.2000])
    """

    def __init__(self, order: Tensor) -> None:
        super().__init__(order.shape)
        if Distribution._validate_args and order.device.type == "cpu":
            if sorted(order.tolist()) != list(range(len(order))):
                raise ValueError(f"Expected `order` to be a permutation, got {order.tolist()}.")
        self.order = order

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return permute(x, self.order), x.new_zeros(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return permute(y, self.order.argsort()), y.new_zeros(y.shape[:-1])


def permute(x: Tensor, order: Tensor) -> Tensor:
    return x.movedim(-1, 0).index_select(0, order).movedim(0, -1)


class Diagonal(Bijector):
    r"""The linear transform :math:`y = m + s x` of each feature.

    Arguments:
        shift: The vector :math:`m`, with shape :math:`(*, D)`.
        scale: The vector :math:`s`, without zeros, with shape :math:`(*, D)`.

    Example:
        >>> Diagonal(torch.ones(2), torch.tensor([2.0, -1.0]))(torch.ones(2))
        tensor([3., 0.])
    """

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__(broadcast(shift.shape, scale.shape))
        self.shift, self.scale = shift, scale

    def ladj(self, x: Tensor) -> Tensor:
        value = self.scale.abs().log().sum(-1)
        return value.expand(broadcast(x.shape[:-1], value.shape))

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.addcmul(self.shift, self.scale, x), self.ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return (y - self.shift) / self.scale, self.ladj(y)


class LU(Bijector):
    r"""The linear transform :math:`y = L U x + m`.

    :math:`L` is lower triangular with ones, :math:`U` upper triangular with a positive diagonal,
    so the log-determinant is the sum over :math:`\log U_{ii}`. Follow or precede it with a
    :class:`Permutation` for the full :math:`P L U`.

    References:
        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma & Dhariwal, 2018)
        | https://arxiv.org/abs/1807.03039

    Arguments:
        lower: A matrix whose strict lower triangle is that of :math:`L`, with shape
            :math:`(*, D, D)`.
        upper: A matrix whose strict upper triangle is that of :math:`U`, with shape
            :math:`(*, D, D)`.
        log_diagonal: The logs of :math:`U_{ii}`, with shape :math:`(*, D)`.
        shift: The vector :math:`m`, with shape :math:`(*, D)`.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> f = LU(torch.randn(3, 3), torch.randn(3, 3), torch.randn(3), torch.randn(3))
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> torch.allclose(f.inv(f(x)), x, atol=1e-4)
        True
    """

    def __init__(self, lower: Tensor, upper: Tensor, log_diagonal: Tensor, shift: Tensor) -> None:
        d = shift.shape[-1]
        if any(m.shape[-2:] != (d, d) for m in (lower, upper)) or log_diagonal.shape[-1] != d:
            raise ValueError(
                f"Expected `lower` and `upper` with shape (*, {d}, {d}) and `log_diagonal` with "
                f"shape (*, {d}), those of `shift`, got {tuple(lower.shape)}, "
                f"{tuple(upper.shape)} and {tuple(log_diagonal.shape)}."
            )
        batch = torch.broadcast_shapes(
            lower.shape[:-2], upper.shape[:-2], log_diagonal.shape[:-1], shift.shape[:-1]
        )
        super().__init__((*batch, d), lower=lower, upper=upper, log_diagonal=log_diagonal)
        eye = torch.eye(d, dtype=lower.dtype, device=lower.device)
        self.lower = lower.tril(-1) + eye
        self.upper = upper.triu(1) + torch.diag_embed(log_diagonal.exp())
        self.ladj, self.shift = log_diagonal.sum(-1), shift

    @classmethod
    def initial(cls, features: int) -> dict[str, Tensor]:
        zeros = torch.zeros(features, features)
        return {"lower": zeros, "upper": zeros, "log_diagonal": zeros[0], "shift": zeros[0]}

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.lower.ndim == 2:
            y = x @ (self.lower @ self.upper).mT + self.shift
        else:
            y = (self.lower @ (self.upper @ x.unsqueeze(-1))).squeeze(-1) + self.shift
        return y, self.ladj.expand(y.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        solve = torch.linalg.solve_triangular
        rows = (y - self.shift).unsqueeze(-2)  # x' = y' L'^-1 U'^-1 broadcasts over draws
        rows = solve(self.lower.mT, rows, upper=True, left=False, unitriangular=True)
        x = solve(self.upper.mT, rows, upper=False, left=False).squeeze(-2)
        return x, self.ladj.expand(x.shape[:-1])


class ActNorm(LazyTransform):
    r"""A learned scale and shift per feature, :math:`y = m + e^s x`, started from data.

    Before its first step :func:`probgen.fit` sets it to the mean and standard deviation of the
    data that reach it, so that what goes on has mean 0 and variance 1. Then it is learned.

    References:
        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma & Dhariwal, 2018)
        | https://arxiv.org/abs/1807.03039

    Arguments:
        features: The number of features :math:`D`.

    Example:
        >>> f = ActNorm(2)
        >>> f.initialize(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))
        >>> f()(torch.zeros(2)).detach()
        tensor([ 1., 20.])
    """

    initialized_flag: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        check_whole(1, features=features)
        register_flag(self)
        self.shift = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))

    def forward(self, context: Tensor | None = None) -> Transform:
        return Diagonal(self.shift, self.log_scale.exp())

    def initialize(
        self, y: Tensor, context: Any = None, weights: Tensor | None = None, inverse: bool = False
    ) -> None:
        if self.initialized:
            return
        unit = Standardizer(self.shift.shape).to(self.shift)
        unit.fit(*rows(y, weights))
        shift, scale = affine(unit, inverse)
        with torch.no_grad():
            self.shift.copy_(shift)
            self.log_scale.copy_(scale.log())
            self.initialized_flag.fill_(True)


class Standardize(LazyTransform):
    r"""The transform :math:`y = m + s x` with the mean and standard deviation of the data.

    They are 0 and 1 until :func:`probgen.fit` sets them before its first step, and not trained.
    As the last transform of a flow it lets data come on any scale. With plain Pyro
    call the module's `initialize(x)` before training.

    Arguments:
        features: The number of features :math:`D`.
        per: Whether each `"feature"` has a scale, or all share one, `"shared"`.

    Example:
        >>> f = Standardize(2)
        >>> f.initialize(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))
        >>> f()(torch.zeros(2))
        tensor([ 1., 20.])
    """

    def __init__(self, features: int, per: Literal["feature", "shared"] = "feature") -> None:
        super().__init__()
        check_whole(1, features=features)
        self.features = features
        self.standardizer = Standardizer((features,), per)

    @property
    def initialized(self) -> bool:
        return self.standardizer.active

    def forward(self, context: Any = None) -> Transform:
        return Diagonal(self.standardizer.shift, self.standardizer.scale)

    def initialize(
        self, y: Tensor, context: Any = None, weights: Tensor | None = None, inverse: bool = False
    ) -> None:
        unit = self.standardizer
        if not unit.active:
            unit.fit(*rows(y, weights))
            shift, scale = affine(unit, inverse)
            unit.shift.copy_(shift)
            unit.scale.copy_(scale)


def rows(y: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Values with any batch as vectors with shape :math:`(N, D)`, and a weight for each."""
    if weights is not None and y.ndim > 2:
        weights = weights.repeat_interleave(y[0, ..., 0].numel())
    return y.reshape(-1, y.shape[-1]), weights


def affine(unit: Standardizer, inverse: bool) -> tuple[Tensor, Tensor]:
    """Return the shift and scale from standard values to data, or of the inverse of that."""
    return (-unit.shift / unit.scale, 1 / unit.scale) if inverse else (unit.shift, unit.scale)
