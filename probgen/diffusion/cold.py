r"""Cold diffusion: degradations of data without noise, and samplers that undo them.

A degradation :math:`D(x, s)` at the levels :math:`s = 0, \dots, S`, with :math:`D(x, 0) = x`, and
a restorer :math:`R(x_s, s) \approx x` take data back level by level, with
:math:`\hat x = R(x_s, s)`,

.. math:: x_{s-1} = D(\hat x, s - 1) \qquad \text{or} \qquad
    x_{s-1} = x_s - D(\hat x, s) + D(\hat x, s - 1).

The first forgets all of :math:`x_s` that the restorer does not say. The second keeps it: where the
degradation adds :math:`s \, e` to the data, whatever they are, it is exact for any restorer.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..core import is_wrapped, register
from ..core.arguments import record
from ..core.cached_tensor import CachedTensor
from ..core.registry import Record
from ..core.validation import check_whole
from .discrete.corruptions import along

__all__ = [
    "BlurDegradation",
    "ColdSampler",
    "CustomDegradation",
    "Degradation",
    "FadeDegradation",
    "MaskDegradation",
    "NaiveCold",
    "PixelateDegradation",
    "TACoS",
]

Restorer = Callable[..., Tensor]


@register
class Degradation(nn.Module):
    """A deterministic degradation of increasing severity.

    Arguments:
        levels: The number of levels :math:`S`, besides that of data.
        shape: The shape of an image, channels first, or the length of a vector; values may be
            flat.
    """

    def __init__(self, levels: int, shape: int | Sequence[int] | None = None) -> None:
        super().__init__()
        check_whole(1, levels=levels)
        self.levels = levels
        if shape is not None:
            self.shape = tuple(shape) if isinstance(shape, Sequence) else (shape,)
            for n in self.shape or (0,):
                check_whole(1, shape=n)
            if len(self.shape) > 3:
                raise ValueError(f"Expected `shape` of 1 to 3 dimensions, got {self.shape}.")

    @abstractmethod
    def degrade(self, x: Tensor, s: Tensor) -> Tensor:
        """Prepare data for levels from 1 on."""

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        r"""Return the degraded data :math:`D(x, s)`.

        Arguments:
            x: The data, with shape :math:`(*, event)`.
            s: The levels, whole numbers from 0 to :math:`S`, with shape :math:`(*)`.

        Returns:
            Degraded data with the shape of the data.
        """
        if Distribution._validate_args and s.device.type != "meta" and not is_wrapped(s):
            if not ((s >= 0) & (s <= self.levels)).all():
                raise ValueError(
                    f"Expected levels `s` from 0 to {self.levels}, got {int(s.min())} to "
                    f"{int(s.max())}."
                )
        shape = getattr(self, "shape", x.shape[s.ndim :])
        if math.prod(shape) != math.prod(x.shape[s.ndim :]):
            raise ValueError(
                f"Expected data of shape {shape}, or flat, at levels with shape {tuple(s.shape)}, "
                f"got {tuple(x.shape)}."
            )
        y = self.degrade(x.reshape(*x.shape[: s.ndim], *shape), s).reshape(x.shape)
        return torch.where(along(s, x) == 0, x, y)


class CustomDegradation(Degradation):
    """A degradation by a given function.

    Arguments:
        function: The map from data with shape :math:`(*, event)` and levels with shape
            :math:`(*)` to degraded data.
        levels: The number of levels :math:`S`.

    Example:
        >>> dim = CustomDegradation(lambda x, s: x * 0.5 ** s.unsqueeze(-1), levels=3)
        >>> dim(torch.ones(2, 4), torch.tensor([0, 2]))[:, 0]
        tensor([1.0000, 0.2500])
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], levels: int) -> None:
        super().__init__(levels)
        self.function = function

    def degrade(self, x: Tensor, s: Tensor) -> Tensor:
        return self.function(x, s)


class Separable(Degradation):
    """A linear map of rows, then of columns: a table of matrices for each.

    Arguments:
        shape: The shape of an image, channels first, or the length of a vector.
        tables: Makes the matrices of one side, with shape :math:`(S + 1, n, n)`.
        levels: The number of levels :math:`S`.
    """

    def __init__(
        self, shape: int | Sequence[int], tables: Callable[[int], Tensor], levels: int
    ) -> None:
        super().__init__(levels, shape)
        height = self.shape[-2] if len(self.shape) > 1 else 1
        self.rows, self.columns = CachedTensor(tables(height)), CachedTensor(tables(self.shape[-1]))

    def degrade(self, x: Tensor, s: Tensor) -> Tensor:
        rows, columns = (table(x)[s] for table in (self.rows, self.columns))
        if len(self.shape) == 1:
            return (columns @ x.unsqueeze(-1)).squeeze(-1)
        if len(self.shape) == 3:
            rows, columns = rows.unsqueeze(-3), columns.unsqueeze(-3)
        return rows @ x @ columns.mT


