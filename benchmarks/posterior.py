r"""The same Pyro model, the right posterior: samplers of a diffusion prior against a closed form.

The prior is a mixture of ten normal laws with full covariances, fitted to the 8 x 8 digits of
scikit-learn less their mean and over one standard deviation. As a diffusion it has an exact
denoiser, so that no error is a network's, and given

.. math:: y = A x + s \epsilon

the exact posterior is a mixture too: with :math:`C_k = (S_k^{-1} + A^\top A / s^2)^{-1}`,

.. math:: m_k \leftarrow C_k (S_k^{-1} m_k + A^\top y / s^2), \quad S_k \leftarrow C_k, \quad
    w_k \leftarrow w_k \, \mathcal{N}(y; A m_k, A S_k A^\top + s^2 I).

Two measurements have noise of 0.15: `inpainting` sees the upper half, `deblurring` all pixels
through a normal blur of one pixel. The truths are draws of the prior, so that an exact method has
calibrated intervals and ranks. Columns, means over problems:

- mean: the error of the mean over the exact posterior's standard deviation, the root of the mean
  square over pixels;
- variance: over the exact one, the geometric mean over pixels;
- KL: of the normal law of the draws from that of the exact posterior, in nats, along its 16
  principal directions;
- modes: the total variation between the weights of the exact posterior's components among the draws
  and those they have;
- 90 %: how many true pixels lie in central intervals of 90 %;
- rank: that of log p(y | truth) among those of the draws, on [0, 1], and the p-value of a test
  of Kolmogorov and Smirnov that ranks are uniform;
- residual: the mean of |y - A x|^2 / (M s^2), and what it is under the exact posterior;
- CPU s: of one problem, all of it, with 256 draws, 64 where azula draws them one by one, 2048
  twisted particles, 1024 draws of particle Gibbs, 128 of sequential Monte Carlo in base space, and
  as many of chains as is said.

The first row has draws of the exact posterior: the floor of each column. azula gets the same
denoiser, schedule, grid and number of steps; its rows are left out, and said to be, only if it is
not installed.

    pip install azula==0.11.1 scikit-learn
    OMP_NUM_THREADS=1 python benchmarks/posterior.py             # half an hour of one core
    OMP_NUM_THREADS=1 python benchmarks/posterior.py --methods "SMC in base space"
    OMP_NUM_THREADS=1 python benchmarks/posterior.py --methods ParticleGibbs
    OMP_NUM_THREADS=1 python benchmarks/posterior.py --methods MMPS DPS --problems 4
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_value
from scipy.stats import kstest
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from torch import Tensor

import probgen as pg
from probgen import diffusion as d

try:
    import azula.denoise
    import azula.guidance
    import azula.sample
    from azula.linalg.covariance import IsotropicCovariance
except ImportError:
    azula = None

DRAWS, STEPS, NOISE, SIDE = 256, 100, 0.15, 8
PIXELS = SIDE**2

# ------------------------------------------------------------------------------------------------
# The prior and its exact posterior


class Mixture(NamedTuple):
    """A mixture of normal laws: weights (K), means (K, D) and covariances (K, D, D)."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def law(self) -> Any:
        parts = dist.MultivariateNormal(self.means, self.covariances)
        return dist.MixtureSameFamily(dist.Categorical(self.weights), parts)

    def moments(self) -> tuple[Tensor, Tensor]:
        mean = self.weights @ self.means
        away = self.means - mean
        parts = self.covariances + away[:, :, None] * away[:, None, :]
        return mean, torch.einsum("k,kde->de", self.weights, parts)

    def shares(self, x: Tensor) -> Tensor:
        """The probability of each component, the mean over values."""
        parts = dist.MultivariateNormal(self.means, self.covariances)
        return (parts.log_prob(x[:, None]) + self.weights.log()).softmax(-1).mean(0)

    def given(self, a: Tensor, y: Tensor) -> Mixture:
        """The posterior, see above."""
        precision = torch.linalg.inv(self.covariances)
        c = torch.linalg.inv(precision + a.mT @ a / NOISE**2)
        pull = torch.einsum("kde,ke->kd", precision, self.means) + y @ a / NOISE**2
        eye = torch.eye(len(y), dtype=y.dtype)
        seen = a @ self.covariances @ a.mT + NOISE**2 * eye
        evidence = dist.MultivariateNormal(self.means @ a.mT, seen).log_prob(y)
        weights = (self.weights.log() + evidence).softmax(0)
        return Mixture(weights, torch.einsum("kde,ke->kd", c, pull), (c + c.mT) / 2)


def digits() -> Mixture:
    x = load_digits().data
    found = GaussianMixture(10, reg_covar=0.05, random_state=0).fit((x - x.mean(0)) / x.std())
    return Mixture(*map(torch.tensor, (found.weights_, found.means_, found.covariances_)))


