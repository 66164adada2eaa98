"""Portable graphs that merge tokens in OpenVINO, where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regcache_export.graph import build_model, serialize
from regcache_export.merge import Merge
from tests.export.graph_helpers import cosine, plan_of, run
from tests.tiny_plans import float_calibration, tame_encoder, tiny_images, tiny_regcache

openvino: Any = pytest.importorskip("openvino")


@pytest.mark.parametrize("metric", ["keys", "residual"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"pool": "avg"}, {"rotary": True}, {"num_prefix_tokens": 4}],
    ids=["cls", "avg", "rotary", "registers"],
)
def test_features_are_those_of_onnx_runtime(metric: Any, changes: dict[str, Any]) -> None:
    encoder = tame_encoder(**changes).merging(Merge((3, 2, 0), metric, proportional=True))
    model = build_model(plan_of(float_calibration(encoder, tiny_regcache(encoder))))
    images = tiny_images(3)
    (expected,) = run(model, images)
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(serialize(model), b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    found = np.array(compiled([images.numpy()])[0])
    assert cosine(found, expected) > 0.9999
