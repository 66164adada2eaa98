"""What the docs say of the race of the ways is what its table of results says."""

from __future__ import annotations

import csv
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def runs() -> list[tuple[tuple[str, str, str], list[dict[str, Any]]]]:
    with (ROOT / "benchmarks/results/ways-demo.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    grouped = groupby(rows, key=lambda row: (row["model"], row["bits"], row["seed"]))
    return [(key, list(group)) for key, group in grouped]


def test_the_table_and_the_largest_gaps_are_those_of_the_csv() -> None:
    text = (ROOT / "docs/when-regcache-does-not-help.md").read_text(encoding="utf-8")
    behind_best, behind_float = [], []
    for (model, bits, seed), rows in runs():
        value = {row["way"]: 100 * float(row["value"]) for row in rows}
        reference = value.pop("fp32")
        (chosen,) = (row["way"] for row in rows if row["chosen"] == "1")
        best = max(value, key=lambda name: value[name])
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


def test_the_figures_on_natural_weights_are_those_of_the_csv() -> None:
    text = (ROOT / "docs/when-regcache-does-not-help.md").read_text(encoding="utf-8")
    (path,) = (ROOT / "benchmarks/results").glob("severity-*.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = {
            row["way"]: row
            for row in csv.DictReader(file)
            if (row["kind"], row["ratio"], row["n"]) == ("planted", "300.0", "100")
        }
    value = {way: f"{float(row['copy_detection']):.0f} %" for way, row in rows.items()}
    assert f"FP32 finds {value['fp32']}, the quantizer alone {value['repqvit']}" in text
    assert value["delete"] == value["saturate"]
    assert f"RegCache {value['delete']} with its sinks deleted or saturated" in text
    assert f"the race chose {rows['auto']['choice']}: {value['auto']}" in text
    low, high = (float(rows["auto"][end]) for end in ("low", "high"))
    assert f"({float(rows['auto']['difference']):+.0f} [{low:+.0f}, {high:+.0f}])" in text
