"""The answer of a run in two sentences: is the accuracy kept, and is the INT8 file faster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..bench.environment import busy_warning
from ..evaluation.paired import within
from ..work.format import COUNTED, counted, difference_text, metric_title, ratio_text, value_text
from ..work.invocation import typed

MAX_DROP = 0.5
"""Points that count as kept where no `regcache build` set another budget; its own default."""

COSINE_KEPT = 0.99
"""Cosine to FP32 from which features count as close; fidelity proves no accuracy."""


def kept_words(pair: Mapping[str, Any], budget: float = MAX_DROP) -> str:
    """`yes`, `probably`, `probably not` or `no`: does a paired comparison keep the budget.

    Args:
        pair: difference to FP32 and its 95 % interval, in points.
        budget: points that may be lost.
    """
    if within(-pair["low"], budget):
        return "yes"
    if within(-pair["difference"], budget):
        return "probably"
    return "probably not" if within(-pair["high"], budget) else "no"


def accuracy_sentence(document: Mapping[str, Any]) -> str:
    """What the deployed graph keeps of FP32's accuracy, with the interval."""
    metric, images = document["metric"], document["n_eval"]
    value, reference = (document["accuracy"].get(name) for name in ("deployed", "fp32"))
    if value is None or reference is None:
        return "The accuracy of the INT8 file was not measured."
    if metric not in COUNTED:
        close = "close to" if value >= COSINE_KEPT else "far from"
        return (
            f"The INT8 file's features are {close} FP32's: {metric_title(metric)} "
            f"{value_text(metric, value)} on {images} held-out images, which is fidelity and "
            "proves no accuracy."
        )
    pair = document["paired"]["deployed"]
    words = {
        "yes": "keeps FP32's accuracy",
        "probably": "probably keeps FP32's accuracy",
        "probably not": "probably loses accuracy",
        "no": "loses accuracy",
    }[kept_words(pair)]
    return (
        f"The INT8 file {words}: {metric_title(metric)} {value_text(metric, value)} against "
        f"{value_text(metric, reference)}, {difference_text(metric, pair)} points on "
        f"{images} held-out images."
    )


def speed_sentence(document: Mapping[str, Any]) -> str:
    """How much faster it is on this machine, by a short look; or that nobody looked."""
    speed = document.get("speed")
    if not speed:
        return "Its speed was not measured."
    if speed["low"] > 1:
        words = f"It is {speed['value']:.2f} times as fast as FP32"
    elif speed["high"] < 1:
        words = f"It is slower than FP32, {speed['value']:.2f} times as fast"
    else:
        words = f"It is not clearly faster than FP32, {speed['value']:.2f} times as fast"
    load, cores = speed.get("load"), speed.get("cores")
    busy = f"; it was busy, load {load:g} on {counted(cores, 'core')}" if _busy(load, cores) else ""
    return (
        f"{words} {ratio_text(speed, value=False)} in ONNX Runtime on this machine{busy}, batch "
        f"{speed['batch']}, by {counted(speed['rounds'], 'round')} (brackets: 95 % intervals)."
    )


def _busy(load: float | None, cores: int | None) -> bool:
    return bool(cores and busy_warning(load, cores))


def next_commands(document: Mapping[str, Any], folder: Path) -> list[str]:
    """The two commands that fit: which file to deploy, and one page of everything."""
    bundle = document["bundle"]
    limit = f"{MAX_DROP:g}"
    return [
        typed("regcache", "build", bundle, "--max-drop", limit),
        typed("regcache", "report", folder),
    ]
