"""The models of `mcmc.py`: in Pyro, in numpyro, and as log densities in JAX, with the same sites.

`posteriors.json` has data and reference draws' means of nine posteriors of posteriordb
(https://github.com/stan-dev/posteriordb, BSD-3-Clause); their models here are those of the Stan
programs there. `schools`, `normal` and `logistic` are models of our own choice:

- `schools`: eight schools, non-centred (10 numbers),
- `normal`: a normal law of 50 numbers with correlation 0.9 between neighbours and scales from 0.1
  to 10,
- `logistic`: logistic regression of 1000 outcomes on 20 features,
- `earn_height`, `kidscore`, `mesquite`, `arK`, `sblri`: linear regressions on raw data (3 to 8
  numbers), `arK` on the five values before,
- `gp_regr`: the hyperparameters of a Gaussian process at 11 points (3),
- `gauss_mix`: a mixture of two normal laws with ordered means, 1000 data (5),
- `hmm`: a hidden Markov chain of two states with normal emissions, 100 data (4),
- `lotka_volterra`: predator and prey over 20 years, by 10 steps of Runge-Kutta's method for each
  (8).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

Samples = dict[str, Tensor]  # values of the latent sites, with shape (chains, draws, *)
Density = Callable[[dict[str, Any]], Any]

POSTERIORS = json.loads((Path(__file__).parent / "posteriors.json").read_text())["posteriors"]
STEPS = 10  # of Runge-Kutta's method in a year of lotka_volterra


def column(posterior: str, name: str) -> Tensor:
    return torch.tensor(POSTERIORS[posterior]["data"][name], dtype=torch.float32)


def columns(posterior: str, *names: str) -> Tensor:
    """The features of a regression, after a constant one."""
    found = [column(posterior, name) for name in names]
    return torch.stack([torch.ones_like(found[0]), *found], 1)


torch.manual_seed(0)
EFFECTS = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
ERRORS = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
LOCATION = torch.zeros(50)
SCALES = 10 ** (2 * torch.rand(50) - 1)
LAGS = (torch.arange(50)[:, None] - torch.arange(50)).abs()
FACTOR = torch.linalg.cholesky((0.9**LAGS * torch.outer(SCALES, SCALES)).double()).float()
FEATURES = torch.randn(1000, 20)
OUTCOMES = torch.bernoulli(torch.sigmoid(FEATURES @ torch.randn(20)))
THETA = [6.2119, 4.9402, 3.9270, 4.7571, 3.6155, 4.0426, 6.2967, 4.8543]
SCHOOLS = [4.3968, 3.5977, *THETA]  # means of mu, tau and theta, by quadrature

MESQUITE = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
REGRESSIONS = {  # features and outcomes
    "earn_height": (columns("earn_height", "height"), column("earn_height", "earn")),
    "kidscore": (columns("kidscore", "mom_hs", "mom_iq"), column("kidscore", "kid_score")),
    "mesquite": (columns("mesquite", *MESQUITE), column("mesquite", "weight")),
    "sblri": (column("sblri", "X"), column("sblri", "y")),
}
SERIES = column("arK", "y")
BEFORE = torch.stack([SERIES[4 - k : 199 - k] for k in range(5)], 1)
PLACES, HEIGHTS = column("gp_regr", "x"), column("gp_regr", "y")
MIXED, EMITTED = column("gauss_mix", "y"), column("hmm", "y")
FIRST, PELTS = column("lotka_volterra", "y_init"), column("lotka_volterra", "y")
assert POSTERIORS["lotka_volterra"]["data"]["ts"] == list(range(1, len(PELTS) + 1))
RATES = torch.tensor([1.0, 0.05, 1.0, 0.05]), torch.tensor([0.5, 0.05, 0.5, 0.05])

SITES: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {  # shapes of sites, and their supports
    "one": {"x": ((), "real")},
    "schools": {"mu": ((), "real"), "tau": ((), "positive"), "eta": ((8,), "real")},
    "normal": {"x": ((50,), "real")},
    "logistic": {"beta": ((20,), "real")},
    "arK": {"alpha": ((), "real"), "beta": ((5,), "real"), "sigma": ((), "positive")},
    "gp_regr": dict.fromkeys(("rho", "alpha", "sigma"), ((), "positive")),
    "gauss_mix": {"mu": ((2,), "ordered"), "sigma": ((2,), "positive"), "theta": ((), "unit")},
    "hmm": {"theta1": ((), "pair"), "theta2": ((), "pair"), "mu": ((2,), "positive ordered")},
    "lotka_volterra": {
        n: ((s,), "positive") for n, s in (("theta", 4), ("z_init", 2), ("sigma", 2))
    },
}
for regression, (features, _) in REGRESSIONS.items():
    SITES[regression] = {"beta": (features.shape[1:], "real"), "sigma": ((), "positive")}


def values(model: str, samples: Samples) -> Tensor:
    """The numbers whose averages are known or compared, with shape (chains, draws, numbers)."""
    x = {name: samples[name].double() for name in SITES[model]}
    x = {name: v[..., None] if v.ndim == 2 else v for name, v in x.items()}
    if model == "schools":
        x["eta"] = x["mu"] + x["tau"] * x["eta"]
    found = torch.cat(list(x.values()), -1)
    return torch.cat([found, found.square()], -1) if model in ("normal", "logistic") else found


def reference(model: str) -> tuple[Tensor, Tensor] | None:
    """Means of these numbers and their standard errors, where they are known."""
    if model == "schools":
        means, errors = SCHOOLS, [0.0] * 10
    elif model == "normal":
        return torch.cat([LOCATION, SCALES.square()]).double(), torch.zeros(100).double()
    elif model in POSTERIORS:
        means, _, errors = zip(*POSTERIORS[model]["reference"].values())
    else:
        return None
    return torch.tensor(means).double(), torch.tensor(errors).double()


def spreads(model: str) -> Tensor | None:
    """The standard deviations of these numbers by reference draws."""
    known = POSTERIORS.get(model)
    return (
        torch.tensor([sd for _, sd, _ in known["reference"].values()]).double() if known else None
    )


# Pyro


def one() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))


def schools() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, ERRORS), obs=EFFECTS)


def normal() -> None:
    pyro.sample("x", dist.MultivariateNormal(LOCATION, scale_tril=FACTOR))


def logistic() -> None:
    prior = dist.Normal(torch.zeros(20), 1.0).to_event(1)
    beta = pyro.sample("beta", prior)
    with pyro.plate("data", 1000):
        pyro.sample("y", dist.Bernoulli(logits=FEATURES @ beta), obs=OUTCOMES)


def regression_of(name: str) -> Callable[[], None]:
    """A linear regression, with the priors of posteriordb."""
    features, outcomes = REGRESSIONS[name]
    size = features.shape[1:]
    beta_prior: Any = dist.ImproperUniform(constraints.real_vector, (), size)
    sigma_prior: Any = dist.ImproperUniform(constraints.positive, (), ())
    if name == "kidscore":
        sigma_prior = dist.HalfCauchy(2.5)
    elif name == "sblri":
        beta_prior, sigma_prior = (
            dist.Normal(0.0, 10.0).expand(size).to_event(1),
            dist.HalfNormal(10.0),
        )

    def model() -> None:
        beta, sigma = pyro.sample("beta", beta_prior), pyro.sample("sigma", sigma_prior)
        with pyro.plate("data", len(outcomes)):
            pyro.sample("y", dist.Normal(features @ beta, sigma), obs=outcomes)

    return model


def autoregression() -> None:
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([5]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("data", 195):
        pyro.sample("y", dist.Normal(alpha + BEFORE @ beta, sigma), obs=SERIES[5:])


def gaussian_process() -> None:
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    square = (PLACES[:, None] - PLACES).square()
    covariance = alpha**2 * torch.exp(-square / (2 * rho**2)) + sigma * torch.eye(11)
    law = dist.MultivariateNormal(torch.zeros(11), covariance_matrix=covariance)
    pyro.sample("y", law, obs=HEIGHTS)


def mixture() -> None:
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    pyro.factor("prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(torch.stack([theta, 1 - theta]))
    with pyro.plate("data", 1000):
        pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=MIXED)


def hidden_markov() -> None:
    theta1 = pyro.sample("theta1", dist.Dirichlet(torch.ones(2)))
    theta2 = pyro.sample("theta2", dist.Dirichlet(torch.ones(2)))
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,)))
    pyro.factor("prior", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).log_prob(mu).sum())
    # Pyro moves before the first datum: to a state of equal probabilities, as in Stan's program
    moves = torch.stack([theta1, theta2]).log().expand(99, 2, 2)
    moves = torch.cat([torch.full((1, 2, 2), -math.log(2)), moves])
    pyro.sample("y", dist.DiscreteHMM(torch.zeros(2), moves, dist.Normal(mu, 1.0)), obs=EMITTED)


def lotka_volterra() -> None:
    positive = constraints.independent(constraints.positive, 1)
    theta = pyro.sample("theta", dist.ImproperUniform(positive, (), (4,)))
    pyro.factor("prior", dist.Normal(*RATES).log_prob(theta).sum())
    z_init = pyro.sample("z_init", dist.LogNormal(math.log(10), 1.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    a, b, c, d = theta.unbind(-1)

    def slope(z: Tensor) -> Tensor:
        return torch.stack([(a - b * z[1]) * z[0], (d * z[0] - c) * z[1]])

    z, years, h = z_init, [], 1 / STEPS
    for _ in range(len(PELTS)):
        for _ in range(STEPS):
            k1 = slope(z)
            k2 = slope(z + h / 2 * k1)
            k3 = slope(z + h / 2 * k2)
            k4 = slope(z + h * k3)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        years.append(z)
    pyro.sample("y_init", dist.LogNormal(z_init.log(), sigma).to_event(1), obs=FIRST)
    pyro.sample("y", dist.LogNormal(torch.stack(years).log(), sigma).to_event(2), obs=PELTS)


PYRO: dict[str, Callable[[], None]] = {
    "schools": schools,
    "normal": normal,
    "logistic": logistic,
    **{name: regression_of(name) for name in REGRESSIONS},
    "arK": autoregression,
    "gp_regr": gaussian_process,
    "gauss_mix": mixture,
    "hmm": hidden_markov,
    "lotka_volterra": lotka_volterra,
    "one": one,
}


# JAX


def arrays(*tensors: Tensor) -> list[Any]:
    import jax.numpy as jnp

    return [jnp.asarray(t.numpy()) for t in tensors]


def populations(theta: Any, z: Any) -> Any:
    """Prey and predators at the end of each year."""
    import jax
    import jax.numpy as jnp

    h = 1 / STEPS

    def slope(z: Any) -> Any:
        rates = [theta[0] - theta[1] * z[1], theta[3] * z[0] - theta[2]]
        return jnp.stack(rates) * z

    def step(z: Any, _: None) -> Any:
        k1 = slope(z)
        k2 = slope(z + h / 2 * k1)
        k3 = slope(z + h / 2 * k2)
        k4 = slope(z + h * k3)
        return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    def year(z: Any, _: None) -> Any:
        z, _ = jax.lax.scan(step, z, None, length=STEPS)
        return z, z

    return jax.lax.scan(year, z, None, length=len(PELTS))[1]


def hidden_markov_density(theta1: Any, theta2: Any, mu: Any) -> Any:
    """The log density of the data of `hmm`, up to a constant, by the forward algorithm."""
    import jax
    import jax.numpy as jnp

    (emitted,) = arrays(EMITTED)
    moves = jnp.log(jnp.stack([theta1, theta2]))
    emissions = jax.scipy.stats.norm.logpdf(emitted[:, None], mu, 1)

    def step(state: Any, emission: Any) -> Any:
        return jax.nn.logsumexp(state[:, None] + moves, 0) + emission, None

    return jax.nn.logsumexp(jax.lax.scan(step, emissions[0], emissions[1:])[0])


@cache
def numpyro_models() -> dict[str, Callable[[], None]]:
    import jax.numpy as jnp
    import numpyro.distributions as law
    from numpyro import factor, plate, sample
    from numpyro.distributions import constraints as support

    def one() -> None:
        sample("x", law.Normal(0.0, 1.0))

    effects, errors = arrays(EFFECTS, ERRORS)

    def schools() -> None:
        mu = sample("mu", law.Normal(0.0, 5.0))
        tau = sample("tau", law.HalfCauchy(5.0))
        with plate("schools", 8):
            eta = sample("eta", law.Normal(0.0, 1.0))
            sample("y", law.Normal(mu + tau * eta, errors), obs=effects)

    location, scale_tril = arrays(LOCATION, FACTOR)

    def normal() -> None:
        sample("x", law.MultivariateNormal(location, scale_tril=scale_tril))

    features, outcomes = arrays(FEATURES, OUTCOMES)

    def logistic() -> None:
        beta = sample("beta", law.Normal(jnp.zeros(20), 1.0).to_event(1))
        with plate("data", 1000):
            sample("y", law.Bernoulli(logits=features @ beta), obs=outcomes)

    def regression_of(name: str) -> Callable[[], None]:
        features, outcomes = arrays(*REGRESSIONS[name])
        size = features.shape[1:]
        beta_prior: Any = law.ImproperUniform(support.real_vector, (), size)
        sigma_prior: Any = law.ImproperUniform(support.positive, (), ())
        if name == "kidscore":
            sigma_prior = law.HalfCauchy(2.5)
        elif name == "sblri":
            beta_prior = law.Normal(0.0, 10.0).expand(size).to_event(1)
            sigma_prior = law.HalfNormal(10.0)

        def model() -> None:
            beta, sigma = sample("beta", beta_prior), sample("sigma", sigma_prior)
            with plate("data", len(outcomes)):
                sample("y", law.Normal(features @ beta, sigma), obs=outcomes)

        return model

    series, before = arrays(SERIES, BEFORE)

    def autoregression() -> None:
        alpha = sample("alpha", law.Normal(0.0, 10.0))
        beta = sample("beta", law.Normal(0.0, 10.0).expand([5]).to_event(1))
        sigma = sample("sigma", law.HalfCauchy(2.5))
        with plate("data", 195):
            sample("y", law.Normal(alpha + before @ beta, sigma), obs=series[5:])

    places, heights = arrays(PLACES, HEIGHTS)

    def gaussian_process() -> None:
        rho = sample("rho", law.Gamma(25.0, 4.0))
        alpha = sample("alpha", law.HalfNormal(2.0))
        sigma = sample("sigma", law.HalfNormal(1.0))
        square = (places[:, None] - places) ** 2
        covariance = alpha**2 * jnp.exp(-square / (2 * rho**2)) + sigma * jnp.eye(11)
        sample("y", law.MultivariateNormal(0.0, covariance_matrix=covariance), obs=heights)

    (mixed,) = arrays(MIXED)

    def mixture() -> None:
        mu = sample("mu", law.ImproperUniform(support.ordered_vector, (), (2,)))
        factor("prior", law.Normal(0.0, 2.0).log_prob(mu).sum())
        sigma = sample("sigma", law.HalfNormal(2.0).expand([2]).to_event(1))
        theta = sample("theta", law.Beta(5.0, 5.0))
        weights = law.Categorical(jnp.stack([theta, 1 - theta]))
        with plate("data", 1000):
            sample("y", law.MixtureSameFamily(weights, law.Normal(mu, sigma)), obs=mixed)

    def hidden_markov() -> None:
        theta1 = sample("theta1", law.Dirichlet(jnp.ones(2)))
        theta2 = sample("theta2", law.Dirichlet(jnp.ones(2)))
        mu = sample("mu", law.ImproperUniform(support.positive_ordered_vector, (), (2,)))
        factor("prior", law.Normal(jnp.array([3.0, 10.0]), 1.0).log_prob(mu).sum())
        factor("y", hidden_markov_density(theta1, theta2, mu))

    first, pelts, loc, scale = arrays(FIRST, PELTS, *RATES)

    def lotka_volterra() -> None:
        theta = sample("theta", law.TruncatedNormal(loc, scale, low=0.0).to_event(1))
        z_init = sample("z_init", law.LogNormal(math.log(10), 1.0).expand([2]).to_event(1))
        sigma = sample("sigma", law.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
        years = jnp.log(populations(theta, z_init))
        sample("y_init", law.LogNormal(jnp.log(z_init), sigma).to_event(1), obs=first)
        sample("y", law.LogNormal(years, sigma).to_event(2), obs=pelts)

    return {
        "schools": schools,
        "normal": normal,
        "logistic": logistic,
        **{name: regression_of(name) for name in REGRESSIONS},
        "arK": autoregression,
        "gp_regr": gaussian_process,
        "gauss_mix": mixture,
        "hmm": hidden_markov,
        "lotka_volterra": lotka_volterra,
        "one": one,
    }


@cache
def densities() -> dict[str, Density]:
    """The log densities of values of the sites, up to constants."""
    import jax
    import jax.numpy as jnp
    from jax.scipy.stats import multivariate_normal, norm

    def half_cauchy(x: Any, scale: float) -> Any:
        return -jnp.log1p((x / scale) ** 2)

    def lognormal(x: Any, loc: Any, scale: Any) -> Any:
        return norm.logpdf(jnp.log(x), loc, scale) - jnp.log(x)

    def one(v: Any) -> Any:
        return norm.logpdf(v["x"])

    effects, errors = arrays(EFFECTS, ERRORS)

    def schools(v: Any) -> Any:
        prior = norm.logpdf(v["mu"], 0, 5) + half_cauchy(v["tau"], 5)
        likelihood = norm.logpdf(effects, v["mu"] + v["tau"] * v["eta"], errors)
        return prior + norm.logpdf(v["eta"]).sum() + likelihood.sum()

    location, scale_tril = arrays(LOCATION, FACTOR)

    def normal(v: Any) -> Any:
        solved = jax.scipy.linalg.solve_triangular(scale_tril, v["x"] - location, lower=True)
        return -jnp.square(solved).sum() / 2

    features, outcomes = arrays(FEATURES, OUTCOMES)

    def logistic(v: Any) -> Any:
        logits = features @ v["beta"]
        likelihood = outcomes * logits - jax.nn.softplus(logits)
        return norm.logpdf(v["beta"]).sum() + likelihood.sum()

    def regression_of(name: str) -> Density:
        features, outcomes = arrays(*REGRESSIONS[name])

        def density(v: Any) -> Any:
            value = norm.logpdf(outcomes, features @ v["beta"], v["sigma"]).sum()
            if name == "kidscore":
                value += half_cauchy(v["sigma"], 2.5)
            elif name == "sblri":
                value += norm.logpdf(v["beta"], 0, 10).sum() + norm.logpdf(v["sigma"], 0, 10)
            return value

        return density

    series, before = arrays(SERIES, BEFORE)

    def autoregression(v: Any) -> Any:
        prior = norm.logpdf(v["alpha"], 0, 10) + norm.logpdf(v["beta"], 0, 10).sum()
        mean = v["alpha"] + before @ v["beta"]
        likelihood = norm.logpdf(series[5:], mean, v["sigma"]).sum()
        return prior + half_cauchy(v["sigma"], 2.5) + likelihood

    places, heights = arrays(PLACES, HEIGHTS)

    def gaussian_process(v: Any) -> Any:
        prior = 24 * jnp.log(v["rho"]) - 4 * v["rho"]
        prior += norm.logpdf(v["alpha"], 0, 2) + norm.logpdf(v["sigma"], 0, 1)
        square = (places[:, None] - places) ** 2
        covariance = v["alpha"] ** 2 * jnp.exp(-square / (2 * v["rho"] ** 2))
        covariance += v["sigma"] * jnp.eye(11)
        return prior + multivariate_normal.logpdf(heights, jnp.zeros(11), covariance)

    (mixed,) = arrays(MIXED)

    def mixture(v: Any) -> Any:
        weights = jnp.log(jnp.stack([v["theta"], 1 - v["theta"]]))
        prior = norm.logpdf(v["mu"], 0, 2).sum() + norm.logpdf(v["sigma"], 0, 2).sum()
        parts = weights + norm.logpdf(mixed[:, None], v["mu"], v["sigma"])
        return prior + 4 * weights.sum() + jnp.logaddexp(parts[:, 0], parts[:, 1]).sum()

    def hidden_markov(v: Any) -> Any:
        prior = norm.logpdf(v["mu"], jnp.array([3.0, 10.0]), 1).sum()
        return prior + hidden_markov_density(**v)

    first, pelts, loc, scale = arrays(FIRST, PELTS, *RATES)

    def lotka_volterra(v: Any) -> Any:
        prior = norm.logpdf(v["theta"], loc, scale).sum()
        prior += lognormal(v["z_init"], math.log(10), 1).sum()
        prior += lognormal(v["sigma"], -1, 1).sum()
        years = jnp.log(populations(v["theta"], v["z_init"]))
        likelihood = norm.logpdf(jnp.log(pelts), years, v["sigma"]).sum()
        return (
            prior + likelihood + norm.logpdf(jnp.log(first), jnp.log(v["z_init"]), v["sigma"]).sum()
        )

    return {
        "schools": schools,
        "normal": normal,
        "logistic": logistic,
        **{name: regression_of(name) for name in REGRESSIONS},
        "arK": autoregression,
        "gp_regr": gaussian_process,
        "gauss_mix": mixture,
        "hmm": hidden_markov,
        "lotka_volterra": lotka_volterra,
        "one": one,
    }


def move(support: str, z: Any) -> tuple[Any, Any]:
    """Real numbers to a support, and the log determinant of the Jacobian."""
    import jax
    import jax.numpy as jnp

    if support == "real":
        return z, 0.0
    if support == "positive":
        return jnp.exp(z), z.sum()
    if support in ("unit", "pair"):
        x = jax.nn.sigmoid(z)
        pair = jnp.stack([x, jax.nn.sigmoid(-z)])
        return (x if support == "unit" else pair), -jax.nn.softplus(z) - jax.nn.softplus(-z)
    first, jacobian = (jnp.exp(z[0]), z.sum()) if support == "positive ordered" else (z[0], z[1])
    return jnp.stack([first, first + jnp.exp(z[1])]), jacobian


def constrain(model: str, z: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Values of the sites from real numbers, and the log determinant of the Jacobian."""
    moved = {name: move(support, z[name]) for name, (_, support) in SITES[model].items()}
    return {name: v for name, (v, _) in moved.items()}, sum(j for _, j in moved.values())


def log_density(model: str) -> Density:
    """The log density of real numbers, with the shapes in `SITES`."""
    density = densities()[model]

    def unconstrained(z: dict[str, Any]) -> Any:
        v, jacobian = constrain(model, z)
        return density(v) + jacobian

    return unconstrained
