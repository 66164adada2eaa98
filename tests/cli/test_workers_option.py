"""`--workers`: what is no number and no cluster, and what is not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from regcache_deploy.cli.main import main


@pytest.mark.parametrize("word", ["0", "-1", "many", "http://host", "1.5"])
def test_other_words_are_refused(word: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["search", f"--workers={word}", "--output", str(tmp_path)]) == 2
    assert "ray://HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["search", "export"])
def test_without_ray_it_is_one_line(
    command: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([command, "--workers", "2", "-q", "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.strip().splitlines()
    assert "needs ray" in line
    assert "scale" in line
    assert not (tmp_path / "run").exists()
