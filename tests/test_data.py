"""Data in every form in which users have them."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import probgen as pg
from probgen.core import LazyDistribution, contexts
from probgen.training.data import batches_of, hold_out
from probgen.training.sources import Arrays, Items, seeded

from .data_cases import QUICK, Counted, Stream, small


class Conditional(LazyDistribution):
    """A normal whose mean is linear in a context of any shape."""

    density = pg.Density.EXACT

    def __init__(self, shape) -> None:
        super().__init__()
        self.context_shape = shape
        self.linear = nn.Linear(contexts.size_of(shape), 2)

    @property
    def objective(self):
        return pg.objectives.MaximumLikelihood()

    def forward(self, context=None):
        contexts.check(context, self.context_shape, "Conditional", self.linear.weight)
        mean = self.linear(contexts.flatten(context, self.context_shape))
        return dist.Normal(mean, 1.0).to_event(1)


class Told(Stream):
    """A stream that says how long it is."""

    def __init__(self, count, length):
        super().__init__(count)
        self.length = length

    def __len__(self):
        return self.length


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: DataLoader(d, batch_size=10)])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_dataset_is_read_as_it_is_used(wrap, checkpoint, tmp_path):
    data = Counted(1_000_000)
    options = {"checkpoint": tmp_path} if checkpoint else {}
    pg.fit(small(), wrap(data), steps=2, batch_size=10, **options, **QUICK)
    assert data.reads <= 10_000 + 2 * 10


def test_a_dataset_gives_what_its_tensor_gives():
    data = Counted(300)
    x = torch.stack([data[i] for i in range(300)])
    models = []
    for given in (x, data, [*x], x.numpy(), pd.DataFrame(x.numpy()), TensorDataset(x), {"x": x}):
        torch.manual_seed(1)
        models.append(small())
        pg.fit(models[-1], given, steps=15, batch_size=40, validation=0.2, **QUICK)
    assert all(same(models[0], other) for other in models[1:])


ITEMS = {
    "dict": ({"x": 1, "context": 1}, (3,), None),
    "dict with a weight": ({"x": 1, "context": 1, "weight": 1}, (3,), None),
    "names": ({"image": 1, "label": 1}, (3,), {"x": "image", "context": "label"}),
    "image": ("pair", (1, 8, 8), None),
    "tuple": ("pair", ((3,), (1, 4, 4)), None),
    "dict of contexts": ("pair", {"a": (1,), "b": (4, 4)}, None),
    "names of a tuple": (
        {"y": 1, "a": 1, "b": 1},
        ((3,), (2,)),
        {"x": "y", "context": ("a", "b")},
    ),
}


def make_items(kind, shape, names):
    """A function of the number of an item, and the whole as arrays."""

    def make(i):
        g = torch.Generator().manual_seed(i)
        x = torch.randn(2, generator=g)
        parts = [torch.randn(s, generator=g) for s in contexts.entries(shape)]
        c = parts[0] if contexts.is_single(shape) else tuple(parts)
        if isinstance(shape, dict):
            c = dict(zip(shape, parts))
        if kind == "pair":
            return x, c
        item = {"x": x, "context": c, "weight": 1.0 + i % 3}
        if names and isinstance(names["context"], tuple):
            item = {names["x"]: x, **dict(zip(names["context"], c))}
        elif names:
            item = {names["x"]: x, names["context"]: c}
        return {key: item[key] for key in kind}

    return make


@pytest.mark.parametrize("name", ITEMS)
def test_items_of_every_structure_train_the_same(name):
    kind, shape, names = ITEMS[name]
    make = make_items(kind, shape, names)
    trained = []
    for data in (
        Counted(60, make),
        Stream(60, make),
        DataLoader(Counted(60, make), batch_size=30),
        DataLoader(Stream(60, make), batch_size=30),
        [make(i) for i in range(60)],
    ):
        torch.manual_seed(0)
        trained.append(Conditional(shape))
        history = pg.fit(trained[-1], data, steps=4, batch_size=30, names=names, **QUICK)
        assert np.isfinite(history.losses).all()
    assert same(trained[0], trained[4])
    assert same(trained[1], trained[2])
    assert same(trained[1], trained[3])


def test_contexts_of_every_structure_as_arrays():
    x = torch.randn(60, 2)
    for shape in ((3,), (1, 8, 8), ((3,), (1, 4, 4)), {"a": (2,), "b": (4, 4)}):
        c = contexts.map_context(lambda s: torch.randn(60, *s), None)
        parts = [torch.randn(60, *s) for s in contexts.entries(shape)]
        c = parts[0] if contexts.is_single(shape) else tuple(parts)
        c = dict(zip(shape, parts)) if isinstance(shape, dict) else c
        history = pg.fit(Conditional(shape), x, context=c, steps=5, validation=0.2, **QUICK)
        assert history.validation
        held = (x, c)
        pg.fit(Conditional(shape), x, context=c, steps=2, validation=held, **QUICK)
        short = contexts.index(c, slice(0, 59))
        with pytest.raises(ValueError, match="as many contexts as data"):
            pg.fit(Conditional(shape), x, context=short, steps=1, **QUICK)
        wrong = contexts.map_context(lambda t: t[..., :-1], c)
        with pytest.raises(ValueError, match=r"Expected .*shape"):
            pg.fit(Conditional(shape), x, context=wrong, steps=1, **QUICK)


def test_streams_need_steps_and_train_on_all():
    stream = Stream(50)
    history = pg.fit(small(), stream, steps=12, batch_size=10, **QUICK)
    assert len(history.losses) == 12
    assert stream.items.reads <= 10_000 + 120
    with pytest.raises(ValueError, match="Expected `steps`"):
        pg.fit(small(), stream, epochs=2, **QUICK)
    with pytest.raises(ValueError, match="no fraction"):
        pg.fit(small(), stream, steps=2, validation=0.1, **QUICK)
    held = pg.fit(small(), stream, steps=200, batch_size=10, validation=Stream(30), **QUICK)
    assert [step for step, _ in held.validation] == [100, 200]
    with pytest.raises(ValueError, match="at least one item"):
        pg.fit(small(), Stream(0), steps=1, **QUICK)

    class Once(IterableDataset):
        def __init__(self):
            self.left = iter(torch.randn(40, 2))

        def __iter__(self):
            return self.left

    assert len(pg.fit(small(), Once(), steps=4, batch_size=10, **QUICK).losses) == 4
    with pytest.raises(ValueError, match=r"again and again.*step 4.*fewer `steps`"):
        pg.fit(small(), Once(), steps=5, batch_size=10, **QUICK)
    with pytest.raises(TypeError, match=r"Wrap what makes it in a torch.utils.data.Iterable"):
        pg.fit(small(), iter(torch.randn(40, 2)), steps=1, **QUICK)


def noisy(i):
    """An item with noise from every generator."""
    return torch.randn(2) + float(np.random.rand()) + i


class Stop(Exception):
    pass


def stops(step):
    calls = iter(range(10**9))

    def objective(module, x, context=None):
        if next(calls) == step:
            raise Stop
        return -module(context).log_prob(x)

    return objective


SOURCES = {
    "dataset": lambda: Counted(70, noisy),
    "stream": lambda: Stream(70, noisy),
    "loader": lambda: DataLoader(Counted(70, noisy), batch_size=20, shuffle=True),
    "loader with a generator": lambda: DataLoader(
        Counted(70, noisy), batch_size=20, shuffle=True, generator=torch.Generator()
    ),
    "loader of a stream": lambda: DataLoader(Stream(70, noisy), batch_size=20),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_run_over_random_items_goes_on_to_the_same_bits(name, tmp_path):
    torch.manual_seed(0)
    whole = small()
    options = {"steps": 150, "batch_size": 20, **QUICK}
    expected = pg.fit(whole, SOURCES[name](), objective=stops(-1), **options)
    torch.manual_seed(0)
    with pytest.raises(Stop):
        pg.fit(small(), SOURCES[name](), objective=stops(120), checkpoint=tmp_path, **options)
    torch.randn(5)
    resumed = small()
    history = pg.fit(resumed, SOURCES[name](), objective=stops(-1), checkpoint=tmp_path, **options)
    assert history == expected
    assert same(whole, resumed)


def test_seeded_leaves_the_generators_as_they_were():
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.randn(2), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    with seeded(1):
        first = torch.randn(2), np.random.rand()
    with seeded(1):
        assert torch.equal(torch.randn(2), first[0])
    assert torch.equal(torch.randn(2), expected[0])
    assert np.random.rand() == expected[1]


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: DataLoader(d, batch_size=10)])
def test_lengths_that_lie(wrap):
    options = {"steps": 25, "batch_size": 10, **QUICK}
    with pytest.warns(pg.LengthWarning, match="4 batches in a pass, fewer than its length, 10"):
        assert len(pg.fit(small(), wrap(Told(40, 100)), **options).losses) == 25
    history = pg.fit(small(), wrap(Told(100, 40)), **options)
    assert len(history.losses) == 25
    with pytest.raises(ValueError, match="IndexError at item"):
        pg.fit(small(), Counted(40, lambda i: torch.randn(5, 2)[i]), **options)


class Short(torch.utils.data.BatchSampler):
    def __len__(self):
        return 10


@pytest.mark.filterwarnings("ignore::probgen.LengthWarning")
def test_a_loader_that_is_short_goes_on_to_the_same_bits(tmp_path):
    x = torch.randn(40, 2)

    def fit(steps, **options):
        rows = Short(torch.utils.data.RandomSampler(x), 10, False)
        loader = DataLoader(TensorDataset(x), batch_sampler=rows)
        torch.manual_seed(0)
        return pg.fit(small(), loader, steps=steps, **options, **QUICK).losses

    whole = fit(23)
    assert [fit(steps, checkpoint=tmp_path) for steps in (6, 15, 23)] == [
        whole[:6],
        whole[:15],
        whole,
    ]


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (torch.tensor([0.0, torch.nan]), ValueError, "finite `data`.*first in item {i}"),
        (torch.zeros(3), ValueError, "of one shape.*in item {i}"),
        (torch.zeros(2, 1), ValueError, "of one shape.*in item {i}"),
        ("word", (TypeError, ValueError), "item {i}.*got a str"),
        (None, TypeError, "item {i}.*got a NoneType"),
        (torch.zeros(2).cfloat(), TypeError, "real"),
        (torch.tensor([0.0, 1e39], dtype=torch.float64), ValueError, "item|range"),
    ],
)
def test_bad_items_are_named(bad, error, words):
    items = [torch.randn(2) for _ in range(40)]
    items[7] = bad
    for data, i in ((Counted(40, items.__getitem__), 7), (Stream(40, items.__getitem__), 7)):
        with pytest.raises(error, match=words.format(i=i)):
            pg.fit(small(), data, steps=4, batch_size=10, **QUICK)


@pytest.mark.parametrize(
    ("item", "error", "words"),
    [
        (torch.zeros(3), ValueError, r"shape \(N, 2\), got \(.*, 3\), first in item \d"),
        (torch.zeros(2).long(), TypeError, r"got torch.int64, first in item \d"),
        ((torch.zeros(2), torch.zeros(1)), ValueError, "no context"),
        ((torch.zeros(2),) * 3, ValueError, "got a tuple of 3"),
        ({"image": torch.zeros(2)}, ValueError, "dicts with 'x', got the keys 'image'"),
        ({"x": torch.zeros(2), "weight": -1.0}, ValueError, "not negative"),
        ({"x": torch.zeros(2), "weight": 0.0}, ValueError, "weights above 0"),
    ],
)
def test_items_that_do_not_fit_are_refused(item, error, words):
    for data in (Counted(20, lambda i: item), Stream(20, lambda i: item)):
        with pytest.raises(error, match=words):
            pg.fit(small(), data, steps=1, batch_size=5, **QUICK)


def test_names_that_are_none():
    with pytest.raises(ValueError, match="`names` of x, context, weight, got 'label'"):
        pg.fit(small(), torch.zeros(9, 2), names={"label": "y"}, steps=1, **QUICK)
    data = Counted(9, lambda i: {"x": torch.zeros(2)})
    with pytest.raises(ValueError, match="dicts with 'y'"):
        pg.fit(small(), data, names={"context": "y"}, steps=1, **QUICK)


def test_a_memory_map_is_not_copied(tmp_path):
    count = 4_000_000
    file = tmp_path / "x.bin"
    whole = np.memmap(file, np.float32, "w+", shape=(count, 8))
    whole[::400] = np.random.default_rng(0).normal(size=(count // 400, 8))
    whole.flush()
    script = """
        import sys, numpy as np, torch, probgen as pg
        file, count = sys.argv[1], int(sys.argv[2])
        pg.fit(pg.models.MAF(8, transforms=1), torch.randn(100, 8), steps=1, progress=False)
        kept = []
        original = torch.Tensor.to
        def to(t, *a, **k):
            kept.append(t.numel())
            return original(t, *a, **k)
        torch.Tensor.to = to
        for x in (
            np.memmap(file, np.float32, "r", shape=(count, 8)),
            torch.from_file(file, size=8 * count).view(count, 8),
        ):
            pg.fit(pg.models.MAF(8, transforms=1), x, steps=5, progress=False)
        print(max(kept))
        status = open("/proc/self/status").read()
        print(status.split("RssAnon:")[1].split()[0] if "RssAnon" in status else 0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(file), str(count)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    largest, anonymous = map(int, done.stdout.split())
    assert largest <= count  # its order, not its numbers
    assert anonymous < 600_000  # kB, of which torch has most


def test_memory_maps_are_read_as_they_are_used(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(200, 2).double().numpy()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    models = []
    for data in (x, mapped):
        torch.manual_seed(1)
        models.append(small())
        weights = torch.arange(200.0)
        pg.fit(models[-1], data, weights=weights, steps=9, batch_size=50, validation=0.1, **QUICK)
    assert same(*models)
    assert isinstance(batches_of(small(), mapped, None, None, 9, x_device(), 0).rows, Arrays)
    x[13, 1] = np.nan
    np.save(tmp_path / "y.npy", x)
    with pytest.raises(ValueError, match="first in item 13"):
        pg.fit(small(), np.load(tmp_path / "y.npy", mmap_mode="r"), epochs=1, **QUICK)
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        pg.fit(small(features=3), mapped, steps=1, **QUICK)
    c = np.load(tmp_path / "x.npy", mmap_mode="r")
    pg.fit(small(2), mapped, context=c, steps=2, **QUICK)
    with pytest.raises(ValueError, match="as many contexts"):
        pg.fit(small(2), mapped, context=c[:9], steps=2, **QUICK)


def x_device():
    return torch.device("cpu")


def test_tables_of_pandas():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"height": rng.normal(size=90), "age": rng.normal(size=90)})
    frame["member"] = rng.random(90) > 0.5
    frame["count"] = pd.array(rng.integers(0, 1000, 90), dtype="Int64")
    flow = small(1, 3)
    series = pd.Series(rng.normal(size=90), name="dose")
    with pytest.warns(pg.DiscreteDataWarning, match="'member'"):
        pg.fit(flow, frame[["height", "member", "count"]], context=series, steps=2, **QUICK)
    pg.fit(small(features=1), series, steps=2, **QUICK)
    pg.fit(small(), frame[["height", "age"]], weights=frame["count"], steps=2, **QUICK)
    frame["sex"] = pd.Categorical(["f", "m"] * 45)
    with pytest.raises(TypeError, match=r"column 'sex' of category.*get_dummies.*drop"):
        pg.fit(small(features=2), frame[["height", "sex"]], steps=1, **QUICK)
    frame.loc[5, "age"] = None
    with pytest.raises(ValueError, match=r"missing value in column 'age', first in item 5.*dropna"):
        pg.fit(small(), frame[["height", "age"]], steps=1, **QUICK)
    frame["when"] = pd.Timestamp("2026-01-01")
    with pytest.raises(TypeError, match="column 'when' of datetime"):
        pg.fit(small(), frame[["height", "when"]], steps=1, **QUICK)
    left = frame[["height"]].drop(index=3)
    with pytest.raises(ValueError, match=r"with one index.*reset_index"):
        pg.fit(small(1, 1), left, context=frame["count"].iloc[:89], steps=1, **QUICK)


