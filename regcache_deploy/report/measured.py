"""What was measured of one bundle, by which command: one accuracy and one speed lead the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..work.format import COUNTED, counted


@dataclass(frozen=True)
class Accuracy:
    """One measurement of the INT8 file against FP32 on the same images.

    Attributes:
        metric: `top1`, `instances` or `cosine`.
        value, reference: of INT8 and FP32, in [0, 1]; None where only the difference was kept.
        pair: `difference`, `low`, `high` in points, and `p_value`; None for a cosine.
        n: images.
        images: which ones, in words.
        by: the command.
        runtime: where the INT8 file ran.
    """

    metric: str
    value: float | None
    reference: float | None
    pair: dict[str, Any] | None
    n: int
    images: str
    by: str
    runtime: str


@dataclass(frozen=True)
class Speed:
    """How many times as fast as the float file: median over paired rounds, with its interval.

    Attributes:
        over: the float file, `FP32` or `FP16`.
        by: the command.
    """

    value: float
    low: float
    high: float
    over: str
    engine: str
    batch: int
    threads: str
    by: str

    @property
    def where(self) -> str:
        return f"{self.engine}, batch {self.batch}, threads {self.threads}"


def accuracies(document: dict[str, Any]) -> list[Accuracy]:
    """Every measurement, the one that leads first: an accuracy before a cosine, then more images.

    A difference alone never leads.
    """
    found = [*_of_run(document), *_of_evaluations(document), *_of_decision(document)]
    return sorted(found, key=lambda a: (a.value is None, a.metric not in COUNTED, -a.n))


def speeds(document: dict[str, Any]) -> list[Speed]:
    """Every measurement, the one that leads first: `bench`, then `build`, then the first look.

    Of `bench`, ONNX Runtime at the smallest batch size, as measured last.
    """
    return [*_of_bench(document), *_of_build(document), *_of_look(document)]


def own_rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of `regcache bench` about the run's own bundle: a CSV may hold several."""
    if not document.get("bundle"):
        return []
    name = Path(document["bundle"]).resolve().name.removesuffix(".regcache")
    rows, own = document.get("bench", []), document.get("model_sha256")
    return [
        row
        for row in rows
        if "engine" in row
        and row.get("bundle") == name
        and (own is None or row.get("model_sha256", own) == own)  # of an older file of that name
    ]


def _of_run(document: dict[str, Any]) -> list[Accuracy]:
    scores, account = document["accuracy"], document.get("run") or {}
    corner = "deployed" if scores.get("deployed") is not None else "regcache"
    if scores.get(corner) is None:
        return []
    deployed = corner == "deployed"
    return [
        Accuracy(
            metric=document["metric"],
            value=scores[corner],
            reference=scores.get("fp32"),
            pair=document["paired"].get(corner) if document["metric"] in COUNTED else None,
            n=document["n_eval"],
            images=account.get("held_out_images", "held-out images"),
            by="regcache export" if deployed else "regcache search",
            runtime="ONNX Runtime" if deployed else "simulation",
        )
    ]


def _of_evaluations(document: dict[str, Any]) -> list[Accuracy]:
    tasks = {"zeroshot_classification": "top1", "instances": "instances"}
    found = []
    for evaluation in document.get("evaluations", ()):
        values = {(r["dataset"], r["on"]): r["metrics"].get("acc1") for r in evaluation["results"]}
        for record in evaluation["results"]:
            if record["task"] not in tasks or not record["paired"]:
                continue
            if evaluation["reference"] != "fp32" or record["on"] in ("baseline", "simulated"):
                continue
            found.append(
                Accuracy(
                    metric=tasks[record["task"]],
                    value=record["metrics"]["acc1"],
                    reference=values.get((record["dataset"], "fp32")),
                    pair=record["paired"],
                    n=record["n"],
                    images=record["dataset"],
                    by="regcache eval",
                    runtime=record["on"],
                )
            )
    return found


def _of_decision(document: dict[str, Any]) -> list[Accuracy]:
    decision = document.get("decision") or {}
    tried = next(
        (t for t in decision.get("tried", ()) if t["form"] == "int8" and "drop" in t), None
    )
    if tried is None or tried["drop"]["metric"] not in COUNTED:
        return []
    drop = tried["drop"]
    pair = {"difference": -drop["value"], "low": -drop["high"], "high": -drop["low"]}
    images, runtime = decision["drop_measured_on"], decision["speed_measured_at"]["engine"]
    return [
        Accuracy(drop["metric"], None, None, pair, drop["n"], images, "regcache build", runtime)
    ]


def _of_bench(document: dict[str, Any]) -> list[Speed]:
    rows = [row for row in own_rows(document) if row["precision"] == "int8" and "speedup" in row]
    rows.sort(key=lambda row: row.get("measured_at", ""), reverse=True)
    over = next((o for o in ("fp32", "fp16") if any(r.get("speedup_over") == o for r in rows)), "")
    found = [
        Speed(
            float(row["speedup"]),
            float(row["speedup_low"]),
            float(row["speedup_high"]),
            over.upper(),
            str(row["engine"]),
            int(row["infer_batch_size"]),
            str(row["threads"]),
            "regcache bench",
        )
        for row in rows
        if row.get("speedup_over") == over
    ]
    return sorted(found, key=lambda s: (s.engine != "onnxruntime", s.batch, s.engine))


def _of_build(document: dict[str, Any]) -> list[Speed]:
    decision = document.get("decision") or {}
    tried = next((t for t in decision.get("tried", ()) if "speedup" in t), None)
    if tried is None or tried["form"] == "float":
        return []
    at, ratio = decision["speed_measured_at"], tried["speedup"]
    over = "FP16" if decision.get("float_body") == "float16" else "FP32"
    threads = str(at["gpu"] if at.get("gpu") else at["threads"])
    ends = (ratio["value"], ratio["low"], ratio["high"])
    return [Speed(*ends, over, at["engine"], at["batch"], threads, "regcache build")]


def _of_look(document: dict[str, Any]) -> list[Speed]:
    look = document.get("speed")
    if not look:
        return []
    ends = (look["value"], look["low"], look["high"])
    by = f"a first look of the export, {counted(look['rounds'], 'round')}"
    return [Speed(*ends, "FP32", look["engine"], look["batch"], str(look["threads"]), by)]
