"""Evaluations on stdout: JSON in clip_benchmark's field names, a table, or CSV."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regcache_engines.files import atomic_write_bytes

from ..evaluation.bundle_evaluation import Session
from ..evaluation.records import Record
from ..work.format import for_rich

MAIN_METRIC = {
    "zeroshot_classification": "acc1",
    "knn": "acc1",
    "linear_probe": "acc1",
    "zeroshot_retrieval": "image_retrieval_recall@1",
    "fidelity": "mean_cosine",
    "instances": "acc1",
}


def document(session: Session, results: list[Any]) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "bundle": str(session.path),
        "on": list(session.on),
        "reference": session.on[0],
        "caution": session.provenance.get("caution"),
        "notes": session.notes,
        "warnings": session.warnings,
        "results": results,
    }


def records_json(session: Session, records: Sequence[Record]) -> list[dict[str, Any]]:
    source = session.provenance
    model, pretrained = str(source.get("model", "unknown")), source.get("pretrained")
    return [record.to_json(model, pretrained) for record in records]


def print_images(session: Session, results: list[dict[str, Any]], as_json: bool) -> None:
    """Top classes of single images."""
    if as_json:
        print(json.dumps(document(session, results), indent=1))
        return
    _caution(session)
    for result in results:
        print(f"{result['image']} ({result['on']})")
        for entry in result["top"]:
            print(f"  {entry['score']:7.2%}  {entry['label']}")


def print_records(session: Session, records: Sequence[Record], as_json: bool) -> None:
    """One line per data set, task and runner."""
    if as_json:
        print(json.dumps(document(session, records_json(session, records)), indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    _caution(session)
    table = Table(title=for_rich(str(session.path)))
    for title in ("data set", "task", "on", "metric", "n", "against the first, points [95 %]", "p"):
        table.add_column(title, overflow="fold")
    for record in records:
        name = MAIN_METRIC[record.task]
        value = record.metrics[name]
        shown = f"{value:.6f}" if record.task == "fidelity" else f"{100 * value:.2f} %"
        pair = record.paired
        table.add_row(
            for_rich(record.dataset),
            record.task,
            record.on,
            f"{name} {shown}",
            str(record.n),
            f"{pair.difference:+.2f} [{pair.low:+.2f}, {pair.high:+.2f}]" if pair else "",
            f"{pair.p_value:.2g}" if pair else "",
        )
    Console(width=None if sys.stdout.isatty() else 120, highlight=False, emoji=False).print(table)
    for record in records:
        if record.resolution:
            print(f"{record.dataset}, {record.on}: {record.resolution}.")
    for line in session.notes:
        print(f"{line}.")
    for line in session.warnings:
        print(f"warning: {line}")


def write_csv(path: Path, session: Session, records: Sequence[Record]) -> None:
    """Records as CSV: one column per metric, as `clip_benchmark build` writes them.

    Folders that are missing are made.
    """
    rows = []
    for entry in records_json(session, records):
        paired = entry.pop("paired") or {}
        metrics = entry.pop("metrics")
        rows.append(entry | metrics | {f"paired_{k}": v for k, v in paired.items()})
    columns: list[str] = []
    for row in rows:
        columns += [name for name in row if name not in columns]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, buffer.getvalue().encode())


def _caution(session: Session) -> None:
    caution = session.provenance.get("caution")
    if caution:
        print(f"Note: {caution}.")
