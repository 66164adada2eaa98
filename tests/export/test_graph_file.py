"""The file: checker, shapes, names, metadata, deterministic bytes, size."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from regcache_export.graph import INPUT_NAME, OPSET, OUTPUT_NAME, build_model, serialize
from regcache_export.plan import LinearQuant, Plan, TensorQuant
from regcache_export.regcache_config import RegCacheConfig
from regcache_export.spec import EncoderSpec
from regcache_export.targets import GraphOptions
from tests.export.graph_helpers import quantize_nodes, run
from tests.tiny_plans import tiny_images, tiny_plan

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("quantized", [False, True])
def test_checker_and_strict_shape_inference_pass(quantized: bool) -> None:
    plan = tiny_plan(quantized)
    model = build_model(plan)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in inferred.graph.value_info
    }
    assert shapes["blocks.0.mlp/residual/Add"] == ["batch", 13, 48]
    assert shapes["blocks.1.mlp/residual/Add"] == ["batch", 9, 48]
    assert shapes["blocks.2.mlp/residual/Add"] == ["batch", 1, 48]
    assert shapes["blocks.2.attn/prefix_k/Concat"] == ["batch", 3, 12, 16]
    assert all(shapes[node.output[0]] for node in model.graph.node[:-1])
    assert [o.version for o in model.opset_import if o.domain == ""] == [OPSET]
    assert not any(node.domain for node in model.graph.node)
    ((inputs,), (outputs,)) = model.graph.input, model.graph.output
    assert (inputs.name, outputs.name) == (INPUT_NAME, OUTPUT_NAME)


@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
@pytest.mark.parametrize("batch", [None, 2])
def test_a_viewer_sees_every_shape(target: str, batch: int | None) -> None:
    """Stored, because no viewer infers them; and what is stored is what runs."""
    plan = tiny_plan()
    model = build_model(plan, options=GraphOptions(target=target, batch=batch))
    stored = {value.name: value for value in model.graph.value_info}
    made = [name for node in model.graph.node for name in node.output]
    inner = [name for name in made if name != OUTPUT_NAME]
    assert list(stored) == inner
    images = tiny_images(2)
    values = run(model, images, optimize=False, outputs=inner_outputs(model, inner))
    for name, array in zip(inner, values, strict=True):
        tensor = stored[name].type.tensor_type
        assert helper.tensor_dtype_to_np_dtype(tensor.elem_type) == array.dtype, name
        shape = [d.dim_value or d.dim_param for d in tensor.shape.dim]
        assert len(shape) == array.ndim, name
        wanted = [2 if d in ("batch", "") or "unk" in str(d) else d for d in shape]
        assert wanted == list(array.shape), (name, shape)


def inner_outputs(model: onnx.ModelProto, names: list[str]) -> list[str]:
    """Make inner tensors outputs of the graph."""
    values = {value.name: value for value in model.graph.value_info}
    model.graph.output.extend(values[name] for name in names)
    return names


def test_shapes_take_little_room() -> None:
    model = build_model(tiny_plan())
    with_shapes = model.ByteSize()
    del model.graph.value_info[:]
    nodes = len(model.graph.node)
    assert with_shapes - model.ByteSize() < 150 * nodes


def test_names_say_block_and_role() -> None:
    model = build_model(tiny_plan())
    names = {node.name for node in model.graph.node}
    assert {
        "blocks.2.attn.qkv/QuantizeLinear",
        "blocks.2.attn.qkv/DequantizeLinear",
        "blocks.2.attn.qkv/weight/DequantizeLinear",
        "blocks.2.attn.qkv/MatMul",
        "blocks.2.attn.qkv/Add",
        "blocks.1.delete/TopK",
        "blocks.1.attn/prefix_v/Concat",
    } <= names
    for node in model.graph.node:
        assert node.name.endswith(node.op_type)
    # one Q feeds one DQ, next to it
    consumers = [i for node in model.graph.node for i in node.input]
    for name in quantize_nodes(model):
        assert consumers.count(name) == 1
    constants = {t.name: list(t.dims) for t in model.graph.initializer}
    assert constants["blocks.2.attn.qkv.weight"] == [48, 144]
    assert constants["blocks.2.attn.qkv.bias"] == [1, 1, 144]
    assert constants["blocks.2.attn/prefix_k"] == [1, 3, 3, 16]


def test_metadata_says_what_the_file_is() -> None:
    model = build_model(tiny_plan(), plan_sha256="ab" * 32)
    properties = {p.key: p.value for p in model.metadata_props}
    assert properties["regcache.model"] == "tiny"
    assert properties["regcache.baseline"] == "naive"
    assert properties["regcache.bits"] == "W8A8"
    assert properties["regcache.plan_sha256"] == "ab" * 32
    assert '"delete_count": 4' in properties["regcache.regcache"]
    assert '"std": [0.25, 0.25, 0.25]' in properties["regcache.preprocess"]
    assert list(properties) == sorted(properties)


PRINT_HASH = """
import hashlib, sys
from pathlib import Path
from regcache_export.graph import build_model, serialize
from regcache_export.plan import Plan
print(hashlib.sha256(serialize(build_model(Plan.load(Path(sys.argv[1]))))).hexdigest())
assert "torch" not in sys.modules
"""


def test_identical_input_gives_identical_bytes(tmp_path: Path) -> None:
    plan = tiny_plan()
    here = hashlib.sha256(serialize(build_model(plan))).hexdigest()
    assert here == hashlib.sha256(serialize(build_model(plan))).hexdigest()
    plan.save(tmp_path)
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run(
        [sys.executable, "-c", PRINT_HASH, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here


def test_int8_is_a_quarter_of_float32() -> None:
    """ViT-B/16 with prefix and deletion; which numbers the weights hold does not matter."""
    spec = EncoderSpec((224, 224), (16, 16), 768, 12, 12, 3072, 512, norm_pre=True)
    weights = {n: np.full(shape, 0.01, np.float32) for n, shape in spec.weight_shapes().items()}
    choice = RegCacheConfig(6, 4, 6, 5)
    register = {block: np.ones(768, np.float32) for block in choice.prefix_blocks(spec.depth)}
    one, zero = np.ones(1, np.float32), np.zeros(1, np.int32)
    linears = {}
    for name in spec.linears():
        rows = len(weights[f"{name}.bias"])
        scales, zeros = np.ones(rows, np.float32), np.zeros(rows, np.int32)
        weight = TensorQuant(scales, zeros, per_channel=True)
        linears[name] = LinearQuant(TensorQuant(one, zero), weight)
    sizes = [
        build_model(Plan(spec, weights, layers, choice, register)).ByteSize()
        for layers in (linears, {})
    ]
    assert sizes[1] > 340e6
    assert sizes[0] <= sizes[1] / 3.8
