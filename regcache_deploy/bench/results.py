"""Rows as CSV, JSON and a table on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from regcache_engines.files import atomic_write_bytes

from ..work.format import SPEEDUP, counted, ms_text, speedup_head
from ..work.terminal import add_row, new_table, prose, show, stdout_console
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
    atomic_write_bytes(path, buffer.getvalue().encode(errors="backslashreplace"))


def environment_of_rows(document: Mapping[str, Any]) -> dict[str, Any]:
    """The environment's columns of a document, with the day."""
    machine = document["environment"]
    columns = environment_columns(machine, document["environment_after"])
    return columns | {"measured_at": document["measured_at"]}


def print_table(document: Mapping[str, Any]) -> None:
    """The rows for people; what could not run comes below with its reason.

    A table each bundle, engine and number of threads, so that its figures have room.
    """
    console = stdout_console()
    machine = document["environment"]
    where = machine["gpu"]["name"] if machine["gpu"] else machine["cpu"]
    flags = " ".join(machine["cpu_flags"])
    load = counted(machine["cores"], "core")
    if machine["load"] is not None:  # Windows does not tell
        load += f", load {machine['load']}"
    prose(console, f"{where} ({flags}), {load}" if flags else f"{where}, {load}")
    groups: dict[str, list[Columns]] = {}
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for row in document["rows"]:
        if row["reason"]:
            what = f"{row['bundle']} {row['precision']}"
            reasons.setdefault((row["engine"], row["reason"]), {})[what] = None
            continue
        group = f"{row['bundle']} in {row['engine']}, threads: {row['threads']}"
        groups.setdefault(group, []).append(row)
    faster_head = speedup_head(document["rows"]).replace(" [", "\n[")
    heads = ("file", "batch", "p50\nms", "p90\nms", "p99\nms", "images\n/s", faster_head)
    for title, rows in groups.items():
        table = new_table((*heads, "file\nMiB", "peak\nMiB"), whole=(0,))
        for row in rows:
            faster = ""
            if "speedup" in row:
                low, high = row["speedup_low"], row["speedup_high"]
                faster = f"{row['speedup']:.2f} [{low:.2f}, {high:.2f}]"
            add_row(
                table,
                row["precision"],
                str(row["infer_batch_size"]),
                *(ms_text(row[name]) for name in ("infer_step_time", "p90_ms", "p99_ms")),
                f"{row['infer_samples_per_sec']:.1f}",
                faster,
                f"{row['file_mib']:.1f}",
                f"{row['peak_memory_mib']:.0f}" if "peak_memory_mib" in row else "",
            )
        show(console, title, table)
    console.print()
    if any("speedup" in row for row in document["rows"]):
        prose(console, f"Faster: {SPEEDUP}.")
    busy = busy_warning(machine["load"], machine["cores"])
    if busy:
        prose(console, f"warning: {busy}.")
    cautions = {row["caution"] for row in document["rows"] if row["caution"]}
    for caution in sorted(cautions):
        prose(console, f"Note: {caution}.")
    prose(console, f"Images: {document['settings']['images']}.")
    if any(row["precision"] == "fp32" and not row["reason"] for row in document["rows"]):
        prose(console, f"fp32: {document['settings']['fp32']}.")
    everything = {f"{row['bundle']} {row['precision']}" for row in document["rows"]}
    for (engine, reason), subjects in reasons.items():
        which = "" if everything <= subjects.keys() else f"{', '.join(subjects)}: "
        prose(console, f"not run on {engine}: {which}{reason}")


def _union(rows: Sequence[Columns]) -> list[str]:
    """All columns, in the order of the fullest row."""
    longest = max(rows, key=len, default={})
    columns = list(longest)
    return columns + [name for row in rows for name in row if name not in columns]
