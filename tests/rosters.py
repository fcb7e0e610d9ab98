"""The rosters: a new piece enrols with one line here, and every law then holds for it."""

from functools import partial

import torch
from pyro import distributions as dist

import probgen as pg
from probgen import mcmc
from probgen import transforms as t
from probgen.core import as_lazy_transform

D, C = 4, 3


def lazy(transform):
    return lambda: as_lazy_transform(transform())


def learned(bijector, **options):
    return lambda: t.Learned(bijector, D, **options)


TRANSFORMS = {  # real vectors of D features to real vectors, without context or with C features
    "actnorm": lambda: t.ActNorm(D),
    "affine": learned(t.Affine),
    "affine, conditional": learned(t.Affine, context=C),
    "autoregressive": lambda: t.Autoregressive(D, hidden_features=(16, 16)),
    "autoregressive shift": lambda: t.Autoregressive(D, t.Shift, hidden_features=(3,)),
    "autoregressive spline": lambda: t.Autoregressive(D, t.RationalQuadratic, C, (16,), bins=4),
    "autoregressive, no hidden layer": lambda: t.Autoregressive(D, hidden_features=()),
    "autoregressive, in an order": lambda: t.Autoregressive(
        D, context=C, hidden_features=(16, 16), order=[2, 0, 3, 1]
    ),
    "coupling": lambda: t.Coupling(D, hidden_features=(16, 16)),
    "coupling shift": lambda: t.Coupling(D, t.Shift, kept=-1, hidden_features=(16,)),
    "coupling spline": lambda: t.Coupling(D, t.RationalQuadratic, C, 1, (16,), bins=4),
    "inverse": lambda: t.Autoregressive(D, context=C, hidden_features=(16,)).inv,
    "lu": learned(t.LU),
    "lu, conditional": learned(t.LU, context=C),
    "permutation": lazy(lambda: t.Permutation(torch.randperm(D))),
    "planar": learned(t.Planar),
    "planar, conditional": learned(t.Planar, context=C),
    "radial": learned(t.Radial),
    "radial, conditional": learned(t.Radial, context=C),
    "residual network": lambda: t.Coupling(
        D, t.Affine, C, network=pg.networks.ResidualMLP(2, 4, C, (16, 16))
    ),
    "shift": learned(t.Shift),
    "spline": learned(t.RationalQuadratic, bins=8),
    "spline, conditional": learned(t.RationalQuadratic, context=C, bins=3, bound=2.0),
    "standardize": lambda: t.Standardize(D),
    "sylvester": learned(t.Sylvester, width=3, reflections=2),
    "sylvester, conditional": learned(t.Sylvester, context=C, width=2, reflections=3),
    "sylvester, triangular": learned(t.Sylvester),
}

BOUNDED = {  # transforms whose domain or codomain is an interval
    "bounded": lazy(lambda: t.Bounded(-1.0, 3.0)),
    "circular coupling": lambda: t.Coupling(
        D, t.CircularRationalQuadratic, C, hidden_features=(16,), bins=4
    ),
    "circular, autoregressive": lambda: t.Autoregressive(
        D, t.CircularRationalQuadratic, hidden_features=(16,), bins=4
    ),
    "circular": learned(t.CircularRationalQuadratic),
    "normal cdf": lazy(lambda: t.NormalCDF(-1.0, 3.0)),
    "softclip": lazy(lambda: t.SoftClip(2.0)),
}

SMALL = {"transforms": 2, "hidden_features": (16, 16)}

