"""Training: what it accepts, how it resumes, how it stops."""

import copy
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import probgen as pg
from probgen.core import checkpoint

from .training_cases import QUICK, small
from .training_cases import x as x


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_the_density_comes_in_the_units_of_the_data(x):
    flow = small()
    pg.fit(flow, x, steps=300, lr=1e-2, **QUICK)
    exact = torch.distributions.Normal(torch.tensor([0.0, 300.0]), torch.tensor([1.0, 20.0]))
    gap = exact.log_prob(x).sum(-1).mean() - flow().log_prob(x).mean()
    assert abs(float(gap.detach())) < 0.2
    assert not flow.training


def test_maximum_likelihood_of_a_normal_is_exact(float64):
    x = torch.randn(500, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    flow = pg.models.MAF(2, transforms=2, hidden_features=())
    pg.fit(flow, x, steps=600, batch_size=500, lr=2e-2, schedule="cosine", **QUICK)
    exact = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))
    gap = exact.log_prob(x).mean() - flow().log_prob(x).mean()
    assert -0.02 < float(gap.detach()) < 1e-3  # the scale may depend on features, so it may win


def test_reverse_kl_finds_a_normal_target(float64):
    target = torch.distributions.MultivariateNormal(
        torch.tensor([1.0, -1.0]), torch.tensor([[1.0, 0.6], [0.6, 2.0]])
    )
    flow = pg.models.IAF(2, transforms=1, hidden_features=())
    objective = pg.objectives.ReverseKL(lambda x: target.log_prob(x) + 5.0, particles=64)
    pg.fit(flow, None, objective=objective, steps=800, lr=2e-2, schedule="cosine", **QUICK)
    with torch.no_grad():
        q, log_q = flow().rsample_and_log_prob((20_000,))
        kl = (log_q - target.log_prob(q)).mean()
    assert float(kl) < 5e-3


def test_reverse_kl_with_a_context():
    flow = pg.models.IAF(1, context=1, transforms=1)
    log_density = lambda x, c: -(x - 3 * c).square().sum(-1) / 2
    c = torch.linspace(-1, 1, 64)[:, None]
    objective = pg.objectives.ReverseKL(log_density, particles=4)
    pg.fit(flow, None, context=c, objective=objective, steps=400, lr=1e-2, **QUICK)
    error = flow(c).sample((500,)).mean(0) - 3 * c
    assert float(error.abs().mean()) < 0.3


def test_reverse_kl_needs_draws_with_gradients():
    flow = pg.distributions.Flow(
        [pg.transforms.Coupling(2)], pg.distributions.GaussianMixture(2, 3)
    )
    with pytest.raises(ValueError, match="rsample"):
        pg.fit(flow, None, objective=pg.objectives.ReverseKL(torch.sum), steps=1, **QUICK)
    with pytest.raises(ValueError, match="data"):
        pg.fit(small(), None, steps=1, **QUICK)


def test_arrays_datasets_and_loaders(x):
    c = torch.randn(100, 3)
    dataset = TensorDataset(x, c)
    loader = DataLoader(dataset, batch_size=25, shuffle=True)
    for data, context in (
        (x, c),
        (x.numpy(), c.numpy()),
        (x.numpy().astype(np.float64), c.double()),
        (dataset, None),
        (loader, None),
    ):
        flow = small(3)
        history = pg.fit(flow, data, context=context, epochs=2, batch_size=25, **QUICK)
        assert len(history.losses) == 8
        assert np.isfinite(history.losses).all()
    assert len(pg.fit(small(), x[:, :2], epochs=1, batch_size=30, **QUICK).losses) == 4


