"""What the docs say of the race of the ways is what its table of results says."""

from __future__ import annotations

import csv
from itertools import groupby
from pathlib import Path
from typing import Any

import severity_table

ROOT = Path(__file__).resolve().parents[2]


def runs() -> list[tuple[tuple[str, str, str], list[dict[str, Any]]]]:
    with (ROOT / "benchmarks/results/ways-demo.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    grouped = groupby(rows, key=lambda row: (row["model"], row["bits"], row["seed"]))
    return [(key, list(group)) for key, group in grouped]


def test_the_table_and_the_largest_gaps_are_those_of_the_csv() -> None:
    text = (ROOT / "docs/when-regcache-does-not-help.md").read_text(encoding="utf-8")
    behind_best, behind_float, shares = [], [], []
    for (model, bits, seed), rows in runs():
        value = {row["way"]: 100 * float(row["value"]) for row in rows}
        reference = value.pop("fp32")
        (chosen,) = (row["way"] for row in rows if row["chosen"] == "1")
        best = max(value, key=lambda name: value[name])
        work = next(row for row in rows if row["chosen"] == "1")
        shares.append(int(work["ways_block_forwards"]) / int(work["search_block_forwards"]))
        behind_best.append(value[best] - value[chosen])
        behind_float.append(reference - value[chosen])
        assert (
            f"| {model} {bits}, seed {seed} | {reference:.1f} | {value['quantizer']:.1f} "
            f"| `{chosen}` {value[chosen]:.1f} | `{best}` {value[best]:.1f} |"
        ) in text
    assert f"by at most {max(behind_best):.1f} points" in text
    assert f"behind FP32 by at most {max(behind_float):.1f}:" in text
    assert max(behind_best) <= 0.7
    assert max(behind_float) <= 0.7
    recipe = (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
    assert f"the race added {100 * min(shares):.0f} to {100 * max(shares):.0f} %" in recipe
    assert max(shares) <= 0.6


def test_the_severity_curve_is_that_of_the_csv() -> None:
    """Also: `auto` reaches the best other quantized way within its own interval, everywhere."""
    text = (ROOT / "docs/when-regcache-does-not-help.md").read_text(encoding="utf-8")
    (path,) = (ROOT / "benchmarks/results").glob("severity-*.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(int(row["n"]) >= 400 for row in rows)
    assert severity_table.replaced(text, severity_table.lines(rows)) == text
    for _, group in groupby(rows, key=lambda row: (row["kind"], row["ratio"], row["seed"])):
        ways = {row["way"]: row for row in group}
        auto = ways["auto"]
        others = [row for way, row in ways.items() if way != "auto" and not way.startswith("fp32")]
        assert max(float(row["difference"]) for row in others) <= float(auto["high"])
        if auto["kind"] == "healthy":
            alone = float(ways["repqvit"]["difference"])
            assert float(auto["difference"]) >= alone
            assert "RegCache" not in auto["choice"]
