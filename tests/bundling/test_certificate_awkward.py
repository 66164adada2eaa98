"""Certified graphs of awkward weights, and of narrower ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from regcache_deploy.quantization.baselines import BASELINES, make_baseline
from regcache_deploy.quantization.choice import chosen_baseline
from regcache_deploy.quantization.quantizers import Bits
from regcache_deploy.run.options import ExportOptions
from regcache_engines.bundle import Bundle
from regcache_export.inspect import integer_gemms
from regcache_export.targets import GraphOptions
from regcache_export.verify import verify_bundle
from tests.bundling.certificate_helpers import certified
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
    bits = chosen_baseline(ExportOptions(baseline="naive", reduce_range=True), 0).bits
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


def test_narrow_codes_stay_integer_products_in_int8_alone(tmp_path: Path) -> None:
    """Why W4A4 is stored one code a byte: ONNX Runtime multiplies packed INT4 in float."""
    encoder = tame_encoder()
    calibrated = naive_calibration(encoder, tiny_regcache(encoder), Bits(4, 4))
    path = certified(tmp_path, calibrated, GraphOptions()) / "model.onnx"
    model = onnx.load(path)
    assert integer_gemms(path) == 12
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and tensor.name.endswith(".weight"):
            codes = numpy_helper.to_array(tensor)
            assert (codes.min(), codes.max()) == (-7, 7)
        if tensor.name.endswith((".weight", ".weight_zero_point")) and tensor.data_type == 3:
            codes = numpy_helper.to_array(tensor)
            packed = helper.make_tensor(
                tensor.name, onnx.TensorProto.INT4, codes.shape, codes.flatten().tolist()
            )
            tensor.CopyFrom(packed)
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    smaller = tmp_path / "int4.onnx"
    onnx.save(model, smaller)
    assert integer_gemms(smaller) == 0
