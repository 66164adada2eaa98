"""The page's table of the ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regcache_deploy.report.ways_section import ways


def way(name: str, **changes: Any) -> dict[str, Any]:
    found = {"name": name, "title": name, "value": 0.5, "fidelity": 0.9, "cost": 1.0}
    return found | {"tied": False, "chosen": False} | changes


def test_a_row_for_every_way() -> None:
    document = {
        "ways": [way("alone"), way("smoothed", chosen=True, tied=True), way("both", tied=True)],
        "search_metric": "top1",
        "n_search": 512,
        "reason": "smoothing: the cheapest",
    }
    section = ways(Path(), document)
    assert section is not None
    assert [row[0] for row in section.tables[0].rows] == ["alone", "smoothed", "both"]
    assert [row[-1] for row in section.tables[0].rows] == ["", "chosen", "equal"]
    assert section.text == ["Chosen: smoothing: the cheapest."]


def test_nothing_where_nothing_was_raced() -> None:
    assert ways(Path(), {"ways": []}) is None
    assert ways(Path(), {}) is None
