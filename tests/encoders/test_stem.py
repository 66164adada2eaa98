"""A convolutional stem and ViTamin's MLP: adapter, files, simulation, graph, certificate."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from regcache_deploy.bundling.certify import TorchSimulator, graph_offsets
from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders.canonical import Encoder, geglu
from regcache_deploy.encoders.catalogue import describe
from regcache_deploy.encoders.encoder_file import EncoderFile, read_encoder, write_encoder
from regcache_deploy.encoders.structure import fill_randomly
from regcache_deploy.encoders.timm_vit import from_timm
from regcache_deploy.errors import UnsupportedEncoderError
from regcache_deploy.quantization.baselines import BASELINES, make_baseline
from regcache_deploy.quantization.encoder_folds import CALIBRATION_FOLDS, fold_encoder
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.tensorrt import for_tensorrt
from regcache_deploy.quantization.treatment import ROLES, Treatment
from regcache_engines.onnxruntime_engine import OnnxRuntimeEngine
from regcache_engines.tensorrt.builder import EngineBuilder
from regcache_export.certificate import Subject, collect, first_divergence
from regcache_export.checks import check_tensorrt
from regcache_export.errors import BundleError, ModelError
from regcache_export.graph import build_model, serialize
from regcache_export.merge import Merge
from regcache_export.plan import Plan
from regcache_export.reference_activation import activation
from regcache_export.reference_stem import run_stem
from regcache_export.spec import EncoderSpec
from regcache_export.stem import StemStep, placed
from regcache_export.targets import GraphOptions
from tests.export.tensorrt_plans import require_rtx
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
vitamin = timm.models.vitamin
hybrid = timm.models.vision_transformer_hybrid
layers = timm.layers

CONVOLUTIONS = (
    StemStep("conv", channels=8, kernel=3, stride=2, padding=1),
    StemStep("norm", eps=1e-6),
    StemStep("gelu"),
    StemStep(
        "residual",
        body=(
            StemStep("norm", eps=1e-6),
            StemStep("conv", channels=16, kernel=3, stride=2, padding=1, groups=8),
            StemStep("gelu_tanh"),
            StemStep("conv", channels=24),
        ),
        shortcut=(
            StemStep("avg_pool", kernel=3, stride=2, padding=1),
            StemStep("conv", channels=24),
        ),
    ),
    StemStep("residual", body=(StemStep("conv", channels=24, kernel=3, padding=1, groups=2),)),
    StemStep("conv", channels=48, kernel=2, stride=2),
)
"""Every kind of step; a stride of 8 in all, as `tiny_plans.SPEC` wants it."""


def stemmed(**changes):
    """ViTamin's structure: stem, gated MLP with a norm of its own, mean of the patches."""
    own: dict[str, Any] = {
        "stem": CONVOLUTIONS,
        "activation": "geglu",
        "norm2_pre": True,
        "pool": "avg",
        "num_prefix_tokens": 0,
        "final_norm": "after_pool",
    }
    return tiny_encoder(**(own | changes))


def vitamin_trunk():
    config = vitamin.VitCfg(embed_dim=(8, 16, 48), depths=(1, 2, 1), stem_width=8)
    return trunk_on(
        vitamin.MbConvStages(config),
        mlp_layer=vitamin.GeGluMlp,
        mlp_ratio=2.0,
        class_token=False,
        global_pool="avg",
    )


def mobileclip_trunk(norm_layer=nn.BatchNorm2d):
    backbone = hybrid.ConvStem(
        channels=(12, 12, 48),
        stride=(4, 2, 2),
        kernel_size=(4, 2, 2),
        padding=0,
        act_layer=nn.GELU,
        norm_layer=norm_layer,
    )
    return trunk_on(backbone, no_embed_class=True)


def trunk_on(backbone, **options):
    embed = partial(layers.HybridEmbed, backbone=backbone, proj=False)
    trunk = timm.models.vision_transformer.VisionTransformer(
        embed_layer=embed,
        img_size=64,
        patch_size=1,
        embed_dim=48,
        depth=2,
        num_heads=3,
        num_classes=0,
        **options,
    )
    return fill_randomly(trunk.eval())


