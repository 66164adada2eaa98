"""Which schedule of token merging: those that are tried, and the fastest that is good enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from regcache_export.merge import Merge, MergeOptions
from regcache_export.spec import EncoderSpec

from ..encoders.regcache import RegCacheConfig
from ..errors import ConfigError
from ..evaluation import Objective, Score
from ..evaluation.paired import within
from .settings import MergeSettings
from .statistics import Difference, compare_scores

SHARES = (0.25, 0.5, 0.8)
"""Of the patches, that a schedule over all blocks merges away: r = 4, 8 and 13 of ViT-B/16."""

CUT_SHARES = (0.2, 0.35)
"""The same for a single cut after a quarter of the blocks."""

UNMERGED, FLOAT, ALONE = "none", "fp32", "quantizer alone"
"""Names of what stands beside the schedules."""


@dataclass(frozen=True)
class MergeWay:
    """A schedule with the RegCache numbers that go with it.

    Attributes:
        schedule: as `--merge` takes it; `UNMERGED` without one.
        merge: None merges nothing.
        config: as it was found, or the same with saturation in place of deletion.
    """

    schedule: str
    merge: Merge | None
    config: RegCacheConfig

    @property
    def title(self) -> str:
        return way_title(self.schedule, self.config.delete_count)


def way_title(schedule: str, deleted: int) -> str:
    """`(8,-1), 6 deleted`."""
    return schedule + (f", {deleted} deleted" if deleted else "")


@dataclass(frozen=True)
class MergePoint:
    """What a way gave on the search images, and how fast its graph is.

    Attributes:
        title: of the way, or `FLOAT`, or `ALONE`.
        loss: against FP32 on the same images; negative is a loss. In points: hundredths of the
            objective where that is no share of images.
        ms: of a call; the unmerged graph's over `speedup`.
        speedup, low, high: over the unmerged graph, with its 95 % interval; equal ends where a
            file gave the latencies.
    """

    title: str
    schedule: str
    deleted: int
    score: Score = field(repr=False)
    loss: Difference
    ms: float
    speedup: float
    low: float
    high: float
    way: MergeWay | None = field(default=None, repr=False)
    chosen: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "merge": self.schedule,
            "delete_count": self.deleted,
            "value": self.score.value,
            "fidelity": self.score.fidelity,
            "points": self.loss.difference,
            "points_low": self.loss.low,
            "points_high": self.loss.high,
            "ms": self.ms,
            "speedup": self.speedup,
            "speedup_low": self.low,
            "speedup_high": self.high,
            "chosen": self.chosen,
        }


def schedules_for(spec: EncoderSpec) -> list[str]:
    """The schedules that are tried on an encoder, as `--merge` takes them."""
    patches, depth = spec.num_patches, spec.depth
    rates = dict.fromkeys(max(1, round(share * patches / depth)) for share in SHARES)
    cuts = dict.fromkeys(max(1, round(share * patches)) for share in CUT_SHARES)
    return [
        *(text for rate in rates for text in (str(rate), f"({rate},-1)", f"{2 * rate}/2")),
        *(f"{depth // 4}:{cut}" for cut in cuts),
    ]


def fitting_merge(options: MergeOptions, spec: EncoderSpec, config: RegCacheConfig) -> Merge | None:
    """The merge of an encoder with RegCache's numbers; None where it merges nothing.

    It must fit without every token that is absent while the ranges are set.

    Raises:
        ConfigError: it does not.
    """
    return options.of(spec, config.for_ranges())


def merge_ways(
    spec: EncoderSpec, config: RegCacheConfig, settings: MergeSettings
) -> list[MergeWay]:
    """The unmerged way, then every schedule that fits, with each way of treating the sinks.

    A choice that deletes is also tried with saturation, which has the same ranges and leaves its
    tokens to be merged.
    """
    configs = [config]
    if config.deletes:
        configs.append(config.deleting(0, config.range_delete_count))
    ways = [MergeWay(UNMERGED, None, config)]
    for text in schedules_for(spec):
        for numbers in configs:
            try:
                merge = fitting_merge(settings.with_schedule(text), spec, numbers)
            except ConfigError:  # too few tokens are left for it: not a schedule of this encoder
                continue
            known = [(way.merge, way.config) for way in ways]
            if merge is not None and (merge, numbers) not in known:
                ways.append(MergeWay(text, merge, numbers))
    return ways


def loss_against(reference: Score, score: Score, objective: Objective, seed: int) -> Difference:
    """Paired difference from FP32, in points, with its 95 % interval."""
    found = compare_scores(objective.name, reference, score, seed)
    if not objective.smooth:
        return found
    ends = {end: 100 * getattr(found, end) for end in ("difference", "low", "high")}
    return replace(found, **ends)


def choose_point(points: Sequence[MergePoint], max_drop: float) -> list[MergePoint]:
    """Mark the fastest way whose interval keeps the budget; else the unmerged one.

    A schedule must also be faster than the unmerged graph beyond the noise of its timing.
    """
    ways = [p for p in points if p.way and p.way.merge]
    fits = [p for p in ways if within(-p.loss.low, max_drop) and p.low > 1]
    unmerged = next(p for p in points if p.way is not None and p.way.merge is None)
    chosen = max(fits, key=lambda p: p.speedup, default=unmerged)
    return [replace(p, chosen=p is chosen) for p in points]


def merge_reason(points: Sequence[MergePoint], max_drop: float, images: int) -> str:
    """One sentence: what was chosen, and why."""
    chosen = next(p for p in points if p.chosen)
    if chosen.schedule != UNMERGED:
        return (
            f"merge {chosen.title}: {chosen.speedup:.2f} times as fast as the unmerged graph; the "
            f"fastest that loses no more than {max_drop:g} points against FP32 on {images} search "
            f"images ({loss_text(chosen.loss)})"
        )
    tried = [p for p in points if p.way is not None and p.way.merge is not None]
    if not tried:
        return "no merging: no schedule was timed or fits this encoder"
    faster = [p for p in tried if p.low > 1]
    if not faster:
        return "no merging: no schedule is faster than the unmerged graph beyond the noise"
    close = max(faster, key=lambda p: p.loss.low)
    return (
        f"no merging: no faster schedule stays within {max_drop:g} points of FP32 on {images} "
        f"search images; the closest is {close.title} ({loss_text(close.loss)}); more "
        "--search-images narrow the interval"
    )


def loss_text(loss: Difference) -> str:
    return f"{loss.difference:+.2f} [{loss.low:+.2f}, {loss.high:+.2f}]"
