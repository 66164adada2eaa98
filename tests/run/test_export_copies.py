"""An encoder with trained weights and no text side: chosen and judged by copy detection."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regcache_deploy.cli.main import main
from regcache_deploy.encoders.encoder_file import EncoderFile, write_encoder
from regcache_deploy.encoders.load_natural import preprocess_cfg
from tests.search.search_helpers import encoder_and_images


def test_export_without_labels_counts_copies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, generator = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for index in range(14):
        small = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 64)).save(photos / f"{index:02}.png")
    weights = tmp_path / "tiny.safetensors"
    write_encoder(weights, EncoderFile(encoder_and_images()[0], preprocess_cfg((64, 64)), "", {}))
    words = ["export", "--model", "natural-vit-s14", "--pretrained", str(weights)]
    words += ["--data", str(photos), "--search-images", "8", "--calibration-images", "4"]
    words += ["--baseline", "naive", "--sensitive-layer", "blocks.1.fc2", "--batch-size", "8"]
    words += ["--prefix-block", "1", "--prefix-count", "0", "--delete-count", "0"]
    words += ["--recipe", "auto", "--certificate-images", "4", "--output", str(tmp_path / "run")]
    assert main([*words, "--quiet", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["search_metric"], result["n_search"]) == ("instances", 7)
    assert (result["metric"], result["n_eval"]) == ("instances", 7)
    assert result["agreement"]["n"] == 14  # images and copies ran on the deployed graph
    for corner in ("baseline", "recipe", "deployed"):
        pair = result["paired"][corner]
        gained = 100 * (result["accuracy"][corner] - result["accuracy"]["fp32"])
        assert pair["n"] == 7
        assert pair["difference"] == pytest.approx(gained)
        assert 0 < result["fidelity"][corner] < 1
    assert result["fidelity"]["fp32"] == 1
    assert result["fidelity_way"] is None or result["fidelity_way"]
    assert all(0 <= way["value"] <= 1 for way in result["ways"])

    assert main([*words, "--quiet", "--objective", "cosine"]) == 0
    text = capsys.readouterr().out
    assert "copy detection on 7 held-out images" in text
    assert "cosine to FP32 of every way on 7 search images" in text