TRUNKS: dict[str, Callable[[], Any]] = {"vitamin": vitamin_trunk, "mobileclip": mobileclip_trunk}


@torch.no_grad()
@pytest.mark.parametrize("name", TRUNKS)
def test_the_adapter_equals_timm(name):
    trunk = TRUNKS[name]()
    images = tiny_images(2, size=(64, 64))
    encoder = from_timm(trunk)
    assert encoder.spec.patch_size == (16, 16)
    assert encoder.spec.norm2_pre == (name == "vitamin")
    wanted = trunk(images)
    assert (encoder(images) - wanted).abs().max() < 1e-5 * wanted.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", TRUNKS)
def test_every_weight_of_the_stem_counts(name):
    """A statistic or parameter that the adapter forgot would not move the embedding."""
    trunk = TRUNKS[name]()
    images = tiny_images(1, size=(64, 64))
    before = from_timm(trunk)(images)
    for part in [*trunk.patch_embed.parameters(), *trunk.patch_embed.buffers()]:
        if not part.is_floating_point():
            continue
        kept = part.clone()
        part.mul_(1.5)
        assert not torch.allclose(from_timm(trunk)(images), before, rtol=0, atol=1e-7)
        part.copy_(kept)


@pytest.mark.parametrize(
    ("build", "feature"),
    [
        (lambda: mobileclip_trunk(layers.GroupNorm1), "GroupNorm1"),
        (lambda: trunk_with(nn.MaxPool2d(16)), "MaxPool2d"),
        (lambda: trunk_with(nn.BatchNorm2d(3)), "behind no convolution"),
        (lambda: trunk_with(nn.Conv2d(3, 48, 8, 16, dilation=2)), "dilated"),
        (lambda: trunk_with(nn.Conv2d(3, 48, (16, 8), 16)), "window"),
        (lambda: trunk_with(nn.AvgPool2d(16, padding=4)), "padding"),
    ],
)
def test_other_stems_are_refused_by_name(build, feature):
    with pytest.raises(UnsupportedEncoderError, match=feature):
        from_timm(build())


def trunk_with(module):
    trunk = mobileclip_trunk()
    trunk.patch_embed.backbone = nn.Sequential(module)
    return trunk


def test_the_catalogue_knows_them():
    entry = describe("ViTamin-S")
    assert entry.refusal is None
    assert not entry.fuses_int8_attention


@torch.no_grad()
@pytest.mark.parametrize("name", TRUNKS)
def test_multiplications_are_those_of_the_modules(name):
    trunk, counted = TRUNKS[name](), []

    def count(module, inputs, output):
        counted.append(output[0].numel() * module.weight[0].numel())

    for module in trunk.patch_embed.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    trunk(tiny_images(1, size=(64, 64)))
    assert from_timm(trunk).spec.embedding_multiplications == sum(counted)


def test_the_reference_activation_is_torch_own():
    x = torch.randn(3, 10, dtype=torch.float64) * 50
    assert np.allclose(activation("geglu", x.numpy()), geglu(x).numpy(), atol=1e-12)


def test_description_and_weights_survive_the_files(tmp_path):
    encoder = stemmed()
    found = EncoderSpec.from_json(json.loads(json.dumps(encoder.spec.to_json())))
    assert found == encoder.spec
    write_encoder(tmp_path / "e.safetensors", EncoderFile(encoder, PREPROCESS, "random"))
    assert same(read_encoder(tmp_path / "e.safetensors").encoder, encoder)
    plan = plan_of(naive_calibration(encoder))
    plan.save(tmp_path)
    loaded = Plan.load(tmp_path)
    assert serialize(build_model(loaded)) == serialize(build_model(plan))


def same(one, other):
    names = one.weights.keys() | other.weights.keys()
    return all(torch.equal(one.weights[n], other.weights[n]) for n in names)


