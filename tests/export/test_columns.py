"""Three products for queries, keys and values: the same numbers, and no Split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.quantizers import Bits
from regcache_engines.load import load_engine
from regcache_export import targets
from regcache_export.bundle import write_bundle
from regcache_export.graph import build_model, serialize, split_qkv
from regcache_export.inspect import optimized_op_counts
from regcache_export.targets import GraphOptions
from tests.tiny_plans import (
    CHOICE,
    PREPROCESS,
    naive_calibration,
    tiny_encoder,
    tiny_images,
    tiny_plan,
    tiny_regcache,
)

TUNED = GraphOptions(target="onnxruntime")
DEPTH = 3


def packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regcache_export.graph.encoder.split_qkv", lambda model, spec: model)


@pytest.mark.parametrize(
    "changes",
    [{}, {"activation": "quick_gelu"}, {"pool": "avg"}, {"layer_scale": True}],
    ids=str,
)
@pytest.mark.parametrize("bits", [8, 6])
def test_features_are_equal_bit_for_bit(
    changes: dict[str, Any], bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny_encoder(**changes)
    calibration = naive_calibration(encoder, tiny_regcache(encoder), Bits(bits, bits))
    plan = make_plan(calibration, regcache_config=CHOICE, preprocess=PREPROCESS)
    images, outputs = tiny_images(3).numpy(), []
    for name in ("narrow", "packed"):
        path = write_bundle(plan, tmp_path / f"{name}.regcache", options=TUNED)
        with load_engine(path, threads=1) as engine:
            outputs.append(np.asarray(engine.infer(images)))
        packed(monkeypatch)
    assert np.array_equal(outputs[0], outputs[1])


def test_what_is_cut_and_what_is_gone(tmp_path: Path) -> None:
    plan = tiny_plan()
    path = tmp_path / "model.onnx"
    path.write_bytes(serialize(build_model(plan, options=TUNED)))
    counts = optimized_op_counts(path)
    assert counts["MatMulIntegerToFloat"] == DEPTH * (3 + 1 + 1 + 1)
    assert counts["Split"] == 1  # of the tokens, for the deletion
    owners = Counter(
        node.name.rsplit("/", 1)[0].split(".", 2)[2]
        for node in build_model(plan, options=TUNED).graph.node
        if node.op_type == split_qkv.OPERATOR
    )
    assert owners == {
        "attn.q": DEPTH,
        "attn.k": DEPTH,
        "attn.v": DEPTH,
        "attn.out_proj": DEPTH,
        "mlp.fc1": DEPTH,
        "mlp.fc2": DEPTH,
    }


def test_the_last_block_asks_for_one_query_row() -> None:
    nodes = {node.name: node for node in build_model(tiny_plan(), options=TUNED).graph.node}
    last = f"blocks.{DEPTH - 1}.attn"
    rows = nodes[f"{last}.q/codes/Slice"]
    assert rows.input[0] == f"{last}.qkv/QuantizeLinear"
    assert nodes[f"{last}.q/{split_qkv.OPERATOR}"].input[0] == rows.output[0]
    assert nodes[f"{last}.k/{split_qkv.OPERATOR}"].input[0] == f"{last}.qkv/QuantizeLinear"


def test_layers_in_float_stay_whole() -> None:
    plan = tiny_plan()
    plan.linears.pop("blocks.0.attn.qkv")
    names = {node.name for node in build_model(plan, options=TUNED).graph.node}
    assert "blocks.0.attn/Split" in names
    assert f"blocks.1.attn.q/{split_qkv.OPERATOR}" in names


def test_only_the_tuned_target_is_cut() -> None:
    assert [t.name for t in targets.TARGETS.values() if t.narrow_products] == ["onnxruntime"]
