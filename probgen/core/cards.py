"""Declared properties of distributions: density, training, cost of a draw."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = ["Card", "Density", "Traits", "reorder"]


class Density(Enum):
    """The meaning of a distribution's `log_prob`, from the strongest to the weakest."""

    EXACT = "exact"  #: the log density
    ODE = "ode"  #: exact up to the error of an ODE solver
    BOUND = "bound"  #: a stochastic lower bound
    UNNORMALIZED = "unnormalized"  #: up to an unknown constant
    PUSHFORWARD = "pushforward"  #: a sampler only, without a density

    @staticmethod
    def weakest(*parts: Density) -> Density:
        """Return the card of a composition of parts.

        Example:
            >>> Density.weakest(Density.EXACT, Density.BOUND)
            <Density.BOUND: 'bound'>
        """
        order = list(Density)
        return order[max(order.index(part) for part in parts)]


class Card(NamedTuple):
    """A family in one row of the table of models.

    Arguments:
        training: How it is trained: the default objective, or `"-"` if there is nothing to train.
        likelihood: What its `log_prob` is, a value of :class:`Density`.
        invertible: Whether data map to latents one to one.
        latent: What its latent variables are.
        draw: What a draw costs.
    """

    training: str
    likelihood: str
    invertible: bool
    latent: str
    draw: str


class Traits(NamedTuple):
    """The properties that a family declares for its :class:`Card`."""

    latent: str = "none"
    draw: str = "one pass"
    invertible: bool = False


def reorder(traits: Traits) -> tuple[bool, str, str]:
    """Return the fields of traits in the order of a card."""
    return traits.invertible, traits.latent, traits.draw
