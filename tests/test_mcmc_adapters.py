"""Adapters of chains: Pyro's MCMC, ArviZ, names of other libraries, discrete sites."""

import itertools

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import tensor

from probgen import mcmc
from probgen.mcmc import BatchedMCMC, PyroKernel, infer_discrete
from probgen.mcmc.arguments import check_kernel, check_run_options

Y = tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
SIGMA = tensor([15.0, 10, 16, 11, 9, 11, 10, 18])


def eight_schools(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def test_arviz_reads_batched_chains():
    arviz = pytest.importorskip("arviz")
    chains = BatchedMCMC(None, eight_schools, 12, 20, num_chains=12, disable_progbar=True)
    chains.run(SIGMA, y=Y)
    data = arviz.from_pyro(chains, log_likelihood=True)
    assert data.posterior["theta"].shape == (12, 12, 8)
    assert data.observed_data["y"].values.tolist() == Y.tolist()
    samples = chains.get_samples(group_by_chain=True)
    exact = dist.Normal(samples["theta"], SIGMA).log_prob(Y)
    found = torch.as_tensor(data.log_likelihood["y"].values)
    torch.testing.assert_close(found, exact)
    diverged = torch.as_tensor(data.sample_stats["diverging"].values)
    assert torch.equal(diverged, chains.draws.stats["diverged"])


def test_names_of_pyros_mcmc_are_understood():
    start = {"mu": torch.full((4,), 3.0), "tau": torch.zeros(4), "theta": torch.ones(4, 8)}
    chains = BatchedMCMC(
        mcmc.HMC(1e-30, 1),
        eight_schools,
        num_samples=3,
        warmup_steps=0,
        num_chains=4,
        initial_params=start,
        save_params=["tau", "theta"],
        hook_fn=None,
        mp_context=None,
        disable_validation=True,
        disable_progbar=True,
    )
    chains.run(SIGMA, Y)
    samples = chains.get_samples(group_by_chain=True)
    assert set(samples) == {"tau", "theta"}
    torch.testing.assert_close(samples["tau"], torch.ones(4, 3))  # exp(0)
    torch.testing.assert_close(samples["theta"], torch.ones(4, 3, 8))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mp_context": "spawn"}, TypeError, "has no argument `mp_context`. All chains run at"),
        ({"hook_fn": print}, TypeError, "has no argument `hook_fn`. Step the kernel yourself"),
        ({"jit_compile": True}, TypeError, "has no argument `jit_compile`. Operations are rec"),
        ({"num_draws": 3}, TypeError, "has no argument `num_draws`. It is called `draws`"),
        ({"nonsense": 3}, TypeError, "has no argument `nonsense`"),
        ({"chains": 3, "num_chains": 4}, ValueError, "got chains=3 and num_chains=4"),
        ({"initial_params": {}, "init": "prior"}, TypeError, "`initial_params` or `init`"),
    ],
)
def test_names_without_a_meaning_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        BatchedMCMC(None, eight_schools, **options)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"mu": torch.zeros(4)}, r"of the sites \['mu', 'tau', 'theta'\], got \['mu'\]"),
        (
            {"mu": torch.zeros(4), "tau": torch.zeros(4), "theta": torch.zeros(3, 8)},
            r"'theta' with shape \(4, 8\)",
        ),
    ],
)
def test_initial_params_are_checked(params, message):
    chains = BatchedMCMC(None, eight_schools, num_chains=4, initial_params=params)
    with pytest.raises(ValueError, match=message):
        chains.run(SIGMA, Y)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("hmc", r"got 'hmc'. Take HMC\(\), made with its arguments; there are ChEES\(\), HMC"),
        ("NUTS", r"got 'NUTS'. Take ChEES\(\)"),
        ("what", r"got 'what'. Take one made with its arguments; there are"),
        (mcmc.HMC, r"got the class HMC. Take HMC\(\)"),
        (pyro.infer.NUTS(eight_schools), r"got Pyro's NUTS, which runs under pyro.infer.MCMC"),
        (pyro.infer.mcmc.RandomWalkKernel(eight_schools), r"RandomWalkKernel.*Take Metropolis\(\)"),
        (3, r"got 3. Take one"),
    ],
)
def test_what_is_no_kernel_is_refused(kernel, message):
    with pytest.raises(TypeError, match=message):
        check_kernel(kernel)
    with pytest.raises(TypeError, match=message):
        PyroKernel(kernel, eight_schools)
    with pytest.raises(TypeError, match=message):
        BatchedMCMC(kernel, eight_schools)


