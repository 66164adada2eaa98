"""Plans from which no graph, or only a wrong one, could be written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from regcache_export.errors import BundleError, ConfigError, ModelError, UnsupportedEncoderError
from regcache_export.graph import build_model
from regcache_export.plan import LinearQuant, Plan
from tests.tiny_plans import CHOICE, tiny_plan

pytest.importorskip("onnxruntime")


def with_input_quant(plan: Plan, **changes: Any) -> Plan:
    name = "blocks.1.mlp.fc1"
    layer = plan.linears[name]
    changed = LinearQuant(replace(layer.input, **changes), layer.weight)
    return replace(plan, linears={**plan.linears, name: changed})


def with_weight_quant(plan: Plan, **changes: Any) -> Plan:
    name = "blocks.1.mlp.fc1"
    layer = plan.linears[name]
    changed = LinearQuant(layer.input, replace(layer.weight, **changes))
    return replace(plan, linears={**plan.linears, name: changed})


ONE = np.ones(1, np.float32)
ZERO = np.zeros(1, np.int32)


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 16},
        {"bits": 1},
        {"scale": np.zeros(1, np.float32)},
        {"scale": -ONE},
        {"scale": ONE * np.nan},
        {"scale": ONE * np.inf},
        {"scale": np.ones(2, np.float32)},
        {"scale": np.float32(1).reshape(())},
        {"zero_point": ZERO + 200},
        {"zero_point": ZERO - 1, "signed": False},
        {"bits": 4, "zero_point": ZERO + 8},
        {
            "scale": np.ones(48, np.float32),
            "zero_point": np.zeros(48, np.int32),
            "per_channel": True,
        },
    ],
    ids=str,
)
def test_a_quantizer_that_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"blocks\.1\.mlp\.fc1"):
        build_model(with_input_quant(tiny_plan(), **changes))


def test_weight_scales_must_match_the_rows() -> None:
    plan = with_weight_quant(
        tiny_plan(), scale=np.ones(79, np.float32), zero_point=np.zeros(79, np.int32)
    )
    with pytest.raises(BundleError, match="79 scales for 80 rows"):
        build_model(plan)


def test_incomplete_or_broken_plans_are_refused() -> None:
    plan = tiny_plan()
    fewer = {n: w for n, w in plan.weights.items() if n != "norm.bias"}
    with pytest.raises(BundleError, match=r"norm\.bias"):
        build_model(replace(plan, weights=fewer))
    damaged = {**plan.weights, "pos_embed": plan.weights["pos_embed"] * np.nan}
    with pytest.raises(ModelError, match="pos_embed"):
        build_model(replace(plan, weights=damaged))
    with pytest.raises(BundleError, match="register of block 1"):
        build_model(replace(plan, register={}))
    with pytest.raises(BundleError, match="register of block 2"):
        build_model(replace(plan, register={**plan.register, 2: np.ones(7, np.float32)}))
    extra = {**plan.linears, "blocks.9.mlp.fc1": plan.linears["blocks.1.mlp.fc1"]}
    with pytest.raises(BundleError, match=r"blocks\.9"):
        build_model(replace(plan, linears=extra))
    with pytest.raises(ConfigError, match="delete count 12"):
        build_model(replace(plan, regcache=CHOICE.deleting(12)))


def test_unsupported_structures_are_refused() -> None:
    plan = tiny_plan(quantized=False)
    with pytest.raises(ModelError, match="pool width 0"):
        build_model(replace(plan, encoder=replace(plan.encoder, pool="map")))
    others: list[dict[str, Any]] = [{"activation": "relu"}, {"final_norm": "sometimes"}]
    for other in others:
        with pytest.raises(UnsupportedEncoderError, match=next(iter(other.values()))):
            build_model(replace(plan, encoder=replace(plan.encoder, **other)))
    choice: dict[str, Any] = {"delete_at": "nowhere"}
    with pytest.raises(BundleError, match="nowhere"):
        build_model(replace(plan, regcache=replace(CHOICE, **choice)))
    with pytest.raises(ModelError, match="class token"):
        build_model(replace(plan, encoder=replace(plan.encoder, num_prefix_tokens=0)))
    with pytest.raises(ModelError, match="5 heads"):
        build_model(replace(plan, encoder=replace(plan.encoder, heads=5)))
    with pytest.raises(ModelError, match="output_dim"):
        build_model(replace(plan, encoder=replace(plan.encoder, projection=False)))
