"""Quantizers against direct formulas, ranges against brute force, folds against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regcache_deploy.encoders.canonical import ACTIVATIONS
from regcache_deploy.quantization.nonuniform import (
    ACTIVATION_MINIMUM,
    LogSqrt2,
    TwinGelu,
    TwinSoftmax,
)
from regcache_deploy.quantization.observers import (
    PERCENTILES,
    affine,
    percentile_log_sqrt2,
    percentile_range,
    squared_error,
    upper_quantiles,
)
from regcache_deploy.quantization.quantizers import Uniform, symmetric_weight
from regcache_deploy.quantization.reparametrize import reparametrize
from tests.tiny_plans import seeded

BITS = pytest.mark.parametrize("bits", [4, 6, 8])


pytestmark = pytest.mark.usefixtures("one_thread")


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    """The closest level to every element: what rounding and clipping must amount to."""
    return levels[(x.unsqueeze(-1) - levels).abs().argmin(-1)]


# --- uniform


@BITS
def test_symmetric_rounds_to_the_nearest_of_its_levels(bits: int) -> None:
    x = seeded(500)
    quantizer = Uniform.symmetric(x.abs().max() * 0.7, bits)
    codes = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    assert torch.equal(quantizer(x), nearest(x, codes * quantizer.scale.double()))


@BITS
@pytest.mark.parametrize(("low", "high"), [(-0.3, 1.9), (0.4, 2.0), (-3.0, -1.0)])
def test_asymmetric_holds_zero_and_its_zero_point_is_a_code(
    bits: int, low: float, high: float
) -> None:
    quantizer = Uniform.asymmetric(torch.tensor(low), torch.tensor(high), bits)
    assert 0 <= int(quantizer.zero_point) <= 2**bits - 1
    assert quantizer(torch.zeros(1)).item() == 0
    x = torch.linspace(low, high, 300, dtype=torch.float64)
    levels = (torch.arange(2**bits) - quantizer.zero_point) * quantizer.scale.double()
    # not the same level where two are equally near: rounding is before the zero point is added
    assert ((quantizer(x) - x).abs() - (nearest(x, levels) - x).abs()).abs().max() < 1e-6


@BITS
def test_weights_have_one_symmetric_scale_per_output_channel(bits: int) -> None:
    weight = seeded(5, 40) * torch.tensor([[1.0], [10], [0.1], [3], [0]])
    quantizer = symmetric_weight(weight, bits)
    assert quantizer.scale.shape == (5, 1)
    assert not quantizer.zero_point.any()
    worst = (quantizer(weight) - weight).abs().amax(1, keepdim=True)
    assert (worst <= quantizer.scale / 2 * (1 + 1e-6)).all()
    assert not quantizer(weight)[4].any()


# --- twin uniform, log-sqrt2


@BITS
@pytest.mark.parametrize("exponent", [0, 3, 9])
def test_twin_softmax_selects_its_range_by_value(bits: int, exponent: int) -> None:
    split, half = 2.0**-exponent, 2 ** (bits - 1)
    quantizer = TwinSoftmax(split, bits)
    x = torch.cat([torch.rand(400, dtype=torch.float64) ** 4, torch.tensor([0.0, 1.0, split])])
    large = torch.arange(half, dtype=torch.float64) / half
    expected = torch.where(x < split, nearest(x, large * split), nearest(x, large))
    # equally near levels may go either way
    assert ((quantizer(x) - x).abs() - (expected - x).abs()).abs().max() < 1e-15
    codes = quantizer.codes(x)
    assert codes.min() >= 0
    assert codes.max() <= 2**bits - 1
    assert torch.equal(codes >= half, x >= split)
    # one range bit, and steps that differ by a shift
    steps = quantizer.decode(torch.tensor([1.0, half + 1.0], dtype=torch.float64))
    assert steps[1] / steps[0] == 2.0**exponent


@pytest.mark.parametrize("name", sorted(ACTIVATION_MINIMUM))
def test_activation_minimum(name: str) -> None:
    x = torch.linspace(-1.0, -0.5, 500_001, dtype=torch.float64)
    found = ACTIVATIONS[name](x).min().item()
    assert ACTIVATION_MINIMUM[name] == pytest.approx(found, abs=1e-12)  # type: ignore[index]


@BITS
def test_twin_gelu_has_a_fixed_negative_and_a_free_positive_side(bits: int) -> None:
    half, minimum = 2 ** (bits - 1), ACTIVATION_MINIMUM["quick_gelu"]
    quantizer = TwinGelu(torch.tensor(0.05, dtype=torch.float64), minimum, bits)
    x = ACTIVATIONS["quick_gelu"](seeded(500) * 3)
    negative = torch.arange(-half, 1, dtype=torch.float64) * (-minimum / half)
    positive = torch.arange(half) * quantizer.scale
    expected = torch.where(x < 0, nearest(x, negative), nearest(x, positive))
    assert (quantizer(x) - expected).abs().max() < 1e-12
    codes = quantizer.codes(x)
    assert codes.min() >= -half
    assert codes.max() <= half - 1
    lowest = quantizer(torch.tensor([minimum], dtype=torch.float64))
    assert lowest.item() == pytest.approx(minimum)


@BITS
def test_log_sqrt2_levels(bits: int) -> None:
    quantizer = LogSqrt2(torch.tensor(0.8, dtype=torch.float64), bits)
    codes = torch.arange(2**bits, dtype=torch.float64)
    direct = 0.8 * 2.0 ** (-codes / 2)
    assert (quantizer.decode(codes) / direct - 1).abs().max() < 1e-12
    assert torch.equal(quantizer.codes(direct), codes)
    x = torch.rand(500, dtype=torch.float64).clamp_min(2.0**-7)
    if bits > 4:
        assert torch.equal(quantizer.codes(x), torch.round(-2 * torch.log2(x / 0.8)).clamp_min(0))
    tiny = torch.tensor([0.0, 0.8 * 2.0 ** (-(2**bits) / 2)], dtype=torch.float64)
    assert not quantizer(tiny).any()
    assert quantizer(torch.tensor([1.0])).item() == pytest.approx(0.8)


# --- ranges


@pytest.mark.parametrize("count", [2, 7, 1000, 30_011])
def test_tail_quantiles_are_exact(count: int) -> None:
    x = seeded(3, count)
    expected = torch.stack([torch.quantile(x, p, dim=1) for p in PERCENTILES])
    assert torch.allclose(upper_quantiles(x), expected, rtol=1e-14)
    expected = torch.stack([torch.quantile(x, 1 - p, dim=1) for p in PERCENTILES])
    assert torch.allclose(-upper_quantiles(-x), expected, rtol=1e-12)


def test_quantiles_of_more_elements_than_torch_quantile_takes() -> None:
    count = 2**24 + 9
    x = torch.arange(count, dtype=torch.float32).view(1, -1).flip(1)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x, 0.999)
    expected = torch.tensor([[p * (count - 1)] for p in PERCENTILES])
    assert torch.allclose(upper_quantiles(x), expected, atol=2)


@BITS
def test_percentile_range_is_the_best_of_three(bits: int) -> None:
    x = torch.cat([seeded(4, 20_000), torch.tensor([[0.0], [5], [50], [5000]])], dim=1)
    low, high = percentile_range(x, lambda low, high: affine(low, high, bits))
    for row in range(4):
        errors = []
        for p in PERCENTILES:
            ends = torch.quantile(x[row], torch.tensor([1 - p, p], dtype=torch.float64))
            scale = (ends[1] - ends[0]) / (2**bits - 1)
            zero = torch.round(-ends[0] / scale)
            code = torch.clamp(torch.round(x[row] / scale) + zero, 0, 2**bits - 1)
            errors.append((((code - zero) * scale - x[row]).square().sum().item(), ends))
        best = min(errors, key=lambda pair: pair[0])[1]
        assert torch.allclose(torch.stack([low[row, 0], high[row, 0]]), best, rtol=1e-9)


def test_range_is_scored_the_same_in_one_piece_and_in_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = seeded(3, 5000)
    quantizer = affine(x.amin(1, keepdim=True), x.amax(1, keepdim=True), 4)
    whole = squared_error(x, quantizer)
    monkeypatch.setattr("regcache_deploy.quantization.observers.CHUNK", 1000)
    assert torch.allclose(squared_error(x, quantizer), whole, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0])
def test_constant_tensors_do_not_give_nan(value: float) -> None:
    x = torch.full((2, 300), value)
    low, high = percentile_range(x, lambda low, high: affine(low, high, 8))
    assert torch.isfinite(affine(low, high, 8)(x)).all()
    widened = Uniform.asymmetric(low, high, 8)
    assert torch.allclose(widened(x), x, atol=1e-6)
    assert torch.isfinite(percentile_log_sqrt2(x.abs(), 8)(x.abs())).all()


# --- folds


def channels(count: int = 300, width: int = 24) -> Tensor:
    """Channels of very different range and offset, as a LayerNorm with outliers gives them."""
    spread = torch.logspace(-2, 2, width, dtype=torch.float64)
    return seeded(count, width) * spread + seeded(width, seed=5) * 3


@BITS
def test_centred_fold_keeps_the_codes_of_per_channel_asymmetric_quantization(bits: int) -> None:
    x = channels()
    low, high = x.amin(0), x.amax(0)
    per_channel = affine(low, high, bits)
    result = reparametrize(low, high, bits, centred=True)
    assert result.quantizer.scale.shape == ()
    assert result.quantizer.zero_point.item() == 0
    folded = result.quantizer.codes(result.fold.apply(x)) + 2 ** (bits - 1)
    # the per-tensor scale is float32, so an exact tie may round the other way; here none is
    assert torch.equal(folded, per_channel.codes(x))
    assert folded.min() == 0
    assert folded.max() == 2**bits - 1


@pytest.mark.parametrize("centred", [True, False])
def test_fold_preserves_the_function_and_the_cached_register(centred: bool) -> None:
    x = channels()
    weight, bias = seeded(36, 24, seed=1), seeded(36, seed=2)
    gamma, beta = 1 + seeded(24, seed=3), seeded(24, seed=4)
    x = x - x.mean(1, keepdim=True)
    normal = x * gamma + beta
    result = reparametrize(normal.amin(0), normal.amax(0), 8, centred)
    new_gamma, new_beta = gamma / result.fold.ratio, result.fold.apply(beta)
    new_weight, new_bias = result.fold.linear(weight, bias)
    before = normal @ weight.T + bias
    after = (x * new_gamma + new_beta) @ new_weight.T + new_bias
    assert ((after - before).abs().max() / before.abs().max()).item() < 1e-12
    register = normal[:7].mean(0)
    kept = result.fold.apply(register) @ new_weight.T + new_bias
    assert torch.allclose(kept, register @ weight.T + bias, rtol=1e-12, atol=1e-12)


def test_published_fold_takes_the_mean_zero_point() -> None:
    x = channels()
    per_channel = affine(x.amin(0), x.amax(0), 8)
    quantizer = reparametrize(x.amin(0), x.amax(0), 8, centred=False).quantizer
    assert quantizer.zero_point.item() == pytest.approx(per_channel.zero_point.mean().item())
    assert quantizer.scale.item() == pytest.approx(per_channel.scale.mean().item())
    assert not quantizer.signed


@pytest.mark.parametrize("values", [[0.0] * 24, [7.25] + [None] * 23, [-3.0] * 24])
@pytest.mark.parametrize("centred", [True, False])
def test_constant_channels_move_into_the_bias(values: list[float | None], centred: bool) -> None:
    x = channels()
    for channel, value in enumerate(values):
        if value is not None:
            x[:, channel] = value
    result = reparametrize(x.amin(0), x.amax(0), 8, centred)
    assert result.constant.tolist() == [value is not None for value in values]
    weight, bias = result.fold.linear(seeded(36, 24, seed=1), seeded(36, seed=2))
    folded = result.fold.apply(x)
    quantized = result.quantizer(folded)
    constant = result.constant
    assert torch.allclose(quantized[:, constant], folded[:, constant], rtol=1e-6)
    got = quantized @ weight.T + bias
    expected = x @ seeded(36, 24, seed=1).T + seeded(36, seed=2)
    assert torch.isfinite(got).all()
    assert ((got - expected).norm() / expected.norm()).item() < 0.02
