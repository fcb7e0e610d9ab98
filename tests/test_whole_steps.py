"""A step is taken whole or not at all: interrupts at every line, kills, folders that fail."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import probgen as pg
from probgen.core import checkpoint
from probgen.training import fitting, loop, players
from probgen.training import state as runs

from .test_objectives import Critic, Wasserstein, normal, same, target

OPTIONS = {"steps": 12, "batch_size": 20, "progress": False, "seed": 0}
FILES = {module.__file__ for module in (fitting, loop, players, runs)}
WHOLE = {"advance", "begin", "keep", "move", "take", "differentiate", "validate", "back", "copy"}
STEP = 7  # in which lines are interrupted


def adam():
    torch.manual_seed(0)
    flow = pg.models.MAF(2, transforms=1, hidden_features=(4,))
    return flow, flow.objective, {"ema": 0.9, "validation": 0.2}


def momentum():
    module, objective, options = adam()
    sgd = lambda ps, lr: torch.optim.SGD(ps, lr, momentum=0.9)
    return module, objective, {**options, "optimizer": sgd, "clip": 1.0}


def several():
    torch.manual_seed(0)
    return normal(), Wasserstein(Critic(), 2), {"ema": 0.9, "validation": 0.2}


def codebook():
    torch.manual_seed(0)
    module = pg.models.VQVAE((1, 2, 1), codes=4, code_features=2, channels=(4,), ema=0.9)
    return module, module.objective, {}


def data(build):
    x = target(60)
    return x.sigmoid().reshape(60, 1, 2, 1).round() if build is codebook else x


class Stop(BaseException):
    """An error that a handler raises."""


def stop(number, frame):
    raise Stop


def interrupter(count, number):
    """Send a signal at a line of the step, and count the lines."""
    seen = [0]

    def local(frame, event, arg):
        if event == "line":
            run = frame.f_locals.get("run", frame.f_locals.get("self"))
            step = run.step if isinstance(run, runs.Run) else step_of[0]
            step_of[0] = step
            if step == STEP:
                seen[0] += 1
                if seen[0] == count:
                    sys.settrace(None)
                    signal.raise_signal(number)
        return local

    step_of = [0]

    def trace(frame, event, arg):
        code = frame.f_code
        return local if code.co_filename in FILES and code.co_name in WHOLE else None

    return trace


def state_of(module, objective):
    parts = [module, *([objective.critic] if isinstance(objective, Wasserstein) else [])]
    return [v.clone() for part in parts for v in part.state_dict().values()]


@pytest.mark.parametrize("build", [adam, momentum, several, codebook])
def test_an_interrupt_at_any_line_of_a_step_is_whole(build, tmp_path):
    """Resumed after it, a run has the bits and the history of one that nobody interrupted."""
    x = data(build)
    whole, objective, options = build()
    expected = pg.fit(whole, x, objective=objective, **options, **OPTIONS)
    final = state_of(whole, objective)
    stride = 1 if "PROBGEN_KILLS" in os.environ else 7
    old, line = sys.gettrace(), 1 - stride
    before = signal.signal(signal.SIGALRM, stop)
    while True:
        line += stride
        number = signal.SIGINT if line % 2 else signal.SIGALRM
        module, objective, options = build()
        options["checkpoint"] = tmp_path / str(line)
        sys.settrace(interrupter(line, number))
        try:
            pg.fit(module, x, objective=objective, **options, **OPTIONS)
        except (KeyboardInterrupt, Stop):
            pass
        else:
            break
        finally:
            sys.settrace(old)
        assert checkpoint.read(tmp_path / str(line) / "training")[1]["step"] in (STEP, STEP + 1)
        module, objective, options = build()
        options["checkpoint"] = tmp_path / str(line)
        history = pg.fit(module, x, objective=objective, **options, **OPTIONS)
        assert history == expected, f"line {line}"
        found = state_of(module, objective)
        assert all(map(torch.equal, found, final)), f"line {line}"
    signal.signal(signal.SIGALRM, before)
    assert line > 20  # lines of one step


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_an_interrupt_of_an_optimiser_waits_for_the_end_of_the_step(kind, tmp_path):
    x, calls = target(60), []

    class Interrupted(kind):
        def step(self, closure=None):
            calls.append(1)
            if len(calls) == STEP:
                signal.raise_signal(signal.SIGINT)
            super().step(closure)

    options = {**adam()[2], "optimizer": Interrupted}
    module = adam()[0]
    with pytest.raises(KeyboardInterrupt):
        pg.fit(module, x, checkpoint=tmp_path, **options, **OPTIONS)
    assert checkpoint.read(tmp_path / "training")[1]["step"] == STEP
    resumed, whole = adam()[0], adam()[0]
    history = pg.fit(resumed, x, checkpoint=tmp_path, **options, **OPTIONS)
    assert history == pg.fit(whole, x, **options, **OPTIONS)
    assert same(resumed, whole)


def test_an_optimiser_that_fails_leaves_what_was_written_before(tmp_path):
    calls = []

    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            calls.append(1)
            if len(calls) == 205:
                raise RuntimeError("no memory")

    x, options = target(60), {**adam()[2], **OPTIONS, "steps": 210, "optimizer": Failing}
    with pytest.raises(RuntimeError, match="no memory"):
        pg.fit(adam()[0], x, checkpoint=tmp_path, **options)
    assert checkpoint.read(tmp_path / "training")[1]["step"] in (100, 200)
    resumed, whole = adam()[0], adam()[0]
    history = pg.fit(resumed, x, checkpoint=tmp_path, **options)
    assert history == pg.fit(whole, x, **options)
    assert same(resumed, whole)


def test_a_buffer_that_seldom_moves_is_put_back(tmp_path):
    """A step undone leaves no trace in buffers that were replaced, or that had not moved before."""
    x = (torch.rand(40, 6, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    objective = pg.objectives.ContrastiveDivergence(persistent=True, chains=10)
    calls = []

    def rate(fraction):
        calls.append(fraction)
        if len(calls) == 1:
            raise KeyboardInterrupt  # after the chains came into being
        return 1.0

    rbm = pg.models.RBM(6, 3)
    with pytest.raises(KeyboardInterrupt):
        pg.fit(rbm, x, objective=objective, schedule=rate, checkpoint=tmp_path, **OPTIONS)
    assert len(rbm.chains) == 0


def test_a_signal_interrupts_as_well(tmp_path):
    x = target(60)
    whole, _, options = adam()
    expected = pg.fit(whole, x, **options, **OPTIONS)

    def rate(fraction):
        if fraction == 0.5 and not (tmp_path / "training").exists():
            signal.raise_signal(signal.SIGINT)
        return 1.0

    options.update(checkpoint=tmp_path, schedule=rate)
    for attempt in range(2):
        module, _, _ = adam()
        if attempt == 0:
            with pytest.raises(KeyboardInterrupt):
                pg.fit(module, x, **options, **OPTIONS)
    assert pg.fit(module, x, **options, **OPTIONS) == expected
    assert same(module, whole)


def test_killed_runs_go_on_to_the_same_bits(tmp_path):
    kills = os.environ.get("PROBGEN_KILLS", "4")
    script = Path(__file__).with_name("kills.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), kills],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= int(kills)


def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(tmp_path):
    calls, file = [], tmp_path / "file"
    file.write_text("")

    def objective(module, x, context):
        calls.append(1)
        return -module().log_prob(x)

    for folder in (file, file / "inside", "/proc/self/none"):
        with pytest.raises(OSError, match=r"Expected a folder"):
            pg.fit(adam()[0], target(60), objective=objective, checkpoint=folder, **OPTIONS)
    assert not calls
    assert list(tmp_path.iterdir()) == [file]


def test_a_last_write_that_fails_leaves_the_module_in_memory(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    whole, module = adam()[0], adam()[0]
    expected = pg.fit(whole, target(60), **OPTIONS)
    monkeypatch.setattr(runs, "write", full)
    with pytest.warns(pg.CheckpointWarning, match="No space left.*in memory"):
        history = pg.fit(module, target(60), checkpoint=tmp_path, **OPTIONS)
    assert history == expected
    assert same(module, whole)


def test_a_history_is_short():
    history = pg.fit(adam()[0], target(60), validation=0.2, **OPTIONS)
    assert len(repr(history)) < 100
    assert repr(history).startswith("History(12 steps, loss ")
    assert repr(pg.History()) == "History(0 steps)"
