"""The README's short table, out of the CSV files that `peers.py` wrote.

    python benchmarks/peer_readme.py benchmarks/results/peers-*.csv --readme README.md

The text between the two markers in the README is replaced. Of several machines' files, those of the
machine that was measured last are taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from peer_table import Row, read, title

from regcache_engines.errors import RegCacheError
from regcache_engines.files import atomic_write_bytes

BEGIN, END = "<!-- peers: written by make bench -->", "<!-- peers: end -->"

SHOWN = (
    "onnxruntime_fp32",
    "openvino_fp32",
    "openvino_default",
    "static_linears",
    "dynamic",
    "dynamic_quint8",
    "modelopt_int8",
    "nncf",
    "nncf_default",
    "portable_auto",
    "tuned_regcache",
    "tuned_auto",
    "openvino_auto",
    "openvino_auto_default",
    "tensorrt_fp16",
    "modelopt_int8_tensorrt",
    "tensorrt_auto",
)
"""Peers of the short table; the whole one has all."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.csv")
    parser.add_argument("--readme", type=Path, required=True, metavar="README.md")
    args = parser.parse_args(argv)
    text = args.readme.read_text(encoding="utf-8")
    table = "\n".join(lines(newest([read(path) for path in args.files])))
    try:
        atomic_write_bytes(args.readme, replaced(text, table).encode())
    except RegCacheError as error:
        parser.error(str(error))
    return 0


def replaced(text: str, table: str) -> str:
    """The text with another table between the markers.

    Raises:
        RegCacheError: a marker is missing.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise RegCacheError(f"the README has no lines '{BEGIN}' and '{END}'; put them where the "
                            "table shall be")  # fmt: skip
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def machine_of(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(rows[0].get(name, "") for name in ("cpu", "cores", "gpu"))


def newest(tables: Sequence[list[Row]]) -> list[list[Row]]:
    """The tables of the machine that was measured last, the planted demo first."""
    last = machine_of(max(tables, key=lambda rows: rows[0]["measured_at"]))
    mine = [rows for rows in tables if machine_of(rows) == last]
    return sorted(mine, key=lambda rows: (rows[0]["model"] != "demo", rows[0]["model"]))


def lines(tables: Sequence[list[Row]]) -> list[str]:
    """One row a peer that ran somewhere, columns of accuracy and latency for each model."""
    head, by_name = [""], [{row["peer"]: row for row in rows} for rows in tables]
    for rows in tables:
        if judged(rows):
            head.append(f"{title(rows[0])}: top-1 against FP32, points [95 %]")
        head.append(f"{title(rows[0])}: ms at batch 1, 8 (× ONNX Runtime FP32)")
    out = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    missing = []
    for name in SHOWN:
        found = [rows.get(name) for rows in by_name]
        known = [row for row in found if row is not None]
        if not known:
            continue
        if all(row["reason"] for row in known):
            missing.append(f"{known[0]['title']} ({known[0]['reason']})")
            continue
        cells = [known[0]["title"]]
        for rows, row in zip(tables, found, strict=True):
            cells += [accuracy(row)] if judged(rows) else []
            cells.append(latency(row))
            if row is None or row["reason"]:
                why = row["reason"] if row else "not asked for"
                missing.append(f"{known[0]['title']} with {title(rows[0])} ({why})")
        out.append("| " + " | ".join(cells) + " |")
    out += ["", *(about(rows) for rows in tables)]
    if missing:
        out.append(f"- Not run: {'; '.join(missing)}.")
    return out


def judged(rows: Sequence[Row]) -> bool:
    return any(row.get("acc1") for row in rows)


def accuracy(row: Row | None) -> str:
    if row is None or row["reason"]:
        return ""
    low, high = (f"{float(row[f'acc1_{end}']):+.1f}" for end in ("low", "high"))
    return f"{float(row['acc1_difference']):+.1f} [{low}, {high}]"


def latency(row: Row | None) -> str:
    if row is None or row["reason"]:
        return ""
    cells = []
    for batch in (1, 8):
        speedup = row.get(f"b{batch}_speedup")
        factor = f" (×{float(speedup):.1f})" if speedup else ""
        cells.append(f"{float(row[f'b{batch}_infer_step_time']):.1f}{factor}")
    return ", ".join(cells)


def about(rows: Sequence[Row]) -> str:
    """What must be known to read a model's columns."""
    row = next(row for row in rows if not row["reason"])
    judge = f"{row['n']} held-out images, " if judged(rows) else ""
    place = row["gpu"] or f"{row['cpu']} ({row['cpu_flags']})"
    note = f" {row['note']}." if row.get("note") else ""
    caution = f" **{row['caution']}**;" if row["caution"] else ""
    return (
        f"- {title(row)}:{caution} {judge}{row['threads']} threads on {row['cores']} cores of "
        f"{place}, load before the run {row['load']}, {row['measured_at'][:10]}.{note}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