def test_kernels_whose_positions_are_no_vectors_are_refused():
    kernel = mcmc.ParallelTempering(mcmc.HMC(), (0.5, 1.0))
    for adapter in (PyroKernel, BatchedMCMC):
        with pytest.raises(TypeError, match="got ParallelTempering, which keeps replicas"):
            adapter(kernel, eight_schools)
    with pytest.raises(TypeError, match=r"no argument `jit_compile`. Operations are recorded"):
        PyroKernel(mcmc.HMC(), eight_schools, jit_compile=True)
    with pytest.raises(TypeError, match="no argument `nonsense`"):
        PyroKernel(mcmc.HMC(), eight_schools, nonsense=True)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("num_chains", "called `chains`"),
        ("n_chains", "called `chains`"),
        ("num_samples", "called `draws`"),
        ("warmup_steps", "called `warmup`"),
        ("num_warmup", "called `warmup`"),
        ("tune", "called `warmup`"),
        ("rng_key", "called `seed`"),
        ("initial_params", "called `init`"),
        ("disable_progbar", "called `progress`"),
        ("target_accept_prob", "of the kernel"),
    ],
)
def test_arguments_of_other_libraries_are_named(name, own):
    with pytest.raises(TypeError, match=f"`run` has no argument `{name}`.*{own}"):
        check_run_options({name: 4}, eight_schools)
    check_run_options({"sigma": SIGMA}, eight_schools)
    namespace = {}
    exec(f"def model({name}): pass\ndef any_name(**kwargs): pass", namespace)
    check_run_options({name: 4}, namespace["model"])  # which is the model's own
    check_run_options({name: 4}, namespace["any_name"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shrinks": 0}, ValueError, "`shrinks` of at least 1, got 0"),
        ({"shrinks": 1.5}, TypeError, "an integer as `shrinks`, got 1.5"),
        ({"mean": tensor([0.0, torch.nan])}, ValueError, "a finite `mean`"),
        ({"scale": tensor([1.0, torch.inf])}, ValueError, "a finite `scale`"),
        ({"scale": tensor([1.0, 0.0])}, ValueError, "a `scale` without zeros"),
        ({"scale": 2.0}, TypeError, "a tensor as `scale`, got 2.0"),
    ],
)
def test_arguments_of_elliptical_slices_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        mcmc.EllipticalSlice(**options)


def test_arguments_of_annealing_are_checked():
    def normal(x):
        return -x.square().sum(-1) / 2

    x = torch.randn(16, 2)
    with pytest.raises(TypeError, match="got 'hmc'"):
        mcmc.ais(normal, normal, x, "hmc")
    with pytest.raises(TypeError, match="got the class HMC"):
        mcmc.smc(normal, normal, x, mcmc.HMC)
    with pytest.raises(TypeError, match=r"as `temperatures`, got 0.5"):
        mcmc.ais(normal, normal, x, mcmc.HMC(), 0.5)
    with pytest.raises(ValueError, match="`steps` of at least 1, got 0"):
        mcmc.smc(normal, normal, x, mcmc.HMC(), steps=0)


def mixture(y):
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(weight))
        pyro.sample("y", dist.Normal(means[..., 0] * (1 - z) + means[..., 1] * z, 1.0), obs=y)


