"""Runs of chains that are interrupted, killed or given other data: resumed, or refused."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pyro
import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen import mcmc
from probgen.core.folders import CheckpointWarning, read, write
from probgen.core.identity import outline
from probgen.mcmc import resume

KILLS = int(os.environ.get("PROBGEN_KILLS", "2"))


def located(y, scale=1.0):
    m = pyro.sample("m", dist.Normal(0.0, 10.0))
    s = pyro.sample("s", dist.Exponential(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(m, s * scale), obs=y)


def normal(x):
    return -(x / torch.tensor([1.0, 5.0])).square().sum(-1) / 2


def pair(position):
    return -(position["a"].square() + (position["b"] - position["a"]).square()).sum(-1) / 2


Y = torch.tensor([0.3, -1.2, 2.2, 0.9])
RUNS = {  # the model, its arguments, and the settings of a small run
    "chees": (located, (Y,), {"chains": 8, "warmup": 20}),
    "hmc, low rank": (
        located,
        (Y,),
        {"kernel": mcmc.HMC(0.1, 3), "chains": 8, "metric": "low_rank"},
    ),
    "superchains": (located, (Y,), {"chains": 8, "superchains": 4, "metric": "diagonal"}),
    "mala": (normal, (), {"kernel": mcmc.MALA(), "init": torch.randn(8, 2), "warmup": 20}),
    "metropolis": (normal, (), {"kernel": mcmc.Metropolis(), "init": torch.randn(8, 2), "thin": 3}),
    "sgld": (normal, (), {"kernel": mcmc.SGLD(0.1), "init": torch.randn(8, 2)}),
    "slice": (located, (Y,), {"kernel": mcmc.EllipticalSlice(), "chains": 8}),
    "tempering": (normal, (), {"kernel": mcmc.ParallelTempering(), "init": torch.randn(8, 2)}),
    "gibbs": (
        pair,
        (),
        {
            "kernel": mcmc.Gibbs({"a": mcmc.Metropolis(1.0), "b": mcmc.MALA(0.5)}),
            "init": {"a": torch.zeros(6, 1), "b": torch.zeros(6, 1)},
        },
    ),
}


def go(name, checkpoint=None, draws=10, **changed):
    model, args, options = RUNS[name]
    settings = {"warmup": 20, "seed": 5, "progress": False, **options, **changed}
    return mcmc.run(model, *args, draws=draws, checkpoint=checkpoint, **settings)


def same(a, b):
    assert a.samples.keys() == b.samples.keys()
    for name, x in a.samples.items():
        assert torch.equal(x, b.samples[name])
    for name, x in a.stats.items():
        assert torch.equal(x, b.stats[name])
    assert (a.latent, a.moved, a.standardized, a.remarks) == (
        b.latent,
        b.moved,
        b.standardized,
        b.remarks,
    )


class Interrupt:
    """Raises KeyboardInterrupt at one of the lines that this package runs, and counts them."""

    def __init__(self, at):
        self.at, self.count = at, 0

    def call(self, frame, event, argument):
        return self.line if os.sep + "probgen" + os.sep in frame.f_code.co_filename else None

    def line(self, frame, event, argument):
        self.count += event == "line"
        if self.count == self.at:
            self.count += 1
            raise KeyboardInterrupt
        return self.line

    def __enter__(self):
        sys.settrace(self.call)
        return self

    def __exit__(self, *error):
        sys.settrace(None)


@pytest.mark.parametrize("name", RUNS)
def test_an_interrupt_anywhere_loses_nothing(name, tmp_path, monkeypatch):
    whole = go(name)
    monkeypatch.setattr(resume, "PAUSE", 0.0)
    monkeypatch.setattr(resume, "SHARE", 0)
    with Interrupt(-1) as counted:
        same(whole, go(name, tmp_path / "whole"))
    chosen = random.Random(0)
    for k in range(max(2, KILLS // 10)):
        folder = tmp_path / str(k)
        for _ in range(2):
            with Interrupt(chosen.randrange(1, counted.count)):
                with contextlib.suppress(KeyboardInterrupt):  # it may be over before
                    go(name, folder)
        same(whole, go(name, folder))
    same(whole, go(name, tmp_path / "whole"))
    same(go(name, draws=15), go(name, tmp_path / "whole", draws=15))


def test_warm_up_goes_on_where_it_was(tmp_path, monkeypatch):
    steps, step = [], mcmc.ChEES.step

    def interrupted(self, state, log_density):
        steps.append(self)
        if len(steps) == cut:
            raise KeyboardInterrupt
        return step(self, state, log_density)

    monkeypatch.setattr(mcmc.ChEES, "step", interrupted)
    cut = 0
    whole = go("chees", warmup=200)
    total, steps[:], cut = len(steps), [], len(steps) - 10 - 50
    with pytest.raises(KeyboardInterrupt):
        go("chees", tmp_path, warmup=200)
    steps[:], cut = [], 0
    same(whole, go("chees", tmp_path, warmup=200))
    assert len(steps) < 80 < total


SCRIPT = """
    import os, sys, torch
    sys.path.insert(0, {root!r})
    from tests.test_mcmc_resume import go
    from probgen.mcmc import resume
    torch.set_num_threads(1)
    resume.PAUSE, resume.SHARE = 0.0, 0
    print("ready", flush=True)
    go("chees", {folder!r}, draws=400, warmup=200)
    print("done", flush=True)
