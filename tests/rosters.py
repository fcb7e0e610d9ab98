"""The rosters: a new piece enrols with one line here, and every law then holds for it."""

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
KERNELS = {
    "metropolis": lambda: mcmc.Metropolis(0.7),
    "metropolis, scaled": lambda: mcmc.Metropolis(0.7, SCALES),
    "metropolis, dense": lambda: mcmc.Metropolis(0.9, FACTOR),
    "mala": lambda: mcmc.MALA(0.15),
    "mala, scaled": lambda: mcmc.MALA(0.15, SCALES),
    "mala, dense": lambda: mcmc.MALA(0.3, FACTOR),
    "hmc": lambda: mcmc.HMC(0.4, 3),
    "hmc, scaled": lambda: mcmc.HMC(0.4, 3, SCALES),
    "hmc, dense": lambda: mcmc.HMC(0.6, 3, FACTOR),
    "chees": lambda: mcmc.ChEES(0.4, 0.8),
    "chees, dense": lambda: mcmc.ChEES(0.6, 1.2, FACTOR),
    "elliptical": lambda: mcmc.EllipticalSlice(),
    "elliptical, scaled": lambda: mcmc.EllipticalSlice(scale=2 * SCALES),
}
# Kernels that are biased, and take a score alone.
UNADJUSTED = {
    "ula": lambda: mcmc.ULA(0.02),
    "ula, scaled": lambda: mcmc.ULA(0.02, SCALES),
    "ula, dense": lambda: mcmc.ULA(0.02, FACTOR),
    "sgld": lambda: mcmc.SGLD(0.02, decay=0.3),
}