def test_weights_are_repeated_data(x):
    weights = torch.randint(0, 3, (100,)).float()
    once, twice = small(), small()
    repeated = x.repeat_interleave(weights.long(), 0)
    for flow in (once, twice):
        flow.initialize(x)
    pg.fit(once, x, weights=weights, steps=1, batch_size=1000, **QUICK)
    pg.fit(twice, repeated, steps=1, batch_size=1000, **QUICK)
    for p, q in zip(once.parameters(), twice.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


def test_the_seed_decides_and_the_random_state_is_kept(x):
    first, second = small(), small()
    torch.manual_seed(5)
    pg.fit(first, x, steps=10, batch_size=20, **QUICK)
    kept = torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), kept)
    pg.fit(second, x, steps=10, batch_size=20, **QUICK)
    assert same(first, second)


def test_early_stopping_keeps_the_best(x):
    flow = pg.models.NSF(2, transforms=3)
    history = pg.fit(
        flow, x, validation=0.5, steps=5000, lr=1e-2, batch_size=10, patience=3, **QUICK
    )
    assert len(history.losses) < 5000
    best = min(value for _, value in history.validation)
    assert dict(history.validation)[history.best_step] == best
    given = pg.fit(small(), x, validation=(x[:20], None), steps=20, **QUICK)
    assert given.validation


def test_ema_clip_and_schedules(x):
    flow, plain = small(), small()
    pg.fit(plain, x, steps=50, lr=0.05, **QUICK)
    pg.fit(flow, x, steps=50, lr=0.05, ema=0.9, **QUICK)
    assert not same(flow, plain)
    for schedule in ("cosine", lambda fraction: 1 - fraction):
        pg.fit(small(), x, steps=5, schedule=schedule, clip=0.1, **QUICK)
    still = small()
    pg.fit(still, x, steps=5, schedule=lambda fraction: 0.0, **QUICK)
    expected = small()
    assert all(torch.equal(p, q) for p, q in zip(still.parameters(), expected.parameters()))


class Killed(Exception):
    """Stands for a power cut."""


def dies(step):
    """An objective that stops the program at a step."""
    calls = iter(range(10**9))
    likelihood = pg.objectives.MaximumLikelihood()

    def objective(module, x, context=None):
        if torch.is_grad_enabled() and next(calls) == step:
            raise Killed
        return likelihood(module, x, context) + 0.1 * torch.randn(len(x))

    return objective


@pytest.mark.parametrize("loader", [False, True])
@pytest.mark.parametrize("stop", [3, 130, 255])
def test_a_killed_run_goes_on_to_the_same_bits(x, stop, loader, tmp_path):
    options = {"validation": (x[:20], None), "ema": 0.9, "batch_size": 30, "schedule": "cosine"}
    data = DataLoader(TensorDataset(x), batch_size=30, shuffle=True) if loader else x
    whole, broken = small(), small()
    expected = pg.fit(whole, data, steps=260, objective=dies(-1), **options, **QUICK)
    options["checkpoint"] = tmp_path
    with pytest.raises(Killed):
        pg.fit(broken, data, steps=260, objective=dies(stop), **options, **QUICK)
    fresh = small()
    history = pg.fit(fresh, data, steps=260, objective=dies(-1), **options, **QUICK)
    assert same(whole, fresh)
    assert history == expected
    assert same(pg.load(tmp_path), fresh)


def test_more_steps_continue(x, tmp_path):
    whole, parts = small(), small()
    pg.fit(whole, x, steps=20, batch_size=30, **QUICK)
    pg.fit(parts, x, steps=8, batch_size=30, checkpoint=tmp_path, **QUICK)
    parts = small()
    history = pg.fit(parts, x, steps=20, batch_size=30, checkpoint=tmp_path, **QUICK)
    assert same(whole, parts)
    assert len(history.losses) == 20
    for other, words in (
        (pg.models.MAF(2), "`transforms` 2, got 5"),
        (pg.models.NSF(2), "`class` 'MAF', got 'NSF'"),
        (pg.models.MAF(2, 0, 2, (8,), "tanh"), "`activation` 'relu', got 'tanh'"),
    ):
        with pytest.raises(ValueError, match=words):
            pg.fit(other, x, steps=30, checkpoint=tmp_path, **QUICK)
    again = pg.models.MAF(2, 0, 2, hidden_features=[8], activation="relu")
    pg.fit(again, x, steps=30, batch_size=30, checkpoint=tmp_path, **QUICK)


