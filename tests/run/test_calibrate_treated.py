"""`regcache calibrate` sets new ranges and keeps how inputs are treated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regcache_deploy.cli.main import main
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.baselines.repqvit import RepQViT
from regcache_deploy.quantization.plan import calibration_of, make_plan
from regcache_deploy.quantization.quantizers import Uniform
from regcache_deploy.quantization.simulate import Calibration
from regcache_deploy.quantization.streaming import recalibrate_stream
from regcache_deploy.quantization.treatment import ROLES, Treatment
from regcache_export.plan import Plan
from tests.tiny_plans import PREPROCESS, tame_encoder, tiny_images, tiny_regcache

pytest.importorskip("onnxruntime")

SPIKED = "blocks.1.mlp.fc2"


@pytest.fixture(autouse=True)
def _no_grad(one_thread: None) -> Iterator[None]:
    with torch.no_grad():
        yield


def treated(name: str, treatment: Treatment) -> Calibration:
    encoder = tame_encoder()
    weights = {key: w.clone() for key, w in encoder.weights.items()}
    weights["blocks.1.mlp.fc1.weight"][7] *= 300
    weights["blocks.1.mlp.fc2.weight"][:, 7] /= 300
    encoder = encoder.replace(weights)
    baseline = make_baseline(name).fast()
    if isinstance(baseline, RepQViT):
        baseline = RepQViT(range_rule="output_error")
    baseline.treatment = treatment
    tokens = encoder.embed(tiny_images(8, seed=3))
    found = baseline.calibrate(encoder, tokens, regcache=tiny_regcache(encoder))
    assert found.quantization.linears[SPIKED].treated
    return found


def treatments(calibration: Calibration) -> dict[str, object]:
    return {n: q.treated.to_json() for n, q in calibration.quantization.linears.items()}


@pytest.mark.parametrize(
    "treatment", [Treatment(("fc2",)), Treatment(float_channels=1)], ids=["factors", "channels"]
)
def test_the_stream_sees_what_is_quantized(treatment: Treatment) -> None:
    """On the very images of the calibration: the very ranges, without the spike in them."""
    before = treated("naive", treatment)
    tokens = before.encoder.embed(tiny_images(8, seed=3))
    after, found = recalibrate_stream(before, lambda: [tokens[:3], tokens[3:]])
    assert treatments(after) == treatments(before)
    for name, layer in before.quantization.linears.items():
        old, new = layer.input, after.quantization.linears[name].input
        assert isinstance(old, Uniform)
        assert isinstance(new, Uniform)
        torch.testing.assert_close(new.scale, old.scale, rtol=1e-5, atol=0)
    plain = make_baseline("naive").calibrate(before.encoder, tokens, regcache=before.regcache)
    spike = plain.quantization.linears[SPIKED].input
    assert isinstance(spike, Uniform)
    assert found.limits[SPIKED] < 0.2 * float(spike.scale) * 127


@pytest.mark.parametrize("name", ["naive", "ptq4vit", "repqvit"])
def test_calibrate_keeps_treated_inputs(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, generator = treated(name, Treatment(ROLES, 1)), np.random.default_rng(3)
    provenance = {"model": "tiny", "baseline": name, "seed": 0, "range_rule": "output_error"}
    assert before.regcache is not None
    make_plan(
        before,
        regcache_config=before.regcache.config,
        preprocess=PREPROCESS,
        provenance=provenance,
    ).save(tmp_path / "run")
    (tmp_path / "images").mkdir()
    for index in range(6):
        pixels = generator.integers(0, 256, (32, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    words = ["calibrate", str(tmp_path / "run"), "--data", str(tmp_path / "images"), "--json"]
    assert main([*words, "--certificate-images", "3"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    after = calibration_of(Plan.load(Path(found["plan"])))
    assert treatments(after) == treatments(before)
    assert main(["verify", found["bundle"]]) == 0
