"""Progress goes to stderr, as lines or as bars, and never to stdout."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from regcache_deploy.work import progress
from regcache_deploy.work.progress import Reporter


def test_plain_lines(capsys):
    with Reporter().stage("reading", 3) as advance:
        for _ in range(3):
            advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    first, last = captured.err.splitlines()
    assert first == "reading (3) ..."
    assert re.fullmatch(r"reading: done in \d+\.\d s", last)


def test_a_long_stage_says_how_far_it_is(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Reporter(stream=stream).stage("grid", 10) as advance:
        for _ in range(4):
            now[0] += 25
            advance()
    with Reporter(stream=stream).stage("race") as advance:
        now[0] += 61
        advance(3)
    assert stream.getvalue().splitlines() == [
        "grid (10) ...",
        "grid: 3 of 10 after 75 s, about 175 s left",
        "grid: done in 100.0 s",
        "race ...",
        "race: 3 after 61 s",
        "race: done in 61.0 s",
    ]


def test_failed_stage_says_so():
    stream = io.StringIO()
    with pytest.raises(ValueError, match="boom"), Reporter(stream=stream).stage("work"):
        raise ValueError("boom")
    assert re.search(r"work: stopped after \d+\.\d s\n$", stream.getvalue())


def test_quiet(capsys):
    with Reporter(quiet=True).stage("reading", 3) as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("bars", [True, False])
def test_a_stage_may_name_any_path(bars, monkeypatch):
    """Brackets were markup, and ended the command; an escape sequence reached the terminal."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "stderr_console", lambda: console)
    with Reporter(stream=None if bars else screen).stage("listing photos[/old]\x1b[2J"):
        pass
    assert r"listing photos[/old]\x1b[2J" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()


def test_bars_nested(monkeypatch, capsys):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "stderr_console", lambda: console)
    reporter = Reporter()
    with reporter.stage("outer", 2) as outer:
        outer(1)
        with reporter.stage("inner") as inner:
            inner(5)
    with pytest.raises(ValueError, match="boom"), reporter.stage("third", 4):
        raise ValueError("boom")
    text = screen.getvalue()
    assert "outer" in text
    assert "2/2" in text
    assert "0/4" in text
    assert capsys.readouterr() == ("", "")
