"""Every rule of TensorRT has a graph that breaks it and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from regcache_deploy.cli.main import main
from regcache_export.bundle import write_bundle
from regcache_export.checks import RULES, check_file, check_tensorrt, require_tensorrt_rules
from regcache_export.checks.fusion import int8_attention_blocks, keys_of_block, why_not_int8
from regcache_export.errors import BundleError
from regcache_export.graph import build_model, serialize
from regcache_export.regcache_config import RegCacheConfig
from regcache_export.targets import GraphOptions
from tests.export.tensorrt_plans import CLIP, SHAPES, random_plan

TINY = replace(
    CLIP, image_size=(32, 32), patch_size=(8, 8), width=64, heads=4, mlp_width=96, output_dim=20
)
TENSORRT = GraphOptions(target="tensorrt")


@pytest.fixture(scope="module")
def good() -> onnx.ModelProto:
    return build_model(random_plan(TINY), options=TENSORRT)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def exchange(model: onnx.ModelProto, name: str, value: Any) -> None:
    """Give an initializer another value."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))


def add_constant(model: onnx.ModelProto, name: str, value: Any) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def add_node(model: onnx.ModelProto, operator: str, inputs: list[str], **attributes: Any) -> str:
    made = helper.make_node(operator, inputs, [f"new/{operator}"], f"new/{operator}", **attributes)
    model.graph.node.append(made)
    return f"new/{operator}"


def future_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 26


def dynamic_quantization(model: onnx.ModelProto) -> None:
    made = helper.make_node("DynamicQuantizeLinear", ["image"], ["a", "b", "c"], name="dynamic")
    model.graph.node.append(made)


