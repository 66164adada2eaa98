"""What merging tokens costs and gives: the graphs that `--merge auto` weighed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..work.format import front_rows, metric_title
from .bundle_plots import PARETO_CAPTION, pareto
from .drawing import draw_svg
from .parts import Section, Table, svg_picture


def merging(folder: Path, document: dict[str, Any]) -> Section | None:
    """The front of speed and accuracy, the chosen point marked."""
    front = document.get("merge_front")
    if not front:
        return None
    metric, count = document["search_metric"], document["n_search"]
    points = sorted(front, key=lambda point: -point["ms"])
    drawn = [
        {
            "label": point["title"],
            "ms": point["ms"],
            "value": point["value"],
            "ours": bool(point["chosen"]),
        }
        for point in points
    ]
    options = document.get("options") or {}
    batch = int(options.get("batch") or 1)
    picture = svg_picture(
        draw_svg(lambda: pareto(drawn, metric, batch, ("others", "chosen"))),
        "Latency against accuracy of every schedule of merging.",
        PARETO_CAPTION,
    )
    columns = ["", "graph", "ms", "over unmerged [95 %]", metric_title(metric)]
    columns.append("against FP32, points [95 %]")
    rows = [[str(i), *row] for i, row in enumerate(front_rows(metric, front), 1)]
    timed = f"speed of the graphs, batch {batch}"
    if options.get("latency"):
        timed = f"latencies of {options['latency']}, not measured here"
    caption = f"On the {count} search images, in simulation; {timed}"
    reason = document["merge_reason"]
    text = [
        f"{reason[0].upper()}{reason[1:]}.",
        "The schedule was chosen on these images, so what it costs is read from the held-out ones: "
        "the rows `chosen` and `no token merged` of the accuracy above.",
    ]
    return Section("merging", "Fewer tokens", text, [Table(columns, rows, caption)], [picture])
