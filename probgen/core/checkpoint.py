"""Checkpoints that cannot run code.

A checkpoint is a folder of two files: numbers in safetensors, and names in JSON. A module is
rebuilt from the names, see :mod:`probgen.core.rebuild`; then its parameters and buffers are read
into it. Nothing is unpickled.

The JSON names the file of numbers by its hash, and is replaced in one step. So a reader finds a
pair that belongs together, the old one or the new one; and a folder has one writer at a time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .edits import SMALL, build, check_dtypes, check_finite, check_state, plan, size_of, sketch
from .folders import SCHEMA, read, write
from .rebuild import CheckpointError, arguments
from .validation import find_device

__all__ = ["CheckpointError", "arguments", "check_savable", "load", "save"]

# Entries of a state, as regular expressions, and what older schemas call them.
FORMER_STATE: list[tuple[str, tuple[str, ...]]] = [
    (r"(^|\.)context_standardizer\.parts\.0\.(shift|scale)$", (r"\1context_\2",)),
    (r"(^|\.)standardizer\.shift$", (r"\1shift", r"\1x_shift", r"\1location")),
    (r"(^|\.)standardizer\.scale$", (r"\1scale", r"\1x_scale", r"\1width")),
    (r"(^|\.)standardizer\.fitted$", (r"\1started",)),
    (r"(^|\.)initialized_flag$", (r"\1started",)),
    (r"(rungs\.\d+\.)prior_head\.(.*)$", (r"\1say.\2",)),
    (r"(rungs\.\d+\.)posterior_head\.(.*)$", (r"\1see.\2",)),
    (r"(rungs\.\d+\.)bottom_up_layers\.(.*)$", (r"\1lift.\2",)),
    (r"(rungs\.\d+\.)top_down_layers\.(.*)$", (r"\1drop.\2",)),
]
# What older schemas lack in a state, as regular expressions, and the value it has; none stands for
# that of a module that was just built.
ADDED_STATE: list[tuple[str, float | bool | None]] = [
    (r"(^|\.)(shift|scale)$", None),
    (r"(^|\.)(initialized_flag|fitted)$", True),
]


def save(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save a module to a folder, which :func:`probgen.load` reads.

    What is written is what the module is now: what it was built with, the attributes and parts
    that were changed since, and its state. That it can be rebuilt is checked before anything is
    written.

    Arguments:
        path: The folder, made if it does not exist.

    Raises:
        TypeError: If a part or an attribute of the module cannot be saved; it is named.
        ValueError: If its parameters are not finite.
        OSError: If the folder cannot be written.
        CheckpointError: If another process is writing it.
    """
    content, tensors = check_savable(module)
    content["frozen"] = [name for name, p in module.named_parameters() if not p.requires_grad]
    content["evaluating"] = [name for name, part in module.named_modules() if not part.training]
    state = {f"state.{name}": value for name, value in module.state_dict().items()}
    write(path, {**state, **tensors}, content)


def check_savable(module: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describe a module for a checkpoint, or raise what :func:`save` would raise."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"Expected a module to save, got a {type(module).__name__}.")
    return plan(module)


def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    modules: Mapping[str, Callable[..., Any]] | None = None,
) -> Any:
    """Load a module that was saved with its `save` method.

    The random state is left as it was. Loading cannot run code: classes are looked up among
    those of this package, those that the program has registered, and `modules`.

    Arguments:
        path: The folder that `save` wrote.
        device: Where to put the module.
        modules: What builds modules that are not known here, by name: a class, which is called
            with the arguments that were saved, for one that was registered in the program that
            saved it but cannot be imported here; or a function without arguments, for a module
            that was itself registered, `pg.register(net)`, since only its weights were saved.

    Returns:
        The module as it was when it was saved, with its dtype, frozen parameters and training
        flags.

    Raises:
        CheckpointError: If the folder holds no checkpoint, or one that is damaged, of a newer
            schema, or of a class that is not defined.
        ValueError: If the device is not there.

    Example:
        >>> import probgen as pg, tempfile
        >>> flow = pg.models.MAF(features=2)
        >>> x = torch.randn(5, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     flow.save(folder)
        ...     again = pg.load(folder)
        >>> torch.equal(again().log_prob(x), flow().log_prob(x))
        True
    """
    device = find_device(device)
    tensors, content = read(path)
    if "module" not in content:
        raise CheckpointError(
            f"{path} holds draws, which pg.mcmc.Draws.load reads, or the state of a training: load "
            f"its parent folder."
        )
    try:
        module = rebuilt(tensors, content, modules)
    except Exception as error:  # of any kind: the constructor of a class may do anything
        raise CheckpointError(f"The checkpoint in {path} does not fit: {error}") from error
    return module.to(device)


def rebuilt(
    tensors: dict[str, Tensor], content: dict[str, Any], modules: Mapping[str, Any] | None
) -> nn.Module:
    """Return the module of a checkpoint; its state is compared before it is built."""
    state = {k[6:]: v for k, v in tensors.items() if k.startswith("state.")}
    large = size_of(state) > SMALL
    module = sketch(content, tensors, state, modules)

    def fresh() -> nn.Module:
        return build(content, tensors, state, modules) if large else module

    if content["schema"] < SCHEMA:
        state = migrated(state, module, fresh)
    check_dtypes(module, state)
    if large:
        check_state(module, state)
        module = fresh()
    check_finite(module, state, lambda: module)
    dtypes = {v.dtype for v in state.values() if v.is_floating_point()}
    built = {v.dtype for v in module.state_dict().values() if v.is_floating_point()}
    if dtypes != built and len(dtypes) == 1:
        module = module.to(dtypes.pop())
    module.load_state_dict(state, strict=True)
    frozen, evaluating = (names_of(content[key]) for key in ("frozen", "evaluating"))
    for name, p in module.named_parameters():
        p.requires_grad_(name not in frozen)
    for name, part in module.named_modules():
        part.training = name not in evaluating
    return module


def names_of(value: Any) -> set[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"Expected a list of names, got {value!r:.80}.")
    return set(value)


def migrated(
    state: dict[str, Tensor], module: nn.Module, fresh: Callable[[], nn.Module]
) -> dict[str, Tensor]:
    """Return a state of an older schema with the names of this one, and what it lacks."""
    used = set()
    for name, like in module.state_dict().items():
        for old in () if name in state else former_names(name):
            if old in state:
                given = state[old]
                same = given.numel() == like.numel()
                state[name] = given.reshape(like.shape) if same else given.expand(like.shape)
                used.add(old)
                break
    state = {key: value for key, value in state.items() if key not in used}
    built: dict[str, Tensor] = {}
    floats = {v.dtype for v in state.values() if v.is_floating_point()}
    for name, like in module.state_dict().items():
        for pattern, value in ADDED_STATE:
            if name in state or re.search(pattern, name) is None:
                continue
            if value is None:
                built = built or fresh().state_dict()
                new = built[name]
            else:
                new = torch.full(like.shape, value, dtype=like.dtype)
            one = len(floats) == 1 and new.is_floating_point()
            state[name] = new.to(next(iter(floats))) if one else new
    return state


def former_names(name: str) -> list[str]:
    """Return the names that older schemas may give an entry of a state."""
    found: list[str] = []
    for pattern, templates in FORMER_STATE:
        match = re.search(pattern, name)
        if match:
            found.extend(name[: match.start()] + match.expand(t) for t in templates)
    return found
