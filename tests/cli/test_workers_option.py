"""`--workers`: what is no number and no cluster, and what is not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from regcache_deploy.cli.main import main

COMMANDS = {
    "search": ["search"],
    "export": ["export"],
    "eval": ["eval", "x.regcache", "--data", "d"],
    "calibrate": ["calibrate", "plan", "--data", "d"],
    "embed": ["embed", "x.regcache", "--data", "d"],
}


def words(command: str, output: Path) -> list[str]:
    return COMMANDS[command] + ["--output", str(output)] * (command != "eval")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("word", ["0", "-1", "many", "http://host", "1.5"])
def test_other_words_are_refused(command: str, word: str, tmp_path: Path, capsys: Any) -> None:
    assert main([*words(command, tmp_path), f"--workers={word}"]) == 2
    assert "ray://HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_without_ray_it_is_one_line(
    command: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*words(command, tmp_path / "run"), "--workers", "2", "-q"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.strip().splitlines()
    assert "needs ray" in line
    assert "scale" in line
    assert not (tmp_path / "run").exists()
