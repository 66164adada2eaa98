"""Attention pooling, no class token, trained registers: with deletion, prefix and quantizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from regcache_deploy.encoders.regcache import RegCacheConfig, delete_sinks
from regcache_deploy.quantization.plan import make_plan
from regcache_engines.onnxruntime_engine import OnnxRuntimeEngine
from regcache_export.errors import ModelError, UnsupportedEncoderError
from regcache_export.graph import build_model, serialize
from tests.tiny_plans import (
    CHOICE,
    float_calibration,
    naive_calibration,
    tiny_encoder,
    tiny_images,
    tiny_regcache,
)

MAP: dict[str, Any] = {"pool": "map", "pool_heads": 4, "pool_width": 48, "pool_mlp_width": 64}
COCA: dict[str, Any] = {"pool": "map", "pool_heads": 2, "pool_width": 20, "output_dim": 20}

STRUCTURES: dict[str, dict[str, Any]] = {
    "siglip": MAP | {"num_prefix_tokens": 0, "projection": False},
    "siglip, projected": MAP | {"num_prefix_tokens": 0},
    "map beside a class token": MAP,
    "map over all tokens": MAP | {"pool_include_prefix": True},
    "map without final norm": MAP | {"final_norm": "none"},
    "coca": COCA | {"pool_include_prefix": True},
    "mean without class token": {"pool": "avg", "num_prefix_tokens": 0},
    "mean over all tokens": {"pool": "avg", "num_prefix_tokens": 5, "pool_include_prefix": True},
    "registers": {"num_prefix_tokens": 5},
    "tanh in the pool": MAP | {"activation": "gelu_tanh"},
}


def difference(calibration, tmp_path, count=3):
    config = calibration.regcache.config if calibration.regcache else None
    plan = make_plan(calibration, regcache_config=config, provenance={"model": "tiny"})
    path = tmp_path / "model.onnx"
    path.write_bytes(serialize(build_model(plan)))
    images = tiny_images(count)
    want = calibration.encoder(images, calibration.numerics(), calibration.regcache)
    with OnnxRuntimeEngine(path, threads=1) as engine:
        got = torch.from_numpy(engine.infer(images.numpy()))
    return float((got - want).abs().max()), float(want.abs().max())


@pytest.mark.parametrize("name", STRUCTURES)
def test_graph_equals_simulation_in_float_with_prefix_and_deletion(name, tmp_path):
    encoder = tiny_encoder(**STRUCTURES[name])
    error, size = difference(float_calibration(encoder, tiny_regcache(encoder)), tmp_path)
    assert error < 2e-5 * max(1.0, size)
    assert size > 0.1


@pytest.mark.parametrize("name", ["siglip", "coca", "registers"])
def test_graph_equals_simulation_when_quantized(name, tmp_path):
    encoder = tiny_encoder(**STRUCTURES[name])
    error, size = difference(naive_calibration(encoder, tiny_regcache(encoder)), tmp_path)
    # a rounding tie may fall the other way
    assert error < 0.02 * size


def test_without_a_class_token_every_patch_may_go():
    encoder = tiny_encoder(**STRUCTURES["siglip"])
    regcache = tiny_regcache(encoder, RegCacheConfig(1, 0, 1, encoder.spec.num_patches - 1))
    tokens = encoder.run_blocks(encoder.embed(tiny_images(2)), regcache=regcache)
    assert tokens.shape[1] == 1
    assert torch.isfinite(encoder.pool(tokens)).all()


def test_registers_are_never_deleted():
    encoder = tiny_encoder(**STRUCTURES["registers"])
    tokens = encoder.embed(tiny_images(2))
    tokens[:, :5] *= 1000  # the largest of all
    kept = delete_sinks(tokens, CHOICE.delete_count, encoder.spec.num_prefix_tokens)
    assert torch.equal(kept[:, :5], tokens[:, :5])
    assert kept.shape[1] == tokens.shape[1] - CHOICE.delete_count


def test_structures_that_cannot_be_are_refused():
    for changes, kind, message in (
        (MAP | {"final_norm": "after_pool"}, UnsupportedEncoderError, "has its own norm"),
        (MAP | {"pool_heads": 5}, ModelError, "does not divide into 5 heads"),
        (MAP | {"pool_heads": 0}, ModelError, "does not divide into 0 heads"),
    ):
        calibration = float_calibration(tiny_encoder(**changes))
        with pytest.raises(kind, match=message):
            build_model(make_plan(calibration))
