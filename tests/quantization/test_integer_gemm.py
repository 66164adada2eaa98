"""The INT8 product of codes: the same integers as in float, or the float product itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_deploy.quantization import integer_gemm
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.integer_gemm import ROWS, CodedWeight, coded_linear
from regcache_deploy.quantization.quantizers import Uniform, symmetric_weight
from regcache_deploy.quantization.simulate import SimulatedNumerics
from tests.search.search_helpers import DEPTH, encoder_and_images

needs_vnni = pytest.mark.skipif(
    not integer_gemm.has_exact_int8(), reason="this CPU has no exact INT8 product"
)


def reference(x: Tensor, quantizer: Uniform, weight: Tensor, by: Uniform, bias: Tensor) -> Tensor:
    """Over float integers, in float32."""
    product = F.linear(quantizer.integers(x), by.integers(weight))
    return product * (quantizer.scale * by.scale.flatten()) + bias


def drawn(tokens: int = ROWS + 37, width: int = 96) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens `[2, tokens, width]`, weight `[40, width]`, bias `[40]`."""
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(2, tokens, width, generator=generator) + 0.7
    return x, torch.randn(40, width, generator=generator), torch.randn(40, generator=generator)


QUANTIZERS = {
    "symmetric": lambda x: Uniform.symmetric(x.abs().max() * 0.8, 8),
    "asymmetric": lambda x: Uniform.asymmetric(x.min(), x.max(), 8),
    "one_sided": lambda x: Uniform.asymmetric(torch.zeros(()), x.max(), 8),
    "six_bits": lambda x: Uniform.asymmetric(x.min(), x.max(), 6),
    "signed_with_zero_point": lambda _: Uniform(
        torch.tensor(0.02), torch.tensor(-93.0), 8, signed=True
    ),
}


@needs_vnni
@pytest.mark.parametrize("name", QUANTIZERS)
def test_int8_product_equals_the_float_one_bit_for_bit(name: str) -> None:
    x, weight, bias = drawn()
    quantizer, by = QUANTIZERS[name](x), symmetric_weight(weight, 8)
    coded = CodedWeight.of(weight, by)
    assert coded.is_int8
    found = coded_linear(x, quantizer, coded, bias)
    assert found.shape == (2, ROWS + 37, 40)
    assert torch.equal(found, reference(x, quantizer, weight, by, bias))


@needs_vnni
def test_sums_beyond_float32_stay_exact() -> None:
    """Also with one scale for the whole weight."""
    width = 4099
    x, weight = torch.ones(3, width), torch.ones(2, width)
    weight[1, 0] = -1
    one = torch.tensor(1.0)
    quantizer = Uniform(one / 127, torch.zeros(()), 8, signed=True)
    by = Uniform(one.reshape(1, 1) / 127, torch.zeros(1, 1), 8, signed=True)
    coded = CodedWeight.of(weight, by)
    found = coded_linear(x, quantizer, coded, torch.zeros(2))
    exact = torch.tensor([width, width - 2]) * 127 * 127
    assert int(exact[0]) > 2**24
    assert torch.equal(found, (exact.float() * (quantizer.scale * by.scale.flatten())).expand(3, 2))


@pytest.mark.parametrize("place", [(0, 5, 3), (1, ROWS, 0)])
def test_nan_stays_nan_in_its_token(place: tuple[int, int, int]) -> None:
    x, weight, bias = drawn()
    quantizer, by = Uniform.symmetric(x.abs().max(), 8), symmetric_weight(weight, 8)
    x[place] = torch.nan
    found = coded_linear(x, quantizer, CodedWeight.of(weight, by), bias)
    assert found[place[:2]].isnan().all()
    assert int(found.isnan().any(dim=-1).sum()) == 1


def test_integers_that_int8_does_not_hold_stay_float() -> None:
    x, weight, bias = drawn()
    by = Uniform.asymmetric(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), 8)
    quantizer, coded = Uniform.symmetric(x.abs().max(), 8), CodedWeight.of(weight, by)
    assert not coded.is_int8
    assert torch.equal(
        coded_linear(x, quantizer, coded, bias), reference(x, quantizer, weight, by, bias)
    )


def test_zero_points_between_two_codes_stay_float() -> None:
    x, weight, bias = drawn()
    half = Uniform(torch.tensor(0.05), torch.tensor(31.5), 6, signed=False)
    by = symmetric_weight(weight, 6)
    coded = CodedWeight.of(weight, by)
    assert torch.equal(coded_linear(x, half, coded, bias), reference(x, half, weight, by, bias))
    shifted = Uniform(by.scale, by.zero_point + 0.25, 6, signed=True)
    assert not CodedWeight.of(weight, shifted).is_int8


def test_a_saturating_product_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(a: Tensor, b: Tensor) -> Tensor:
        pairs = a.double()[:, ::2] @ b.double()[::2] + a.double()[:, 1::2] @ b.double()[1::2]
        return pairs.clamp(-(2**15), 2**15 - 1).to(torch.int32)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    assert not integer_gemm.has_exact_int8.__wrapped__()


@needs_vnni
def test_every_quantized_linear_is_one_integer_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, images = encoder_and_images()
    with torch.no_grad():
        tokens = encoder.embed(images)
        calibration = make_baseline("naive").calibrate(encoder, tokens)
    products, original = list[int](), torch._int_mm

    def counted(a: Tensor, b: Tensor) -> Tensor:
        products.append(len(a))
        return original(a, b)

    monkeypatch.setattr(torch, "_int_mm", counted)
    numerics = SimulatedNumerics(calibration.quantization)
    with torch.no_grad():
        int8 = calibration.encoder.run_blocks(tokens, numerics=numerics)
    assert products == [len(images) * tokens.shape[1]] * 4 * DEPTH
    monkeypatch.setattr(integer_gemm, "has_exact_int8", lambda: False)
    with torch.no_grad():
        floats = calibration.encoder.run_blocks(tokens, numerics=calibration.numerics())
    assert len(products) == 4 * DEPTH
    assert torch.equal(int8, floats)
