r"""Objectives: what training minimises.

An objective gives each item :math:`i` of a batch a loss :math:`\ell_\theta(x_i, c_i)`, whose mean
:func:`probgen.fit` minimises. Where several players have parameters :math:`\theta_1, \theta_2,
\dots` of their own, each minimises its own loss :math:`\ell^{(p)}` in its own parameters, which
makes adversarial training an objective,

.. math:: \theta_p \leftarrow \theta_p - \eta_p \, \nabla_{\theta_p} \frac{1}{n} \sum_i
    \ell^{(p)}_{\theta_1, \theta_2, \dots}(x_i, c_i),

with all gradients of a step taken at the same parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

from torch import nn

from ..core.arguments import record
from ..core.contracts import Contract, HasDensity, MadeBy

__all__ = [
    "Around",
    "Function",
    "Objective",
    "Player",
    "as_objective",
    "find",
    "is_partial",
    "modules_of",
]

SINGLE = "model"  # the name of the player that is alone


class Player(NamedTuple):
    """Parameters that one optimiser trains by one loss.

    Arguments:
        parameters: The parameters, of the module or of the objective.
        every: Their turn comes each so many steps, that of others in between too.
    """

    parameters: Iterable[nn.Parameter]
    every: int = 1


class Objective(ABC):
    """A training objective, an object to hand to :func:`probgen.fit`.

    A subclass states its `losses`, and which contracts of a module they need, as `requires`. Called
    with a module that is not of those, an objective looks inside: a wrapper whose distribution
    another module made, such as one that embeds contexts, is trained as that module would be.

    Example:
        Adversarial training, with a critic of the objective's own:

        >>> import probgen as pg, torch
        >>> class Adversarial(pg.objectives.Objective):
        ...     def __init__(self, critic):
        ...         self.critic = critic
        ...     def players(self, module):
        ...         return {
        ...             "critic": pg.objectives.Player(self.critic.parameters()),
        ...             "generator": pg.objectives.Player(module.parameters(), every=2),
        ...         }
        ...     def losses(self, module, x, context=None):
        ...         fake = module(context).rsample((len(x),))
        ...         real, false = self.critic(x)[:, 0], self.critic(fake)[:, 0]
        ...         critic = (real - 1).square() + self.critic(fake.detach())[:, 0].square()
        ...         return {"critic": critic, "generator": (false - 1).square()}
        >>> generator, x = pg.distributions.DiagonalNormal(2), torch.randn(100, 2)
        >>> objective = Adversarial(torch.nn.Linear(2, 1))
        >>> history = pg.fit(generator, x, objective=objective, steps=4, progress=False)
        >>> sorted(history.players)
        ['critic', 'generator']
    """

    requires: ClassVar[type[Contract] | tuple[type[Contract], ...]] = ()
    fits: ClassVar[bool | None] = True  # whether it fits data, or draws its own; none if either
    partial: ClassVar[bool] = False  # whether a step leaves some parameters out

    def __call__(self, module: Any, x: Any = None, context: Any = None) -> Any:
        """Return the losses of a batch.

        Arguments:
            module: The lazy distribution.
            x: Data, with shape :math:`(N, *)`, or none for an objective that draws its own.
            context: Their contexts, with shape :math:`(N, C)`, if the module takes them.

        Returns:
            Losses with shape :math:`(N)`; of several players a dictionary of theirs, with that
            shape or that of a number.

        Raises:
            ValueError: If data are missing or not wanted.
            TypeError: If the module lacks what the objective requires.
        """
        if self.fits and x is None:
            raise ValueError(f"Expected data, since {type(self).__name__} fits data, got None.")
        if self.fits is False and x is not None:
            raise ValueError(
                f"Expected no data, since {type(self).__name__} draws its own, got a batch of "
                f"{len(x)}."
            )
        module, context = self.resolve(module, context)
        return self.losses(module, x, context)

    @abstractmethod
    def losses(self, module: Any, x: Any, context: Any) -> Any:
        """Return the losses of a batch; the module has what is required."""

    def at(self, fraction: float) -> Objective:
        """Return the objective after a fraction of the training; by default the same."""
        return self

    def held_out(self, module: Any) -> Objective:
        """Return the objective that compares held-out data; by default the same."""
        return self

    def players(self, module: nn.Module) -> dict[str, Player]:
        """Return groups of parameters by name; by default one of all that the module trains."""
        return {SINGLE: Player(p for p in module.parameters() if p.requires_grad)}

    def resolve(self, module: Any, context: Any = None) -> tuple[Any, Any]:
        """Return the module that has what is required, and its contexts.

        Raises:
            TypeError: If there is none, neither the module nor what made its distribution.
        """
        needed = self.requires if isinstance(self.requires, tuple) else (self.requires,)
        found = find(module, context, *needed)
        if found is None:
            lacks = next(c for c in needed if find(module, context, c) is None)
            raise TypeError(
                f"Expected {lacks.models} for {type(self).__name__}, got a {type(module).__name__}."
            )
        return found


def find(module: Any, context: Any, *contracts: type[Contract]) -> tuple[Any, Any] | None:
    """Return the module that keeps all contracts, and its contexts: this one or one inside."""
    while not all(isinstance(module, contract) for contract in contracts):
        made = module(context) if isinstance(module, HasDensity) else None
        if not isinstance(made, MadeBy) or made.module is module:
            return None
        module, context = made.module, made.context
    return module, context


class Around(Objective):
    """An objective that adds to another, its field `objective`."""

    objective: Any

    fits: ClassVar[bool | None] = None

    def at(self, fraction: float) -> Objective:
        inner = self.objective.at(fraction)
        return self if inner is self.objective else replace(self, objective=inner)  # type: ignore

    def held_out(self, module: Any) -> Objective:
        inner = self.objective.held_out(module)
        return self if inner is self.objective else replace(self, objective=inner)  # type: ignore


def is_partial(objective: Objective) -> bool:
    """Return whether a step of an objective, or of one inside, leaves some parameters out."""
    inner = isinstance(objective, Around) and is_partial(objective.objective)
    return objective.partial or inner


@record
class Function(Objective):
    """A function of a module, data and contexts as an objective.

    Arguments:
        function: The function, which returns losses as :meth:`Objective.losses` does.
    """

    function: Callable[..., Any]

    fits = None

    def losses(self, module: Any, x: Any, context: Any) -> Any:
        return self.function(module, x, context)


def as_objective(objective: Any) -> Objective:
    """Return an objective as it is, and a function as one.

    Raises:
        TypeError: If it cannot be called, or is a class.
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, type):
        raise TypeError(
            f"Expected an `objective`, got the class {objective.__name__}. Make one: "
            f"{objective.__name__}()."
        )
    if not callable(objective):
        raise TypeError(
            f"Expected an `objective`, such as pg.objectives.MaximumLikelihood(), or a function, "
            f"got a {type(objective).__name__}."
        )
    return Function(objective)


def modules_of(objective: Objective) -> dict[str, nn.Module]:
    """Return the modules that an objective is or holds, such as a critic, by name."""
    if isinstance(objective, nn.Module):
        return {"objective": objective}
    found: dict[str, nn.Module] = {}
    for name, value in vars(objective).items():
        if isinstance(value, nn.Module):
            found[name] = value
        elif isinstance(value, Objective):
            found.update({f"{name}_{key}": part for key, part in modules_of(value).items()})
    return found
