"""Two delete counts in plan, graph, certificate and metadata: ranges without sinks that stay."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import Tensor

from regcache_deploy.bundling.certify import certify_bundle
from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.quantization.simulate import Calibration
from regcache_engines.bundle import Bundle
from regcache_export.bundle import write_bundle
from regcache_export.describe import summary, tokens_out
from regcache_export.errors import BundleError, ConfigError
from regcache_export.graph import build_model
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions
from regcache_export.verify import verify_bundle
from tests.bundling.certificate_helpers import pixels, plan_of
from tests.export.graph_helpers import cosine, run
from tests.tiny_plans import (
    CHOICE,
    SPEC,
    naive_calibration,
    tiny_encoder,
    tiny_images,
    tiny_plan,
    tiny_regcache,
)

SATURATED = CHOICE.deleting(0, 4)
FEWER = CHOICE.deleting(1, 4)


def test_one_count_means_both() -> None:
    assert RegCacheConfig(1, 3, 1, 4).range_delete_count == 4
    assert CHOICE.for_ranges() == CHOICE
    assert not CHOICE.saturates
    assert SATURATED.saturates
    assert SATURATED.for_ranges() == FEWER.for_ranges() == CHOICE


def test_a_choice_of_ranges_alone_is_not_empty_and_begins_at_its_block() -> None:
    ranges = RegCacheConfig(2, 0, 1, 0, range_delete_count=3)
    assert not ranges.is_empty
    assert not ranges.deletes
    assert ranges.first_block == 1
    assert replace(SATURATED, prefix_block=2).first_block == 1
    assert ranges.deleting(0).is_empty


def test_counts_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="range delete count 3"):
        RegCacheConfig(1, 3, 1, 4, range_delete_count=3)
    with pytest.raises(ConfigError, match="range delete count 12"):
        CHOICE.deleting(4, 12).check(SPEC)
    with pytest.raises(BundleError, match="range delete count 3"):
        RegCacheConfig.from_json(CHOICE.to_json() | {"range_delete_count": 3})
    for wrong in ("4", True, None, 4.0):
        with pytest.raises(BundleError, match="range_delete_count"):
            RegCacheConfig.from_json(CHOICE.to_json() | {"range_delete_count": wrong})


def test_a_plan_keeps_both_counts_and_one_from_before_has_equal_ones(tmp_path: Path) -> None:
    calibration = naive_calibration(tiny_encoder(), tiny_regcache(tiny_encoder(), FEWER))
    plan_of(calibration).save(tmp_path)
    assert Plan.load(tmp_path).regcache == FEWER
    path = tmp_path / "plan.json"
    document = json.loads(path.read_text())
    assert document["regcache"].pop("range_delete_count") == 4
    path.write_text(json.dumps(document))
    old = Plan.load(tmp_path).regcache
    assert old is not None
    assert (old.delete_count, old.range_delete_count) == (1, 1)


@pytest.mark.parametrize(("choice", "deletions", "tokens"), [(SATURATED, 0, 13), (FEWER, 1, 12)])
def test_the_graph_deletes_its_own_count(
    choice: RegCacheConfig, deletions: int, tokens: int
) -> None:
    encoder = tiny_encoder()
    calibration = naive_calibration(encoder, tiny_regcache(encoder, choice))
    plan, images = plan_of(calibration), tiny_images(4)
    model = build_model(plan)
    found = [node.op_type for node in model.graph.node]
    assert found.count("TopK") == found.count("GatherND") == deletions
    assert tokens_out(plan) == tokens
    (features,) = run(model, images, optimize=False)
    expected = encoder_features(calibration, images)
    assert cosine(features, expected) > 0.9999


def encoder_features(calibration: Calibration, images: Tensor) -> Tensor:
    return calibration.encoder(images, calibration.numerics(), calibration.regcache)


def test_ranges_of_a_graph_that_keeps_its_sinks_are_those_of_deletion() -> None:
    encoder = tiny_encoder()
    plans = [
        plan_of(naive_calibration(encoder, tiny_regcache(encoder, choice)))
        for choice in (CHOICE, SATURATED, CHOICE.deleting(0))
    ]
    scales = [
        np.concatenate([plan.linears[name].input.scale.ravel() for name in plan.linears])
        for plan in plans
    ]
    np.testing.assert_array_equal(scales[1], scales[0])
    assert (scales[2] != scales[0]).any()  # the four tokens did set ranges


@pytest.mark.parametrize("choice", [SATURATED, FEWER], ids=["saturated", "fewer"])
@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_a_bundle_is_certified_and_says_both(
    target: str, choice: RegCacheConfig, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    encoder = tiny_encoder()
    calibration = naive_calibration(encoder, tiny_regcache(encoder, choice))
    plan, options = plan_of(calibration), GraphOptions(target=target)
    path = write_bundle(plan, tmp_path / "tiny.regcache", options=options)
    certify_bundle(path, plan, options, calibration, pixels())
    verify_bundle(Bundle.open(path)).check()
    manifest = Bundle.open(path).manifest["regcache"]
    assert manifest == choice.to_json() == summary(plan)["regcache"]
    assert (manifest["delete_count"], manifest["range_delete_count"]) == (choice.delete_count, 4)
    properties = {p.key: p.value for p in onnx.load(path / "model.onnx").metadata_props}
    assert json.loads(properties["regcache.regcache"]) == manifest


def test_the_tiny_plan_of_the_other_tests_deletes_what_is_absent() -> None:
    assert tiny_plan().regcache == CHOICE
