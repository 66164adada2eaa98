"""The certificate of a graph for TensorRT: codes in float32, and what its float16 body costs.

Tiny encoder with random weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from regcache_deploy.bundling.certify import certify_bundle, graph_offsets
from regcache_deploy.cli.main import main
from regcache_deploy.errors import BundleError, VerificationError
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.simulate import Calibration
from regcache_deploy.quantization.tensorrt import for_tensorrt
from regcache_engines.bundle import Bundle
from regcache_export.bundle import add_files, write_bundle
from regcache_export.certificate import Subject, collect, first_divergence
from regcache_export.certificate_files import CERTIFICATE
from regcache_export.float32_copy import in_float32
from regcache_export.graph import build_model
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions
from regcache_export.verify import verify_bundle
from tests.export.graph_helpers import rewrite
from tests.tiny_plans import CHOICE, PREPROCESS, tiny_encoder, tiny_images, tiny_regcache

pytest.importorskip("onnxruntime")

TENSORRT = GraphOptions(target="tensorrt")
OPERANDS = 4 * 3  # q, k, softmax and v of every block


def pixels(count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 32, 24, 3), dtype=torch.uint8, generator=generator)


def calibrated(
    baseline: str = "naive", choice: Any = CHOICE, attention: bool = True, **changes: Any
) -> Calibration:
    tiny = tiny_encoder(**{"width": 64, "heads": 4, **changes})
    tokens = tiny.embed(tiny_images(8, seed=3))
    cache = tiny_regcache(tiny, choice)
    found = make_baseline(baseline).calibrate(tiny, tokens, regcache=cache)
    return for_tensorrt(found, tokens, attention)


def plan_of(calibration: Calibration) -> Plan:
    assert calibration.regcache is not None
    return make_plan(
        calibration, regcache_config=calibration.regcache.config, preprocess=PREPROCESS
    )


def certified(folder: Path, calibration: Calibration, options: GraphOptions = TENSORRT) -> Path:
    plan = plan_of(calibration)
    path = write_bundle(plan, folder / "tiny.regcache", options=options)
    certify_bundle(path, plan, options, calibration, pixels())
    return path


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "repqvit": ({"baseline": "repqvit"}, {}),
    "float attention": ({"attention": False, "baseline": "repqvit"}, {}),
    "head size 32": ({"width": 96, "heads": 3}, {}),
    "mlp input": ({"choice": replace(CHOICE, delete_at="mlp_input")}, {}),
    "last block": ({"choice": replace(CHOICE, delete_at="mlp_input", delete_block=2)}, {}),
    "average pool": ({"pool": "avg", "num_prefix_tokens": 0}, {}),
    "unfolded scale": ({"width": 96, "heads": 3}, {"without": ("attention-scale",)}),
    "quick gelu": ({"activation": "quick_gelu"}, {}),  # its factor is rounded to float16, too
    "raw pixels": ({"norm_pre": True}, {"pixels": "nhwc"}),
    "float32 body": ({}, {"body": "float32"}),
}


@pytest.mark.parametrize("case", CASES)
def test_codes_are_those_of_the_simulation(case: str, tmp_path: Path) -> None:
    kind, options = CASES[case]
    path = certified(tmp_path, calibrated(**kind), replace(TENSORRT, **options))
    document = json.loads((path / CERTIFICATE).read_text())
    nodes = {node["node"]: node for node in document["nodes"]}
    codes = [node for name, node in nodes.items() if name.endswith("/QuantizeLinear")]
    assert len(codes) == 12 + (0 if case == "float attention" else OPERANDS)
    assert all(node["off_tie"] == 0 for node in codes)
    assert sum(node["elements"] for node in codes) > 10_000
    assert sum(node["different"] for node in codes) < 10
    if "average" not in case:
        assert nodes["blocks.1.delete/TopK" if case != "last block" else "blocks.2.delete/TopK"]
    report = verify_bundle(Bundle.open(path))
    assert report.problem is None
    assert report.same_codes == 1
    half = document["optimized"]["half"]
    if case == "float32 body":
        assert half is None
    else:
        assert 0.95 < half < 1
        assert report.optimized.bound < half


# ---- perturbed ----------------------------------------------------------------------------------


def constant(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[onnx.ModelProto], None]:
    def apply(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == name)
        value = numpy_helper.to_array(tensor).copy()
        change(value)
        tensor.CopyFrom(numpy_helper.from_array(value, name))

    return apply


def scale(value: np.ndarray) -> None:
    value *= np.asarray(1.01, value.dtype)


def weight(value: np.ndarray) -> None:
    value[int(np.abs(value[:, 3]).argmin()), 3] += 90


def one_wire(model: onnx.ModelProto) -> None:
    """Largest instead of smallest norms survive."""
    (top,) = (n for n in model.graph.node if n.op_type == "TopK")
    (largest,) = (a for a in top.attribute if a.name == "largest")
    largest.i = 1


PERTURBATIONS: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "scale": (
        constant("blocks.1.mlp.fc1.input_scale", scale),
        "blocks.1.mlp.fc1/QuantizeLinear",
    ),
    "attention scale": (
        constant("blocks.1.attn.qk.left_scale", scale),
        "blocks.1.attn.qk.left/QuantizeLinear",
    ),
    "weight": (
        constant("blocks.1.attn.k.weight", weight),
        "blocks.1.attn.k/weight/DequantizeLinear",
    ),
    "wire": (one_wire, "blocks.1.delete/TopK"),
}


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_verify_names_the_first_divergent_node(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, culprit = PERTURBATIONS[kind]
    path = certified(tmp_path, calibrated())
    rewrite(path, change)
    assert main(["verify", str(path)]) == 6
    assert f"first divergent node: {culprit} " in capsys.readouterr().err


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_export_notices_by_itself(kind: str, tmp_path: Path) -> None:
    change, culprit = PERTURBATIONS[kind]
    calibration = calibrated()
    plan = plan_of(calibration)
    path = write_bundle(plan, tmp_path / "tiny.regcache", options=TENSORRT)
    rewrite(path, change)
    with pytest.raises(VerificationError, match=f"first divergent node: {culprit}"):
        certify_bundle(path, plan, TENSORRT, calibration, pixels())
    assert not (path / CERTIFICATE).exists()


def test_a_plan_of_other_scales_is_noticed_by_its_codes(tmp_path: Path) -> None:
    """Graph and plan agree, and neither is what was simulated."""
    calibration = calibrated()
    plan = plan_of(calibration)
    left, right = plan.matmuls["blocks.1.attn.qk"]
    other = replace(left, scale=left.scale * np.float32(1.25))
    plan = replace(plan, matmuls={**plan.matmuls, "blocks.1.attn.qk": (other, right)})
    path = write_bundle(plan, tmp_path / "tiny.regcache", options=TENSORRT)
    with pytest.raises(VerificationError, match=r"blocks\.1\.attn\.qk\.left/QuantizeLinear"):
        certify_bundle(path, plan, TENSORRT, calibration, pixels())


def test_the_numpy_reference_notices_a_wrong_wire() -> None:
    """Without a stored hash: keys and values exchanged, every constant as it was."""
    plan = plan_of(calibrated())
    model = in_float32(build_model(plan, options=TENSORRT))
    nodes = {node.name: node for node in model.graph.node}
    k, v = (nodes[f"blocks.1.attn/{role}/Reshape"] for role in ("k", "v"))
    k.input[0], v.input[0] = v.input[0], k.input[0]
    subject = Subject(
        model, plan.encoder, plan.regcache, TENSORRT, graph_offsets(plan, model), PREPROCESS
    )
    divergent = first_divergence(
        list(collect(subject, pixels().numpy()).comparison.counts.values())
    )
    assert divergent is not None
    assert divergent.node == "blocks.1.attn.qk.right/QuantizeLinear"


def test_a_float16_body_that_lost_more_than_at_export_is_refused(tmp_path: Path) -> None:
    path = certified(tmp_path, calibrated())
    document = json.loads((path / CERTIFICATE).read_text())
    document["optimized"]["half"] = 1.0
    add_files(path, {CERTIFICATE: json.dumps(document).encode()})
    problem = verify_bundle(Bundle.open(path)).problem
    assert problem is not None
    assert "float16 body" in problem
    del document["optimized"]["half"]
    add_files(path, {CERTIFICATE: json.dumps(document).encode()})
    with pytest.raises(BundleError, match="float16"):
        verify_bundle(Bundle.open(path))
