"""Valid calls of public classes and functions that are not built by the rosters."""

import pyro.distributions as dist
import torch

import probgen as pg
from probgen import diffusion as d
from probgen import mcmc
from probgen import objectives as o
from probgen import transforms as t

D = pg.distributions
F = 2  # features


def moved(x):
    return x[..., :1]


def velocity(x, time):
    return -x


def normal():
    return d.GaussianDenoiser(torch.zeros(F), torch.eye(F), d.VP())


def given():
    return {"denoiser": normal(), "operator": moved, "y": torch.zeros(1), "scale": 0.5}


def square(x):
    return -x.square().sum(-1) / 2


def model():
    import pyro

    pyro.sample("x", dist.Normal(torch.zeros(F), 1.0).to_event(1))


X = torch.tensor([[0.1, -0.4], [0.7, 0.2], [-1.1, 0.9]])
ONES = torch.ones(F)
WEIGHTS = torch.tensor([[0.0, 0.5], [0.5, 0.0]])

CALLS = {  # arguments by name
    pg.core.Standardizer: lambda: {"shape": (F,)},
    d.DPS: given,
    d.MMPS: given,
    d.PiGDM: given,
    d.ExactMoment: given,
    d.AngleGrid: dict,
    d.InformationGrid: dict,
    d.LogSNRGrid: dict,
    d.KarrasGrid: dict,
    d.UniformGrid: dict,
    d.NaiveCold: dict,
    d.TACoS: dict,
    d.DPMSolver: lambda: {"steps": 4},
    d.EulerMaruyama: lambda: {"steps": 4},
    d.ODESolver: lambda: {"steps": 4},
    d.Ancestral: lambda: {"steps": 4},
    d.AnnealedLangevin: lambda: {"steps": 4},
    d.PredictorCorrector: lambda: {"predictor": d.Ancestral(4)},
    d.ParticleGibbs: dict,
    d.TwistedSMC: dict,
    d.BlurDegradation: lambda: {"shape": (4, 4), "levels": 4},
    d.PixelateDegradation: lambda: {"shape": (4, 4)},
    d.MaskDegradation: lambda: {"shape": (4, 4), "levels": 4},
    d.CustomDegradation: lambda: {"function": lambda x, s: x, "levels": 4},
    d.CustomSchedule: lambda: {"function": lambda s: (-s, s - 1)},
    d.LinearSDE: lambda: {"drift_of": lambda s: -s, "diffusion_of": lambda s: 1 + s},
    d.SubVP: dict,
    d.BetaSchedule: lambda: {"betas": d.linear_betas(8)},
    d.RateMatrix: lambda: {"rates": torch.tensor([[-1.0, 1.0], [1.0, -1.0]])},
    d.ClassifierFree: lambda: {
        "denoiser": pg.models.EDM(F, 1, (4,)).denoiser,
        "context": torch.zeros(1),
    },
    d.ClassifierGuided: lambda: {"denoiser": normal(), "log_likelihood": lambda x, s: x.sum(-1)},
    d.GaussianDenoiser: lambda: {
        "mean": torch.zeros(F),
        "covariance": torch.eye(F),
        "schedule": d.VP(),
    },
    d.MixtureDenoiser: lambda: {
        "weights": ONES,
        "means": torch.eye(F),
        "scales": 0.5,
        "schedule": d.VP(),
    },
    d.Rescheduled: lambda: {"denoiser": normal(), "schedule": d.Karras()},
    d.linear_betas: lambda: {"steps": 8},
    D.Categorical: lambda: {"features": F, "classes": 3, "hidden_features": (4,)},
    D.Codebook: lambda: {"codes": 4, "features": 2},
    D.Dequantized: lambda: {"continuous": pg.models.NSF(F, hidden_features=(4,)), "levels": 3},
    D.DiscretizedLogistic: lambda: {"features": F, "levels": 4, "hidden_features": (4,)},
    D.Embedded: lambda: {
        "distribution": D.DiagonalNormal(F, context=1),
        "network": torch.nn.Linear(3, 1),
        "context_shape": (3,),
    },
    D.EnergyDistribution: lambda: {"energy": lambda x: x.square().sum(-1), "features": F},
    D.Pushforward: lambda: {"base": D.StandardNormal(F), "network": torch.nn.Linear(F, 3)},
    D.VampPrior: lambda: {
        "posterior": D.DiagonalNormal(F, context=4, hidden_features=(4,)),
        "features": 4,
        "components": 3,
    },
    mcmc.AnnealedULA: lambda: {"sigmas": torch.tensor([1.0, 0.1])},
    mcmc.BinaryUnits: dict,
    mcmc.CategoricalUnits: lambda: {"size": 3},
    mcmc.GaussianUnits: dict,
    mcmc.Checkerboard: lambda: {"shape": (4, 4), "coupling": 0.3},
    mcmc.GraphGibbs: lambda: {"weights": WEIGHTS, "bias": torch.zeros(F)},
    mcmc.Gibbs: lambda: {"blocks": {"a": mcmc.Metropolis()}},
    mcmc.ParallelTempering: dict,
    mcmc.ess: lambda: {"draws": torch.randn(2, 50)},
    mcmc.ess_tail: lambda: {"draws": torch.randn(2, 50)},
    mcmc.mcse: lambda: {"draws": torch.randn(2, 50)},
    mcmc.rhat: lambda: {"draws": torch.randn(2, 50)},
    mcmc.nested_rhat: lambda: {"draws": torch.randn(4, 50), "superchains": 2},
    mcmc.colours: lambda: {"weights": WEIGHTS},
    pg.metrics.bits_per_dimension: lambda: {"log_prob": torch.zeros(3), "dimensions": 2},
    pg.metrics.coverage: lambda: {
        "draws": torch.randn(9, 3),
        "truth": torch.zeros(3),
        "level": 0.9,
    },
    pg.metrics.ranks: lambda: {"draws": torch.randn(9, 3), "truth": torch.zeros(3)},
    pg.metrics.rmse: lambda: {"estimate": torch.ones(3), "truth": torch.zeros(3)},
    pg.datasets.moons: lambda: {"count": 4},
    pg.datasets.pinwheel: lambda: {"count": 4},
    pg.datasets.eight_gaussians: dict,
    pg.inference.psis: lambda: {"log_weights": torch.randn(100)},
    pg.inference.interpolate: lambda: {"a": torch.zeros(F), "b": ONES, "count": 3},
    pg.inference.MeanField: lambda: {"model": model},
    pg.inference.FullCovariance: lambda: {"model": model},
    pg.inference.FlowGuide: lambda: {"model": model},
    pg.models.VQVAE: lambda: {
        "shape": (1, 4, 4),
        "codes": 4,
        "code_features": 2,
        "channels": (4,),
    },
    pg.models.AutoencoderKL: lambda: {"shape": (1, 4, 4), "latent": 2, "channels": (4,)},
    pg.models.ConvVAE: lambda: {"shape": (1, 4, 4), "latent": 2, "channels": (4,)},
    pg.models.ConditionalVAE: lambda: {
        "features": 4,
        "context": 1,
        "latent": 2,
        "hidden_features": (4,),
    },
    pg.models.DeepBeliefNetwork: lambda: {"sizes": (4, 3, 2), "steps": 4},
    pg.models.HierarchicalVAE: lambda: {
        "shape": (1, 4, 4),
        "latent": 2,
        "channels": 4,
        "layers": (1, 1),
    },
    pg.models.LadderVAE: lambda: {"features": 4, "latents": (2, 2), "hidden_features": (4, 4)},
    pg.models.SemiSupervisedVAE: lambda: {
        "features": 4,
        "classes": 2,
        "latent": 2,
        "hidden_features": (4,),
    },
    pg.models.HopfieldNetwork: lambda: {"units": 4},
    pg.models.ModernHopfield: lambda: {"patterns": torch.eye(4)},
    pg.networks.Decoder: lambda: {"inputs": 2, "shape": (1, 4, 4), "channels": (4,)},
    pg.networks.Encoder: lambda: {"shape": (1, 4, 4), "features": 2, "channels": (4,)},
    pg.networks.InvertedResidual: lambda: {"channels": 2},
    pg.networks.Pixels: lambda: {"inputs": (2, 2, 2), "channels": 1},
    o.ELBO: dict,
    o.IWAE: dict,
    o.ChiSquare: dict,
    o.ContrastiveDivergence: dict,
    o.DReG: dict,
    o.Denoising: dict,
    o.DenoisingScoreMatching: lambda: {"sigma": 0.5},
    o.DiscreteDenoising: dict,
    o.EvidenceBound: dict,
    o.ExplicitScoreMatching: lambda: {"score": lambda x: -x},
    o.ForwardKL: dict,
    o.GreedyLayerwise: dict,
    o.ImplicitScoreMatching: dict,
    o.JointEnergy: dict,
    o.MaximumLikelihood: dict,
    o.NoiseContrastive: lambda: {"noise": dist.Normal(torch.zeros(F), 1.0).to_event(1)},
    o.PseudoLikelihood: dict,
    o.RatioMatching: dict,
    o.Renyi: lambda: {"alpha": 0.5},
    o.Restoration: dict,
    o.ReverseKL: lambda: {"log_density": square},
    o.SlicedScoreMatching: dict,
    o.SpectralRegularized: lambda: {"objective": o.MaximumLikelihood()},
    o.StickingTheLanding: dict,
    o.Supervised: dict,
    o.UpDown: dict,
    o.VectorQuantization: dict,
    o.parzen_score: lambda: {"data": X, "sigma": 0.5},
    t.LU: lambda: {
        "lower": torch.zeros(F, F),
        "upper": torch.zeros(F, F),
        "log_diagonal": torch.zeros(F),
        "shift": torch.zeros(F),
    },
    t.Affine: lambda: {"shift": ONES, "scale": ONES},
    t.Diagonal: lambda: {"shift": ONES, "scale": ONES},
    t.Shift: lambda: {"shift": ONES},
    t.SoftClip: dict,
    t.Bounded: dict,
    t.NormalCDF: dict,
    t.Permutation: lambda: {"order": torch.tensor([1, 0])},
    t.Planar: lambda: {"direction": ONES, "scale": ONES, "bias": torch.zeros(())},
    t.Radial: lambda: {"centre": ONES, "radius": torch.zeros(()), "scale": torch.zeros(())},
    t.RationalQuadratic: lambda: {
        "widths": torch.zeros(4, F),
        "heights": torch.zeros(4, F),
        "slopes": torch.zeros(3, F),
    },
    t.CircularRationalQuadratic: lambda: {
        "widths": torch.zeros(4, F),
        "heights": torch.zeros(4, F),
        "slopes": torch.zeros(4, F),
        "rotation": torch.zeros(F),
    },
    t.Sylvester: lambda: {
        "vectors": torch.ones(1, F),
        "outer": torch.zeros(1, 1),
        "inner": torch.zeros(1, 1),
        "bias": torch.zeros(1),
    },
    t.Continuous: lambda: {
        "velocity": velocity,
        "times": torch.linspace(0, 1, 4),
        "event": (F,),
    },
    t.Learned: lambda: {"bijector": t.Affine, "features": F},
}

