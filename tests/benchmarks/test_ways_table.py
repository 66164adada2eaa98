"""The table of the ways: one row each, paired with FP32, and the line that sums it up."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import ways
from PIL import Image

from regcache_deploy.encoders.load_natural import preprocess_cfg
from regcache_deploy.encoders.model import LoadedModel
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.run.study import decide_study
from regcache_deploy.work.progress import Reporter
from tests.search.search_helpers import encoder_and_images

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"


def test_a_row_for_every_way_that_was_raced(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(12):
        small = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 64)).save(photos / f"{index:02}.png")
    options = ExportOptions(
        data=photos,
        search_images=6,
        calibration_images=3,
        batch_size=6,
        baseline="naive",
        recipe="auto",
        sensitive_layer="blocks.1.fc2",
        prefix_block=1,
        prefix_count=2,
        delete_count=2,
    )
    model = LoadedModel("tiny", None, encoder_and_images()[0], preprocess_cfg((64, 64)))
    study = decide_study(options, Reporter(quiet=True), tmp_path / "parts", model)
    rows = list(ways.rows_of(study))
    assert [row["way"] for row in rows] == [
        "fp32",
        *(each.way.name for each in study.raced),
        *(way.name for way in (study.race.untried if study.race else [])),
    ]
    assert {row["n"] for row in rows} == {6}
    assert sum(row.get("chosen", 0) for row in rows) == 1
    regcache = next(row for row in rows if row["way"] == "regcache")
    assert (regcache["prefix_count"], regcache["delete_count"]) == (2, 2)
    for row in rows[1:]:
        lost, won = row["lost"], row["won"]
        assert abs(row["value"] - (rows[0]["value"] + (won - lost) / 6)) < 1e-5


def test_the_summary_names_the_best_and_the_chosen() -> None:
    shared = {"model": "m", "bits": "W8A8", "seed": 0}
    rows = [
        shared | {"way": "fp32", "value": 0.95},
        shared | {"way": "quantizer", "value": "0.93", "chosen": "1"},  # as read from a file
        shared | {"way": "regcache", "value": 0.94, "chosen": 0},
    ]
    assert ways.summary(rows) == (
        "m W8A8 seed 0: FP32 95.00, chosen quantizer 93.00, best regcache 94.00, "
        "behind it 1.00, behind FP32 2.00"
    )


def test_rows_of_other_photographs_or_options_are_not_taken() -> None:
    options = ExportOptions(model="demo", search_images=6, calibration_images=3)
    with (RESULTS / "ways-demo.csv").open(newline="", encoding="utf-8") as file:
        before = list(csv.DictReader(file))
    assert ways.finished(before, ExportOptions(model="demo"))  # as it was written
    row = dict(zip(ways.KEY, ("demo", "", "repqvit", "W8A8", "0", "6", "3"), strict=True))
    row |= ways.more_key(options)
    assert ways.finished([row], options) == [row]
    assert ways.finished([row | dict.fromkeys(ways.USUAL, "")], options)  # beside newer rows
    for changes in ({"data": Path("b")}, {"limit": 40}, {"budget_fraction": 0.01}, {"seed": 1}):
        assert not ways.finished([row], replace(options, **changes))
