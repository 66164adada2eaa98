"""The merging graph in ONNX Runtime against the simulation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.encoders.rotary import Survivors
from regcache_export.checks import check_tensorrt
from regcache_export.checks.fusion import int8_attention_blocks
from regcache_export.errors import BundleError, ConfigError
from regcache_export.graph import build_model
from regcache_export.merge import Merge
from regcache_export.targets import GraphOptions
from tests.export.graph_helpers import plan_of, run
from tests.export.tensorrt_plans import SHAPES, random_plan
from tests.tiny_plans import (
    CHOICE,
    float_calibration,
    naive_calibration,
    tiny_encoder,
    tiny_images,
    tiny_plan,
    tiny_regcache,
)

AT_MLP = RegCacheConfig(2, 3, 1, 4, "mlp_input")

ENCODERS: dict[str, dict[str, Any]] = {
    "cls": {},
    "registers": {"num_prefix_tokens": 5},
    "no special tokens": {"num_prefix_tokens": 0, "pool": "avg"},
    "avg with cls": {"pool": "avg", "pool_include_prefix": True, "final_norm": "after_pool"},
    "map": {"pool": "map", "pool_heads": 3, "pool_width": 48, "pool_mlp_width": 40},
    "rotary": {"rotary": True},
    "rotary, avg": {"rotary": True, "pool": "avg", "num_prefix_tokens": 2},
}
CHOICES = {"alone": None, "deleting": CHOICE, "deleting at the mlp": AT_MLP}
COUNTS = {"cls": (3, 2, 0), "other": (3, 2, 1), "all sources": (6, 1, 0), "late": (0, 4, 0)}


def counts_of(changes: dict[str, Any], choice: RegCacheConfig | None, wanted: str) -> Any:
    if wanted == "all sources" and choice:
        return (4, 2, 0)
    if wanted == "other" and changes.get("pool", "cls") == "cls":
        wanted = "cls"
    return COUNTS[wanted]


@pytest.mark.parametrize("wanted", ["other", "all sources", "late"])
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("changes", ENCODERS.values(), ids=ENCODERS)
def test_graph_and_simulation_agree(
    changes: dict[str, Any], choice: RegCacheConfig | None, wanted: str
) -> None:
    """Both metrics, with and without proportional attention, in both CPU targets: the same pairs,
    and features to within float32's sums."""
    plain, images = tiny_encoder(**changes), tiny_images(3)
    for metric, proportional in (("keys", True), ("residual", False)):
        merge = Merge(counts_of(changes, choice, wanted), metric, proportional)  # type: ignore[arg-type]
        encoder = plain.merging(merge)
        regcache = tiny_regcache(encoder, choice) if choice else None
        expected = encoder(images, regcache=regcache).numpy()
        survivors = Survivors()
        encoder.run_blocks(encoder.embed(images), regcache=regcache, survivors=survivors)
        assert survivors.kept is not None
        for target in ("onnx", "onnxruntime"):
            model = build_model(
                plan_of(float_calibration(encoder, regcache)), options=GraphOptions(target=target)
            )
            onnx.checker.check_model(model)
            for optimize in (False, True):
                (found,) = run(model, images, optimize)
                largest = np.abs(expected).max()
                np.testing.assert_allclose(found, expected, atol=2e-5 * largest, rtol=0)
    # and it is the merge that made them
    assert not np.allclose(expected, plain(images, regcache=regcache).numpy(), rtol=1e-2)


def test_places_in_the_graph_are_those_of_the_simulation() -> None:
    """Exactly, for a rotary encoder, whose graph carries them through deletion and merges."""
    choice = RegCacheConfig(0, 0, 1, 3)
    encoder = tiny_encoder(rotary=True, pool="avg").merging(Merge((3, 1, 0)))
    regcache, images = tiny_regcache(encoder, choice), tiny_images(4)
    model = build_model(plan_of(float_calibration(encoder, regcache)))
    name = "blocks.1.merged/GatherElements"
    model.graph.output.extend([onnx.ValueInfoProto(name=name)])
    (places,) = run(model, images, optimize=False, outputs=[name])
    survivors = Survivors()
    encoder.run_blocks(encoder.embed(images), 0, 2, regcache=regcache, survivors=survivors)
    assert survivors.kept is not None
    assert np.array_equal(places, survivors.kept.numpy())


def test_the_batch_may_vary_and_no_image_sees_another() -> None:
    encoder = tiny_encoder().merging(Merge((3, 3, 0), proportional=True))
    for target in ("onnx", "onnxruntime"):
        model = build_model(
            plan_of(float_calibration(encoder)), options=GraphOptions(target=target)
        )
        images = tiny_images(5)
        (together,) = run(model, images)
        alone = np.concatenate([run(model, images[i : i + 1])[0] for i in range(5)])
        np.testing.assert_allclose(together, alone, atol=1e-4)


