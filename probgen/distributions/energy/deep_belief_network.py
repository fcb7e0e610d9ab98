r"""Deep belief networks.

Layers of binary units :math:`v = h_0, h_1, \dots, h_L`, the last two a restricted Boltzmann machine
and each below drawn from the one above:

.. math:: p(v, h_1, \dots, h_L) = p(h_{L-1}, h_L) \prod_{l=1}^{L-1} p(h_{l-1} \mid h_l),
    \qquad p(h_{l-1} \mid h_l) = \sigma(W_l h_l + b_{l-1}).

A factorised distribution goes up, :math:`q(h_l \mid h_{l-1}) = \sigma(R_l^\top h_{l-1} + c_l)`.
Greedy training fits each pair of layers as a machine of its own, with :math:`R_l = W_l`, on what
goes up from the data; the up-down algorithm then trains both directions apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from ...core import initialize_part
from ...core.contracts import HasLayers
from ...core.validation import check_event, check_whole
from ...objectives import GreedyLayerwise, Weights
from ..latent.base import LatentVariable, check_given
from .boltzmann import SMALL, Spins, states
from .rbm import RBM

__all__ = ["DeepBeliefNetwork"]


@HasLayers.register
class DeepBeliefNetwork(LatentVariable):
    r"""A deep belief network: a stack of restricted Boltzmann machines.

    Its density is a bound, from draws of the law that goes up, less the top machine's
    :math:`\log Z`, exact where one of its layers has up to 20 units. With few units in the first
    hidden layer :meth:`exact_log_prob` sums all states. Draws run the top machine and go down.

    References:
        | Hinton, Osindero & Teh, "A fast learning algorithm for deep belief nets", 2006,
          https://doi.org/10.1162/neco.2006.18.7.1527
        | Salakhutdinov & Murray, "On the quantitative analysis of deep belief networks", 2008,
          https://doi.org/10.1145/1390156.1390266

    Arguments:
        sizes: The number of units of each layer, the data's first; at least three.
        steps: The number of steps of block Gibbs of the top machine in a draw.
        samples: The number of draws :math:`K` of the bound that `log_prob` is.

    Raises:
        ValueError: If there are less than three layers or a size is impossible.

    Example:
        >>> import probgen as pg
        >>> _ = torch.manual_seed(0)
        >>> x = (torch.rand(500, 6) < torch.rand(500, 1).round() * 0.8 + 0.1).float()
        >>> network = DeepBeliefNetwork([6, 4, 3])
        >>> history = pg.fit(network, x, steps=400, lr=0.02, progress=False)
        >>> history = pg.fit(  # fine-tuning
        ...     network, x, objective=pg.objectives.UpDown(), steps=100, progress=False
        ... )
        >>> with torch.no_grad():
        ...     float(network.exact_log_prob(x).mean()) > -3  # -2.6 at best, -4.2 by chance
        True
    """

    machines: Any
    up: Any

    def __init__(self, sizes: Sequence[int], steps: int = 100, samples: int = 1) -> None:
        super().__init__()
        if len(sizes) < 3:
            raise ValueError(f"Expected at least three layers, got {tuple(sizes)}. An RBM has two.")
        check_whole(1, **{f"sizes[{i}]": n for i, n in enumerate(sizes)})
        check_whole(1, samples=samples)
        self.sizes, self.samples = tuple(sizes), samples
        self.event_shape = torch.Size([sizes[0]])
        pairs = list(itertools.pairwise(sizes))
        self.machines = nn.ModuleList([RBM(v, h, steps=steps) for v, h in pairs])
        self.up = nn.ParameterList([m.weight.detach().clone() for m in self.machines[:-1]])

    @property
    def objective(self) -> Callable[..., Tensor]:
        return GreedyLayerwise()

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.boolean, 1)

    @property
    def top(self) -> RBM:
        """The machine of the last two layers."""
        return self.machines[-1]

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        initialize_part(self.machines[0], x, None, weights)

    def upward(self, layer: int, v: Tensor) -> Spins:
        r"""Return the distribution of layer :math:`l \ge 1` given the one below, on the way up."""
        weight, bias = self.up[layer - 1], self.machines[layer - 1].hidden_bias
        return Spins(v @ weight + bias).to_event(1)

    def downward(self, layer: int, h: Tensor) -> Spins:
        r"""Return the distribution of layer :math:`l - 1` given layer :math:`l`, going down."""
        return self.machines[layer - 1].visible(h)

    def infer(self, x: Tensor) -> list[Tensor]:
        """Draws all layers but the last given data with shape `(*, V)`, the data first."""
        layers = [x]
        for layer in range(1, len(self.machines)):
            layers.append(self.upward(layer, layers[-1]).sample())
        return layers

    def features(self, x: Tensor) -> Tensor:
        r"""Return the means of the last layer by a mean-field pass, with shape :math:`(*, H_L)`."""
        check_event(x, self.event_shape)
        for layer in range(1, len(self.machines)):
            x = self.upward(layer, x).base_dist.logits.sigmoid()
        return self.top.features(x)

    def draw(self, shape: torch.Size, context: Tensor | None) -> Tensor:
        h = self.top.draw(shape, None)
        for layer in range(len(self.machines) - 1, 0, -1):
            h = self.downward(layer, h).sample()
        return h

    def weigh(
        self,
        x: Tensor,
        context: Tensor | None = None,
        samples: int = 1,
        *,
        analytic: bool = False,
        stopped: bool = False,
        held: bool = False,
    ) -> Weights:
        check_event(x, self.event_shape)
        self.top.log_partition()  # an error if it is not known
        layers = self.infer(x.expand(samples, *x.shape))
        log_q, log_p = torch.zeros_like(layers[0][..., 0]), self.top().log_prob(layers[-1])
        likelihood: Any = 0.0
        for layer in range(1, len(self.machines)):
            below, here = layers[layer - 1], layers[layer]
            log_q = log_q + self.upward(layer, below).log_prob(here)
            term = self.downward(layer, here).log_prob(below)
            if layer == 1:
                likelihood = term
            else:
                log_p = log_p + term
        return Weights(likelihood, log_p, log_q, score=log_q)

    def pyro_model(
        self, prefix: str, name: str, context: Any, obs: Tensor | None, infer: dict[str, Any]
    ) -> Tensor:
        last = len(self.machines) - 1
        h = pyro.sample(f"{prefix}h{last}", self.top(), infer=infer)
        for layer in range(last, 1, -1):
            h = pyro.sample(f"{prefix}h{layer - 1}", self.downward(layer, h), infer=infer)
        return pyro.sample(name, self.downward(1, h), obs=obs, infer=infer)

    def pyro_guide(self, prefix: str, x: Tensor | None, context: Any, infer: dict[str, Any]) -> Any:
        h = check_given(x)
        for layer in range(1, len(self.machines)):
            h = pyro.sample(f"{prefix}h{layer}", self.upward(layer, h), infer=infer)
        return h

    def exact_log_prob(self, x: Tensor) -> Tensor:
        r"""Return the log density itself, by a sum over all states of the hidden layers.

        Arguments:
            x: The data, with shape :math:`(*, V)`.

        Returns:
            Values in float64, with shape :math:`(*)`.

        Raises:
            ValueError: If a layer below the top machine's last has more than 20 units.
        """
        check_event(x, self.event_shape)
        if max(self.sizes[1:-1]) > SMALL:
            raise ValueError(
                f"Expected hidden layers of up to {SMALL} units below the last, got "
                f"{self.sizes[1:-1]}. Take log_marginal, an estimate."
            )
        flat = self.sum_over(0, x.reshape(-1, x.shape[-1]))
        return flat.reshape(x.shape[:-1])

    def sum_over(self, layer: int, values: Tensor) -> Tensor:
        """Return the log probabilities of values of a layer, with shape :math:`(M, H)`."""
        if layer == len(self.machines) - 1:
            return self.top().log_prob(values).double()
        total = values.new_full((len(values),), -torch.inf, dtype=torch.double)
        chunk = max(1, 2**24 // max(len(values), 1))
        for h in states(self.sizes[layer + 1], 0, self.up[0], chunk):
            prior = self.sum_over(layer + 1, h)
            field = self.downward(layer + 1, h).base_dist.logits.double()
            joint = values.double() @ field.mT - softplus(field).sum(-1) + prior
            total = torch.logaddexp(total, joint.logsumexp(-1))
        return total