def longest(shape: int | Sequence[int]) -> int:
    return max(shape[-2:]) if isinstance(shape, Sequence) and shape else shape  # type: ignore


class BlurDegradation(Separable):
    r"""A Gaussian blur of width :math:`\sigma_s = \sigma_S \, s / S`, no light leaving the picture.

    It is the heat equation with closed ends: the cosine :math:`k` of a side of :math:`n` pixels is
    multiplied by :math:`e^{-(\pi k \sigma_s / n)^2 / 2}`.

    References:
        | Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise (Bansal et al., 2022)
        | https://arxiv.org/abs/2208.09392

    Arguments:
        shape: The shape of an image, channels first, or the length of a vector.
        levels: The number of levels :math:`S`.
        width: The width :math:`\sigma_S` in pixels, half the longer side by default.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> x = torch.zeros(8, 8)
        >>> x[4, 4] = 1
        >>> y = BlurDegradation((8, 8), levels=10)(x, torch.tensor(5))
        >>> round(float(y.sum()), 4), bool(y.max() < 0.1)
        (1.0, True)
    """

    def __init__(
        self, shape: int | Sequence[int], levels: int = 20, width: float | None = None
    ) -> None:
        check_whole(1, levels=levels)
        if width is not None and not 0 < width < math.inf:
            raise ValueError(f"Expected a positive `width`, got {width!r:.80}.")

        def tables(n: int) -> Tensor:
            most = longest(shape) / 2 if width is None else width
            i = torch.arange(n, dtype=torch.double)
            cosines = torch.cos(math.pi / n * i[:, None] * (i + 0.5)) * math.sqrt(2 / n)
            cosines[0] /= math.sqrt(2)
            s = torch.linspace(0, most, levels + 1, dtype=torch.double)
            kept = (-(math.pi / n * i * s[:, None]).square() / 2).exp()
            return cosines.T @ (kept.unsqueeze(-1) * cosines)

        super().__init__(shape, tables, levels)


class PixelateDegradation(Separable):
    r"""Pixels merge in blocks of :math:`2^s`, which have their mean.

    References:
        | Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise (Bansal et al., 2022)
        | https://arxiv.org/abs/2208.09392

    Arguments:
        shape: The shape of an image, channels first, or the length of a vector.
        levels: The number of levels :math:`S`; by default until one block is left.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> PixelateDegradation(4)(torch.tensor([1.0, 3.0, 0.0, 8.0]), torch.tensor(1))
        tensor([2., 2., 4., 4.])
    """

    def __init__(self, shape: int | Sequence[int], levels: int | None = None) -> None:
        count = max((longest(shape) - 1).bit_length(), 1) if levels is None else levels
        check_whole(1, levels=count)

        def tables(n: int) -> Tensor:
            size = 2 ** torch.arange(count + 1)
            block = torch.arange(n) // size[:, None]
            same = (block.unsqueeze(-1) == block.unsqueeze(-2)).double()
            return same / same.sum(-1, keepdim=True)

        super().__init__(shape, tables, count)


class MaskDegradation(Degradation):
    """Pixels get one colour, from the centre of the picture on.

    References:
        | Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise (Bansal et al., 2022)
        | https://arxiv.org/abs/2208.09392

    Arguments:
        shape: The shape of an image, channels first, or the length of a vector.
        levels: The number of levels :math:`S`.
        rest: The share of pixels, those at the rim, that are left at the last level.
        colour: Their value.

    Raises:
        ValueError: If a number is impossible.

    Example:
        >>> MaskDegradation(4, levels=2, rest=0.5)(torch.arange(1.0, 5.0), torch.tensor(2))
        tensor([1., 0., 0., 4.])
    """

    order: Tensor

    def __init__(
        self, shape: int | Sequence[int], levels: int = 20, rest: float = 0.25, colour: float = 0.0
    ) -> None:
        super().__init__(levels, shape)
        if not 0 <= rest < 1:
            raise ValueError(f"Expected `rest` in [0, 1), got {rest!r:.80}.")
        self.rest, self.colour = rest, colour
        sides = [torch.arange(n) - (n - 1) / 2 for n in self.shape[-2:]]
        far = sum(a.square() for a in torch.meshgrid(*sides, indexing="ij"))
        order = far.flatten().argsort(stable=True).argsort().reshape(self.shape[-2:])  # type: ignore
        self.register_buffer("order", order, persistent=False)

    def degrade(self, x: Tensor, s: Tensor) -> Tensor:
        hidden = ((1 - self.rest) * self.order.numel() / self.levels * s).round()
        return torch.where(self.order < along(hidden, x), self.colour, x)


