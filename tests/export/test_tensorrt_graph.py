"""The graph for TensorRT computes what its simulation computes; ONNX Runtime on the CPU runs it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.regcache import RegCache
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.baselines.ptq4vit import PTQ4ViT
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.quantizers import Bits, Uniform, symmetric_weight
from regcache_deploy.quantization.simulate import Calibration, LinearQuantization
from regcache_deploy.quantization.tensorrt import for_tensorrt, in_float16, shift_drowns
from regcache_export.errors import BundleError, DataError, ModelError
from regcache_export.graph import INPUT_NAME, build_model, serialize
from regcache_export.graph.editing import GraphEditor
from regcache_export.graph.tensorrt import to_tensorrt
from regcache_export.plan import Plan
from regcache_export.targets import Body, GraphOptions
from tests.tiny_plans import CHOICE, tiny_encoder, tiny_images, tiny_regcache

onnxruntime = pytest.importorskip("onnxruntime")

TENSORRT = GraphOptions(target="tensorrt")


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def encoder(**changes: Any) -> Encoder:
    """Tiny, with a head size at which INT8 attention fuses."""
    return tiny_encoder(**{"width": 64, "heads": 4, **changes})


def calibrated(
    tiny: Encoder, baseline: str, cache: RegCache | None = None, attention: bool = True
) -> Calibration:
    tokens = tiny.embed(tiny_images(8, seed=3))
    method = make_baseline(baseline)
    if baseline == "ptq4vit":
        method = PTQ4ViT(candidates=10, rounds=1, draws=1, rows=64)
    return for_tensorrt(method.calibrate(tiny, tokens, regcache=cache), tokens, attention)


def plan_of(calibration: Calibration) -> Plan:
    cache = calibration.regcache
    return make_plan(calibration, regcache_config=cache.config if cache else None)


def simulated(calibration: Calibration, images: Tensor) -> Tensor:
    return calibration.encoder(images, calibration.numerics(), calibration.regcache)


def run(plan: Plan, images: Tensor, body: Body) -> Tensor:
    """In ONNX Runtime, optimizations off: the graph as written."""
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = 1
    session_options.log_severity_level = 3
    session_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = build_model(plan, options=replace(TENSORRT, body=body))
    session = onnxruntime.InferenceSession(
        serialize(model), session_options, providers=["CPUExecutionProvider"]
    )
    (features,) = session.run(None, {INPUT_NAME: images.numpy()})
    assert features.dtype == np.float32
    return torch.from_numpy(features)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.double(), b.double(), dim=-1)


@pytest.mark.parametrize("attention", [True, False], ids=["int8 attention", "float attention"])
@pytest.mark.parametrize("regcache", [True, False], ids=["regcache", "plain"])
@pytest.mark.parametrize("baseline", ["naive", "ptq4vit", "repqvit"])
def test_graph_equals_simulation(baseline: str, regcache: bool, attention: bool) -> None:
    """With a float32 body only ties round differently; float16 also moves what is near one."""
    tiny = encoder()
    cache = tiny_regcache(tiny) if regcache else None
    calibration = calibrated(tiny, baseline, cache, attention)
    assert len(calibration.quantization.matmuls) == (6 if attention else 0)
    images = tiny_images(16)
    expected = simulated(calibration, images)
    plan = plan_of(calibration)
    exact = cosines(run(plan, images, "float32"), expected)
    assert exact.median() > 1 - 1e-6
    assert exact.min() > 0.99
    half = cosines(run(plan, images, "float16"), expected)
    noise = 1 - cosines(expected, tiny(images, regcache=cache)).mean()
    assert half.mean() > 0.98
    assert 1 - half.mean() < max(float(noise), 0.005)  # less than quantization itself costs


@pytest.mark.parametrize(
    "switches",
    [
        {"width": 96, "heads": 3},  # head size 32: the attention scale is no power of two
        {"pool": "avg", "num_prefix_tokens": 0, "final_norm": "after_pool"},
        {"layer_scale": True, "activation": "gelu_tanh"},
        {"pool": "map", "pool_heads": 4, "pool_width": 64, "pool_mlp_width": 96},
        {"norm_pre": True, "num_prefix_tokens": 5},
    ],
    ids=str,
)
def test_every_structure(switches: dict[str, Any]) -> None:
    tiny = encoder(**switches)
    if switches.get("pool") == "map":
        tiny = encoder(**switches, projection=True)
    calibration = calibrated(tiny, "naive", tiny_regcache(tiny))
    images = tiny_images(8)
    exact = cosines(run(plan_of(calibration), images, "float32"), simulated(calibration, images))
    assert exact.median() > 1 - 1e-6
    assert exact.min() > 0.999


@pytest.mark.parametrize(
    "changes",
    [
        {"delete_at": "mlp_input"},
        {"delete_at": "mlp_input", "delete_block": 2},
        {"delete_count": 0},
        {"delete_count": 1, "delete_at": "mlp_input"},
    ],
    ids=str,
)
def test_deletion_in_front_of_the_mlp_and_none(changes: dict[str, Any]) -> None:
    tiny = encoder()
    calibration = calibrated(tiny, "naive", tiny_regcache(tiny, replace(CHOICE, **changes)))
    images = tiny_images(8)
    exact = cosines(run(plan_of(calibration), images, "float32"), simulated(calibration, images))
    assert exact.median() > 1 - 1e-6


def test_every_scale_is_a_float16_number() -> None:
    tiny = encoder()
    model = build_model(plan_of(calibrated(tiny, "repqvit", tiny_regcache(tiny))), options=TENSORRT)
    single = build_model(
        plan_of(calibrated(tiny, "repqvit", tiny_regcache(tiny))),
        options=replace(TENSORRT, body="float32"),
    )
    editor, wide = GraphEditor(model.graph), GraphEditor(single.graph)
    scales = {n.input[1] for n in editor.nodes if n.op_type.endswith("izeLinear")}
    assert len(scales) == 3 * (4 + 6 + 4)  # inputs, weights (q, k, v apart), attention operands
    for name in scales:
        assert editor.value(name).dtype == np.float16
        np.testing.assert_array_equal(editor.value(name).astype(np.float32), wide.value(name))
        assert (editor.value(name) > 0).all()


def test_types_are_declared_throughout() -> None:
    tiny = encoder()
    model = build_model(plan_of(calibrated(tiny, "repqvit", tiny_regcache(tiny))), options=TENSORRT)
    onnx.checker.check_model(model, full_check=True)
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert not floats
    ends = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert ends == [onnx.TensorProto.FLOAT] * 2
    assert serialize(model) == serialize(
        build_model(plan_of(calibrated(tiny, "repqvit", tiny_regcache(tiny))), options=TENSORRT)
    )


def test_only_the_class_token_passes_the_last_mlp() -> None:
    tiny = encoder()
    graph = build_model(plan_of(calibrated(tiny, "naive")), options=TENSORRT).graph
    slices = [n.name for n in graph.node if n.op_type == "Slice"]
    assert slices == ["blocks.2.attn/residual/Add/Slice"]
    average = encoder(pool="avg")
    graph = build_model(plan_of(calibrated(average, "naive")), options=TENSORRT).graph
    assert not [n for n in graph.node if n.name.startswith("blocks") and n.op_type == "Slice"]


# ---- calibration --------------------------------------------------------------------------------


def test_prefix_rows_are_never_clipped() -> None:
    """A cached key far larger than every other one is still inside the range."""
    tiny = encoder()
    cache = tiny_regcache(tiny)
    loud = replace(cache, register={i: 50 * r for i, r in cache.register.items()})
    operands = calibrated(tiny, "naive", loud).quantization.matmuls
    for block in (1, 2):
        keys, values = tiny.prefix_kv(block, loud.register[block])
        for name, cached in (("qk", keys), ("pv", values)):
            right = operands[f"blocks.{block}.attn.{name}"][1]
            assert isinstance(right, Uniform)
            assert 127.5 * right.scale >= cached.abs().max()
    left = operands["blocks.0.attn.pv"][0]
    assert isinstance(left, Uniform)
    assert float(left.scale) == float(np.float16(1 / 127))


def test_out_proj_is_symmetric_where_attention_is_quantized() -> None:
    tiny = encoder()
    for attention, expected in ((True, True), (False, False)):
        linears = calibrated(tiny, "repqvit", attention=attention).quantization.linears
        inputs = [linears[f"blocks.{i}.attn.out_proj"].input for i in range(3)]
        assert all(isinstance(q, Uniform) and q.signed == expected for q in inputs)


def test_a_shift_that_would_drown_in_float16_is_not_taken() -> None:
    """Ordinary tokens beside a sink: the sink's range shifts every product far away."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.05 * torch.randn(32, 64, generator=generator) + 0.2
    bias = torch.randn(32, generator=generator)
    x = 0.2 * torch.rand(1, 50, 64, generator=generator)
    verdicts = []
    for largest in (6.0, 2000.0):
        x[0, 0] = 0.0
        x[0, 0, 0] = largest
        high = torch.tensor(largest)
        weights = symmetric_weight(weight, 8)
        asymmetric = LinearQuantization(Uniform.asymmetric(torch.tensor(0.0), high, 8), weights)
        symmetric = LinearQuantization(Uniform.symmetric(high, 8), weights)
        verdicts.append(shift_drowns(x, weight, bias, asymmetric, symmetric))
    assert verdicts == [False, True]


