r"""Guides for any Pyro model: one distribution over all of its continuous latent sites.

A bijection takes each site from the real vectors to its support, and all sites together are one
vector :math:`u` of :math:`D` real numbers with density :math:`\pi(u \mid y)` given the data. A
guide is a lazy distribution :math:`q_\phi(u)`, trained to be close to it.

They are `AutoContinuous` guides of Pyro, so that `SVI`, `Predictive` and every ELBO take them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.infer.autoguide import AutoContinuous, init_to_median
from torch import Tensor

from ..core import Density, LazyDistribution
from ..core.arguments import checked
from ..core.pyro_sites import register, unique_name
from ..core.validation import check_whole
from ..distributions import DiagonalNormal, Flow, FullNormal, StandardNormal
from ..mcmc import Draws, potential
from ..transforms import Autoregressive, Standardize
from .importance import psis, warned

__all__ = ["ContinuousGuide", "FlowGuide", "FullCovariance", "MeanField"]


class ContinuousGuide(AutoContinuous):
    """A guide over all continuous latent sites of a model.

    Discrete sites that are marked by Pyro's `config_enumerate` are left to `TraceEnum_ELBO`, which
    sums them out. Parameters exist from the first call on, as in all of Pyro's automatic guides.

    Arguments:
        model: The Pyro model.
        init_loc_fn: Pyro's strategy for the initial location of each site.
        scale: The initial standard deviation about it, of all real numbers.
    """

    normal: ClassVar[bool] = False  #: whether its distribution is normal

    @checked
    def __init__(
        self, model: Callable[..., Any], init_loc_fn: Callable[..., Any], scale: float
    ) -> None:
        if not callable(model):
            raise TypeError(f"Expected a Pyro model, a function, got a {type(model).__name__}.")
        if not 0 < scale < torch.inf:
            raise ValueError(f"Expected a positive `scale`, got {scale}.")

        def first(site: dict[str, Any]) -> Tensor:
            discrete = site["fn"].support.is_discrete
            return site["fn"].sample() if discrete else init_loc_fn(site)

        super().__init__(model, init_loc_fn=first)
        self._stated = (model,)  # in a tuple, so that it is no part of this module
        self.scale = scale
        self._pyro_name = unique_name(self)  # sites and parameters of two guides never collide

    @abstractmethod
    def build(self, size: int) -> LazyDistribution:
        """Return the distribution of so many real numbers."""

    @staticmethod
    def _prototype_hide_fn(msg: dict[str, Any]) -> bool:
        hidden = AutoContinuous._prototype_hide_fn(msg)
        if hidden or not msg["fn"].support.is_discrete:
            return hidden
        if msg["infer"].get("enumerate") != "parallel":
            raise ValueError(
                f"Expected continuous latent sites, got the discrete {msg['name']!r}. Mark it with "
                f"pyro.infer.config_enumerate(model, 'parallel') and train with TraceEnum_ELBO, "
                f"which sums it out."
            )
        return True

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            for frame in site["cond_indep_stack"]:
                if frame.full_size is not None and frame.full_size != frame.size:
                    raise ValueError(
                        f"Expected latent sites outside of subsampled plates, got {name!r} in "
                        f"{frame.name!r}, where {frame.size} of {frame.full_size} are seen. Each "
                        f"of them needs numbers of its own: use an amortised guide."
                    )
        loc = self._init_loc()
        with torch.no_grad():
            module = self.build(self.latent_dim).to(loc.device, loc.dtype)
            event = tuple(module().event_shape)
            if event != loc.shape:
                raise ValueError(
                    f"Expected a distribution of {len(loc)} real numbers, got one with event shape "
                    f"{event}."
                )
            self.begin(module, loc)
        self.add_module("distribution", module)

    def begin(self, module: Any, loc: Tensor) -> None:
        """Put a distribution where the guide begins."""
        if self.normal:
            return begin_normal(module, loc, self.scale)
        module.initialize(torch.stack([loc - self.scale, loc + self.scale]))

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        r"""Return the distribution of :math:`u`, with its parameters registered."""
        module: Any = self._modules["distribution"]  # which PyroModule does not see
        register(module)
        return module()

    def ready(self, *args: Any, **kwargs: Any) -> Any:
        r"""Return distribution of :math:`u`, after a first run of the model if there was none."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        module: Any = self._modules["distribution"]
        return module()

    def weigh(
        self, count: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Tensor, Tensor, Tensor]:
        r"""Return the model's density, draws of :math:`u`, and their log densities under both."""
        check_whole(1, draws=count)
        q = self.ready(*args, **kwargs)
        target = potential(self._stated[0], *args, base=False, **kwargs)
        starts, at = {}, 0
        for name, shape in self._unconstrained_shapes.items():
            starts[name], at = at, at + shape.numel()
        if set(starts) != set(target.layout):
            raise ValueError(
                f"Expected a model with the sites {', '.join(starts)}, got "
                f"{', '.join(target.layout)}."
            )
        columns = [
            torch.arange(starts[name], starts[name] + site.stop - site.start)
            for name, site in target.layout.items()
        ]
        with torch.no_grad():
            u = q.sample((count,))
            log_q = q.log_prob(u)
            u = u[:, torch.cat(columns).to(u.device)]
            return target, u, target(u), log_q

    def draws(self, count: int, *args: Any, **kwargs: Any) -> Draws:
        """Independent draws of all sites, deterministic ones too, as one chain.

        Their statistics hold `"log_density"`, of the model, and `"log_weight"`, its ratio to that
        of the guide, whose Pareto-smoothed values (:func:`psis`) correct averages. Discrete sites
        are summed out.

        Arguments:
            count: The number of draws.
            args: The arguments of the model.
            kwargs: Its keyword arguments.
        """
        target, u, log_p, log_q = self.weigh(count, args, kwargs)
        samples = {name: value.unsqueeze(0) for name, value in target.unravel(u).items()}
        ones = torch.ones_like(log_p)
        stats = {
            "log_density": log_p,
            "log_weight": log_p - log_q,
            "acceptance": ones,
            "steps": ones,
            "diverged": torch.zeros_like(ones, dtype=torch.bool),
        }
        latent = [name for name in samples if name in target.layout]
        return Draws(samples, {n: v.unsqueeze(0) for n, v in stats.items()}, latent, [])

    def khat(self, *args: Any, samples: int = 1000, **kwargs: Any) -> Tensor:
        r"""Return the shape :math:`\hat k` of the importance weights, with a warning above 0.7.

        Arguments:
            args: The arguments of the model.
            samples: The number of draws.
            kwargs: Its keyword arguments.
        """
        check_whole(25, samples=samples)
        _, _, log_p, log_q = self.weigh(samples, args, kwargs)
        return warned(psis(log_p - log_q).khat)


