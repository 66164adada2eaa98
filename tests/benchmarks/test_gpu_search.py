"""`benchmarks/gpu_search.py` runs whole, on the CPU and with a tiny model."""

from __future__ import annotations

import csv
from pathlib import Path

import gpu_search
import pytest

from regcache_deploy.encoders.model import LoadedModel
from regcache_deploy.encoders.settings import DEMO
from tests.tiny_plans import PREPROCESS, tame_encoder


def test_rows_say_what_was_measured_and_what_was_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = LoadedModel("tiny", "random:0", tame_encoder(), dict(PREPROCESS))
    monkeypatch.setattr(gpu_search, "load_model", lambda *unused: tiny)
    words = ["--device", "cpu", "--models", "tiny", "--images", "12", "10000000"]
    words += ["--batch-size", "4", "--demo-images", "12", "--cpu-seconds", "0", "--threads", "1"]
    gpu_search.main([*words, "--search-on-cpu", "--output", str(tmp_path / "rows.csv")])
    with (tmp_path / "rows.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["how"]) for row in rows] == [
        (DEMO, "measured"),
        ("tiny", "measured"),
        ("tiny", "computed"),
    ]
    assert rows[0]["choice"] == "equal"
    for row in rows[1:]:
        assert float(row["seconds"]) > 0
        assert int(row["block_forwards"]) > 0
    computed = [row for row in rows[1:] if row["how"] == "computed"]
    for row in computed:
        expected = int(row["block_forwards"]) * float(row["ms_per_block_forward"]) / 1000
        assert float(row["seconds"]) == pytest.approx(expected)
