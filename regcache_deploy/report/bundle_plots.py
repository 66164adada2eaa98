"""The pictures of a bundle: latency against accuracy, and the error by layer."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot
from typing import Any

from ..work.format import metric_scale
from .drawing import COLOURS, FLOOR, INK, MUTED, ROLES, new_figure

NEAR_PIXELS = 24
"""Points that are closer on the paper share one label."""

TICKS = [m * 10.0**e for e in range(-2, 6) for m in (1, 2, 5)]

PARETO_CAPTION = (
    "Latency against accuracy; the numbers are those of the table. Left and up is better. The "
    "line joins the files that no other one beats in both."
)


def pareto(
    points: Sequence[dict[str, Any]],
    metric: str,
    batch: int,
    kinds: tuple[str, str] = ("others", "ours"),
) -> Any:
    """Latency against accuracy, numbered, with the front of what nothing beats."""
    figure, axes = new_figure(5.2, 3.9)
    scale, title = metric_scale(metric)
    front = pareto_front([(p["ms"], p["value"]) for p in points])
    axes.plot(
        [points[i]["ms"] for i in front],
        [scale * points[i]["value"] for i in front],
        color=MUTED,
        lw=1,
        ls="--",
        zorder=1,
    )
    for ours, colour, marker, label in (
        (False, COLOURS[0], "o", kinds[0]),
        (True, COLOURS[1], "D", kinds[1]),
    ):
        chosen = [p for p in points if p["ours"] is ours]
        axes.scatter(
            [p["ms"] for p in chosen],
            [scale * p["value"] for p in chosen],
            color=colour,
            marker=marker,
            s=34,
            label=label,
            zorder=2,
        )
    axes.margins(0.12)
    if max(p["ms"] for p in points) > 4 * min(p["ms"] for p in points):
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ticks = [t for t in TICKS if low <= t <= high]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
    else:
        axes.set_xlim(left=0)
    figure.draw_without_rendering()  # where points are on the paper decides which share a label
    places = axes.transData.transform([(p["ms"], scale * p["value"]) for p in points])
    groups = sorted(neighbours(places, NEAR_PIXELS), key=lambda g: max(places[i][0] for i in g))
    for order, group in enumerate(groups):  # from left to right, above and below in turns
        right = max(group, key=lambda i: places[i][0])
        axes.annotate(
            ", ".join(str(i + 1) for i in group),
            (points[right]["ms"], scale * points[right]["value"]),
            xytext=(6, -13 if order % 2 else 5),
            textcoords="offset points",
            fontsize=9,
            color=INK,
        )
    axes.set_xlabel(f"ms, batch {batch}")
    axes.set_ylabel(title)
    axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


def speed_accuracy(points: Sequence[dict[str, Any]], metric: str) -> Any:
    """Accuracy of several files against how many times as fast each is, with both intervals.

    Args:
        points: `number`, `value` in [0, 1], `speed` with value, low and high, and `pair` with the
            interval of the difference in points, or None.
        metric: of the values.
    """
    figure, axes = new_figure(7.0, 4.2)
    scale, title = metric_scale(metric)
    for point in points:
        speed, value, pair = point["speed"], scale * point["value"], point["pair"]
        beyond = [[0.0], [0.0]]
        if pair is not None:
            centre = pair["difference"]
            beyond = [[centre - pair["low"]], [pair["high"] - centre]]
        axes.errorbar(
            [speed.value],
            [value],
            xerr=[[speed.value - speed.low], [speed.high - speed.value]],
            yerr=beyond,
            fmt="D",
            color=COLOURS[1],
            ecolor=MUTED,
            elinewidth=1,
        )
        axes.annotate(
            str(point["number"]),
            (speed.value, value),
            xytext=(6, 5),
            textcoords="offset points",
            color=INK,
        )
    axes.axvline(1.0, color=MUTED, lw=1, ls="--", zorder=0)
    axes.margins(0.12)
    axes.set_xlabel("times as fast as its float file")
    axes.set_ylabel(title)
    return figure


def neighbours(places: Sequence[Sequence[float]], distance: float) -> list[list[int]]:
    """Indices of points in groups: each is within `distance` of another one of its group."""
    groups: list[list[int]] = []
    for index, (x, y) in enumerate(places):
        near = [
            g
            for g in groups
            if any(hypot(x - places[i][0], y - places[i][1]) < distance for i in g)
        ]
        merged = sorted([index, *(i for g in near for i in g)])
        groups = [*(g for g in groups if g not in near), merged]
    return sorted(groups)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (latency, accuracy) that no other one beats in both, by latency."""
    front: list[int] = []
    best = float("-inf")
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front


def layer_errors(found: dict[str, Any]) -> Any:
    """Cost of each linear by itself, above the error that all of them grow to."""
    figure, (above, below) = new_figure(5.2, 5.4, nrows=2, sharex=True, height_ratios=(2, 1.5))
    depth = len(found["simulated"])
    for role, colour in zip(ROLES, COLOURS, strict=True):
        known = {
            int(name.split(".")[1]): max(value, FLOOR)
            for name, value in found["alone"].items()
            if name.endswith(role)
        }
        title = role.split(".")[1]
        above.plot(list(known), list(known.values()), marker="o", ms=4, color=colour, label=title)
    above.set_yscale("log")
    above.set_ylabel("1 - cosine of features,\none linear in INT8")
    above.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    below.plot(range(depth), found["simulated"], marker="o", ms=6, color=COLOURS[0])
    titles = ["simulated"]
    if "deployed" in found:
        below.plot(range(depth), found["deployed"], marker="x", ms=6, color=COLOURS[3], ls="--")
        titles.append("deployed")
    below.set_ylabel("relative error\nbehind the block")
    below.set_xlabel("block")
    below.set_xticks(range(depth))
    below.set_ylim(bottom=0)
    below.legend(titles, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.3))
    return figure
