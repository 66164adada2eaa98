"""How fast the files are: latency against accuracy, every ratio, every row of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bench.environment import busy_warning
from ..work.format import (
    SPEEDUP,
    counted,
    metric_title,
    ms_text,
    ratio_text,
    speedup_head,
    value_text,
)
from .bundle_plots import PARETO_CAPTION, pareto
from .drawing import draw_svg
from .measured import own_rows, speeds
from .parts import Section, Table, svg_picture


def speed(folder: Path, document: dict[str, Any]) -> Section | None:
    """Latency against accuracy, every measured latency, and every measured ratio."""
    rows, found = document.get("bench", []), speeds(document)
    if not rows and not found:
        return None
    points = pareto_points(document)
    batch = points[0]["batch"] if points else 1
    pictures, tables = [], []
    if len(points) > 1:
        metric, kinds = points[0]["metric"], points[0]["kinds"]
        data = draw_svg(lambda: pareto(points, metric, batch, kinds))
        listing = ", ".join(f"{i}: {p['label']}" for i, p in enumerate(points, 1))
        pictures.append(svg_picture(data, f"Latency against accuracy: {listing}.", PARETO_CAPTION))
        tables.append(_points_table(points, batch))
    if len(found) > 1 or not rows:
        lines = [
            [each.by, each.where, f"{each.value:.2f} [{each.low:.2f}, {each.high:.2f}]", each.over]
            for each in found
        ]
        caption = "Every measurement of the ratio; the first one is that of the answer"
        heads = ["by", "where", "times as fast [95 %]", "over"]
        tables.append(Table(heads, lines, caption))
    benched = [row for row in rows if "engine" in row and "infer_step_time" in row]
    if benched:
        tables.append(_bench_table(benched, own_rows(document)))
    machines = sorted({_machine(row) for row in rows if row.get("cpu")})
    text = [f"How many times as fast: {SPEEDUP}."] if found else []
    text += [f"Measured on: {'; '.join(machines)}."] if machines else []
    loads = [(float(r["load"]), int(r["cores"])) for r in rows if r.get("load") and r.get("cores")]
    if loads and (busy := busy_warning(*max(loads))):
        text.append(f"{busy[0].upper()}{busy[1:]}.")
    if lines := _not_run(rows):
        tables.append(Table(["not run", "why"], lines))
    return Section("speed", "Speed", text, tables, pictures)


def _not_run(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Engines and why they did not run; files are named where others ran there."""
    files = {row.get("precision") for row in rows}
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if not row.get("reason"):
            continue
        alike = [r for r in rows if r.get("engine") == row.get("engine")]
        same = {r.get("precision") for r in alike if r.get("reason") == row["reason"]}
        name = _name(row) if same != files or row.get("title") else str(row["engine"])
        names = reasons.setdefault(row["reason"], [])
        if name not in names:
            names.append(name)
    return [[", ".join(names), reason] for reason, names in reasons.items()]


