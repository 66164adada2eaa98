"""The first screen of the page: is the accuracy kept, is it faster, which file to deploy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bench.environment import busy_warning
from ..work.format import COUNTED, difference_text, metric_title, speedup_head, value_text
from .bundle_plots import PARETO_CAPTION, pareto
from .contract import form_title
from .drawing import draw_svg
from .parts import Card, Section, Table, svg_picture

MAX_DROP = 0.5
"""Points that count as kept where no `regcache build` set another budget; its own default."""

COSINE_KEPT = 0.99


def answer(folder: Path, document: dict[str, Any]) -> Section:
    """Three cards."""
    return Section(
        "answer",
        "The answer",
        cards=[accuracy_card(document), speed_card(folder, document), file_card(document)],
    )


def accuracy_card(document: dict[str, Any]) -> Card:
    """Whether the best corner that was run keeps what FP32 scores."""
    question, metric = "Accuracy kept?", document["metric"]
    corner = "deployed" if document["accuracy"].get("deployed") is not None else "regcache"
    value, reference = document["accuracy"].get(corner), document["accuracy"].get("fp32")
    if value is None:
        return Card(question, "not measured", "The run evaluated no quantized encoder.")
    how = "in ONNX Runtime" if corner == "deployed" else "in simulation"
    scored = f"{metric_title(metric)} {value_text(metric, value)} {how}"
    if metric not in COUNTED:
        kept = value >= COSINE_KEPT
        return Card(
            question,
            "close" if kept else "not close",
            f"{scored} on {document['n_eval']} images: fidelity to FP32, not accuracy.",
            "open" if kept else "bad",
        )
    pair = document["paired"].get(corner)
    if pair is None or reference is None:
        return Card(question, "not compared", f"{scored}; FP32 was not run.")
    budget = _budget(document)
    detail = (
        f"{scored}, FP32 {value_text(metric, reference)}: {difference_text(metric, pair)} points "
        f"[95 %] on {document['n_eval']} held-out images. Budget: {budget:g} points."
    )
    if pair["low"] >= -budget:
        return Card(question, "yes", detail, "good")
    if pair["difference"] >= -budget:
        return Card(question, "probably", detail + " The interval does not exclude more.", "open")
    if pair["high"] >= -budget:
        return Card(question, "probably not", detail, "bad")
    return Card(question, "no", detail, "bad")


def speed_card(folder: Path, document: dict[str, Any]) -> Card:
    """The ratio that was measured for this bundle, or how to measure it."""
    question = "Faster?"
    found = document.get("decision")
    tried = next((t for t in found["tried"] if "speedup" in t), None) if found else None
    if found and tried:
        at = found["speed_measured_at"]
        place = at["gpu"] if at.get("gpu") else f"threads {at['threads']}"
        busy = ", on a busy machine, which may favour the smaller file" if found["warning"] else ""
        where = f"{at['engine']}, batch {at['batch']}, {place}{busy}"
        return _speed(question, tried["speedup"], where)
    rows, over = _int8_over_float(document)
    if not rows:
        if not document.get("bundle"):
            return Card(question, "not measured", "A search leaves no file that could be timed.")
        return Card(
            question,
            "not measured",
            f"Run `regcache bench {document['bundle']} --csv {folder}`, then this report again.",
        )
    best = max(rows, key=lambda row: float(row["speedup"]))
    ratio = {end: float(best[f"speedup{tail}"]) for end, tail in _ENDS}
    where = f"{best['engine']}, batch {best['infer_batch_size']}, threads {best['threads']}"
    more = "" if len(rows) == 1 else f"; the best of {len(rows)} settings below"
    return _speed(question, ratio, where + more, "FP16" if over == "fp16" else "float")


_ENDS = (("value", ""), ("low", "_low"), ("high", "_high"))


def _own_rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of `regcache bench` about the run's own bundle: a CSV may hold several."""
    if not document.get("bundle"):
        return []
    name = Path(document["bundle"]).resolve().name.removesuffix(".regcache")
    rows = document.get("bench", [])
    return [row for row in rows if "engine" in row and row.get("bundle") == name]


