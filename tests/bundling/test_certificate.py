"""The certificate: equal codes block by block, and a name for whatever was changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from regcache_deploy.bundling.certify import TorchSimulator, certify_bundle, graph_offsets
from regcache_deploy.cli.main import main
from regcache_deploy.errors import VerificationError
from regcache_deploy.quantization.quantizers import Bits
from regcache_engines.bundle import Bundle
from regcache_export.bundle import write_bundle
from regcache_export.certificate import Subject, collect, first_divergence
from regcache_export.certificate_files import CERTIFICATE
from regcache_export.compare import Simulated, Simulator
from regcache_export.graph import build_model
from regcache_export.reference import Reference, initializers
from regcache_export.reference_activation import erf
from regcache_export.targets import TARGETS, GraphOptions
from regcache_export.verify import verify_bundle
from tests.bundling.certificate_helpers import (
    COUNT,
    calibration,
    certified,
    change_constant,
    one_scale,
    pixels,
    plan_of,
)
from tests.export.graph_helpers import rewrite
from tests.tiny_plans import (
    CHOICE,
    PREPROCESS,
    float_calibration,
    naive_calibration,
    tiny_encoder,
    tiny_regcache,
)

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
@pytest.mark.parametrize("kind", ["block input", "mlp input", "layer scale", "W4A4", "float fc2"])
def test_codes_are_those_of_the_simulation(target: str, kind: str, tmp_path: Path) -> None:
    calibrated = calibration(layer_scale=kind == "layer scale")
    if kind == "mlp input":
        encoder = tiny_encoder()
        choice = replace(CHOICE, delete_at="mlp_input")
        calibrated = naive_calibration(encoder, tiny_regcache(encoder, choice))
    if kind == "W4A4":
        encoder = tiny_encoder()
        calibrated = naive_calibration(encoder, tiny_regcache(encoder), Bits(4, 4))
    if kind == "float fc2":
        linears = dict(calibrated.quantization.linears)
        del linears["blocks.1.mlp.fc2"]
        quantization = replace(calibrated.quantization, linears=linears)
        calibrated = replace(calibrated, quantization=quantization)
    path = certified(tmp_path, calibrated, GraphOptions(target=target))
    document = json.loads((path / CERTIFICATE).read_text())
    nodes = {node["node"]: node for node in document["nodes"]}
    assert nodes["blocks.1.delete/TopK"]["different"] == 0
    codes = [node for name, node in nodes.items() if name.endswith("QuantizeLinear")]
    assert len(codes) == (11 if kind == "float fc2" else 12)
    assert all(node["off_tie"] == 0 for node in codes)
    assert sum(node["elements"] for node in codes) > 10_000
    assert sum(node["different"] for node in codes) < 10
    report = verify_bundle(Bundle.open(path))
    assert report.problem is None
    assert report.same_codes == 1
    assert report.optimized.top1 == 1
    assert report.optimized.min_cosine >= 0.9999
    assert report.optimized.control is None


@pytest.mark.parametrize(
    ("changes", "pixels_in"),
    [
        ({"pool": "avg"}, "nchw"),
        ({"norm_pre": True, "activation": "gelu_tanh"}, "nhwc"),
        ({"projection": False, "activation": "quick_gelu"}, None),
    ],
)
def test_other_graphs(changes: dict[str, Any], pixels_in: Any, tmp_path: Path) -> None:
    calibrated = calibration(**changes)
    options = GraphOptions(pixels=pixels_in, without=("cls-only", "attention-scale"))
    plan = plan_of(calibrated, head=False)
    path = write_bundle(plan, tmp_path / "tiny.regcache", options=options)
    certify_bundle(path, plan, options, calibrated, pixels())
    verify_bundle(Bundle.open(path)).check()


@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_a_deeper_encoder_on_32_images(target: str, tmp_path: Path) -> None:
    """Ten blocks behind prefix and deletion: every node within the bounds, ties alone differ."""
    encoder = tiny_encoder(depth=12)
    calibrated = naive_calibration(encoder, tiny_regcache(encoder))
    plan, options = plan_of(calibrated), GraphOptions(target=target)
    path = write_bundle(plan, tmp_path / "deep.regcache", options=options)
    document = certify_bundle(path, plan, options, calibrated, pixels(32))
    assert document["images"] == 32
    codes = [n for n in document["nodes"] if n["node"].endswith("QuantizeLinear")]
    assert len(codes) == 48
    for node in codes:
        assert node["different"] <= 1e-4 * node["elements"]
        assert node["off_tie"] == 0
    report = verify_bundle(Bundle.open(path))
    assert (report.problem, report.images, report.same_codes) == (None, 32, 1)


def test_the_reference_needs_no_torch(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    path = certified(tmp_path, calibration(), GraphOptions())
    code = (
        "import sys; from regcache_deploy.cli.main import main; "
        f"code = main(['verify', {str(path)!r}]); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "verified on 6 images" in done.stdout


def test_erf_is_exact() -> None:
    import math

    values = np.linspace(-7, 7, 20_001)
    exact = np.array([math.erf(value) for value in values])
    assert np.abs(erf(values) - exact).max() < 1e-13


# ---- perturbed ----------------------------------------------------------------------------------


def one_weight(value: np.ndarray) -> None:
    column = value[:, 3]
    column[int(np.abs(column).argmin())] += 90


def one_index(value: np.ndarray) -> None:
    value[...] = 1


PERTURBATIONS = {
    "scale": (
        change_constant("blocks.1.mlp.fc1.input_scale", one_scale),
        "blocks.1.mlp.fc1/QuantizeLinear",
        "blocks.1.mlp.fc1/QuantizeLinear",
    ),
    "weight": (
        change_constant("blocks.1.attn.qkv.weight", one_weight),
        "blocks.1.attn.qkv/weight/DequantizeLinear",
        "blocks.1.attn.out_proj/QuantizeLinear",
    ),
    "token": (
        change_constant("cls_position", one_index),
        "pool/Gather",
        "image_features",
    ),
}


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_verify_names_the_first_divergent_node(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, culprit, _ = PERTURBATIONS[kind]
    calibrated = calibration()
    if kind == "token":  # one token is left behind the last block otherwise
        options = GraphOptions(without=("cls-only",))
    else:
        options = GraphOptions()
    path = certified(tmp_path, calibrated, options)
    rewrite(path, change)
    assert main(["verify", str(path)]) == 6
    message = capsys.readouterr().err
    assert f"first divergent node: {culprit} " in message


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_the_simulation_notices_by_itself(kind: str, tmp_path: Path) -> None:
    """No stored hash in play: the codes alone tell, at the export."""
    change, _, first = PERTURBATIONS[kind]
    calibrated = calibration()
    options = GraphOptions(without=("cls-only",))
    plan = plan_of(calibrated)
    path = write_bundle(plan, tmp_path / "tiny.regcache", options=options)
    rewrite(path, change)
    with pytest.raises(VerificationError, match=f"first divergent node: {first}"):
        certify_bundle(path, plan, options, calibrated, pixels())
    assert not (path / CERTIFICATE).exists()


ENDS: dict[str, tuple[dict[str, Any], str]] = {
    "patch_embed.weight": ({}, "patch_embed|prefix_tokens|norm_pre"),
    "pos_embed": ({}, "prefix_tokens/Concat"),
    "norm_pre.weight": ({"norm_pre": True}, "norm_pre/LayerNormalization"),
    "norm.bias": ({}, "image_features"),
    "proj.weight": ({}, "image_features"),
    "pool.scores": (
        {"pool": "map", "pool_heads": 2, "pool_width": 32, "final_norm": "none"},
        "image_features",
    ),
}


@pytest.mark.parametrize("constant", ENDS)
def test_the_simulation_notices_a_wrong_constant_outside_of_the_blocks(
    constant: str, tmp_path: Path
) -> None:
    """The numpy reference reads the graph's own constants there, and agreed with any."""
    changes, first = ENDS[constant]
    calibrated = calibration(**changes)
    options = GraphOptions(pixels="nhwc")
    plan = plan_of(calibrated, head=False)
    path = write_bundle(plan, tmp_path / "tiny.regcache", options=options)

    def off(value: np.ndarray) -> None:
        value += 0.01 * np.abs(value).max()

    rewrite(path, change_constant(constant, off))
    with pytest.raises(VerificationError, match=f"first divergent node: ({first})"):
        certify_bundle(path, plan, options, calibrated, pixels())


