"""The severity curve's table and picture for the docs, out of the CSV that `severity.py` wrote.

    python benchmarks/severity_table.py benchmarks/results/severity-NAME.csv \
        --page docs/when-regcache-does-not-help.md --picture docs/severity.svg

The text between the two markers of the page is replaced. Copy detection in per cent; seeds are
averaged. The best quantized way of a row is in bold. Behind it stands how far `auto` is from FP32
and from the best other way of the same seed (which is chosen afterwards, by the same images).
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import severity_plot

from regcache_engines.errors import RegCacheError
from regcache_engines.files import atomic_write_bytes

BEGIN, END = "<!-- severity: written by severity_table.py -->", "<!-- severity: end -->"

COLUMNS = {
    "fp32": "FP32",
    "fp32_regcache": "FP32 + RegCache",
    "naive": "min-max",
    "ptq4vit": "PTQ4ViT",
    "repqvit": "RepQ-ViT",
    "nncf": "NNCF",
    "nncf_plain": "NNCF, no SmoothQuant",
    "delete": "RegCache, deletion",
    "saturate": "RegCache, saturation",
    "auto": "auto",
}
"""Way -> head."""

KINDS = {"healthy": "as it is", "planted": "fresh sinks", "adapted": "used to its sinks"}

Row = Mapping[str, Any]


def lines(rows: Sequence[Row]) -> list[str]:
    """The table, healthy first, mildest sinks first within a kind."""
    found: dict[tuple[int, float], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        key = list(KINDS).index(row["kind"]), float(row["ratio"])
        found[key][row["way"]].append(row)
    head = ["encoder, norm ratio", "seeds", *COLUMNS.values()]
    head += ["auto against FP32, points [95 %]", "auto against the best other way, points"]
    table = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for kind, ratio in sorted(found):
        ways = _of_common_seeds(found[kind, ratio])
        name = KINDS[list(KINDS)[kind]] + (f", {ratio:g}" if kind else "")
        values = {way: _mean(ways[way], "copy_detection") for way in COLUMNS if way in ways}
        quantized = [v for way, v in values.items() if not way.startswith("fp32")]
        cells = [
            ""
            if way not in values
            else _bold(values[way], max(quantized))
            if not way.startswith("fp32")
            else f"{values[way]:.1f}"
            for way in COLUMNS
        ]
        chosen = ways.get("auto", [])
        cells = [name, str(len(ways["fp32"])), *cells, _against_float(chosen)]
        cells.append(", ".join(f"{points:+.1f}" for points in _against_best(ways)))
        table.append("| " + " | ".join(cells) + " |")
    return table


def _of_common_seeds(ways: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """Means of several ways are compared, so they are of the same seeds."""
    common = set.intersection(*({row["seed"] for row in rows} for rows in ways.values()))
    return {way: [row for row in rows if row["seed"] in common] for way, rows in ways.items()}


def _against_best(ways: Mapping[str, Sequence[Row]]) -> list[float]:
    """By seed: `auto` minus the best of the other quantized ways."""
    best: dict[str, float] = {}
    for way in COLUMNS.keys() - {"fp32", "fp32_regcache", "auto"}:
        for row in ways.get(way, []):
            seed, value = row["seed"], float(row["copy_detection"])
            best[seed] = max(value, best.get(seed, value))
    chosen = sorted(ways.get("auto", []), key=lambda row: int(row["seed"]))
    return [float(r["copy_detection"]) - best[r["seed"]] for r in chosen if r["seed"] in best]


def _bold(value: float, best: float) -> str:
    return f"**{value:.1f}**" if value == best else f"{value:.1f}"


def _against_float(rows: Sequence[Row]) -> str:
    return ", ".join(
        f"{float(row['difference']):+.1f} [{float(row['low']):+.1f}, {float(row['high']):+.1f}]"
        for row in sorted(rows, key=lambda row: int(row["seed"]))
    )


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(float(row[name]) for row in rows) / len(rows)


def replaced(text: str, table: Sequence[str]) -> str:
    """The page with another table between the markers.

    Raises:
        RegCacheError: a marker is missing.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise RegCacheError(f"the page has no lines '{BEGIN}' and '{END}'")
    return f"{head}{BEGIN}\n" + "\n".join(table) + f"\n{END}{tail}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path, metavar="FILE.csv")
    parser.add_argument("--page", type=Path, required=True, metavar="PAGE.md")
    parser.add_argument("--picture", type=Path, required=True, metavar="FILE.svg")
    args = parser.parse_args(argv)
    with args.file.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    text = args.page.read_text(encoding="utf-8")
    try:
        atomic_write_bytes(args.page, replaced(text, lines(rows)).encode())
        atomic_write_bytes(args.picture, severity_plot.draw(rows, list(COLUMNS)))
    except RegCacheError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
