"""The command line and the demonstration, made small."""

import pytest

from probgen import demo
from probgen.cli import main


def test_the_demonstration_runs_small(tmp_path, capsys):
    settings = demo.Settings(steps=20, guide_steps=5, cases=2, warmup=2, draws=5)
    rows = demo.run(tmp_path, settings)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"prior", "posterior.png", "training.png"}
    assert [row.name for row in rows] == [
        "normal prior, exact",
        "flow prior, SVI",
        "flow prior, NUTS",
    ]
    assert all(0 <= row.cover_50 <= row.cover_90 <= 1 for row in rows)
    assert "bits/dim" in capsys.readouterr().out


def test_the_command_line_hands_its_options_on(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(demo, "run", lambda folder, seed: seen.update(folder=folder, seed=seed))
    assert main(["demo", "--out", str(tmp_path), "--seed", "3"]) == 0
    assert seen == {"folder": str(tmp_path), "seed": 3}


def test_help_and_mistakes(capsys):
    for arguments, code in ((["--help"], 0), (["demo", "--help"], 0), (["nothing"], 2), ([], 2)):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == code
    assert "example: probgen demo" in capsys.readouterr().out
