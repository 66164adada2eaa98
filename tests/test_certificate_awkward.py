"""Certified graphs of awkward weights, and of narrower ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from regcache_deploy.baseline_choice import chosen_baseline
from regcache_deploy.options import ExportOptions
from regcache_deploy.quantization import BASELINES, make_baseline
from regcache_engines.bundle import Bundle
from regcache_export.targets import GraphOptions
from regcache_export.verify import verify_bundle
from tests.test_certificate import certified
from tests.tiny_plans import naive_calibration, tame_encoder, tiny_images, tiny_regcache

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("name", BASELINES)
def test_silent_rows_and_columns_of_a_weight(name: str, tmp_path: Path) -> None:
    """Scales at their floor: the graph computes the simulation's zeros, not NaN."""
    encoder = tame_encoder()
    weights = {
        key: encoder.weights[key].clone()
        for key in ("blocks.1.mlp.fc1.weight", "blocks.1.norm2.weight")
    }
    weights["blocks.1.mlp.fc1.weight"][5], weights["blocks.1.mlp.fc1.weight"][:, 7] = 0, 0
    weights["blocks.1.norm2.weight"][9] = 0
    encoder = encoder.replace(weights)
    tokens = encoder.embed(tiny_images(8, seed=3))
    baseline = make_baseline(name).fast()
    calibrated = baseline.calibrate(encoder, tokens, regcache=tiny_regcache(encoder))
    path = certified(tmp_path, calibrated, GraphOptions())
    report = verify_bundle(Bundle.open(path))
    assert (report.problem, report.same_codes) == (None, 1)


def test_reduced_weights_fill_seven_bits(tmp_path: Path) -> None:
    """What a CPU without VNNI sums exactly: two products of u8 and s7 fit in 16 bits."""
    encoder = tame_encoder()
    bits = chosen_baseline(ExportOptions(baseline="naive", reduce_range=True)).bits
    calibrated = naive_calibration(encoder, tiny_regcache(encoder), bits)
    path = certified(tmp_path, calibrated, GraphOptions(target="onnxruntime"))
    codes = [
        numpy_helper.to_array(t)
        for t in onnx.load(path / "model.onnx").graph.initializer
        if t.name.endswith(".weight") and t.data_type == onnx.TensorProto.INT8
    ]
    assert len(codes) >= 12
    assert max(int(np.abs(code.astype(int)).max()) for code in codes) == 63
    assert 2 * 255 * 63 < 2**15
