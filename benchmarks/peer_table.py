"""Markdown tables out of the CSV files that `peers.py` wrote.

python benchmarks/peer_table.py benchmarks/results/peers-*.csv --output FILE.md
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from regcache_engines.files import atomic_write_bytes

Row = dict[str, str]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.csv")
    parser.add_argument("--output", type=Path, metavar="FILE.md")
    args = parser.parse_args(argv)
    text = "\n".join(table(path.name, read(path)) for path in sorted(args.files))
    if args.output is None:
        print(text, end="")
    else:
        atomic_write_bytes(args.output, text.encode())
    return 0


def read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(name: str, rows: Sequence[Row]) -> str:
    """One model on one machine."""
    first = rows[0]
    batches = [int(c[1:].split("_")[0]) for c in first if c.endswith("_infer_step_time")]
    judged = "top-1 against FP32, points [95 %]" if first.get("acc1") else "cosine to FP32 [95 %]"
    head = ["", judged, *(f"batch {b}, ms (× ONNX Runtime FP32)" for b in batches)]
    head += ["MiB", "minutes"] if batches else ["MiB"]
    lines = [f"### {title(first)}", "", *facts(name, rows), ""]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["title"]]
        if row["reason"]:
            cells += [""] * (len(head) - 1)
        else:
            cells += [accuracy(row), *(latency(row, batch) for batch in batches)]
            cells += [f"{float(row['file_mib']):.1f}" if row["file_mib"] else ""]
            cells += [f"{float(row['minutes']):.1f}"] if batches else []
        lines.append("| " + " | ".join(cells) + " |")
    missing = [f"- {row['title']}: {row['reason']}." for row in rows if row["reason"]]
    if missing:
        lines += ["", "Not run:", "", *missing]
    return "\n".join(lines) + "\n"


def title(row: Row) -> str:
    weights = f" ({row['pretrained']})" if row["pretrained"] else ""
    return f"{row['model']}{weights}, {row['infer_img_size']} pixels"


def facts(name: str, rows: Sequence[Row]) -> list[str]:
    """What must be known to read the table."""
    row = next(r for r in rows if not r["reason"])
    images = f"{row['n']} held-out images ({row['dataset']})"
    lines = [f"**{row['caution'][0].upper()}{row['caution'][1:]}.**"] if row["caution"] else []
    calls = (
        "Median of calls; the factor is of pairs within a round, with its 95 % interval in "
        f"[`{name}`]({name}), beside settings and versions."
        if any(column.endswith("_infer_step_time") for column in row)
        else f"Nothing was timed. What each tool chose is in [`{name}`]({name}), beside settings "
        "and versions."
    )
    lines.append(
        f"{row['cpu']} ({row['cpu_flags']}), {row['cores']} cores, {row['threads']} threads, load "
        f"before the run {row['load']}. {images}; every tool calibrates on the same "
        f"{row['calibration_images']} others. {calls}"
    )
    if row.get("note"):
        lines.append(f"{row['note']}.")
    return lines


def accuracy(row: Row) -> str:
    if row.get("acc1"):
        value = f"{100 * float(row['acc1']):.1f} %"
        if not row["acc1_difference"]:
            return value
        low, high = (f"{float(row[f'acc1_{end}']):+.1f}" for end in ("low", "high"))
        return f"{value}, {float(row['acc1_difference']):+.1f} [{low}, {high}]"
    if not row.get("mean_cosine"):
        return "reference"
    low, high = (f"{float(row[f'mean_cosine_{end}']):.4f}" for end in ("low", "high"))
    return f"{float(row['mean_cosine']):.4f} [{low}, {high}]"


def latency(row: Row, batch: int) -> str:
    value = f"{float(row[f'b{batch}_infer_step_time']):.1f}"
    speedup = row[f"b{batch}_speedup"]
    return f"{value} (×{float(speedup):.2f})" if speedup else value


if __name__ == "__main__":
    raise SystemExit(main())
