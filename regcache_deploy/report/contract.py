"""A decision of `regcache build` for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..contract.decide import loss_text
from ..work.format import SPEEDUP, ratio_text
from ..work.terminal import add_row, new_table, place, prose, show, stdout_console
from .parts import Section, Table

TITLES = {
    "int8": "INT8 as exported",
    "unmerged": "INT8, no token merged",
    "mixed": "INT8, sensitive linears in float",
    "way": "INT8, another way, calibrated again",
    "mixed_plain": "INT8 without RegCache, calibrated again, sensitive linears in float",
    "float": "float file",
}


def form_title(document: dict[str, Any], form: str) -> str:
    """A candidate's name; on TensorRT the float file is in half precision."""
    half = form == "float" and document.get("float_body") == "float16"
    return TITLES[form] + (" (FP16)" if half else "")


def print_contract(document: dict[str, Any]) -> None:
    """The answer first, then every candidate, then what was measured on what."""
    console = stdout_console()
    contract = document["contract"]
    sure = "" if document["proven"] else " (by the estimates; the intervals do not prove it)"
    prose(console, f"kept: {form_title(document, document['kept'])}{sure}")
    place(console, f"file: {document['path']}")
    if document.get("engine_file"):
        place(console, f"engine: {document['engine_file']}")
    show(console, "Which file", _candidates(document))
    console.print()
    for tried in document["tried"]:
        for line in _about(tried):
            prose(console, f"{form_title(document, tried['form'])}: {line}")
    whole = ", by the whole 95 % intervals" * contract["strict"]
    prose(
        console,
        f"Contract: at most {contract['max_drop']:g} points lost, at least "
        f"{contract['min_speedup']:g} times as fast as the float file{whole}.",
    )
    for line in _measured(document):
        prose(console, line)
    if document["warning"]:
        prose(console, f"warning: {document['warning']}.")
    if document["caution"]:
        prose(console, f"Note: {document['caution']}.")
    if document.get("decision_file"):
        place(console, f"decision: {document['decision_file']}")


def decision_section(folder: Path, document: dict[str, Any]) -> Section | None:
    """What `regcache build` measured of every candidate, on its own images and rounds."""
    found = document.get("decision")
    if not found or "drop_measured_on" not in found:
        return None
    contract = found["contract"]
    rows = []
    for tried in found["tried"]:
        run = "drop" in tried and tried["form"] != "float"
        figures = _figures(tried, contract) if run else ["", ""]
        verdict = "kept" if tried["keep"] else "refused"
        why = "; ".join(_about(tried | {"reasons": []} if run else tried))
        rows.append([form_title(found, tried["form"]), *figures, verdict, why])
    cosine = any(t["drop"]["metric"] == "cosine" for t in found["tried"] if "drop" in t)
    lost = "cosine to float [95 %]" if cosine else "points lost [95 %]"
    text = [
        f"Contract: at most {contract['max_drop']:g} points lost, at least "
        f"{contract['min_speedup']:g} times as fast as the float file"
        + (", by the whole 95 % intervals." if contract["strict"] else "."),
        "Measured by `regcache build` for this decision, on images and in rounds of its own; so "
        "its figures differ from those above by chance.",
        *_measured(found),
    ]
    heads = ["file", lost, "times as fast [95 %]", "", "why"]
    return Section("file", "Which file", text, [Table(heads, rows)])


def _candidates(document: dict[str, Any]) -> Any:
    """A row each candidate; figures only where it was run."""
    cosine = any(t["drop"]["metric"] == "cosine" for t in document["tried"] if "drop" in t)
    loss = "cosine to float\n[95 %]" if cosine else "lost, points\n[95 %]"
    heads = ("file", loss, "times as fast as\nfloat [95 %]", "")
    table = new_table(heads)
    for tried in document["tried"]:
        cells = ["", ""]
        if "drop" in tried and tried["form"] != "float":
            cells = _figures(tried, document["contract"])
        verdict = "kept" if tried["keep"] else "refused"
        add_row(table, form_title(document, tried["form"]), *cells, verdict)
    return table


def _figures(tried: dict[str, Any], contract: dict[str, Any]) -> list[str]:
    """Loss and speed, with as many digits as tell on which side of the contract they are."""
    return [
        loss_text(tried["drop"], contract["max_drop"]),
        ratio_text(tried["speedup"], least=contract["min_speedup"]),
    ]


def _about(tried: dict[str, Any]) -> list[str]:
    """What the table has no room for."""
    lines = [f"way {tried['way']}"] if tried.get("way") else []
    if tried.get("float_layers"):
        lines.append(f"in float {', '.join(tried['float_layers'])}")
    return [*lines, *tried["reasons"]]


def _measured(document: dict[str, Any]) -> list[str]:
    speed, images = document["speed_measured_at"], document["images"]
    control = speed["control"]
    place_of_it = f", {speed['gpu']}" if speed.get("gpu") else f", threads {speed['threads']}"
    itself = ratio_text(control) if control else "not timed"
    lines = [
        f"Accuracy: {document['drop_metric']} on {document['drop_measured_on']}; against the float "
        "file on the same engine.",
        f"Speed: {SPEEDUP}; {speed['engine']}{place_of_it}, batch {speed['batch']}; the float file "
        f"against itself: {itself}.",
        f"Intervals: {document['interval']}.",
    ]
    if images["chosen_on"]:
        lines.insert(
            1,
            f"Linears in float and other ways were chosen on {images['chosen_on']} other images of "
            "them, in simulation.",
        )
    return lines