def test_what_is_no_data_is_named():
    arviz = pytest.importorskip("arviz")
    idata = arviz.from_dict({"x": np.zeros((1, 10, 2))})
    with pytest.raises(TypeError, match=r"(?s)InferenceData|DataTree.*Give the draws of one"):
        pg.fit(small(), idata, steps=1, **QUICK)
    draws = idata.posterior["x"].to_numpy()
    pg.fit(small(), torch.as_tensor(draws).flatten(0, 1), steps=1, **QUICK)
    pg.fit(small(), idata.posterior["x"].isel(chain=0), steps=1, **QUICK)
    for wrong in ("words", 3.0, object(), {1, 2}, [torch.zeros(2), torch.zeros(3)], [], {}):
        with pytest.raises((TypeError, ValueError), match="Expected"):
            pg.fit(small(), wrong, steps=1, **QUICK)


def test_held_out_rows_of_a_dataset_are_read_lazily():
    data = Counted(500_000)
    source = batches_of(small(), data, None, None, 10, x_device(), 0)
    held = hold_out(source, 0.001, small(), 10, x_device(), 0)
    assert data.reads == 0
    assert sum(len(part.x) for part in held.parts(64)) == len(held) == 500
    assert data.reads == 500
    assert len(source) == 499_500
    assert not set(held.chosen.tolist()) & set(source.chosen.tolist())
    assert isinstance(source.rows, Items)


