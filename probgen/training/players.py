"""Players of a training: their losses, their optimisers, and steps that are taken whole or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim import Adam, AdamW, Optimizer

from ..core import LazyDistribution
from ..core.digests import describe
from ..core.validation import check_whole
from ..objectives import Objective, Player
from ..objectives.base import SINGLE

__all__ = ["Loss", "Players", "Undo"]

FUSED = (Adam, AdamW)  # which torch has in one pass over each parameter, by default in eight
HIDDEN = ("lr", "fused", "foreach", "capturable", "differentiable", "maximize")  # of an optimiser


class Loss(nn.Module):
    """The weighted sums of an objective's losses over a batch, times a factor, by player."""

    current: Objective

    def __init__(
        self, module: LazyDistribution, objective: Objective, parts: nn.Module, names: Sequence[str]
    ) -> None:
        super().__init__()
        self.module, self.parts, self.names = module, parts, tuple(names)
        self.at(objective)

    def at(self, objective: Objective) -> None:
        """Set the objective; one that is a module is among the parts already."""
        self.__dict__["current"] = objective

    def forward(
        self, x: Any, context: Any, weights: Tensor | None, factor: float
    ) -> dict[str, Tensor]:
        found = self.current(self.module, x, context)
        if not isinstance(found, dict):
            found = {self.names[0]: per_item(found, x)} if len(self.names) == 1 else {}
        if found.keys() != set(self.names):
            raise ValueError(
                f"Expected `objective` to return losses of its players, {', '.join(self.names)}, "
                f"got those of {', '.join(map(str, found)) or 'none by name'}."
            )
        if torch.is_grad_enabled() and not all(v.requires_grad for v in found.values()):
            raise ValueError(
                "Expected `objective` to return losses with a gradient, got losses without."
            )
        return {name: total(found[name], x, weights, factor) for name in self.names}

    def score(self, x: Any, context: Any, weights: Tensor | None, factor: float) -> Tensor:
        """Return the weighted sum of held-out losses."""
        found = self.current(self.module, x, context)
        return total(per_item(found, x), x, weights, factor)


def per_item(losses: Any, x: Any) -> Tensor:
    """Return losses, if there is one for each item."""
    shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    if not isinstance(losses, Tensor) or (x is not None and shape != (len(x),)):
        wanted = "" if x is None else f", a tensor with shape ({len(x)},)"
        raise ValueError(f"Expected `objective` to return one loss per item{wanted}, got {shape}.")
    return losses


def total(losses: Tensor, x: Any, weights: Tensor | None, factor: float) -> Tensor:
    """Return the weighted sum of losses times a factor, or the one loss that stands for all."""
    if x is None or losses.ndim == 0:
        return losses.mean()
    return (losses if weights is None else losses * weights).sum() * factor


