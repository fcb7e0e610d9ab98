"""Checkpoints: what is kept, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import probgen as pg
from probgen.core.checkpoint import checksum
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
