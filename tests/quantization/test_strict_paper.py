"""Graphs with the quantizers as published: equal to the simulation of the paper's form."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from regcache_deploy.errors import BundleError, ConfigError
from regcache_deploy.quantization.baselines import BASELINES, make_baseline
from regcache_deploy.quantization.nonuniform import LogSqrt2, TwinGelu, TwinSoftmax
from regcache_deploy.quantization.plan import calibration_of, make_plan
from regcache_deploy.quantization.quantizers import Bits, Quantizer, Uniform
from regcache_deploy.quantization.simulate import Calibration
from regcache_deploy.quantization.strict_plan import of_published, to_published
from regcache_export.graph import build_model, serialize
from regcache_export.graph.builder import GraphBuilder
from regcache_export.graph.encoder import IR_VERSION, OPSET
from regcache_export.graph.published_products import product, published_linear
from regcache_export.inspect import integer_gemms
from regcache_export.passes.base import FoldState
from regcache_export.plan import Plan
from regcache_export.targets import TARGETS, GraphOptions
from tests.export.graph_helpers import cosine, run
from tests.tiny_plans import PREPROCESS, SPEC, tame_encoder, tiny_images, tiny_regcache

onnxruntime = pytest.importorskip("onnxruntime")

WIDTHS = {"W8A8": Bits(8, 8), "W6A6": Bits(6, 6), "W4A4": Bits(4, 4)}


def strict(name: str, bits: Bits | None = None, **changes: Any) -> Calibration:
    encoder = tame_encoder(**changes)
    baseline = make_baseline(name, bits, "paper").fast()
    return baseline.calibrate(
        encoder, encoder.embed(tiny_images(12, seed=3)), regcache=tiny_regcache(encoder)
    )


def plan_of(calibration: Calibration) -> Plan:
    assert calibration.regcache is not None
    return make_plan(
        calibration,
        regcache_config=calibration.regcache.config,
        preprocess=PREPROCESS,
        strict=True,
    )


# ---- one product --------------------------------------------------------------------------------

STEP = torch.tensor(0.05)
LEFTS: dict[str, Quantizer] = {
    "twin gelu": TwinGelu(STEP, -0.17, 8),
    "twin gelu 4": TwinGelu(STEP * 8, -0.17, 4),
    "twin softmax": TwinSoftmax(2**-4, 8),
    "twin softmax 4": TwinSoftmax(2**-2, 4),
    "log-sqrt2": LogSqrt2(torch.tensor(0.7), 8),
    "log-sqrt2 4": LogSqrt2(torch.tensor(0.7), 4),
    "no zero point": Uniform(STEP, torch.tensor(117.3), 8, signed=False),
    "zero point outside": Uniform(STEP, torch.tensor(-9.0), 8, signed=False),
    "a code": Uniform(STEP, torch.tensor(90.0), 8, signed=False),
    "signed": Uniform(STEP, torch.tensor(0.0), 6, signed=True),
}


def execute(builder: GraphBuilder, inputs: dict[str, Tensor], result: str) -> np.ndarray:
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, list(x.shape))
        for n, x in inputs.items()
    ]
    rank = max(x.ndim for x in inputs.values())
    output = helper.make_tensor_value_info(result, TensorProto.FLOAT, [None] * rank)
    graph = builder.graph("one", values, [output])
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run([result], {n: x.numpy() for n, x in inputs.items()})
    return np.asarray(found)


def values_for(kind: str, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if "softmax" in kind or "log" in kind:  # probabilities, with exact zeros
        x = torch.rand(shape, generator=generator) ** 6
        return torch.where(x < 1e-3, 0.0, x)
    return torch.nn.functional.gelu(torch.randn(shape, generator=generator) * 3)


@pytest.mark.parametrize("kind", LEFTS)
def test_an_attention_product_is_the_published_one(kind: str) -> None:
    name, left = "blocks.0.attn.pv", LEFTS[kind]
    a, b = values_for(kind, 2, 3, 7, 16), torch.randn(2, 3, 16, 5)
    right = Uniform.symmetric(b.abs().max(), 8)
    state = FoldState(SPEC, {}, published={name: (to_published(left), to_published(right))})
    builder = GraphBuilder("a")
    found = execute(builder, {"a": a, "b": b}, product(builder, state, name, "a", "b"))
    np.testing.assert_allclose(found, left(a) @ right(b), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", LEFTS)
@pytest.mark.parametrize("zero", ["inside", "outside"])
def test_a_linear_is_the_published_one(kind: str, zero: str) -> None:
    """Asymmetric rows, as RepQ-ViT publishes them; one has its whole range above zero."""
    left, x = LEFTS[kind], values_for(kind, 2, 7, 16)
    weight = torch.randn(10, 16, generator=torch.Generator().manual_seed(2))
    if zero == "outside":
        weight[3] = weight[3].abs() + 2
    low, high = (getattr(weight, end)(1, keepdim=True) for end in ("amin", "amax"))
    scale = (high - low) / 255
    rows = Uniform(scale, torch.round(-low / scale), 8, signed=False)
    pair = to_published(left), to_published(rows)
    assert (pair[1].standard is None) == (zero == "outside")
    bias, factor = torch.linspace(-1, 1, 10), torch.linspace(0.5, 2, 10)
    builder = GraphBuilder("x")
    y = published_linear(
        builder,
        "blocks.0.mlp.fc2",
        "x",
        weight.numpy(),
        bias.numpy(),
        pair,
        factor.numpy(),
    )
    expected = left(x) @ rows(weight).T * factor + bias
    np.testing.assert_allclose(execute(builder, {"x": x}, y), expected, atol=1e-4, rtol=1e-5)


# ---- the whole encoder --------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", BASELINES)
def test_the_graph_equals_the_published_simulation(name: str, width: str, tmp_path: Path) -> None:
    calibration = strict(name, WIDTHS[width])
    images = tiny_images(4)
    expected = calibration.encoder(images, calibration.numerics(), calibration.regcache)
    plan = plan_of(calibration)
    model = build_model(plan)
    onnx.checker.check_model(model, full_check=True)
    for optimize in (False, True):
        (features,) = run(model, images, optimize)
        # what is left are rounding ties: each block's tensors agree to 1e-6
        assert cosine(features, expected) > 0.9999
    assert not any(node.domain for node in model.graph.node)
    plan.save(tmp_path)
    loaded = Plan.load(tmp_path)
    assert serialize(build_model(loaded)) == serialize(model)
    again = calibration_of(loaded)
    found = again.encoder(images, again.numerics(), again.regcache)
    assert cosine(found, expected) > 0.99999
    properties = {p.key: p.value for p in model.metadata_props}
    assert properties["regcache.bits"] == width
    assert properties["regcache.quantized_linears"] == "12"
    assert properties["regcache.strict_paper"] == ("false" if name == "naive" else "true")


def test_the_deployed_form_is_another_quantizer() -> None:
    """So that the equality above says something."""
    images = tiny_images(4)
    for name in ("ptq4vit", "repqvit"):
        paper = strict(name, Bits(6, 6))
        encoder = tame_encoder()
        deploy = make_baseline(name, Bits(6, 6)).fast()
        other = deploy.calibrate(
            encoder, encoder.embed(tiny_images(12, seed=3)), regcache=tiny_regcache(encoder)
        )
        features = [c.encoder(images, c.numerics(), c.regcache) for c in (paper, other)]
        assert cosine(*features) < 0.9998


def test_what_exactness_takes(tmp_path: Path) -> None:
    """Two products for each twin, logarithms for each log-sqrt2; counted, not timed."""
    counts = {}
    for name in BASELINES:
        model = build_model(plan_of(strict(name)))
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(serialize(model))
        operators = Counter(node.op_type for node in model.graph.node)
        counts[name] = operators["MatMul"], operators["Log"], integer_gemms(path)
    # 3 blocks: 4 linears and 2 attention products each
    assert counts["naive"] == (18, 0, 12)
    assert counts["ptq4vit"][:2] == (24, 0)
    assert counts["ptq4vit"][2] == 24  # attention and both halves of the twins are integers, too
    assert counts["repqvit"][:2] == (18, 3)
    assert counts["repqvit"][2] < 12  # mean zero points and weights with one are float products


# ---- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", sorted(TARGETS.keys() - {"onnx"}))
def test_only_the_portable_target(target: str) -> None:
    with pytest.raises(ConfigError, match="--target onnx"):
        build_model(plan_of(strict("ptq4vit")), options=GraphOptions(target=target))


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "ternary"},
        {"scale": -np.ones(1, np.float32)},
        {"second": np.zeros(1, np.float32)},
        {"zero_point": np.full(1, np.nan, np.float32)},
        {"bits": 9},
        {"scale": np.ones(3, np.float32), "zero_point": np.zeros(3, np.float32)},
    ],
    ids=str,
)
def test_a_quantizer_that_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    plan = plan_of(strict("ptq4vit"))
    name = "blocks.1.mlp.fc2"
    left, right = plan.published[name]
    broken = {**plan.published, name: (replace(left, **changes), right)}
    with pytest.raises(BundleError, match=r"blocks\.1\.mlp\.fc2"):
        build_model(replace(plan, published=broken))
    twice = {**plan.published, "blocks.1.attn.qkv": (left, right)}
    with pytest.raises(BundleError, match="two ways"):
        build_model(replace(plan, published=twice))
    with pytest.raises(BundleError, match=r"blocks\.7"):
        build_model(replace(plan, published={"blocks.7.attn.qk": (left, right)}))


def test_every_published_quantizer_survives_the_plan() -> None:
    for kind, quantizer in LEFTS.items():
        x = values_for(kind, 300)
        assert torch.equal(of_published(to_published(quantizer))(x), quantizer(x))
    with pytest.raises(ConfigError, match="function"):
        to_published(lambda x: x)
