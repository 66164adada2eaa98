"""The quantized graph equals its simulation, in integers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.quantization.quantizers import Bits, Uniform
from regcache_deploy.quantization.simulate import (
    Calibration,
    LinearQuantization,
    Quantization,
    SimulatedNumerics,
)
from regcache_export.graph import build_model, serialize
from regcache_export.graph import quantize as quantize_module
from regcache_export.inspect import integer_gemms, optimized_op_counts
from regcache_export.integer_codes import weight_codes
from regcache_export.tensor_quant import TensorQuant
from tests.export.graph_helpers import cosine, plan_of, quantize_nodes, run
from tests.tiny_plans import (
    float_calibration,
    naive_calibration,
    tiny_encoder,
    tiny_images,
    tiny_plan,
    tiny_regcache,
)

pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def _no_grad(one_thread: None) -> Iterator[None]:
    with torch.no_grad():
        yield


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


class OldFloat32(np.float32):
    """A scalar by the rule of numpy 1, which is supported: beside an int it becomes float64."""

    def __rmul__(self, other: Any) -> Any:
        return np.float64(other) * np.float64(self)


def test_bounds_of_narrow_codes_are_float32_in_old_numpy_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = SimpleNamespace(**{**vars(np), "float32": OldFloat32})
    assert old.asarray(3 * old.float32(0.5)).dtype == np.float64
    monkeypatch.setattr(quantize_module, "np", old)
    quant = TensorQuant(np.array([0.1], np.float32), np.array([3], np.int32), bits=4)
    bounds: dict[str, np.ndarray] = {}
    builder: Any = SimpleNamespace(
        constant=lambda name, value: bounds.setdefault(name, value) is None or name,
        node=lambda name, inputs: name,
    )
    assert quantize_module.clip_to_codes(builder, "fc1", "x", quant) == "fc1/Clip"
    assert {name: value.dtype for name, value in bounds.items()} == {
        "fc1.input_min": np.float32,
        "fc1.input_max": np.float32,
    }
    assert bounds["fc1.input_min"] == np.float32(-8 - 3) * np.float32(0.1)


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
