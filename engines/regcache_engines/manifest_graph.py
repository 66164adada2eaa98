"""What a manifest must say of its graph: what `manifest.cpp` of the C++ library asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_PROBES = 64


def graph_problem(manifest: Mapping[str, Any]) -> str | None:
    """What is wrong, in words behind the file's name, or None."""
    graph = manifest.get("graph")
    graph = graph if isinstance(graph, dict) else {}
    ends = [graph.get(end) for end in ("input", "output")]
    image, features = (end if isinstance(end, dict) else {} for end in ends)
    if image.get("dtype") not in ("float32", "uint8"):
        return (
            f"has an input of type {image.get('dtype')!r:.60}, and this version feeds float32 or "
            "uint8"
        )
    if not (_is_name(image.get("name")) and _is_name(features.get("name"))):
        return "does not name the graph's ends"
    probes = graph.get("probes")
    if probes is None:
        return None
    if not isinstance(probes, list) or len(probes) > MAX_PROBES:
        return f"has probes that are no list of at most {MAX_PROBES}"
    return next((text for text in map(_probe_problem, probes) if text), None)


def graph_ends(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Names of input and output in a checked manifest."""
    return manifest["graph"]["input"]["name"], manifest["graph"]["output"]["name"]


def _probe_problem(probe: Any) -> str | None:
    if not isinstance(probe, dict) or not all(_is_name(probe.get(k)) for k in ("name", "output")):
        return "has a probe without a name"
    for end in ("low", "high"):
        code = probe.get(end)
        if type(code) is not int or not -128 <= code <= 255:
            return f"has a probe without '{end}'"
    return None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""
