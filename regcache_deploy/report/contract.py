"""A decision of `regcache build` for people."""

from __future__ import annotations

from typing import Any

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


def contract_lines(document: dict[str, Any]) -> list[str]:
    """The answer first, then every candidate, then what was measured on what."""
    contract = document["contract"]
    sure = "" if document["proven"] else " (by the estimates; the intervals do not prove it)"
    lines = [
        f"kept: {form_title(document, document['kept'])}: {document['path']}{sure}",
        *([f"engine: {document['engine_file']}"] if document.get("engine_file") else []),
        f"contract: at most {contract['max_drop']:g} points lost, at least "
        f"{contract['min_speedup']:g} times as fast as the float file"
        + (", by the whole 95 % intervals" if contract["strict"] else ""),
    ]
    for tried in document["tried"]:
        verdict = "kept" if tried["keep"] else "refused"
        lines.append(f"  {form_title(document, tried['form'])}: {verdict}")
        if tried.get("way"):
            lines.append(f"    way: {tried['way']}")
        if tried.get("float_layers"):
            lines.append(f"    in float: {', '.join(tried['float_layers'])}")
        lines += [f"    {reason}" for reason in tried["reasons"]]
    speed, images = document["speed_measured_at"], document["images"]
    control = speed["control"]
    place = f", {speed['gpu']}" if speed.get("gpu") else f", threads {speed['threads']}"
    itself = (
        f"{control['value']:.2f} [{control['low']:.2f}, {control['high']:.2f}]"
        if control
        else "not timed"
    )
    lines += [
        f"drop: {document['drop_metric']} on {images['judged_on']} images "
        f"({document['drop_measured_on']}), against the float file on the same engine",
        *(
            [
                f"linears in float and other ways chosen on {images['chosen_on']} other images of "
                "them, in simulation"
            ]
            if images["chosen_on"]
            else []
        ),
        f"speed: {speed['engine']}{place}, batch {speed['batch']}; the float file against itself: "
        f"{itself}",
        f"intervals: {document['interval']}",
    ]
    if document["warning"]:
        lines.append(f"warning: {document['warning']}.")
    if document["caution"]:
        lines.append(f"Note: {document['caution']}.")
    return lines
