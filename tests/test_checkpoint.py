"""Checkpoints: what is kept, and what is refused."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

import probgen as pg
from probgen.core.folders import checksum, claim, probe, read, write
from probgen.core.registry import MODULES

OLD = Path(__file__).parent / "checkpoints"
FOLDERS = sorted(file.parent for file in OLD.rglob("model.json"))


class Mine(pg.LazyTransform):
    """A transform of a user."""

    def __init__(self, inner, size=2.0, *, table=None):
        super().__init__()
        self.inner, self.table, self.size = inner, table, size

    def forward(self, context=None):
        return self.inner(context)


def edit(folder, **changes):
    """Changes the JSON of a checkpoint, with a right checksum."""
    file = Path(folder) / "model.json"
    head = json.loads(file.read_text())
    head.pop("checksum")
    head.update(changes)
    file.write_text(json.dumps({**head, "checksum": checksum(head)}))


@pytest.fixture
def saved(tmp_path):
    pg.models.MAF(2, transforms=1, hidden_features=(8,)).save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(OLD)))
def test_every_earlier_schema_loads(folder):
    module = pg.load(folder)
    expected = torch.load(folder / "expected.pt", weights_only=True)
    distribution = module(expected.get("context"))
    torch.manual_seed(0)
    with torch.no_grad():
        if "draw" in expected:
            torch.testing.assert_close(distribution.sample((5,)), expected["draw"])
        else:
            found = distribution.log_prob(expected["x"])
            torch.testing.assert_close(found, expected["log_prob"])


def test_a_shared_part_stays_shared(tmp_path):
    part = pg.transforms.Coupling(2)
    flow = pg.distributions.Flow([part, part.inv, part], pg.models.MAF(2))
    flow.save(tmp_path)
    again = pg.load(tmp_path)
    assert len(list(again.parameters())) == len(list(flow.parameters()))
    assert again.transforms[-1] is again.transforms[-3]


def test_a_users_class_and_arguments(tmp_path):
    table = {"numbers": (1, 2.5, float("inf"), None, True), "tensor": torch.arange(3)}
    inner = pg.transforms.Learned(pg.transforms.RationalQuadratic, 2, bins=4)
    pg.distributions.Flow([Mine(inner, table=table)], pg.models.MAF(2)).save(tmp_path)
    mine = pg.load(tmp_path).transforms[-1]
    assert isinstance(mine, Mine)
    assert mine.table["numbers"] == (1, 2.5, float("inf"), None, True)
    assert torch.equal(mine.table["tensor"], torch.arange(3))


def test_what_cannot_be_saved_is_named(tmp_path):
    class Kept(pg.LazyTransform):
        def __init__(self, function):
            super().__init__()

        def forward(self, context=None):
            return pg.transforms.Bounded()

    flow = pg.distributions.Flow([Kept(lambda x: x)], pg.models.MAF(2))
    with pytest.raises(TypeError, match=r"can be saved.*function in Flow > .*Kept"):
        flow.save(tmp_path)


def test_saving_again_leaves_two_files(saved):
    pg.models.MAF(3).save(saved)
    assert sorted(p.suffix for p in saved.iterdir()) == [".json", ".safetensors"]
    assert pg.load(saved)().event_shape == (3,)


def test_loading_to_a_device(saved):
    assert {p.device.type for p in pg.load(saved, device="meta").parameters()} == {"meta"}


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model\.json"):
        pg.load(tmp_path / "nowhere")


def test_what_is_no_checkpoint_is_said(saved):
    with pytest.raises(pg.CheckpointError, match="Expected the folder that save wrote, got a file"):
        pg.load(saved / "model.json")
    with pytest.raises(FileExistsError, match="folder to write, got a file"):
        pg.models.MAF(2).save(saved / "model.json")
    with pytest.raises(ValueError, match="`device` that is there, got 'gpu'"):
        pg.load(saved, device="gpu")
    run = saved / "run"
    pg.fit(pg.models.MAF(2), torch.randn(9, 2), steps=1, checkpoint=run, progress=False)
    with pytest.raises(pg.CheckpointError, match="load its parent folder"):
        pg.load(run / "training")


def test_sizes_may_be_whole_numbers_of_numpy(saved):
    flow = pg.models.NSF(np.int64(2), bins=np.int32(4), transforms=np.int64(1))
    flow.save(saved)
    x = torch.randn(5, 2)
    assert torch.equal(pg.load(saved)().log_prob(x), flow().log_prob(x))


def test_a_newer_schema(saved):
    edit(saved, schema=99)
    with pytest.raises(pg.CheckpointError, match=r"schema 99, newer.*pip install --upgrade"):
        pg.load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "x"}', '"'])
def test_a_broken_description(saved, text):
    (saved / "model.json").write_text(text)
    with pytest.raises(pg.CheckpointError, match="not a probgen checkpoint"):
        pg.load(saved)


def test_a_tampered_description(saved):
    file = saved / "model.json"
    file.write_text(file.read_text().replace('"MAF"', '"IAF"'))
    with pytest.raises(pg.CheckpointError, match="checksum"):
        pg.load(saved)


def test_truncated_and_missing_weights(saved):
    (weights,) = saved.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(pg.CheckpointError, match="cut short"):
        pg.load(saved)
    weights.unlink()
    with pytest.raises(pg.CheckpointError, match="missing"):
        pg.load(saved)


@pytest.mark.parametrize("name", ["Nothing", "os:system", "builtins:eval", "Recorded:x"])
def test_unknown_classes(saved, name):
    module = json.loads((saved / "model.json").read_text())["module"]
    edit(saved, module={**module, "class": name})
    with pytest.raises(pg.CheckpointError, match="Import the module"):
        pg.load(saved)


def test_wrong_arguments_and_shapes(saved):
    module = json.loads((saved / "model.json").read_text())["module"]
    edit(saved, module={**module, "kwargs": {"transforms": 1, "hidden_features": {"tuple": [9]}}})
    with pytest.raises(pg.CheckpointError, match=r"(?s)does not fit.*size mismatch"):
        pg.load(saved)
    edit(saved, module={**module, "kwargs": {"flavour": 1}})
    with pytest.raises(pg.CheckpointError, match="flavour"):
        pg.load(saved)


def test_every_class_is_registered_under_one_name():
    assert MODULES["MAF"] is pg.models.MAF
    assert MODULES[f"{__name__}:Mine"] is Mine


def nested(depth):
    value = 1
    for _ in range(depth):
        value = {"list": [value]}
    return value


MAF = {"class": "MAF", "args": [2], "kwargs": {}, "number": 0}
WRONG = {  # changes of the JSON, with a right checksum
    "no weights": {"weights": None},
    "weights of a number": {"weights": 3},
    "weights of a list": {"weights": ["a"]},
    "weights elsewhere": {"weights": "../../etc/passwd"},
    "no hash": {"sha256": 1},
    "no schema": {"schema": None},
    "an infinite schema": {"schema": float("inf")},
    "a schema of nan": {"schema": float("nan")},
    "a schema of zero": {"schema": 0},
    "no module": {"module": None},
    "a module of a list": {"module": [MAF]},
    "a module of a number": {"module": 7},
    "a module without arguments": {"module": {"class": "MAF"}},
    "no number": {"module": {k: v for k, v in MAF.items() if k != "number"}},
    "nested arguments": {"module": {**MAF, "args": [nested(200)]}},
    "many transforms": {"module": {**MAF, "kwargs": {"transforms": 10**9}}},
    "some more transforms": {"module": {**MAF, "kwargs": {"transforms": 10**6}}},
    "a float of transforms": {"module": {**MAF, "kwargs": {"transforms": 1e9}}},
    "many features": {"module": {**MAF, "args": [10**12]}},
    "wide layers": {"module": {**MAF, "kwargs": {"hidden_features": {"list": [10**6, 10**6]}}}},
    "a size beyond int64": {"module": {**MAF, "args": [10**40]}},
    "an edit of nothing": {"edits": [["nothing.more", 1]]},
    "an edit of a class": {"edits": [["__class__", 1]]},
    "an edit without a path": {"edits": [[1, 1]]},
    "edits of a number": {"edits": 7},
    "an edit of a part": {"edits": [["base", {"part": "nowhere"}]]},
    "an edit by another": {"edits": [["base", {"shared": 99}]]},
    "a layer": {"module": {"torch": "Linear", "kwargs": {"a": 1}, "children": [], "number": 0}},
    "no layer": {"module": {"torch": "Module", "kwargs": {}, "children": [], "number": 0}},
    "a distribution": {"module": {"object": "Normal", "arguments": {"dict": []}}},
    "a tensor": {"edits": [["base", {"tensor": "argument.7"}]]},
    "a dtype": {"edits": [["more", {"dtype": "load"}]]},
    "frozen parts": {"frozen": 3},
    "evaluating parts": {"evaluating": None},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_description_is_refused_at_once(saved, name):
    started = time.process_time()
    edit(saved, **WRONG[name])
    with pytest.raises(pg.CheckpointError):
        pg.load(saved)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("depth", [500, 5000, 100_000])
def test_deep_json_is_refused(saved, depth):
    for text in ("[" * depth, '{"schema": 1, "module": ' + "[" * depth + "]" * depth + "}"):
        (saved / "model.json").write_text(text)
        with pytest.raises(pg.CheckpointError):
            pg.load(saved)


def rewrite(folder, change):
    """Changes the state of a checkpoint, with right checksums."""
    tensors, head = read(folder)
    state = {n: v for n, v in tensors.items() if n.startswith("state.")}
    change(state)
    keep = {k: v for k, v in head.items() if k not in ("format", "schema", "weights", "sha256")}
    write(folder, state, keep)


def spoil(name):
    def change(state):
        first = next(n for n, v in state.items() if v.is_floating_point())
        if name in ("nan", "inf", "-inf"):
            state[first].view(-1)[0] = float(name)
        elif name == "missing":
            del state[first]
        elif name == "unknown":
            state["state.more"] = torch.zeros(1)
        elif name == "shape":
            state[first] = state[first][None]
        else:
            state[first] = state[first].to(getattr(torch, name))

    return change


SPOILT = ["nan", "inf", "-inf", "missing", "unknown", "shape", "float64", "float16", "int64"]


@pytest.mark.parametrize("name", [*SPOILT, "complex64"])
def test_a_state_that_does_not_fit_is_refused(saved, name):
    rewrite(saved, spoil(name))
    with pytest.raises(pg.CheckpointError, match="does not fit"):
        pg.load(saved)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_one_dtype_for_all_is_kept(tmp_path, dtype):
    model = pg.models.EnergyModel(2, 0, (8,)).to(dtype)
    model.save(tmp_path)
    again = pg.load(tmp_path)
    for (name, a), (other, b) in zip(model.state_dict().items(), again.state_dict().items()):
        assert (name, a.dtype) == (other, b.dtype)
        assert torch.equal(a, b)
    assert {b.dtype for b in again.buffers()} == {b.dtype for b in model.buffers()}


def test_a_buffer_that_is_built_infinite_may_be(tmp_path):
    bounds = pyro.distributions.Uniform(torch.zeros(2), torch.full((2,), torch.inf))
    fixed = pg.core.Fixed(pyro.distributions.Independent(bounds, 1))
    fixed.save(tmp_path)
    assert pg.load(tmp_path)().base_dist.high.isinf().all()


def test_what_no_file_should_be(saved):
    (weights,) = saved.glob("*.safetensors")
    blob = weights.read_bytes()
    weights.unlink()
    weights.mkdir()
    with pytest.raises(pg.CheckpointError, match="cannot be read"):
        pg.load(saved)
    weights.rmdir()
    damaged = (8).to_bytes(8, "little") + b"{}" + blob
    weights.write_bytes(damaged)
    edit(saved, sha256=hashlib.sha256(damaged).hexdigest())
    with pytest.raises(pg.CheckpointError, match="not a safetensors file"):
        pg.load(saved)


def leaves(value, path=()):
    """The paths of all values within JSON."""
    yield path
    items = list(enumerate(value)) if isinstance(value, list) else []
    for key, inner in value.items() if isinstance(value, dict) else items:
        yield from leaves(inner, (*path, key))


def damage(folder, random):
    """Damages a checkpoint in one of many ways, and says whether with right checksums."""
    (weights,) = folder.glob("*.safetensors")
    file = random.choice([folder / "model.json", weights])
    way = random.randrange(6)
    if way == 0:
        blob = bytearray(file.read_bytes())
        for _ in range(random.randint(1, 8)):
            blob[random.randrange(len(blob))] = random.randrange(256)
        file.write_bytes(bytes(blob))
    elif way == 1:
        file.write_bytes(file.read_bytes()[: random.randrange(file.stat().st_size)])
    elif way == 2:  # of the numbers, with right checksums
        blob = bytearray(weights.read_bytes())
        for _ in range(random.randint(1, 4)):
            blob[random.randrange(len(blob))] = random.randrange(256)
        weights.write_bytes(bytes(blob))
        edit(folder, sha256=hashlib.sha256(bytes(blob)).hexdigest())
    else:
        head = json.loads((folder / "model.json").read_text())
        path = random.choice([p for p in leaves(head) if p and p[0] != "checksum"])
        owner = head
        for key in path[:-1]:
            owner = owner[key]
        if way == 3 and isinstance(owner, dict):
            del owner[path[-1]]
        else:
            odd = [None, True, -1, 10**9, 1e9, float("nan"), "", "x", [], {}, [1], {"tuple": [1]}]
            owner[path[-1]] = random.choice([*odd, "VAE", {"list": [3]}, nested(60)])
        head.pop("checksum", None)
        (folder / "model.json").write_text(json.dumps({**head, "checksum": checksum(head)}))
    return way > 1


def test_damaged_folders_are_refused_or_equal(tmp_path):
    models = {
        "flow": pg.models.NSF(2, transforms=1, hidden_features=(4,), bins=2),
        "vae": pg.models.VAE(2, 2, (4,), "normal"),
    }
    models["vae"].prior, models["vae"].samples = models["flow"], 3
    loaded, slowest = 0, 0.0
    for k in range(500):
        name = ("flow", "vae")[k % 2]
        folder = tmp_path / name
        if k < 2:
            models[name].save(folder)
            (tmp_path / f"{name} kept").mkdir()
            for file in folder.iterdir():
                shutil.copy(file, tmp_path / f"{name} kept")
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / f"{name} kept", folder)
        hidden = damage(folder, random.Random(k))
        started = time.perf_counter()
        try:
            again = pg.load(folder)
        except pg.CheckpointError:
            continue
        finally:
            slowest = max(slowest, time.perf_counter() - started)
        loaded += 1
        assert type(again) is type(models[name])
        for (n, a), (m, b) in zip(models[name].state_dict().items(), again.state_dict().items()):
            assert n == m
            assert hidden or torch.equal(a, b)
            assert b.isfinite().all()
    assert slowest < 2
    assert loaded < 100


WRITER = """
import sys, torch, probgen as pg
model = pg.models.MAF(2, transforms=1, hidden_features=(8,))
print("ready", flush=True)
for k in range(int(sys.argv[2])):
    torch.nn.init.constant_(next(model.parameters()), float(k))
    model.save(sys.argv[1])
