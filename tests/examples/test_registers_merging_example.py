"""`examples/registers_merging.py` on a model so small that it learns nothing."""

from __future__ import annotations

import csv
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tests.tiny_plans import SPEC

PATH = Path(__file__).resolve().parents[2] / "examples" / "registers_merging.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    found = importlib.util.spec_from_file_location("registers_merging", PATH)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)

    sys.modules["registers_merging"] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


def test_a_schedule_takes_the_published_share(example: ModuleType) -> None:
    published = replace(SPEC, image_size=(224, 224), patch_size=(16, 16), depth=12)
    assert example.scaled("16", published) == "16"
    assert example.scaled("(16,-1)", published) == "(16,-1)"


@pytest.mark.slow
def test_the_table_has_every_row(example: ModuleType, tmp_path: Path, one_thread: None) -> None:
    output = tmp_path / "rows.csv"
    small = ["--width", "32", "--depth", "3", "--epochs", "1", "--batch", "600", "--limit", "24"]
    small += ["--rounds", "2", "--infer-batch", "8"]
    assert example.main([*small, "--output", str(output)]) == 0
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["precision"], r["published_schedule"]) for r in rows] == [
        (precision, name) for precision in ("FP32", "INT8") for name in example.PUBLISHED
    ]
    left = [int(row["tokens_at_the_end"]) for row in rows]
    assert left[0] == left[3] == 64 + 1 + example.REGISTERS
    assert left[:3] == left[3:]
    assert left[0] > left[1] > left[2]
    assert all(float(row["images_per_s"]) > 0 for row in rows)
    assert all(row["n"] == "24" for row in rows)


def test_a_folder_without_cifar_is_said(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example.main(["--cifar10", str(tmp_path)]) == 4
    assert "--cifar10" in capsys.readouterr().err
