"""EVA-02's norms in front of out_proj and fc2: adapter, simulation, graph, certificate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regcache_deploy.bundling.certify import TorchSimulator, graph_offsets
from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders.catalogue import describe
from regcache_deploy.encoders.structure import fill_randomly
from regcache_deploy.encoders.timm_vit import from_timm
from regcache_deploy.errors import UnsupportedEncoderError
from regcache_deploy.quantization.baselines import BASELINES, make_baseline
from regcache_deploy.quantization.encoder_folds import CALIBRATION_FOLDS, fold_encoder
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.treatment import ROLES, Treatment
from regcache_engines.onnxruntime_engine import OnnxRuntimeEngine
from regcache_export.certificate import Subject, collect, first_divergence
from regcache_export.graph import build_model, serialize
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
timm = pytest.importorskip("timm")
Eva = timm.models.eva.Eva

NORMS = [(True, True), (False, True), (True, False)]


def normed_encoder(attn_norm=True, mlp_norm=True, **changes):
    changes = {"activation": "swiglu", **changes}
    return tiny_encoder(attn_norm=attn_norm, mlp_norm=mlp_norm, **changes)


def trunk_of(**changes):
    """EVA02-B-16's switches, small, with norms of random weights."""
    options = {
        "img_size": 64,
        "patch_size": 16,
        "embed_dim": 96,
        "depth": 2,
        "num_heads": 3,
        "qkv_fused": False,
        "mlp_ratio": 4 * 2 / 3,
        "swiglu_mlp": True,
        "scale_mlp": True,
        "scale_attn_inner": True,
        "use_rot_pos_emb": True,
        "ref_feat_shape": (4, 4),
        "global_pool": "token",
        "num_classes": 0,
    }
    return fill_randomly(Eva(**(options | changes)).eval())


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scale_attn_inner": False},  # EVA-02 as pre-trained
        {"scale_mlp": False},
        {"swiglu_mlp": False, "mlp_ratio": 4},
    ],
)
def test_the_adapter_equals_timm(changes):
    trunk = trunk_of(**changes)
    for name, parameter in trunk.named_parameters():
        if ".norm." in name:
            parameter.copy_(torch.rand_like(parameter) + 0.5)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    encoder = from_timm(trunk)
    assert encoder.spec.attn_norm == changes.get("scale_attn_inner", True)
    assert encoder.spec.mlp_norm == changes.get("scale_mlp", True)
    assert (encoder(images) - trunk(images)).abs().max() < 1e-5


def test_norms_in_some_blocks_only_are_refused():
    trunk = trunk_of()
    trunk.blocks[1].mlp.norm = torch.nn.Identity()
    with pytest.raises(UnsupportedEncoderError, match="norm inside the MLP"):
        from_timm(trunk)


def test_the_catalogue_knows_them():
    entry = describe("EVA02-B-16")
    assert entry.refusal is None
    assert not entry.fuses_int8_attention


@torch.no_grad()
@pytest.mark.parametrize(("attn_norm", "mlp_norm"), NORMS)
@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_float_graph_equals_the_simulation(target, attn_norm, mlp_norm, tmp_path):
    encoder = normed_encoder(attn_norm, mlp_norm, layer_scale=True, rotary=True)
    calibration = float_calibration(encoder, tiny_regcache(encoder))
    got, want = run(calibration, tmp_path, GraphOptions(target=target))
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


@torch.no_grad()
@pytest.mark.parametrize(("attn_norm", "mlp_norm"), NORMS)
def test_the_folds_leave_the_function(attn_norm, mlp_norm):
    encoder = normed_encoder(attn_norm, mlp_norm)
    images = tiny_images(4)
    tokens = encoder.embed(images)
    folded = fold_encoder(encoder, (*CALIBRATION_FOLDS, "value-balance"), tokens)
    assert (folded(images) - encoder(images)).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("treatment", [Treatment(), Treatment(ROLES, 4)], ids=["plain", "treated"])
@pytest.mark.parametrize("name", sorted(BASELINES))
def test_codes_of_every_baseline_are_those_of_the_simulation(name, treatment):
    encoder = normed_encoder(pool="avg")
    cache = tiny_regcache(encoder)
    baseline = make_baseline(name)
    baseline.treatment = treatment
    tokens = encoder.embed(tiny_images(8, seed=3))
    calibration = baseline.calibrate(encoder, tokens, regcache=cache)
    options = GraphOptions(target="onnx")
    plan = plan_of(calibration)
    model = build_model(plan, options=options)
    subject = Subject(
        model, plan.encoder, plan.regcache, options, graph_offsets(plan, model), PREPROCESS
    )
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 24, 3), dtype=np.uint8)
    for simulator in (None, TorchSimulator(calibration)):
        evidence = collect(subject, pixels, simulator)
        assert first_divergence(list(evidence.comparison.counts.values())) is None


@torch.no_grad()
def test_smoothing_leaves_what_a_norm_follows_and_takes_fc2():
    """The input of out_proj has no factors; a spike in fc2's input gets one."""
    encoder = normed_encoder()
    name = "blocks.1.attn.qkv.weight"
    spiked = encoder.weights[name].clone()
    spiked[-3:] *= 50
    encoder = encoder.replace({name: spiked})
    baseline = make_baseline("naive")
    baseline.treatment = Treatment(("out_proj",))
    tokens = encoder.embed(tiny_images(8))
    calibration = baseline.calibrate(encoder, tokens)
    for index in range(encoder.spec.depth):
        qkv = f"blocks.{index}.attn.qkv.weight"
        assert torch.equal(calibration.encoder.weights[qkv], encoder.weights[qkv])


@torch.no_grad()
def test_tensorrt_is_refused():
    calibration = naive_calibration(normed_encoder(activation="gelu"), None)
    with pytest.raises(UnsupportedEncoderError, match="take --target onnx"):
        build_model(plan_of(calibration), options=GraphOptions(target="tensorrt"))


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
