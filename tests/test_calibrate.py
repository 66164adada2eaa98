"""`regcache calibrate`: the ranges of a plan from a stream of image files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regcache_deploy.cli.main import main
from regcache_deploy.options import ExportOptions
from regcache_deploy.recalibrate import graph_options_of
from regcache_export.plan import Plan
from tests.tiny_plans import tiny_plan

pytest.importorskip("onnxruntime")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    tiny_plan().save(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator, folder = np.random.default_rng(3), tmp_path / "images"
    folder.mkdir()
    for index in range(7):
        pixels = generator.integers(0, 256, (32, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_a_plan_gets_new_ranges_and_a_certified_bundle(
    observer: str, plan: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", str(plan), "--data", str(images), "--observer", observer, "--json"]
    assert main([*words, "--batch-size", "3", "--certificate-images", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 7
    before, after = Plan.load(plan), Plan.load(Path(found["plan"]))
    assert after.provenance["recalibrated"]["observer"] == observer
    name = "blocks.1.mlp.fc2"
    assert before.linears[name].input.scale != after.linears[name].input.scale
    assert after.linears[name].input.scale == np.float32(found["layers"][name]["after"])
    np.testing.assert_array_equal(
        before.linears[name].weight.scale, after.linears[name].weight.scale
    )
    kept = [layer["kept_of_largest"] for layer in found["layers"].values()]
    assert set(kept) == {1.0} if observer == "minmax" else min(kept) < 1
    assert main(["verify", found["bundle"]]) == 0
    assert "verified on 5 images" in capsys.readouterr().out
    assert sorted(p.name for p in Path(found["plan"]).iterdir()) == [
        "calibrated.regcache",
        "plan.json",
        "plan.safetensors",
    ]


def test_never_without_data(plan: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = images.parent / "empty"
    empty.mkdir()
    output = plan.parent / "new"
    words = ["calibrate", str(plan), "--output", str(output)]
    assert main(words) == 2
    assert main([*words, "--data", str(empty)]) == 4
    assert main([*words, "--data", str(images), "--images", "0"]) == 2
    assert main([*words, "--data", str(images), "--observer", "median"]) == 2
    assert main(["calibrate", str(plan), "--data", str(images), "--output", str(plan)]) == 2
    assert not output.exists()
    assert "own folder" in capsys.readouterr().err


def test_only_naive_streams(plan: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Plan.load(plan)
    replace(other, provenance={"baseline": "repqvit"}).save(plan)
    assert main(["calibrate", str(plan), "--data", str(images)]) == 2
    assert "--baseline naive" in capsys.readouterr().err
    tiny_plan(quantized=False).save(plan)
    assert main(["calibrate", str(plan), "--data", str(images)]) == 5


def test_the_graph_keeps_its_form() -> None:
    options = ExportOptions(baseline="naive", target="onnxruntime", bake_preprocess="nhwc", batch=2)
    plan = replace(tiny_plan(), provenance={"options": options.to_json()})
    assert graph_options_of(plan) == options.graph
    assert graph_options_of(tiny_plan()).target == "onnx"