FLOWS = {  # constructors of (features, context)
    "CircularNSF": lambda d, c: pg.models.CircularNSF(d, c, **SMALL, bins=4),
    "CircularNSF, autoregressive": lambda d, c: pg.models.CircularNSF(
        d, c, **SMALL, bins=4, autoregressive=True
    ),
    "IAF": lambda d, c: pg.models.IAF(d, c, **SMALL),
    "MAF": lambda d, c: pg.models.MAF(d, c, **SMALL),
    "MAF, random order": lambda d, c: pg.models.MAF(d, c, **SMALL, randperm=True),
    "NICE": lambda d, c: pg.models.NICE(d, c, **SMALL),
    "NSF": lambda d, c: pg.models.NSF(d, c, **SMALL, bins=4),
    "NSF, autoregressive": lambda d, c: pg.models.NSF(d, c, **SMALL, bins=4, autoregressive=True),
    "PlanarFlow": lambda d, c: pg.models.PlanarFlow(d, c, **SMALL),
    "RadialFlow": lambda d, c: pg.models.RadialFlow(d, c, **SMALL),
    "RealNVP": lambda d, c: pg.models.RealNVP(d, c, **SMALL, randperm=True),
    "SylvesterFlow": lambda d, c: pg.models.SylvesterFlow(d, c, **SMALL),
    "bounded": lambda d, c: pg.distributions.Flow(
        [t.NormalCDF(-1.0, 2.0)], pg.models.NSF(d, c, **SMALL)
    ),
    "conditional base": lambda d, c: pg.distributions.Flow(
        [t.Coupling(d, context=c, hidden_features=(16,)), t.Bounded(0.0, 1.0)],
        pg.distributions.DiagonalNormal(d, c),
    ),
    "fixed parts of Pyro": lambda d, c: pg.distributions.Flow(
        [dist.transforms.AffineTransform(torch.ones(d), 2.0), t.Autoregressive(d, context=c)],
        dist.StudentT(10.0, torch.zeros(d), 1.0),
    ),
    "mixture base": lambda d, c: pg.distributions.Flow(
        [t.Coupling(d, context=c, hidden_features=(16,))],
        pg.distributions.GaussianMixture(d, 3, c),
    ),
}


def latent(likelihood, features=D, size=2, **options):
    """A small model of `features` features, with a likelihood of its latents and its context."""
    return lambda c: pg.distributions.Latent(
        options.get("prior", pg.distributions.StandardNormal)(size),
        likelihood(features, context=size + c, hidden_features=(8,)),
        options.get("posterior", pg.distributions.DiagonalNormal)(
            size, context=features + c, hidden_features=(8,)
        ),
        context=c,
        samples=options.get("samples", 3),
    )


def vamp(c):
    posterior = pg.distributions.DiagonalNormal(2, context=D + c, hidden_features=(8,))
    return pg.distributions.Latent(
        pg.distributions.VampPrior(posterior, D + c, components=3),
        pg.distributions.Bernoulli(D, context=2 + c, hidden_features=(8,)),
        posterior,
        context=c,
    )


HEADS = {  # constructors of (features, context), and values of theirs from uniform noise
    "Bernoulli": (pg.distributions.Bernoulli, lambda u: (u > 0.5).to(u.dtype)),
    "Beta": (pg.distributions.Beta, lambda u: 0.01 + 0.98 * u),
    "Categorical": (partial(pg.distributions.Categorical, classes=4), lambda u: (4 * u).long()),
    "ContinuousBernoulli": (pg.distributions.ContinuousBernoulli, lambda u: u),
    "DiagonalNormal": (pg.distributions.DiagonalNormal, lambda u: 7 * u - 3),
    "DiagonalNormal, fixed": (
        partial(pg.distributions.DiagonalNormal, scale=0.5),
        lambda u: 7 * u - 3,
    ),
    "DiagonalNormal, learned": (
        partial(pg.distributions.DiagonalNormal, scale="learned"),
        lambda u: 7 * u - 3,
    ),
    "DiagonalNormal, shared": (
        partial(pg.distributions.DiagonalNormal, scale="shared"),
        lambda u: 7 * u - 3,
    ),
    "DiscretizedLogistic": (
        partial(pg.distributions.DiscretizedLogistic, levels=16, components=2),
        lambda u: (16 * u).floor(),
    ),
    "FullNormal": (pg.distributions.FullNormal, lambda u: 7 * u - 3),
    "Poisson": (pg.distributions.Poisson, lambda u: (8 * u).floor()),
    "StudentT": (pg.distributions.StudentT, lambda u: 7 * u - 3),
}

