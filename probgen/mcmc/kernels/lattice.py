r"""Spins on a lattice.

Spins :math:`x_i = \pm 1` on the sites of a lattice of any dimension have the law

.. math:: \log \pi(x) = K \sum_{\langle i j \rangle} x_i x_j + \sum_i b_i x_i + \text{const},

the first sum over neighbours. Sites are black and white like a chessboard's squares: no two of a
colour are neighbours, so all of a colour are drawn together given the other. Each colour is kept
as one compact tensor of bytes: along the last axis, site :math:`j` of a row is entry
:math:`\lfloor j / 2 \rfloor` of its colour, and its neighbours in the row are that entry of the
other colour and the one before or after it, as the row is even or odd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.arguments import record
from .gibbs import Direct

__all__ = ["Checkerboard"]


@record
class Checkerboard(Direct):
    r"""Gibbs sampling of spins on a lattice, all of one colour at a time.

    Arguments:
        shape: The shape of the lattice, even along its last axis, and along all if periodic.
        coupling: The coupling :math:`K`, a number or a tensor of one.
        field: The field :math:`b`, a number or a tensor that broadcasts to the lattice.
        periodic: Whether opposite borders are neighbours.

    Raises:
        ValueError: If the lattice has no two colours of one size.

    Example:
        Without coupling, spins follow the field:

        >>> _ = torch.manual_seed(0)
        >>> kernel = Checkerboard((8, 8), coupling=0.0, field=1.0)
        >>> x = kernel.move(torch.ones(200, 8, 8))
        >>> abs(float(x.mean()) - float(torch.tensor(1.0).tanh())) < 0.03
        True
    """

    shape: Sequence[int]
    coupling: float | Tensor
    field: float | Tensor = 0.0
    periodic: bool = True

    def __post_init__(self) -> None:
        if self.shape[-1] % 2 or (self.periodic and any(n % 2 for n in self.shape)):
            raise ValueError(
                f"Expected a lattice that is even along {'every' if self.periodic else 'its last'} "
                f"axis, got {tuple(self.shape)}. GraphGibbs takes any."
            )

    def check_position(self, position: Tensor) -> None:
        if tuple(position.shape[1:]) != tuple(self.shape):
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(
                f"Expected a position with shape (chains, {wanted}), got {tuple(position.shape)}."
            )

    def odd(self, like: Tensor) -> Tensor:
        """Whether a row is odd, with the shape of a lattice but its last axis, and 1 there."""
        parity = torch.zeros((), dtype=torch.long, device=like.device)
        for n in self.shape[:-1]:
            parity = parity[..., None] + torch.arange(n, device=like.device)
        return (parity % 2 == 1)[..., None]

    def split(self, x: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        """Return the black and the white sites, along half of the last axis."""
        even, other = x[..., 0::2], x[..., 1::2]
        return torch.where(odd, other, even), torch.where(odd, even, other)

    def join(self, black: Tensor, white: Tensor, odd: Tensor) -> Tensor:
        pairs = torch.where(odd, white, black), torch.where(odd, black, white)
        return torch.stack(pairs, -1).flatten(-2)

    def heard(self, other: Tensor, back: Tensor) -> Tensor:
        """Return the sum of each site's neighbours, all of the other colour."""
        before, after = self.shifted(other, 1, -1), self.shifted(other, -1, -1)
        total = other + torch.where(back, after, before)
        for axis in range(1, other.ndim - 1):
            total += self.shifted(other, 1, axis)
            total += self.shifted(other, -1, axis)
        return total

    def shifted(self, x: Tensor, by: int, axis: int) -> Tensor:
        out = x.roll(by, axis)
        if not self.periodic:
            out.select(axis, 0 if by > 0 else -1).zero_()
        return out

    def move(self, position: Tensor, steps: int = 1) -> Tensor:
        odd = self.odd(position)
        black, white = self.split(position.to(torch.int8), odd)
        twice = torch.as_tensor(2 * self.coupling, dtype=position.dtype, device=position.device)
        fields: tuple[Tensor | float, Tensor | float] = (0.0, 0.0)
        if isinstance(self.field, Tensor) or self.field:
            b = torch.as_tensor(self.field, dtype=position.dtype, device=position.device)
            fields = self.split(2 * b.expand(tuple(self.shape)), odd)
        for _ in range(steps):
            black = spins(twice, self.heard(white, odd), fields[0])
            white = spins(twice, self.heard(black, ~odd), fields[1])
        return self.join(black, white, odd).to(position.dtype)

    def log_density(self, position: Tensor) -> Tensor:
        pairs = bonds(position, len(self.shape), self.periodic)
        linear = (position * self.field).flatten(1).sum(-1)
        return self.coupling * pairs + linear


