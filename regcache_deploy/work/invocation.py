"""The command line of this process, for what a run says of itself."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

_words: list[str] = []


def remember(words: Sequence[str]) -> None:
    """Keep the words of the command that runs; the last ones count."""
    _words[:] = words


def typed(*words: object) -> str:
    """A command as one can type it: words with spaces or quotes are quoted."""
    return shlex.join(map(str, words))


def command_line() -> str | None:
    """As it can be typed again; None where nobody typed one (a call from Python)."""
    return shlex.join(_words) if _words else None
