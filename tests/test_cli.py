"""The command line and the demonstration, made small."""

import inspect

import numpy as np
import pytest
import torch

import probgen as pg
from probgen import demo, files
from probgen.cli import OBJECTS, RECIPES, SHAPED, described, main, parser


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


def test_an_interrupt_leaves_a_run_to_resume(table, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("probgen.cli.fit", interrupted)
    assert fit(table)[0] == 130
    assert "--resume" in capsys.readouterr().err


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
        (",b\n1,2\n3,5\n", "different names of columns"),
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
