"""Certificates of merging graphs: the graph's pairs are forced, counted, and held to bounds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from regcache_deploy.bundling.certify import TorchSimulator, certify_bundle, graph_offsets
from regcache_deploy.errors import VerificationError
from regcache_deploy.quantization.simulate import Calibration
from regcache_deploy.quantization.tensorrt import for_tensorrt
from regcache_engines.bundle import Bundle
from regcache_export.bundle import write_bundle
from regcache_export.certificate import Subject, collect, first_divergence
from regcache_export.compare import Comparison, Simulated, _compare_pairs
from regcache_export.graph import build_model
from regcache_export.merge import Merge
from regcache_export.plan import Plan
from regcache_export.survivors import Left, Pairs
from regcache_export.targets import GraphOptions
from regcache_export.trace import Tensors
from regcache_export.verify import verify_bundle
from tests.bundling.certificate_helpers import certified, pixels, plan_of
from tests.export.graph_helpers import rewrite
from tests.tiny_plans import naive_calibration, tame_encoder, tiny_images, tiny_regcache

MAP = {"pool": "map", "pool_heads": 3, "pool_width": 48, "pool_mlp_width": 40}


def calibration(merge: Merge, regcache: bool = True, **changes: Any) -> Calibration:
    encoder = tame_encoder(**changes).merging(merge)
    return naive_calibration(encoder, tiny_regcache(encoder) if regcache else None)


CASES = {
    "keys": (Merge((2, 2, 0)), {}),
    "residual, counted": (Merge((2, 2, 0), "residual", True), {}),
    "before the deletion": (Merge((3, 0, 0)), {"num_prefix_tokens": 3}),
    "rotary": (Merge((2, 1, 0), proportional=True), {"rotary": True}),
    "avg": (Merge((2, 2, 1)), {"pool": "avg"}),
    "map": (Merge((2, 2, 1), proportional=True), MAP),
}


@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
@pytest.mark.parametrize(("merge", "changes"), CASES.values(), ids=CASES)
def test_a_merging_bundle_is_certified_and_verified(
    merge: Merge, changes: dict[str, Any], target: str, tmp_path: Path
) -> None:
    path = certified(tmp_path, calibration(merge, **changes), GraphOptions(target=target))
    document = json.loads((path / "certificate.json").read_text())
    assert document["merge"] == merge.to_json()
    assert document["pairs"] == {"images": 6, "same": 6}
    merging = [f"blocks.{i}.merge/TopK" for i, count in enumerate(merge.counts) if count]
    assert [n["node"] for n in document["nodes"] if n["node"].endswith("merge/TopK")] == merging
    report = verify_bundle(Bundle.open(path))
    assert report.problem is None
    assert report.pairs == {"images": 6, "same": 6}
    assert report.to_json()["pairs"] == report.pairs


def test_a_merging_bundle_for_tensorrt_is_certified(tmp_path: Path) -> None:
    encoder = tame_encoder(pool="avg").merging(Merge((2, 2, 1)))
    regcache = tiny_regcache(encoder)
    tokens = encoder.embed(tiny_images(8, seed=3))
    calibrated = for_tensorrt(naive_calibration(encoder, regcache), tokens)
    options = GraphOptions(target="tensorrt")
    plan = plan_of(calibrated)
    assert plan.matmuls
    path = write_bundle(plan, tmp_path / "tiny.regcache", options=options)
    document = certify_bundle(path, plan, options, calibrated, pixels())
    assert document["pairs"] == {"images": 6, "same": 6}
    assert verify_bundle(Bundle.open(path)).problem is None


def test_pairs_are_read_from_all_rows_and_from_files_that_order_sources_alone() -> None:
    """Seven patches behind two leading tokens: sources in rows 2, 4, 6 and 8."""
    rows = np.array([[0, 1, 6, 2, 8, 4, 3, 5, 7]])[..., None]
    found = {"rows": rows, "order": np.array([[2, 0, 3, 1]]), "to": np.array([[1]])}
    for name in ("rows", "order"):
        tensors = Tensors((), (), {}, {}, {5: (name, "to")}, leading=2)
        assert tensors.pairs_of(4, found) is None
        pairs = tensors.pairs_of(5, found)
        assert pairs is not None
        assert pairs.order.tolist() == [[2, 0, 3, 1]]
        assert pairs.destinations.tolist() == [[1]]


def test_free_and_forced_simulation_agree_on_sizes() -> None:
    left = Left(9)
    order = np.array([[3, 0, 4, 1, 2]])
    after = left.merged(Pairs(order, np.array([[1, 1]])))
    assert after.patches == 7
    assert after.sizes is not None
    assert after.kept is not None
    assert after.sizes.tolist() == [[1, 1, 1, 1, 3, 1, 1]]
    assert after.kept.tolist() == [[8, 2, 4, 1, 3, 5, 7]]
    again = after.deleted(np.array([[4, 0, 5]]))
    assert again.sizes is not None
    assert again.kept is not None
    assert (again.sizes.tolist(), again.kept.tolist()) == ([[3, 1, 1]], [[3, 8, 5]])


class TestWhatIsNoTie:
    """Constants that change pairs are found at the node of the merge."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return certified(tmp_path, calibration(Merge((2, 2, 0))), GraphOptions())

    def test_another_choice_of_sources(self, path: Path) -> None:
        def least_similar(model: onnx.ModelProto) -> None:
            (node,) = (n for n in model.graph.node if n.name == "blocks.1.merge/ReduceMax")
            node.op_type = "ReduceMin"

        rewrite(path, least_similar)
        assert divergent(path) == "blocks.1.merge/TopK"

    def test_another_choice_of_destinations(self, path: Path) -> None:
        def next_to(model: onnx.ModelProto) -> None:
            (node,) = (n for n in model.graph.node if n.name == "blocks.0.merge/ArgMax")
            node.op_type = "ArgMin"

        rewrite(path, next_to)
        assert divergent(path) == "blocks.0.merge/ArgMax"

    def test_another_sum(self, path: Path) -> None:
        def without_weights(model: onnx.ModelProto) -> None:
            (node,) = (n for n in model.graph.node if n.name == "blocks.0.merge/hit/MatMul")
            node.input[1] = "blocks.0.merge/way/Sub"

        rewrite(path, without_weights)
        assert divergent(path).startswith("blocks.0.mlp")


