"""Which schedules are tried, and which of them is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from regcache_deploy.bench.merge_latency import given_latency
from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.errors import DataError
from regcache_deploy.evaluation.objective import Score
from regcache_deploy.search.merging import (
    MergePoint,
    MergeWay,
    choose_point,
    merge_reason,
    merge_ways,
    schedules_for,
)
from regcache_deploy.search.settings import MergeSettings
from regcache_deploy.search.statistics import Difference
from regcache_deploy.work.format import front_rows
from regcache_export.merge import Merge
from tests.tiny_plans import tiny_encoder

NOTHING = RegCacheConfig(0, 0, 1, 0)
SCORE = Score.of(torch.ones(2).double(), torch.ones(2).double(), torch.ones(2).double())


def point(
    schedule: str, low: float, speedup: float, slowest: float | None = None, **more: Any
) -> MergePoint:
    merge = None if schedule == "none" else Merge((1, 0, 0))
    loss = Difference(low + 0.1, low, low + 0.2, 1.0)
    ends = (speedup, speedup if slowest is None else slowest, speedup)
    way = MergeWay(schedule, merge, NOTHING)
    return MergePoint(schedule, schedule, 0, SCORE, loss, 10 / speedup, *ends, way, **more)


def test_schedules_of_a_vit_b_16_are_those_of_the_benchmark() -> None:
    spec = replace(tiny_encoder().spec, image_size=(224, 224), patch_size=(16, 16), depth=12)
    constant = ["4", "(4,-1)", "8/2", "8", "(8,-1)", "16/2", "13", "(13,-1)", "26/2"]
    assert schedules_for(spec) == [*constant, "3:39", "3:69"]


def test_deletion_is_also_tried_as_saturation() -> None:
    spec = tiny_encoder().spec
    ways = merge_ways(spec, RegCacheConfig(0, 2, 1, 2), MergeSettings(merge="auto"))
    assert ways[0].merge is None
    kinds = {(w.config.delete_count, w.config.range_delete_count) for w in ways[1:]}
    assert kinds == {(2, 2), (0, 2)}
    seen = [(w.merge, w.config) for w in ways]
    assert len(set(seen)) == len(seen)
    for way in ways[1:]:
        assert way.merge is not None
        way.merge.check(spec, way.config)
        way.merge.check(spec, way.config.for_ranges())  # a calibration has deleted them all


@pytest.mark.parametrize(
    ("points", "chosen"),
    [
        ([point("none", 0, 1), point("4", -0.2, 1.1), point("8", -0.4, 1.3)], "8"),
        # the estimate would keep it, the interval does not
        ([point("none", 0, 1), point("4", -0.2, 1.1), point("8", -0.55, 1.3)], "4"),
        ([point("none", 0, 1), point("4", -0.2, 1.05, 0.98)], "none"),
        # a loss of just what is allowed, as floats are
        ([point("none", 0, 1), point("4", -0.5 - 2**-50, 1.1)], "4"),
        # RegCache itself may have lost more than the budget; merging would add to that
        ([point("none", -3, 1), point("8", -4, 1.3)], "none"),
    ],
)
def test_the_fastest_within_the_interval(points: list[MergePoint], chosen: str) -> None:
    found = choose_point(points, 0.5)
    assert [p.schedule for p in found if p.chosen] == [chosen]
    text = merge_reason(found, 0.5, 100)
    assert ("no merging" in text) == (chosen == "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge,ms\nnone,3\n", "delete_count"),
        ("merge,delete_count,ms\n8,0,3\n", "unmerged"),
        ("merge,delete_count,ms\nnone,0,-3\n", "positive"),
        ("merge,delete_count,ms\nnone,0,fast\n", "cannot be read"),
    ],
)
def test_latencies_that_say_nothing(text: str, message: str, tmp_path: Any) -> None:
    path = tmp_path / "latency.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        given_latency(path, ("none", 0))


def test_latencies_of_another_machine(tmp_path: Any) -> None:
    path = tmp_path / "latency.csv"
    path.write_text('merge,delete_count,ms\nnone,0,30\n"(8,-1)",0,20\n')
    found = given_latency(path, ("none", 0))
    assert found["(8,-1)", 0].speedup.value == pytest.approx(1.5)
    given = replace(point("8", 0, 1.5), speedup=1.5, low=1.5, high=1.5).to_json()
    timed = replace(point("8", 0, 1.5), speedup=1.5, low=1.4, high=1.6).to_json()
    rows = front_rows("top1", [given, timed])
    assert [row[2] for row in rows] == ["1.50", "1.50 [1.40, 1.60]"]  # nobody timed the first