def test_an_encoder_without_a_stem_is_described_as_before():
    assert tiny_encoder().spec.to_json().keys().isdisjoint({"stem", "norm2_pre"})


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        ("conv", "must be a list"),
        ([1], "must be an object"),
        ([{"kind": "conv", "channels": "48"}], "no integer"),
        ([{"kind": "flatten"}], "not known there"),
        ([{"kind": ["conv"]}], "no string"),
        ([{}], "lacks the field 'kind'"),
        ([{"kind": "gelu", "size": 3}], "unknown field 'size'"),
        ([{"kind": "gelu"}], "does not begin with a convolution"),
        ([{"kind": "conv", "channels": 48, "kernel": 8}], r"expected \(48, 4, 3\)"),
        ([{"kind": "conv", "channels": 48, "kernel": 99}], "makes no map"),
        ([{"kind": "conv", "channels": 48, "stride": 0}], "makes no sense"),
        ([{"kind": "conv", "channels": 48, "kernel": 1 << 40}], "makes no sense"),
        ([{"kind": "conv", "channels": 48, "padding": 1}], "makes no map"),
        ([{"kind": "conv", "channels": 8}, {"kind": "conv", "channels": 9, "groups": 2}], "groups"),
        ([{"kind": "conv", "channels": 8}] * 300, "at most"),
        (
            [
                {"kind": "conv", "channels": 8},
                {"kind": "residual", "body": [{"kind": "conv", "channels": 9}]},
            ],
            "adds maps",
        ),
        (
            [{"kind": "residual", "body": [{"kind": "residual"}]}],
            "'residual', which is not known there",
        ),
        ([{"kind": "residual", "body": [{"kind": "gelu", "body": []}]}], "inside a branch"),
    ],
)
def test_a_damaged_description_is_named(steps, complaint):
    data = tiny_encoder().spec.to_json() | {"stem": steps}
    with pytest.raises(BundleError, match=complaint):
        EncoderSpec.from_json(json.loads(json.dumps(data)))


def test_no_graph_of_a_stem_that_does_not_fit():
    plan = plan_of(float_calibration(stemmed()))
    shorter = replace(plan.encoder, patch_size=(4, 4))
    with pytest.raises(ModelError, match="a stem that ends in"):
        build_model(replace(plan, encoder=shorter))


@torch.no_grad()
def test_the_numpy_reference_is_torch_own():
    encoder = stemmed()
    weights = {name: value.double().numpy() for name, value in encoder.weights.items()}
    images = tiny_images(2)
    want = Encoder(encoder.spec, {n: w.double() for n, w in encoder.weights.items()}).embed(
        images.double()
    )
    maps = run_stem(encoder.spec.stem, weights.__getitem__, images.double().numpy())
    tokens = maps.reshape(2, encoder.spec.width, -1).transpose(0, 2, 1) + weights["pos_embed"]
    assert np.allclose(tokens, want.numpy(), atol=1e-12)


def test_shapes_are_those_of_the_maps():
    found = {each.name: each.after for each in placed(CONVOLUTIONS, (3, 32, 24))}
    assert found["stem.0"] == (8, 16, 12)
    assert found["stem.3.body.1"] == (16, 8, 6)
    assert found["stem.3"] == found["stem.3.shortcut.1"] == found["stem.4"] == (24, 8, 6)
    assert found["stem.5"] == (48, 4, 3)


@torch.no_grad()
@pytest.mark.parametrize("regcache", [False, True])
@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_float_graph_equals_the_simulation(target, regcache, tmp_path):
    encoder = stemmed(layer_scale=True)
    calibration = float_calibration(encoder, tiny_regcache(encoder) if regcache else None)
    images = tiny_images(3)
    got = features(calibration, images.numpy(), tmp_path, GraphOptions(target=target))
    want = encoder(images, regcache=calibration.regcache).numpy()
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


@torch.no_grad()
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("padding", [0, 1])
def test_baked_preprocessing(layout, padding, tmp_path):
    """Zeros around the image stand for its mean color, not for black."""
    first = replace(CONVOLUTIONS[0], padding=padding, kernel=2 + padding)
    encoder = stemmed(stem=(first, *CONVOLUTIONS[1:]))
    calibration = float_calibration(encoder)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 24), dtype=np.uint8)
    mean, std = (np.full((3, 1, 1), value) for value in (0.5, 0.25))  # PREPROCESS
    normalized = torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32))
    given = pixels if layout == "nchw" else pixels.transpose(0, 2, 3, 1)
    got = features(calibration, given, tmp_path, GraphOptions(pixels=layout))
    want = encoder(normalized).numpy()
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