"""


@contextmanager
def started(code, *arguments):
    """Another process, once it is ready."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_a_reader_beside_two_writers_finds_a_pair(saved):
    reads = 0
    with started(WRITER, saved, 10) as first, started(WRITER, saved, 5) as second:
        while first.poll() is None or second.poll() is None:
            pg.load(saved)
            reads += 1
        assert (first.returncode, second.returncode) == (0, 0)
    assert reads > 3
    assert sorted(p.suffix for p in saved.iterdir()) == [".json", ".safetensors"]


CLAIMER = """
import sys, time
from probgen.core.folders import (claim)
with claim(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_is_dead(saved, monkeypatch):
    monkeypatch.setattr("probgen.core.folders.PATIENCE", 0.05)
    with started(CLAIMER, saved):
        model = pg.load(saved)  # a reader may
        with pytest.raises(pg.CheckpointError, match=f"alone in writing {saved}"):
            model.save(saved)
        with pytest.raises(pg.CheckpointError, match="a folder of its own"), claim(saved):
            pass
    with claim(saved), claim(saved):  # a process may write what it claims
        model.save(saved)
    with claim(saved):
        model.save(saved)
    assert sorted(p.suffix for p in saved.iterdir()) == [".json", ".safetensors"]


def test_a_folder_is_probed_before_there_is_anything_to_lose(tmp_path, monkeypatch):
    probe(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="Expected a folder"):
            probe(path)
    with pytest.raises(OSError, match="bytes are free"):
        probe(tmp_path, size=2**80)

    def refuses(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("probgen.core.folders.replace", refuses)
    with pytest.raises(PermissionError, match=r"Expected a folder that can be written.*denied"):
        probe(tmp_path)


def test_a_write_that_fails_leaves_the_old_pair(saved, monkeypatch):
    x = torch.randn(4, 2)
    before = pg.load(saved)().log_prob(x)

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("os.fsync", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
            with pytest.raises(OSError, match="No space"):
                pg.models.MAF(2).save(saved)
        assert torch.equal(pg.load(saved)().log_prob(x), before)
        assert sorted(p.suffix for p in saved.iterdir()) == [".json", ".safetensors"]


def test_states_of_older_schemas_are_migrated(tmp_path, monkeypatch):
    """Former names and flat shapes are found, and what there was not takes its default."""
    vae = pg.models.ConditionalVAE(2, 1, 2, (8,), "normal").double()
    vae.initialize(*(3 + torch.randn(50, n, dtype=torch.double) for n in (2, 1)))
    vae.save(tmp_path)
    expected = vae.state_dict()

    def age(state):
        for new, old in (
            ("standardizer.shift", "x_shift"),
            ("standardizer.scale", "x_scale"),
            ("context_standardizer.parts.0.shift", "context_shift"),
            ("context_standardizer.parts.0.scale", "context_scale"),
        ):
            state[f"state.{old}"] = state.pop(f"state.{new}")
        for name in ("standardizer.fitted", "initialized_flag"):
            del state[f"state.{name}"]

    rewrite(tmp_path, age)
    with pytest.raises(pg.CheckpointError):
        pg.load(tmp_path)
    edit(tmp_path, schema=2)
    again = pg.load(tmp_path)
    assert all(torch.equal(expected[n], v) for n, v in again.state_dict().items())
    assert again.initialized
    assert again.standardizer.active
    monkeypatch.setattr("probgen.core.checkpoint.FORMER_STATE", [])
    with pytest.raises(pg.CheckpointError, match="x_shift"):
        pg.load(tmp_path)