def test_weights_that_are_all_zero_where_data_are_held_out():
    x, w = torch.randn(100, 2), torch.zeros(100)
    w[torch.randperm(100, generator=torch.Generator())[:1]] = 1
    with pytest.raises(ValueError, match=r"Expected .*weight above 0, got .* weights of 0"):
        pg.fit(small(), x, weights=w, validation=0.3, steps=20, **QUICK)
    held = {"x": x, "weight": torch.zeros(100)}
    with pytest.raises(ValueError, match="nor all zero"):
        pg.fit(small(), x, validation=held, steps=20, **QUICK)
    zero = Counted(20, lambda i: {"x": torch.zeros(2), "weight": 0.0})
    with pytest.raises(ValueError, match="positive weight"):
        pg.fit(small(), x, validation=zero, steps=20, **QUICK)


def test_weights_of_items_are_those_of_an_array():
    x, w = torch.randn(64, 2), torch.rand(64)
    models = []
    for data, weights in (
        (x, w),
        (Counted(64, lambda i: {"x": x[i], "weight": w[i]}), None),
        ({"x": x, "weight": w}, None),
        (Counted(64, lambda i: x[i]), w),
    ):
        torch.manual_seed(0)
        models.append(small())
        pg.fit(models[-1], data, weights=weights, steps=5, batch_size=16, **QUICK)
    for other in models[1:]:
        for p, q in zip(models[0].parameters(), other.parameters()):
            torch.testing.assert_close(p, q)
    with pytest.raises(ValueError, match=r"`weight.*` is given besides"):
        pg.fit(small(), {"x": x, "weight": w}, weights=w, steps=1, **QUICK)


