r"""Root-finding with implicit derivatives.

For an increasing function :math:`g` and a target :math:`t`, the root of :math:`g(a) = t` is
found by bisection, which cannot fail once the root is bracketed. By the implicit function
theorem one Newton step from the (detached) root,

.. math:: a \leftarrow a - \frac{g(a) - t}{g'(a)},

leaves the value unchanged and carries the first derivative in every quantity that :math:`g`
and :math:`t` depend on; two steps carry the second and third.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

__all__ = ["floating_like", "increasing_root", "is_wrapped"]

EXPANSIONS = 8  # each makes the bracket 16 times wider


def increasing_root(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    target: Tensor,
    low: Tensor,
    high: Tensor,
) -> Tensor:
    r"""Solves :math:`g(a) = t` elementwise for an increasing :math:`g`.

    The bracket is widened until it holds the root, up to :math:`16^8` times its width, then
    halved as many times as the floating type has bits.

    Arguments:
        function: The map from :math:`a` to :math:`g(a)` and :math:`g'(a)`, elementwise.
        target: The values :math:`t`, with shape :math:`(*)`.
        low: Where the bracket starts, with shape :math:`(*)`.
        high: Where it ends, above `low`.

    Returns:
        The roots, with shape :math:`(*)`, and exact derivatives up to the third order.

    Raises:
        ValueError: If no bracket was found. Read only under argument validation, since it
            synchronises with the device.

    Example:
        >>> t = torch.tensor([1.0, 8.0, 1e6], dtype=torch.float64, requires_grad=True)
        >>> cube = lambda a: (a**3 + a, 3 * a**2 + 1)
        >>> a = increasing_root(cube, t, t.detach() - 1, t.detach())
        >>> torch.allclose(a**3 + a, t)
        True
        >>> (slope,) = torch.autograd.grad(a.sum(), t)
        >>> torch.allclose(slope, 1 / (3 * a**2 + 1))
        True
    """
    with torch.no_grad():
        low, high, goal = torch.broadcast_tensors(low, high, target)
        for _ in range(EXPANSIONS):
            width = (high - low).clamp_min(torch.finfo(goal.dtype).eps)
            low = torch.where(function(low)[0] > goal, low - 15 * width, low)
            high = torch.where(function(high)[0] < goal, high + 15 * width, high)
        if Distribution._validate_args and target.device.type != "meta" and not is_wrapped(target):
            found = (function(low)[0] <= goal) & (goal <= function(high)[0])
            if not (found | ~goal.isfinite()).all():
                worst = goal[~found][0]
                raise ValueError(
                    f"Expected an increasing function whose range holds the target, found no "
                    f"bracket around {float(worst):.6g}."
                )
        for _ in range(torch.finfo(goal.dtype).bits):
            root = (low + high) / 2
            above = function(root)[0] > goal
            low, high = torch.where(above, low, root), torch.where(above, root, high)
        root = (low + high) / 2
    for _ in range(2):
        value, slope = function(root)
        root = root - (value - target) / slope
    return root


def floating_like(module: nn.Module) -> Tensor:
    """Return a tensor of the dtype and on the device of a module: its first floating-point one."""
    for t in (*module.parameters(), *module.buffers()):
        if t.is_floating_point():
            return t
    return torch.zeros(())


def is_wrapped(x: Tensor) -> bool:
    """Whether a tensor is inside `vmap` or another of torch's function transforms, or a trace.

    Its values cannot be read there, nor can it be written to.
    """
    return torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x)
