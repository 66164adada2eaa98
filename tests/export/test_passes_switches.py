"""Every fold, and every linear's quantizer, can be left out."""

from __future__ import annotations

import pytest
import torch

from regcache_export.errors import ConfigError
from regcache_export.graph import build_model
from regcache_export.passes import check_switchable, export_folds, make_folds
from regcache_export.targets import GraphOptions
from tests.tiny_plans import tiny_encoder, tiny_images, tiny_plan


def test_every_fold_can_be_switched_off() -> None:
    plain = build_model(tiny_plan(), options=GraphOptions(without=("cls-only", "attention-scale")))
    names = {node.name for node in plain.graph.node}
    assert "blocks.0.attn/q/Mul" in names
    assert "blocks.2.attn/residual/Slice" not in names
    folded = {node.name for node in build_model(tiny_plan()).graph.node}
    assert "blocks.0.attn/q/Mul" not in folded
    assert "blocks.2.attn/residual/Slice" in folded
    with pytest.raises(ConfigError, match="no-such"):
        export_folds(GraphOptions(without=("no-such",)))
    with pytest.raises(ConfigError, match="key-bias"):
        check_switchable(["keybias"])
    with pytest.raises(ConfigError, match="unknown fold"):
        make_folds(["nothing"])


def test_calibration_without_folds_keeps_the_weights() -> None:
    from regcache_deploy.quantization.baselines import make_baseline

    encoder = tiny_encoder(layer_scale=True)
    tokens = encoder.embed(tiny_images(4))
    baseline = make_baseline("naive")
    assert not baseline.calibrate(encoder, tokens).encoder.spec.layer_scale
    baseline.folds = ()
    kept = baseline.calibrate(encoder, tokens).encoder
    assert all(torch.equal(kept.weights[n], w) for n, w in encoder.weights.items())
    # the published form is that of the original weights
    assert make_baseline("naive", form="paper").folds == ()


def test_the_reparametrization_can_be_switched_off() -> None:
    from regcache_deploy.quantization.choice import chosen_baseline
    from regcache_deploy.run.options import ExportOptions

    encoder = tiny_encoder()
    tokens, norm = encoder.embed(tiny_images(8)), "blocks.1.norm1.weight"
    left_out = "layer-scale,key-bias,value-bias"
    folded, plain = (
        chosen_baseline(ExportOptions(no_fold=names), 0).calibrate(encoder, tokens)
        for names in (left_out, f"{left_out},reparametrization")
    )
    assert not torch.equal(folded.encoder.weights[norm], encoder.weights[norm])
    assert all(torch.equal(plain.encoder.weights[n], w) for n, w in encoder.weights.items())
    signed = [c.quantization.linears["blocks.1.attn.qkv"].input for c in (folded, plain)]
    assert [quantizer.signed for quantizer in signed] == [True, False]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="repqvit"):
        chosen_baseline(ExportOptions(baseline="naive", no_fold="reparametrization"), 0)


def test_some_linears_stay_in_float() -> None:
    from regcache_deploy.quantization.baselines import make_baseline

    encoder = tiny_encoder()
    for name in ("naive", "repqvit"):
        baseline = make_baseline(name)
        baseline.keep_float = frozenset({"blocks.1.mlp.fc2"})
        calibration = baseline.fast().calibrate(encoder, encoder.embed(tiny_images(4)))
        assert len(calibration.quantization.linears) == 11
        assert "blocks.1.mlp.fc2" not in calibration.quantization.linears