def halved(fraction):
    return 0.5


def changed_runs(x):
    """What makes another run of the one in the test below, with what is said of it."""
    elbo = pg.objectives.ELBO
    return {
        "data": ({"data": x + 100}, "`data`"),
        "rows": ({"data": x[:90], "context": x[:90, :1]}, "`data`"),
        "context": ({"context": 2 * x[:, :1]}, "`context`"),
        "weights": ({"weights": torch.arange(100.0)}, "`weights`.*none"),
        "validation": ({"validation": 0.3}, r"`validation`.*0\.2.*0\.3"),
        "no validation": ({"validation": None}, r"`validation`.*0\.2.*None"),
        "objective": ({"objective": elbo(beta=0.5)}, r"`objective.beta`.*1, got 0\.5"),
        "class": ({"objective": pg.objectives.IWAE(5)}, "`objective`.*ELBO, got IWAE"),
        "optimizer": ({"optimizer": torch.optim.SGD}, "`optimizer`.*Adam, got SGD"),
        "betas": (
            {"optimizer": partial(torch.optim.Adam, betas=(0.5, 0.9))},
            r"`optimizer.betas`.*\[0.9, 0.999\], got \[0.5, 0.9\]",
        ),
        "lr": ({"lr": 0.1}, r"`lr`.*0\.001, got 0\.1"),
        "batch_size": ({"batch_size": 20}, "`batch_size`.*30, got 20"),
        "clip": ({"clip": 1.0}, "`clip`.*None, got 1"),
        "ema": ({"ema": 0.8}, r"`ema`.*0\.9, got 0\.8"),
        "schedule": ({"schedule": halved}, "`schedule`.*None, got .*halved"),
        "patience": ({"patience": 3}, "`patience`.*20, got 3"),
        "seed": ({"seed": 1}, "`seed`.*got 1"),
        "steps": ({"steps": 10}, "at least the 20 steps.*got 10"),
    }


@pytest.mark.parametrize("kind", changed_runs(torch.zeros(100, 2)))
def test_another_run_is_refused_by_name(x, kind, tmp_path_factory):
    """Nothing but the number of steps may change, and what did is named."""
    options = {"context": x[:, :1], "batch_size": 30, "validation": 0.2, "ema": 0.9, "steps": 20}
    options.update(objective=pg.objectives.ELBO(), progress=False, data=x)
    build = partial(pg.models.ConditionalVAE, 2, 1, 2, (4,), "normal")
    folder = tmp_path_factory.getbasetemp() / "the run"
    if not folder.exists():
        pg.fit(build(), checkpoint=folder, **options)
    change, words = changed_runs(x)[kind]
    with pytest.raises(ValueError, match=f"(?s){words}.*another folder"):
        pg.fit(build(), checkpoint=folder, **{**options, **change})
    with pytest.raises(ValueError, match=r"`dtype`.*torch.float32, got torch.float64"):
        pg.fit(build().double(), checkpoint=folder, **options)


def test_the_seed_of_a_run_is_read_from_it(x, tmp_path):
    options = {"batch_size": 30, "checkpoint": tmp_path, "progress": False}
    flow, last = small(), small()
    pg.fit(flow, x, steps=20, **options)
    history = pg.fit(last, x, steps=21, **options)
    assert len(history.losses) == 21
    assert not same(flow, last)


def test_functions_are_compared_by_what_they_do(x, tmp_path):
    def run(objective, **options):
        pg.fit(small(), x, objective=objective, checkpoint=tmp_path, **options, **QUICK)

    run(lambda m, x, c: -m().log_prob(x), steps=2)
    with pytest.raises(ValueError, match=r"`objective.function` of the run"):
        run(lambda m, x, c: -2 * m().log_prob(x), steps=3)