def spins(twice: Tensor, heard: Tensor, field: Tensor | float) -> Tensor:
    """Spins, as bytes, given twice the coupling, what they hear of neighbours, twice the field."""
    p = heard.to(twice.dtype).mul_(twice)
    p = (p if isinstance(field, float) else p.add_(field)).sigmoid_()
    return (torch.rand_like(p) < p).to(torch.int8).mul_(2).sub_(1)


def bonds(x: Tensor, dims: int, periodic: bool) -> Tensor:
    r"""Return sum :math:`\sum x_i x_j` over neighbours in the last axes, for each of the rest."""
    total = x.new_zeros(x.shape[: x.ndim - dims])
    for axis in range(-dims, 0):
        n = x.shape[axis]
        if periodic:
            pairs = x * x.roll(1, axis)
        else:
            pairs = x.narrow(axis, 1, n - 1) * x.narrow(axis, 0, n - 1)
        total = total + pairs.flatten(-dims).sum(-1)
    return total


def log_partition_torus(rows: int, columns: int, coupling: Tensor) -> Tensor:
    r"""Return the log partition function of a periodic lattice without field, exactly.

    With :math:`\cosh \gamma_k = \cosh 2K \coth 2K - \cos(\pi k / n)` for :math:`k \ge 1` and
    :math:`\gamma_0 = 2K + \log \tanh K`, on :math:`m \times n` sites

    .. math:: Z = \tfrac{1}{2} (2 \sinh 2K)^{mn/2} \Bigl[
        \prod_{k \text{ odd}} 2 \cosh \tfrac{m \gamma_k}{2} +
        \prod_{k \text{ odd}} 2 \sinh \tfrac{m \gamma_k}{2} +
        \prod_{k \text{ even}} 2 \cosh \tfrac{m \gamma_k}{2} +
        \prod_{k \text{ even}} 2 \sinh \tfrac{m \gamma_k}{2} \Bigr],

    :math:`k` from 0 to :math:`2n - 1`.

    References:
        Kaufman, "Crystal statistics. II. Partition function evaluated by spinor analysis", 1949,
        https://doi.org/10.1103/PhysRev.76.1232

    Arguments:
        rows: The number :math:`m`.
        columns: The number :math:`n`.
        coupling: The coupling :math:`K`; below zero only where both numbers are even, else nan.

    Returns:
        The value in float64, with the shape of `coupling`.

    Example:
        >>> float(log_partition_torus(4, 4, torch.tensor(0.0))) / 16  # the log of 2
        0.693147...
    """
    m, n = rows, columns
    k = coupling.double().abs().clamp_min(1e-7).unsqueeze(-1)  # where it is flat
    angle = torch.arange(2 * n, device=coupling.device, dtype=torch.double) * (math.pi / n)
    shrink = torch.exp(-4 * k)  # without overflow: the logs of cosh and of 2 sinh of 2 K
    log_cosh, log_sinh = 2 * k + torch.log1p(shrink), 2 * k + torch.log(-torch.expm1(-4 * k))
    log_size = 2 * log_cosh - log_sinh - math.log(2)  # of cosh 2K coth 2K
    near = torch.acosh(log_size.clamp(max=300).exp() - torch.cos(angle[1:]))
    gamma = torch.where(log_size > 300, log_size + math.log(2), near)  # of 1, 2, ..., 2 n - 1
    zero = (2 * k + torch.log(torch.tanh(k))) * (m / 2)
    size = zero.abs()
    half = gamma * (m / 2)
    both = half + torch.log1p(torch.exp(-2 * half))  # log 2 cosh
    gap = half + torch.log(-torch.expm1(-2 * half))  # log 2 sinh
    terms = torch.cat(
        [
            both[..., 0::2].sum(-1, keepdim=True),
            gap[..., 0::2].sum(-1, keepdim=True),
            both[..., 1::2].sum(-1, keepdim=True) + size + torch.log1p(torch.exp(-2 * size)),
            gap[..., 1::2].sum(-1, keepdim=True) + size,
        ],
        -1,
    )
    last = torch.exp(zero - size) - torch.exp(-zero - size)  # its sign is that of gamma_0
    peak = terms.detach().amax(-1, keepdim=True)
    parts = torch.exp(terms - peak) * torch.cat([torch.ones_like(terms[..., :3]), last], -1)
    scale = log_sinh[..., 0] * (m * n / 2)
    value = scale - math.log(2) + peak[..., 0] + torch.log(parts.sum(-1))
    if m % 2 or n % 2:  # where a repulsion is frustrated
        value = torch.where(coupling >= 0, value, torch.nan)
    return value
