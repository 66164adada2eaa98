"""`--config` for commands that require arguments: each may stand in the file or on the line."""

from __future__ import annotations

import json

import pytest

from regcache_deploy.cli import main as cli


def resolved(capsys, *words) -> dict:
    """What `--dry-run` makes of a command."""
    code = cli.main([*map(str, words), "--dry-run", "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def failure(capsys, *words) -> str:
    assert cli.main([*map(str, words), "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture
def config(tmp_path):
    def write(text: str):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_required_arguments_on_the_line(capsys, config):
    path = config("observer: mse\nimages: 9\n")
    found = resolved(capsys, "calibrate", "run", "--data", "demo", "--config", path)
    assert (found["plan"], found["data"], found["observer"]) == ("run", "demo", "mse")
    assert found["images"] == 9
    found = resolved(capsys, "eval", "b.regcache", "--data", "demo", "--config", config("limit: 8"))
    assert (found["bundle"], found["limit"]) == ("b.regcache", 8)


def test_required_arguments_in_the_file(capsys, config):
    found = resolved(capsys, "calibrate", "--config", config("plan: run\ndata: demo\n"))
    assert (found["plan"], found["data"]) == ("run", "demo")
    path = config("bundle: b.regcache\ndata: demo\non: fp32,simulated\n")
    found = resolved(capsys, "eval", "--config", path)
    assert (found["bundle"], found["data"]) == ("b.regcache", "demo")
    assert found["on"] == "fp32,simulated"


def test_the_line_wins(capsys, config):
    path = config("bundle: b.regcache\ndata: demo\non: fp32\n")
    words = ["eval", "c.regcache", "--data", "photos", "--on", "simulated", "--config", path]
    found = resolved(capsys, *words)
    assert (found["bundle"], found["data"], found["on"]) == ("c.regcache", "photos", "simulated")


@pytest.mark.parametrize(
    "words",
    [
        "eval b.regcache --data demo --transfer x y --on fp32,simulated --no-keep --limit 9",
        "eval b.regcache --images a.png --plan p --top 2",
        "calibrate run --data demo --images 7 --observer mse",
        "embed b.regcache --data d --output o --partition 1/3 --metadata jsonl --threads 2",
    ],
)
@pytest.mark.parametrize("form", ["yaml", "json"])
def test_what_a_dry_run_prints_is_a_file(capsys, config, monkeypatch, tmp_path, words, form):
    monkeypatch.chdir(tmp_path)
    words = words.split()
    wanted = resolved(capsys, *words)
    assert not {"config", "dry_run", "json", "verbosity"} & wanted.keys()
    assert cli.main([*words, "--dry-run", "--json"][: len(words) + 1 + (form == "json")]) == 0
    path = config(capsys.readouterr().out)
    assert resolved(capsys, words[0], "--config", path) == wanted


def test_what_stands_nowhere_is_missing(capsys, config):
    path = config("observer: mse\n")
    assert "are required: DIR, --data" in failure(capsys, "calibrate", "--config", path)
    assert "are required: --data" in failure(capsys, "calibrate", "run", "--config", path)
    assert "are required: DIR, --data" in failure(capsys, "calibrate")


def test_a_list_in_the_file_does_not_take_arguments_of_the_line(capsys, config):
    path = config("transfer: [x, y]\n")
    found = resolved(capsys, "eval", "b.regcache", "--data", "d", "--config", path)
    assert (found["bundle"], found["transfer"]) == ("b.regcache", ["x", "y"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plna: run", "unknown key 'plna'; did you mean plan?"),
        ("plan: [run]", "plan takes one value, not ['run']"),
        ("images: many", "run.yaml: argument --images: invalid int value: 'many'"),
        ("images: 2026-13-01", "not valid YAML: month must be in 1..12"),
        ("true: demo", "unknown key 'True'"),
        ("on: fp32", "unknown key 'on'"),
        ('output: "a\\0b"', "output holds a null byte: 'a\\x00b'"),
        ('plan: "a\\0b"', "plan holds a null byte"),
    ],
)
def test_mistakes(capsys, config, text, expected):
    assert expected in failure(capsys, "calibrate", "run", "--data", "x", "--config", config(text))
