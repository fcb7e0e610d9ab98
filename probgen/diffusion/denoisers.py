r"""Denoisers.

A denoiser maps noisy values, with their time, to a distribution of the item,
:math:`p(x_0 \mid x_t)`. Its mean :math:`\hat x_0` is one way to say what other networks say:

.. math:: \hat \epsilon = \frac{x_t - \alpha \hat x_0}{\sigma}, \qquad
    s = -\frac{\hat \epsilon}{\sigma}, \qquad v = \alpha \hat \epsilon - \sigma \hat x_0, \qquad
    u = \dot \alpha \hat x_0 + \dot \sigma \hat \epsilon,

the noise, the score :math:`\nabla \log p(x_t)`, the v of Salimans & Ho, and the velocity of the
probability flow. So is the mean of a step back from :math:`t` to :math:`s`,

.. math:: \mu = \frac{\alpha_t \sigma_s^2}{\alpha_s \sigma_t^2} x_t + \alpha_s
    \Bigl( 1 - \frac{\alpha_t^2 \sigma_s^2}{\alpha_s^2 \sigma_t^2} \Bigr) \hat x_0.

Each is turned into each other by :func:`convert`.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ..core import Standardizer, register, save
from ..core.derive import derived
from ..core.validation import check_event, check_whole
from .parameterizations import KINDS, convert
from .schedules import Schedule

__all__ = ["Denoiser", "LearnedVariance", "NetworkDenoiser", "Rescheduled"]

Kind = Literal["eps", "flow", "score", "v", "x_0"]


@register
class Denoiser(nn.Module):
    """A map from noisy values to a distribution of the clean data, under a schedule.

    Arguments:
        schedule: The schedule.
        shape: The shape of an item.
        context: The number of features of the context.
    """

    save = save

    #: Whether derivatives go through it, and so a density along its probability flow.
    differentiable: bool = True

    def __init__(self, schedule: Schedule, shape: Sequence[int], context: int = 0) -> None:
        super().__init__()
        if not isinstance(schedule, Schedule):
            raise TypeError(f"Expected a schedule, got a {type(schedule).__name__}.")
        check_whole(0, context=context)
        self.schedule, self.shape, self.context = schedule, tuple(shape), context

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> TorchDistribution:
        r"""Return the distribution of the item.

        Arguments:
            x: Noisy values :math:`x_t`, with shape :math:`(*, event)`.
            t: Their times, in [0, 1], which broadcast to :math:`(*)`.
            context: Their contexts, with shape :math:`(*, C)`.

        Returns:
            A distribution with the event shape of an item.
        """

    def signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\alpha_t` and :math:`\sigma_t`, made to broadcast over data.

        Raises:
            ValueError: If a time is outside [0, 1], read under argument validation.
        """
        alpha, sigma = self.schedule(t)
        return self.wide(alpha), self.wide(sigma)

    def wide(self, value: Tensor) -> Tensor:
        return value.reshape(*value.shape, *[1] * len(self.shape))

    @derived
    def mean(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        r""":math:`\hat x_0`, with the shape of `x`; by default the mean of the distribution."""
        return self(x, t, context).mean

    def predict(self, kind: str, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the prediction in another parameterization, see :func:`convert`."""
        alpha, sigma = self.signal(t)
        slopes = tuple(map(self.wide, self.schedule.slopes(t))) if kind == "flow" else None
        return convert(self.mean(x, t, context), "x_0", kind, x, alpha, sigma, slopes)  # type: ignore[arg-type]

    def score(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        r""":math:`\nabla \log p(x_t)`, with the shape of `x`."""
        return self.predict("score", x, t, context)


def check_arguments(network: Any, count: int) -> None:
    """Raise a TypeError if a network cannot be called with so many tensors."""
    call = network.forward if isinstance(network, nn.Module) else network
    if not callable(call):
        raise TypeError(f"Expected a callable `network`, got {network!r:.80}.")
    try:
        inspect.signature(call).bind(*[None] * count)
    except TypeError as error:
        raise TypeError(
            f"Expected a `network` called with values and log ratios of signal to noise"
            f"{', and contexts' if count == 3 else ''}, got a {type(network).__name__}: {error}. "
            f"TimeMLP and UNet of pg.networks are called so."
        ) from None
    except ValueError:  # written in C, it does not say what it takes
        return


class NetworkDenoiser(Denoiser):
    r"""A denoiser by a network, trained or to be trained.

    The network sees :math:`x_t` divided by :math:`\sqrt{\alpha^2 + \sigma^2}` and the log of signal
    over noise. After training :class:`Rescheduled` puts it under another schedule. With
    the preconditioning of EDM,
    :math:`\hat x_0 = c_\text{skip} \, y + c_\text{out} \, F` for
    :math:`y = x_t / \alpha`, noise :math:`\varsigma = \sigma / \alpha` and data of variance 1,

    .. math:: c_\text{skip} = \frac{1}{1 + \varsigma^2}, \qquad
        c_\text{out} = \frac{\varsigma}{\sqrt{1 + \varsigma^2}},

    which makes :math:`F` the negative of v, up to the scale of :math:`x_t`.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Arguments:
        network: Maps values with shape :math:`(*, event)` and :math:`\lambda_t` with shape
            :math:`(*)`, or :math:`()` where all have one time, and contexts third if there are any,
            to the shape of the values.
        schedule: The schedule.
        shape: The shape of an item.
        context: The number of features of the context.
        predicts: What the network says: `"eps"`, `"v"`, `"x_0"`, `"score"`, `"flow"`, or `"edm"`,
            which preconditions it.
        plain: Whether the network takes :math:`x_t` and :math:`t` as they are, as networks that
            were trained elsewhere do.

    Raises:
        ValueError: If the name is unknown; when called, if the network returns another shape.

    Example:
        A score of one's own:

        >>> import torch
        >>> from probgen.diffusion import VE
        >>> score = lambda x, t: -x / (1 + 0.01 ** 2 * 5000 ** (2 * t[..., None]))
        >>> denoiser = NetworkDenoiser(
        ...     score, VE(), (2,), predicts="score", plain=True
        ... )
        >>> x, t = torch.ones(3, 2), torch.tensor(0.5)
        >>> torch.allclose(denoiser.score(x, t), score(x, t.expand(3)), rtol=1e-4)
        True
    """

    def __init__(
        self,
        network: nn.Module | Callable[..., Tensor],
        schedule: Schedule,
        shape: Sequence[int],
        context: int = 0,
        predicts: Kind | Literal["edm"] = "edm",
        plain: bool = False,
    ) -> None:
        super().__init__(schedule, shape, context)
        if predicts not in (*KINDS, "edm"):
            raise ValueError(
                f"Expected `predicts` among {sorted((*KINDS, 'edm'))}, got {predicts!r:.80}."
            )
        check_arguments(network, 3 if context else 2)
        self.network, self.predicts, self.plain = network, predicts, plain
        self.context_standardizer: Any = None
        if context and not plain:
            self.context_standardizer = Standardizer((context,))

    def output(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """Return the output of the network."""
        check_event(x, self.shape)
        batch = x.shape[: x.ndim - len(self.shape)]
        if self.plain:
            given, level = x, t.expand(batch)
        else:
            alpha, sigma = self.signal(t)
            given = x / (alpha.square() + sigma.square()).sqrt()
            level = self.schedule.log_snr(t)
            level = level.expand(batch) if level.ndim else level  # one time is seen once
        if context is not None and self.context_standardizer is not None:
            context = self.context_standardizer(context)
        extra = () if context is None else (context.expand(*batch, context.shape[-1]),)
        out = self.network(given, level, *extra)
        if out.shape != x.shape:
            raise ValueError(
                f"Expected a `network` that returns the shape of its values, {tuple(x.shape)}, "
                f"got {tuple(out.shape)}."
            )
        return out

    def mean(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        out = self.output(x, t, context)
        alpha, sigma = self.signal(t)
        if self.predicts == "edm":
            size = alpha.square() + sigma.square()
            return alpha / size * x + sigma / size.sqrt() * out
        slopes = None
        if self.predicts == "flow":
            da, ds = self.schedule.slopes(t)
            slopes = self.wide(da), self.wide(ds)
        return convert(out, self.predicts, "x_0", x, alpha, sigma, slopes)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> TorchDistribution:
        alpha, sigma = self.signal(t)
        spread = sigma / (alpha.square() + sigma.square()).sqrt()  # of data of variance 1
        mean = self.mean(x, t, context)
        return dist.Normal(mean, spread.expand(mean.shape)).to_event(len(self.shape))


class Rescheduled(Denoiser):
    r"""A denoiser under another schedule than its own, with nothing trained anew.

    A noisy value of one schedule is one of the other, up to its scale, at the time at which that
    has the same ratio of signal to noise,

    .. math:: \lambda'_{t'} = \lambda_t, \qquad
        x' = x \sqrt{\frac{\alpha'^2 + \sigma'^2}{\alpha^2 + \sigma^2}}.

    Ratios that its own schedule does not have are taken as the nearest ones that it has.

    References:
        | Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630

    Arguments:
        denoiser: The denoiser.
        schedule: The schedule.

    Raises:
        TypeError: If one of them is none.

    Example:
        >>> import torch
        >>> from probgen.diffusion import VE, VP, GaussianDenoiser
        >>> own = GaussianDenoiser(torch.ones(2), torch.eye(2) / 2, VP())
        >>> other = GaussianDenoiser(torch.ones(2), torch.eye(2) / 2, VE())
        >>> x, t = torch.randn(5, 2), torch.tensor(0.5)
        >>> torch.allclose(Rescheduled(own, VE()).mean(x, t), other.mean(x, t), atol=1e-4)
        True
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule) -> None:
        if not isinstance(denoiser, Denoiser):
            raise TypeError(f"Expected a denoiser, got a {type(denoiser).__name__}.")
        super().__init__(schedule, denoiser.shape, denoiser.context)
        self.denoiser, self.differentiable = denoiser, denoiser.differentiable

    def turned(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Values and times as its own schedule has them."""
        alpha, sigma = self.signal(t)
        own = self.denoiser.schedule
        t = own.time(self.schedule.log_snr(t)).clamp(0.0, own.latest)
        kept, noise = self.denoiser.signal(t)
        size = (kept.square() + noise.square()) / (alpha.square() + sigma.square())
        return x * size.sqrt(), t

    def mean(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return self.denoiser.mean(*self.turned(x, t), context)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> TorchDistribution:
        return self.denoiser(*self.turned(x, t), context)


class LearnedVariance(Denoiser):
    r"""A denoiser with a variance that is learned beside its mean.

    .. math:: p(x_0 \mid x_t) = \mathcal{N} \Bigl( \hat x_0(x_t), \;
        \frac{\sigma^2}{\alpha^2 + \sigma^2} \, e^{h(x_t)} \Bigr)

    :class:`~probgen.diffusion.Ancestral` with `variance="law"` draws from it.

    References:
        | Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021),
          https://arxiv.org/abs/2102.09672
        | Estimating the Optimal Covariance with Imperfect Mean in Diffusion Probabilistic Models
          (Bao et al., 2022), https://arxiv.org/abs/2206.07309

    Arguments:
        denoiser: The denoiser of the mean.
        network: The network :math:`h`, called as that of :class:`NetworkDenoiser`.

    Example:
        >>> import torch
        >>> from probgen.diffusion import VP
        >>> from probgen.networks import TimeMLP
        >>> mean = NetworkDenoiser(TimeMLP(2), VP(), (2,))
        >>> law = LearnedVariance(mean, TimeMLP(2))(torch.randn(5, 2), torch.tensor(0.5))
        >>> law.variance.shape
        torch.Size([5, 2])
    """

    def __init__(self, denoiser: Denoiser, network: nn.Module | Callable[..., Tensor]) -> None:
        super().__init__(denoiser.schedule, denoiser.shape, denoiser.context)
        self.denoiser, self.differentiable = denoiser, denoiser.differentiable
        self.spread = NetworkDenoiser(network, denoiser.schedule, denoiser.shape, denoiser.context)

    def mean(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return self.denoiser.mean(x, t, context)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> TorchDistribution:
        alpha, sigma = self.signal(t)
        mean, h = self.mean(x, t, context), self.spread.output(x, t, context)
        scale = sigma / (alpha.square() + sigma.square()).sqrt() * (h / 2).exp()
        return dist.Normal(mean, scale).to_event(len(self.shape))
