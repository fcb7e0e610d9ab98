"""The command line and the demonstration, made small."""

import inspect
import os
import subprocess
import sys
import textwrap
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

import probgen as pg
from probgen.cli import demo
from probgen.cli import tables as files
from probgen.cli.main import OBJECTS, RECIPES, SHAPED, described, main, parser
from probgen.training.batches import split_rows
from probgen.training.state import Run


def test_the_demonstration_runs_small(tmp_path, capsys):
    settings = demo.Settings(
        20, 5, cases=2, warmup=2, draws=5, chains=2, chains_warmup=2, chains_draws=5
    )
    rows = demo.run(tmp_path, settings)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"prior", "posterior.png", "training.png"}
    assert [row.name for row in rows] == [
        "normal prior, exact",
        "flow prior, SVI",
        "flow prior, NUTS",
        "flow prior, ChEES",
    ]
    assert all(0 <= row.cover_50 <= row.cover_90 <= 1 for row in rows)
    assert "bits/dim" in capsys.readouterr().out


def test_the_demonstration_gets_its_options(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(demo, "run", lambda folder, seed: seen.update(folder=folder, seed=seed))
    assert main(["demo", "--out", str(tmp_path), "--seed", "3"]) == 0
    assert seen == {"folder": str(tmp_path), "seed": 3}


@pytest.fixture
def table(tmp_path):
    """A CSV file of three columns on scales of their own."""
    torch.manual_seed(0)
    c = torch.randn(200, 1)
    x = torch.cat([1e4 + 1e3 * (c + 0.3 * torch.randn(200, 1)), 0.01 * torch.randn(200, 1), c], 1)
    file = tmp_path / "data.csv"
    files.write(file, x, ["height", "weight", "age"])
    return file


def fit(table, *options, model="maf"):
    small = ["--hidden-features", "8", "--steps", "30"]
    if model.endswith(("f", "flow", "nvp")):
        small += ["--transforms", "1"]
    out = str(table.parent / "run")
    return main(["fit", model, str(table), "--out", out, *small, *options]), out


def test_fit_sample_and_score_in_the_units_of_the_data(table, capsys):
    code, run = fit(table, "--columns", "height,weight", "--lr", "0.01", "--no-randperm")
    assert code == 0
    assert "maf of height, weight from 200 rows" in capsys.readouterr().out
    draws, scores = table.parent / "draws.csv", table.parent / "scores.npy"
    assert main(["sample", run, "--count", "500", "--out", str(draws)]) == 0
    drawn = files.read(draws)
    assert drawn.names == ("height", "weight")
    assert abs(float(drawn.values[:, 0].mean()) - 1e4) < 500
    assert main(["score", run, str(table), "--out", str(scores)]) == 0
    assert "bits per dimension, 200 rows" in capsys.readouterr().out
    data = files.read(table)
    expected = pg.load(run)().log_prob(data.select(["height", "weight"]))
    torch.testing.assert_close(torch.from_numpy(np.load(scores)), expected.detach())


def test_a_context_from_the_command_line(table):
    code, run = fit(table, "--context", "age", "--columns", "height", model="nsf")
    assert code == 0
    out = table.parent / "draws.npy"
    assert main(["sample", run, "--count", "5", "--context", "0.5", "--out", str(out)]) == 0
    assert np.load(out).shape == (5, 1)
    assert main(["score", run, str(table), "--out", str(table.parent / "s.csv")]) == 0


def test_resuming(table, capsys):
    assert fit(table, "--resume")[0] == 2
    assert "none" in capsys.readouterr().err
    assert fit(table)[0] == 0
    assert fit(table)[0] == 2
    assert "--resume" in capsys.readouterr().err
    assert fit(table, "--resume", "--steps", "40")[0] == 0
    run = table.parent / "run"
    kept = (run / "columns.json").read_text()
    for options, words in (
        (["--columns", "age,weight,height"], "--columns"),
        (["--columns", "height,weight", "--context", "age"], "--columns"),
    ):
        assert fit(table, "--resume", *options)[0] == 2
        assert f"Expected the run's {words}" in capsys.readouterr().err
    assert fit(table, "--resume", model="nsf")[0] == 2
    assert "`class` 'MAF', got 'NSF'" in capsys.readouterr().err
    assert (run / "columns.json").read_text() == kept


def test_a_first_fit_that_fails_leaves_no_record(table):
    assert fit(table, "--lr", "nan")[0] == 2
    assert not (table.parent / "run" / "columns.json").exists()


def test_every_option_takes_a_value(capsys):
    for name, recipe in RECIPES.items():
        for parameter in inspect.signature(recipe.__init__).parameters.values():
            if parameter.name in ("self", *SHAPED, *OBJECTS):
                continue
            flag = [f"--{parameter.name.replace('_', '-')}"]
            if not isinstance(parameter.default, bool):
                flag += ["relu" if parameter.name == "activation" else "2"]
            given = parser().parse_args(["fit", name, "data.csv", "--out", "run", *flag])
            assert getattr(given, parameter.name) not in (None, False)


def test_an_interrupt_says_what_is_true(table, monkeypatch, capsys):
    run = table.parent / "run"

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("probgen.training.fitting.begin", interrupted)  # before anything is saved
        assert fit(table)[0] == 130
    error = capsys.readouterr().err
    assert f"Nothing was saved in {run}" in error
    assert "resume" not in error
    assert not (run / "columns.json").exists()
    assert fit(table, "--resume")[0] == 2
    assert "start without --resume" in capsys.readouterr().err

    def at_seven(self, *arguments, advance=Run.advance):
        if self.step == 7:
            raise KeyboardInterrupt
        return advance(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "advance", at_seven)
        assert fit(table)[0] == 130
    assert f"The run in {run} can be resumed with --resume" in capsys.readouterr().err
    assert fit(table, "--resume")[0] == 0


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_options_are_those_of_the_recipe(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    parameters = set(inspect.signature(RECIPES[name].__init__).parameters)
    for parameter in parameters - {"self", *SHAPED, *OBJECTS}:
        assert f"--{parameter.replace('_', '-')}" in text
    assert f"example: probgen fit {name}" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n1,2\n3,x\n", "row 3, column b of"),
        ("1,2\n3\n", "2 cells in row 2"),
        ("1,2\n3,nan\n", "finite numbers"),
        ("a,b\n", "found none"),
        ("a,a\n1,2\n3,5\n", "different names of columns"),
        (",b\n1.5,2\n3,5\n", "different names of columns"),
        ("a,\n1,2\n3,5\n", "different names of columns"),
        ("a,b\n1,\n3,5\n", "row 2, column b"),
        ("a,b\n1,NA\n3,5\n", "got 'NA'"),
        ("a,b\n1,x\n3,5\n", "Choose columns of numbers with --columns"),
        ("a;b\n1;2\n3;5\n", "Expected commas between the cells"),
        ("a\n10000000.001\n10000000.002\n", "float32 can tell apart"),
        ("", "found none"),
    ],
)
def test_bad_tables_are_one_line(content, words, tmp_path, capsys):
    file = tmp_path / "data.csv"
    file.write_text(content)
    assert fit(file)[0] == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_mistakes_are_one_line(table, tmp_path, capsys):
    np.save(tmp_path / "words.npy", np.array(["a"]))
    np.savez(tmp_path / "two.npz", a=np.ones(3), b=np.ones(3))
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    (tmp_path / "text.txt").write_text("1")
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    run = fit(table)[1]
    capsys.readouterr()
    out = str(tmp_path / "o.npy")
    for arguments, words in (
        (["score", run, "nowhere.csv", "--out", out], "found none at nowhere.csv"),
        (["score", run, str(tmp_path / "words.npy"), "--out", out], "Expected numbers"),
        (["score", run, str(tmp_path / "two.npz"), "--out", out], "one named data"),
        (["score", run, str(tmp_path / "objects.npy"), "--out", out], "arrays of numbers"),
        (["score", run, str(tmp_path / "broken.npy"), "--out", out], "arrays of numbers"),
        (["score", run, str(tmp_path / "text.txt"), "--out", out], ".npy, .npz or .csv"),
        (["score", run, str(table), "--out", str(tmp_path / "o.txt")], "to write"),
        (["score", run, str(table), "--out", "/nowhere/o.npy"], "No such file"),
        (["score", "nowhere", str(table), "--out", out], "no model.json"),
        (["sample", run, "--count", "0", "--out", out], "--count"),
        (["sample", run, "--context", "1", "--out", out], "no context"),
        (["sample", run, "--context", "one", "--out", out], "--context as numbers"),
        (["sample", run, "--count", "100000000000000", "--out", out], "memory"),
        (["fit", "maf", str(table), "--columns", "size", "--out", out], "height, weight, age"),
        (
            ["fit", "maf", str(table), "--columns", "age", "--context", "age", "--out", out],
            "without a column in common, got age",
        ),
        (
            ["fit", "maf", str(table), "--context", "age,height,weight", "--out", out],
            "a column to learn besides --context",
        ),
        (["fit", "maf", str(table), "--columns", "age,age", "--out", out], "got age twice"),
        (["fit", "nsf", str(table), "--bins", "-3", "--out", out], "`bins`"),
        (["fit", "maf", str(table), "--hidden-features", "99999999999", "--out", out], "99999"),
    ):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
        assert "Traceback" not in error