def divergent(path: Path) -> str:
    report = verify_bundle(Bundle.open(path))
    assert report.problem is not None
    assert "first divergent node" in report.problem
    bundle = Bundle.open(path)
    document = json.loads((path / "certificate.json").read_text())
    from regcache_export.certificate import subject_of

    model = onnx.load(str(bundle.model_path))
    evidence = collect(subject_of(document, model, bundle.preprocess), pixels().numpy())
    found = first_divergence(list(evidence.comparison.counts.values()))
    assert found is not None
    return found.node


def test_a_manifest_with_another_merge_is_not_the_certified_one(tmp_path: Path) -> None:
    path = certified(tmp_path, calibration(Merge((2, 2, 0))), GraphOptions())
    text = (path / "manifest.json").read_text()
    changed = json.loads(text)
    changed["merge"]["counts"] = [2, 1, 0]
    (path / "manifest.json").write_text(json.dumps(changed))
    assert "'merge' in manifest.json" in str(verify_bundle(Bundle.open(path)).problem)


def test_a_simulation_that_merges_otherwise_is_refused(tmp_path: Path) -> None:
    calibrated = calibration(Merge((2, 2, 0), "keys"))
    plan = plan_of(calibrated)
    path = write_bundle(plan, tmp_path / "tiny.regcache")
    other = replace(calibrated, encoder=calibrated.encoder.merging(Merge((2, 2, 0), "residual")))
    with pytest.raises(VerificationError, match=r"blocks\.0\.merge/TopK"):
        certify_bundle(path, plan, GraphOptions(), other, pixels())


def test_a_flipped_tie_is_counted_and_the_rest_holds_its_bounds() -> None:
    """Another pair of equal similarity: an image more with other pairs, and nothing off tie."""
    similarity = np.array([[[0.5, 0.9], [0.9 + 4e-6, 0.1], [0.2, 0.3]]])
    ours = Pairs(np.array([[1, 0, 2]]), np.array([[0, 1]]))
    other = Pairs(np.array([[0, 1, 2]]), np.array([[1, 0]]))
    simulated = Simulated({}, {}, None, np.zeros(0), None, ours, similarity)
    comparison = Comparison()
    assert _compare_pairs("m", ours, simulated, comparison).tolist() == [True]
    assert _compare_pairs("m", other, simulated, comparison).tolist() == [False]
    assert first_divergence(list(comparison.counts.values())) is None
    wrong = Pairs(np.array([[2, 0, 1]]), np.array([[0, 1]]))
    _compare_pairs("m", wrong, simulated, comparison)
    found = first_divergence(list(comparison.counts.values()))
    assert found is not None
    assert (found.node, found.off_tie) == ("m/TopK", 2)
    assert comparison.counts["m/ArgMax"].off_tie == 1


def test_equal_patches_tie_in_graph_and_simulation_alike() -> None:
    """Images of one colour and an encoder without positions: every cosine is 1."""
    encoder = tame_encoder().merging(Merge((2, 2, 0)))
    encoder = encoder.replace({"pos_embed": torch.zeros_like(encoder.weights["pos_embed"])})
    calibrated = naive_calibration(encoder)
    plan = plan_of(calibrated, head=False)
    grey = np.full((4, 32, 24, 3), 99, np.uint8)
    subject = subject_of_plan(plan)
    evidence = collect(subject, grey, TorchSimulator(calibrated))
    assert first_divergence(list(evidence.comparison.counts.values())) is None
    assert evidence.pairs is not None
    assert evidence.pairs["images"] == 4


def subject_of_plan(plan: Plan) -> Subject:
    model = build_model(plan)
    return Subject(
        model=model,
        spec=plan.encoder,
        regcache=plan.regcache,
        options=GraphOptions(),
        offsets=graph_offsets(plan, model),
        preprocess=plan.preprocess,
        merge=plan.merge,
    )
