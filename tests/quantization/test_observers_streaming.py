"""Calibration in constant memory, and what it does with awkward data."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from regcache_deploy.errors import ConfigError, DataError
from regcache_deploy.quantization.baselines import BASELINES, Form, make_baseline
from regcache_deploy.quantization.baselines.naive import Naive
from regcache_deploy.quantization.histogram import OBSERVERS, Histogram, Observer
from regcache_deploy.quantization.quantizers import Bits, Uniform
from regcache_deploy.quantization.streaming import (
    calibrate_stream,
    recalibrate_stream,
    stream_limits,
)
from tests.tiny_plans import tiny_encoder, tiny_images, tiny_regcache


def scale(quantizer: object) -> float:
    assert isinstance(quantizer, Uniform)
    return float(quantizer.scale)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_the_stream_is_naive_in_parts(observer: Observer) -> None:
    encoder = tiny_encoder()
    regcache = tiny_regcache(encoder)
    tokens = encoder.embed(tiny_images(12))
    naive = Naive(observer=observer)
    whole = naive.calibrate(encoder, tokens, regcache=regcache).quantization
    parts = calibrate_stream(
        encoder, lambda: tokens.split(5), observer=observer, regcache=regcache
    ).quantization
    assert parts.linears.keys() == whole.linears.keys()
    # float sums of another order move a value across a bin's edge now and then
    near = 1e-6 if observer == "minmax" else 2 / 64
    for name, layer in parts.linears.items():
        assert scale(layer.input) == pytest.approx(scale(whole.linears[name].input), rel=near)


def test_a_calibration_is_measured_again() -> None:
    """Other images, other observer; weights, RegCache and float layers stay."""
    encoder = tiny_encoder()
    regcache = tiny_regcache(encoder)
    naive = Naive(Bits(6, 4))
    naive.keep_float = frozenset({"blocks.1.mlp.fc2"})
    first = naive.calibrate(encoder, encoder.embed(tiny_images(4)), regcache=regcache)
    more = encoder.embed(tiny_images(12, seed=9))
    again, found = recalibrate_stream(first, lambda: more.split(5), "mse")
    assert found.images == 12
    assert again.quantization.linears.keys() == first.quantization.linears.keys()
    expected = Naive(Bits(6, 4), observer="mse").calibrate(encoder, more, regcache=regcache)
    for name, layer in again.quantization.linears.items():
        assert layer.weight is first.quantization.linears[name].weight
        wanted = expected.quantization.linears[name].input
        assert scale(layer.input) == pytest.approx(scale(wanted), rel=2 / 64)
    assert again.regcache is first.regcache
    repq = make_baseline("repqvit").calibrate(encoder, more)
    with pytest.raises(ConfigError, match="zero point"):
        recalibrate_stream(repq, lambda: [more])


@pytest.mark.parametrize("observer", OBSERVERS)
def test_the_observers_hold_the_same_bytes_for_any_number_of_images(observer: Observer) -> None:
    encoder = tiny_encoder()
    widths = dict.fromkeys(encoder.spec.linears(), 8)
    held = [
        stream_limits(
            encoder,
            lambda n=n: (encoder.embed(tiny_images(2, seed=i)) for i in range(n)),  # type: ignore[misc]
            widths,
            observer,
        ).state_bytes
        for n in (1, 40)
    ]
    assert held[0] == held[1] == 12 * (16 if observer == "minmax" else 16 + 4096 * 8)


def test_a_second_pass_over_other_images_is_noticed() -> None:
    encoder = tiny_encoder()
    tokens = encoder.embed(tiny_images(4))
    passes = iter([[tokens], [tokens[:3]]])
    with pytest.raises(DataError, match="second pass"):
        calibrate_stream(encoder, lambda: next(passes), observer="mse")


def test_a_range_that_overflows_names_the_layer() -> None:
    """Finite values whose range is no float32 number."""
    encoder = tiny_encoder()
    bias = encoder.weights["blocks.1.attn.qkv.bias"].clone()
    bias[96:120], bias[120:] = 3e38, -3e38
    encoder = encoder.replace({"blocks.1.attn.qkv.bias": bias})
    baseline = make_baseline("repqvit")
    baseline.folds = ()
    with pytest.raises(DataError, match=r"blocks\.1\.attn\.out_proj does not fit float32"):
        baseline.calibrate(encoder, encoder.embed(tiny_images(2)))


@pytest.mark.parametrize("observer", OBSERVERS)
def test_memory_does_not_grow_with_the_images(observer: Observer) -> None:
    """At most two batches are alive at a time, and the histograms keep their size."""
    encoder, passes = tiny_encoder(), []

    def run(count: int) -> int:
        alive: list[weakref.ref[Tensor]] = []
        most = 0

        def batches() -> Iterator[Tensor]:
            nonlocal most
            passes.append(count)
            for start in range(count):
                tokens = encoder.embed(tiny_images(2, seed=start))
                alive.append(weakref.ref(tokens))
                gc.collect(0)
                most = max(most, sum(ref() is not None for ref in alive))
                yield tokens
                del tokens

        calibrate_stream(encoder, batches, observer=observer)
        return most

    assert run(2) == run(16) <= 2
    assert passes == ([2, 16] if observer == "minmax" else [2, 2, 16, 16])


def test_histogram_percentile_and_error_against_the_sorted_values() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    x[0] = 30.0
    histogram = Histogram(float(x.abs().max()))
    before = histogram.counts.numel()
    for part in x.split(7_000):
        histogram.update(part)
    assert histogram.counts.numel() == before
    assert int(histogram.counts.sum()) == len(x)
    for fraction in (0.5, 0.99, 0.9999):
        exact = float(torch.quantile(x.abs(), fraction))
        assert histogram.percentile(fraction) == pytest.approx(exact, abs=2 * 30 / 4096 + 0.2 * 0.1)
    limit = histogram.least_error(8)

    def error(at: float) -> float:
        return float((Uniform.symmetric(torch.tensor(at), 8)(x) - x).square().sum())

    assert limit < 30
    best = min(error(30.0 * step / 64) for step in range(1, 65))
    assert error(limit) <= 1.02 * best


def test_clipping_observers_cut_an_outlier() -> None:
    encoder = tiny_encoder()
    weights = {name: w.clone() for name, w in encoder.weights.items()}
    weights["blocks.1.mlp.fc1.weight"][3] *= 40
    encoder = encoder.replace(weights)
    tokens = encoder.embed(tiny_images(12))
    scales = {
        observer: scale(
            calibrate_stream(encoder, lambda: tokens.split(4), observer=observer)
            .quantization.linears["blocks.1.mlp.fc2"]
            .input
        )
        for observer in OBSERVERS
    }
    assert scales["percentile"] < scales["minmax"]
    assert scales["mse"] <= scales["minmax"]
    narrow = calibrate_stream(encoder, lambda: tokens.split(4), Bits(8, 4), "mse")
    minmax = calibrate_stream(encoder, lambda: tokens.split(4), Bits(8, 4))
    name = "blocks.1.mlp.fc2"
    assert scale(narrow.quantization.linears[name].input) < scale(
        minmax.quantization.linears[name].input
    )


# ---- awkward data -------------------------------------------------------------------------------


def test_no_images_and_unknown_observer() -> None:
    encoder = tiny_encoder()
    with pytest.raises(DataError, match="at least one image"):
        calibrate_stream(encoder, list)
    with pytest.raises(ConfigError, match="minmax, percentile, mse"):
        calibrate_stream(encoder, list, observer="median")  # type: ignore[arg-type]


@pytest.mark.parametrize("observer", OBSERVERS)
def test_nan_names_the_layer(observer: Observer) -> None:
    encoder = tiny_encoder()
    tokens = encoder.embed(tiny_images(2))
    tokens[1, 3, 5] = torch.nan
    with pytest.raises(DataError, match=r"blocks\.0\.attn\.qkv"):
        calibrate_stream(encoder, lambda: [tokens], observer=observer)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_constant_activation_gets_a_floor_and_a_warning(observer: Observer) -> None:
    encoder = tiny_encoder()
    silent = {f"blocks.1.norm2.{part}": torch.zeros(48) for part in ("weight", "bias")}
    encoder = encoder.replace(silent)
    tokens = encoder.embed(tiny_images(4))
    calibration = calibrate_stream(encoder, lambda: [tokens], observer=observer)
    assert "blocks.1.mlp.fc1 is zero" in calibration.warnings[0]
    assert scale(calibration.quantization.linears["blocks.1.mlp.fc1"].input) > 0
    assert torch.isfinite(encoder.pool(tokens)).all()


def test_a_weight_column_of_zeros_stays_zero() -> None:
    """Per output channel a row of zeros has no range: the floor keeps it from becoming NaN."""
    encoder = tiny_encoder()
    weights = {name: w.clone() for name, w in encoder.weights.items()}
    weights["blocks.1.mlp.fc1.weight"][5] = 0
    weights["blocks.1.mlp.fc2.weight"][:, 7] = 0
    encoder = encoder.replace(weights)
    tokens = encoder.embed(tiny_images(4))
    for name in ("naive", "repqvit", "ptq4vit"):
        calibration = make_baseline(name).fast().calibrate(encoder, tokens)
        features = calibration.encoder(tiny_images(2), calibration.numerics())
        assert torch.isfinite(features).all()
        row = calibration.encoder.weights["blocks.1.mlp.fc1.weight"]
        quantizer = calibration.quantization.linears["blocks.1.mlp.fc1"].weight
        assert not quantizer(row)[5].any()


@pytest.mark.parametrize("form", ["deploy", "paper"])
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_names_the_layer_of_a_nan(name: str, form: Form) -> None:
    encoder = tiny_encoder()
    weight = encoder.weights["blocks.1.norm2.bias"].clone()
    weight[3] = torch.nan
    encoder = encoder.replace({"blocks.1.norm2.bias": weight})
    with pytest.raises(DataError, match=r"blocks\.1\.mlp\.fc1 holds NaN"):
        make_baseline(name, form=form).fast().calibrate(encoder, encoder.embed(tiny_images(2)))