class MeanField(ContinuousGuide):
    r"""A guide of independent normal numbers, :math:`q(u) = \prod_d \mathcal{N}(u_d; m_d, s_d^2)`.

    It underestimates the spread of numbers that depend on each other. Standard deviations stay
    within 0.001 and 1000.

    References:
        | Automatic Differentiation Variational Inference (Kucukelbir et al., 2017)
        | https://arxiv.org/abs/1603.00788
        | Variational Inference: A Review for Statisticians (Blei et al., 2017)
        | https://arxiv.org/abs/1601.00670

    Arguments:
        model: The Pyro model.
        init_loc_fn: Pyro's strategy for the initial location of each site.
        scale: The initial standard deviation about it, of all real numbers.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> guide, y = MeanField(model), torch.tensor([1.0, 2.0, 3.0])
        >>> optim, elbo = pyro.optim.Adam({"lr": 0.02}), pyro.infer.Trace_ELBO()
        >>> svi = pyro.infer.SVI(model, guide, optim, elbo)
        >>> losses = [svi.step(y) for _ in range(300)]
        >>> abs(float(guide.median()["mean"]) - 1.5) < 0.3
        True
        >>> guide.draws(100, y)
        Draws(1 chains of 100 draws: mean ())
    """

    normal = True

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        init_loc_fn: Callable[..., Any] = init_to_median,
        scale: float = 0.1,
    ) -> None:
        super().__init__(model, init_loc_fn, scale)

    def build(self, size: int) -> LazyDistribution:
        return DiagonalNormal(size)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        q = self.ready(*args, **kwargs)
        return q.mean, q.stddev


