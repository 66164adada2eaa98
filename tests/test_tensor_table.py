"""The table of paper and graph agrees with what the baselines really make."""

from __future__ import annotations

import pytest

from regcache_deploy.quantization import BASELINES, Bits, Quantizer, Uniform, make_baseline
from regcache_deploy.quantization.baselines.table import FLOAT, FORMS, OUTSIDE, tensor_table
from regcache_deploy.quantization.nonuniform import LogSqrt2, TwinGelu, TwinSoftmax
from regcache_deploy.quantization.tensorrt import for_tensorrt
from regcache_deploy.quantization.tensorrt_table import tensorrt_differences, tensorrt_forms
from regcache_export.spec import LINEARS
from tests.tiny_plans import tame_encoder, tiny_encoder, tiny_images

WIDTHS = [Bits(8, 8), Bits(6, 6), Bits(4, 4), Bits(6, 4)]

SPECIAL = {
    TwinGelu: "twin uniform (GELU)",
    TwinSoftmax: "twin uniform (softmax)",
    LogSqrt2: "log-sqrt2",
}

OPERANDS = {"attn.qk": ("query", "key"), "attn.pv": ("probabilities", "value")}


def describes(text: str, quantizer: Quantizer, width: int) -> bool:
    """Whether a line of the table is true of a quantizer."""
    if not text.endswith(f", {width} bits"):
        return False
    if not isinstance(quantizer, Uniform):
        return text.startswith(SPECIAL[type(quantizer)])
    if quantizer.bits != width or "twin" in text or "log" in text:
        return False
    symmetric = quantizer.signed and not quantizer.zero_point.any()
    # behind RepQ-ViT's fold, asymmetric channels have symmetric codes
    if symmetric != ("asymmetric" not in text or "2**(bits-1)" in text):
        return False
    if "mean zero point" in text and bool((quantizer.zero_point % 1 == 0).all()):
        return False
    scales = quantizer.scale.unique().numel()
    if text.startswith("one scale each"):
        return scales == 3
    return (scales > 3) == text.startswith("per output channel")


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
@pytest.mark.parametrize("form", ["deploy", "paper"])
@pytest.mark.parametrize("name", BASELINES)
def test_the_table_says_what_each_form_has(name: str, form: str, bits: Bits) -> None:
    encoder = tame_encoder()
    rows = {row["tensor"]: row for row in tensor_table(name, bits, encoder.spec)}
    assert len(rows) == len(OUTSIDE[name]) + 3 * (2 * len(LINEARS) + 4)
    column = "graph" if form == "deploy" else "paper"
    baseline = make_baseline(name, bits, form).fast()  # type: ignore[arg-type]
    found = baseline.calibrate(encoder, encoder.embed(tiny_images(8))).quantization
    assert len(found.linears) == 12
    for layer, quantizers in found.linears.items():
        widths = {"input": bits.activation, "weight": bits.weight}
        for role, width in widths.items():
            text = rows[f"{layer}.{role}"][column]  # type: ignore[literal-required]
            assert describes(text, getattr(quantizers, role), width), (layer, role, text)
    for product, operands in OPERANDS.items():
        for position, operand in enumerate(operands):
            text = rows[f"blocks.1.{product}.{operand}"][column]  # type: ignore[literal-required]
            if text == FLOAT:
                assert f"blocks.1.{product}" not in found.matmuls
            else:
                quantizer = found.matmuls[f"blocks.1.{product}"][position]
                assert describes(text, quantizer, bits.activation), (product, operand, text)


def test_naive_is_its_own_paper_form_and_the_others_are_not() -> None:
    spec = tiny_encoder().spec
    assert all(row["equal"] for row in tensor_table("naive", Bits(), spec))
    for name in ("ptq4vit", "repqvit"):
        table = tensor_table(name, Bits(), spec)
        assert not all(row["equal"] for row in table)
        assert make_baseline(name).differences
    assert set(FORMS) == set(BASELINES)


@pytest.mark.parametrize("name", BASELINES)
def test_strict_paper_differs_outside_of_the_blocks_alone(name: str) -> None:
    spec = tiny_encoder().spec
    table = tensor_table(name, Bits(), spec, strict=True)
    assert {row["tensor"] for row in table if not row["equal"]} == OUTSIDE[name].keys()
    floated = tensor_table(name, Bits(), spec, {"blocks.0.mlp.fc1"}, strict=True)
    other = {row["tensor"] for row in floated if not row["equal"]} - OUTSIDE[name].keys()
    assert other == {"blocks.0.mlp.fc1.input", "blocks.0.mlp.fc1.weight"}


def test_a_float_layer_is_not_the_papers() -> None:
    spec = tiny_encoder().spec
    table = tensor_table("naive", Bits(), spec, {"blocks.1.mlp.fc2"})
    other = {row["tensor"] for row in table if not row["equal"]}
    assert other == {"blocks.1.mlp.fc2.input", "blocks.1.mlp.fc2.weight"}


@pytest.mark.parametrize("name", BASELINES)
def test_tensorrts_table_says_what_its_calibration_has(name: str) -> None:
    """Attention in INT8, symmetric ranges, and scales that float16 holds."""
    encoder = tiny_encoder(width=64, heads=4)
    tokens = encoder.embed(tiny_images(8))
    baseline = make_baseline(name).fast()
    found = for_tensorrt(baseline.calibrate(encoder, tokens), tokens)
    forms = tensorrt_forms(name, found)
    rows = {r["tensor"]: r for r in tensor_table(name, Bits(), encoder.spec, deployed_as=forms)}
    assert not any(row["equal"] for row in rows.values())
    for layer, quantizers in found.quantization.linears.items():
        for role in ("input", "weight"):
            text = rows[f"{layer}.{role}"]["graph"]
            assert "float16 scale" in text
            assert describes(text, getattr(quantizers, role), 8), (layer, role, text)
    for product, operands in OPERANDS.items():
        for position, operand in enumerate(operands):
            text = rows[f"blocks.1.{product}.{operand}"]["graph"]
            assert describes(text, found.quantization.matmuls[f"blocks.1.{product}"][position], 8)
    assert all(row["graph"] != FLOAT for t, row in rows.items() if t.startswith("blocks"))
    lines = "; ".join(tensorrt_differences(name, found))
    assert "attention operands of 3 blocks" in lines
    assert "float attention" not in lines
    floated = for_tensorrt(baseline.calibrate(encoder, tokens), tokens, attention=False)
    assert "attn.qk.query" not in str(tensorrt_forms(name, floated).keys())
    assert ("float attention" in "; ".join(tensorrt_differences(name, floated))) == (
        name != "naive"
    )