def test_the_numpy_reference_notices_a_wrong_wire() -> None:
    """Largest instead of smallest norms survive: the constants are right, the graph is not."""
    calibrated = calibration()
    plan = plan_of(calibrated)
    model = build_model(plan)
    (top,) = (n for n in model.graph.node if n.op_type == "TopK")
    (largest,) = (a for a in top.attribute if a.name == "largest")
    largest.i = 1
    subject = Subject(
        model, plan.encoder, plan.regcache, GraphOptions(), graph_offsets(plan, model), PREPROCESS
    )
    counts = list(collect(subject, pixels().numpy()).comparison.counts.values())
    divergent = first_divergence(counts)
    assert divergent is not None
    assert divergent.node == "blocks.1.delete/TopK"


class Swapping:
    """A simulation whose first two survivors have nearly equal norms, the other way round."""

    def __init__(self, simulator: Simulator, apart: float) -> None:
        self.simulator, self.apart = simulator, apart

    def block(self, *arguments: Any) -> Simulated:
        found = self.simulator.block(*arguments)
        if found.positions is None:
            return found
        assert found.norms is not None
        order = np.argsort(found.norms, axis=1, kind="stable")
        np.testing.assert_array_equal(found.positions, order[:, : found.positions.shape[1]])
        positions, norms = found.positions.copy(), found.norms.copy()
        positions[:, :2] = positions[:, 1::-1]
        rows, second = np.arange(len(norms)), positions[:, 1]
        norms[rows, second] = norms[rows, positions[:, 0]] * (1 + self.apart)
        return replace(found, positions=positions, norms=norms)


