"""Rotary positions: the simulation, the graph of every target, the certificate, RegCache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from regcache_deploy.bundling.certify import TorchSimulator, graph_offsets
from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.encoders.rotary import Survivors
from regcache_deploy.encoders.structure import fill_randomly
from regcache_deploy.encoders.timm_vit import from_timm
from regcache_deploy.errors import UnsupportedEncoderError
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.tensorrt import for_tensorrt
from regcache_engines.onnxruntime_engine import OnnxRuntimeEngine
from regcache_export.certificate import Subject, collect, first_divergence
from regcache_export.errors import ModelError
from regcache_export.graph import build_model, serialize
from regcache_export.rounding_noise import free_run
from regcache_export.targets import GraphOptions
from tests.tiny_plans import (
    PREPROCESS,
    float_calibration,
    naive_calibration,
    tiny_encoder,
    tiny_images,
    tiny_regcache,
)

import_open_clip()
eva = pytest.importorskip("timm.models.eva")

CHOICES = {
    "prefix and deletion": RegCacheConfig(1, 3, 1, 4),
    "deletion before the prefix": RegCacheConfig(2, 2, 0, 5),
    "between attention and MLP": RegCacheConfig(1, 1, 1, 4, "mlp_input"),
}
STRUCTURES: dict[str, dict[str, Any]] = {
    "class token": {"rotary": True},
    "registers, mean": {"rotary": True, "pool": "avg", "num_prefix_tokens": 5},
    "patches alone": {"rotary": True, "pool": "avg", "num_prefix_tokens": 0},
}


def rotary_encoder(**changes: Any) -> Encoder:
    """A tiny encoder with true angles, which are large enough to matter."""
    encoder = tiny_encoder(**changes)
    spec = encoder.spec
    angles = torch.arange(spec.num_tokens)[:, None] * torch.linspace(0.3, 1, spec.head_dim // 2)
    angles[: spec.num_prefix_tokens] = 0
    return encoder.replace({"rotary": torch.cat([angles.cos(), angles.sin()], dim=1)})


@torch.no_grad()
@pytest.mark.parametrize("half", [False, True], ids=["pairs", "halves"])
def test_the_adapter_equals_timm(half):
    trunk = eva.Eva(
        img_size=(64, 48),
        patch_size=16,
        embed_dim=96,
        depth=2,
        num_heads=3,
        num_classes=0,
        global_pool="token",
        use_rot_pos_emb=True,
        rope_rotate_half=half,
        rope_grid_offset=1.0,
        attn_type="rope",
        ref_feat_shape=(4, 4),
    ).eval()
    fill_randomly(trunk)
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    encoder = from_timm(trunk)
    assert (encoder(images) - trunk(images)).abs().max() < 1e-5
    still = torch.cat([torch.ones(13, 16), torch.zeros(13, 16)], dim=1)
    moved = encoder.replace({"rotary": still})(images) - trunk(images)
    assert moved.abs().max() > 1e-3, "without its angles it is another encoder"


def test_angles_of_each_block_are_refused():
    trunk = eva.Eva(
        img_size=32, embed_dim=96, depth=1, num_heads=3, use_rot_pos_emb=True, rope_type="mixed"
    )
    with pytest.raises(UnsupportedEncoderError, match="RotaryEmbeddingMixed"):
        from_timm(trunk)


@torch.no_grad()
def test_survivors_keep_their_own_angles():
    """Deleting 4 of 12 patches equals an encoder of 8 patches, with the angles of these."""
    encoder = rotary_encoder(depth=2, rotary=True)
    tokens = encoder.embed(tiny_images(2))
    choice = tiny_regcache(encoder, RegCacheConfig(0, 0, 0, 4))
    survivors = Survivors()
    got = encoder.block(0, tokens, regcache=choice, survivors=survivors)
    assert survivors.kept is not None
    for row in range(2):
        rows = torch.cat([torch.zeros(1, dtype=torch.long), survivors.kept[row] + 1])
        tables = {name: encoder.weights[name][rows] for name in ("rotary", "pos_embed")}
        small = Encoder(replace(encoder.spec, image_size=(32, 16)), {**encoder.weights, **tables})
        want = small.block(0, tokens[row : row + 1, rows])
        assert torch.allclose(got[row], want[0], atol=1e-6)
    with pytest.raises(ValueError, match="nothing says which"):
        encoder.block(1, got)
    after = encoder.block(1, got, regcache=choice, survivors=survivors)
    assert torch.equal(after, encoder.run_blocks(tokens, regcache=choice))


@torch.no_grad()
@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_graph_equals_simulation(name, choice, target, tmp_path):
    encoder = rotary_encoder(**STRUCTURES[name])
    calibration = float_calibration(encoder, tiny_regcache(encoder, CHOICES[choice]))
    got, want = run(calibration, tmp_path, GraphOptions(target=target))
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


@torch.no_grad()
@pytest.mark.parametrize("choice", CHOICES)
def test_certificate_of_a_quantized_graph(choice):
    encoder = rotary_encoder(**STRUCTURES["registers, mean"])
    calibration = naive_calibration(encoder, tiny_regcache(encoder, CHOICES[choice]))
    options = GraphOptions()
    plan = plan_of(calibration)
    model = build_model(plan, options=options)
    subject = Subject(
        model, plan.encoder, plan.regcache, options, graph_offsets(plan, model), PREPROCESS
    )
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 24, 3), dtype=np.uint8)
    for simulator in (None, TorchSimulator(calibration)):
        evidence = collect(subject, pixels, simulator)
        assert first_divergence(list(evidence.comparison.counts.values())) is None
    free = free_run(subject, pixels)
    assert np.abs(free - evidence.features).max() < 0.05 * np.abs(free).max()


@torch.no_grad()
@pytest.mark.parametrize("choice", CHOICES)
def test_tensorrt_keeps_rotary_attention_in_float(choice, tmp_path):
    encoder = rotary_encoder(**STRUCTURES["class token"])
    calibration = naive_calibration(encoder, tiny_regcache(encoder, CHOICES[choice]))
    changed = for_tensorrt(calibration, encoder.embed(tiny_images(4)))
    assert not changed.quantization.matmuls
    got, want = run(changed, tmp_path, GraphOptions(target="tensorrt", body="float32"))
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_odd_heads_are_refused():
    encoder = tiny_encoder(width=45, rotary=True)
    with pytest.raises(ModelError, match="heads of 15 channels"):
        build_model(make_plan(float_calibration(encoder)))


def plan_of(calibration):
    config = calibration.regcache.config if calibration.regcache else None
    return make_plan(calibration, regcache_config=config, preprocess=PREPROCESS)


def run(calibration, folder, options):
    path = folder / "model.onnx"
    path.write_bytes(serialize(build_model(plan_of(calibration), options=options)))
    images = tiny_images(3)
    encoder = calibration.encoder
    want = encoder(images, numerics=calibration.numerics(), regcache=calibration.regcache)
    with OnnxRuntimeEngine(path, threads=1) as engine:
        return engine.infer(images.numpy()), want.numpy()
