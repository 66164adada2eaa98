"""Ranges are set with every absent token deleted, whatever the graph deletes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.regcache import RegCache, RegCacheConfig
from regcache_deploy.quantization.baselines import BASELINES, Form, make_baseline
from regcache_deploy.quantization.encoder_folds import VALUE_BALANCE
from regcache_deploy.quantization.simulate import Calibration
from regcache_deploy.quantization.streaming import calibrate_stream, recalibrate_stream
from regcache_deploy.quantization.tensorrt import for_tensorrt
from regcache_deploy.search.clipping import Clipped
from tests.quantization.baseline_helpers import FORMS, numbers
from tests.tiny_plans import CHOICE, tame_encoder, tiny_images, tiny_regcache

SATURATED = CHOICE.deleting(0, CHOICE.delete_count)
PREFIX_ONLY = CHOICE.deleting(0)


def cached(encoder: Encoder, config: RegCacheConfig) -> RegCache:
    return tiny_regcache(encoder, config)


def same(left: Calibration, right: Calibration) -> bool:
    """Quantizers, folded weights and register."""
    assert left.regcache is not None
    assert right.regcache is not None
    registers = [torch.stack(list(c.regcache.register.values())) for c in (left, right)]  # type: ignore[union-attr]
    pairs = zip(numbers(left), numbers(right), strict=True)
    return all(torch.equal(a, b) for a, b in pairs) and torch.equal(*registers)


@FORMS
@pytest.mark.parametrize("name", sorted(BASELINES))
def test_ranges_are_those_of_deletion_and_the_choice_stays(name: str, form: Form) -> None:
    encoder = tame_encoder()
    tokens = encoder.embed(tiny_images(6, seed=3))
    found = {}
    for config in (CHOICE, SATURATED, PREFIX_ONLY):
        baseline = make_baseline(name, form=form).fast()
        if form == "deploy":
            baseline.folds = (*baseline.folds, VALUE_BALANCE)
        found[config] = baseline.calibrate(encoder, tokens, regcache=cached(encoder, config))
    saturated = found[SATURATED]
    assert saturated.regcache is not None
    assert saturated.regcache.config == SATURATED
    assert same(saturated, found[CHOICE])
    assert not same(saturated, found[PREFIX_ONLY])


def test_clipping_on_top_keeps_it() -> None:
    encoder = tame_encoder()
    tokens = encoder.embed(tiny_images(6, seed=3))
    kept, deleted = (
        Clipped(make_baseline("naive")).calibrate(encoder, tokens, regcache=cached(encoder, config))
        for config in (SATURATED, CHOICE)
    )
    assert same(kept, deleted)


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_a_stream_sees_what_a_calibration_sees(observer: str) -> None:
    encoder, images = tame_encoder(), tiny_images(6, seed=3)

    def batches() -> Iterator[Tensor]:
        for part in images.split(4):
            yield encoder.embed(part)

    found = {
        config: calibrate_stream(
            encoder,
            batches,
            observer=observer,  # type: ignore[arg-type]
            regcache=cached(encoder, config),
        )
        for config in (CHOICE, SATURATED, PREFIX_ONLY)
    }
    assert same(found[SATURATED], found[CHOICE])
    assert not same(found[SATURATED], found[PREFIX_ONLY])
    again, _ = recalibrate_stream(found[SATURATED], batches, observer)  # type: ignore[arg-type]
    assert again.regcache is not None
    assert again.regcache.config == SATURATED
    assert same(again, found[CHOICE])


def test_attention_for_tensorrt_is_calibrated_without_the_absent_tokens() -> None:
    encoder = tame_encoder()
    tokens = encoder.embed(tiny_images(6, seed=3))
    kept, deleted = (
        for_tensorrt(
            make_baseline("repqvit").calibrate(encoder, tokens, regcache=cached(encoder, config)),
            tokens,
        )
        for config in (SATURATED, CHOICE)
    )
    assert kept.quantization.matmuls
    assert same(kept, deleted)
    assert kept.regcache is not None
    assert kept.regcache.config == SATURATED
