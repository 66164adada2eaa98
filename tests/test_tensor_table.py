"""The table of paper and graph agrees with what the baselines really make."""

from __future__ import annotations

import pytest

from regcache_deploy.quantization import BASELINES, Bits, Uniform, make_baseline
from regcache_deploy.quantization.baselines.table import FORMS, tensor_table
from tests.tiny_plans import tiny_encoder, tiny_images


@pytest.mark.parametrize("name", BASELINES)
def test_the_table_says_what_the_graph_has(name: str) -> None:
    encoder, bits = tiny_encoder(), Bits(6, 4)
    rows = {row["tensor"]: row for row in tensor_table(name, bits, encoder.spec)}
    calibration = make_baseline(name, bits).fast().calibrate(encoder, encoder.embed(tiny_images(4)))
    for layer, quantizers in calibration.quantization.linears.items():
        for role, quantizer in (("input", quantizers.input), ("weight", quantizers.weight)):
            assert isinstance(quantizer, Uniform)
            text = rows[f"{layer}.{role}"]["graph"]
            assert f"{quantizer.bits} bits" in text
            symmetric = quantizer.signed and not quantizer.zero_point.any()
            # behind RepQ-ViT's fold, asymmetric channels have symmetric codes
            assert symmetric == ("asymmetric" not in text or "2**(bits-1)" in text)
            if role == "weight":
                rows_differ = quantizer.scale.unique().numel() > 3
                assert rows_differ == text.startswith("per output channel")
    assert not calibration.quantization.matmuls
    assert {row["graph"] for t, row in rows.items() if "attn.qk." in t} == {"float"}


def test_naive_is_its_own_paper_form_and_the_others_are_not() -> None:
    spec = tiny_encoder().spec
    assert all(row["equal"] for row in tensor_table("naive", Bits(), spec))
    for name in ("ptq4vit", "repqvit"):
        table = tensor_table(name, Bits(), spec)
        assert not all(row["equal"] for row in table)
        assert make_baseline(name).differences
    assert set(FORMS) == set(BASELINES)


def test_a_float_layer_is_not_the_papers() -> None:
    spec = tiny_encoder().spec
    table = tensor_table("naive", Bits(), spec, {"blocks.1.mlp.fc2"})
    other = {row["tensor"] for row in table if not row["equal"]}
    assert other == {"blocks.1.mlp.fc2.input", "blocks.1.mlp.fc2.weight"}
