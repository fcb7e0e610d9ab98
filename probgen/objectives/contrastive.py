r"""Objectives of energies, whose gradients need no partition function.

For :math:`p_\theta(x) = e^{f_\theta(x)} / Z_\theta` the log-likelihood has the gradient

.. math:: \nabla_\theta \, \mathbb{E}_{x \sim \mathrm{data}} \log p_\theta(x) =
    \mathbb{E}_{x \sim \mathrm{data}} \nabla_\theta f_\theta(x)
    - \mathbb{E}_{x \sim p_\theta} \nabla_\theta f_\theta(x).

Contrastive divergence draws the second term's :math:`x` by a few steps of a Markov chain, from the
data or from where chains stood at the last step. Noise-contrastive estimation tells data from
noise of a known density instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import softplus

from ..core import Density, is_wrapped
from ..core.arguments import record
from ..core.contracts import HasEnergy, HasFlips, HasLabels, HasTilt
from ..core.validation import check_whole, ends
from ..mcmc import Metropolis, ParallelTempering
from .base import Around, Objective, as_objective
from .likelihood import MaximumLikelihood
from .pseudo import PseudoLikelihood
from .score import SlicedScoreMatching

__all__ = ["ContrastiveDivergence", "JointEnergy", "NoiseContrastive"]


@record
class ContrastiveDivergence(Objective):
    r"""Contrastive divergence: the mean of :math:`f` at chains less that at the data.

    The chains carry no gradient. The step size of a kernel that tests is adapted on the way,
    but for replicas.

    References:
        | Hinton, "Training products of experts by minimizing contrastive divergence", 2002,
          https://doi.org/10.1162/089976602760128018
        | Tieleman, "Training restricted Boltzmann machines using approximations to the likelihood
          gradient", 2008, https://doi.org/10.1145/1390156.1390290
        | Du & Mordatch, "Implicit generation and modeling with energy-based models", 2019,
          https://arxiv.org/abs/1903.08689
        | Desjardins et al., "Tempered Markov chain Monte Carlo for training of restricted
          Boltzmann machines", 2010, https://proceedings.mlr.press/v9/desjardins10a.html

    Arguments:
        steps: The number :math:`k` of steps of the model's kernel.
        persistent: Whether chains go on from where they stood, rather than from the data. The
            model keeps them, as its buffer `chains`.
        chains: The number of persistent chains; by default as many as the first batch has data.
        renewal: The share of persistent chains that start anew from the base at each step.
        betas: Temperatures, rising to 1, of replicas of each persistent chain that are exchanged
            (:class:`~probgen.mcmc.ParallelTempering`); none by default.
        regularization: The weight :math:`\alpha` of :math:`f^2`, at data and at chains, which
            keeps energies small.
        limit: The gap between the mean energies of data and chains, in nats per feature, beyond
            which training is stopped. It is read under argument validation.

    Raises:
        ValueError: If a number is impossible; when called, if chains are persistent and the model
            takes a context.
        TypeError: When called, if the model is no energy.
        FloatingPointError: When called, if the gap is beyond the limit.

    Example:
        >>> import probgen as pg
        >>> rbm = pg.models.RBM(visible=6, hidden=3)
        >>> x = (torch.rand(50, 6) < 0.3).float()
        >>> history = pg.fit(rbm, x, objective=ContrastiveDivergence(), steps=20, progress=False)
        >>> ContrastiveDivergence(steps=2)(rbm, x).shape
        torch.Size([50])
    """

    steps: int = 1
    persistent: bool = False
    chains: int | None = None
    renewal: float = 0.0
    betas: Sequence[float] = ()
    regularization: float = 0.0
    limit: float = 100.0

    requires = (HasEnergy,)

    def __post_init__(self) -> None:
        check_whole(1, steps=self.steps)
        if self.chains is not None:
            check_whole(1, chains=self.chains)
        if not 0 <= self.renewal <= 1:
            raise ValueError(f"Expected `renewal` in [0, 1], got {self.renewal}.")
        if not 0 <= self.regularization < math.inf:
            raise ValueError(
                f"Expected `regularization` not to be negative, got {self.regularization}."
            )
        if not self.limit > 0:
            raise ValueError(f"Expected a positive `limit`, got {self.limit}.")
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
        if self.betas:
            ParallelTempering(Metropolis(), self.betas)  # which checks them
            if not self.persistent:
                raise ValueError("Expected `persistent` chains, since `betas` are given.")

    def held_out(self, module: Any) -> Objective:
        """Return the objective that compares held-out data, since this one is no measure of fit.

        It is maximum likelihood for a model with an exact density, pseudo-likelihood for binary
        units, and sliced score matching for real numbers.

        Raises:
            ValueError: If the model is none of those.
        """
        module, _ = self.resolve(module)
        if module.density is Density.EXACT:
            return MaximumLikelihood()
        if isinstance(module, HasFlips) and module.flips:
            return PseudoLikelihood()
        if ends(module.support) == (-math.inf, math.inf):
            return SlicedScoreMatching()
        raise ValueError(
            f"Expected no `validation`, since nothing tells how well a {type(module).__name__} of "
            f"{module.support} fits held-out data while its partition function is not known."
        )

    def losses(self, module: Any, x: Tensor, context: Any) -> Tensor:
        negatives = self.persisted(module, x, context) if self.persistent else None
        if negatives is None:
            negatives = module.advance(x, context, self.steps)
        both = None if context is None else torch.cat([context, context])
        values = module.log_density(torch.cat([x, negatives]), both)
        data, model = values.split([len(x), len(negatives)])
        apart = self.persistent  # chains that started from an item count as much as it does
        losses = (model.mean() if apart else model) - data
        self.watch(losses, x)
        if self.regularization:
            squares = model.square()
            squares = data.square() + (squares.mean() if apart else squares)
            losses = losses + self.regularization * squares
        return losses

    def persisted(self, module: Any, x: Tensor, context: Tensor | None) -> Tensor:
        """Draws from persistent chains, which go on if the model is being trained."""
        if context is not None:
            raise ValueError(
                "Expected a model without context for persistent chains, which have none of their "
                "own. Take persistent=False."
            )
        graded = torch.is_grad_enabled()  # not in validation
        replicas = (len(self.betas),) if self.betas else ()
        shape = torch.Size([self.chains or len(x), *replicas])
        with torch.no_grad():
            chains = module.chains
            first = chains.shape[: chains.ndim - len(module.event_shape)]
            if not len(chains) or first[1:] != replicas or (self.chains and first != shape):
                chains = module.base().sample(shape)
            if self.renewal:
                first = chains.shape[: len(shape)]
                new = torch.rand(len(chains), device=chains.device) < self.renewal
                where = new.reshape(-1, *[1] * (chains.ndim - 1))
                chains = torch.where(where, module.base().sample(first), chains)
            if replicas:
                chains = self.exchange(module, chains)
            else:
                chains = module.advance(chains, None, self.steps)
            if module.training and graded:
                if chains.shape == module.chains.shape and chains.dtype == module.chains.dtype:
                    module.chains.copy_(chains)
                else:
                    module.chains = chains.clone(memory_format=torch.contiguous_format)
        return chains[:, -1] if replicas else chains

    def exchange(self, module: Any, chains: Tensor) -> Tensor:
        base = module.base()
        kernel = ParallelTempering(module.transition, self.betas, module.lift(base.log_prob))
        target = module.target(None)
        state = kernel.init(module.pull(chains), target)
        for _ in range(self.steps):
            state, _ = kernel.step(state, target)
        return module.push(state.position)

    def watch(self, losses: Tensor, x: Tensor) -> None:
        """Stop a training that runs away, with advice."""
        if not Distribution._validate_args or losses.device.type == "meta" or is_wrapped(losses):
            return
        gap = abs(float(losses.detach().mean()))
        if gap > self.limit * x[0].numel():
            raise FloatingPointError(
                f"The mean energies of data and chains are {gap:.4g} nats apart: the chains do not "
                f"follow the model. Try a smaller learning rate, more steps (now {self.steps}), "
                f"regularization=0.1, weight decay, or a network with spectral=True."
            )


@record
class NoiseContrastive(Objective):
    r"""Noise-contrastive estimation: logistic regression of data against noise.

    With :math:`G(x) = f(x) - \log q(x) - \log \nu` and :math:`\nu` draws of the noise :math:`q`
    for each item,

    .. math:: - \mathbb{E}_{\mathrm{data}} \log \sigma(G(x))
        - \nu \, \mathbb{E}_q \log (1 - \sigma(G(x))).

    A model that can move :math:`f` by a constant learns its normaliser too: in the end
    :math:`\log Z \approx 0`.

    References:
        | Gutmann & Hyvarinen, "Noise-contrastive estimation: a new estimation principle for
          unnormalized statistical models", 2010, https://proceedings.mlr.press/v9/gutmann10a.html

    Arguments:
        noise: The noise, lazy or of Pyro, with a density; by default the model's base.
        ratio: The number :math:`\nu` of draws per item.

    Raises:
        ValueError: If `ratio` is not a whole number of at least 1.

    Example:
        >>> import probgen as pg
        >>> model = pg.models.EnergyModel(2, hidden_features=(16,))
        >>> NoiseContrastive()(model, torch.randn(5, 2)).shape
        torch.Size([5])
    """

    noise: Any = None
    ratio: int = 1

    requires = (HasEnergy,)

    def __post_init__(self) -> None:
        check_whole(1, ratio=self.ratio)

    def losses(self, module: Any, x: Tensor, context: Any) -> Tensor:
        noise = self.noise
        if noise is None:
            noise = module.base(context)
        elif not isinstance(noise, Distribution):
            noise = noise(context if noise.context else None)
        draws = torch.Size([self.ratio, len(x)] if not noise.batch_shape else [self.ratio])
        with torch.no_grad():
            y = noise.sample(draws)
        if y.shape[2:] != x.shape[1:]:
            raise ValueError(
                f"Expected noise of the data's shape {tuple(x.shape[1:])}, got "
                f"{tuple(y.shape[2:])}."
            )
        points = torch.cat([x[None], y])
        given = None if context is None else context.expand(len(points), *context.shape)
        if self.noise is None and isinstance(module, HasTilt):  # in which the noise cancels
            g = module.tilt(points, given) - math.log(self.ratio)
        else:
            with torch.no_grad():
                known = noise.log_prob(points)
            g = module.log_density(points, given) - known - math.log(self.ratio)
        return softplus(-g[0]) + softplus(g[1:]).sum(0)


@record
class JointEnergy(Around):
    r"""The objective of a classifier that is an energy: of labels given data, and of data.

    .. math:: -\log p_\theta(y \mid x) + \lambda \, \ell_\theta(x)

    The first term is a mean over the known labels of a batch.

    References:
        | Grathwohl et al., "Your classifier is secretly an energy based model and you should treat
          it like one", 2020, https://arxiv.org/abs/1912.03263

    Arguments:
        objective: That of the data, :math:`\ell`; by default contrastive divergence of persistent
            chains.
        weight: Its weight :math:`\lambda \ge 0`.

    Raises:
        ValueError: If the weight is negative.
        TypeError: When called, if the model has no labels.

    Example:
        >>> import probgen as pg
        >>> model = pg.models.JointEnergyModel(2, classes=3, hidden_features=(16,))
        >>> x, y = torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])
        >>> JointEnergy()(model, x, y[:, None].float()).shape
        torch.Size([5])
    """

    objective: Any = ContrastiveDivergence(steps=10, persistent=True, renewal=0.05)
    weight: float = 1.0

    requires = (HasEnergy, HasLabels)
    fits = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", as_objective(self.objective))
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"Expected `weight` not to be negative, got {self.weight}.")

    def losses(self, module: Any, x: Tensor, context: Any) -> Tensor:
        r"""Losses with shape :math:`(N)` of data, and labels as `context`."""
        losses = module.label_loss(x, context)
        if context is not None:  # a mean over known labels, however few there are
            losses = losses * (len(x) / (context >= 0).sum().clamp_min(1))
        return losses + self.weight * self.objective(module, x) if self.weight else losses