def operators() -> dict[str, Tensor]:
    place = torch.arange(SIDE).double()
    blur = (-(place[:, None] - place).square() / 2).exp()
    blur = blur / blur.sum(1, keepdim=True)
    upper = torch.eye(PIXELS).double()[: PIXELS // 2]
    return {"inpainting": upper, "deblurring": torch.kron(blur, blur)}


def model(prior: Any, a: Tensor, y: Tensor) -> None:
    """The Pyro model, whether the prior is one of Pyro's distributions or one of this package."""
    x = (pyro.sample if isinstance(prior, dist.Distribution) else pg.sample)("x", prior)
    pyro.sample("y", dist.Normal(x @ a.mT, NOISE).to_event(1), obs=y)


class Problem(NamedTuple):
    """A truth, what was measured of it, and the exact posterior, in float64."""

    prior: Mixture
    denoiser: d.MixtureDenoiser
    a: Tensor
    truth: Tensor
    y: Tensor
    exact: Mixture

    def diffusion(self, steps: int = 16) -> pg.distributions.Diffusion:
        return pg.distributions.Diffusion(self.denoiser, steps=steps).freeze()


def posed(prior: Mixture, a: Tensor, count: int) -> list[Problem]:
    torch.manual_seed(0)
    scales = torch.linalg.cholesky(prior.covariances)
    weights, means, scales = prior.weights.float(), prior.means.float(), scales.float()
    denoiser = d.MixtureDenoiser(weights, means, scales, d.VP())
    truths = prior.law().sample((count,))
    y = truths @ a.mT + NOISE * torch.randn(count, len(a)).double()
    return [Problem(prior, denoiser, a, x, v, prior.given(a, v)) for x, v in zip(truths, y)]


# ------------------------------------------------------------------------------------------------
# The methods: from a problem to draws and what is worth a note


def exactly(problem: Problem) -> Tensor:
    return problem.exact.law().sample((DRAWS,))


class Score(torch.autograd.Function):
    """The rule of other packages: the value 0, and the prior's score as its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, score: Tensor) -> Tensor:
        ctx.save_for_backward(score)
        return x.new_zeros(x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.unsqueeze(-1) * ctx.saved_tensors[0], None


class Scored(dist.TorchDistribution):
    """The prior, of which its log density, or the score alone, is known."""

    support = dist.constraints.real_vector
    arg_constraints: dict[str, Any] = {}

    def __init__(self, law: Any, value: bool) -> None:
        super().__init__(law.batch_shape, law.event_shape, validate_args=False)
        self.known, self.value = law, value

    def sample(self, shape: Any = ()) -> Tensor:
        return self.known.sample(shape)

    def log_prob(self, x: Tensor) -> Tensor:
        if self.value:
            return self.known.log_prob(x)
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (score,) = torch.autograd.grad(self.known.log_prob(point).sum(), point)
        return Score.apply(x, score)


def nuts(problem: Problem, value: bool) -> Tensor:
    """Pyro's NUTS, from a draw of the exact posterior."""
    prior = Scored(problem.prior.law(), value)
    start = init_to_value(values={"x": problem.exact.law().sample()})
    kernel = NUTS(model, max_tree_depth=5, init_strategy=start)
    mcmc = MCMC(kernel, num_samples=DRAWS, warmup_steps=150, disable_progbar=True)
    mcmc.run(prior, problem.a, problem.y)
    return mcmc.get_samples()["x"]


def guided(
    problem: Problem, method: Any, sampler: d.Sampler | None = None, draws: int = DRAWS
) -> Tensor:
    """What users call, for any method."""
    found = pg.inference.posterior(
        partial(model, problem.diffusion(), problem.a.float()),
        problem.y.float(),
        method=method,
        sampler=sampler,
        draws=draws,
        seed=0,
        progress=False,
    )
    weighted = isinstance(method, d.TwistedSMC)
    x: Any = found.resampled(DRAWS) if weighted else found.draws
    return x["x"]


def base_space(problem: Problem) -> Tensor:
    """Chains in the base space of the probability flow, from draws that MMPS guides.

    The step is fixed: ChEES and HMC adapt theirs by the harmonic mean of the acceptance over
    chains, which one chain at a fold of the flow holds at 0.
    """
    prior = problem.diffusion(FLOW_STEPS)
    args = prior, problem.a.float(), problem.y.float()
    start = pg.inference.posterior(
        model, *args, method=d.MMPS, draws=CHAINS, seed=1, progress=False
    )
    whole = torch.distributions.ComposeTransform(list(prior().transforms))
    with torch.no_grad():
        base = whole.inv(start.draws["x"])  # type: ignore[index]
    run = pg.mcmc.run(
        model,
        *args,
        kernel=pg.mcmc.HMC(0.05, 8),
        chains=CHAINS,
        warmup=0,
        draws=60,
        init={"x_base": base},
        seed=0,
        progress=False,
    )
    x = run.samples["x"][:, 20:]
    rates = run.stats["acceptance"][:, 20:].mean(1)
    print(
        f"HMC in base space: R-hat {float(pg.mcmc.diagnostics.rhat(x).max()):.2f} at most, least "
        f"ESS {float(pg.mcmc.diagnostics.ess(x).min()):.0f} of {x[..., 0].numel()} draws, "
        f"acceptance {float(rates.mean()):.2f}, of the worst chain {float(rates.min()):.2f}"
    )
    return x.flatten(0, 1)


def tempered(problem: Problem) -> Tensor:
    """Sequential Monte Carlo in the same space: what `posterior` does without a method."""
    found = pg.inference.posterior(
        model,
        problem.diffusion(FLOW_STEPS),
        problem.a.float(),
        problem.y.float(),
        kernel=pg.mcmc.HMC(0.2, 5),
        draws=128,
        steps=2,
        seed=0,
        progress=False,
    )
    print(f"SMC in base space: effective sample size {found.ess:.0f} of 128")
    return found.resampled(DRAWS)["x"]


FLOW_STEPS, CHAINS = 6, 32


class Wrapped(azula.denoise.Denoiser if azula is not None else object):  # type: ignore[misc]
    """The same denoiser, and its schedule, as azula takes them."""

    def __init__(self, denoiser: d.Denoiser) -> None:
        super().__init__()
        self.inner, self.schedule = denoiser, denoiser.schedule

    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        return azula.denoise.DiracPosterior(self.inner.mean(x_t, t))


def by_azula(problem: Problem, build: Callable[..., Any], together: bool = True) -> Tensor:
    """Draws of azula, all in one call or one by one."""
    a, y = problem.a.float(), problem.y.float()
    sampler = build(Wrapped(problem.denoiser), y, a)
    torch.manual_seed(0)
    if together:
        return sampler(sampler.init((DRAWS, PIXELS)))
    return torch.cat([sampler(sampler.init((1, PIXELS))) for _ in range(FEW)])


FEW = 64  # draws one by one


def azula_dps(denoiser: Any, y: Tensor, a: Tensor) -> Any:
    return azula.guidance.DPSSampler(denoiser, y, lambda x: x @ a.mT, steps=STEPS, silent=True)


def azula_pgdm(denoiser: Any, y: Tensor, a: Tensor) -> Any:
    """Its pseudo-inverse knows of no noise, so leaves out directions that noise drowns."""
    inverse = torch.linalg.pinv(a, atol=NOISE)
    return azula.guidance.PGDMSampler(
        denoiser, y, lambda x: x @ a.mT, lambda v: v @ inverse.mT, steps=STEPS, silent=True
    )


def azula_mmps(denoiser: Any, y: Tensor, a: Tensor) -> Any:
    noise = IsotropicCovariance(torch.tensor(NOISE**2))
    guide = azula.guidance.MMPSDenoiser(
        denoiser, y, lambda x: x @ a.mT, noise, solver="cg", iterations=CG
    )
    return azula.sample.DDPMSampler(guide, steps=STEPS, silent=True)


CG = 5  # steps of conjugate gradients, for all
SOLVER, STEPWISE = d.DPMSolver(STEPS), d.Ancestral(STEPS)
GIBBS = d.ParticleGibbs(d.Ancestral(STEPS, "step", d.AngleGrid()))
TWISTED = d.TwistedSMC(d.Ancestral(2 * STEPS, "step"))
NARROW = d.TwistedSMC(d.Ancestral(STEPS, "posterior"))

# The name, the way to draw, and how many problems it takes.
METHODS: list[tuple[str, Callable[[Problem], Tensor], int]] = [
    ("exact posterior", exactly, 16),
    ("ExactMoment", partial(guided, method=d.ExactMoment, sampler=SOLVER), 16),
    ("TwistedSMC", partial(guided, method=TWISTED, draws=2048), 5),
    ("TwistedSMC, posterior", partial(guided, method=NARROW, draws=2048), 2),
    ("ParticleGibbs", partial(guided, method=GIBBS, draws=1024), 16),
    ("SMC in base space", tempered, 1),
    ("HMC in base space", base_space, 1),
    ("MMPS", partial(guided, method=partial(d.MMPS, steps=CG), sampler=SOLVER), 6),
    ("MMPS, ancestral", partial(guided, method=partial(d.MMPS, steps=CG), sampler=STEPWISE), 6),
    ("PiGDM", partial(guided, method=partial(d.PiGDM, steps=CG), sampler=SOLVER), 6),
    ("DPS", partial(guided, method=d.DPS, sampler=STEPWISE), 16),
    ("DPS, weight 0.1", partial(guided, method=partial(d.DPS, weight=0.1), sampler=STEPWISE), 16),
    ("NUTS, density", partial(nuts, value=True), 2),
    ("NUTS, score alone", partial(nuts, value=False), 2),
]
if azula is not None:
    METHODS += [
        ("azula MMPS", partial(by_azula, build=azula_mmps), 6),
        ("azula PGDM", partial(by_azula, build=azula_pgdm), 16),
        ("azula DPS", partial(by_azula, build=azula_dps), 16),
        ("azula DPS, one by one", partial(by_azula, build=azula_dps, together=False), 4),
    ]

SLOW = ("SMC in base space",)  # two minutes for one problem: only by `--methods`

# ------------------------------------------------------------------------------------------------
# Scores


class Row(NamedTuple):
    """The scores of one problem."""

    mean: float
    variance: float
    kl: float
    modes: float
    cover: float
    rank: float
    residual: float
    expected: float
    seconds: float


def scored(problem: Problem, x: Tensor, seconds: float) -> Row:
    x = x.double()
    mean, covariance = problem.exact.moments()
    sd = covariance.diagonal().sqrt()
    main = torch.linalg.eigh(covariance).eigenvectors[:, -16:]
    along = (x - mean) @ main
    fitted = dist.MultivariateNormal(along.mean(0), torch.cov(along.mT))
    truly = dist.MultivariateNormal(torch.zeros(16).double(), main.mT @ covariance @ main)
    gap = (problem.y - x @ problem.a.mT) / NOISE
    own = ((problem.y - problem.truth @ problem.a.mT) / NOISE).square().sum()
    below = (gap.square().sum(-1) > own).double().mean()  # draws that are less likely
    bias = ((problem.y - mean @ problem.a.mT) / NOISE).square().sum()
    width = (problem.a @ covariance @ problem.a.mT).trace() / NOISE**2
    return Row(
        float(((x.mean(0) - mean) / sd).square().mean()),  # its root is taken of the mean
        float((x.var(0) / sd.square()).log().mean()),  # and its exponential
        float(torch.distributions.kl_divergence(fitted, truly)),
        float((problem.exact.shares(x) - problem.exact.weights).abs().sum() / 2),
        pg.metrics.coverage(x, problem.truth, 0.9),
        float((below * len(x) + 0.5) / (len(x) + 1)),
        float(gap.square().mean()),
        float((bias + width) / len(problem.y)),
        seconds,
    )


def number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.0e}"