def pareto_points(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Points of latency and accuracy at the smallest batch size that was measured.

    From `benchmarks/peers.py` where there is such a file, because it measured both on the same
    images; else from `regcache bench` of the run's bundle, with the run's own accuracy.
    """
    rows = document.get("bench", [])
    peers = [row for row in rows if "peer" in row and not row.get("reason")]
    if peers:
        batches = sorted(
            int(k[1:].split("_")[0]) for k in peers[0] if k.endswith("_infer_step_time")
        )
        metric = "top1" if "acc1" in peers[0] else "cosine"
        return [
            {
                "label": row["title"],
                "ms": float(row[f"b{batches[0]}_infer_step_time"]),
                "value": float(row.get("acc1" if metric == "top1" else "mean_cosine", 1.0)),
                "ours": row["title"].startswith("ours"),
                "metric": metric,
                "batch": batches[0],
                "kinds": ("others", "ours"),
            }
            for row in peers
        ]
    corners = {"fp32": "fp32", "int8": "deployed"}
    scores = document["accuracy"]
    timed = [
        row
        for row in own_rows(document)
        if "infer_step_time" in row and row["precision"] in corners
    ]
    if scores.get("deployed") is None or not timed:
        return []
    batch = min(int(row["infer_batch_size"]) for row in timed)
    timed = [row for row in timed if int(row["infer_batch_size"]) == batch]
    float_ms = {
        _measurement(row): float(row["infer_step_time"])
        for row in timed
        if row["precision"] == "fp32"
    }
    return [
        {
            "label": f"{row['precision'].upper()}, {row['engine']}, threads {row['threads']}",
            "ms": _comparable_ms(row, float_ms.get(_measurement(row))),
            "value": scores[corners[row["precision"]]],
            "ours": row["precision"] == "int8",
            "metric": document["metric"],
            "batch": batch,
            "kinds": ("FP32", "INT8"),
            "faster": row_ratio(row),
        }
        for row in timed
        if scores.get(corners[row["precision"]]) is not None
    ]


def _measurement(row: dict[str, Any]) -> tuple[Any, ...]:
    """Equal for rows that ran in turns: a folder may hold those of two machines or versions."""
    return tuple(row.get(k) for k in ("engine", "threads", "cpu", "versions", "measured_at"))


def _comparable_ms(row: dict[str, Any], float_ms: float | None) -> float:
    """FP32's median over the ratio of pairs, so that points lie as far apart as the ratio says."""
    if float_ms is None or "speedup" not in row or row.get("speedup_over") != "fp32":
        return float(row["infer_step_time"])
    return float_ms / float(row["speedup"])


def row_ratio(row: dict[str, Any]) -> str:
    """How many times as fast, with the interval; nothing where the row has none."""
    if "speedup" not in row:
        return ""
    ends = {"value": "speedup", "low": "speedup_low", "high": "speedup_high"}
    return ratio_text({end: float(row[name]) for end, name in ends.items()})


def _points_table(points: Sequence[dict[str, Any]], batch: int) -> Table:
    metric = points[0]["metric"]
    rows = [
        [
            str(i),
            p["label"],
            ms_text(p["ms"]),
            p.get("faster", ""),
            value_text(metric, p["value"]),
        ]
        for i, p in enumerate(points, 1)
    ]
    heads = ["", "file", f"ms, batch {batch}", "times as fast [95 %]", metric_title(metric)]
    return Table(heads, rows, "The points; ms of INT8 is FP32's median over the ratio")


def _bench_table(rows: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> Table:
    """One line a file, engine and batch size; threads are told where they differ.

    So is the bundle, unless all rows are of the page's own.
    """
    threads = sorted({str(row["threads"]) for row in rows})
    several = len(threads) > 1
    bundles = any(row not in own for row in rows)
    lines = [
        [
            ", ".join([*([row["bundle"]] if bundles else []), row["precision"], row["engine"]]),
            str(row["infer_batch_size"]),
            *([str(row["threads"])] if several else []),
            ms_text(float(row["infer_step_time"])),
            ms_text(float(row["p99_ms"])),
            row_ratio(row),
        ]
        for row in rows
    ]
    columns = ["file, engine", "batch", *(["threads"] if several else []), "p50 ms", "p99 ms"]
    caption = "`regcache bench`, in turns; ratios are of pairs within a round"
    if not several:
        caption += f"; threads: {threads[0]}"
    return Table([*columns, speedup_head(rows)], lines, caption)


def _name(row: dict[str, Any]) -> str:
    return str(row.get("title") or f"{row['precision']} on {row['engine']}")


def _machine(row: dict[str, Any]) -> str:
    gpu = f", {row['gpu']}" if row.get("gpu") else ""
    flags = f" ({row['cpu_flags']})" if row.get("cpu_flags") else ""
    cores = counted(int(row["cores"]), "core")
    return f"{row['cpu']}{flags}, {cores}{gpu}, load {row.get('load', '?')}"
