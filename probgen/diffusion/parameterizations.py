"""Conversion between what networks predict."""

from __future__ import annotations

from torch import Tensor

__all__ = ["convert"]

KINDS = ("eps", "flow", "score", "v", "x_0")


def convert(
    value: Tensor,
    source: str,
    target: str,
    x: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    slopes: tuple[Tensor, Tensor] | None = None,
    before: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    r"""Convert between network parameterizations (x_0, eps, v, score, velocity, mu).

    References:
        | Progressive Distillation for Fast Sampling of Diffusion Models (Salimans & Ho, 2022)
        | https://arxiv.org/abs/2202.00512

    Arguments:
        value: What is to be turned, with shape :math:`(*, event)`.
        source: What it is: `"eps"`, `"flow"`, `"mu"`, `"score"`, `"v"` or `"x_0"`.
        target: What it becomes, one of the same.
        x: The noisy values :math:`x_t`, with the same shape.
        alpha: The signal, which broadcasts to it.
        sigma: The noise, which broadcasts to it.
        slopes: Their derivatives in time, which `"flow"` needs.
        before: Signal and noise after the step back, which `"mu"` needs.

    Returns:
        The value, with the same shape.

    Raises:
        ValueError: If a name is unknown, or what it needs is missing.

    Example:
        >>> import torch
        >>> x_0, eps = torch.randn(5), torch.randn(5)
        >>> x = 0.8 * x_0 + 0.6 * eps
        >>> v = convert(eps, "eps", "v", x, torch.tensor(0.8), torch.tensor(0.6))
        >>> torch.allclose(v, 0.8 * eps - 0.6 * x_0, atol=1e-6)
        True
    """
    for name in (source, target):
        if name not in (*KINDS, "mu"):
            raise ValueError(f"Expected one of {sorted((*KINDS, 'mu'))}, got {name!r:.80}.")
    if "flow" in (source, target) and slopes is None:
        raise ValueError("Expected `slopes` of the schedule, since a flow is a velocity.")
    if "mu" in (source, target) and before is None:
        raise ValueError("Expected signal and noise `before`, since mu is the mean of a step.")
    if source == target:
        return value
    if before is not None:
        kept = alpha / before[0] * before[1].square() / sigma.square()
        gained = before[0] - alpha * kept
    if source == "mu":
        value, source = (value - kept * x) / gained, "x_0"
        if target == "x_0":
            return value
    if source == "score":
        value, source = -sigma * value, "eps"
    if source == "v":
        total = alpha.square() + sigma.square()
        x_0, eps = (alpha * x - sigma * value) / total, (sigma * x + alpha * value) / total
    elif source == "flow":
        da, ds = slopes  # type: ignore[misc]
        size = da * sigma - ds * alpha  # the determinant of (alpha, sigma; da, ds), turned
        x_0, eps = (sigma * value - ds * x) / size, (da * x - alpha * value) / size
    elif source == "eps":
        eps = value
        x_0 = (x - sigma * value) / alpha if target != "score" else value
    else:
        x_0, eps = value, (x - alpha * value) / sigma
    if target == "flow":
        da, ds = slopes  # type: ignore[misc]
        return da * x_0 + ds * eps
    return {
        "x_0": lambda: x_0,
        "eps": lambda: eps,
        "score": lambda: -eps / sigma,
        "mu": lambda: kept * x + gained * x_0,
        "v": lambda: alpha * eps - sigma * x_0,
    }[target]()