"""


def test_a_killed_run_loses_nothing(tmp_path):
    whole, chosen = go("chees", draws=400, warmup=200), random.Random(1)
    folder, root = tmp_path / "run", os.path.dirname(os.path.dirname(__file__))
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(root=root, folder=str(folder)))
    furthest = kills = 0
    while kills < KILLS:
        process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(chosen.uniform(0.0, 3.0 if KILLS < 10 else 1.5))
        process.send_signal(signal.SIGKILL)
        over = b"done" in process.stdout.read()
        process.wait()
        process.stdout.close()
        kills += 1
        if (folder / "chains-0" / "model.json").exists():
            point = read(folder / "chains-0")[1]["point"]
            assert point["taken"] + point["done"] >= furthest  # nothing is lost on the way
            furthest = point["taken"] + point["done"]
        if over:
            same(whole, go("chees", folder, draws=400, warmup=200))
            folder, furthest = tmp_path / f"run {kills}", 0
            script.write_text(textwrap.dedent(SCRIPT).format(root=root, folder=str(folder)))
    same(whole, go("chees", folder, draws=400, warmup=200))


def closed(value):
    def model(y):
        pyro.sample("y", dist.Normal(pyro.sample("m", dist.Normal(0.0, value)), 1.0), obs=y)

    return model


flow = pg.models.MAF(1, transforms=1)


def prior(module):
    def model(y):
        x = pyro.sample("x", module())
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    return model


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": Y + 1e-6}, r"argument y float32 \(4,\) \[\w+\], not float32 \(4,\) \[\w+\]"),
        ({"y": Y.double()}, "argument y"),
        ({"y": Y[:3]}, "argument y"),
        ({"scale": 2.0}, "argument scale nothing, not 2.0"),
        ({"kernel": mcmc.HMC(0.1, 7)}, "kernel.steps 5, not 7"),
        ({"kernel": mcmc.HMC(0.2, 5)}, "kernel.step_size 0.1, not 0.2"),
        ({"kernel": mcmc.HMC(0.1, 5, torch.ones(2))}, "kernel.scale None, not tensor"),
        ({"kernel": mcmc.MALA()}, "kernel HMC, not MALA"),
        ({"metric": "diagonal"}, "metric 'auto', not 'diagonal'"),
        ({"init": "prior"}, "init 'uniform', not 'prior'"),
        ({"init": {"m": torch.zeros(8)}}, "init 'uniform', not dict"),
        ({"chains": 16}, "chains 8, not 16"),
        ({"warmup": 11}, "warmup 10, not 11"),
        ({"warmup": None}, "warmup 10, not None"),
        ({"thin": 2}, "thin 1, not 2"),
        ({"seed": 4}, "seed '?3'?, not '?4'?"),
        ({"sites": ["m"]}, "sites None, not list"),
        ({"superchains": 4}, "superchains None, not 4"),
        ({"noncentered": True}, "noncentered None, not True"),
        ({"base": False}, "base None, not False"),
        ({"model": closed(10.0)}, "model located .*, not closed"),
        ({"thin": 2, "warmup": 11}, "warmup 10, not 11; thin 1, not 2"),
    ],
)
def test_what_differs_is_named(changed, message, tmp_path):
    options = {"model": located, "y": Y, "kernel": mcmc.HMC(0.1, 5), "chains": 8, "draws": 5}
    options |= {"warmup": 10, "seed": 3, "checkpoint": tmp_path, "progress": False}
    mcmc.run(**options)
    with pytest.raises(ValueError, match=f"holds a run with {message}"):
        mcmc.run(**{**options, **changed})
    mcmc.run(**{**options, "draws": 6, "seed": None, "max_rhat": 2.0})
    with pytest.raises(ValueError, match=r"holds 6 draws\. Ask for as many or more, got 5"):
        mcmc.run(**options)


def test_what_a_model_refers_to_counts(tmp_path):
    options = {"chains": 4, "draws": 3, "warmup": 5, "seed": 0, "progress": False}
    for k, (a, b) in enumerate(
        [
            (closed(torch.tensor(1.0)), closed(torch.tensor(1.00001))),
            (closed(1.0), closed(2.0)),
            (prior(flow), prior(pg.models.MAF(1, transforms=1))),
            (lambda y: located(Y), lambda y: located(Y + 1)),
        ]
    ):
        folder = tmp_path / str(k)
        mcmc.run(a, torch.zeros(1), checkpoint=folder, **options)
        with pytest.raises(ValueError, match=r"holds a run with (model|log density at a fixed)"):
            mcmc.run(b, torch.zeros(1), checkpoint=folder, **options)
        mcmc.run(a, y=torch.zeros(1), checkpoint=folder, **options)
    factor, options = 1.0, {"init": torch.ones(4, 2), "draws": 3, "progress": False}

    def log_density(x):  # of which a number has no digest
        return normal(x) * factor

    mcmc.run(log_density, checkpoint=tmp_path / "density", **options)
    factor = 2.0
    with pytest.raises(ValueError, match=r"log density at a fixed point -0.5\d+, not -1.0"):
        mcmc.run(log_density, checkpoint=tmp_path / "density", **options)


def test_digests_tell_values_apart_and_nothing_else():
    import functools

    import numpy as np

    class Data:
        def __init__(self, x):
            self.x, self.own = x, self  # which holds itself

    values = [0, 0.0, None, True, "a", "a" * 100, "a" * 99 + "b", b"a", [1, 2], (1, 2.0), {1: 2}]
    values += [torch.zeros(9), torch.zeros(3, 3), torch.zeros(9).double(), torch.eye(3).to_sparse()]
    values += [np.zeros(9), np.ones(9), np.array([None, "a"] * 5), Data(torch.zeros(9)), Data(1)]
    values += [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), functools.partial(located, 1)]
    values += [functools.partial(located, 2), located, normal, torch.zeros(9, device="meta"), Data]
    values += [torch.zeros(0), torch.zeros(20, dtype=torch.bfloat16), {"a"}, range(3), len]
    found = [outline(value) for value in values]
    assert found == [outline(value) for value in values]
    assert len(set(found)) == len(values)
    assert all(len(text) < 200 for text in found)
    counter = 0

    def counting(x):
        nonlocal counter
        counter += 1
        return normal(x)

    before = outline(counting)
    counting(torch.zeros(1, 2))
    assert outline(counting) == before


def test_a_folder_that_cannot_be_written_is_said_before_the_first_step(tmp_path, monkeypatch):
    calls = []

    def log_density(x):
        calls.append(1)
        return normal(x)

    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(OSError, match="file"):
            mcmc.run(log_density, init=torch.zeros(4, 2), checkpoint=folder, draws=5)
    assert not calls


def test_two_runs_of_one_folder_are_refused(tmp_path):
    root = os.path.dirname(os.path.dirname(__file__))
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(root=root, folder=str(tmp_path)))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        while not (tmp_path / "chains-0" / "model.json").exists():
            time.sleep(0.01)
        with pytest.raises(pg.CheckpointError, match="another process"):
            go("chees", tmp_path, draws=400, warmup=200)
        process.kill()


def test_draws_are_returned_if_they_cannot_be_written(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    whole = go("chees")
    monkeypatch.setattr(resume, "write", full)
    with pytest.warns(CheckpointWarning, match="No space left on device") as said:
        same(whole, go("chees", tmp_path))
    assert sum(w.category is CheckpointWarning for w in said) == 2  # at first and at the end
    monkeypatch.undo()
    same(whole, go("chees", tmp_path))


def damaged(folder, number):
    """Changes a folder at random."""
    chosen = random.Random(number)
    files = sorted(folder.iterdir())
    file = files[number % len(files)]
    blob = bytearray(file.read_bytes())
    kind = chosen.randrange(4)
    if kind == 0:
        file.unlink()
    elif kind == 1:
        file.write_bytes(blob[: chosen.randrange(len(blob))])
    elif kind == 2:
        blob[chosen.randrange(len(blob))] ^= 1 << chosen.randrange(8)
        file.write_bytes(blob)
    else:
        file.write_bytes(b"\x00" * len(blob))


@pytest.mark.parametrize("number", range(16))
def test_a_damaged_folder_is_one_error(number, tmp_path):
    draws = go("chees", tmp_path / "run")
    draws.save(tmp_path / "draws")
    damaged(tmp_path / "draws", number)
    with pytest.raises((pg.CheckpointError, FileNotFoundError)):
        mcmc.Draws.load(tmp_path / "draws")
    damaged(tmp_path / "run" / "chains-0", number)
    if (tmp_path / "run" / "chains-0" / "model.json").is_file():
        with pytest.raises(pg.CheckpointError):
            go("chees", tmp_path / "run")


WRONG = (None, 1, -1, "x", [], {}, [1], {"dict": 1}, {"class": "Draws"}, {"tensor": "none"}, 1e30)


def edited(folder, tensors, content):
    """Writes other contents, with a right checksum."""
    own = ("format", "schema", "weights", "sha256")
    write(folder, tensors, {k: v for k, v in content.items() if k not in own})


def test_draws_with_other_contents_are_one_error(tmp_path):
    go("chees").save(tmp_path)
    tensors, content = read(tmp_path)
    for key in ("latent", "moved", "superchains", "seconds", "sites", "remarks", "standardized"):
        for value in WRONG:
            edited(tmp_path, tensors, {**content, key: value})
            try:
                found = mcmc.Draws.load(tmp_path)
            except pg.CheckpointError:
                continue
            assert len(repr(found)) + len(str(found.summary())) < 2000
    for name in tensors:
        rest = {n: x for n, x in tensors.items() if n != name}
        for value in ({}, {name: torch.zeros(3)}, {name: torch.zeros(8, 9, 1)}):
            edited(tmp_path, {**rest, **value}, content)
            with pytest.raises(pg.CheckpointError):
                mcmc.Draws.load(tmp_path)


def test_runs_with_other_contents_are_one_error(tmp_path):
    go("chees", tmp_path)
    folder = tmp_path / "chains-0"
    tensors, content = read(folder)
    point = content["point"]
    others = [
        {key: value}
        for key in ("settings", "seed", "steps", "standardized", "modes", "density", "point")
        for value in WRONG
        if (key, value) != ("modes", None)
    ]
    others += [
        {"point": {**point, key: value}}
        for key in ("state", "kernel", "taken", "done")
        for value in WRONG
    ]
    for other in others:
        edited(folder, tensors, {**content, **other})
        with contextlib.suppress(ValueError):  # some are what a run might have written
            go("chees", tmp_path)
    for name in tensors:
        edited(folder, {n: x for n, x in tensors.items() if n != name}, content)
        with pytest.raises(pg.CheckpointError):
            go("chees", tmp_path)
