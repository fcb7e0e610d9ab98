"""Several processes as one group, and seeds that follow from numbers."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from .folders import read
from .validation import find_device

__all__ = ["agree", "average", "gather", "join", "mean_over", "mix", "seed_of", "share"]


def join(device: str | torch.device | None, own: torch.device) -> tuple[int, int, torch.device]:
    """Return the rank, the number of processes and the device, joining the group under torchrun.

    Arguments:
        device: The device asked for, if any.
        own: The device used otherwise, except under torchrun with GPUs, where each process has one.
    """
    torchrun = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ
    if device is None and torchrun and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    place = find_device(device) if device is not None else own
    if torchrun and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
        atexit.register(torch.distributed.destroy_process_group)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1, place
    return torch.distributed.get_rank(), torch.distributed.get_world_size(), place


def agree(number: int, world: int, device: torch.device) -> int:
    """Return the first process's number."""
    if world == 1:
        return number
    shared = torch.tensor([number], device=device)
    torch.distributed.broadcast(shared, 0)
    return int(shared)


def gather(number: int, world: int, device: torch.device) -> list[int]:
    """Every process's number."""
    if world == 1:
        return [number]
    mine = torch.tensor([number], device=device)
    parts = [torch.empty_like(mine) for _ in range(world)]
    torch.distributed.all_gather(parts, mine)
    return [int(part) for part in parts]


def share(parameters: Iterable[Tensor], world: int) -> None:
    """Give every process the first one's parameters."""
    if world > 1:
        for p in parameters:
            torch.distributed.broadcast(p.detach(), 0)


def average(value: Tensor, world: int) -> Tensor:
    """Return the mean over processes, of which only this one's part has a gradient."""
    mean = value.detach().clone()
    torch.distributed.all_reduce(mean)
    return value + (mean / world - value.detach())


def mean_over(value: Tensor) -> Tensor:
    """Return the mean over processes of a tensor without gradient, if there are several."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    mean = value.clone()
    torch.distributed.all_reduce(mean)
    return mean / torch.distributed.get_world_size()


def mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def reseed(seed: int, device: torch.device) -> None:
    """Seeds the generators of the CPU and of a device, without torch's look at every other one.

    Where a build knows CUDA but has not started it, `torch.manual_seed` notes the stack of each
    call, at a tenth of a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device).manual_seed(seed)


def seed_of(folder: str | os.PathLike[str] | None) -> int:
    """Return the seed of the run in a folder, else a new one from torch's generator."""
    if folder is not None and (Path(folder) / "model.json").is_file():
        return int(read(folder)[1]["seed"])
    return int(torch.randint(2**31, ()))