def test_a_drowning_shift_becomes_a_symmetric_range(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = encoder()
    shifted = calibrated(tiny, "repqvit").quantization.linears["blocks.1.mlp.fc2"].input
    monkeypatch.setattr(
        "regcache_deploy.quantization.tensorrt.shift_drowns", lambda *arguments: True
    )
    centred = calibrated(tiny, "repqvit").quantization.linears["blocks.1.mlp.fc2"].input
    assert isinstance(shifted, Uniform)
    assert isinstance(centred, Uniform)
    assert not shifted.signed
    assert (centred.signed, float(centred.zero_point)) == (True, 0.0)
    largest = (255 - shifted.zero_point) * shifted.scale
    torch.testing.assert_close(127 * centred.scale, largest, rtol=2**-10, atol=0)


def test_in_float16() -> None:
    scale = torch.tensor([1e-12, 3e-5, 0.01, 1.0])
    for factor in (1.0, 0.125, 48**-0.5):
        result = in_float16(scale, factor)
        held = (result.double() * factor).float()
        assert torch.equal(held.half().float(), held)
        assert (result > 0).all()
    torch.testing.assert_close(in_float16(scale[2:]), scale[2:], rtol=2**-11, atol=0)


def test_bad_calibrations_are_refused() -> None:
    tiny = encoder()
    tokens = tiny.embed(tiny_images(2))
    base = make_baseline("naive").calibrate(tiny, tokens)
    with pytest.raises(DataError, match="at least one image"):
        for_tensorrt(base, tokens[:0])
    with pytest.raises(DataError, match="NaN"):
        for_tensorrt(base, tokens * float("nan"))


# ---- what does not fit --------------------------------------------------------------------------


def test_what_float16_cannot_hold_is_refused() -> None:
    tiny = encoder()
    loud = tiny.replace({"pos_embed": tiny.weights["pos_embed"] + 1e5})
    calibration = replace(calibrated(tiny, "naive"), encoder=loud)
    with pytest.raises(ModelError, match=r"float16 ends at 65504"):
        build_model(plan_of(calibration), options=TENSORRT)


def test_asymmetric_attention_operands_are_refused() -> None:
    plan = plan_of(calibrated(encoder(), "naive"))
    left, right = plan.matmuls["blocks.0.attn.qk"]
    shifted = replace(left, zero_point=np.ones(1, np.int32))
    model = build_model(replace(plan, matmuls={}), options=replace(TENSORRT, body="float32"))
    with pytest.raises(BundleError, match=r"left operand of blocks\.0\.attn\.qk"):
        to_tensorrt(model, replace(plan, matmuls={"blocks.0.attn.qk": (shifted, right)}))


def test_low_bits_are_clipped_codes() -> None:
    tiny = encoder()
    tokens = tiny.embed(tiny_images(8, seed=3))
    base = make_baseline("naive", Bits(6, 6)).calibrate(tiny, tokens)
    calibration = for_tensorrt(base, tokens)
    images = tiny_images(8)
    exact = cosines(run(plan_of(calibration), images, "float32"), simulated(calibration, images))
    assert exact.median() > 1 - 1e-5