def test_a_run_from_before_players_goes_on(x, tmp_path):
    """A checkpoint without what it is compared by resumes, to the same bits."""
    whole, parts = small(), small()
    expected = pg.fit(whole, x, steps=20, batch_size=30, ema=0.9, **QUICK)
    pg.fit(parts, x, steps=8, batch_size=30, ema=0.9, checkpoint=tmp_path, **QUICK)
    tensors, content = checkpoint.read(tmp_path / "training")
    for name in ("format", "schema", "weights", "sha256", "described"):
        content.pop(name)
    verdict = content.pop("verdict")
    old = {
        **content,
        "kind": "Adam",
        "optimizer": content.pop("optimizers")["model"],
        "least": verdict["least"],
        "worse": verdict["worse"],
        "history": {
            "losses": content.pop("losses")["model"],
            "validation": [],
            "best_step": None,
        },
    }
    tensors = {n.replace("optimizer.model.", "optimizer."): v for n, v in tensors.items()}
    checkpoint.write(tmp_path / "training", tensors, old)
    parts = small()
    with pytest.raises(ValueError, match=r"`optimizer`.*Adam, got SGD"):
        pg.fit(parts, x, steps=20, checkpoint=tmp_path, optimizer=torch.optim.SGD, **QUICK)
    history = pg.fit(parts, x, steps=20, batch_size=30, ema=0.9, checkpoint=tmp_path, **QUICK)
    assert same(whole, parts)
    assert history == expected


def test_a_folder_without_a_run_starts_one(x, tmp_path):
    (tmp_path / "training").mkdir()
    assert len(pg.fit(small(), x, steps=2, checkpoint=tmp_path, **QUICK).losses) == 2


class Interrupted(pg.objectives.MaximumLikelihood):
    """Maximum likelihood, with an interrupt at a call in training or validation."""

    calls: ClassVar[list[int]] = []

    def losses(self, module, x, context):
        if self.calls and (self.calls[0] == 0) == (not module.training):
            self.calls[0] -= 1
            if self.calls[0] <= 0:
                self.calls.clear()
                raise KeyboardInterrupt
        return super().losses(module, x, context)


def test_an_interrupt_while_validating_leaves_what_was_trained(x, tmp_path):
    options = {"ema": 0.5, "validation": 0.2, "batch_size": 20, "steps": 30, **QUICK}
    options["objective"] = Interrupted()
    whole = small()
    expected = pg.fit(whole, x, **options)
    options["checkpoint"] = tmp_path
    Interrupted.calls[:] = [0]
    with pytest.raises(KeyboardInterrupt):
        pg.fit(small(), x, **options)
    flow = small()
    history = pg.fit(flow, x, **options)
    assert same(flow, whole)
    assert history == expected  # what was not validated is, before the next step


def test_held_out_data_keep_their_weights(x):
    weights = torch.cat([torch.ones(50), torch.zeros(50)])
    shifted = torch.cat([x[:50], x[50:] + 100])
    flow = small()
    history = pg.fit(flow, shifted, weights=weights, validation=0.3, steps=20, **QUICK)
    assert history.validation[-1][0] == 20  # the last step is scored


def test_an_interrupt_leaves_a_run_to_resume(x, tmp_path):
    options = {"steps": 20, "objective": Interrupted(), "checkpoint": tmp_path, **QUICK}
    Interrupted.calls[:] = [8]
    with pytest.raises(KeyboardInterrupt):
        pg.fit(small(), x, **options)
    assert checkpoint.read(tmp_path / "training")[1]["step"] == 7
    assert len(pg.fit(small(), x, **options).losses) == 20


