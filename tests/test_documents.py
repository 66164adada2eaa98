"""Every command of the README and the tutorial is taken by its parser, and the tutorial runs.

A command that needs weights, a GPU, a compiler or an installation is named in `NOT_RUN`.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from regcache_deploy.cli.main import COMMANDS, main, parser_of

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^|\n\n)((?: {4}[^\n]+\n?)+)")

NOT_RUN = ("make ", ". .venv", "build/cpp/", "g++ ", "./classify", "pip install")
"""Beginnings of the tutorial's commands that need a compiler or an installation: `make test` runs
the C++ programs in tests/cpp, and tests/engines/test_clean_install.py installs."""

SMALLER = ["--recipe", "regcache", "--limit", "48", "--search-images", "64"]
SMALLER += ["--calibration-images", "16"]
SMALLER += ["--prefix-count", "7", "--delete-count", "0", "--range-delete-count", "8"]
SMALLER += ["--threads", "1", "--certificate-images", "8"]
"""Behind the tutorial's export, so that it takes seconds: a fixed choice, fewer images."""


def commands(page: Path) -> list[str]:
    """The commands in indented blocks, continued lines joined, comments gone."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    found = []
    for block in BLOCK.findall(text):
        joined = re.sub(r"\\\n\s*", " ", re.sub(r"\[--[^\]]*\]", "", block))
        found += [line.strip() for line in joined.splitlines()]
    return found


def words_of(line: str) -> list[str] | None:
    """Words of a `regcache` command behind whatever stands before it, or None."""
    words = shlex.split(line, comments=True)
    for index, word in enumerate(words):
        if index and words[index - 1] != "&&" and "=" not in words[index - 1]:
            continue  # an argument of another command
        name = word.rpartition("/")[2]
        if name == "regcache":
            return words[index + 1 :]
        if name in ("regcache-export", "regcache-build", "regcache-bench"):
            return [name.removeprefix("regcache-"), *words[index + 1 :]]
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one_of_this_version(page: Path) -> None:
    for line in commands(page):
        words = words_of(line)
        if not words or "..." in words or words[:1] == ["COMMAND"]:
            continue
        assert words[0] in COMMANDS, line
        ends = [i for i, word in enumerate(words) if word in ("|", ">", "&&", ";", "\\")]
        parser_of(words[0], "regcache").parse_args(words[1 : min(ends, default=len(words))])


def test_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "tutorial.md"
    (script,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    exec(compile(script, "tutorial", "exec"), {})  # as the page has it
    assert len(list(Path("digits").glob("*/*.png"))) == 400
    ran = []
    for line in commands(page):
        if line.startswith(NOT_RUN):
            continue
        words = words_of(line)
        assert words is not None, f"neither run nor named in NOT_RUN: {line}"
        glob = [str(p) for w in words if "*" in w for p in sorted(Path().glob(w))][:2]
        words = [w for w in words if "*" not in w] + glob
        words += SMALLER if words[0] == "export" else []
        words += ["--rounds", "2", "--no-memory"] if words[0] == "bench" else []
        words += ["--seconds", "0.5", "--limit", "64"] if words[0] == "build" else []
        words += ["--limit", "64"] if "--data" in words and words[0] == "eval" else []
        assert main([*words, "-q"]) == 0, (line, capsys.readouterr().err)
        ran.append(words[0])
    assert ran == ["export", "eval", "eval", "bench", "build", "report", "verify"]
    text = Path("runs/tutorial/report.html").read_text(encoding="utf-8")
    for card in ("not measured", "not decided"):  # a page with all answers
        assert card not in text
    for section in ("answer", "speed", "file", "tokens", "errors", "certificate"):
        assert f'<section id="{section}"' in text
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"digits", "runs", "model_repository"}
