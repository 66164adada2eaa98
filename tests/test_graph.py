"""The written graph equals the PyTorch encoder, and the quantized graph its simulation."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_deploy.encoders import Encoder, RegCache, RegCacheConfig
from regcache_deploy.planning import make_plan
from regcache_deploy.quantization import (
    Bits,
    Calibration,
    LinearQuantization,
    Quantization,
    SimulatedNumerics,
    Uniform,
)
from regcache_export.errors import BundleError, ConfigError, ModelError, UnsupportedEncoderError
from regcache_export.graph import INPUT_NAME, OPSET, OUTPUT_NAME, build_model, serialize
from regcache_export.graph.linear import weight_codes
from regcache_export.inspect import integer_gemms, optimized_op_counts
from regcache_export.plan import LinearQuant, Plan
from tests.tiny_plans import (
    CHOICE,
    float_calibration,
    naive_calibration,
    tiny_encoder,
    tiny_images,
    tiny_plan,
    tiny_regcache,
)

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only wait for a second thread
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def plan_of(calibration: Calibration) -> Plan:
    regcache = calibration.regcache
    return make_plan(calibration, regcache_config=regcache.config if regcache else None)


def run(
    model: onnx.ModelProto, images: Tensor, optimize: bool = True, outputs: list[str] | None = None
) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        serialize(model), options, providers=["CPUExecutionProvider"]
    )
    results: list[Any] = session.run(outputs, {INPUT_NAME: images.numpy()})
    return results


def cosine(a: Any, b: Any) -> float:
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return float(F.cosine_similarity(a, b, dim=-1).min())


# ---- floating point -----------------------------------------------------------------------------

SWITCHES: list[dict[str, Any]] = [
    {},
    {"norm_pre": True},
    {"layer_scale": True},
    {"pool": "avg"},
    {"final_norm": "after_pool"},
    {"pool": "avg", "final_norm": "after_pool"},
    {"pool": "avg", "final_norm": "none", "num_prefix_tokens": 0},
    {"final_norm": "none", "num_prefix_tokens": 5},
    {"activation": "quick_gelu"},
    {"activation": "gelu_tanh"},
    {"projection": False},
    {"norm_eps": 1e-2},
    {"width": 64, "heads": 1},
    {"width": 40, "heads": 5},
]


@pytest.mark.parametrize("regcache", [False, True], ids=["plain", "regcache"])
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_float_graph_equals_the_encoder(switches: dict[str, Any], regcache: bool) -> None:
    encoder = tiny_encoder(**switches)
    cache = tiny_regcache(encoder) if regcache else None
    model = build_model(plan_of(float_calibration(encoder, cache)))
    images = tiny_images(3)
    (features,) = run(model, images)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, encoder(images, regcache=cache), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"delete_at": "mlp_input"},
        {"prefix_count": 0},
        {"delete_count": 0},
        {"prefix_block": 0, "delete_block": 2},
        {"prefix_block": 2, "delete_block": 0, "delete_count": 11, "prefix_count": 64},
    ],
    ids=str,
)
def test_every_regcache_choice(changes: dict[str, Any]) -> None:
    encoder = tiny_encoder()
    cache = tiny_regcache(encoder, replace(CHOICE, **changes))
    images = tiny_images(2)
    (features,) = run(build_model(plan_of(float_calibration(encoder, cache))), images)
    np.testing.assert_allclose(features, encoder(images, regcache=cache), atol=2e-5, rtol=1e-5)
    assert np.abs(features - encoder(images).numpy()).max() > 1e-3  # the choice does something


def test_deletion_breaks_ties_as_the_simulation_does() -> None:
    """Twelve patches of equal norm, the last six with another content: position decides."""
    encoder = tiny_encoder(pool="avg")
    images = tiny_images(1)[:, :, :8, :8].tile(1, 1, 4, 3)
    position = torch.zeros_like(encoder.weights["pos_embed"])
    token = encoder.replace({"pos_embed": position}).embed(images)[0, 1]
    position[7:, token.abs().argmin()] = 0.5 * token.abs().max()
    encoder = encoder.replace({"pos_embed": position})
    cache = tiny_regcache(encoder, RegCacheConfig(0, 0, 0, 5))
    expected = encoder(images, regcache=cache)
    backwards = encoder.replace({"pos_embed": position.flip(0)})(images, regcache=cache)
    assert (expected - backwards).abs().max() > 1e-2
    model = build_model(plan_of(float_calibration(encoder, cache)))
    np.testing.assert_allclose(run(model, images)[0], expected, atol=2e-5)


def test_an_absent_bias_costs_no_node() -> None:
    encoder = tiny_encoder()
    zeros = {n: torch.zeros_like(w) for n, w in encoder.weights.items() if n.endswith(".bias")}
    model = build_model(plan_of(float_calibration(encoder.replace(zeros))))
    assert not any(node.name.endswith("qkv/Add") for node in model.graph.node)
    images = tiny_images(1)
    np.testing.assert_allclose(run(model, images)[0], encoder.replace(zeros)(images), atol=2e-5)


# ---- quantized ----------------------------------------------------------------------------------


class RecordedCodes(SimulatedNumerics):
    """The simulation, keeping the integer codes of every activation it quantizes."""

    def __init__(self, quantization: Quantization) -> None:
        super().__init__(quantization)
        self.codes: dict[str, Tensor] = {}

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if layer := self.quantization.linears.get(name):
            assert isinstance(layer.input, Uniform)
            self.codes[name] = layer.input.codes(x)
        return super().linear(name, x, weight, bias)


def quantize_nodes(model: onnx.ModelProto) -> list[str]:
    return [n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"]


def asymmetric(calibration: Calibration, bits: int, encoder: Encoder) -> Calibration:
    """The same calibration with unsigned activation codes and a zero point."""
    linears = {}
    for name, layer in calibration.quantization.linears.items():
        assert isinstance(layer.input, Uniform)
        high = layer.input.scale * layer.input.code_range[1]
        linears[name] = LinearQuantization(
            Uniform.asymmetric(-0.7 * high, 0.9 * high, bits), layer.weight
        )
    return replace(calibration, quantization=Quantization(linears))


CALIBRATIONS = ["W8A8", "W6A6", "W4A4", "W8A8 unsigned", "W6A6 unsigned", "layer scale"]


def calibration_of(kind: str) -> Calibration:
    encoder = tiny_encoder(layer_scale=kind == "layer scale")
    bits = int(kind[1]) if kind[0] == "W" else 8
    calibration = naive_calibration(encoder, tiny_regcache(encoder), Bits(bits, bits))
    return asymmetric(calibration, bits, encoder) if "unsigned" in kind else calibration


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_quantized_graph_equals_the_simulation(kind: str, batch: int, tmp_path: Path) -> None:
    calibration = calibration_of(kind)
    images = tiny_images(batch)
    numerics = RecordedCodes(calibration.quantization)
    expected = calibration.encoder(images, numerics, calibration.regcache)
    model = build_model(plan_of(calibration))
    (features,) = run(model, images)
    assert cosine(features, expected) > 0.9999
    assert cosine(features, calibration.encoder(images, regcache=calibration.regcache)) < 0.99999

    written = onnx.ModelProto()
    written.CopyFrom(model)
    names = quantize_nodes(model)
    assert names == [f"{layer}/QuantizeLinear" for layer in calibration.quantization.linears]
    for name in names:
        kind_of_code = onnx.TensorProto.UINT8 if "unsigned" in kind else onnx.TensorProto.INT8
        written.graph.output.append(onnx.helper.make_tensor_value_info(name, kind_of_code, None))
    for name, codes in zip(names, run(written, images, optimize=False, outputs=names), strict=True):
        simulated = numerics.codes[name.removesuffix("/QuantizeLinear")].numpy()
        simulated = simulated[:, : codes.shape[1]]  # behind the last keys, the class token alone
        different = np.abs(codes.astype(int) - simulated.astype(int))
        # float sums in another order move a value across a rounding tie now and then
        assert different.max() <= 1
        assert (different > 0).mean() < 0.005, name


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_onnx_runtime_runs_every_linear_in_integers(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(serialize(build_model(plan_of(calibration_of(kind)))))
    counts = optimized_op_counts(path)
    assert integer_gemms(path) == 12
    assert counts["DequantizeLinear"] == 0


def test_a_float_model_has_no_integer_products(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(serialize(build_model(plan_of(float_calibration(tiny_encoder())))))
    assert integer_gemms(path) == 0


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_size_keeps_the_integers(batch: int, tmp_path: Path) -> None:
    """With known shapes ONNX Runtime fuses more, and lost the integers to a bias of shape [C]."""
    model = build_model(tiny_plan())
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    path = tmp_path / "model.onnx"
    path.write_bytes(serialize(model))
    assert integer_gemms(path) == 12


def test_a_fall_back_to_floating_point_would_be_seen(tmp_path: Path) -> None:
    """The count is what protects against the silent fall-back, so it must notice one."""
    model = build_model(tiny_plan())
    name = "blocks.1.mlp.fc1"
    (product,) = (n for n in model.graph.node if n.name == f"{name}/MatMul")
    between = onnx.helper.make_node("Relu", [product.input[0]], [f"{name}/Relu"])
    product.input[0] = between.output[0]
    model.graph.node.insert(list(model.graph.node).index(product), between)
    path = tmp_path / "model.onnx"
    path.write_bytes(serialize(model))
    assert integer_gemms(path) == 11


def test_some_layers_may_stay_in_floating_point() -> None:
    encoder = tiny_encoder(layer_scale=True)
    calibration = naive_calibration(encoder)
    linears = {n: q for n, q in calibration.quantization.linears.items() if "fc2" not in n}
    calibration = replace(calibration, quantization=Quantization(linears))
    images = tiny_images(2)
    model = build_model(plan_of(calibration))
    assert len(quantize_nodes(model)) == 9
    simulated = calibration.encoder(images, calibration.numerics())
    assert cosine(run(model, images)[0], simulated) > 0.9999


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_weight_codes_are_those_of_the_simulation(
    bits: int, per_channel: bool, signed: bool
) -> None:
    generator = torch.Generator().manual_seed(bits)
    scale = torch.rand((64, 1) if per_channel else (), generator=generator) + 0.01
    zero_point = torch.full_like(scale, 0 if signed else 2 ** (bits - 1))
    quantizer = Uniform(scale, zero_point, bits, signed)
    # halves of the scale: with every rounding error of the division, many are exact ties
    weight = (torch.arange(-150, 150) / 2 * scale).expand(64, -1)
    codes = weight_codes(weight.numpy(), quantizer.to_plan())
    assert codes.dtype == (np.int8 if signed else np.uint8)
    np.testing.assert_array_equal(codes, quantizer.codes(weight).numpy())


def test_unsigned_per_tensor_weights_work_too() -> None:
    encoder = tiny_encoder()
    calibration = naive_calibration(encoder)
    linears = {}
    for name, layer in calibration.quantization.linears.items():
        weight = calibration.encoder.weights[f"{name}.weight"]
        linears[name] = LinearQuantization(
            layer.input, Uniform.asymmetric(weight.min(), weight.max(), 8)
        )
    calibration = replace(calibration, quantization=Quantization(linears))
    images = tiny_images(2)
    features = run(build_model(plan_of(calibration)), images)[0]
    assert cosine(features, calibration.encoder(images, calibration.numerics())) > 0.9999


# ---- the file -----------------------------------------------------------------------------------


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


# ---- refused ------------------------------------------------------------------------------------


def with_input_quant(plan: Plan, **changes: Any) -> Plan:
    name = "blocks.1.mlp.fc1"
    layer = plan.linears[name]
    changed = LinearQuant(replace(layer.input, **changes), layer.weight)
    return replace(plan, linears={**plan.linears, name: changed})


def with_weight_quant(plan: Plan, **changes: Any) -> Plan:
    name = "blocks.1.mlp.fc1"
    layer = plan.linears[name]
    changed = LinearQuant(layer.input, replace(layer.weight, **changes))
    return replace(plan, linears={**plan.linears, name: changed})


ONE = np.ones(1, np.float32)
ZERO = np.zeros(1, np.int32)


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 16},
        {"bits": 1},
        {"scale": np.zeros(1, np.float32)},
        {"scale": -ONE},
        {"scale": ONE * np.nan},
        {"scale": ONE * np.inf},
        {"scale": np.ones(2, np.float32)},
        {"scale": np.float32(1).reshape(())},
        {"zero_point": ZERO + 200},
        {"zero_point": ZERO - 1, "signed": False},
        {"bits": 4, "zero_point": ZERO + 8},
        {
            "scale": np.ones(48, np.float32),
            "zero_point": np.zeros(48, np.int32),
            "per_channel": True,
        },
    ],
    ids=str,
)
def test_a_quantizer_that_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"blocks\.1\.mlp\.fc1"):
        build_model(with_input_quant(tiny_plan(), **changes))


def test_weight_scales_must_match_the_rows() -> None:
    plan = with_weight_quant(
        tiny_plan(), scale=np.ones(79, np.float32), zero_point=np.zeros(79, np.int32)
    )
    with pytest.raises(BundleError, match="79 scales for 80 rows"):
        build_model(plan)


def test_incomplete_or_broken_plans_are_refused() -> None:
    plan = tiny_plan()
    fewer = {n: w for n, w in plan.weights.items() if n != "norm.bias"}
    with pytest.raises(BundleError, match=r"norm\.bias"):
        build_model(replace(plan, weights=fewer))
    damaged = {**plan.weights, "pos_embed": plan.weights["pos_embed"] * np.nan}
    with pytest.raises(ModelError, match="pos_embed"):
        build_model(replace(plan, weights=damaged))
    with pytest.raises(BundleError, match="register of block 1"):
        build_model(replace(plan, register={}))
    with pytest.raises(BundleError, match="register of block 2"):
        build_model(replace(plan, register={**plan.register, 2: np.ones(7, np.float32)}))
    extra = {**plan.linears, "blocks.9.mlp.fc1": plan.linears["blocks.1.mlp.fc1"]}
    with pytest.raises(BundleError, match=r"blocks\.9"):
        build_model(replace(plan, linears=extra))
    with pytest.raises(ConfigError, match="delete count 12"):
        build_model(replace(plan, regcache=replace(CHOICE, delete_count=12)))


def test_unsupported_structures_are_refused() -> None:
    plan = tiny_plan(quantized=False)
    with pytest.raises(ModelError, match="pool width 0"):
        build_model(replace(plan, encoder=replace(plan.encoder, pool="map")))
    others: list[dict[str, Any]] = [{"activation": "relu"}, {"final_norm": "sometimes"}]
    for other in others:
        with pytest.raises(UnsupportedEncoderError, match=next(iter(other.values()))):
            build_model(replace(plan, encoder=replace(plan.encoder, **other)))
    choice: dict[str, Any] = {"delete_at": "nowhere"}
    with pytest.raises(BundleError, match="nowhere"):
        build_model(replace(plan, regcache=replace(CHOICE, **choice)))
    with pytest.raises(ModelError, match="class token"):
        build_model(replace(plan, encoder=replace(plan.encoder, num_prefix_tokens=0)))
    with pytest.raises(ModelError, match="5 heads"):
        build_model(replace(plan, encoder=replace(plan.encoder, heads=5)))
    with pytest.raises(ModelError, match="output_dim"):
        build_model(replace(plan, encoder=replace(plan.encoder, projection=False)))


def test_random_register_reaches_the_graph() -> None:
    """Cached keys and values are the projections of the register, bias included."""
    encoder = tiny_encoder()
    cache: RegCache = tiny_regcache(encoder)
    model = build_model(plan_of(float_calibration(encoder, cache)))
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    keys, values = encoder.prefix_kv(2, cache.register[2])
    for name, expected in (("prefix_k", keys), ("prefix_v", values)):
        np.testing.assert_allclose(
            constants[f"blocks.2.attn/{name}"], expected.expand(-1, -1, 3, -1), atol=1e-5
        )