def test_arrays_are_read(tmp_path):
    np.savez(tmp_path / "one.npz", anything=np.arange(6).reshape(3, 2))
    np.save(tmp_path / "flat.npy", np.arange(3))
    assert files.read(tmp_path / "one.npz").names == ("0", "1")
    assert files.read(tmp_path / "flat.npy").values.shape == (3, 1)


def test_help_and_mistakes(capsys):
    for arguments, code in (
        (["--help"], 0),
        (["demo", "--help"], 0),
        (["nothing"], 2),
        ([], 2),
        (["fit", "unknown", "data.csv"], 2),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == code
    assert "example: probgen demo" in capsys.readouterr().out


def test_sample_draws_a_picture(table, capsys):
    _, run = fit(table)
    out, picture = table.parent / "draws.npy", table.parent / "corner.png"
    assert main(["sample", run, "--out", str(out), "--picture", str(picture)]) == 0
    assert picture.stat().st_size > 5000
    assert f"a picture of height, weight, age in {picture}" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_says_what_each_option_means(recipe, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main(["fit", recipe, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    meaning, left = described(RECIPES[recipe]), (*SHAPED, *OBJECTS)
    assert stop.value.code == 0
    assert set(inspect.signature(RECIPES[recipe].__init__).parameters) - {"self"} == set(meaning)
    assert all(said in text for name, said in meaning.items() if name not in left)
    assert ":math:" not in text


def test_autoencoders_of_rows(table, capsys):
    code, run = fit(table, "--latent", "2", "--likelihood", "normal", model="vae")
    assert code == 0
    out = table.parent / "scores.npy"
    assert main(["score", run, str(table), "--out", str(out)]) == 0
    assert main(["sample", run, "--out", str(table.parent / "draws.npy")]) == 0
    assert fit(table, "--context", "age", model="vae")[0] == 2
    assert "no --context, since vae takes none" in capsys.readouterr().err


def test_an_option_without_a_default_is_a_number(table):
    assert fit(table, "--width", "2", model="sylvesterflow")[0] == 0


NUMBERS = np.random.default_rng(0).normal(size=(60, 3))
FRAME = pd.DataFrame(NUMBERS)


@pytest.mark.parametrize(
    ("name", "text", "names", "notes"),
    [
        ("no index", FRAME.to_csv(index=False), ("0", "1", "2"), ["taken for a header"]),
        ("index", FRAME.to_csv(), ("0", "1", "2"), ["for the index"]),
        ("text index", FRAME.rename("row {}".format).to_csv(), ("0", "1", "2"), ["for the index"]),
        ("some rows", FRAME.iloc[::2].to_csv(), ("0", "1", "2"), ["for the index"]),
        ("written twice", FRAME.rename_axis("Unnamed: 0").to_csv(), ("0", "1", "2"), ["index"]),
        ("one column", FRAME[[0]].to_csv(index=False), ("0",), ["taken for a header"]),
        ("one of levels", "0\n1\n0\n2\n", ("0",), []),
        ("no header", FRAME.to_csv(index=False, header=False), ("0", "1", "2"), []),
        ("names", FRAME.to_csv(index=False, header=["a", "b", "c"]), ("a", "b", "c"), []),
        ("marked", "\ufeff" + FRAME.to_csv(index=False, header=list("abc")), tuple("abc"), []),
    ],
)
def test_what_pandas_writes_is_read(name, text, names, notes, tmp_path, capsys):
    file = tmp_path / "data.csv"
    file.write_text(text, encoding="utf-8")
    table = files.read(file)
    assert table.names == names
    assert len(table.notes) == len(notes)
    assert all(words in note for words, note in zip(notes, table.notes))
    if name != "one of levels":
        rows = NUMBERS[::2] if name == "some rows" else NUMBERS
        expected = torch.as_tensor(rows[:, : len(names)], dtype=torch.float32)
        torch.testing.assert_close(table.values, expected)
        out = ["--out", str(tmp_path / "run"), "--steps", "2", "--transforms", "1"]
        assert main(["fit", "maf", str(file), *out]) == 0
        said = capsys.readouterr().out
        assert all(note in said for note in table.notes)


def test_columns_beside_text_and_booleans(table, tmp_path, capsys):
    frame = pd.read_csv(table)
    frame["name"], frame["member"] = "someone", frame["age"] > 0
    file = tmp_path / "mixed.csv"
    frame.to_csv(file, index=False)
    out = ["--out", str(tmp_path / "run"), "--steps", "2", "--transforms", "1"]
    assert main(["fit", "maf", str(file), *out]) == 2
    assert "column name of" in capsys.readouterr().err
    chosen = ["--columns", "height,member", "--context", "age"]
    assert main(["fit", "maf", str(file), *out, *chosen]) == 0
    streams = capsys.readouterr()
    assert "probgen: Column 'member' of the data holds levels, 2 in the first" in streams.err
    assert "maf of height, member from 200 rows" in streams.out
    expected = torch.as_tensor(frame["member"].to_numpy(dtype=np.float32))
    torch.testing.assert_close(files.read(file).select(["member"])[:, 0], expected)


def test_the_score_of_a_fit_with_validation_is_that_of_the_rows_held_out(table, capsys):
    code, run = fit(table, "--validation", "0.2", "--seed", "3")
    assert code == 0
    said = capsys.readouterr().out
    held = split_rows(200, 0.2, 3)[0]
    x = files.read(table).values[held]
    score = float(pg.load(run)().log_prob(x).mean().detach())
    assert f"of the rows held out: mean log density {score:.4f}" in said
    assert said.strip().endswith("40 rows")


def damaged(folder, number):
    """A damaged file, decided by its number."""
    rng = np.random.default_rng(number)
    kind = ("npy", "npz", "csv")[number % 3]
    good, file = folder / f"good.{kind}", folder / f"{number}.{kind}"
    if not good.exists():
        np.save(folder / "good.npy", NUMBERS)
        np.savez_compressed(folder / "good.npz", data=NUMBERS)
        FRAME.to_csv(folder / "good.csv")
    raw = bytearray(good.read_bytes())
    way = number // 3 % 5
    if way == 0:
        raw = raw[: rng.integers(0, len(raw))]
    elif way == 1:
        for place in rng.integers(0, len(raw), rng.integers(1, 20)):
            raw[place] = rng.integers(256)
    elif way == 2:
        raw = bytearray(rng.bytes(rng.integers(0, 3000)))
    elif way == 3:
        for place in rng.integers(0, min(len(raw), 120), 4):
            raw[place] = rng.integers(256)
    else:
        cut = sorted(rng.integers(0, len(raw), 2))
        raw = raw[: cut[0]] + raw[cut[1] :]
    file.write_bytes(raw)
    return file


def test_damaged_files_are_one_line(table, tmp_path, capsys):
    run = fit(table)[1]  # of columns that none of these files has, so those that can be read fail
    capsys.readouterr()
    for number in range(150):
        file = damaged(tmp_path, number)
        began = time.monotonic()
        code = main(["score", run, str(file), "--out", str(tmp_path / "o.npy")])
        assert time.monotonic() - began < 2, file
        error = capsys.readouterr().err
        assert code == 2, file
        assert error.count("\n") == 1, file
        assert error.startswith("probgen: "), error
        assert "Expected" in error or "in float32" in error, error


class Runs:
    """An object that would run something when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_files_that_claim_too_much_or_hold_other_things(table, tmp_path, capsys):
    ran = tmp_path / "ran"
    np.save(tmp_path / "objects.npy", np.array([Runs(ran)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", data=np.array([Runs(ran)], dtype=object))
    (tmp_path / "pickle.npy").write_bytes(__import__("pickle").dumps(Runs(ran)))
    whole = (tmp_path / "huge.npy", tmp_path / "huge.npz")
    head = {"descr": "<f8", "fortran_order": False, "shape": (500_000_000_000, 1)}
    with open(whole[0], "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, head)
        stream.write(bytes(80))
    with zipfile.ZipFile(whole[1], "w") as archive:
        archive.write(whole[0], "data.npy")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("data", "not an array")
    np.savez(tmp_path / "crc.npz", data=NUMBERS)
    raw = bytearray((tmp_path / "crc.npz").read_bytes())
    raw[400] ^= 255
    (tmp_path / "crc.npz").write_bytes(raw)
    (tmp_path / "cut.npz").write_bytes(raw[:500])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "magic.npy").write_bytes(b"\x93NUMPX" + bytes(100))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "rubbish.csv").write_bytes(np.random.default_rng(0).bytes(5000))
    np.save(tmp_path / "none.npy", np.zeros((0, 3)))
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    np.save(tmp_path / "complex.npy", np.zeros((2, 2), complex))
    skipped = {"data.csv", "ran"}
    for file in sorted(tmp_path.iterdir()):
        if file.name in skipped or file.suffix not in (".npy", ".npz", ".csv"):
            continue
        began = time.monotonic()
        assert main(["fit", "maf", str(file), "--out", str(tmp_path / "run")]) == 2, file
        assert time.monotonic() - began < 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "Expected" in error
        assert "Traceback" not in error
    assert not ran.exists()


KILLS = """
    import contextlib, io, os, pathlib, random, shutil, signal, sys, time
    import torch, probgen as pg
    from probgen.cli.main import main
    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports much, once for all children
    folder, data, count = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    small = ["--steps", "250", "--transforms", "1", "--hidden-features", "8", "--validation", "0.2"]

    def start(run, *options):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(run.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            os.dup2(2, 1)
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                code = main(["fit", "maf", data, "--out", str(run), *small, *options])
            except BaseException as error:
                print("escaped", repr(error))
            finally:
                sys.stdout.flush()
                os._exit(code)
        return child

    def end(child):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def said(run):
        return run.with_suffix(".err").read_text()

    whole = folder / "whole"
    began = time.monotonic()
    assert end(start(whole)) == 0, said(whole)
    length = time.monotonic() - began
    state = pg.load(whole).state_dict()
    draw = random.Random(0)
    fresh = resumed = 0
    for number in range(count):
        run, sign = folder / f"run {number}", (signal.SIGKILL, signal.SIGINT)[number % 2]
        child = start(run)
        time.sleep(draw.uniform(0.02, length))
        os.kill(child, sign)
        code = end(child)
        told = said(run)
        assert "escaped" not in told and "Traceback" not in told, told
        saved = (run / "training" / "model.json").exists()
        if sign == signal.SIGINT and code != 0:
            assert code == 130, (code, told)
            assert ("can be resumed" in told) == saved, told
        code = end(start(run, "--resume"))
        told = said(run)
        if saved:
            resumed += 1
        else:
            fresh += 1
            assert code == 2 and "Nothing was saved" in told, told
            code = end(start(run))
        assert code == 0, said(run)
        for name, value in pg.load(run).state_dict().items():
            assert torch.equal(value, state[name]), name
        shutil.rmtree(run)
    print(fresh, "began anew,", resumed, "went on")
"""


def test_runs_that_are_killed_go_on_to_the_same_bits(table, tmp_path):
    count = os.environ.get("PROBGEN_KILLS", "4")
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLS)]
    done = subprocess.run(
        [*command, str(tmp_path), str(table), count],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
