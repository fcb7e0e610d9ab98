r"""Location and scale of data and contexts, fitted once.

Networks learn from numbers near one. A standardiser holds a shift :math:`a` and a scale :math:`b`
of each feature, of each channel or of all features together,

.. math:: y = (x - a) / b, \qquad x = a + b y,

the mean and the standard deviation of weighted data. A feature that is constant up to rounding has
scale 1. Where a few values dominate, the moments of the others are taken, with a warning.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .arguments import checked
from .contexts import ContextShape, batch_of, entries, leaves
from .validation import outside

__all__ = ["ContextStandardizer", "OutlierWarning", "ScaleWarning", "Standardizer", "moments"]

FARTHEST = 0.01  # the fraction of values that may be outliers
DOMINANT = 10.0  # by how many times outliers enlarge a standard deviation
FAR = 9.0  # standard deviations beyond which at least one of such few values lies
TOLERATED = 10.0  # standard deviations between old and new data, or their ratio
FEWEST = 20  # values without which none is called an outlier

Per = Literal["feature", "channel", "shared", "one"]


class ScaleWarning(UserWarning):
    """Data on another scale than those that a module was initialized with."""


class OutlierWarning(UserWarning):
    """A few values that dominate the scale of data or contexts."""


class Standardizer(nn.Module):
    """An affine map of data to mean 0 and variance 1, the identity until it is fitted.

    Arguments:
        shape: The shape of one item, of data or of contexts.
        per: What has a location and scale of its own: each `"feature"`, each `"channel"` (along
            the first axis of an item), or `"one"` for all; with `"shared"` each feature has a
            location, and all share a scale. By default each feature of a vector, and one for all
            of an image or another array.

    Raises:
        ValueError: If `per` is none of these.

    Attributes:
        shift: The location, with shape `shape`, in units of the data.
        scale: The scale, with shape `shape`.
        fitted: Whether it was fitted, with shape :math:`(1)`.

    Example:
        >>> s = Standardizer((2,))
        >>> s.fit(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))
        >>> s(torch.tensor([3.0, 40.0])), s.inverse(torch.zeros(2))
        (tensor([2., 2.]), tensor([ 1., 20.]))
    """

    shift: Tensor
    scale: Tensor
    fitted: Tensor

    @checked
    def __init__(self, shape: Sequence[int], per: Per | None = None) -> None:
        super().__init__()
        per = ("feature" if len(shape) <= 1 else "one") if per is None else per
        if per not in ("feature", "channel", "shared", "one"):
            raise ValueError(
                f"Expected `per` of 'feature', 'channel', 'shared' or 'one', got {per!r:.80}."
            )
        self.shape, self.per = torch.Size(shape), per
        self.register_buffer("shift", torch.zeros(self.shape))
        self.register_buffer("scale", torch.ones(self.shape))
        self.register_buffer("fitted", torch.zeros(1, dtype=torch.bool))
        self.active = False  # the flag again, which no forward pass reads from a device

    def fit(
        self, x: Tensor, weights: Tensor | None = None, name: str = "data", per: Per | None = None
    ) -> None:
        """Set location and scale from data, unless they were set before.

        Arguments:
            x: The data, with shape :math:`(N, *shape)`.
            weights: Their weights, with shape :math:`(N)`; equal by default.
            name: What the data are called in a warning.
            per: Another choice than that of the standardiser.

        Raises:
            ValueError: If the shape of the data does not fit, or no weight is positive.

        Warns:
            OutlierWarning: If a few values dominate.
        """
        if self.active:
            return
        if x.ndim != 1 + len(self.shape) or x.shape[1:] != self.shape:
            wanted = ", ".join(["N", *map(str, self.shape)])
            raise ValueError(f"Expected `{name}` with shape ({wanted}), got {tuple(x.shape)}.")
        per = self.per if per is None else per
        x = x.detach().to(self.shift.dtype)
        size = max(math.prod(self.shape), 1)
        groups = {"one": 1, "channel": self.shape[0] if self.shape else 1}.get(per, size)
        flat = x.reshape(len(x), groups, -1)
        count = flat.shape[-1]
        if weights is not None:
            weights = weights.repeat_interleave(count)
        columns = flat.movedim(1, -1).reshape(-1, groups)
        shift, scale = (m.reshape(-1, 1) for m in moments(columns, weights, name))
        if per == "shared":
            scale = scale.square().mean().sqrt().expand_as(scale)
        for buffer, value in ((self.shift, shift), (self.scale, scale)):
            buffer.copy_(value.expand(-1, count).reshape(self.shape))
        self.fitted.fill_(True)
        self.active = True

    def forward(self, x: Tensor) -> Tensor:
        """Standardise data with shape :math:`(*, shape)`."""
        return (x - self.shift) / self.scale if self.active else x

    def inverse(self, y: Tensor) -> Tensor:
        """Map standardised values, with shape :math:`(*, shape)`, back to data."""
        return torch.addcmul(self.shift, self.scale, y) if self.active else y

    def compare(self, x: Tensor, name: str) -> None:
        """Warn if data, with shape :math:`(N, *shape)`, are on another scale than those before.

        Warns:
            ScaleWarning: If they are more than 10 standard deviations away, or 10 times as wide.
        """
        if not self.active:
            return
        y = self(x.reshape(-1, *self.shape).to(self.shift.dtype)).flatten(1)
        mean, std = y.mean(0), y.std(0, correction=0)
        far = (mean.abs() > TOLERATED) | (std > TOLERATED)
        if bool(far.any()):
            i = int(far.nonzero()[0])
            warnings.warn(
                f"`{name}` are on another scale than those that the module was initialized with: "
                f"in units of these, feature {i} has mean {float(mean[i]):.4g} and standard "
                f"deviation {float(std[i]):.4g}. What was learned stays as it is. Build the "
                f"module anew, or pass initialize=True, for other data.",
                ScaleWarning,
                stacklevel=outside(),
            )

    def log_scale(self) -> Tensor:
        """Return the sum of the logarithms of all scales, by which log densities differ."""
        return self.scale.log().sum()

    def reset(self) -> None:
        """Forget that data were seen; the values stay until they are set again."""
        self.fitted.zero_()
        self.active = False

    def copy(self, other: Standardizer) -> None:
        """Take over what another one learned."""
        self.load_state_dict(other.state_dict())

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, per={self.per!r}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.active = self.fitted.device.type == "meta" or bool(self.fitted)


class ContextStandardizer(nn.Module):
    """A standardiser of contexts: one for each tensor of a context.

    Arguments:
        shape: The context shape.

    Example:
        >>> s = ContextStandardizer({"age": (1,), "scan": (1, 2, 2)})
        >>> context = {"age": torch.tensor([[30.0], [50.0]]), "scan": torch.ones(2, 1, 2, 2)}
        >>> s.fit(context)
        >>> s(context)["age"]
        tensor([[-1.],
                [ 1.]])
    """

    def __init__(self, shape: ContextShape) -> None:
        super().__init__()
        self.shape = shape
        self.parts = nn.ModuleList([Standardizer(entry) for entry in entries(shape)])

    def fit(self, context: Any, weights: Tensor | None = None) -> None:
        """Set locations and scales from contexts, with batch shape :math:`(N)`, once."""
        batch = batch_of(context, self.shape)
        parts: Any = self.parts
        for part, name, leaf in zip(parts, self.names(), leaves(context, self.shape)):
            part.fit(leaf.expand(*batch, *part.shape), weights, name)

    def names(self) -> list[str]:
        """Return the name of the tensors in messages."""
        if len(self.parts) == 1 and not isinstance(self.shape, dict):
            return ["context"]
        keys = self.shape if isinstance(self.shape, dict) else range(len(self.parts))
        return [f"context[{key!r}]" for key in keys]

    def forward(self, context: Any) -> Any:
        """Standardise contexts with any batch."""
        if isinstance(context, Tensor):
            return self.parts[0](context)
        done = [f(leaf) for f, leaf in zip(self.parts, leaves(context, self.shape))]
        return dict(zip(self.shape, done)) if isinstance(self.shape, dict) else tuple(done)

    def compare(self, context: Any, name: str = "context") -> None:
        """Warn if contexts are on another scale than those before."""
        parts: Any = self.parts
        for part, own, leaf in zip(parts, self.names(), leaves(context, self.shape)):
            part.compare(leaf, own)

    def copy(self, other: ContextStandardizer) -> None:
        """Take over what another one learned."""
        self.load_state_dict(other.state_dict())


def moments(x: Tensor, weights: Tensor | None = None, name: str = "data") -> tuple[Tensor, Tensor]:
    """Return the weighted mean and standard deviation of each feature.

    A feature that is constant up to rounding has standard deviation 1. Where the farthest 1 % of
    the values enlarge it more than tenfold, they are left out.

    Arguments:
        x: The data, with shape :math:`(N, D)`.
        weights: Their weights, with shape :math:`(N)`; equal by default.
        name: What the data are called in a warning.

    Returns:
        Both, with shape :math:`(D)`.

    Raises:
        ValueError: If no weight is positive.

    Warns:
        OutlierWarning: If a few values dominate.

    Example:
        >>> moments(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
        (tensor([1., 5.]), tensor([1., 1.]))
    """
    if weights is not None:
        used = weights > 0
        if not bool(used.any()):
            raise ValueError(f"Expected positive weights of some `{name}`, got none.")
        x, weights = x[used], weights[used].to(x.dtype).unsqueeze(-1)
    mean, std = weighted(x, weights)
    suspects = ((x - mean).abs().amax(0) > FAR * std).nonzero().flatten()
    if len(x) >= FEWEST and len(suspects):
        part = x[:, suspects]
        far = (part - part.median(0).values).abs()
        edge = far.kthvalue(len(x) - max(1, int(FARTHEST * len(x))), 0).values
        kept = (far <= edge).to(x.dtype)
        inner_mean, inner_std = weighted(part, kept if weights is None else kept * weights)
        varies = inner_std > 4 * torch.finfo(x.dtype).eps * part.abs().mul(kept).amax(0)
        ratio = torch.where(varies, std[suspects] / inner_std, 0.0)
        dominated = ratio > DOMINANT
        if bool(dominated.any()):
            warn(int(ratio.argmax()), suspects, far, std, inner_std, int(dominated.sum()), name)
            mean[suspects] = torch.where(dominated, inner_mean, mean[suspects])
            std[suspects] = torch.where(dominated, inner_std, std[suspects])
    constant = std <= 4 * torch.finfo(x.dtype).eps * x.abs().amax(0)
    return mean, torch.where(constant, 1.0, std)


def weighted(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature, with weights that broadcast to them."""
    if weights is None:
        return x.mean(0), x.std(0, correction=0)
    fraction = weights / weights.sum(0)
    mean = (fraction * x).sum(0)
    return mean, (fraction * (x - mean).square()).sum(0).sqrt()


def warn(
    worst: int, suspects: Tensor, far: Tensor, std: Tensor, inner: Tensor, count: int, name: str
) -> None:
    """Warn of the feature whose scale outliers enlarge the most."""
    feature = int(suspects[worst])
    where = f"feature {feature} of `{name}`" if len(std) > 1 else f"`{name}`"
    warnings.warn(
        f"A few values dominate the scale of {where}: without the farthest 1 % of them the "
        f"standard deviation is {float(inner[worst]):.4g}, with them {float(std[feature]):.4g}; "
        f"the farthest, in row {int(far[:, worst].argmax())} of the sample, lies "
        f"{float(far[:, worst].max()):.4g} from the median. The scale without them is used"
        f"{f', as in {count - 1} more features' if count > 1 else ''}. Remove these values, "
        f"transform the feature, or give them weight 0.",
        OutlierWarning,
        stacklevel=outside(),
    )
