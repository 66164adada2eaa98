"""Tell the user, on stderr, which stage runs and how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TextIO

from .format import plain

Advance = Callable[..., None]
"""`advance(n=1)`: so many more units of the stage are done."""

QUIET_SECONDS = 60.0
"""Without bars, a long stage says so often how far it is."""


@lru_cache(maxsize=1)
def stderr_console() -> Any | None:
    """One rich console for bars and log lines, so that neither overwrites the other.

    Returns:
        None where stderr is no terminal or rich is not installed.
    """
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(stderr=True)


class Reporter:
    """Progress of stages: bars on a terminal, else a line at the start, every minute, at the end.

    Nothing is ever written to stdout, which belongs to the results.

    Args:
        quiet: say nothing.
        stream: write plain lines here instead of looking at stderr; for tests.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream
        self._console = None if quiet or stream is not None else stderr_console()
        self._bars: Any | None = None

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Show a stage while the `with` block runs; stages may be nested.

        Args:
            name: what is being done, for example "search: prefix count".
            total: units of work, or None where that is not known.

        Yields:
            `advance(n=1)`.
        """
        if self._quiet:
            yield lambda n=1: None
        elif self._console is None:
            with self._plain(name, total) as advance:
                yield advance
        else:
            with self._bar(name, total) as advance:
                yield advance

    @contextmanager
    def _plain(self, name: str, total: int | None) -> Iterator[Advance]:
        stream = self._stream or sys.stderr
        size = f" ({total})" if total is not None else ""
        name = plain(name)
        print(f"{name}{size} ...", file=stream, flush=True)
        started, outcome = time.monotonic(), "stopped after"
        done, told = 0, started

        def advance(n: int = 1) -> None:
            nonlocal done, told
            done, now = done + n, time.monotonic()
            if now - told >= QUIET_SECONDS:
                told = now
                print(_so_far(name, done, total, now - started), file=stream, flush=True)

        try:
            yield advance
            outcome = "done in"
        finally:
            print(f"{name}: {outcome} {time.monotonic() - started:.1f} s", file=stream, flush=True)

    @contextmanager
    def _bar(self, name: str, total: int | None) -> Iterator[Advance]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column

        outermost = self._bars is None
        if outermost:
            self._bars = Progress(
                # the first two move also where a step takes long
                SpinnerColumn("line", finished_text=" "),
                TimeElapsedColumn(),
                # on 80 columns the name gives way, not the figures
                TextColumn(
                    "{task.description}",
                    markup=False,  # a stage may name a path, and a path may hold brackets
                    table_column=Column(ratio=1, no_wrap=True),
                ),
                BarColumn(bar_width=12),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                expand=True,
                console=self._console,
            )
            self._bars.start()
        bars = self._bars
        assert bars is not None
        task = bars.add_task(plain(name), total=total)
        try:
            yield lambda n=1: bars.advance(task, n)
            # A stage may stop early (a search that has found its answer): it is still complete.
            steps = total or next(t.completed for t in bars.tasks if t.id == task) or 1
            bars.update(task, total=steps, completed=steps)
        finally:
            bars.stop_task(task)
            if outermost:
                bars.stop()
                self._bars = None
            else:
                bars.remove_task(task)


def _so_far(name: str, done: int, total: int | None, seconds: float) -> str:
    if not total or done > total:
        return f"{name}: {done} after {seconds:.0f} s"
    left = seconds * (total - done) / done
    return f"{name}: {done} of {total} after {seconds:.0f} s, about {left:.0f} s left"
