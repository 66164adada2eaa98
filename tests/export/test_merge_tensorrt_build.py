"""TensorRT-RTX keeps INT8 attention in every block of a graph that merges tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regcache_engines.tensorrt.builder import EngineBuilder
from regcache_export.checks import check_tensorrt
from regcache_export.checks.fusion import int8_attention_blocks
from regcache_export.graph import build_model, serialize
from regcache_export.merge import Merge
from regcache_export.spec import EncoderSpec
from regcache_export.targets import GraphOptions
from tests.export.tensorrt_plans import SHAPES, random_plan, require_rtx

pytestmark = pytest.mark.needs_trt

NARROW: dict[str, Any] = {"width": 128, "heads": 2, "mlp_width": 256, "depth": 3}
CLS = replace(SHAPES["CLIP B/16"], **NARROW)
MAP = replace(
    SHAPES["SigLIP B/16"],
    **NARROW,
    pool_heads=2,
    pool_width=128,
    pool_mlp_width=256,
    output_dim=128,
)


@pytest.mark.parametrize(
    ("spec", "merge"),
    [
        pytest.param(CLS, Merge((8, 8, 0)), id="keys"),
        pytest.param(CLS, Merge((0, 60, 0), "residual"), id="residual, one cut"),
        pytest.param(CLS, Merge((8, 8, 0), proportional=True), id="proportional"),
        pytest.param(MAP, Merge((8, 8, 8)), id="attention pooling"),
    ],
)
def test_every_promise_of_the_static_check_is_kept(
    spec: EncoderSpec, merge: Merge, tmp_path: Path
) -> None:
    require_rtx()
    plan = random_plan(spec)
    int8 = int8_attention_blocks(plan.encoder, plan.regcache, merge)
    matmuls = {n: q for n, q in plan.matmuls.items() if int(n.split(".")[1]) in int8}
    model = build_model(
        replace(plan, merge=merge, matmuls=matmuls), options=GraphOptions(target="tensorrt")
    )
    report = check_tensorrt(model)
    assert [b.block for b in report.blocks if b.attention == "int8"] == int8
    built = EngineBuilder("tensorrt_rtx").build(serialize(model), tmp_path, promise=report.promise)
    assert built.sidecar.layers["int8_mha"] == len(int8)