LATENTS = {  # constructors of (context): latent-variable models of D features
    "bernoulli": latent(pg.distributions.Bernoulli),
    "categorical": latent(partial(pg.distributions.Categorical, classes=3)),
    "normal": latent(partial(pg.distributions.DiagonalNormal, scale="learned")),
    "normal, full posterior": latent(
        pg.distributions.DiagonalNormal, posterior=pg.distributions.FullNormal
    ),
    "poisson": latent(pg.distributions.Poisson),
    "student, flow posterior": latent(
        pg.distributions.StudentT,
        posterior=lambda d, context, hidden_features: pg.models.IAF(d, context, 2, hidden_features),
    ),
    "normal, planar posterior": latent(
        pg.distributions.DiagonalNormal,
        posterior=lambda d, context, hidden_features: pg.models.PlanarFlow(
            d, context, 2, hidden_features
        ),
    ),
    "normal, spline posterior": latent(
        pg.distributions.DiagonalNormal,
        posterior=lambda d, context, hidden_features: pg.models.NSF(
            d, context, 2, hidden_features, bins=4
        ),
    ),
    "normal, Sylvester posterior": latent(
        pg.distributions.DiagonalNormal,
        posterior=lambda d, context, hidden_features: pg.models.SylvesterFlow(
            d, context, 2, hidden_features=hidden_features
        ),
    ),
    "flow prior": latent(
        pg.distributions.DiagonalNormal, prior=lambda d: pg.models.NSF(d, 0, 2, (8,), bins=4)
    ),
    "mixture of posteriors as prior": lambda c: vamp(c),
    "recipe": lambda c: (
        pg.models.ConditionalVAE(D, c, 2, (8,), "continuous bernoulli")
        if c
        else pg.models.VAE(D, 2, (8,), "continuous bernoulli", "full")
    ),
}


ENERGIES = {  # constructors of (context): energies, of D units or features
    "boltzmann": lambda c: pg.models.BoltzmannMachine(D),
    "boltzmann, spins": lambda c: pg.models.BoltzmannMachine(D, lower=-1),
    "boltzmann, large": lambda c: pg.models.BoltzmannMachine(24),
    "ising": lambda c: pg.models.Ising((4, 4), 0.3),
    "ising, field": lambda c: pg.models.Ising((4, 6), 0.3, periodic=False, field=torch.ones(6)),
    "ising, graph": lambda c: pg.models.Ising((D,), torch.ones(D, D).fill_diagonal_(0) / 3),
    "ising, odd": lambda c: pg.models.Ising((3, 5, 2), 0.1),
    "rbm": lambda c: pg.models.RBM(D, 3),
    "rbm, spins": lambda c: pg.models.RBM(D, 3, "spin"),
    "rbm, gaussian": lambda c: pg.models.RBM(D, 3, "gaussian"),
    "rbm, categorical": lambda c: pg.models.RBM(D, 3, "categorical", classes=3),
    "rbm, large": lambda c: pg.models.RBM(30, 24),
    "network": lambda c: pg.models.EnergyModel(D, c, (16, 16)),
    "network, hmc": lambda c: pg.models.EnergyModel(D, c, (8,), kernel=mcmc.HMC(0.2, 3), steps=9),
    "network, image": lambda c: pg.models.EnergyModel((1, 4, 4), c, (4, 8), spectral=True),
    "bounded": lambda c: pg.distributions.Energy(
        pg.networks.EnergyNetwork(D, c, (16,)), D, c, bounds=(-1.0, 2.0)
    ),
    "tilted flow": lambda c: pg.distributions.Tilted(
        pg.models.MAF(D, c, transforms=1, hidden_features=(8,)),
        pg.networks.EnergyNetwork(D, c, (16,)),
        c,
    ),
    "product": lambda c: pg.distributions.ProductOfExperts(
        [pg.distributions.DiagonalNormal(D), pg.models.EnergyModel(D, 0, (16,))]
    ),
    "joint": lambda c: pg.models.JointEnergyModel(D, 3, (16,)),
}


