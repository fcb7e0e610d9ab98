"""A backend of `opt_einsum` for log densities that draws the indices that are summed out.

Forward, sums of products become log-sum-exps of sums, in operations that `torch.func.vmap` takes;
backward, Pyro's own steps draw the indices.
"""

from __future__ import annotations

from pyro.ops import packed
from pyro.ops.einsum.torch_sample import _EinsumBackward, transpose
from pyro.ops.einsum.util import Tensordot
from torch import Tensor

from . import log_einsum

__all__ = ["einsum", "tensordot", "transpose"]


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Return log of a sum of products, of operands in logs, which knows how to draw its indices.

    Example:
        >>> import torch
        >>> a = torch.rand(2, 3).log()
        >>> a._pyro_dims = "ab"
        >>> torch.allclose(einsum("ab->a", a), a.logsumexp(1))
        True
    """
    renamed = packed.rename_equation(equation, *operands)
    result = log_einsum.einsum(renamed, *operands)
    output = renamed.split("->")[1]
    result._pyro_dims = output  # type: ignore[attr-defined]
    if any(hasattr(x, "_pyro_backward") for x in operands):
        result._pyro_backward = _EinsumBackward(output, operands)  # type: ignore[attr-defined]
    return result


tensordot = Tensordot(einsum)
