"""One self-contained HTML page out of a run folder.

The page is a list of sections; each is a function from the run's document to a `Section` or None.
A new part of the project adds a function to `SECTIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from regcache_engines.files import atomic_write_bytes

from ..compat import require
from .answer import answer
from .bundle_sections import certificate, contract, errors, how_to_run
from .contract import decision_section
from .merge_section import merging
from .overview import facts, story, title_of
from .parts import Section, Table
from .search_sections import ablation, accuracy, cost, decision, layers, provenance, tokens
from .speed_section import speed
from .ways_section import ways

Make = Callable[[Path, dict[str, Any]], Section | None]

SECTIONS: list[Make] = [
    answer,
    story,
    accuracy,
    speed,
    decision_section,
    ways,
    decision,
    merging,
    tokens,
    layers,
    errors,
    cost,
    ablation,
    contract,
    how_to_run,
    certificate,
    provenance,
]


def inline(escaped: str) -> Any:
    """Escaped text in which `a command` is set as one, and an interval is never broken.

    `[page](NAME.html)` is a link to another page, beside this one or below: names come from foreign
    bundles, too, and lead nowhere else.
    """
    from markupsafe import Markup

    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escaped))
    text = re.sub(r"\[(page)\]\((?!/)([^():\s]+\.html)\)", r'<a href="\2">\1</a>', text)
    return Markup(re.sub(r"\[[-+0-9., ]+\]", r'<span class="whole">\g<0></span>', text))


def _without_gaps(section: Section) -> Section:
    return replace(section, tables=[_compact(t) for t in section.tables if t.rows])


def _compact(table: Table) -> Table:
    """The table without columns in which no row says anything."""
    kept = [i for i in range(len(table.columns)) if i == 0 or any(row[i] for row in table.rows)]
    rows = [[row[i] for i in kept] for row in table.rows]
    return replace(table, columns=[table.columns[i] for i in kept], rows=rows)


def write_page(folder: Path, document: dict[str, Any], output: Path) -> None:
    """Write the page of a run.

    Args:
        folder: the run folder; `document["plots"]` names pictures in it.
        document: of `report.document.load_document`.
        output: HTML file.

    Raises:
        DataError: a picture is missing.
    """
    sections = [made for make in SECTIONS if (made := make(folder, document)) is not None]
    render(title_of(document), facts(document), document.get("caution"), sections, output)


def render(
    title: str,
    rows: Sequence[tuple[str, str]],
    caution: str | None,
    sections: Sequence[Section],
    output: Path,
) -> None:
    """Write a page of sections; columns and tables without a word vanish.

    Args:
        title: the heading.
        rows: name and value of what was run.
        caution: what the figures do not say, or None.
        sections: in their order.
        output: HTML file.
    """
    jinja2 = require("jinja2", "search")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("regcache_deploy.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = lambda text: inline(environment.filters["escape"](text))
    page = environment.get_template("page.html").render(
        title=title,
        facts=rows,
        caution=caution,
        sections=[_without_gaps(section) for section in sections],
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    # a file name that is no UTF-8 reaches the page as lone surrogates
    atomic_write_bytes(output, page.encode(errors="backslashreplace"))
