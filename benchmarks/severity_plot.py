"""The picture of `severity.py`: copy detection against the norm ratio of the sinks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from regcache_deploy.report.drawing import COLOURS, INK, MUTED, draw_svg, new_figure

PANELS = {"planted": "fresh sinks", "adapted": "used to its sinks"}
DASHES = ("-", "--", ":")


def draw(rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> bytes:
    """An SVG; the healthy encoder stands at ratio 1 of both panels.

    Averaged are the seeds that every ratio has: another one has other photographs, and would bend
    the curves where it joins.

    Args:
        rows: of the CSV.
        order: names of ways, the reference first.
    """

    def picture() -> Any:
        figure, axes = new_figure(11, 4.5, ncols=len(PANELS), sharey=True)
        for axis, (kind, title) in zip(axes, PANELS.items(), strict=True):
            _panel(
                axis, _of_every_ratio([r for r in rows if r["kind"] in ("healthy", kind)]), order
            )
            axis.set_title(title)
        axes[0].set_ylabel("copy detection, %")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")
        return figure

    return draw_svg(picture)


def _of_every_ratio(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    seeds: dict[float, set[str]] = defaultdict(set)
    for row in rows:
        seeds[float(row["ratio"])].add(str(row["seed"]))
    common = set.intersection(*seeds.values()) if seeds else set()
    return [row for row in rows if str(row["seed"]) in common]


def _panel(axis: Any, rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> None:
    for index, name in enumerate(order):
        found: dict[float, list[float]] = defaultdict(list)
        titles = {r["title"] for r in rows if r["way"] == name}
        for row in rows:
            if row["way"] == name:
                found[float(row["ratio"])].append(float(row["copy_detection"]))
        if not found:
            continue
        ratios = sorted(found)
        colour = INK if not index else COLOURS[(index - 1) % len(COLOURS)]
        axis.plot(
            ratios,
            [sum(found[r]) / len(found[r]) for r in ratios],
            color=colour,
            linestyle=DASHES[(max(0, index - 1)) // len(COLOURS)],
            marker="o",
            markersize=3,
            label=titles.pop(),
        )
    axis.set_xscale("log")
    axis.set_xlabel("norm ratio of sinks", color=MUTED)