@pytest.mark.parametrize("apart", [1e-6, 1e-4])
@pytest.mark.parametrize("side", ["torch", "numpy"])
def test_nearly_equal_norms_may_change_places(side: str, apart: float) -> None:
    """Float sums in another order decide which of them comes first: no fault of the graph."""
    encoder = tiny_encoder()
    calibrated = naive_calibration(
        encoder, tiny_regcache(encoder, replace(CHOICE, delete_at="mlp_input"))
    )
    plan = plan_of(calibrated)
    model = build_model(plan)
    subject = Subject(
        model, plan.encoder, plan.regcache, GraphOptions(), graph_offsets(plan, model), PREPROCESS
    )
    simulator: Simulator = TorchSimulator(calibrated)
    if side == "numpy":
        simulator = Reference(
            initializers(model), subject.spec, subject.regcache, subject.options, subject.offsets
        )
    found = collect(subject, pixels().numpy(), Swapping(simulator, apart))
    counts = found.comparison.counts
    top = counts["blocks.1.delete/TopK"]
    assert (top.different, top.off_tie) == (2 * COUNT, 0 if apart < 1e-5 else 2 * COUNT)
    divergent = first_divergence(list(counts.values()))
    assert divergent == (None if apart < 1e-5 else top)


def test_a_perturbed_token_position_inside_a_block_is_seen(tmp_path: Path) -> None:
    path = certified(tmp_path, calibration(), GraphOptions())

    def swap(model: onnx.ModelProto) -> None:
        (gather,) = (n for n in model.graph.node if n.op_type == "GatherND")
        model.graph.initializer.append(
            numpy_helper.from_array(np.array([[0]] * 1, np.int64)[None], "elsewhere")
        )
        (unsqueeze,) = (n for n in model.graph.node if n.name.endswith("delete/Unsqueeze"))
        index = list(model.graph.node).index(gather)
        flipped = onnx.helper.make_node(
            "Max", [unsqueeze.output[0], "elsewhere"], ["moved"], name="moved"
        )
        shifted = onnx.helper.make_node("Add", ["moved", "one_more"], ["next"], name="next")
        model.graph.initializer.append(numpy_helper.from_array(np.array(-1, np.int64), "one_more"))
        model.graph.node.insert(index, flipped)
        model.graph.node.insert(index + 1, shifted)
        gather.input[1] = "next"

    rewrite(path, swap)
    report = verify_bundle(Bundle.open(path))
    assert report.problem is not None
    assert report.details["other_codes"][0] == "blocks.1.attn.qkv/QuantizeLinear"


def test_float_bundles_are_certified_too(tmp_path: Path) -> None:
    path = certified(tmp_path, float_calibration(tiny_encoder()), GraphOptions())
    report = verify_bundle(Bundle.open(path))
    assert report.problem is None
    assert report.codes == 0


def test_every_target_is_covered() -> None:
    assert {"onnx", "onnxruntime"} <= TARGETS.keys()
