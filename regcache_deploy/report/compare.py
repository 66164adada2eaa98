"""Several runs on one page: a row each, and accuracy against speed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import DataError
from ..work.format import COUNTED, difference_text, metric_axis, value_text
from .bundle_plots import speed_accuracy
from .drawing import draw_svg
from .html import render
from .measured import Accuracy, Speed, accuracies, speeds
from .parts import Section, Table, svg_picture

Run = tuple[Path, dict[str, Any]]
"""A run folder and its document."""

CAPTION = (
    "Accuracy of the INT8 file against how many times as fast as its own float file it is; bars "
    "are 95 % intervals, the numbers those of the table. Right and up is better."
)


def write_comparison(runs: Sequence[Run], output: Path) -> None:
    """Write the page of several runs.

    Args:
        runs: at least two, each with `report.document.load_document`'s document.
        output: HTML file.

    Raises:
        DataError: fewer than two, or a run that evaluated no quantized encoder.
    """
    if len(runs) < 2:
        raise DataError("a comparison needs at least two runs")
    for folder, document in runs:
        found = accuracies(document)
        if not found or found[0].value is None:
            raise DataError(f"{folder} evaluated no quantized encoder; there is nothing to compare")
    cautions = dict.fromkeys(str(d["caution"]) for _, d in runs if d.get("caution"))
    sections = [_table(runs, output), *_pictures(runs)]
    facts = [("runs", ", ".join(str(folder) for folder, _ in runs))]
    render(f"{len(runs)} runs", facts, "; ".join(cautions) or None, sections, output)


def _table(runs: Sequence[Run], output: Path) -> Section:
    results, how = [], []
    for number, (folder, document) in enumerate(runs, 1):
        accuracy, speed = _lead(document)
        sizes = document.get("file_mib")
        made = [document["model"], document["baseline"], document["bits"]]
        titles = [way["title"] for way in document.get("ways") or () if way["chosen"]]
        if titles or document.get("recipe"):
            made.append(titles[0] if titles else document["recipe"])
        results.append(
            [
                f"{number}: {folder.name or folder}",
                ", ".join(map(str, made)),
                _value(accuracy, accuracy.reference),
                _value(accuracy, accuracy.value),
                difference_text(accuracy.metric, accuracy.pair),
                f"{speed.value:.2f} [{speed.low:.2f}, {speed.high:.2f}]" if speed else "",
                f"{sizes['fp32']:.1f} to {sizes['int8']:.1f}" if sizes else "",
                _page(folder, output),
            ]
        )
        images = f"{metric_axis(accuracy.metric)} on {accuracy.n} images: {accuracy.images}"
        how.append([str(number), images, f"{speed.where}, by {speed.by}" if speed else "not timed"])
    heads = ["run", "what", "FP32", "INT8", "points [95 %]", "times as fast [95 %]", "MiB", ""]
    caption = (
        "Each run against its own FP32 on its own images; two runs may be compared with each other "
        "where the images are the same"
    )
    tables = [Table(heads, results, caption), Table(["run", "accuracy", "speed"], how)]
    return Section("runs", "The runs", tables=tables)


def _value(accuracy: Accuracy, value: float | None) -> str:
    return "" if value is None else value_text(accuracy.metric, value)


def _page(folder: Path, output: Path) -> str:
    """A link to the run's own page, where there is one."""
    page = folder / "report.html"
    if not page.is_file():
        return ""
    place = os.path.relpath(page.absolute(), output.absolute().parent)
    return f"[page]({quote(place, errors='surrogateescape')})"


def _pictures(runs: Sequence[Run]) -> list[Section]:
    """A picture for every metric that at least two runs were timed for."""
    points: dict[str, list[dict[str, Any]]] = {}
    for number, (_, document) in enumerate(runs, 1):
        accuracy, speed = _lead(document)
        if speed is None or accuracy.value is None:
            continue
        point = {"number": number, "value": accuracy.value, "speed": speed, "pair": accuracy.pair}
        points.setdefault(accuracy.metric, []).append(point)
    pictures = [
        svg_picture(
            draw_svg(partial(speed_accuracy, found, metric)),
            f"{metric_axis(metric)} against speed of {len(found)} runs.",
            CAPTION if metric in COUNTED else CAPTION + " A cosine proves no accuracy.",
        )
        for metric, found in points.items()
        if len(found) > 1
    ]
    if not pictures:
        return []
    return [Section("picture", "Accuracy against speed", pictures=pictures)]


def _lead(document: dict[str, Any]) -> tuple[Accuracy, Speed | None]:
    found = speeds(document)
    return accuracies(document)[0], found[0] if found else None
