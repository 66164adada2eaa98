"""The ways to the INT8 file: what each gave on the search images, and why one was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..work.format import metric_title, value_text
from .parts import Section, Table


def ways(folder: Path, document: dict[str, Any]) -> Section | None:
    """A row a way; nothing where the recipe was fixed."""
    found = document.get("ways")
    if not found:
        return None
    metric = document["search_metric"]
    rows = []
    for way in found:
        mark = "chosen" if way["chosen"] else "equal" if way["tied"] else ""
        value, fidelity = value_text(metric, way["value"]), f"{way['fidelity']:.5f}"
        rows.append([way["title"], value, fidelity, f"{way['cost']:.3f}", mark])
    caption = (
        f"{metric_title(metric)} on {document['n_search']} search images, on which the choice was "
        "made; CPU cost of the graph by arithmetic, in that of the quantizer alone. Equal: cannot "
        "be told from the best one."
    )
    heads = ["way", metric_title(metric), "cosine to FP32", "CPU cost", ""]
    text = [f"Chosen: {document['reason']}."]
    return Section("ways", "Which way", text, [Table(heads, rows, caption)])