class FadeDegradation(Degradation):
    r"""Each picture fades to its own mean colour, :math:`x + (\bar x - x) s / S`.

    Arguments:
        shape: The shape of an image, channels first, or the length of a vector.
        levels: The number of levels :math:`S`.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> FadeDegradation(2, levels=4)(torch.tensor([0.0, 4.0]), torch.tensor(2))
        tensor([1., 3.])
    """

    def __init__(self, shape: int | Sequence[int], levels: int = 20) -> None:
        super().__init__(levels, shape)

    def degrade(self, x: Tensor, s: Tensor) -> Tensor:
        mean = x.mean(tuple(range(-len(self.shape[-2:]), 0)), keepdim=True)
        return torch.lerp(x, mean, along(s.to(x.dtype) / self.levels, x))


class ColdSampler(Record):
    """A way from degraded data to data; every one is a frozen dataclass of it.

    A subclass gives :meth:`step`, which :meth:`sample` takes from the last level to the first.

    References:
        | Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise (Bansal et al., 2022)
        | https://arxiv.org/abs/2208.09392

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Halfway(ColdSampler):
        ...     def step(self, degradation, x, clean, s):
        ...         return (x + degradation(clean, s - 1)) / 2
        >>> x = torch.tensor([4.0, 4.0])
        >>> Halfway().sample(lambda x, s: torch.zeros_like(x), FadeDegradation(2, levels=2), x)
        tensor([1., 1.])
    """

    @abstractmethod
    def step(self, degradation: Degradation, x: Tensor, clean: Tensor, s: Tensor) -> Tensor:
        r""":math:`x_{s-1}` of :math:`x_s` and what is restored of it.

        Arguments:
            degradation: The degradation.
            x: The values :math:`x_s`, with shape :math:`(*, event)`.
            clean: What is restored, :math:`\hat x = R(x_s, s)`, with the same shape.
            s: The levels, from 1 on, with shape :math:`(*)`.
        """

    def walk(
        self, restorer: Restorer, degradation: Degradation, x: Tensor, event_dim: int = 1
    ) -> Iterator[Tensor]:
        """Return the values after each step, as :meth:`sample` takes them."""
        for k in range(degradation.levels, 0, -1):
            s = torch.full(x.shape[: x.ndim - event_dim], k, device=x.device)
            x = self.step(degradation, x, restorer(x, s), s)
            yield x

    def sample(
        self, restorer: Restorer, degradation: Degradation, x: Tensor, event_dim: int = 1
    ) -> Tensor:
        r"""Take all steps.

        Arguments:
            restorer: The restorer, a map from degraded data with shape :math:`(*, event)` and
                levels with shape :math:`(*)` to data.
            degradation: The degradation.
            x: Data at the last level, with shape :math:`(*, event)`.
            event_dim: The number of dimensions of an item.

        Returns:
            Data, with the shape of `x`.
        """
        for value in self.walk(restorer, degradation, x, event_dim):
            x = value
        return x


@record
class NaiveCold(ColdSampler):
    r"""Restore, then degrade to the level below, :math:`x_{s-1} = D(\hat x, s - 1)`.

    References:
        | Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise (Bansal et al., 2022)
        | https://arxiv.org/abs/2208.09392

    Example:
        >>> fade = FadeDegradation(2, levels=4)
        >>> NaiveCold().sample(lambda x, s: x, fade, torch.tensor([1.0, 3.0]))
        tensor([1.9062, 2.0938])
    """

    def step(self, degradation: Degradation, x: Tensor, clean: Tensor, s: Tensor) -> Tensor:
        return degradation(clean, s - 1)


@record
class TACoS(ColdSampler):
    r"""Add back one level, :math:`x_{s-1} = x_s - D(\hat x, s) + D(\hat x, s - 1)`.

    References:
        | Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise (Bansal et al., 2022)
        | https://arxiv.org/abs/2208.09392

    Example:
        >>> tilt = CustomDegradation(lambda x, s: x + s.unsqueeze(-1) * torch.arange(3.0), 4)
        >>> x = tilt(torch.ones(3), torch.tensor(4))
        >>> TACoS().sample(lambda x, s: torch.zeros_like(x), tilt, x)
        tensor([1., 1., 1.])
    """

    def step(self, degradation: Degradation, x: Tensor, clean: Tensor, s: Tensor) -> Tensor:
        return x - degradation(clean, s) + degradation(clean, s - 1)