def report(name: str, rows: list[Row]) -> None:
    columns = torch.tensor(rows, dtype=torch.double)
    means = Row(*columns.mean(0).tolist())
    ranks = columns[:, Row._fields.index("rank")]
    p = f", p {kstest(ranks.numpy(), 'uniform').pvalue:.2g}" if len(rows) > 4 else ""
    cells = [
        name,
        str(len(rows)),
        number(means.mean**0.5),
        number(math.exp(means.variance)),
        number(means.kl),
        number(means.modes),
        number(means.cover),
        f"{means.rank:.2f}{p}",
        f"{number(means.residual)} ({means.expected:.2f})",
        f"{means.seconds:.1f}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", help="beginnings of their names")
    parser.add_argument("--measurements", nargs="+", default=list(operators()))
    parser.add_argument("--problems", type=int, default=16, help="the most for each method")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    warnings.filterwarnings("ignore", "The effective sample size")
    warnings.filterwarnings("always", "Chains of particle Gibbs")
    if azula is None:
        print("azula is not installed, so its rows are left out.")
    else:
        print(f"azula {version('azula')}")
    prior = digits()
    for measurement in options.measurements:
        problems = posed(prior, operators()[measurement], options.problems)
        sure = sum(float(problem.exact.weights.max()) > 0.95 for problem in problems)
        print(f"\n{measurement}; of {sure} of {len(problems)} problems the component is clear\n")
        names = "method | problems | mean | variance | KL | modes | 90 % | rank | residual | CPU s"
        print(f"| {names} |")
        print("| --- " * 10 + "|")
        for name, draw, count in METHODS:
            wanted = options.methods and name.startswith(tuple(options.methods))
            if not wanted and (options.methods or name in SLOW):
                continue
            rows = []
            for k, problem in enumerate(problems[:count]):
                torch.manual_seed(k)
                started = time.process_time()
                x = draw(problem)
                rows.append(scored(problem, x, time.process_time() - started))
            report(name, rows)


if __name__ == "__main__":
    main()
