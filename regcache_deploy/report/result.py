"""What an export hands back: one JSON object, one CSV of every evaluated choice."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from regcache_engines.files import atomic_write_bytes

from ..encoders.regcache import RegCacheConfig
from ..search.result import Trial

CORNERS = (
    "fp32",
    "baseline",
    "prefix_only",
    "delete_only",
    "saturate",
    "delete",
    "regcache",
    "unmerged",
    "recipe",
    "deployed",
)


class Paired(Protocol):
    """A paired comparison with FP32."""

    @property
    def difference(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def p_value(self) -> float: ...
    @property
    def lost(self) -> int | None: ...
    @property
    def won(self) -> int | None: ...
    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ExportResult:
    """Everything an export found.

    Attributes:
        metric: `top1` (accuracy), `instances` (copy detection, where there are no labels or no
            text encoder) or `cosine` (fidelity to FP32, for random weights).
        accuracy: corner -> value in [0, 1], all on the same `n_eval` images.
        fidelity: corner -> mean cosine to FP32, on the same images.
        paired: corner -> comparison with FP32 on the same images.
        paper_form: the same corners with every quantizer as published, where it differs.
        agreement: deployed graph against simulation: top-1 agreement, mean and min cosine.
        differences: where the deployed form of the baseline differs from the published one.
        in_float: linears that `--keep-float` left in floating point.
        recipe: way that was chosen, or the recipe that fixed it.
        ways: that were raced on the search images, with value, cost and which one was chosen.
        untried_ways: dearer ones: a plain one is level with floating point, or for lack of budget.
        reason: why, in one sentence; empty where nothing was raced.
        merge: schedule and counts of the chosen way, or None; `merge_front`, what `--merge auto`
            weighed against each other, and `merge_reason`, why.
        token_norms: at the sensitive layer's input, see `search.token_norms.TokenNorms`.
        fidelity_way: that fidelity would have chosen instead; None where it agrees, or no race was.
        speed: of the bundle over FP32, see `bench.first_look`; None where nobody looked.
        file_mib: of the weights in FP32 and of the INT8 file.
        not_tried: choices that the search's budget kept it from judging.
        search_cost: see `search.cost.SearchCost`.
        details: what a search reports beyond the decision; nothing after an export.
        trials: every evaluation of the search, which are the rows of the CSV.
    """

    model: str
    baseline: str
    bits: str
    sensitive_layer: str
    prefix_block_candidates: tuple[int, ...]
    config: RegCacheConfig
    depth: int
    search_accuracy: float
    search_metric: str
    metric: str
    n_search: int
    n_eval: int
    accuracy: dict[str, float]
    paired: Mapping[str, Paired]
    agreement: dict[str, float]
    paper_form: dict[str, float] = field(default_factory=dict)
    differences: tuple[str, ...] = ()
    in_float: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    caution: str | None = None
    results_csv: Path | None = None
    bundle: Path | None = None
    seconds: float = 0.0
    search_cost: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    trials: Sequence[Trial] = ()
    not_tried: tuple[RegCacheConfig, ...] = ()
    recipe: str = "regcache"
    ways: tuple[dict[str, Any], ...] = ()
    untried_ways: tuple[str, ...] = ()
    reason: str = ""
    merge: dict[str, Any] | None = None
    merge_front: tuple[dict[str, Any], ...] = ()
    merge_reason: str = ""
    token_norms: dict[str, Any] = field(default_factory=dict)
    fidelity: dict[str, float] = field(default_factory=dict)
    fidelity_way: str | None = None
    speed: dict[str, Any] | None = None
    file_mib: dict[str, float] | None = None

    @property
    def sensitive_block(self) -> int:
        return int(self.sensitive_layer.split(".")[1])

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        config = self.config
        return {
            "model": self.model,
            "baseline": self.baseline,
            "bits": self.bits,
            "sensitive_block": self.sensitive_block,
            "sensitive_layer": self.sensitive_layer,
            "prefix_block_candidates": list(self.prefix_block_candidates),
            "prefix_block": config.prefix_block if config.has_prefix else None,
            "prefix_add_blocks": config.prefix_blocks(self.depth),
            "prefix_count": config.prefix_count,
            "delete_block": config.delete_block,
            "delete_count": config.delete_count,
            "range_delete_count": config.range_delete_count,
            "recipe": self.recipe,
            "reason": self.reason,
            "fidelity_way": self.fidelity_way,
            "ways": list(self.ways),
            "untried_ways": list(self.untried_ways),
            "token_norms": self.token_norms,
            "search_accuracy": self.search_accuracy,
            "search_metric": self.search_metric,
            "n_search": self.n_search,
            "results_csv": str(self.results_csv) if self.results_csv else None,
            "bundle": str(self.bundle) if self.bundle else None,
            "metric": self.metric,
            "merge": self.merge,
            "merge_front": list(self.merge_front),
            "merge_reason": self.merge_reason,
            "accuracy": {
                name: self.accuracy.get(name)
                for name in CORNERS
                if name != "unmerged" or self.merge is not None
            },
            "fidelity": {name: self.fidelity.get(name) for name in CORNERS},
            "n_eval": self.n_eval,
            "paired": {name: p.to_json() for name, p in self.paired.items()},
            "paper_form": self.paper_form,
            "differences": list(self.differences),
            "in_float": list(self.in_float),
            "agreement": self.agreement,
            "speed": self.speed,
            "file_mib": self.file_mib,
            "not_tried": [choice.to_json() for choice in self.not_tried],
            "warnings": list(self.warnings),
            "caution": self.caution,
            "seconds": round(self.seconds, 1),
            "search_cost": self.search_cost,
            **self.details,
        }


def write_trials(path: Path, trials: Sequence[Trial], objective: str) -> None:
    """Write every evaluation as one CSV row; `n` is how many images it took."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = ["stage", "prefix_block", "prefix_count", "delete_block", "delete_count"]
    columns += ["range_delete_count"]
    writer.writerow([*columns, "objective", "value", "fidelity", "n", "block_forwards"])
    for trial in trials:
        config = trial.config
        writer.writerow(
            [
                trial.stage,
                config.prefix_block if config.has_prefix else "",
                config.prefix_count,
                config.delete_block if config.range_delete_count else "",
                config.delete_count,
                config.range_delete_count,
                objective,
                f"{trial.score.value:.6f}",
                f"{trial.score.fidelity:.6f}",
                trial.images,
                trial.work,
            ]
        )
    atomic_write_bytes(path, buffer.getvalue().encode())
