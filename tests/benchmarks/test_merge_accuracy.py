"""benchmarks/merge_accuracy.py on the demo and noise: every variant has its row."""

from __future__ import annotations

import csv
from pathlib import Path

import merge_accuracy
import numpy as np
import pytest
from PIL import Image


def images(folder: Path, count: int) -> Path:
    draw = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        pixels = draw.integers(0, 256, (60, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_every_variant_is_paired_with_the_unmerged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    arguments = ["--model", "demo", "--data", str(images(tmp_path / "data", 10)), "--images", "6"]
    arguments += ["--calibration-images", "4", "--schedules", "(3,-1)"]
    arguments += ["--output", str(tmp_path / "out.csv")]
    monkeypatch.setattr("sys.argv", ["merge_accuracy.py", *arguments])
    assert merge_accuracy.main() == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    start = lines.index(list(merge_accuracy.COLUMNS))
    rows = [dict(zip(merge_accuracy.COLUMNS, line, strict=True)) for line in lines[start + 1 :]]
    assert len(rows) == 2 * (1 + len(merge_accuracy.FORMS))
    assert {row["n"] for row in rows} == {"6"}
    unmerged, merged = rows[0], rows[2]
    assert (unmerged["schedule"], unmerged["cosine_to_float"]) == ("none", "1.00000")
    assert float(merged["cosine_to_float"]) < 1
    values = {row["cosine_to_float"] for row in rows if row["precision"] == "fp32"}
    assert len(values) == 1 + len(merge_accuracy.FORMS)  # no two forms are the same


def test_a_precision_is_what_its_row_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    arguments = ["--model", "demo", "--data", str(images(tmp_path / "data", 8)), "--images", "4"]
    arguments += ["--calibration-images", "4"]
    arguments += ["--precisions", "W8A8", "W4A4", "--output", str(tmp_path / "out.csv")]
    monkeypatch.setattr(merge_accuracy, "variants", lambda encoder, schedules: [("none", None)])
    monkeypatch.setattr("sys.argv", ["merge_accuracy.py", *arguments, "--schedules", "8"])
    assert merge_accuracy.main() == 0
    lines = [line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines()]
    cosines = {line[0]: float(line[-1]) for line in lines if line[0].startswith("W")}
    assert cosines["W4A4"] < cosines["W8A8"] < 1  # to FP32, though it has no row
    monkeypatch.setattr("sys.argv", ["merge_accuracy.py", *arguments, "--precisions", "int8"])
    with pytest.raises(SystemExit):
        merge_accuracy.main()