def _int8_over_float(document: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Rows whose ratio is INT8 over a float file, FP32 where there is one, and which it is."""
    rows = [row for row in _own_rows(document) if row["precision"] == "int8" and "speedup" in row]
    for over in ("fp32", "fp16"):
        found = [row for row in rows if row.get("speedup_over") == over]
        if found:
            return found, over
    return [], ""


def _speed(question: str, ratio: dict[str, float], where: str, over: str = "float") -> Card:
    words, mood = "yes", "good"
    if ratio["low"] < 1:
        words, mood = ("maybe", "open") if ratio["high"] > 1 else ("no", "bad")
    factor = f"{ratio['value']:.2f}"
    interval = f"[{ratio['low']:.2f}, {ratio['high']:.2f}]"
    detail = f"INT8 over the {over} file [95 %]: {factor} {interval}"
    return Card(question, f"{words}, {factor}×", f"{detail}; {where}.", mood)


def file_card(document: dict[str, Any]) -> Card:
    """What to deploy: the decision of `regcache build`, or the bundle and how to decide."""
    question, found = "Deploy which file?", document.get("decision")
    if found:
        why = "; ".join(found["tried"][-1]["reasons"])
        refused = [form_title(found, t["form"]) for t in found["tried"] if not t["keep"]]
        after = f" Refused before it: {', '.join(refused)}." if refused else ""
        mood = "good" if found["proven"] and found["kept"] != "float" else "open"
        title = form_title(found, found["kept"])
        place = found.get("engine_file") or found["path"]
        return Card(question, title, f"{place} ({why}).{after}", mood)
    bundle = document.get("bundle")
    if not bundle:
        return Card(question, "none yet", "`regcache export` writes the bundle of this choice.")
    return Card(
        question,
        "not decided",
        f"The bundle is {bundle}. To decide under a budget of accuracy and speed: `regcache build "
        f"{bundle} --engine onnxruntime --output {Path(bundle).parent}`",
    )


def speed(folder: Path, document: dict[str, Any]) -> Section | None:
    """Latency against accuracy, and every measured latency."""
    rows = document.get("bench", [])
    if not rows:
        return None
    points = pareto_points(document)
    batch = points[0]["batch"] if points else 1
    pictures, tables = [], []
    if len(points) > 1:
        metric = points[0]["metric"]
        data = draw_svg(lambda: pareto(points, metric, batch))
        listing = ", ".join(f"{i}: {p['label']}" for i, p in enumerate(points, 1))
        pictures.append(svg_picture(data, f"Latency against accuracy: {listing}.", PARETO_CAPTION))
        tables.append(_points_table(points, batch))
    benched = [row for row in rows if "engine" in row and "infer_step_time" in row]
    if benched:
        tables.append(_bench_table(benched))
    machines = sorted({_machine(row) for row in rows if row.get("cpu")})
    text = [f"Measured on: {'; '.join(machines)}."] if machines else []
    loads = [(float(r["load"]), int(r["cores"])) for r in rows if r.get("load") and r.get("cores")]
    if loads and (busy := busy_warning(*max(loads))):
        text.append(f"{busy[0].upper()}{busy[1:]}.")
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.get("reason"):
            reasons.setdefault(row["reason"], {})[_name(row)] = None
    if reasons:
        lines = [[", ".join(names), reason] for reason, names in reasons.items()]
        tables.append(Table(["not run", "why"], lines))
    return Section("speed", "Speed", text, tables, pictures)


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
            }
            for row in peers
        ]
    corners = {"fp32": "fp32", "int8": "deployed"}
    scores = document["accuracy"]
    timed = [
        row
        for row in _own_rows(document)
        if "infer_step_time" in row and row["precision"] in corners
    ]
    if scores.get("deployed") is None or not timed:
        return []
    batch = min(int(row["infer_batch_size"]) for row in timed)
    return [
        {
            "label": f"{row['precision']}, {row['engine']}, threads {row['threads']}",
            "ms": float(row["infer_step_time"]),
            "value": scores[corners[row["precision"]]],
            "ours": row["precision"] == "int8",
            "metric": document["metric"],
            "batch": batch,
        }
        for row in timed
        if int(row["infer_batch_size"]) == batch
        and scores.get(corners[row["precision"]]) is not None
    ]


def _points_table(points: Sequence[dict[str, Any]], batch: int) -> Table:
    metric = points[0]["metric"]
    rows = [
        [str(i), p["label"], f"{p['ms']:.2f}", value_text(metric, p["value"])]
        for i, p in enumerate(points, 1)
    ]
    return Table(["", "file", f"ms, batch {batch}", metric_title(metric)], rows, "The points")


def _bench_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line a file, engine and batch size; bundle and threads are told where they differ."""
    threads = sorted({str(row["threads"]) for row in rows})
    several = len(threads) > 1
    bundles = len({row["bundle"] for row in rows}) > 1
    lines = []
    for row in rows:
        faster = ""
        if "speedup" in row:
            low, high = float(row["speedup_low"]), float(row["speedup_high"])
            faster = f"{float(row['speedup']):.2f} [{low:.2f}, {high:.2f}]"
        lines.append(
            [
                ", ".join([*([row["bundle"]] if bundles else []), row["precision"], row["engine"]]),
                str(row["infer_batch_size"]),
                *([str(row["threads"])] if several else []),
                f"{float(row['infer_step_time']):.2f}",
                f"{float(row['p99_ms']):.2f}",
                faster,
            ]
        )
    columns = ["file, engine", "batch", *(["threads"] if several else []), "p50 ms", "p99 ms"]
    caption = "`regcache bench`, in turns; ratios are of pairs within a round"
    if not several:
        caption += f"; threads: {threads[0]}"
    return Table([*columns, speedup_head(rows)], lines, caption)


def _budget(document: dict[str, Any]) -> float:
    found = document.get("decision")
    return float(found["contract"]["max_drop"]) if found else MAX_DROP


def _name(row: dict[str, Any]) -> str:
    return str(row.get("title") or f"{row['precision']} on {row['engine']}")


def _machine(row: dict[str, Any]) -> str:
    gpu = f", {row['gpu']}" if row.get("gpu") else ""
    flags = f" ({row['cpu_flags']})" if row.get("cpu_flags") else ""
    cores = "1 core" if str(row["cores"]) == "1" else f"{row['cores']} cores"
    return f"{row['cpu']}{flags}, {cores}{gpu}, load {row.get('load', '?')}"