NOT_BUILT = {  # what the library returns, and bases of classes of one's own
    "results": (
        *(pg.History, pg.Density, pg.core.Card, pg.datasets.Images, d.GibbsDraws, d.Path),
        *(D.Marginal, D.Partition, D.Quantization, D.ModuleDistribution, D.FlowDistribution),
        *(
            D.DiffusionDistribution,
            D.DiscretizedLogisticMixture,
            pg.inference.Diagnosis,
            pg.inference.Posterior,
        ),
        *(pg.inference.Smoothed, mcmc.Annealed, mcmc.AnnealedState, mcmc.ChEESState),
        *(mcmc.Draws, mcmc.GibbsInfo, mcmc.GibbsState, mcmc.GradientState, mcmc.Info),
        *(mcmc.Likelihood, mcmc.LowRank, mcmc.Moments, mcmc.PositionState, mcmc.Potential),
        *(mcmc.ReplicaState, mcmc.SGLDState, mcmc.Score, mcmc.StepSize, mcmc.Summary),
        *(mcmc.Trajectory, mcmc.TrajectoryLength, pg.metrics.Estimate, o.Weights, o.Player),
        *(pg.core.Inverse, t.AutoregressiveTransform, t.CouplingTransform),
    ),
    "bases": (
        *(pg.LazyDistribution, pg.LazyTransform, pg.core.Bijector, pg.core.DataDependentNetwork),
        *(pg.core.Elementwise, d.ColdSampler, d.Corruption, d.Degradation, d.Denoiser, d.Grid),
        *(
            d.Guided,
            d.ContinuousTimeCorruption,
            d.NormalDenoiser,
            d.Sampler,
            d.Schedule,
            D.EnergyBased,
        ),
        *(
            D.LatentVariable,
            D.PosteriorUpdate,
            D.LatentLayer,
            pg.inference.ContinuousGuide,
            mcmc.Direct,
        ),
        *(mcmc.Kernel, mcmc.Units, o.Objective, o.Variational),
    ),
    "built of parts that the recipes build": (
        *(
            D.Hierarchy,
            D.SemiSupervised,
            D.JumpDiffusion,
            D.PrecisionWeightedUpdate,
            D.ResidualUpdate,
        ),
        *(D.Quantized, D.DiscreteDiffusion),
        *(mcmc.BlockGibbs, mcmc.BatchedMCMC, mcmc.PyroKernel),
    ),
}
