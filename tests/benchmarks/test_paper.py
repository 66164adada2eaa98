"""The paper's table: its plumbing without weights, and cells that say why they are empty."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks import paper


def table(folder: Path, *words: str) -> list[dict[str, str]]:
    assert paper.main(["--output", str(folder), "--threads", "1", *words]) == 0
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("model", ["CLIP-B/16", "DINOv2-B/14"])
def test_dry_run_fills_a_cell_and_says_what_it_is_worth(tmp_path: Path, model: str) -> None:
    words = ["--dry-run", "--models", model, "--baselines", "naive", "--bits", "W8A8"]
    (row,) = table(tmp_path, *words)
    assert all(0 < float(row[corner]) <= 1 for corner in paper.CORNERS)
    assert row["metric"] == "cosine"
    assert "random weights" in row["reason"]
    assert f"first {paper.DRY_DEPTH} blocks" in row["reason"]
    assert row["published_regcache"] == ("59.71" if model == "CLIP-B/16" else "")


def test_a_cosine_is_shown_with_digits_that_tell_apart() -> None:
    row = {"model": "M", "quantizer": "naive", "bits": "W8A8", "metric": "cosine", "fp32": 1.0}
    row |= {"baseline": 0.9996}
    assert "fp32 1.0000, baseline 0.9996" in paper.show(row)
    assert "fp32 71.25" in paper.show(row | {"metric": "top1", "fp32": 71.25})


def test_cells_without_images_are_empty_and_say_so(tmp_path: Path) -> None:
    rows = table(tmp_path, "--bits", "W8A8")
    assert len(rows) == len(paper.MODELS) * 3
    for row in rows:
        assert not any(row[corner] for corner in paper.CORNERS)
        assert "--data" in row["reason"]
    known = [key for key in paper.PUBLISHED if key[2] == "W8A8"]
    assert sum(bool(row["published_baseline"]) for row in rows) == len(known)
    deit = next(r for r in rows if (r["model"], r["quantizer"]) == ("DeiT-S/16", "ptq4vit"))
    assert deit["published_baseline"] == "79.47"


def test_supervised_encoders_are_judged_by_their_classifier() -> None:
    own = {model.name for model in paper.MODELS if model.classifier}
    assert own == {name for table in paper.BASELINE_TABLES.values() for name in table}
    assert all(m.architecture.startswith("timm/") for m in paper.MODELS if m.classifier)


def test_a_file_holds_the_weights_of_the_default_tag(tmp_path: Path) -> None:
    """SigLIP's mean and resizing are its tag's; timm takes them from the architecture."""
    path = tmp_path / "weights.safetensors"
    path.touch()
    given = {model.name: str(path) for model in paper.MODELS}
    found = {model.name: paper.pretrained_of(model, given) for model in paper.MODELS}
    assert found["SigLIP-B/16"] == f"webli={path}"
    assert found["DINOv2-B/14"] == str(path)
    assert paper.pretrained_of(paper.MODELS[0], {}) == "openai"


def test_an_encoder_cut_short_is_the_front_of_the_whole() -> None:
    import planted_vit
    import torch

    model = planted_vit.load(planted_vit.small(), 0)
    front = paper.first_blocks(model, 2)
    assert front.encoder.spec.depth == 2
    assert "first 2 blocks" in (front.caution or "")
    size = planted_vit.small().image_size
    tokens = model.encoder.embed(torch.zeros(1, 3, size, size))
    expected = model.encoder.run_blocks(tokens, 0, 2)
    assert torch.equal(front.encoder.run_blocks(tokens), expected)
