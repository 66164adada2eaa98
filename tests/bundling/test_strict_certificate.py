"""The certificate of a graph with quantizers as published, and what it says where no codes are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from regcache_deploy.bundling.certify import TorchSimulator, certify_bundle, graph_offsets
from regcache_deploy.cli.main import main
from regcache_deploy.errors import VerificationError
from regcache_deploy.quantization.nonuniform import TwinSoftmax
from regcache_deploy.quantization.quantizers import Bits, Quantizer
from regcache_deploy.quantization.simulate import Calibration
from regcache_deploy.quantization.strict_plan import to_published
from regcache_deploy.quantization.traced import traced
from regcache_engines.bundle import Bundle
from regcache_export.bundle import write_bundle
from regcache_export.certificate import NO_CODES, Subject, collect, first_divergence
from regcache_export.certificate_files import CERTIFICATE
from regcache_export.compare import Simulator
from regcache_export.graph import build_model
from regcache_export.graph.builder import GraphBuilder
from regcache_export.graph.published_products import product
from regcache_export.passes.base import FoldState
from regcache_export.published_quant import CODE_TENSORS
from regcache_export.reference import initializers
from regcache_export.reference_quantizers import quantized
from regcache_export.targets import GraphOptions
from regcache_export.verify import verify_bundle
from tests.bundling.certificate_helpers import change_constant, one_scale, pixels
from tests.export.graph_helpers import rewrite
from tests.quantization.test_strict_paper import LEFTS, plan_of, strict, values_for
from tests.tiny_plans import PREPROCESS, SPEC

pytest.importorskip("onnxruntime")

OPTIONS = GraphOptions()

STAGES = {
    # by block: k and v operands, q, qkv, fc1 and out_proj, halves of the two twins, the choice
    "ptq4vit": {"QuantizeLinear": 6 + 4, "Less": 1},
    # q, k, v, out_proj, fc2; log-sqrt2; qkv and fc1
    "repqvit": {"QuantizeLinear": 5, "Cast": 1, "Clip": 2},
}


def certified(folder: Path, calibration: Calibration, count: int = 6) -> Path:
    plan = plan_of(calibration)
    path = write_bundle(plan, folder / "tiny.regcache", options=OPTIONS)
    certify_bundle(path, plan, OPTIONS, calibration, pixels(count))
    return path


@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 4)], ids=str)
@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_that_of_the_simulation(
    name: str, bits: Bits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = certified(tmp_path, strict(name, bits))
    document = json.loads((path / CERTIFICATE).read_text())
    nodes = {node["node"]: node for node in document["nodes"]}
    assert all(node["off_tie"] == 0 for node in nodes.values())
    assert sum(node["different"] for node in nodes.values()) < 10
    operators = Counter(node.rsplit("/", 1)[1] for node in document["code_sha256"])
    assert operators == {kind: 3 * count for kind, count in STAGES[name].items()}
    clips = {node for node in document["code_sha256"] if node.endswith("/levels/Clip")}
    assert document["without_codes"] == dict.fromkeys(clips, NO_CODES)
    assert len(clips) == (6 if name == "repqvit" else 0)
    report = verify_bundle(Bundle.open(path))
    assert (report.problem, report.same_codes) == (None, 1)
    assert (report.levels > 0) == (name == "repqvit")
    assert main(["verify", str(path)]) == 0
    assert ("levels without a code" in capsys.readouterr().out) == (name == "repqvit")


def test_a_deeper_encoder_on_32_images(tmp_path: Path) -> None:
    """Mean cosines aside, ties alone differ, and few of them."""
    for name in STAGES:
        path = certified(tmp_path / name, strict(name, depth=8), 32)
        document = json.loads((path / CERTIFICATE).read_text())
        assert document["images"] == 32
        for node in document["nodes"]:
            assert node["off_tie"] == 0
            assert node["different"] <= max(1, 1e-4 * node["elements"])


# ---- perturbed ----------------------------------------------------------------------------------


def amid_the_probabilities(value: np.ndarray) -> None:
    value[...] = 1 / SPEC.num_tokens


PERTURBED = {
    "scale of a half": ("ptq4vit", "blocks.1.mlp.fc2/upper.input_scale", one_scale),
    "step below zero": ("ptq4vit", "blocks.1.mlp.fc2/lower.input_scale", one_scale),
    "split of a softmax": ("ptq4vit", "blocks.1.attn/pv/left.split", amid_the_probabilities),
    "scale of the keys": ("ptq4vit", "blocks.1.attn/qk/right.input_scale", one_scale),
    "delta of a logarithm": ("repqvit", "blocks.1.attn/pv/left.delta", one_scale),
    "step without codes": ("repqvit", "blocks.1.attn.qkv.step", one_scale),
}

FIRST = {
    "split of a softmax": "blocks.1.attn/pv/left/Less",
    "delta of a logarithm": "blocks.1.attn/pv/left/Cast",
    "step without codes": "blocks.1.attn.qkv/levels/Clip",
}


@pytest.mark.parametrize("what", PERTURBED)
def test_the_simulation_names_the_perturbed_stage(what: str, tmp_path: Path) -> None:
    """At the export, where no hash is stored yet."""
    name, constant, change = PERTURBED[what]
    calibration = strict(name)
    plan = plan_of(calibration)
    path = write_bundle(plan, tmp_path / "tiny.regcache", options=OPTIONS)
    rewrite(path, change_constant(constant, change))
    first = FIRST.get(what, constant.replace(".input_scale", "/QuantizeLinear"))
    with pytest.raises(VerificationError, match=f"first divergent node: {first}:"):
        certify_bundle(path, plan, OPTIONS, calibration, pixels())
    assert not (path / CERTIFICATE).exists()


@pytest.mark.parametrize("what", ["scale of a half", "step without codes"])
def test_verify_names_the_perturbed_constant(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, constant, change = PERTURBED[what]
    path = certified(tmp_path, strict(name))
    rewrite(path, change_constant(constant, change))
    assert main(["verify", str(path)]) == 6
    message = capsys.readouterr().err
    assert f"constant {constant} is not the certified one" in message


def swap_halves(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.name == "blocks.1.attn/pv/left/lower/Where")
    node.input[1], node.input[2] = node.input[2], node.input[1]


def greatest_below_zero(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.name == "blocks.1.mlp.fc2/lower/Min")
    node.op_type = "Max"


def other_selection(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.name == "blocks.1.attn/pv/left/Less")
    node.op_type = "Greater"


def floor(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.name == "blocks.1.attn.qkv/Round")
    node.op_type = "Floor"


WIRES: dict[str, tuple[str, Callable[[onnx.ModelProto], None], str]] = {
    "halves swapped": ("ptq4vit", swap_halves, "blocks.1.attn/pv/left/lower/QuantizeLinear"),
    "wrong half": ("ptq4vit", greatest_below_zero, "blocks.1.mlp.fc2/lower/QuantizeLinear"),
    "wrong choice": ("ptq4vit", other_selection, "blocks.1.attn/pv/left/Less"),
    "wrong rounding": ("repqvit", floor, "blocks.1.attn.qkv/levels/Clip"),
}


@pytest.mark.parametrize("what", WIRES)
@pytest.mark.parametrize("side", ["numpy", "torch"])
def test_both_simulations_notice_a_wrong_operator(side: str, what: str) -> None:
    """The constants are right, the graph is not."""
    name, change, first = WIRES[what]
    calibration = strict(name)
    plan = plan_of(calibration)
    model = build_model(plan)
    change(model)
    subject = Subject(
        model, plan.encoder, plan.regcache, OPTIONS, graph_offsets(plan, model), PREPROCESS
    )
    simulator: Simulator | None = None
    if side == "torch":
        simulator = TorchSimulator(calibration, plan.published)
    counts = collect(subject, pixels(2).numpy(), simulator).comparison.counts
    divergent = first_divergence(list(counts.values()))
    assert divergent is not None
    assert divergent.node == first


# ---- one quantizer ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LEFTS)
def test_three_implementations_of_one_quantizer(kind: str) -> None:
    """PyTorch in one piece, PyTorch by stages, and numpy from the constants of a graph."""
    quantizer, x = LEFTS[kind], values_for(kind, 4, 5, 40)
    name = "blocks.0.attn/pv/left"
    expected = quantizer(x)
    staged, by_numpy = dict[str, np.ndarray](), dict[str, np.ndarray]()

    def in_torch(stage: str, steps: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        staged[stage] = levels.numpy()
        return levels

    def in_numpy(stage: str, steps: np.ndarray, levels: np.ndarray) -> np.ndarray:
        by_numpy[stage] = levels
        return levels

    torch.testing.assert_close(traced(name, quantizer, x, in_torch), expected)
    published = to_published(quantizer)
    operands = {"blocks.0.attn.pv": (published, to_published(LEFTS["signed"]))}
    builder = GraphBuilder("x")
    product(builder, FoldState(SPEC, {}, published=operands), "blocks.0.attn.pv", "x", "y")
    constants = initializers(onnx.helper.make_model(builder.graph("one", [], [])))
    offset = published.offsets(name).get(name, 0)
    found = quantized(constants, name, x.double().numpy(), offset, in_numpy)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-37)
    assert staged.keys() == by_numpy.keys() == published.offsets(name).keys()
    assert {stage.removeprefix(name) for stage in staged} <= CODE_TENSORS.keys()
    for stage, levels in staged.items():
        np.testing.assert_allclose(levels, by_numpy[stage], atol=1e-4)


def test_where_the_halves_of_a_softmax_meet_is_a_tie() -> None:
    """Float noise may choose the other half there, and nowhere else."""
    twin: Quantizer = TwinSoftmax(2**-4, 8)
    noted = {}

    def record(stage: str, steps: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        noted[stage] = steps
        return levels

    x = torch.tensor([0.0, 0.0625 - 1e-3, 0.0625 - 1e-7, 0.0625 + 1e-7, 0.0625 + 1e-3, 1.0])
    traced("p", twin, x, record)
    steps = noted["p/Less"]
    assert (steps - 0.5).abs()[2:4].max() < 1e-3
    np.testing.assert_array_equal(steps[[0, 1, 4, 5]], [1, 1, 0, 0])
