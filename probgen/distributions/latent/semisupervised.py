r"""Latent-variable models whose label is known for some data.

A label :math:`y` and a latent :math:`z` give the data, and both have a posterior,

.. math:: p(x, z, y) = p(y) \, p(z) \, p(x \mid z, y), \qquad
    q(z, y \mid x) = q(y \mid x) \, q(z \mid x, y).

Labels are summed out by enumeration: with :math:`w(x, y)` the weight of a draw given :math:`y`,

.. math:: \log p(x) \ge \sum_y q(y \mid x) \left( \log p(y) + E \log w(x, y)
    - \log q(y \mid x) \right), \qquad
    \log p(x) \ge E \log \sum_y p(y) \, w(x, y),

of which the first trains the classifier :math:`q(y \mid x)` and the second is the density.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import one_hot

from ...core import is_wrapped
from ...core.contracts import HasLabels
from ...core.validation import check_event
from ...objectives import Supervised, Weights
from ..parametric.likelihoods import Categorical
from .base import LatentVariable, check_given
from .vae import Latent

__all__ = ["SemiSupervised"]

UNKNOWN = -1  # the label of data without one


@HasLabels.register
class SemiSupervised(LatentVariable):
    r"""A latent-variable model given a label, and a classifier.

    The context is the label, with shape :math:`(*, 1)`: a class numbered from 0, or -1 where it is
    unknown. Without a context all labels are unknown.

    References:
        | Semi-Supervised Learning with Deep Generative Models (Kingma et al., 2014)
        | https://arxiv.org/abs/1406.5298

    Arguments:
        conditional: The model of data given a label, whose context is the label's one-hot code.
        classifier: The posterior :math:`q(y \mid x)` of one feature, called with the data
            flattened.
        weights: The prior probabilities of the classes, with shape :math:`(K)`; equal if none.

    Raises:
        ValueError: If the parts do not fit.

    Example:
        >>> import probgen as pg
        >>> model = pg.models.SemiSupervisedVAE(6, classes=3, latent=2, hidden_features=(8,))
        >>> x, y = torch.ones(5, 6), torch.tensor([[0.0], [2.0], [-1.0], [-1.0], [1.0]])
        >>> model(y).log_prob(x).shape, model.label_posterior(x).probs.shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    log_prior: Tensor

    def __init__(
        self, conditional: Latent, classifier: Categorical, weights: Tensor | None = None
    ) -> None:
        super().__init__()
        k = conditional.context
        self.conditional, self.classifier, self.classes = conditional, classifier, k
        self.context, self.event_shape = 1, conditional.event_shape
        self.context_optional = True
        self.samples = conditional.samples
        size = conditional.event_shape.numel()
        if (classifier.rows, classifier.shape, classifier.context) != (k, (1,), size):
            raise ValueError(
                f"Expected a classifier of one feature in {k} classes with context={size}, got "
                f"{classifier.shape[0]} in {classifier.rows} with context={classifier.context}."
            )
        shares = torch.ones(k) if weights is None else torch.as_tensor(weights)
        if shares.shape != (k,) or not bool((shares > 0).all()):
            raise ValueError(
                f"Expected positive `weights` with shape ({k},), got {shares.tolist()!r:.80}."
            )
        self.register_buffer("log_prior", (shares / shares.sum()).log())

    @property
    def objective(self) -> Callable[..., Tensor]:
        return Supervised()

    @property
    def support(self) -> constraints.Constraint:
        return self.conditional.support

    def set_from_data(self, x: Tensor, context: Any = None, weights: Tensor | None = None) -> None:
        if not self.conditional.initialized:
            self.conditional.initialize(x, None, weights)

    def labels(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the classes, and which are known."""
        self.check_context(context)
        y = context[..., 0]
        if Distribution._validate_args and y.device.type != "meta" and not is_wrapped(y):
            wrong = (y != y.round()) | (y < UNKNOWN) | (y >= self.classes)
            if wrong.any():
                raise ValueError(
                    f"Expected labels 0 to {self.classes - 1}, or {UNKNOWN} where unknown, got "
                    f"{float(y[wrong][0]):g}."
                )
        return y.clamp_min(0).long(), y > UNKNOWN / 2

    def code(self, y: Tensor) -> Tensor:
        return one_hot(y, self.classes).to(self.log_prior.dtype)

    def every(self, batch: torch.Size) -> Tensor:
        """Return the codes of all labels, with shape :math:`(K, *, K)`."""
        k = self.classes
        eye = torch.eye(k, dtype=self.log_prior.dtype, device=self.log_prior.device)
        return eye.reshape(k, *[1] * len(batch), k).expand(k, *batch, k)

    def classify(self, x: Tensor) -> Any:
        r"""Return the classifier's :math:`q(y \mid x)`, a categorical distribution."""
        check_event(x, self.event_shape)
        return dist.Categorical(
            logits=self.classifier(self.conditional.code(x, None)).base_dist.logits[..., 0, :]
        )

    def label_posterior(self, x: Tensor, samples: int = 100) -> Any:
        r"""Bayes' rule, :math:`p(y \mid x) \propto p(y) \, p(x \mid y)`, from importance samples.

        Arguments:
            x: The data, with shape :math:`(*, event)`.
            samples: The number of draws for each label.

        Returns:
            A categorical distribution with batch shape :math:`(*)`.
        """
        check_event(x, self.event_shape)
        batch = x.shape[: x.ndim - len(self.event_shape)]
        wide = x.expand(self.classes, *x.shape)
        found = self.conditional.log_marginal(wide, self.every(batch), samples).value
        return dist.Categorical(logits=found.movedim(0, -1) + self.log_prior)

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
        if stopped or held:
            raise ValueError(
                "Expected an objective that differentiates the draws and their density, since "
                "labels are summed out, got one that holds them. ELBO and IWAE take this model."
            )
        batch = x.shape[: x.ndim - len(self.event_shape)]
        shape = (-1, *[1] * len(batch))
        w = self.conditional.weigh(
            x.expand(self.classes, *x.shape),
            self.every(batch),
            samples,
            analytic=analytic,
        )  # with shape (samples, classes, *)
        if w.score is not None:
            raise ValueError(
                "Expected a posterior whose draws have a derivative, since labels are summed out, "
                "got one without: a mixture, or discrete."
            )
        log_p = self.log_prior.reshape(shape)
        known, chosen = None, None
        if context is not None:
            y, known = self.labels(context)
            chosen = self.code(y).movedim(-1, 0)
        if not analytic:
            joint = w.log_weights + log_p
            if known is not None and chosen is not None:
                given = torch.where(chosen > 0, joint - log_p, -torch.inf)
                joint = torch.where(known, given, joint)
            total = torch.logsumexp(joint, 1)
            nothing = torch.zeros_like(total)
            return Weights(total, nothing, nothing)
        log_q = self.classify(x).logits.movedim(-1, 0)
        share = log_q.exp()
        kl = w.divergence
        if kl is None:
            kl = (w.log_posterior - w.log_prior).mean(0).unsqueeze(-1)
        labels = (share * (log_q - log_p)).sum(0)
        if known is not None and chosen is not None:
            share = torch.where(known, chosen, share)
            labels = torch.where(known, -(chosen * log_p).sum(0), labels)
        latents = (share.unsqueeze(-1) * kl).sum(0)
        fitted = (share * w.log_likelihood).sum(1)
        unknown = fitted.new_full((), torch.nan)
        divergence = torch.cat([latents, labels.unsqueeze(-1)], -1)
        return Weights(fitted, unknown, unknown, divergence)

    def label_loss(self, x: Tensor, context: Tensor | None) -> Tensor:
        r"""Return the classifier's :math:`-\log q(y \mid x)`, 0 where the label is unknown."""
        if context is None:
            raise ValueError("Expected labels as the `context`, got none.")
        y, known = self.labels(context)
        return torch.where(known, -self.classify(x).log_prob(y), 0.0)

    def draw(self, shape: torch.Size, context: Tensor | None) -> Tensor:
        y = self.label_law().sample(shape)
        if context is not None:
            given, known = self.labels(context)
            y = torch.where(known, given, y)
        return self.conditional.draw(shape, self.code(y))

    def label_law(self) -> Any:
        return dist.Categorical(logits=self.log_prior)

    def pyro_model(
        self, prefix: str, name: str, context: Any, obs: Tensor | None, infer: dict[str, Any]
    ) -> Tensor:
        given = self.observed(context)
        y = pyro.sample(f"{prefix}y", self.label_law(), obs=given, infer=dict(infer))
        return self.conditional.pyro_model(prefix, name, self.code(y), obs, infer)

    def pyro_guide(
        self, prefix: str, x: Tensor | None, context: Any, infer: dict[str, Any]
    ) -> Tensor:
        """State the label, if unknown, enumerated under `TraceEnum_ELBO`, and the latent."""
        x = check_given(x)
        y = self.observed(context)
        if y is None:
            law: TorchDistribution = self.classify(x)
            y = pyro.sample(f"{prefix}y", law, infer={**infer, "enumerate": "parallel"})
        wide = torch.broadcast_shapes(y.shape, x.shape[:1])  # labels may be enumerated
        x = x.expand(*wide, *x.shape[1:])
        return self.conditional.pyro_guide(prefix, x, self.code(y.expand(wide)), infer)

    def observed(self, context: Tensor | None) -> Tensor | None:
        """Return the labels, all known or none."""
        if context is None:
            return None
        y, known = self.labels(context)
        if not bool(known.all()):
            if bool(known.any()):
                raise ValueError(
                    f"Expected labels that are all known, or none, since a site is observed or "
                    f"not, got {int(known.sum())} known of {known.numel()}. Take a step for each."
                )
            return None
        return y
