"""Numbers that a module computes once."""

from __future__ import annotations

import torch
from torch import Tensor


class CachedTensor:
    """Numbers in double precision, cast for use once for each dtype and device."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self.cast: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __call__(self, like: Tensor) -> Tensor:
        key = like.dtype, like.device
        if key not in self.cast:
            self.cast[key] = self.value.to(like.device, like.dtype)
        return self.cast[key]
