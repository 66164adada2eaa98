"""Tables and lines on stdout that read well from 80 columns on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from .format import for_rich

PIPED = 100
"""Columns where stdout is no terminal and COLUMNS does not say otherwise."""

MOST = 110
"""A wider terminal only spreads a table's columns apart."""


def stdout_console() -> Any:
    """A rich console for results: as wide as the terminal, or as COLUMNS says."""
    from rich.console import Console

    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    console = Console(width=None if known else PIPED, highlight=False, emoji=False)
    console.width = min(console.width, MOST)
    return console


def new_table(heads: Sequence[str], words: Iterable[int] = (0,), whole: Iterable[int] = ()) -> Any:
    """A table without frames.

    Args:
        heads: of the columns; a line break in one stays.
        words: columns of words, which stand at the left and wrap; figures stand at the right.
        whole: columns of words that are never broken.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        show_header=any(heads),
    )
    unbroken = set(whole)
    for index, head in enumerate(heads):
        if index in unbroken:
            table.add_column(head, no_wrap=True)
        elif index in set(words):
            table.add_column(head, overflow="fold")
        else:
            table.add_column(head, justify="right", no_wrap=True)
    return table


def add_row(table: Any, *cells: str) -> None:
    """Add cells as they are: brackets are no markup."""
    table.add_row(*(for_rich(cell) for cell in cells))


def show(console: Any, title: str, table: Any) -> None:
    """A table under its title, with a line of space above."""
    console.print()
    if title:
        console.print(for_rich(title), style="bold")
    console.print(table)


def prose(console: Any, text: str) -> None:
    """A sentence, wrapped between words."""
    console.print(for_rich(text))


def place(console: Any, text: str) -> None:
    """A path or a command: a line of its own that is never broken, so that it can be copied."""
    console.print(for_rich(text), soft_wrap=True)