def test_a_loss_that_is_not_finite_says_where(x):
    def objective(module, x, context=None):
        return torch.full((len(x),), torch.nan) * module().log_prob(x)

    flow = small()
    before = copy.deepcopy(list(flow.parameters()))
    with pytest.raises(FloatingPointError, match=r"nan at step 0 on.*in \[.*No step was taken"):
        pg.fit(flow, x, objective=objective, steps=5, **QUICK)
    assert all(torch.equal(p, q) for p, q in zip(before, flow.parameters()))


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (torch.zeros(0, 2), ValueError, "at least one"),
        (torch.tensor(1.0), ValueError, "at least one"),
        (torch.zeros(5, 3), ValueError, r"\(N, 2\), got \(5, 3\)"),
        (torch.zeros(5, 2, dtype=torch.int64), TypeError, "Dequantise"),
        (torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), ValueError, "first in item 1"),
        (torch.tensor([[0.0, torch.inf]]), ValueError, "nan or inf"),
        (np.array([["a", "b"]]), TypeError, "tensor or array"),
        ((torch.zeros(5, 2), torch.zeros(5, 2)), TypeError, "got a tuple of 2"),
        (torch.zeros(5, 2).double() + 1e39, ValueError, "range of torch.float32, got 1e.39"),
        (1e6 + 1e-3 * torch.randn(50, 2).double(), ValueError, "torch.float32 can tell apart"),
        (1.7e9 + 3600 * torch.rand(50, 2).double(), ValueError, "Subtract a constant"),
        (TensorDataset(torch.zeros(0, 2)), ValueError, "at least one item"),
        (TensorDataset(*torch.zeros(3, 5, 2)), ValueError, "got a tuple of 3"),
        (torch.zeros(5, 2, dtype=torch.complex64), TypeError, "real"),
    ],
)
def test_bad_data_are_refused(data, error, words):
    with pytest.raises(error, match=words):
        pg.fit(small(), data, steps=1, **QUICK)


def test_data_outside_the_support_are_refused():
    recipe = pg.models.NSF(1)
    bounded = pg.distributions.Flow([pg.transforms.NormalCDF()], recipe)
    with pytest.raises(ValueError, match=r"(?s)support.*\[0.5, 2\], the first outside in item 1"):
        pg.fit(bounded, torch.tensor([[0.5], [2.0]]), steps=1, **QUICK)
    bounded = pg.distributions.Flow([pg.transforms.NormalCDF(0.0, 4.0)], recipe)
    levels = pg.distributions.Dequantized(bounded, 4)
    with pytest.raises(ValueError, match="item 0"):
        pg.fit(levels, torch.tensor([[4]]), steps=1, **QUICK)


def test_angles_rounded_to_float32_are_inside():
    circular = pg.models.CircularNSF(2).double()
    edge = torch.tensor([[torch.pi, -torch.pi]]).double()
    assert circular().log_prob(edge).isfinite().all()
    pg.fit(circular, edge.expand(10, 2), steps=2, **QUICK)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "`steps` to be a whole number >= 1, got 0"),
        ({"steps": 2.5}, "`steps`.*got 2.5"),
        ({"steps": None, "epochs": 0}, "`epochs` to be a whole number >= 1, got 0"),
        ({"clip": -1.0}, "positive `clip`, got -1.0"),
        ({"clip": 0.0}, "positive `clip`, got 0.0"),
        ({"lr": "1e-3"}, "positive `lr`, got '1e-3'"),
        ({"lr": float("nan")}, "positive `lr`, got nan"),
        ({"seed": -1}, "`seed` to be a whole number >= 0, got -1"),
        ({"ema": 1.5}, r"`ema` in \[0, 1\), got 1.5"),
        ({"patience": -1}, "`patience` to be a whole number >= 0, got -1"),
        ({"validation": 20}, r"fraction `validation` in \(0, 1\), got 20"),
        ({"validation": True}, "fraction `validation`.*got True"),
        ({"validation": 0.001}, "at least one of 100.*got 0.001"),
        ({"validation": (torch.zeros(5, 2),) * 3}, "got a tuple of 3"),
        ({"device": "gpu"}, "`device` that is there, got 'gpu'"),
        ({"objective": lambda m, x, c: -m().log_prob(x).mean()}, r"shape \(100,\), got \(\)"),
        ({"objective": lambda m, x, c: -m().log_prob(x).detach()}, "with a gradient"),
        ({"objective": lambda m, x, c: None}, "got NoneType"),
        ({"objective": pg.objectives.ReverseKL(lambda z: z.sum(-1))}, "no data.*batch of 100"),
        ({"epochs": 2}, "got both"),
        ({"validation": torch.zeros(5, 3)}, "validation"),
        ({"batch_size": 0}, "batch_size"),
        ({"validation": 1.5}, "fraction"),
        ({"weights": torch.ones(3)}, "weights"),
        ({"weights": -torch.ones(100)}, "not negative"),
        ({"schedule": "linear"}, "cosine"),
        ({"context": torch.ones(100, 1)}, "no context"),
    ],
)
def test_bad_options_are_refused(x, options, words):
    with pytest.raises(ValueError, match=words):
        pg.fit(small(), x, **{"steps": 2, **QUICK, **options})


