"""`--merge auto`: every schedule in simulation on the search images, its graph by the clock."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from regcache_engines.files import atomic_write_bytes
from regcache_export.plan import Plan

from ..bench.merge_latency import COLUMNS, Key, Latency, given_latency, measure_latency
from ..bench.subjects import float_plan
from ..encoders.load import LoadedModel
from ..encoders.regcache import RegCacheConfig
from ..evaluation.corners import calibrate_corner
from ..evaluation.image_sets import ImageSets
from ..quantization.baselines import Baseline
from ..quantization.plan import make_plan
from ..search.cost import calibration_walks
from ..search.embedder import Embedder
from ..search.find import FoundChoice
from ..search.merging import (
    ALONE,
    FLOAT,
    UNMERGED,
    MergePoint,
    MergeWay,
    choose_point,
    loss_against,
    merge_reason,
    merge_ways,
)
from ..work.progress import Reporter
from .options import ExportOptions

FRONT = "merge_front.csv"


@dataclass(frozen=True)
class MergeFront:
    """What `--merge auto` found.

    Attributes:
        points: FP32, the quantizer alone, the unmerged way, and every schedule.
        reason: why one was chosen.
    """

    points: tuple[MergePoint, ...]
    reason: str

    @property
    def chosen(self) -> MergeWay:
        return next(p.way for p in self.points if p.chosen and p.way is not None)


def choose_merge(
    options: ExportOptions,
    model: LoadedModel,
    sets: ImageSets,
    published: Baseline,
    chosen: tuple[Baseline, RegCacheConfig],
    found: FoundChoice,
    searched: Embedder,
    reporter: Reporter,
) -> MergeFront:
    """Calibrate, score and time every schedule on top of the way that was chosen.

    Args:
        published: the quantizer alone, as asked for.
        chosen: quantizer and RegCache numbers of the way.
        found: register and objective of the search.
        searched: embeds the search images.

    Raises:
        DataError: the file of latencies cannot be used.
        EngineError: a graph does not run.
    """
    (baseline, config), register = chosen, found.register
    ways = merge_ways(model.encoder.spec, config, options)
    first = _key(ways[0])
    if options.latency is not None:
        times = given_latency(options.latency, first)
        ways = [way for way in ways if _key(way) in times]
    else:
        plans = _plans(model, sets, published, baseline, config, dict(register), ways)
        times = dict[Key, Latency]()
        with reporter.stage("speed of the schedules", len(plans)) as advance:
            pixels = sets.search.pixels[:1].numpy()
            for key, time in measure_latency(plans, first, options.graph, pixels, options.threads):
                times[key] = time
                advance(1)
    objective, seed = found.objective, options.seed
    passes = len(searched.images) + calibration_walks(baseline) * len(searched.tokens)
    reference = objective.score(searched.float_features)

    def point(
        title: str, key: Key, features: Tensor, way: MergeWay | None = None
    ) -> list[MergePoint]:
        if key not in times:  # a file of latencies need not know it
            return []
        score, time = objective.score(features), times[key]
        loss, ratio = loss_against(reference, score, objective, seed), time.speedup
        ends = (ratio.value, ratio.low, ratio.high)
        return [MergePoint(title, *key, score, loss, time.ms, *ends, way)]

    nothing = _nothing(config)
    alone = searched.features(ALONE, published, nothing, {})
    points = point(FLOAT, (FLOAT, 0), searched.float_features)
    points += point(ALONE, (ALONE, 0), alone)
    for way in ways:
        name = f"merge {way.title}"
        features = searched.features(name, baseline, way.config, register, way.merge)
        sets.cache.work.add(model.encoder.spec.depth * passes)
        points += point(way.title, _key(way), features, way)
    points = choose_point(points, options.max_drop)
    return MergeFront(tuple(points), merge_reason(points, options.max_drop, len(sets.search)))


def write_front(folder: Path, front: MergeFront) -> Path:
    """Every point as one CSV row; `--latency` reads it on another machine."""
    rows = [p.to_json() for p in front.points]
    columns = [*COLUMNS, *(name for name in rows[0] if name not in COLUMNS)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = folder / FRONT
    atomic_write_bytes(path, buffer.getvalue().encode())
    return path


def _key(way: MergeWay) -> Key:
    return way.schedule, way.config.delete_count


def _nothing(config: RegCacheConfig) -> RegCacheConfig:
    return replace(config, prefix_count=0).deleting(0)


def _plans(
    model: LoadedModel,
    sets: ImageSets,
    published: Baseline,
    baseline: Baseline,
    config: RegCacheConfig,
    register: dict[int, Tensor],
    ways: list[MergeWay],
) -> dict[Key, Plan]:
    """Graphs to time. The quantizers are those of the unmerged way."""
    tokens, encoder = sets.calibration_tokens, model.encoder

    def plan(baseline: Baseline, config: RegCacheConfig) -> Plan:
        calibration = calibrate_corner(baseline, encoder, tokens, config, register)
        numbers = None if config.is_empty else config
        return make_plan(calibration, regcache_config=numbers, preprocess=model.preprocess)

    whole = plan(baseline, config)
    plans = {
        _key(way): replace(
            whole, merge=way.merge, regcache=None if way.config.is_empty else way.config
        )
        for way in ways
    }
    return {
        (UNMERGED, config.delete_count): whole,
        **plans,
        (FLOAT, 0): float_plan(whole),
        (ALONE, 0): plan(published, _nothing(config)),
    }
