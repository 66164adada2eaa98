"""Figures and names as text, the same way on the page and on the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

COUNTED = ("top1", "instances")
"""Metrics that count images: told in per cent, differences in points, pairs as lost and won."""

TITLES = {
    "top1": "top-1",
    "instances": "copy detection",
    "cosine": "cosine",
    "mse": "1 - relative error",
}


MOST_DIGITS = 9
"""After the point; what is nearer to a bound is a sum's rounding."""

SPEEDUP = "median over rounds, in which the files run in turns, of the ratio of their times"
"""What every ratio of speed in a table, a headline and a decision is."""


def metric_title(name: str) -> str:
    return TITLES[name]


def metric_axis(name: str) -> str:
    """The title where nothing else says what the cosine is to."""
    return "cosine to FP32" if name == "cosine" else TITLES[name]


def metric_scale(name: str) -> tuple[int, str]:
    """Factor of values on an axis, and the axis' title with its unit."""
    counted = name in COUNTED
    return (100, f"{metric_axis(name)}, %") if counted else (1, metric_axis(name))


def unit_name(metric: str) -> str:
    """Of a difference between two values."""
    return "points" if metric in COUNTED else "cosine" if metric == "cosine" else "difference"


def value_text(metric: str, value: float) -> str:
    return percent(value) if metric in COUNTED else f"{value:.5f}"


def percent(share: float, digits: int = 2) -> str:
    """With more digits where these would say all of not quite all, or none of a few."""
    if 0 < share < 1:
        digits = digits_apart([share * 100], lambda shown: 0 < shown < 100, digits)
    return f"{share * 100:.{digits}f} %"


def digits_apart(figures: Iterable[float], within: Callable[[float], bool], digits: int) -> int:
    """At least `digits`, and so many that rounding moves no figure over a bound.

    Nearer to it than `MOST_DIGITS` tell, a figure is on it, and `digits` will do.

    Args:
        figures: what will be shown.
        within: whether one keeps to the bound.
        digits: after the point.
    """
    known = [(figure, within(figure)) for figure in figures]
    for enough in range(digits, MOST_DIGITS + 1):
        if all(within(float(f"{figure:.{enough}f}")) == side for figure, side in known):
            return enough
    return digits


def difference_text(metric: str, pair: dict[str, Any] | None) -> str:
    if pair is None:
        return ""
    digits = 2 if metric in COUNTED else 5
    return (
        f"{pair['difference']:+.{digits}f} [{pair['low']:+.{digits}f}, {pair['high']:+.{digits}f}]"
    )


def ratio_text(ratio: Mapping[str, Any], value: bool = True, least: float | None = None) -> str:
    """A ratio of speed with its 95 % interval, or the interval alone.

    Args:
        ratio: `value`, `low` and `high`.
        value: False for the interval alone.
        least: what it is held against; as many digits as tell on which side each figure is.
    """
    digits = 2
    if least is not None:
        ends = [ratio["value"], ratio["low"], ratio["high"]]
        digits = digits_apart(ends, lambda shown: shown >= least, digits)
    interval = f"[{ratio['low']:.{digits}f}, {ratio['high']:.{digits}f}]"
    return f"{ratio['value']:.{digits}f} {interval}" if value else interval


def ms_text(milliseconds: float) -> str:
    """Hundredths below 100 ms, tenths from there on: the rest is noise."""
    return f"{milliseconds:.{1 if milliseconds >= 100 else 2}f}"


def p_text(pair: dict[str, Any] | None) -> str:
    return "" if pair is None else f"{pair['p_value']:.2g}"