def test_loaders_bring_everything(x):
    loader = DataLoader(TensorDataset(x), batch_size=25)
    with pytest.raises(ValueError, match="DataLoader"):
        pg.fit(small(), loader, weights=torch.ones(100), steps=1, **QUICK)
    with pytest.raises(ValueError, match="pairs"):
        pg.fit(small(), loader, context=x, steps=1, **QUICK)
    with pytest.raises(ValueError, match="no fraction to hold out"):
        pg.fit(small(), loader, validation=0.2, steps=1, **QUICK)
    split = torch.utils.data.DistributedSampler(TensorDataset(x), num_replicas=2, rank=0)
    with pytest.raises(ValueError, match="DistributedSampler"):
        pg.fit(small(), DataLoader(TensorDataset(x), sampler=split), steps=1, **QUICK)
    with pytest.raises(TypeError, match="class of optimisers"):
        pg.fit(small(), x, optimizer="adam", steps=1, **QUICK)


def test_contexts_must_match_the_data(x):
    c = torch.randn(100, 1)
    pairs = TensorDataset(x, c[:, None])
    for data, context, validation, words in (
        (x, c[:, None], None, r"`context` with shape \(N, 1\), got \(100, 1, 1\)"),
        (pairs, None, None, r"\(100, 1, 1\)"),
        (DataLoader(pairs, batch_size=10), None, None, r"\(10, 1, 1\)"),
        (x, c, (x[:20], c[:1]), "as many contexts as data in `validation`, got 1 and 20"),
        (TensorDataset(x, c), c, None, r"got pairs \(x, context\)"),
    ):
        with pytest.raises(ValueError, match=words):
            pg.fit(small(1), data, context=context, validation=validation, steps=1, **QUICK)
    with pytest.raises(ValueError, match="as many contexts"):
        pg.fit(small(1), x, context=torch.ones(3, 1), steps=1, **QUICK)
    with pytest.raises(ValueError, match="got none"):
        pg.fit(small(1), x, steps=1, **QUICK)
    with pytest.raises(ValueError, match="frozen"):
        pg.fit(small().freeze(), x, steps=1, **QUICK)


def test_what_is_no_lazy_distribution_is_named(x):
    for module, words in ((x, "got Tensor"), (pg.models.MAF, "got the class MAF")):
        with pytest.raises(TypeError, match=words):
            pg.fit(module, x, steps=1, **QUICK)


@pytest.mark.parametrize("wrong", [lambda z: z @ z.T, lambda z: z.sum(), lambda z: None])
def test_a_target_of_another_shape_is_refused(wrong):
    with pytest.raises(ValueError, match=r"`log_density` to return.*\(64,\), got"):
        pg.fit(pg.models.IAF(2), None, objective=pg.objectives.ReverseKL(wrong), **QUICK)
    with pytest.raises(ValueError, match="`particles`"):
        pg.objectives.ReverseKL(wrong, particles=0)
