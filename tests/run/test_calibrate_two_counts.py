"""`regcache calibrate` keeps both delete counts, and measures without the tokens that saturate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regcache_deploy.cli.main import main
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.plan import make_plan
from regcache_engines.bundle import Bundle
from regcache_export.plan import Plan
from tests.tiny_plans import CHOICE, PREPROCESS, tame_encoder, tiny_images, tiny_regcache

pytest.importorskip("onnxruntime")

COUNTS = {"deleting": CHOICE, "saturating": CHOICE.deleting(0, CHOICE.delete_count)}


@pytest.mark.parametrize("baseline", ["naive", "repqvit"])
def test_both_counts_survive(
    baseline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(3)
    for index in range(7):
        pixels = generator.integers(0, 256, (32, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    encoder, scales = tame_encoder(), {}
    for name, choice in COUNTS.items():
        cache = tiny_regcache(encoder, choice)
        calibration = make_baseline(baseline).calibrate(
            encoder, encoder.embed(tiny_images(4)), regcache=cache
        )
        make_plan(
            calibration,
            regcache_config=choice,
            preprocess=PREPROCESS,
            provenance={"model": "tiny", "baseline": baseline},
        ).save(tmp_path / name)
        output = tmp_path / f"{name}-again"
        words = ["calibrate", str(tmp_path / name), "--data", str(folder), "--json"]
        assert main([*words, "--output", str(output), "--certificate-images", "3"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["images"] == 7
        plan = Plan.load(output)
        assert plan.regcache == choice
        assert Bundle.open(found["bundle"]).manifest["regcache"] == choice.to_json()
        scales[name] = {layer: q.input.scale for layer, q in plan.linears.items()}
    assert scales["saturating"] == scales["deleting"]
