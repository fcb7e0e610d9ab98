r"""Associative memories.

A Hopfield network of units :math:`x_i = \pm 1` with symmetric weights :math:`W`, without
self-connections, has the energy and the rule

.. math:: E(x) = -\tfrac{1}{2} x^\top W x - b^\top x, \qquad
    x_i \leftarrow \operatorname{sign} \Bigl( \sum_j W_{ij} x_j + b_i \Bigr).

One unit after another, no step raises the energy, so that a state falls into a minimum: a stored
pattern, if there are not too many. All units at once, :math:`-x_t^\top W x_{t-1} -
b^\top (x_t + x_{t-1})` never rises instead, and a state may alternate between two. Continuous units
follow :math:`x_i \leftarrow \tanh(\beta (W x + b)_i)`, which lowers the energy less
:math:`1 / \beta` times the entropy of independent units with means :math:`x`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ..core import register, save
from ..core.validation import check_whole

__all__ = ["HopfieldNetwork", "ModernHopfield"]


@register
class HopfieldNetwork(nn.Module):
    r"""A network that recalls stored patterns of :math:`\pm 1`.

    References:
        | Neural Networks and Physical Systems with Emergent Collective Computational Abilities
        | (Hopfield, 1982), https://doi.org/10.1073/pnas.79.8.2554
        | Information Theory, Inference, and Learning Algorithms, chapter 42 (MacKay, 2003)

    Arguments:
        units: The number of units :math:`N`.
        beta: The gain :math:`\beta > 0` of continuous units; binary units if infinite.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> patterns = 1.0 - 2.0 * torch.randint(2, (5, 200))
        >>> memory = HopfieldNetwork(200)
        >>> memory.store(patterns)
        >>> noisy = patterns * (1.0 - 2.0 * (torch.rand(5, 200) < 0.1))
        >>> torch.equal(memory.recall(noisy), patterns)
        True
    """

    save = save

    weight: Tensor
    bias: Tensor

    def __init__(self, units: int, beta: float = math.inf) -> None:
        super().__init__()
        check_whole(1, units=units)
        if not beta > 0:
            raise ValueError(f"Expected a positive `beta`, got {beta}.")
        self.beta = beta
        self.register_buffer("weight", torch.zeros(units, units))
        self.register_buffer("bias", torch.zeros(units))

    def couple(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Set the weights and biases.

        Arguments:
            weight: The symmetric weights, with shape :math:`(N, N)`, zero on the diagonal.
            bias: The biases, with shape :math:`(N)`.

        Raises:
            ValueError: If shapes do not fit, weights are not symmetric, or a unit has one to
                itself.
        """
        bias = self.bias if bias is None else bias
        for name, value, own in (("weight", weight, self.weight), ("bias", bias, self.bias)):
            if value.shape != own.shape:
                raise ValueError(
                    f"Expected `{name}` with shape {tuple(own.shape)}, got {tuple(value.shape)}."
                )
        if not torch.equal(weight, weight.mT):
            gap = float((weight - weight.mT).abs().max())
            raise ValueError(f"Expected symmetric weights, got some that differ by {gap:g}.")
        if bool(weight.diagonal().any()):
            raise ValueError("Expected no self-connections, got weights on the diagonal.")
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def store(self, patterns: Tensor) -> None:
        r"""Add patterns by Hebb's rule, :math:`W \mathrel{+}= \frac{1}{N} \sum_p x_p x_p^\top`.

        Arguments:
            patterns: The patterns, with shape :math:`(P, N)`, of values :math:`\pm 1`.
        """
        self.check(patterns, "patterns", patterns.abs() == 1)
        x = patterns.to(self.weight)
        self.weight += x.mT @ x / len(self.bias)
        self.weight.fill_diagonal_(0)

    def learn(
        self, patterns: Tensor, steps: int = 100, rate: float = 0.1, decay: float = 0.01
    ) -> None:
        r"""Learns patterns by gradient ascent on the probability of each unit given the others.

        With :math:`a = W x + b` a unit is right with probability :math:`\sigma(2 x_i a_i)`, whose
        logarithm, less a decay of the weights, rises. It stores more than Hebb's rule, and
        patterns that are alike.

        Arguments:
            patterns: The patterns, with shape :math:`(P, N)`, of values :math:`\pm 1`.
            steps: The number of steps.
            rate: The size of a step.
            decay: The decay of the weights.
        """
        self.check(patterns, "patterns", patterns.abs() == 1)
        check_whole(1, steps=steps)
        x = patterns.to(self.weight)
        for _ in range(steps):
            error = 2 * x * logsigmoid(-2 * x * self.field(x)).exp()
            slope = x.mT @ error / len(x)
            self.weight += rate * ((slope + slope.mT) - decay * self.weight)
            self.weight.fill_diagonal_(0)
            self.bias += rate * error.mean(0)

    def field(self, x: Tensor) -> Tensor:
        """Return the inputs of all units, :math:`W x + b`."""
        return x @ self.weight + self.bias

    def energy(self, x: Tensor) -> Tensor:
        r"""Return energy of states with shape :math:`(*, N)`, of continuous units with entropy."""
        energy = -(x * (x @ self.weight)).sum(-1) / 2 - (x * self.bias).sum(-1)
        if math.isinf(self.beta):
            return energy
        p = (1 + x) / 2
        entropy = -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)).sum(-1)
        return energy - entropy / self.beta

    def answer(self, heard: Tensor, x: Tensor) -> Tensor:
        """Activate units; a binary unit with zero input keeps its state."""
        if math.isinf(self.beta):
            return torch.where(heard == 0, x, heard.sign())
        return torch.tanh(self.beta * heard)

    def sweep(self, x: Tensor) -> Tensor:
        """Update every unit once, one after another in a random order, of all states."""
        x, field = x.clone(), self.field(x)
        for i in torch.randperm(len(self.bias), device=x.device):
            new = self.answer(field[..., i], x[..., i])
            field = field + (new - x[..., i]).unsqueeze(-1) * self.weight[i]
            x[..., i] = new
        return x

    def together(self, x: Tensor) -> Tensor:
        """Update all units at once."""
        return self.answer(self.field(x), x)

    def recall(self, x: Tensor, steps: int = 20, synchronous: bool = False) -> Tensor:
        r"""Follows states to what they remind of.

        Arguments:
            x: The states, with shape :math:`(*, N)`, in :math:`[-1, 1]`.
            steps: The greatest number of updates of every unit.
            synchronous: Whether all units are updated at once.

        Returns:
            The states in the end, with the shape of `x`.
        """
        return self.trajectory(x, steps, synchronous)[-1]

    def trajectory(self, x: Tensor, steps: int = 20, synchronous: bool = False) -> Tensor:
        r"""Return the states after each update of every unit, with shape :math:`(T, *, N)`.

        The first is `x`; it ends when none changes.
        """
        self.check(x, "x", x.abs() <= 1)
        check_whole(1, steps=steps)
        states = [x.to(self.weight)]
        for _ in range(steps):
            states.append(self.together(states[-1]) if synchronous else self.sweep(states[-1]))
            if torch.equal(states[-1], states[-2]):
                break
        return torch.stack(states)

    def check(self, x: Tensor, name: str, inside: Tensor) -> None:
        units = len(self.bias)
        if x.shape[-1:] != (units,) or (name == "patterns" and x.ndim != 2):
            wanted = "P" if name == "patterns" else "*"
            raise ValueError(
                f"Expected `{name}` with shape ({wanted}, {units}), got {tuple(x.shape)}."
            )
        if not bool(inside.all()):
            raise ValueError(
                f"Expected `{name}` of values {'-1 and 1' if name == 'patterns' else 'in [-1, 1]'},"
                f" got {float(x[~inside][0]):g}."
            )


