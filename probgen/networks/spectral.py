r"""The largest singular value of a matrix.

Of a kernel as a matrix :math:`W` with a row for each output channel, the largest singular value is
:math:`\sigma = u^\top W v` for its singular vectors, which power iteration finds:
:math:`u \propto (W W^\top)^n u_0`. Here the matrix itself is squared :math:`k` times, which takes
:math:`n = 2^k` iterations and needs no vector from the step before, so the value is a function of
the matrix alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["spectral_norm"]


def spectral_norm(weight: Tensor, squarings: int = 5) -> Tensor:
    r"""Return largest singular values of matrices with shape :math:`(*, m, n)`, by power iteration.

    The gradient is that of :math:`u^\top W v` with both vectors held.

    Arguments:
        weight: The matrices.
        squarings: The number of squarings :math:`k`, so :math:`2^k` iterations.

    Returns:
        The values, with shape :math:`(*)`.

    Example:
        >>> float(spectral_norm(torch.diag(torch.tensor([3.0, 1.0]))))
        3.0
    """
    if weight.shape[-2] > weight.shape[-1]:
        weight = weight.mT
    tiny = torch.finfo(weight.dtype).tiny
    with torch.no_grad():
        power = weight @ weight.mT
        for _ in range(squarings + 1):
            power = power / power.square().sum((-2, -1), keepdim=True).sqrt().clamp_min(tiny)
            power = power @ power
        column = power.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
        u = power.take_along_dim(column, -1).squeeze(-1)
        u = u / u.square().sum(-1, keepdim=True).sqrt().clamp_min(tiny)
        v = (weight.mT @ u.unsqueeze(-1)).squeeze(-1)
        v = v / v.square().sum(-1, keepdim=True).sqrt().clamp_min(tiny)
    return (u * (weight @ v.unsqueeze(-1)).squeeze(-1)).sum(-1)
