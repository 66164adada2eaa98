"""SwiGLU and GeGLU: the adapters, the simulation, the graph of every target, the certificate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from regcache_deploy.bundling.certify import TorchSimulator, graph_offsets
from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders.canonical import Encoder, swiglu
from regcache_deploy.encoders.structure import fill_randomly
from regcache_deploy.encoders.timm_vit import from_timm
from regcache_deploy.errors import UnsupportedEncoderError
from regcache_deploy.quantization.baselines import BASELINES, make_baseline
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.tensorrt import for_tensorrt
from regcache_engines.onnxruntime_engine import OnnxRuntimeEngine
from regcache_export.certificate import Subject, collect, first_divergence
from regcache_export.graph import build_model, serialize
from regcache_export.reference_activation import activation
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
layers = pytest.importorskip("timm.layers")


def gated_encoder(**changes):
    return tiny_encoder(activation="swiglu", **changes)


def trunk_of(mlp, act=torch.nn.SiLU):
    trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=(64, 48),
        patch_size=16,
        embed_dim=96,
        depth=2,
        num_heads=3,
        num_classes=0,
        mlp_layer=mlp,
        act_layer=act,
    )
    return fill_randomly(trunk.eval())


@torch.no_grad()
@pytest.mark.parametrize("mlp", ["SwiGLUPacked", "SwiGLU", "GluMlp"])
def test_the_adapter_equals_timm(mlp):
    trunk = trunk_of(getattr(layers, mlp))
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    encoder = from_timm(trunk)
    assert encoder.spec.activation == "swiglu"
    assert (encoder(images) - trunk(images)).abs().max() < 1e-5


@torch.no_grad()
def test_a_gate_with_gelu():
    trunk = trunk_of(layers.GluMlp, torch.nn.GELU)
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    encoder = from_timm(trunk)
    assert encoder.spec.activation == "geglu"
    assert (encoder(images) - trunk(images)).abs().max() < 1e-5


def test_another_gate_is_refused():
    with pytest.raises(UnsupportedEncoderError, match="ReLU in place of SiLU or GELU"):
        from_timm(trunk_of(layers.GluMlp, torch.nn.ReLU))


def test_the_reference_activation_is_torch_own():
    x = torch.randn(3, 10, dtype=torch.float64) * 50
    assert np.allclose(activation("swiglu", x.numpy()), swiglu(x).numpy(), atol=1e-12)
    assert activation("swiglu", np.array([-2000.0, 1.0]))[0] == 0


@torch.no_grad()
@pytest.mark.parametrize("regcache", [False, True])
@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_float_graph_equals_the_simulation(target, regcache, tmp_path):
    encoder = gated_encoder(layer_scale=True)
    calibration = float_calibration(encoder, tiny_regcache(encoder) if regcache else None)
    got, want = run(calibration, tmp_path, GraphOptions(target=target))
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


@torch.no_grad()
@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
@pytest.mark.parametrize("name", sorted(BASELINES))
def test_codes_of_every_baseline_are_those_of_the_simulation(name, target):
    encoder = gated_encoder(pool="avg")
    cache = tiny_regcache(encoder)
    tokens = encoder.embed(tiny_images(8, seed=3))
    calibration = make_baseline(name).calibrate(encoder, tokens, regcache=cache)
    options = GraphOptions(target=target)
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
def test_tensorrt_is_refused():
    encoder = gated_encoder()
    calibration = naive_calibration(encoder, tiny_regcache(encoder))
    changed = for_tensorrt(calibration, encoder.embed(tiny_images(4)))
    with pytest.raises(UnsupportedEncoderError, match="take --target onnx"):
        build_model(plan_of(changed), options=GraphOptions(target="tensorrt"))


def test_attention_pooling_with_a_gate_is_refused():
    spec = replace(tiny_encoder().spec, activation="swiglu", pool="map")
    spec = replace(spec, pool_heads=2, pool_width=48, pool_mlp_width=8)
    with pytest.raises(UnsupportedEncoderError, match="gated MLP"):
        build_model(make_plan(float_calibration(random_encoder(spec))))


def random_encoder(spec):
    return Encoder(spec, {name: torch.randn(shape) for name, shape in spec.weight_shapes().items()})


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