def test_digests():
    x, c, w = torch.randn(50, 2), torch.randn(50, 1), torch.rand(50)

    def digest(data, context=None, weights=None, module=None):
        module = module or small(0 if context is None else 1)
        return batches_of(module, data, context, weights, 10, x_device(), 0).digest()

    first = digest(x, c, w)
    assert set(first) == {"data", "context", "weights"}
    assert digest(x.double().numpy(), c, w) == first
    changed = digest(x + 1, c, w)
    assert [changed[k] == first[k] for k in first] == [False, True, True]
    assert digest(x, c + 1, w)["context"] != first["context"]
    assert digest(x, c, w.flip(0))["weights"] != first["weights"]
    assert digest(x, c, 2 * w)["weights"] == first["weights"]  # training does not change
    big = torch.randn(600_000, 2)
    assert digest(big) == digest(big.clone()) != digest(big[:-1])
    assert digest(Counted(300)) == digest(Counted(300)) != digest(Counted(299))
    assert digest(Stream(30)) == {}
    own = np.random.default_rng(0)
    random = Counted(30, lambda i: torch.tensor(own.normal(size=2)))
    assert digest(random) == digest(random)  # only its length can be told
    loader = DataLoader(Counted(30), batch_size=10, shuffle=True)
    other = DataLoader(Counted(30, lambda i: torch.zeros(2)), batch_size=10, shuffle=True)
    assert digest(loader) == digest(loader) != digest(other)
