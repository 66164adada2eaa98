"""What each half of RegCache does: one table over bit widths, baselines and corners."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from regcache_engines.files import atomic_write_bytes

from ..encoders.canonical import Encoder
from ..evaluation import Objective
from ..evaluation.corners import corner_configs
from ..evaluation.image_sets import ImageSets
from ..quantization.choice import chosen_baseline
from ..quantization.settings import BASELINE_NAMES, QuantizerSettings
from ..work.progress import Reporter
from ..work.workers import Team
from .clipping import CLIPPING_PERCENTILE, Clipped
from .embedder import Embedder
from .find import FoundChoice, find_choice
from .register.capture import Captures
from .register.choose import make_register
from .settings import FindSettings, SearchSettings
from .statistics import compare_scores

ABLATION_BITS = ("W8A8", "W6A6", "W4A4")
VARIANTS = (
    "fp32",
    "baseline",
    "clipping",
    "random_sink",
    "prefix_only",
    "delete_only",
    "saturate",
    "delete",
    "both",
)
TITLES = {
    "fp32": "FP32",
    "baseline": "baseline",
    "clipping": f"baseline + clipping at {CLIPPING_PERCENTILE:.2%}",
    "random_sink": "random-sink prefix",
    "prefix_only": "prefix only",
    "delete_only": "delete only",
    "saturate": "prefix + saturation",
    "delete": "prefix + deletion, as published",
    "both": "both (RegCache)",
}

COLUMNS = (
    "baseline",
    "bits",
    "prefix_block",
    "prefix_count",
    "delete_count",
    "range_delete_count",
    "row",
    "value",
    "difference_to_fp32",
    "difference_to_baseline",
    "low",
    "high",
    "p_value",
    "reason",
)
"""Of the CSV: the interval and the p-value are those of the difference to the baseline; with top-1,
differences are in points."""


@dataclass(frozen=True)
class Cell:
    """One figure.

    Attributes:
        value: top-1 or cosine on the held-out images; None where there is nothing to run.
        reason: why it is empty.
        against_fp32, against_baseline: paired statistics.
    """

    value: float | None
    reason: str = ""
    against_fp32: dict[str, Any] | None = None
    against_baseline: dict[str, Any] | None = None


@dataclass(frozen=True)
class AblationRow:
    """One baseline at one bit width."""

    baseline: str
    bits: str
    choice: dict[str, Any]
    cells: dict[str, Cell]

    def to_json(self) -> dict[str, Any]:
        cells = {name: vars(cell) for name, cell in self.cells.items()}
        return {
            "baseline": self.baseline,
            "bits": self.bits,
            "choice": self.choice,
            "cells": cells,
        }


def run_ablation(
    settings: FindSettings,
    sets: ImageSets,
    held_out: Embedder,
    judge: Objective,
    reporter: Reporter,
    baselines: Iterable[str] = BASELINE_NAMES,
    bits: Iterable[str] = ABLATION_BITS,
    team: Team | None = None,
) -> list[AblationRow]:
    """Search and evaluate every baseline at every bit width.

    The float features, the sensitive block and the register are the same for all rows and are
    computed once.

    Args:
        settings: of every search.
        sets: images, calibration tokens and finished parts.
        held_out: embeds the images that are judged.
        judge: their metric.
        team: workers that evaluate.
    """
    rows, encoder = [], held_out.encoder
    for width in bits:
        for name in baselines:
            chosen = QuantizerSettings(baseline=name, bits=width)
            own = sets.for_another_search(encoder.spec.depth)
            baseline = chosen_baseline(chosen, settings.seed)
            found = find_choice(settings, baseline, encoder, own, reporter, team=team)
            rows.append(_row(chosen, settings, found, held_out, judge))
    return rows


def write_ablation(path: Path, rows: Iterable[AblationRow], setup: Mapping[str, Any]) -> None:
    """Write every figure as one CSV row.

    Args:
        path: the file.
        rows: of the table.
        setup: column -> value, the same in all rows: model, metric, numbers of images.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*setup, *COLUMNS], restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        chosen = ("prefix_block", "prefix_count", "delete_count", "range_delete_count")
        numbers = {name: row.choice[name] for name in chosen}
        if not numbers["prefix_count"]:
            del numbers["prefix_block"]  # says nothing without a prefix
        for name, cell in row.cells.items():
            against = cell.against_baseline or {}
            found = {
                "value": cell.value,
                "difference_to_fp32": (cell.against_fp32 or {}).get("difference"),
                "difference_to_baseline": against.get("difference"),
                **{key: against.get(key) for key in ("low", "high", "p_value")},
            }
            writer.writerow(
                {
                    **setup,
                    "baseline": row.baseline,
                    "bits": row.bits,
                    **numbers,
                    "row": name,
                    **{k: f"{v:.6g}" for k, v in found.items() if v is not None},
                    "reason": cell.reason,
                }
            )
    atomic_write_bytes(path, buffer.getvalue().encode())


def _row(
    quantizer: QuantizerSettings,
    settings: FindSettings,
    found: FoundChoice,
    held_out: Embedder,
    judge: Objective,
) -> AblationRow:
    config = found.result.best
    corners = corner_configs(config)
    corners["both"] = corners.pop("regcache")
    features = {"fp32": held_out.float_features}
    cells: dict[str, Cell] = {}
    for variant in VARIANTS[1:]:
        reason = _missing(variant, found)
        if reason:
            cells[variant] = Cell(None, reason)
            continue
        baseline = chosen_baseline(quantizer, settings.seed)
        register: dict[int, Tensor] = found.register
        corner = corners[
            {"clipping": "baseline", "random_sink": "prefix_only"}.get(variant, variant)
        ]
        if variant == "random_sink":
            register = random_sink(found.captures, held_out.encoder, settings, settings.seed)
        under_test = Clipped(baseline) if variant == "clipping" else baseline
        features[variant] = held_out.features(
            f"{quantizer.baseline} {quantizer.bits}, {TITLES[variant]}",
            under_test,
            corner,
            register,
        )
    scores = {name: judge.score(value) for name, value in features.items()}
    for name, score in scores.items():
        pairs = [
            compare_scores(judge.name, scores[other], score, settings.seed).to_json()
            if name not in (other, "fp32")
            else None
            for other in ("fp32", "baseline")
        ]
        cells[name] = Cell(score.value, "", *pairs)
    choice = config.to_json() | {"p_value": found.result.p_value}
    return AblationRow(
        quantizer.baseline, quantizer.bits, choice, {name: cells[name] for name in VARIANTS}
    )


def _missing(variant: str, found: FoundChoice) -> str:
    config = found.result.best
    if variant in ("random_sink", "prefix_only", "saturate", "delete") and not config.has_prefix:
        return "the search chose no prefix"
    if variant in ("delete_only", "saturate", "delete") and not config.range_delete_count:
        return "the search chose no deletion"
    if variant == "both" and config.is_empty:
        return "no gain: the search chose neither"
    return ""


def random_sink(
    captures: Captures, encoder: Encoder, settings: SearchSettings, seed: int
) -> dict[int, Tensor]:
    """Register of one sink candidate drawn at random, in place of their average."""
    index = int(np.random.default_rng(seed).integers(len(captures.states)))
    return make_register(encoder, captures, settings, slice(index, index + 1))
