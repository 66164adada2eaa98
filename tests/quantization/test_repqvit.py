"""RepQ-ViT: the folds inside a calibration, the published quantizers, the sequential order."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.regcache import RegCache
from regcache_deploy.quantization.baselines import Form, make_baseline
from regcache_deploy.quantization.nonuniform import LogSqrt2
from regcache_deploy.quantization.observers import affine, percentile_range
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.quantizers import Bits, Uniform
from regcache_deploy.quantization.simulate import Calibration
from tests.quantization.baseline_helpers import FORMS, numbers, relative_error
from tests.tiny_plans import tame_encoder, tiny_images, tiny_regcache

pytestmark = pytest.mark.usefixtures("one_thread")


def calibrate(
    form: Form,
    bits: Bits | None = None,
    regcache: RegCache | None = None,
    encoder: Encoder | None = None,
) -> Calibration:
    """Without the folds that every baseline shares: this file is about the baseline's own."""
    encoder = encoder or tame_encoder()
    tokens = encoder.embed(tiny_images(48, seed=3))
    baseline = make_baseline("repqvit", bits, form)
    baseline.folds = ()
    return baseline.calibrate(encoder, tokens, regcache=regcache)


@FORMS
@pytest.mark.parametrize("prefix", [False, True])
def test_more_bits_are_better(form: Form, prefix: bool) -> None:
    regcache = tiny_regcache(tame_encoder()) if prefix else None
    errors = [relative_error(calibrate(form, Bits(b, b), regcache)) for b in (8, 6, 4)]
    assert all(less < more for less, more in pairwise(errors)), errors
    # log-sqrt2 keeps its relative error at any width, so only the deployed form gets small
    assert errors[0] < (0.05 if form == "deploy" else 0.1)


@FORMS
def test_folds_preserve_the_encoder_and_the_cached_keys_and_values(form: Form) -> None:
    encoder = tame_encoder()
    regcache = tiny_regcache(encoder)
    calibration = calibrate(form, regcache=regcache)
    folded, changed = calibration.encoder, calibration.regcache
    assert changed is not None
    images = tiny_images(6, seed=4)
    before = encoder(images, regcache=regcache)
    assert (folded(images, regcache=changed) - before).abs().max() < 1e-5 * before.abs().max()
    assert sorted(changed.register) == sorted(regcache.register)
    for block, register in regcache.register.items():
        assert not torch.allclose(changed.register[block], register)
        kept = folded.prefix_kv(block, changed.register[block])
        for got, expected in zip(kept, encoder.prefix_kv(block, register), strict=True):
            assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_deployed_codes_are_those_of_per_channel_asymmetric_quantization(bits: int) -> None:
    encoder = tame_encoder(depth=1)
    tokens = encoder.embed(tiny_images(48, seed=3))
    calibration = make_baseline("repqvit", Bits(bits, bits)).calibrate(encoder, tokens)
    x = encoder.norm("blocks.0.norm1", tokens)
    low, high = percentile_range(
        x.flatten(0, 1).T.contiguous(), lambda low, high: affine(low, high, bits)
    )
    expected = affine(low.squeeze(1), high.squeeze(1), bits).codes(x)
    quantizer = calibration.quantization.linears["blocks.0.attn.qkv"].input
    assert isinstance(quantizer, Uniform)
    codes = quantizer.codes(calibration.encoder.norm("blocks.0.norm1", tokens)) + 2 ** (bits - 1)
    # float32 LayerNorm before and after the fold may disagree on a tie
    assert (codes != expected).float().mean() < 1e-4


def test_paper_form_has_the_published_quantizers() -> None:
    calibration = calibrate("paper", Bits(6, 6))
    for name, layer in calibration.quantization.linears.items():
        assert isinstance(layer.input, Uniform)
        assert isinstance(layer.weight, Uniform)
        assert not layer.input.signed
        assert layer.input.scale.numel() == 1
        assert not layer.weight.signed
        assert layer.weight.zero_point.any()
        assert layer.weight.scale.shape == (len(calibration.encoder.weights[f"{name}.bias"]), 1)
    assert len(calibration.quantization.matmuls) == 6
    for name, (left, right) in calibration.quantization.matmuls.items():
        assert isinstance(left, LogSqrt2 if name.endswith("pv") else Uniform)
        assert isinstance(right, Uniform)
        assert not right.signed


def test_deploy_form_is_what_an_int8_runtime_has() -> None:
    encoder = tame_encoder()
    regcache = tiny_regcache(encoder)
    calibration = calibrate("deploy", regcache=regcache)
    assert not calibration.quantization.matmuls
    plan = make_plan(calibration, regcache_config=regcache.config)
    for name, layer in plan.linears.items():
        assert not layer.input.per_channel
        assert layer.weight.per_channel
        assert layer.weight.signed
        assert not layer.weight.zero_point.any()
        folded = name.endswith(("qkv", "fc1"))
        assert layer.input.signed == folded
        if folded:
            assert layer.input.zero_point.tolist() == [0]
        else:
            assert 0 <= layer.input.zero_point[0] <= 255