def moved(module, scale=0.1):
    """The module with every parameter moved off its starting value."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    return module


def context_of(module, *batch):
    return torch.randn(*batch, module.context) if module.context else None


def interior(support, *shape, scale=1.0):
    """Values inside a support."""
    return torch.distributions.biject_to(support)(scale * torch.randn(*shape))


# Kernels that leave a density invariant, for a target of three features with scales near 1.
SCALES = torch.tensor([1.0, 0.7, 1.3], dtype=torch.double)
FACTOR = torch.tensor([[1.0, 0, 0], [0.5, 0.9, 0], [-0.3, 0.1, 0.6]], dtype=torch.double)
LOW_RANK = mcmc.LowRank(
    SCALES,
    torch.tensor([[0.6], [0.0], [0.8]], dtype=torch.double),
    torch.tensor([1.5], dtype=torch.double),
)
KERNELS = {
    "metropolis": lambda: mcmc.Metropolis(0.7),
    "metropolis, scaled": lambda: mcmc.Metropolis(0.7, SCALES),
    "metropolis, dense": lambda: mcmc.Metropolis(0.9, FACTOR),
    "metropolis, low rank": lambda: mcmc.Metropolis(0.9, LOW_RANK),
    "mala": lambda: mcmc.MALA(0.15),
    "mala, scaled": lambda: mcmc.MALA(0.15, SCALES),
    "mala, dense": lambda: mcmc.MALA(0.3, FACTOR),
    "mala, low rank": lambda: mcmc.MALA(0.3, LOW_RANK),
    "hmc": lambda: mcmc.HMC(0.4, 3),
    "hmc, scaled": lambda: mcmc.HMC(0.4, 3, SCALES),
    "hmc, dense": lambda: mcmc.HMC(0.6, 3, FACTOR),
    "hmc, low rank": lambda: mcmc.HMC(0.6, 3, LOW_RANK),
    "chees": lambda: mcmc.ChEES(0.4, 0.8),
    "chees, dense": lambda: mcmc.ChEES(0.6, 1.2, FACTOR),
    "chees, low rank": lambda: mcmc.ChEES(0.6, 1.2, LOW_RANK),
    "elliptical": lambda: mcmc.EllipticalSlice(),
    "elliptical, scaled": lambda: mcmc.EllipticalSlice(scale=2 * SCALES),
}
# Kernels that are biased, and take a score alone.
UNADJUSTED = {
    "ula": lambda: mcmc.ULA(0.02),
    "ula, scaled": lambda: mcmc.ULA(0.02, SCALES),
    "ula, dense": lambda: mcmc.ULA(0.02, FACTOR),
    "ula, low rank": lambda: mcmc.ULA(0.02, LOW_RANK),
    "sgld": lambda: mcmc.SGLD(0.02, decay=0.3),
}


def diffusion(denoiser, sampler):
    return pg.distributions.Diffusion(denoiser, sampler, steps=1)


DIFFUSIONS = {  # constructors of (context): diffusions, of D features or sites
    "ddpm": lambda c: pg.models.DDPM(D, c, (16,), steps=8, solver_steps=1),
    "score sde": lambda c: pg.models.ScoreSDE(
        D, c, (16,), pg.diffusion.PredictorCorrector(pg.diffusion.Ancestral(6)), solver_steps=1
    ),
    "edm": lambda c: pg.models.EDM(D, c, (16, 16), pg.diffusion.Heun(4), solver_steps=1),
    "flow matching": lambda c: pg.models.FlowMatching(
        D, c, (16,), pg.diffusion.DDIM(5), solver_steps=1
    ),
    "ncsn": lambda c: pg.models.NCSN(
        D, c, (16,), sampler=pg.diffusion.AnnealedLangevin(5, 2), solver_steps=1
    ),
    "cnf": lambda c: pg.models.CNF(D, c, (16,), steps=2),
    "image": lambda c: pg.models.EDM(
        (1, 2, 2), c, (4,), pg.diffusion.ODESolver(2, "heun"), solver_steps=1
    ),
    "learned variance": lambda c: diffusion(
        pg.diffusion.LearnedVariance(
            pg.diffusion.NetworkDenoiser(
                pg.networks.TimeMLP(D, c, (16,)), pg.diffusion.Cosine(), (D,), c
            ),
            pg.networks.TimeMLP(D, c, (16,)),
        ),
        pg.diffusion.Ancestral(4, "law"),
    ),
    "d3pm": lambda c: pg.models.D3PM(D, 3, c, (16, 16), steps=6),
    "d3pm, uniform": lambda c: pg.models.D3PM(D, 3, c, (16, 16), 6, "uniform"),
    "d3pm, gaussian": lambda c: pg.models.D3PM(D, 5, c, (16, 16), 6, "gaussian"),
    "d3pm, binomial": lambda c: pg.models.D3PM(D, 4, c, (16, 16), 6, "binomial"),
    "ctmc": lambda c: pg.models.CTMC(D, 3, c, (16, 16), steps=6),
    "ctmc, uniform": lambda c: pg.models.CTMC(D, 3, c, (16, 16), 6, "uniform"),
    "ctmc, binomial": lambda c: pg.models.CTMC(D, 4, c, (16, 16), 6, "binomial"),
    "cold": lambda c: pg.models.ColdDiffusion(D, pg.diffusion.FadeDegradation(D, 4), c, (16, 16)),
}