def counted(number: int, noun: str, several: str = "") -> str:
    """A number with its noun: `1 core`, `2 cores`."""
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def count_text(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def mib_text(size: float) -> str:
    """Bytes as MiB; kibibytes where that would say nothing."""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 / 10 else f"{size / 2**10:.1f} KiB"


def absent_count(choice: Mapping[str, Any]) -> int:
    """Tokens that were absent while the ranges were set; a file from before has one count."""
    return int(choice.get("range_delete_count", choice["delete_count"]))


def deletion_text(choice: Mapping[str, Any]) -> str:
    """Both delete counts of a choice in words, for example `0 deleted, 6 saturated`."""
    deleted = int(choice["delete_count"])
    saturated = absent_count(choice) - deleted
    return f"{deleted} deleted" + (f", {saturated} saturated" if saturated else "")


def norms_rows(norms: Mapping[str, Any] | None) -> dict[str, str]:
    """Name -> largest token at the sensitive layer, before -> after; none in a file from before."""
    if not norms:
        return {}
    before, after = norms["before"], norms["after"]

    def arrow(name: str) -> str:
        return f"{before[name]:.2f}" + ("" if after is None else f" -> {after[name]:.2f}")

    images = f"{norms['images']} search images, float"
    rows = {
        "largest token norm there": f"{arrow('largest')} (l-inf, {images})",
        "mean of each image's largest": arrow("mean"),
    }
    return rows | ({} if after is None else {"after means": norms["after_means"]})


def plain(text: str) -> str:
    """Text whose control characters are named: one from a foreign bundle moves no cursor."""
    control = r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"
    return re.sub(control, lambda found: found[0].encode("unicode_escape").decode(), text)


def for_rich(text: str) -> str:
    """Text for rich: `plain`, without markup; bytes of a path that are no UTF-8 are named."""
    from rich.markup import escape

    return escape(plain(text).encode(errors="backslashreplace").decode())


def speedup_head(rows: Iterable[Mapping[str, Any]]) -> str:
    """Head of the column of ratios, with the file that they are over where it is one."""
    over = {row["speedup_over"] for row in rows if "speedup" in row}
    return f"faster than {over.pop()} [95 %]" if len(over) == 1 else "faster [95 %]"


def no_gain_text(tried: Iterable[tuple[int, int]], end: str = "", left: int = 0) -> str:
    """Why nothing was chosen.

    Args:
        tried: prefix and delete counts of every evaluation.
        end: follows a comma.
        left: choices that the budget did not let the search try.
    """
    prefixes, deletions = zip(*tried, strict=True)
    kinds = {"prefix": max(prefixes), "deletion": max(deletions)}
    asked = " and ".join(f"no {kind}" for kind, most in kinds.items() if most)
    if not asked and left:
        return "No prefix and no deletion: the budget did not let the search try any."
    if not asked:
        return "No prefix and no deletion: neither was asked for."
    return f"No gain: {asked} beat the baseline alone on the search images{',' * bool(end)}{end}."


def not_tried_lines(choices: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a search's budget kept it from asking, in one line, and how to have it asked."""
    if not choices:
        return []
    counts = {
        "copies of the prefix": [choice["prefix_count"] for choice in choices],
        "absent tokens": [absent_count(choice) for choice in choices],
    }
    ranges = [
        f"{min(found)} to {max(found)} {name}" if len(set(found)) > 1 else f"{found[0]} {name}"
        for name, found in counts.items()
    ]
    plural = "s were" if len(choices) > 1 else " was"
    return [
        f"{len(choices)} choice{plural} not tried, for lack of budget: {' with '.join(ranges)}; "
        "raise --search-images or --budget-fraction."
    ]


def merge_text(merge: Mapping[str, Any] | None) -> str:
    """A merge in words, for example `(8,-1): 96 by keys`."""
    if not merge:
        return "none"
    more = ", proportional attention" * merge["proportional"]
    more += ", published indexing" * merge["compat"]
    return f"{merge['schedule']}: {sum(merge['counts'])} by {merge['metric']}{more}"


def _front_ratio(point: Mapping[str, Any]) -> str:
    """With its interval; a latency that was given (`--latency`) has none."""
    low, high = point["speedup_low"], point["speedup_high"]
    interval = f" [{low:.2f}, {high:.2f}]" if low < high else ""
    return f"{point['speedup']:.2f}{interval}"


def front_rows(metric: str, points: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What `--merge auto` weighed, one row a graph, the slowest first."""
    return [
        [
            point["title"] + " <- chosen" * point["chosen"],
            f"{point['ms']:.2f}",
            _front_ratio(point),
            value_text(metric, point["value"]),
            f"{point['points']:+.2f} [{point['points_low']:+.2f}, {point['points_high']:+.2f}]",
        ]
        for point in sorted(points, key=lambda each: -each["ms"])
    ]
