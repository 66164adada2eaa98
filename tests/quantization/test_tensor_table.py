"""The table of paper and graph agrees with what the baselines really make."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regcache_deploy.quantization.baselines import BASELINES, make_baseline
from regcache_deploy.quantization.baselines.table import (
    FLOAT,
    FORMS,
    OUTSIDE,
    REST,
    Deployment,
    fold_differences,
    tensor_table,
)
from regcache_deploy.quantization.encoder_folds import changing_folds
from regcache_deploy.quantization.nonuniform import LogSqrt2, TwinGelu, TwinSoftmax
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.quantizers import Bits, Quantizer, Uniform
from regcache_deploy.quantization.tensorrt import for_tensorrt
from regcache_deploy.quantization.tensorrt_table import tensorrt_differences, tensorrt_forms
from regcache_export.graph import build_model
from regcache_export.reference import initializers
from regcache_export.spec import LINEARS
from tests.tiny_plans import PREPROCESS, tame_encoder, tiny_encoder, tiny_images

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
    assert len(rows) == 1 + len(OUTSIDE[name]) + 3 * (2 * len(LINEARS) + 4)
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
    table = tensor_table(name, Bits(), spec, Deployment(strict=True))
    assert {row["tensor"] for row in table if not row["equal"]} == OUTSIDE[name].keys()
    deployment = Deployment(strict=True, keep_float={"blocks.0.mlp.fc1"})
    floated = tensor_table(name, Bits(), spec, deployment)
    other = {row["tensor"] for row in floated if not row["equal"]} - OUTSIDE[name].keys()
    assert other == {"blocks.0.mlp.fc1.input", "blocks.0.mlp.fc1.weight"}


def test_a_float_layer_is_not_the_papers() -> None:
    spec = tiny_encoder().spec
    table = tensor_table("naive", Bits(), spec, Deployment(keep_float={"blocks.1.mlp.fc2"}))
    other = {row["tensor"] for row in table if not row["equal"]}
    assert other == {"blocks.1.mlp.fc2.input", "blocks.1.mlp.fc2.weight"}


def test_options_that_leave_the_paper_are_told() -> None:
    """An observer, fewer bits, folds: the same tensors, quantized otherwise."""
    spec = tiny_encoder().spec

    def other(name: str, deployment: Deployment) -> dict[str, str]:
        rows = tensor_table(name, Bits(), spec, deployment)
        usual = {r["tensor"]: r["graph"] for r in tensor_table(name, Bits(), spec)}
        return {r["tensor"]: r["graph"] for r in rows if r["graph"] != usual[r["tensor"]]}

    naive = other("naive", Deployment(observer="mse"))
    assert len(naive) == 12
    assert set(naive.values()) == {"per tensor, symmetric, range by mse, 8 bits"}
    assert len(other("naive", Deployment(bits=Bits(7, 8)))) == 12
    assert other("naive", Deployment(folds=("value-bias", "key-bias", "layer-scale"))) == {
        f"blocks.{i}.attn.out_proj.input": "per tensor, symmetric, without the values' bias, 8 bits"
        for i in range(3)
    }
    ptq = other("ptq4vit", Deployment(folds=("layer-scale",)))
    assert {tensor.split(".", 2)[2] for tensor in ptq} == {
        "attn.out_proj.weight",
        "mlp.fc2.weight",
    }
    assert len(other("naive", Deployment(folds=("value-balance",)))) == 3 * 2
    plain = other("repqvit", Deployment(reparametrized=False))
    assert len(plain) == 3 * 2
    assert all("widened to hold 0" in form for form in plain.values())


def test_only_folds_that_change_something_are_told() -> None:
    encoder = tiny_encoder(layer_scale=True)
    names = make_baseline("naive").folds
    assert set(changing_folds(encoder, names)) == {"layer-scale", "key-bias", "value-bias"}
    plain = tiny_encoder()
    silent = {f"blocks.{i}.attn.qkv.bias": torch.zeros(144) for i in range(3)}
    assert changing_folds(plain.replace(silent), names) == ()
    (line,) = fold_differences(changing_folds(plain, names))
    assert line == "out_proj.input: behind the exact fold 'value-bias'"


# ---- the graph itself ---------------------------------------------------------------------------


def form_of_input(constants: dict[str, np.ndarray], name: str) -> str:
    """How a graph quantizes an operand, read off its constants; without the width."""
    if f"{name}/lower.input_scale" in constants:
        return f"twin uniform ({'softmax' if f'{name}.split' in constants else 'GELU'})"
    if f"{name}.levels" in constants:
        return "log-sqrt2"
    if f"{name}.step" in constants:
        return "asymmetric"
    if f"{name}.input_scale" not in constants:
        return FLOAT
    assert constants[f"{name}.input_scale"].size == 1
    zero_point = constants[f"{name}.input_zero_point"]
    return "symmetric" if zero_point.dtype == np.int8 and not zero_point else "asymmetric"


def width_of_input(constants: dict[str, np.ndarray], name: str) -> int:
    for half in (name, f"{name}/upper"):
        if f"{half}.input_max" in constants:
            low, high = (float(constants[f"{half}.input_{end}"]) for end in ("min", "max"))
            return round(np.log2((high - low) / float(constants[f"{half}.input_scale"]) + 1))
    if f"{name}.step" in constants:
        low, high = (float(constants[f"{name}.{end}_level"]) for end in ("lowest", "highest"))
        return round(np.log2(high - low + 1))
    if f"{name}.levels" in constants:
        return min(8, round(np.log2(len(constants[f"{name}.levels"]) - 1)))
    return 8


def form_of_weight(constants: dict[str, np.ndarray], name: str, bits: int) -> str:
    """The same of a weight `[C_in, C_out]`; its codes must fit the width."""
    weight = constants[f"{name}.weight"]
    if f"{name}.weight_scale" not in constants:
        counts = [len(np.unique(column)) for column in weight.T]
        return "per output channel, asymmetric" if max(counts) <= 2**bits else FLOAT
    zero_point = constants[f"{name}.weight_zero_point"]
    assert weight.dtype == zero_point.dtype
    low = -(2 ** (bits - 1)) if weight.dtype == np.int8 else 0
    assert weight.min() >= low
    assert weight.max() < low + 2**bits
    assert int(weight.max()) - int(weight.min()) >= 2 ** (bits - 1)
    scales = len(np.unique(constants[f"{name}.weight_scale"]))
    # the query rows carry the factor of attention besides
    group = {1: "per tensor", 2: "one scale each", 3: "one scale each"}.get(
        scales, "per output channel"
    )
    return f"{group}, {'asymmetric' if zero_point.any() else 'symmetric'}"


@pytest.mark.parametrize("bits", WIDTHS[:3], ids=str)
@pytest.mark.parametrize("strict", [False, True], ids=["deployed", "strict"])
@pytest.mark.parametrize("name", BASELINES)
def test_the_graph_has_what_the_table_says(name: str, strict: bool, bits: Bits) -> None:
    """All nine, read off the file's own constants, without the quantizers it was made from."""
    encoder = tame_encoder()
    baseline = make_baseline(name, bits, "paper" if strict else "deploy").fast()
    calibration = baseline.calibrate(encoder, encoder.embed(tiny_images(8)))
    model = build_model(make_plan(calibration, preprocess=PREPROCESS, strict=strict))
    constants = initializers(model)
    folds = changing_folds(encoder, baseline.folds)
    table = tensor_table(name, bits, encoder.spec, Deployment(strict=strict, folds=folds))
    rows = {row["tensor"]: row["graph"] for row in table if row["tensor"].startswith("blocks.")}
    for tensor, text in rows.items():
        layer, role = tensor.rsplit(".", 1)
        if role == "weight":
            found = form_of_weight(constants, layer, bits.weight)
            parts = found.split(", ")
            assert text.startswith(parts[0]), (tensor, found, text)
            assert parts[1] in text.split(", "), (tensor, found, text)
            continue
        if role != "input":
            side = "left" if role in ("query", "probabilities") else "right"
            layer = "/".join(layer.rsplit(".", 1)) + f"/{side}"
        found = form_of_input(constants, layer)
        if found == FLOAT:
            assert text == FLOAT, (tensor, text)
            continue
        assert text.endswith(f", {width_of_input(constants, layer)} bits"), (tensor, text)
        # behind RepQ-ViT's fold, asymmetric channels have symmetric codes
        folded = found == "symmetric" and "2**(bits-1) after the fold" in text
        assert folded or found in text.split(", "), (tensor, found, text)


def test_the_rest_is_float_in_both() -> None:
    rows = {r["tensor"]: r for r in tensor_table("repqvit", Bits(4, 4), tiny_encoder().spec)}
    assert rows[REST]["equal"]
    assert rows["patch_embed.input"]["paper"].endswith("always 8 bits")
    assert rows["proj.weight"]["paper"].endswith("4 bits")
    without = tiny_encoder(projection=False).spec
    assert not any("proj.w" in r["tensor"] for r in tensor_table("repqvit", Bits(), without)[:5])


@pytest.mark.parametrize("name", BASELINES)
def test_tensorrts_table_says_what_its_calibration_has(name: str) -> None:
    """Attention in INT8, symmetric ranges, and scales that float16 holds."""
    encoder = tiny_encoder(width=64, heads=4)
    tokens = encoder.embed(tiny_images(8))
    baseline = make_baseline(name).fast()
    found = for_tensorrt(baseline.calibrate(encoder, tokens), tokens)
    forms = tensorrt_forms(name, found)
    table = tensor_table(name, Bits(), encoder.spec, Deployment(deployed_as=forms))
    rows = {r["tensor"]: r for r in table}
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