def hidden_markov(y):
    stay = pyro.sample("stay", dist.Beta(2.0, 2.0))
    rows = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
    x = 0
    for t in pyro.markov(range(len(y))):
        x = pyro.sample(f"x{t}", dist.Categorical(rows[x]))
        pyro.sample(f"y{t}", dist.Normal(2.0 * x, 1.0), obs=y[t])


def test_labels_of_a_mixture_are_drawn_given_the_data():
    torch.manual_seed(0)
    y, count = tensor([-1.0, 0.2, 1.0]), 20000
    means = torch.stack([torch.linspace(-1, 0, count), torch.full((count,), 0.7)], 1)
    weight = torch.linspace(0.1, 0.5, count)
    samples = {"means": means, "weight": weight, "other": torch.zeros(count)}
    z = infer_discrete(mixture, samples, y)["z"]
    a = (1 - weight[:, None]) * dist.Normal(means[:, :1], 1.0).log_prob(y).exp()
    b = weight[:, None] * dist.Normal(means[:, 1:], 1.0).log_prob(y).exp()
    exact = b / (a + b)
    assert z.shape == (count, 3)
    torch.testing.assert_close(z.mean(0), exact.mean(0), atol=0.012, rtol=0)
    for k in range(3):  # and not only on average over draws
        torch.testing.assert_close(
            (z[:, k] * exact[:, k]).mean(), exact[:, k].square().mean(), atol=0.012, rtol=0
        )


def exact_paths(y, stay):
    rows, weights = tensor([[stay, 1 - stay], [1 - stay, stay]]), {}
    for path in itertools.product((0, 1), repeat=len(y)):
        weight, last = 1.0, 0
        for t, state in enumerate(path):
            emitted = dist.Normal(2.0 * state, 1.0).log_prob(y[t]).exp()
            weight, last = weight * float(rows[last, state] * emitted), state
        weights[path] = weight
    total = sum(weights.values())
    return {path: weight / total for path, weight in weights.items()}


def check_paths(count):
    torch.manual_seed(0)
    y = tensor([0.5, 1.5, 1.0])
    found = infer_discrete(hidden_markov, {"stay": torch.full((count,), 0.7)}, y)
    paths = torch.stack([found[f"x{t}"] for t in range(3)], 1)
    for path, weight in exact_paths(y, 0.7).items():
        share = float((paths == tensor(path)).all(1).float().mean())
        assert abs(share - weight) < 4 * (weight * (1 - weight) / count) ** 0.5 + 1e-9


def test_paths_of_a_hidden_markov_model_are_drawn_given_the_data():
    check_paths(20000)


def test_discrete_sites_are_drawn_by_pyro_alone_if_its_parts_have_moved(monkeypatch):
    from probgen.mcmc.pyro import discrete_sites

    monkeypatch.setattr(discrete_sites, "backward_sample", None)
    with pytest.warns(mcmc.ChainByChainWarning, match="one draw after the other"):
        check_paths(300)


def test_draws_of_chains_and_discrete_sites_go_together():
    torch.manual_seed(0)
    y = tensor([-3.0, -2.5, 2.0, 3.0])
    draws = mcmc.run(mixture, y, chains=16, warmup=50, draws=20, seed=0, progress=False)
    z = infer_discrete(mixture, draws.flat(), y)["z"]
    assert z.shape == (320, 4)
    assert float((z[:, 0] != z[:, 3]).float().mean()) > 0.95


@pytest.mark.parametrize(
    ("model", "samples", "message"),
    [
        (mixture, {"means": torch.zeros(3, 2)}, r"got none of \['weight'\]"),
        (mixture, {"means": torch.zeros(3, 2), "weight": torch.ones(2)}, "as many draws of each"),
        (lambda y: pyro.sample("x", dist.Normal(0.0, 1.0)), {}, "with discrete sites"),
    ],
)
def test_draws_for_discrete_sites_are_checked(model, samples, message):
    with pytest.raises(ValueError, match=message):
        infer_discrete(model, samples, torch.zeros(2))
