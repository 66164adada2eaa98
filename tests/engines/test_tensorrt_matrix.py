"""What TensorRT-RTX makes of the graphs on real shapes, and that ONNX Runtime computes with them
what the simulation computes. Random weights, two blocks of true width; no GPU.

`make test-tensorrt` builds the same matrix in full depth.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gpu_models import FORMS
from tensorrt_layers import products

from regcache_deploy.bundling.certify import TorchSimulator, graph_offsets
from regcache_deploy.quantization.plan import calibration_of
from regcache_engines.tensorrt.builder import EngineBuilder
from regcache_export.certificate import Subject, collect, first_divergence
from regcache_export.checks import check_tensorrt
from regcache_export.graph import build_model, serialize
from regcache_export.optimized import cosine
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions
from regcache_export.trace import Tracer, graph_input
from tests.export.tensorrt_plans import SHAPES, random_plan, require_rtx
from tests.tiny_plans import PREPROCESS

TENSORRT = GraphOptions(target="tensorrt")
REAL = ("CLIP B/32", "CLIP B/16", "CLIP L/14", "SigLIP B/16")

# q, k and v are one GEMM: four a block
BLOCKS = {
    "fp16": {"half_gemm": 8, "half_mha": 2},
    "int8_linears": {"int8_gemm": 8, "half_mha": 2},
    "int8": {"int8_gemm": 8, "int8_mha": 2},
}
# CLIP: the projection. SigLIP: scores, weighted mean, values, out_proj and an MLP of two.
BEHIND = {"CLIP": {"half_gemm": 1}, "SigLIP": {"half_gemm": 4, "half_bmm": 2}}


@pytest.fixture(scope="module")
def builder() -> EngineBuilder:
    require_rtx()
    return EngineBuilder("tensorrt_rtx")


def build(builder: EngineBuilder, plan: Plan, folder: Path) -> dict[str, int]:
    """Products by kind; strict: every promise of the static check must be kept."""
    model = build_model(plan, options=TENSORRT)
    promise = check_tensorrt(model).promise
    result = builder.build(serialize(model), folder, promise=promise)
    assert result.path.stat().st_size == result.sidecar.engine_bytes
    return products(result.sidecar.layers)


@pytest.mark.needs_trt
@pytest.mark.parametrize("regcache", [True, False], ids=["regcache", "plain"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", REAL)
def test_layers(
    builder: EngineBuilder, tmp_path: Path, shape: str, form: str, regcache: bool
) -> None:
    found = build(builder, random_plan(SHAPES[shape], form, regcache), tmp_path)
    assert found == Counter(BLOCKS[form]) + Counter(BEHIND[shape.split()[0]])


@pytest.mark.needs_trt
@pytest.mark.parametrize("shape", ["CLIP L/14-336", "head size 80"])
def test_attention_that_does_not_fuse_stays_in_float16(
    builder: EngineBuilder, tmp_path: Path, shape: str
) -> None:
    """577 tokens, or head size 80; in float16 it fuses all the same."""
    found = build(builder, random_plan(SHAPES[shape]), tmp_path)
    assert found == {"int8_gemm": 8, "half_mha": 2, "half_gemm": 1}


@pytest.mark.needs_trt
@pytest.mark.slow
def test_vit_b16_is_int8_throughout(builder: EngineBuilder, tmp_path: Path) -> None:
    """All 12 blocks of ViT-B/16, tau 4, k~ 5: every linear an INT8 GEMM, all attention fused."""
    plan = random_plan(replace(SHAPES["CLIP B/16"], depth=12))
    # the projection behind the pooling is the one product that no plan quantizes
    assert build(builder, plan, tmp_path) == {"int8_gemm": 48, "int8_mha": 12, "half_gemm": 1}


@pytest.mark.parametrize(
    ("form", "regcache"), [("int8_linears", True), ("int8", True), ("int8", False)]
)
@pytest.mark.parametrize("shape", REAL)
def test_onnxruntime_computes_the_simulation(shape: str, form: str, regcache: bool) -> None:
    """Every integer code on one image, block by block; float16 moves the features a little."""
    pytest.importorskip("onnxruntime")
    plan = random_plan(SHAPES[shape], form, regcache)
    model = build_model(plan, options=replace(TENSORRT, body="float32"))
    subject = Subject(
        model, plan.encoder, plan.regcache, TENSORRT, graph_offsets(plan, model), PREPROCESS
    )
    pixels = np.random.default_rng(1).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    evidence = collect(subject, pixels, TorchSimulator(calibration_of(plan)))
    counts = evidence.comparison.counts
    assert first_divergence(list(counts.values())) is None
    quantizers = sum(name.endswith("/QuantizeLinear") for name in counts)
    assert quantizers == (16 if form == "int8" else 8)
    shipped = Tracer(build_model(plan, options=TENSORRT), plan.encoder)
    half = shipped.run(graph_input(pixels, PREPROCESS, model)).features
    assert cosine(half, evidence.features).min() > 0.999