class Players:
    """The players of an objective, with an optimiser for each.

    Arguments:
        groups: The players by name.
        known: The parameters that there are, of the module and the objective.
        optimizer: A class of optimisers, or one for each player by name.
        lr: The learning rate, or one for each player by name.
    """

    def __init__(
        self,
        groups: dict[str, Player],
        known: Sequence[nn.Parameter],
        optimizer: Callable[..., Optimizer] | dict[str, Callable[..., Optimizer]],
        lr: float | dict[str, float],
    ) -> None:
        self.every = {name: player.every for name, player in groups.items()}
        check_whole(1, **{f"every` of player `{n}": v for n, v in self.every.items()})
        self.parameters = owned(groups, known)
        self.optimizers: dict[str, Optimizer] = {}
        self.lr = by_name("lr", lr, self.every)
        for name, make in by_name("optimizer", optimizer, self.every).items():
            if not callable(make):
                raise TypeError(
                    f"Expected a class of optimisers, such as torch.optim.Adam, got a "
                    f"{type(make).__name__}."
                )
            ps = self.parameters[name]
            common = all(p.device.type in ("cpu", "cuda") for p in ps)
            options = {"fused": True} if make in FUSED and common else {}
            self.optimizers[name] = make(ps, lr=self.lr[name], **options)
        trained = {id(p) for p in known if p.requires_grad}
        #: whether there is one player, of all parameters
        self.alone = len(groups) == 1 and trained == {id(p) for p in self.everything}

    @property
    def everything(self) -> list[nn.Parameter]:
        return [p for ps in self.parameters.values() for p in ps]

    def due(self, step: int) -> list[str]:
        """Return the players whose turn a step is."""
        return [name for name, every in self.every.items() if (step + 1) % every == 0]

    def differentiate(self, values: dict[str, Tensor], due: list[str], world: int) -> None:
        """Set the gradients of each player's loss in its own parameters."""
        for name in due:
            self.optimizers[name].zero_grad()
            if self.alone:
                values[name].backward()
                continue
            ps = self.parameters[name]
            values[name].backward(inputs=ps, retain_graph=name != due[-1])
            if world > 1:
                for p in ps:
                    if p.grad is not None:
                        torch.distributed.all_reduce(p.grad)
                        p.grad /= world

    def move(self, due: list[str], clip: float | None, rate: float) -> None:
        """Take a step of each optimiser whose turn it is."""
        for name in due:
            optimizer, ps = self.optimizers[name], self.parameters[name]
            for group in optimizer.param_groups:
                group["lr"] = self.lr[name] * rate
            if clip is not None:
                nn.utils.clip_grad_norm_(ps, clip)
            optimizer.step()
            try:
                increment_version(ps)  # which a fused one does not
            except TypeError:  # before torch 2.6
                for p in ps:
                    increment_version(p)

    def describe(self) -> dict[str, str]:
        """Return what tells optimisers and learning rates from others."""
        found: dict[str, str] = {}
        for name, optimizer in self.optimizers.items():
            end = "" if self.every.keys() == {SINGLE} else f".{name}"
            options = {k: v for k, v in optimizer.defaults.items() if k not in HIDDEN}
            found[f"optimizer{end}"] = type(optimizer).__name__
            found.update(describe(f"optimizer{end}", options))
            found.update(describe(f"lr{end}", self.lr[name]))
        return found

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the states of all optimisers: tensors by name, and what JSON can hold."""
        tensors: dict[str, Tensor] = {}
        content: dict[str, Any] = {}
        for name, optimizer in self.optimizers.items():
            state, plain = optimizer.state_dict(), {}
            for i, entry in state["state"].items():
                for key, value in entry.items():
                    if isinstance(value, Tensor):
                        tensors[f"{name}.{i}.{key}"] = value
                    else:
                        plain[f"{i}.{key}"] = value
            content[name] = {"groups": state["param_groups"], "plain": plain}
        return tensors, content

    def load(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Set the states that :meth:`state` returned."""
        for name, optimizer in self.optimizers.items():
            entries: dict[int, dict[str, Any]] = {}
            own = {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{name}.")}
            for key, value in {**own, **content[name]["plain"]}.items():
                i, rest = key.split(".", 1)
                entries.setdefault(int(i), {})[rest] = value
            groups = content[name]["groups"]
            optimizer.load_state_dict({"state": entries, "param_groups": groups})


def owned(
    groups: dict[str, Player], known: Sequence[nn.Parameter]
) -> dict[str, list[nn.Parameter]]:
    """Return each player's parameters that learn, checked to be its own and to be known."""
    ids, taken = {id(p) for p in known}, dict[int, str]()
    found: dict[str, list[nn.Parameter]] = {}
    for name, player in groups.items():
        found[name] = [p for p in player.parameters if p.requires_grad]
        if not found[name]:
            who = "a module" if name == SINGLE else f"a player `{name}`"
            raise ValueError(f"Expected {who} with parameters to train; is it frozen?")
        for p in found[name]:
            if id(p) in taken:
                raise ValueError(
                    f"Expected players with parameters of their own, got one of shape "
                    f"{tuple(p.shape)} that is both of `{taken[id(p)]}` and of `{name}`."
                )
            if id(p) not in ids:
                raise ValueError(
                    f"Expected the parameters of player `{name}` among those of the module and of "
                    f"the modules that the objective holds, so that they are saved, got one of "
                    f"shape {tuple(p.shape)} that is not. Keep its module as an attribute."
                )
            taken[id(p)] = name
    return found


def by_name(argument: str, value: Any, names: dict[str, int]) -> dict[str, Any]:
    """Return a value for each player."""
    if not isinstance(value, dict):
        return dict.fromkeys(names, value)
    if value.keys() != names.keys():
        raise ValueError(
            f"Expected `{argument}` of the players {', '.join(names)}, got that of "
            f"{', '.join(map(str, value)) or 'none'}."
        )
    return value


class Undo:
    """Copies of buffers, so that a step that fails before it changes parameters can be undone.

    A buffer is copied when its version tells that the copy is old.

    Arguments:
        modules: The modules whose buffers change.
    """

    def __init__(self, *modules: nn.Module) -> None:
        parts = {id(m._buffers): m._buffers for part in modules for m in part.modules()}
        self.copies: list[tuple[dict[str, Tensor | None], str, Tensor | None, int, Any]] = [
            (owner, name, None, -1, None) for owner in parts.values() for name in owner
        ]
        self.begun = -1  # the step of the copies

    def begin(self, step: int) -> None:
        """Copy buffers, before a step computes anything."""
        for k, (owner, name, old, version, _) in enumerate(self.copies):
            b = owner[name]
            if b is not None and (b is not old or b._version != version):
                self.copies[k] = owner, name, b, b._version, b.detach().clone()
        self.begun = step

    def restore(self, step: int) -> None:
        """Put back what was copied for a step."""
        if self.begun != step:
            return
        with torch.no_grad():
            for owner, name, b, _, copy in self.copies:
                if b is not None:
                    owner[name] = b
                    b.copy_(copy)
