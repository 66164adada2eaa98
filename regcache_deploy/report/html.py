"""One self-contained HTML page out of a run folder.

The page is a list of sections; each is a function from the run's document to a `Section` or None.
A new part of the project adds a function to `SECTIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regcache_engines.files import atomic_write_bytes

from ..compat import require
from .answer import answer, speed
from .bundle_sections import certificate, contract, errors, how_to_run
from .merge_section import merging
from .parts import Section
from .search_sections import ablation, accuracy, cost, decision, layers, provenance, tokens
from .ways_section import ways

Make = Callable[[Path, dict[str, Any]], Section | None]

SECTIONS: list[Make] = [
    answer,
    accuracy,
    speed,
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
    """Escaped text in which `a command` is set as one, and an interval is never broken."""
    from markupsafe import Markup

    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escaped))
    return Markup(re.sub(r"\[[-+0-9., ]+\]", r'<span class="whole">\g<0></span>', text))


def write_page(folder: Path, document: dict[str, Any], output: Path) -> None:
    """Write the page of a run.

    Args:
        folder: the run folder; `document["plots"]` names pictures in it.
        document: of `report.document.load_document`.
        output: HTML file.

    Raises:
        DataError: a picture is missing.
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
    sections = [made for make in SECTIONS if (made := make(folder, document)) is not None]
    page = environment.get_template("page.html").render(
        title=f"{document['model']}, {document['baseline']}, {document['bits']}",
        caution=document.get("caution"),
        sections=sections,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    # a file name that is no UTF-8 reaches the page as lone surrogates
    atomic_write_bytes(output, page.encode(errors="backslashreplace"))
