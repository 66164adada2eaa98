"""What a page is made of: sections of text, cards, tables, pictures and code."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row."""

    columns: list[str]
    rows: list[list[str]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, with the sentence that a reader who cannot see it needs."""

    source: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Card:
    """One answer: a question, a word, and the sentence behind it.

    Attributes:
        mood: `good`, `bad` or `open`; a colour, never the only sign.
    """

    question: str
    answer: str
    detail: str
    mood: str = "open"


@dataclass(frozen=True)
class Code:
    """A listing with its title."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """One part of the page, in the order text, cards, pictures, tables, code."""

    anchor: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    code: list[Code] = field(default_factory=list)


def svg_picture(data: bytes, alt: str, caption: str) -> Picture:
    """An SVG file inside the page."""
    encoded = base64.b64encode(data).decode()
    return Picture(f"data:image/svg+xml;base64,{encoded}", alt, caption)


def plot_picture(
    folder: Path, document: dict[str, Any], name: str, alt: str, caption: str
) -> Picture:
    """A plot that the search left in the run folder.

    Raises:
        DataError: it is missing.
    """
    path = folder / document["plots"][name]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the picture {path} cannot be read ({error.strerror}); run `regcache search` again, "
            "finished parts are not recomputed"
        ) from error
    return svg_picture(data, alt, caption)
