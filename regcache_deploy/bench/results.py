"""Rows as CSV, JSON and a table on the terminal."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from regcache_engines.files import atomic_write_bytes

from ..work.format import for_rich, speedup_head
from .environment import busy_warning, environment_columns, environment_name

Columns = dict[str, Any]


def bench_document(
    rows: Sequence[Columns],
    machine: Mapping[str, Any],
    after: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What `--json` prints: environment before and after, settings, and the rows."""
    return {
        "measured_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        "environment": dict(machine),
        "environment_after": {"load": after["load"], "gpu": after["gpu"]},
        "settings": dict(settings),
        "rows": list(rows),
    }


def results_file(path: Path, stem: str, machine: Mapping[str, Any]) -> Path:
    """`path` itself, or a file in that folder named by the environment.

    What is not there yet is a folder where it has no suffix.
    """
    if path.is_dir() or not (path.suffix or path.exists()):
        return path / f"{stem}-{environment_name(machine)}.csv"
    return path


def write_rows(path: Path, rows: Sequence[Columns], extra: Mapping[str, Any]) -> None:
    """Write rows as CSV, every one with the columns `extra` unless it has its own.

    A file that is there is replaced as a whole.
    """
    complete = [row | {k: v for k, v in extra.items() if k not in row} for row in rows]
    columns = _union(complete)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(complete)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, buffer.getvalue().encode())


def environment_of_rows(document: Mapping[str, Any]) -> dict[str, Any]:
    """The environment's columns of a document, with the day."""
    machine = document["environment"]
    columns = environment_columns(machine, document["environment_after"])
    return columns | {"measured_at": document["measured_at"]}


def print_table(document: Mapping[str, Any]) -> None:
    """The rows for people; what could not run comes below with its reason."""
    from rich.console import Console
    from rich.table import Table

    machine = document["environment"]
    flags = " ".join(machine["cpu_flags"])
    where = machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']} ({flags})"
    table = Table(title=f"{where}, {machine['cores']} cores, load {machine['load']}")
    for name in ("bundle", "precision", "engine", "threads"):
        table.add_column(name, overflow="fold")
    faster_head = speedup_head(document["rows"])
    for name in ("batch", "p50 ms", "p90", "p99", "images/s", faster_head, "MiB", "peak MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for row in document["rows"]:
        if row["reason"]:
            what = f"{row['bundle']} {row['precision']}"
            reasons.setdefault((row["engine"], row["reason"]), {})[what] = None
            continue
        faster = ""
        if "speedup" in row:
            low, high = row["speedup_low"], row["speedup_high"]
            faster = rf"{row['speedup']:.2f} \[{low:.2f}, {high:.2f}]"
        table.add_row(
            for_rich(row["bundle"]),
            row["precision"],
            row["engine"],
            str(row["threads"]),
            str(row["infer_batch_size"]),
            *(f"{row[name]:.2f}" for name in ("infer_step_time", "p90_ms", "p99_ms")),
            f"{row['infer_samples_per_sec']:.1f}",
            faster,
            f"{row['file_mib']:.1f}",
            f"{row['peak_memory_mib']:.0f}" if "peak_memory_mib" in row else "",
        )
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, emoji=False)
    console.print(table)
    busy = busy_warning(machine["load"], machine["cores"])
    if busy:
        console.print(f"warning: {busy}.", markup=False)
    cautions = {row["caution"] for row in document["rows"] if row["caution"]}
    for caution in sorted(cautions):
        console.print(f"Note: {caution}.", markup=False)
    console.print(f"Images: {document['settings']['images']}.", markup=False)
    if any(row["precision"] == "fp32" and not row["reason"] for row in document["rows"]):
        console.print(f"fp32: {document['settings']['fp32']}.", markup=False)
    for (engine, reason), subjects in reasons.items():
        text = f"not run on {engine}: {', '.join(subjects)}: {reason}"
        console.print(text, soft_wrap=True, markup=False)


def _union(rows: Sequence[Columns]) -> list[str]:
    """All columns, in the order of the fullest row."""
    longest = max(rows, key=len, default={})
    columns = list(longest)
    return columns + [name for row in rows for name in row if name not in columns]
