"""TensorRT keeps its INT8 products beside factors and float channels (TensorRT-RTX, no GPU)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regcache_engines.tensorrt.builder import EngineBuilder
from regcache_export.checks import check_tensorrt
from regcache_export.graph import build_model, serialize
from regcache_export.targets import GraphOptions
from tests.export.tensorrt_plans import SHAPES, random_plan, require_rtx

pytestmark = pytest.mark.needs_trt


@pytest.mark.parametrize("asymmetric", [True, False])
def test_every_linear_is_still_an_int8_product(tmp_path: Path, asymmetric: bool) -> None:
    require_rtx()
    spec = replace(SHAPES["CLIP B/32"], width=128, heads=2, mlp_width=256)
    plan = random_plan(spec, asymmetric=asymmetric)
    factors = np.exp2(np.arange(256) % 9 - 4).astype(np.float32)
    for name, changes in {
        "blocks.0.mlp.fc2": {"input_multiplier": factors},
        "blocks.1.mlp.fc2": {"input_multiplier": factors, "float_channels": np.array([3, 200])},
        "blocks.0.mlp.fc1": {"float_channels": np.array([5])},
    }.items():
        plan.linears[name] = replace(plan.linears[name], **changes)  # type: ignore[arg-type]
    model = build_model(plan, options=GraphOptions(target="tensorrt"))
    promise = check_tensorrt(model).promise
    products = [name for name, kind in promise.items() if kind == "int8_gemm"]
    assert len(products) == 6 * spec.depth  # q, k, v, out_proj, fc1, fc2
    # strict: an engine without one of the promised kernels is an error
    result = EngineBuilder("tensorrt_rtx").build(serialize(model), tmp_path, promise=promise)
    assert not result.sidecar.broken_promises
