"""`.ci/install.py`, by which `make` installs: pip's exit code, and its words where it fails."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "install.py"


@pytest.fixture
def script() -> ModuleType:
    if not SCRIPT.is_file():
        pytest.skip("a source distribution has no .ci")
    spec = importlib.util.spec_from_file_location("install_line", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_failure_shows_what_pip_said(script: ModuleType) -> None:
    out = io.StringIO()
    assert script.install(["--no-index", "no-such-package-here"], out) == 1
    assert "No matching distribution found for no-such-package-here" in out.getvalue()


def test_what_is_there_is_one_line(script: ModuleType) -> None:
    out = io.StringIO()
    assert script.install(["--no-index", "--dry-run", "pytest"], out) == 0
    assert out.getvalue().startswith("installed 0 packages in ")
    assert out.getvalue().count("\n") == 1


def test_a_terminal_gets_one_line_that_moves(script: ModuleType) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    assert script.install(["--no-index", "--dry-run", "pytest"], out, wait=0.05) == 0
    *moves, last = out.getvalue().split("\r\033[K")
    assert any("pip is starting" in move for move in moves)
    assert last.startswith("installed ")
    assert "\n" not in "".join(moves)
