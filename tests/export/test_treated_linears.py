"""Factors and float channels from the calibration to the graph that runs, for every target."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file

from regcache_deploy.bundling.certify import certify_bundle
from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.errors import VerificationError
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.plan import calibration_of, make_plan
from regcache_deploy.quantization.quantizers import Bits
from regcache_deploy.quantization.simulate import Calibration
from regcache_deploy.quantization.tensorrt import for_tensorrt
from regcache_deploy.quantization.treated_input import TreatedInput
from regcache_deploy.quantization.treatment import ROLES, Treatment
from regcache_engines.bundle import Bundle
from regcache_export.bundle import write_bundle
from regcache_export.checks import check_tensorrt
from regcache_export.errors import BundleError
from regcache_export.graph import build_model, serialize
from regcache_export.inspect import integer_gemms, optimized_op_counts
from regcache_export.plan import Plan
from regcache_export.targets import TARGETS, GraphOptions
from regcache_export.verify import verify_bundle
from tests.bundling.certificate_helpers import change_constant, pixels
from tests.tiny_plans import PREPROCESS, tame_encoder, tiny_encoder, tiny_images, tiny_regcache

pytest.importorskip("onnxruntime")

FACTORS, CHANNELS, BOTH = "blocks.0.mlp.fc2", "blocks.1.mlp.fc2", "blocks.2.mlp.fc2"
FC1 = "blocks.0.mlp.fc1"

HOW = {
    FACTORS: TreatedInput(torch.exp2(torch.arange(80) % 7 - 3.0)),
    CHANNELS: TreatedInput(None, torch.tensor([7])),
    BOTH: TreatedInput(torch.exp2(torch.arange(80) % 5 - 2.0), torch.tensor([3, 11, 79])),
    FC1: TreatedInput(None, torch.tensor([0, 47])),
}


@pytest.fixture(autouse=True)
def _no_grad(one_thread: None) -> Iterator[None]:
    with torch.no_grad():
        yield


def treated_calibration(
    name: str = "naive", bits: Bits | None = None, encoder: Encoder | None = None
) -> Calibration:
    """Every kind of treatment, whether a search would have chosen it or not."""
    encoder = encoder or tame_encoder()
    baseline = make_baseline(name, bits).fast()
    baseline.kept_inputs = dict(HOW)
    if name == "repqvit":
        baseline.kept_inputs.pop(FC1)  # its channels have ranges of their own
    tokens = encoder.embed(tiny_images(8, seed=3))
    return baseline.calibrate(encoder, tokens, regcache=tiny_regcache(encoder))


def plan_of(calibration: Calibration) -> Plan:
    assert calibration.regcache is not None
    return make_plan(
        calibration,
        regcache_config=calibration.regcache.config,
        preprocess=PREPROCESS,
        provenance={"model": "tiny", "baseline": "naive"},
    )


def certified(folder: Path, calibration: Calibration, options: GraphOptions) -> Path:
    plan = plan_of(calibration)
    path = write_bundle(plan, folder / "tiny.regcache", options=options)
    certify_bundle(path, plan, options, calibration, pixels())
    return path


@pytest.mark.parametrize("bits", [Bits(), Bits(6, 6), Bits(4, 4)], ids=str)
@pytest.mark.parametrize("name", ["naive", "repqvit"])
@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_codes_are_those_of_the_simulation(
    target: str, name: str, bits: Bits, tmp_path: Path
) -> None:
    options = GraphOptions(target=target)
    path = certified(tmp_path, treated_calibration(name, bits), options)
    verify_bundle(Bundle.open(path)).check()  # with the numpy reference


@pytest.mark.parametrize("name", ["naive", "repqvit"])
@pytest.mark.parametrize("attention", [True, False])
def test_codes_of_a_graph_for_tensorrt(name: str, attention: bool, tmp_path: Path) -> None:
    encoder = tame_encoder(width=64, heads=4)
    tokens = encoder.embed(tiny_images(8, seed=3))
    found = for_tensorrt(treated_calibration(name, encoder=encoder), tokens, attention)
    assert found.quantization.linears[BOTH].treated
    path = certified(tmp_path, found, GraphOptions(target="tensorrt"))
    verify_bundle(Bundle.open(path)).check()
    report = check_tensorrt(onnx.load(str(path / "model.onnx")))
    assert not report.findings
    for block in report.blocks:
        assert block.int8_linears == block.linears


@pytest.mark.parametrize("name", ["naive", "ptq4vit", "repqvit"])
def test_what_the_search_chooses_is_certified(name: str, tmp_path: Path) -> None:
    encoder = tame_encoder()
    weights = {key: w.clone() for key, w in encoder.weights.items()}
    weights["blocks.1.mlp.fc1.weight"][7] *= 300
    weights["blocks.1.mlp.fc2.weight"][:, 7] /= 300
    baseline = make_baseline(name).fast()
    baseline.treatment = Treatment(ROLES, 4)
    encoder = encoder.replace(weights)
    tokens = encoder.embed(tiny_images(8, seed=3))
    found = baseline.calibrate(encoder, tokens, regcache=tiny_regcache(encoder))
    assert found.quantization.linears["blocks.1.mlp.fc2"].treated
    verify_bundle(Bundle.open(certified(tmp_path, found, GraphOptions()))).check()


def test_the_certificate_sees_a_wrong_factor_and_a_wrong_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regcache_export import bundle as bundle_module

    calibration, options = treated_calibration(), GraphOptions()

    def double(value: np.ndarray) -> None:
        value *= 2

    for constant in (f"{FACTORS}.input_multiplier", f"{CHANNELS}.float_weight"):
        plan, change = plan_of(calibration), change_constant(constant, double)

        def damaged(*arguments: Any, change: Any = change, **named: Any) -> onnx.ModelProto:
            model = build_model(*arguments, **named)
            change(model)
            return model

        with monkeypatch.context() as patch:
            patch.setattr(bundle_module, "build_model", damaged)
            path = write_bundle(plan, tmp_path / f"{constant}.regcache", options=options)
        with pytest.raises(VerificationError, match=r"blocks\.[01]\."):
            certify_bundle(path, plan, options, calibration, pixels())


@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
@pytest.mark.parametrize("batch", [None, 1])
def test_integer_products_stay_what_they_were(
    target: str, batch: int | None, tmp_path: Path
) -> None:
    options, counts = GraphOptions(target=target, batch=batch), []
    encoder = tame_encoder()
    tokens = encoder.embed(tiny_images(8, seed=3))
    plain = make_baseline("naive").calibrate(encoder, tokens, regcache=tiny_regcache(encoder))
    for calibration in (plain, treated_calibration()):
        path = tmp_path / "model.onnx"
        path.write_bytes(serialize(build_model(plan_of(calibration), options=options)))
        counts.append(integer_gemms(path))
        operators = optimized_op_counts(path)
        assert operators["DequantizeLinear"] == 0
    assert counts[0] == counts[1] == (12 if target == "onnx" else 18)
    channels = sum(how.float_channels is not None for how in HOW.values())
    assert operators["MatMul"] + operators["FusedMatMul"] >= channels


@pytest.mark.parametrize("target", list(TARGETS))
def test_a_plan_without_treatments_writes_the_same_graph(target: str) -> None:
    encoder = tame_encoder(width=64, heads=4)
    tokens = encoder.embed(tiny_images(8, seed=3))
    found = make_baseline("naive").calibrate(encoder, tokens)
    model = build_model(make_plan(found), options=GraphOptions(target=target))
    assert not [n.name for n in model.graph.node if "multiplier" in n.name or "float_ch" in n.name]


def test_round_trip_through_the_plan(tmp_path: Path) -> None:
    before = treated_calibration("repqvit")
    plan_of(before).save(tmp_path)
    after = calibration_of(Plan.load(tmp_path))
    for name, layer in before.quantization.linears.items():
        again = after.quantization.linears[name].treated
        assert again.to_json() == layer.treated.to_json()
    images = tiny_images(3)
    features = [c.encoder(images, c.numerics(), c.regcache) for c in (before, after)]
    assert torch.equal(*features)


def test_a_plan_of_before_still_loads(tmp_path: Path) -> None:
    """Without treatments the files have the names that they always had."""
    encoder = tiny_encoder()
    tokens = encoder.embed(tiny_images(4))
    make_plan(make_baseline("naive").calibrate(encoder, tokens)).save(tmp_path)
    names = load_file(tmp_path / "plan.safetensors")
    assert not [name for name in names if "multiplier" in name or "channels" in name]
    document = json.loads((tmp_path / "plan.json").read_text())
    assert set(document["linears"]["blocks.0.mlp.fc2"]) == {"input", "weight"}
    loaded = Plan.load(tmp_path)
    assert loaded.linears["blocks.0.mlp.fc2"].input_multiplier is None


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "factors elsewhere": (FC1, {"input_multiplier": np.ones(48, np.float32)}),
    "no power of two": (FACTORS, {"input_multiplier": np.full(80, 3, np.float32)}),
    "zero": (FACTORS, {"input_multiplier": np.zeros(80, np.float32)}),
    "infinite": (FACTORS, {"input_multiplier": np.full(80, np.inf, np.float32)}),
    "too few": (FACTORS, {"input_multiplier": np.ones(79, np.float32)}),
    "qkv": ("blocks.0.attn.qkv", {"float_channels": np.array([1])}),
    "out_proj": ("blocks.0.attn.out_proj", {"float_channels": np.array([1])}),
    "twice": (CHANNELS, {"float_channels": np.array([1, 1])}),
    "beyond": (CHANNELS, {"float_channels": np.array([80])}),
    "negative": (CHANNELS, {"float_channels": np.array([-1])}),
    "none": (CHANNELS, {"float_channels": np.array([], np.int64)}),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_treatment_is_refused(case: str, tmp_path: Path) -> None:
    name, changes = WRONG[case]
    plan = plan_of(treated_calibration())
    plan.linears[name] = replace(plan.linears[name], **changes)
    with pytest.raises(BundleError, match=name):
        build_model(plan)
    plan.save(tmp_path)
    with pytest.raises(BundleError, match=name):
        Plan.load(tmp_path)


def test_a_linear_back_in_float_is_the_float_linear() -> None:
    """As `--keep-float` and `regcache build` take linears out of a finished plan."""
    plan = plan_of(treated_calibration())
    model = build_model(replace(plan, linears={}))
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    np.testing.assert_array_equal(values[f"{BOTH}.weight"], plan.weights[f"{BOTH}.weight"].T)