def microsoft(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    add_node(model, "QuickGelu", ["image"], domain="com.microsoft")


def zero_point(model: onnx.ModelProto) -> None:
    exchange(model, "blocks.0.mlp.fc1.input_zero_point", np.int8(3))


def unsigned(model: onnx.ModelProto) -> None:
    exchange(model, "blocks.0.mlp.fc1.input_zero_point", np.uint8(0))


def moved_pixels(model: onnx.ModelProto) -> None:
    shape: list[str | int | None] = ["batch", 8, 8, 3]
    model.graph.input.append(helper.make_tensor_value_info("raw", TensorProto.UINT8, shape))
    add_node(model, "Transpose", ["raw"], perm=[0, 3, 1, 2])


def int32_bias(model: onnx.ModelProto) -> None:
    bias = add_constant(model, "bias32", np.ones(64, np.int32))
    scale = add_constant(model, "bias_scale", np.float16(0.1))
    add_node(model, "DequantizeLinear", [bias, scale])


def many_scales(model: onnx.ModelProto) -> None:
    for part, kind in (("scale", np.float16), ("zero_point", np.int8)):
        exchange(model, f"blocks.0.mlp.fc1.input_{part}", np.ones(64, kind) * (part == "scale"))
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        quantize = node(model, f"blocks.0.mlp.fc1/{operator}")
        quantize.attribute.append(helper.make_attribute("axis", 2))


def wrong_axis(model: onnx.ModelProto) -> None:
    dequantize = node(model, "blocks.0.attn.out_proj/weight/DequantizeLinear")  # 64 by 64
    dequantize.attribute[0].i = 0


def two_float_types(model: onnx.ModelProto) -> None:
    cast = helper.make_node("Cast", ["blocks.0.norm2/LayerNormalization"], ["wide"], to=1)
    position = [n.name for n in model.graph.node].index("blocks.0.norm2/LayerNormalization")
    model.graph.node.insert(position + 1, cast)
    add_node(model, "Add", ["wide", "blocks.0.norm2/LayerNormalization"])


def large_k(model: onnx.ModelProto) -> None:
    long = helper.make_tensor_value_info("long", TensorProto.FLOAT, ["batch", 5000])
    model.graph.input.append(long)
    made = ["new/values", "new/positions"]
    count = add_constant(model, "k", np.array([3841], np.int64))
    model.graph.node.append(helper.make_node("TopK", ["long", count], made, name="new/TopK"))


def scatter_add(model: onnx.ModelProto) -> None:
    index = add_constant(model, "index", np.zeros((1, 1), np.int64))
    update = add_constant(model, "update", np.zeros((1, 20), np.float32))
    add_node(model, "ScatterND", ["image_features", index, update], reduction="add")


def bare_class_token(model: onnx.ModelProto) -> None:
    node(model, "prefix_tokens/Concat").input[0] = "prefix_tokens"


def attention_operator(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 23
    shape: list[str | int | None] = ["batch", 4, 8, 16]
    model.graph.input.append(helper.make_tensor_value_info("q4", TensorProto.FLOAT, shape))
    add_node(model, "Attention", ["q4", "q4", "q4"])


def split_output(model: onnx.ModelProto) -> None:
    halves = ["new/a", "new/b"]
    source = "blocks.0.attn.out_proj/Add"
    made = helper.make_node("Split", [source], halves, name="new/Split", axis=2, num_outputs=2)
    model.graph.node.append(made)


def quantized_output(model: onnx.ModelProto) -> None:
    scale = add_constant(model, "new_scale", np.float16(0.1))
    zero = add_constant(model, "new_zero_point", np.int8(0))
    add_node(model, "QuantizeLinear", ["blocks.0.attn.out_proj/Add", scale, zero])


def half_quantized_attention(model: onnx.ModelProto) -> None:
    product = node(model, "blocks.0.attn/qk/MatMul")
    quantize = node(model, "blocks.0.attn.qk.left/QuantizeLinear")
    product.input[0] = quantize.input[0]


BREAKS: dict[str, list[Callable[[onnx.ModelProto], None]]] = {
    "opset": [future_opset],
    "operator": [dynamic_quantization, microsoft],
    "zero-point": [zero_point],
    "signed-codes": [unsigned],
    "pixels": [moved_pixels],
    "integer-bias": [int32_bias],
    "activation-scale": [many_scales, wrong_axis],
    "float-type": [two_float_types],
    "topk": [large_k],
    "scatter-reduction": [scatter_add],
    "batch-expand": [bare_class_token],
    "attention-operator": [attention_operator],
    "packed-qkv": [split_output],
    "output-quantization": [quantized_output],
    "attention-quantization": [half_quantized_attention],
}


@pytest.mark.parametrize(
    ("rule", "change"), [(rule, change) for rule, all_ in BREAKS.items() for change in all_]
)
def test_each_rule_alone(
    good: onnx.ModelProto, rule: str, change: Callable[[onnx.ModelProto], None]
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(good)
    change(model)
    findings = check_tensorrt(model).findings
    assert {finding.rule for finding in findings} == {rule}
    with pytest.raises(BundleError, match=f"'{rule}'") as caught:
        require_tensorrt_rules(model)
    assert caught.value.exit_code == 5


def test_every_rule_has_a_breaking_graph() -> None:
    assert list(BREAKS) == list(RULES)


def test_a_good_graph_and_its_promise(good: onnx.ModelProto) -> None:
    report = check_tensorrt(good)
    assert not report.findings
    assert [(b.int8_linears, b.linears, b.attention) for b in report.blocks] == [(6, 6, "int8")] * 2
    # six linears and two attention products a block
    kinds = sorted(report.promise.values())
    assert kinds == ["int8_gemm"] * 12 + ["int8_mha"] * 4


@pytest.mark.parametrize(
    ("shape", "attention", "why"),
    [
        ("CLIP L/14-336", "float16", "577 tokens are more than 512"),
        ("head size 80", "float16", "head size 80"),
    ],
)
def test_the_verdict_says_why_attention_is_not_int8(shape: str, attention: str, why: str) -> None:
    plan = random_plan(SHAPES[shape], regcache=False)
    report = check_tensorrt(build_model(plan, options=TENSORRT))
    assert not report.findings
    assert {block.attention for block in report.blocks} == {attention}
    assert all(why in block.why for block in report.blocks)
    assert "half_mha" in report.promise.values()


def test_quantized_attention_that_does_not_fuse_is_refused_at_export() -> None:
    plan = random_plan(SHAPES["head size 80"], "int8_linears")
    quantized = random_plan(SHAPES["CLIP B/32"]).matmuls
    with pytest.raises(BundleError, match=r"attention-quantization.*head size 80"):
        build_model(replace(plan, matmuls=quantized), options=TENSORRT)


def test_a_float32_body_is_said_to_cost_the_fusion() -> None:
    plan = random_plan(TINY, "int8_linears")
    report = check_tensorrt(build_model(plan, options=replace(TENSORRT, body="float32")))
    assert "float16 body" in report.blocks[0].why
    assert "half_mha" not in report.promise.values()


def test_tokens_of_a_block() -> None:
    choice = RegCacheConfig(6, 4, 5, 5, "mlp_input")
    assert keys_of_block(CLIP, None, 1) == 197
    deep = replace(CLIP, depth=12)
    assert [keys_of_block(deep, choice, i) for i in (4, 5, 6)] == [197, 197, 196]
    at_input = replace(choice, delete_at="block_input")
    assert keys_of_block(deep, at_input, 5) == 192
    # 508 tokens and 5 cached ones: quantized up to the prefix
    long = replace(deep, image_size=(16 * 13, 16 * 39), depth=8)
    assert long.num_tokens == 508
    assert int8_attention_blocks(long, RegCacheConfig(6, 5, 0, 0)) == [0, 1, 2, 3, 4, 5]
    assert why_not_int8(512, 64) is None
    assert why_not_int8(513, 64)


def test_other_targets_refuse_quantized_attention() -> None:
    with pytest.raises(BundleError, match=r"blocks\.0\.attn\.qk.*--target tensorrt"):
        build_model(random_plan(TINY))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = random_plan(TINY)
    bundle = write_bundle(plan, tmp_path / "good.regcache", options=TENSORRT)
    assert main(["check", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert "6/6" in out
    assert "every rule" in out
    packed = tmp_path / "packed.onnx"
    packed.write_bytes(serialize(build_model(replace(plan, matmuls={}))))
    assert main(["check", str(packed), "--json"]) == 5
    document = json.loads(capsys.readouterr().out)
    assert {finding["rule"] for finding in document["findings"]} == {
        "zero-point",
        "signed-codes",
        "packed-qkv",
    }
    assert main(["check", str(packed)]) == 5
    assert "broken: packed-qkv: blocks.0.attn.qkv/MatMul" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"hello"])
def test_what_is_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError):
        check_file(path)
    assert main(["check", str(path)]) == 5
    assert main(["check", str(tmp_path / "nowhere")]) == 5
    assert len(capsys.readouterr().err.splitlines()) == 2