@register
class ModernHopfield(nn.Module):
    r"""A memory of real patterns whose update is the attention of transformers.

    .. math:: E(x) = -\frac{1}{\beta} \log \sum_p e^{\beta \, \xi_p^\top x} + \frac{1}{2} x^\top x,
        \qquad x \leftarrow \sum_p \operatorname{softmax}_p(\beta \, \xi_p^\top x) \, \xi_p.

    No update raises the energy. Patterns that differ enough are recalled in one.

    References:
        | Hopfield Networks is All You Need (Ramsauer et al., 2020)
        | https://arxiv.org/abs/2008.02217

    Arguments:
        patterns: The patterns :math:`\xi`, with shape :math:`(P, D)`.
        beta: The inverse temperature :math:`\beta > 0`.

    Raises:
        ValueError: If patterns are no matrix, or `beta` is not positive.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> patterns = torch.randn(1000, 64)
        >>> memory = ModernHopfield(patterns)
        >>> found = memory.recall(patterns[:5] + 0.3 * torch.randn(5, 64))
        >>> torch.allclose(found, patterns[:5], atol=1e-3)
        True
    """

    save = save

    patterns: Tensor

    def __init__(self, patterns: Tensor, beta: float = 1.0) -> None:
        super().__init__()
        if patterns.ndim != 2 or not len(patterns):
            raise ValueError(f"Expected `patterns` with shape (P, D), got {tuple(patterns.shape)}.")
        if not 0 < beta < math.inf:
            raise ValueError(f"Expected a positive `beta`, got {beta}.")
        self.beta = beta
        self.register_buffer("patterns", patterns.detach().clone())

    def energy(self, x: Tensor) -> Tensor:
        r"""Return the energy of states with shape :math:`(*, D)`."""
        alike = torch.logsumexp(self.beta * (x @ self.patterns.mT), -1)
        return x.square().sum(-1) / 2 - alike / self.beta

    def update(self, x: Tensor) -> Tensor:
        """One step of states, the mean of the patterns weighted by likeness."""
        return (self.beta * (x @ self.patterns.mT)).softmax(-1) @ self.patterns

    def recall(self, x: Tensor, steps: int = 1) -> Tensor:
        r"""Follows states with shape :math:`(*, D)` for so many steps."""
        return self.trajectory(x, steps)[-1]

    def trajectory(self, x: Tensor, steps: int = 1) -> Tensor:
        r"""Return the states after each step, with shape :math:`(T, *, D)`; the first is `x`."""
        check_whole(1, steps=steps)
        if x.shape[-1:] != self.patterns.shape[1:]:
            raise ValueError(
                f"Expected `x` with shape (*, {self.patterns.shape[1]}), got {tuple(x.shape)}."
            )
        states = [x]
        for _ in range(steps):
            states.append(self.update(states[-1]))
        return torch.stack(states)
