"""Evaluations on stdout: JSON in clip_benchmark's field names, a table, or CSV."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regcache_engines.bundle import MODEL
from regcache_engines.files import atomic_write_bytes

from ..evaluation.bundle_evaluation import Session
from ..evaluation.records import Record
from ..work.format import difference_text, p_text, plain
from ..work.json_file import json_text, write_json
from ..work.paths import beside
from ..work.terminal import add_row, new_table, place, prose, show, stdout_console

log = logging.getLogger(__name__)

MAIN_METRIC = {
    "zeroshot_classification": "acc1",
    "knn": "acc1",
    "linear_probe": "acc1",
    "zeroshot_retrieval": "image_retrieval_recall@1",
    "fidelity": "mean_cosine",
    "instances": "acc1",
}

TITLES = {
    "acc1": "top-1",
    "image_retrieval_recall@1": "image retrieval,\nrecall at 1",
    "mean_cosine": "mean cosine\nto the first",
}

TASKS = {
    "zeroshot_classification": "zero-shot classification",
    "knn": "k nearest neighbours",
    "linear_probe": "linear probe",
    "zeroshot_retrieval": "zero-shot retrieval",
    "fidelity": "fidelity of the features",
    "instances": "copy detection",
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
        print(json_text(document(session, results)))
        return
    _caution(session)
    for result in results:
        print(plain(f"{result['image']} ({result['on']})"))
        for entry in result["top"]:
            print(plain(f"  {entry['score']:7.2%}  {entry['label']}"))


def print_records(session: Session, records: Sequence[Record], as_json: bool) -> None:
    """One line per data set, task and runner."""
    if as_json:
        print(json_text(document(session, records_json(session, records))))
        return
    console = stdout_console()
    _caution(session)
    place(console, str(session.path))
    first = session.on[0]
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.dataset, record.task, record.n), []).append(record)
    for (dataset, task, n), found in groups.items():
        metric = MAIN_METRIC[task]
        counted = task != "fidelity"
        heads = ["on", f"{TITLES[metric]}{', %' * counted}"]
        paired = any(record.paired for record in found)
        heads += [f"against {first},\npoints [95 %]", "lost /\nwon", "McNemar\np"] * paired
        table = new_table(heads, whole=(0,))
        for record in found:
            value, pair = record.metrics[metric], record.paired
            cells = [record.on, f"{100 * value:.2f}" if counted else f"{value:.6f}"]
            if pair:
                cells.append(difference_text("top1", pair.to_json()))
                cells += [f"{pair.lost} / {pair.won}", p_text(pair.to_json())]
            add_row(table, *cells)
        show(console, f"{TASKS[task]} on {dataset}, {n} images", table)
    console.print()
    for record in records:
        if record.resolution:
            prose(console, f"{record.dataset}, {record.on}: {record.resolution}.")
    for line in session.notes:
        prose(console, f"{line}.")
    for line in session.warnings:
        prose(console, f"warning: {line}")


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
    # a path that is no UTF-8 is written as one can read it
    atomic_write_bytes(path, buffer.getvalue().encode(errors="backslashreplace"))


def keep_records(session: Session, records: Sequence[Record], data: str) -> None:
    """Leave the records beside the bundle for the page.

    A later run of the same bundle on the same data replaces them where it is of the same runners
    and as many images: the name ends in a hash of all four, since two folders may have the same
    name, or one without Latin letters. A bundle may lie where nobody may write, and is evaluated
    all the same.
    """
    tasks = "-".join(sorted({record.task for record in records} - {"fidelity"}) or ["fidelity"])
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{Path(data).name or data}-{tasks}").strip("-.")
    graph = session.bundle.manifest["files"][MODEL]["sha256"]
    more = {"data": data, "model_sha256": graph}
    found = document(session, records_json(session, records)) | more
    where = str(Path(data).resolve()) if Path(data).exists() else data
    counts = sorted({record.n for record in records})
    key = "\0".join((where, graph, *session.on, *map(str, counts)))
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    path = beside(session.path) / f"eval-{words}-{digest[:8]}.json"
    try:
        write_json(path, found)
    except OSError as error:
        log.warning("the records are not kept in %s: %s", path, error.strerror)
    else:
        log.info("records: %s", path)


def _caution(session: Session) -> None:
    caution = session.provenance.get("caution")
    if caution:
        print(plain(f"Note: {caution}."))
