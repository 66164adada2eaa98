"""The written graph equals the PyTorch encoder in floating point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from regcache_deploy.encoders.regcache import RegCache, RegCacheConfig
from regcache_export.graph import build_model
from tests.export.graph_helpers import plan_of, run
from tests.tiny_plans import CHOICE, float_calibration, tiny_encoder, tiny_images, tiny_regcache

pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def _no_grad(one_thread: None) -> Iterator[None]:
    with torch.no_grad():
        yield


SWITCHES: list[dict[str, Any]] = [
    {},
    {"norm_pre": True},
    {"layer_scale": True},
    {"pool": "avg"},
    {"final_norm": "after_pool"},
    {"pool": "avg", "final_norm": "after_pool"},
    {"pool": "avg", "final_norm": "none", "num_prefix_tokens": 0},
    {"final_norm": "none", "num_prefix_tokens": 5},
    {"activation": "quick_gelu"},
    {"activation": "gelu_tanh"},
    {"projection": False},
    {"norm_eps": 1e-2},
    {"width": 64, "heads": 1},
    {"width": 40, "heads": 5},
]


@pytest.mark.parametrize("regcache", [False, True], ids=["plain", "regcache"])
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_float_graph_equals_the_encoder(switches: dict[str, Any], regcache: bool) -> None:
    encoder = tiny_encoder(**switches)
    cache = tiny_regcache(encoder) if regcache else None
    model = build_model(plan_of(float_calibration(encoder, cache)))
    images = tiny_images(3)
    (features,) = run(model, images)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, encoder(images, regcache=cache), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"delete_at": "mlp_input"},
        {"prefix_count": 0},
        {"delete_count": 0, "range_delete_count": 0},
        {"prefix_block": 0, "delete_block": 2},
        {"prefix_block": 2, "delete_block": 0, "prefix_count": 64}
        | {"delete_count": 11, "range_delete_count": 11},
    ],
    ids=str,
)
def test_every_regcache_choice(changes: dict[str, Any]) -> None:
    encoder = tiny_encoder()
    cache = tiny_regcache(encoder, replace(CHOICE, **changes))
    images = tiny_images(2)
    (features,) = run(build_model(plan_of(float_calibration(encoder, cache))), images)
    np.testing.assert_allclose(features, encoder(images, regcache=cache), atol=2e-5, rtol=1e-5)
    assert np.abs(features - encoder(images).numpy()).max() > 1e-3  # the choice does something


def test_deletion_breaks_ties_as_the_simulation_does() -> None:
    """Twelve patches of equal norm, the last six with another content: position decides."""
    encoder = tiny_encoder(pool="avg")
    images = tiny_images(1)[:, :, :8, :8].tile(1, 1, 4, 3)
    position = torch.zeros_like(encoder.weights["pos_embed"])
    token = encoder.replace({"pos_embed": position}).embed(images)[0, 1]
    position[7:, token.abs().argmin()] = 0.5 * token.abs().max()
    encoder = encoder.replace({"pos_embed": position})
    cache = tiny_regcache(encoder, RegCacheConfig(0, 0, 0, 5))
    expected = encoder(images, regcache=cache)
    backwards = encoder.replace({"pos_embed": position.flip(0)})(images, regcache=cache)
    assert (expected - backwards).abs().max() > 1e-2
    model = build_model(plan_of(float_calibration(encoder, cache)))
    np.testing.assert_allclose(run(model, images)[0], expected, atol=2e-5)


def test_an_absent_bias_costs_no_node() -> None:
    encoder = tiny_encoder()
    zeros = {n: torch.zeros_like(w) for n, w in encoder.weights.items() if n.endswith(".bias")}
    model = build_model(plan_of(float_calibration(encoder.replace(zeros))))
    assert not any(node.name.endswith("qkv/Add") for node in model.graph.node)
    images = tiny_images(1)
    np.testing.assert_allclose(run(model, images)[0], encoder.replace(zeros)(images), atol=2e-5)


def test_random_register_reaches_the_graph() -> None:
    """Cached keys and values are the projections of the register, bias included."""
    encoder = tiny_encoder()
    cache: RegCache = tiny_regcache(encoder)
    model = build_model(plan_of(float_calibration(encoder, cache)))
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    keys, values = encoder.prefix_kv(2, cache.register[2])
    for name, expected in (("prefix_k", keys), ("prefix_v", values)):
        np.testing.assert_allclose(
            constants[f"blocks.2.attn/{name}"], expected.expand(-1, -1, 3, -1), atol=1e-5
        )
