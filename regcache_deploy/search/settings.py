"""How to search: every reading of the method that its sources allow, with one default each."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast, get_args

from regcache_export.merge import FORMS, MergeOptions, MergeSchedule, Metric
from regcache_export.regcache_config import MAX_PREFIX_COUNT

from ..errors import ConfigError
from ..quantization.settings import AUTO, layer_name
from ..work.settings import MachineSettings, WorkerSettings, in_range, one_of, setting

CHOICES = {
    "strategy": ("default", "confirmed", "pruned", "exhaustive"),
    "ranking": ("block_input", "fc2_input"),
    "register": ("in_context", "solo"),
    "candidates": ("average", "best"),
    "delete_at": ("block_input", "mlp_input"),
    "prefix_blocks": ("from", "only"),
    "objective": ("auto", "top1", "instances", "mse", "cosine"),
}
"""Values of the settings that are words; the first of each is the default."""

ALONE, REGCACHE, PAPER = "quantizer", "regcache", "paper"

WAY_NAMES = (
    ALONE,
    "ranges",
    "smoothed",
    "channels",
    "treated",
    "fc2_float",
    REGCACHE,
    "regcache_ranges",
    "regcache_treated",
)
"""Of `search.ways`, which needs torch."""

MIN_MEMORY = 0.05

EFFORT = {"memory", "budget_fraction"}
"""What decides how much is asked or kept, but no answer."""


def _word(name: str, text: str) -> Any:
    return setting(CHOICES[name][0], text, "|".join(CHOICES[name]))


@dataclass(frozen=True)
class SearchSettings:
    """Readings and effort of a search (arXiv 2510.04547; v2 and v4 differ).

    Raises:
        ConfigError: a word that is not one of `CHOICES`, or a number out of range.
    """

    strategy: str = _word(
        "strategy",
        "race candidates on growing image subsets; or the full grid: confirmed (a choice is left "
        "once a paired test says that it is not better), pruned (once it is certain to lose), "
        "exhaustive",
    )
    ranking: str = _word(
        "ranking",
        "rank register candidates by the target block's input, or by fc2's input in block k",
    )
    register: str = _word(
        "register",
        "capture candidates in their images, or send their mean through the blocks alone",
    )
    candidates: str = _word(
        "candidates", "average the top 100 (v4), or take the best single one of the top 20 (v2)"
    )
    delete_at: str = _word(
        "delete_at", "delete before block k, or between its attention and its MLP"
    )
    prefix_blocks: str = _word(
        "prefix_blocks",
        "the prefix is seen from its block on, or in the sensitive block only (DINOv2 in v4)",
    )
    objective: str = _word(
        "objective",
        "auto is top-1 with labels and a text encoder, else copy detection (instances): an image "
        "among altered copies of all, without labels; random weights take cosine",
    )
    two_counts: bool = setting(
        True,
        "also set ranges without sinks that the graph keeps, which saturate then; "
        "--no-two-counts is the published method",
    )
    error: float = setting(
        0.05, "chance that racing drops the best choice, or finds a gain in noise", "P"
    )
    budget_fraction: float = setting(
        0.05, "share of the full grid's block-forwards that the default strategy may spend", "X"
    )
    memory: float = setting(
        4.0, "hidden states to keep in memory, GiB; the rest goes to disk, in the run folder", "GIB"
    )

    def __post_init__(self) -> None:
        for name, valid in CHOICES.items():
            one_of(f"--{name.replace('_', '-')}", getattr(self, name), valid)
        in_range("--memory", self.memory, MIN_MEMORY)
        in_range("--error", self.error, 0.001, 0.5)
        in_range("--budget-fraction", self.budget_fraction, 0.001, 1)

    @property
    def memory_bytes(self) -> int:
        return int(self.memory * 2**30)

    def identity(self) -> dict[str, Any]:
        """What decides the outcome, as JSON values."""
        names = [f.name for f in fields(SearchSettings) if f.name not in EFFORT]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class FixedChoice:
    """Numbers that a user fixes instead of searching them; None is searched.

    Raises:
        ConfigError: a number out of range, or a word that names no linear.
    """

    sensitive_layer: str | None = setting(
        None, "linear whose block is k, instead of measuring it (blocks.7.fc2)", "LAYER"
    )
    prefix_block: int | None = setting(None, "first block that sees the prefix", "N")
    prefix_count: int | None = setting(None, "copies of the prefix; 0 is none", "N")
    delete_count: int | None = setting(None, "sink tokens to delete; 0 is none", "N")
    range_delete_count: int | None = setting(
        None,
        "sink tokens absent while ranges are set; those that are not deleted saturate (alone: "
        "--delete-count is searched; with --delete-count alone: the same)",
        "N",
    )

    def __post_init__(self) -> None:
        in_range("--prefix-block", self.prefix_block, 0)
        in_range("--prefix-count", self.prefix_count, 0, MAX_PREFIX_COUNT)
        in_range("--delete-count", self.delete_count, 0)
        in_range("--range-delete-count", self.range_delete_count, self.delete_count or 0)
        if self.sensitive_layer is not None:
            layer_name("--sensitive-layer", self.sensitive_layer)


@dataclass(frozen=True)
class MergeSettings:
    """Merging of similar patch tokens (RegToMe), on top of the way that was found.

    Raises:
        ConfigError: no schedule, an unknown metric, or settings that nothing reads.
    """

    merge: str | None = setting(
        None,
        f"merge similar patch tokens, block by block: {FORMS}; or `auto`, the fastest schedule "
        "that keeps --max-drop",
        "SCHEDULE",
    )
    merge_metric: str = setting(
        "keys", "what similar means: by the keys of attention, or by the residual", "keys|residual"
    )
    merge_proportional: bool = setting(
        False,
        "attention counts a merged token as often as it stands for patches; takes a fusion where "
        "attention runs in INT8",
    )
    merge_compat: bool = setting(
        False, "the indexing of RegToMe's published code, simulated only: for comparison"
    )
    max_drop: float = setting(
        0.5,
        "points that --merge auto may lose against FP32 on the search images; the paired 95 % "
        "interval must stay within",
        "POINTS",
    )
    latency: Path | None = setting(
        None,
        "latencies for --merge auto, from the merge_front.csv of a run on another machine "
        "(default: measured here, in ONNX Runtime)",
        "CSV",
    )

    def __post_init__(self) -> None:
        one_of("--merge-metric", self.merge_metric, get_args(Metric))
        in_range("--max-drop", self.max_drop, 0, 100)
        self.merge_options  # noqa: B018  (the schedule is checked where it is read)
        if self.merge is None and (self.merge_compat or self.merge_proportional):
            raise ConfigError("--merge-compat and --merge-proportional need --merge")
        if self.merge_compat and self.merge == AUTO:
            raise ConfigError("--merge-compat does not go with --merge auto: it has no graph")
        if self.latency is not None and self.merge != AUTO:
            raise ConfigError("--latency needs --merge auto, which alone reads it")

    @property
    def merge_options(self) -> MergeOptions | None:
        """The schedule as asked for; None without one, and where it is to be chosen."""
        if self.merge is None or self.merge == AUTO:
            return None
        return self.with_schedule(self.merge)

    def with_schedule(self, text: str) -> MergeOptions:
        """A schedule with the other settings; raises ConfigError where it is none."""
        schedule, metric = MergeSchedule.parse(text), cast(Metric, self.merge_metric)
        return MergeOptions(schedule, metric, self.merge_proportional, self.merge_compat)


@dataclass(frozen=True)
class FindSettings(SearchSettings, FixedChoice, MachineSettings, WorkerSettings):
    """All that a search reads beside encoder, quantizer and images."""

    def __post_init__(self) -> None:
        SearchSettings.__post_init__(self)
        FixedChoice.__post_init__(self)
        MachineSettings.__post_init__(self)
        WorkerSettings.__post_init__(self)