def with_outlier_channels(encoder: Encoder, factor: float) -> Encoder:
    """The same function, with three channels of every LayerNorm output enlarged."""
    changed = {}
    for block in range(encoder.spec.depth):
        for norm, linear in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
            scale = torch.ones(encoder.spec.width)
            scale[[3, 17, 30]] = factor
            for name in (f"blocks.{block}.{norm}.weight", f"blocks.{block}.{norm}.bias"):
                changed[name] = encoder.weights[name] * scale
            name = f"blocks.{block}.{linear}.weight"
            changed[name] = encoder.weights[name] / scale
    return encoder.replace(changed)


def test_planted_outlier_channels_do_no_harm() -> None:
    encoder = with_outlier_channels(tame_encoder(), 60.0)
    images = tiny_images(4)
    assert torch.allclose(encoder(images), tame_encoder()(images), rtol=1e-3, atol=1e-3)
    tokens = encoder.embed(tiny_images(48, seed=3))
    naive = make_baseline("naive").calibrate(encoder, tokens)
    repq = calibrate("deploy", encoder=encoder)
    assert relative_error(repq, encoder) < 0.1 * relative_error(naive, encoder)
    assert relative_error(repq, encoder) < 1.3 * relative_error(calibrate("deploy"))


def test_ranges_are_measured_behind_quantized_layers() -> None:
    """Only W and A of earlier layers differ, so the range of fc2's input can tell the order."""
    coarse = calibrate("deploy", Bits(2, 8)).quantization.linears
    fine = calibrate("deploy", Bits(8, 8)).quantization.linears
    for name in ("blocks.0.attn.out_proj", "blocks.1.mlp.fc2"):
        a, b = coarse[name].input, fine[name].input
        assert isinstance(a, Uniform)
        assert isinstance(b, Uniform)
        assert a.scale != b.scale


def test_a_later_start_on_quantized_tokens_gives_the_same_result() -> None:
    encoder = tame_encoder()
    tokens = encoder.embed(tiny_images(48, seed=3))
    baseline = make_baseline("repqvit")
    assert baseline.sequential
    whole = baseline.calibrate(encoder, tokens)
    later = whole.encoder.run_blocks(tokens, stop=2, numerics=whole.numerics())
    part = baseline.calibrate(encoder, later, 2)
    for name, layer in part.quantization.linears.items():
        same = whole.quantization.linears[name]
        for got, expected in ((layer.input, same.input), (layer.weight, same.weight)):
            assert isinstance(got, Uniform)
            assert isinstance(expected, Uniform)
            assert torch.allclose(got.scale, expected.scale, rtol=1e-3)


@FORMS
def test_calibration_can_be_repeated(form: Form) -> None:
    first, second = numbers(calibrate(form)), numbers(calibrate(form))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.set_num_threads(2)
    threaded = numbers(calibrate(form))
    assert all(torch.equal(a, b) for a, b in zip(first, threaded, strict=True))


@FORMS
def test_constant_channels_and_dead_layers_warn_and_stay_finite(form: Form) -> None:
    encoder = tame_encoder(depth=2)
    changed = {name: encoder.weights[name].clone() for name in encoder.weights}
    changed["blocks.0.norm1.weight"][5:8] = 0
    changed["blocks.1.norm2.weight"][:] = 0
    changed["blocks.0.mlp.fc1.weight"][:] = 0
    changed["blocks.0.mlp.fc1.bias"][:] = 0
    calibration = calibrate(form, encoder=encoder.replace(changed))
    text = "\n".join(calibration.warnings)
    assert "the input of blocks.0.attn.qkv is constant in 3 channels" in text
    assert f"the input of blocks.1.mlp.fc1 is constant in {encoder.spec.width} channels" in text
    assert "the input of blocks.0.mlp.fc2 is zero on every calibration image" in text
    calibration.encoder.check_finite()
    assert relative_error(calibration) < (0.05 if form == "deploy" else 0.1)
    assert relative_error(calibration, encoder.replace(changed)) < 0.1


def test_a_linear_in_float_is_float_for_the_layers_behind_it() -> None:
    """Sequential: their ranges must not come from a product that no graph computes."""
    encoder = tame_encoder()
    tokens = encoder.embed(tiny_images(6))
    baseline = make_baseline("repqvit", Bits(3, 3))
    baseline.folds = ()
    last = {n for n in encoder.spec.linears() if n.startswith("blocks.2.")}
    baseline.keep_float = frozenset(set(encoder.spec.linears()) - last)
    mixed = baseline.calibrate(encoder, tokens)
    alone = make_baseline("repqvit", Bits(3, 3))
    alone.folds = ()
    expected = alone.calibrate(encoder, encoder.run_blocks(tokens, stop=2), start=2)
    assert mixed.quantization.linears.keys() == last
    for name in last:
        found, wanted = (c.quantization.linears[name].input for c in (mixed, expected))
        torch.testing.assert_close(found.scale, wanted.scale)  # type: ignore[attr-defined]
