"""A backend of `opt_einsum` for log densities: sums of products become log-sum-exps of sums."""

from __future__ import annotations

import torch
from pyro.ops.einsum.util import Tensordot
from torch import Tensor

__all__ = ["einsum", "tensordot", "transpose"]


def transpose(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    return a.permute(axes)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Return the log of a sum of products, of operands in logs.

    Example:
        >>> a, b = torch.rand(2, 3), torch.rand(3)
        >>> c = einsum("ij,j->i", a.log(), b.log())
        >>> torch.allclose(c.exp(), a @ b)
        True
    """
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    order = output + "".join(sorted(set("".join(terms)) - set(output)))
    total: Tensor = torch.zeros((), dtype=operands[0].dtype, device=operands[0].device)
    for names, operand in zip(terms, operands, strict=True):
        present = [name for name in order if name in names]
        aligned = operand.permute([names.index(name) for name in present])
        sizes = dict(zip(present, aligned.shape))
        total = total + aligned.reshape([sizes.get(name, 1) for name in order])
    summed = list(range(len(output), len(order)))
    if not summed:
        return total
    floor = torch.finfo(total.dtype).min / 4  # a sum of nothing but zeros has a gradient of zero
    result = total.clamp(min=floor).logsumexp(summed)
    return torch.where(result <= floor / 2, -torch.inf, result)


tensordot = Tensordot(einsum)