def test_no_scatter_nothing_quantized_and_only_static_shapes() -> None:
    encoder = tiny_encoder(pool="avg").merging(Merge((3, 2, 1), proportional=True))
    model = build_model(plan_of(naive_calibration(encoder)))
    island = [node for node in model.graph.node if "merge/" in node.name]
    assert {"TopK", "GatherND", "MatMul", "ArgMax"} <= {node.op_type for node in island}
    allowed = {"Scatter", "ScatterElements", "ScatterND", "NonZero", "Range", "Loop"}
    assert not allowed & {node.op_type for node in model.graph.node}
    touched = {name for node in island for name in node.input}
    codes = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert codes
    assert not touched & {name for node in codes for name in node.output}
    shapes = {v.name: v.type.tensor_type.shape.dim for v in model.graph.value_info}
    for node in island:
        dims = shapes[node.output[0]]
        assert all(dim.HasField("dim_value") for dim in dims[1:]), node.name


def test_sizes_are_carried_only_as_far_as_someone_asks() -> None:
    def sized(**changes: Any) -> list[str]:
        merge = Merge((3, 2, 0), proportional=changes.pop("proportional", False))
        plan = plan_of(float_calibration(tiny_encoder(**changes).merging(merge)))
        read = [(v, n.name) for n in build_model(plan).graph.node for v in n.input]
        sizes = {v for v, _ in read if v.endswith("merge/size/Add")}
        return sorted(v for v in sizes if any(v == r and v[:8] != n[:8] for r, n in read))

    assert sized() == ["blocks.0.merge/size/Add"]
    assert len(sized(pool="avg")) == len(sized(proportional=True)) == 2


def test_the_file_says_how_it_merges() -> None:
    plan = replace(tiny_plan(), merge=Merge((2, 1, 0), "residual", True))
    stored = {entry.key: entry.value for entry in build_model(plan).metadata_props}
    assert stored["regcache.merge"] == (
        '{"counts": [2, 1, 0], "metric": "residual", "proportional": true}'
    )
    plain = {entry.key for entry in build_model(tiny_plan()).metadata_props}
    assert "regcache.merge" not in plain


@pytest.mark.parametrize(
    ("merge", "why"),
    [
        (Merge((2, 2)), "2 counts for 3 blocks"),
        (Merge((7, 0, 0)), "block 0 cannot merge 7 tokens; of the 12"),
        (Merge((2, 2, 1)), "class token alone"),
        (Merge((0, 4, 0), compat=True), "published indexing cannot tell"),
        (Merge((2, 2, 0), "values"), "metric 'values'"),  # type: ignore[arg-type]
    ],
)
def test_what_no_graph_holds_is_refused(merge: Merge, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build_model(replace(tiny_plan(), merge=merge))


class TestTensorrt:
    options = GraphOptions(target="tensorrt")

    def test_rules_hold_and_attention_stays_int8_in_every_block(self) -> None:
        for name in ("CLIP B/16", "SigLIP B/16"):
            plan = random_plan(SHAPES[name], regcache=False)
            last = 0 if plan.encoder.pool == "cls" else 8
            plan = replace(plan, merge=Merge((8, last)))
            report = check_tensorrt(build_model(plan, options=self.options))
            assert not report.findings
            assert [block.attention for block in report.blocks] == ["int8", "int8"]

    def test_proportional_attention_is_not_quantized_behind_a_merge(self) -> None:
        spec = SHAPES["CLIP B/16"]
        merge = Merge((8, 0), proportional=True)
        assert int8_attention_blocks(spec, None, merge) == [0]
        assert int8_attention_blocks(spec, None, Merge((8, 0))) == [0, 1]
        plan = replace(random_plan(spec, regcache=False), merge=merge)
        with pytest.raises(BundleError, match="a value is added to its logits"):
            build_model(plan, options=self.options)
        first = {n: q for n, q in plan.matmuls.items() if n.startswith("blocks.0.")}
        report = check_tensorrt(build_model(replace(plan, matmuls=first), options=self.options))
        assert [block.attention for block in report.blocks] == ["int8", "float16"]
        assert report.blocks[1].why == "a value is added to its logits"

    def test_the_island_is_float32_in_a_float16_body(self) -> None:
        plan = replace(random_plan(SHAPES["SigLIP B/16"]), merge=Merge((8, 8)))
        model = build_model(plan, options=self.options)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        types = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info}
        assert types["blocks.1.merge/MatMul"] == onnx.TensorProto.FLOAT
        assert types["blocks.1.merge/tokens/Add"] == onnx.TensorProto.FLOAT
        assert types["blocks.1.mlp/residual/Add"] == onnx.TensorProto.FLOAT16


def test_merging_is_deterministic_to_the_byte() -> None:
    torch.manual_seed(3)
    plan = replace(tiny_plan(), merge=Merge((2, 1, 0)))
    first, second = (build_model(plan).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