@torch.no_grad()
def test_the_folds_leave_the_function():
    encoder, images = stemmed(layer_scale=True), tiny_images(4)
    tokens = encoder.embed(images)
    folded = fold_encoder(encoder, (*CALIBRATION_FOLDS, "value-balance"), tokens)
    want = encoder(images)
    assert (folded(images) - want).abs().max() < 1e-5 * want.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("treatment", [Treatment(), Treatment(ROLES, 4)], ids=["plain", "treated"])
@pytest.mark.parametrize("name", sorted(BASELINES))
def test_codes_of_every_baseline_are_those_of_the_simulation(name, treatment):
    encoder = stemmed()
    baseline = make_baseline(name)
    baseline.treatment = treatment
    tokens = encoder.embed(tiny_images(8, seed=3))
    calibration = baseline.calibrate(encoder, tokens, regcache=tiny_regcache(encoder))
    assert_certified(calibration, GraphOptions(target="onnx", pixels="nhwc"))


@torch.no_grad()
def test_codes_with_merged_tokens():
    encoder = stemmed().merging(Merge((2, 2, 0)))
    calibration = make_baseline("naive").calibrate(encoder, encoder.embed(tiny_images(8, seed=3)))
    assert plan_of(calibration).merge == encoder.merge
    assert_certified(calibration, GraphOptions(target="onnxruntime"))


@torch.no_grad()
def test_tensorrt_takes_the_stem_and_refuses_the_gate():
    plain = stemmed(activation="gelu")
    calibration = for_tensorrt(naive_calibration(plain), plain.embed(tiny_images(4)))
    options = GraphOptions(target="tensorrt", pixels="nhwc")
    build_model(plan_of(calibration), options=options)  # checks its rules
    assert_certified(calibration, replace(options, body="float32"))
    gated = naive_calibration(stemmed())
    changed = for_tensorrt(gated, gated.encoder.embed(tiny_images(4)))
    with pytest.raises(UnsupportedEncoderError, match="geglu"):
        build_model(plan_of(changed), options=options)


@torch.no_grad()
@pytest.mark.needs_trt
def test_tensorrt_rtx_builds_a_stem_in_front_of_int8(tmp_path):
    require_rtx()
    stem = (*CONVOLUTIONS[:-1], StemStep("conv", channels=128, kernel=2, stride=2))
    plain = stemmed(activation="gelu", stem=stem, width=128, heads=2, mlp_width=256)
    calibration = for_tensorrt(naive_calibration(plain), plain.embed(tiny_images(4)))
    options = GraphOptions(target="tensorrt", pixels="nhwc")
    model = build_model(plan_of(calibration), options=options)
    promise = check_tensorrt(model).promise
    built = EngineBuilder("tensorrt_rtx").build(serialize(model), tmp_path, promise=promise)
    assert built.sidecar.layers["int8_mha"] == plain.spec.depth
    assert built.sidecar.layers["conv"] > 0


def assert_certified(calibration, options):
    plan = plan_of(calibration)
    model = build_model(plan, options=options)
    offsets = graph_offsets(plan, model)
    subject = Subject(
        model, plan.encoder, plan.regcache, options, offsets, PREPROCESS, merge=plan.merge
    )
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 24, 3), dtype=np.uint8)
    for simulator in (None, TorchSimulator(calibration)):
        evidence = collect(subject, pixels, simulator)
        assert first_divergence(list(evidence.comparison.counts.values())) is None


def plan_of(calibration):
    config = calibration.regcache.config if calibration.regcache else None
    return make_plan(calibration, regcache_config=config, preprocess=PREPROCESS)


def features(calibration, inputs, folder, options):
    path = folder / "model.onnx"
    path.write_bytes(serialize(build_model(plan_of(calibration), options=options)))
    with OnnxRuntimeEngine(path, threads=1) as engine:
        return engine.infer(inputs)