class FullCovariance(ContinuousGuide):
    r"""A guide of normal numbers with any covariance, :math:`q(u) = \mathcal{N}(u; m, L L^\top)`.

    Arguments:
        model: The Pyro model.
        init_loc_fn: Pyro's strategy for the initial location of each site.
        scale: The initial standard deviation about it, of all real numbers.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.LogNormal(x, 1.0))
        >>> guide = FullCovariance(model)
        >>> _ = guide()
        >>> guide.distribution().covariance_matrix.shape
        torch.Size([2, 2])
    """

    normal = True

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        init_loc_fn: Callable[..., Any] = init_to_median,
        scale: float = 0.1,
    ) -> None:
        super().__init__(model, init_loc_fn, scale)

    def build(self, size: int) -> LazyDistribution:
        return FullNormal(size)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        q = self.ready(*args, **kwargs)
        return q.mean, q.stddev


class FlowGuide(ContinuousGuide):
    r"""A guide whose numbers are those of a normalising flow.

    References:
        | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015)
        | https://arxiv.org/abs/1505.05770

    Arguments:
        model: The Pyro model.
        build: A function that makes a lazy distribution of :math:`D` real numbers, such as
            :class:`probgen.models.NSF`; by default two inverse autoregressive transforms, which
            draw in one pass.
        init_loc_fn: Pyro's strategy for the initial location of each site.
        scale: The initial standard deviation about it, of all real numbers, in units of which the
            flow is learned.

    Raises:
        TypeError: If `build` gives no lazy distribution with draws that have a derivative.

    Example:
        >>> import probgen as pg, pyro, pyro.distributions as dist
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(x.prod(), 0.5), obs=torch.tensor(1.0))
        >>> guide = FlowGuide(model, lambda size: pg.models.NSF(size, transforms=2))
        >>> guide()["x"].shape
        torch.Size([2])
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        build: Callable[[int], LazyDistribution] | None = None,
        init_loc_fn: Callable[..., Any] = init_to_median,
        scale: float = 1.0,
    ) -> None:
        super().__init__(model, init_loc_fn, scale)
        self.make = small_flow if build is None else build

    def build(self, size: int) -> LazyDistribution:
        module = self.make(size)
        if not isinstance(module, LazyDistribution):
            raise TypeError(
                f"Expected `build` to make a lazy distribution, such as pg.models.NSF(size), got a "
                f"{type(module).__name__}."
            )
        if module.context or module.density is not Density.EXACT or not module().has_rsample:
            raise TypeError(
                f"Expected `build` to make a distribution without context, with an exact density "
                f"and draws that have a derivative, got a {type(module).__name__} with context="
                f"{module.context} and {module.density}."
            )
        return module

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(
            "The medians and quantiles of a flow have no closed form: take those of "
            "guide.draws(1000, *args).summary()."
        )


def begin_normal(module: Any, loc: Tensor, scale: float) -> None:
    """Set the location, and the log scales, which follow the location in the parameters."""
    module.standardizer.shift.copy_(loc)
    module.phi[len(loc) : 2 * len(loc)] = torch.tensor(scale).log()


def small_flow(size: int) -> LazyDistribution:
    """Two inverse autoregressive transforms in opposite orders, on a standard normal base."""
    orders = (None, tuple(range(size))[::-1])
    parts = [Autoregressive(size, hidden_features=(32,), order=order) for order in orders]
    return Flow([*parts, Standardize(size)], StandardNormal(size))
