"""`regcache calibrate`: the ranges of a plan from a stream of image files."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regcache_deploy.cli.main import main
from regcache_deploy.quantization.baselines import Form, make_baseline
from regcache_deploy.quantization.baselines.table import tensor_table, with_observer
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.quantizers import Bits
from regcache_deploy.quantization.reservoir import Reservoir
from regcache_deploy.run.calibrate import graph_options_of
from regcache_deploy.run.options import ExportOptions
from regcache_engines.bundle import Bundle
from regcache_export.bundle import write_bundle
from regcache_export.certificate_files import read_certificate
from regcache_export.describe import bits_label
from regcache_export.graph.probes import probe_places
from regcache_export.plan import Plan
from tests.text_bundles import text_bundle
from tests.tiny_plans import PREPROCESS, SPEC, tame_encoder, tiny_images, tiny_plan, tiny_regcache

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


def test_a_certificate_has_each_image_once(
    plan: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fewer images than it may have, and two passes over them."""
    words = ["calibrate", str(plan), "--data", str(images), "--observer", "mse", "--json"]
    assert main([*words, "--certificate-images", "12"]) == 0
    found = json.loads(capsys.readouterr().out)
    _, pixels = read_certificate(Bundle.open(Path(found["bundle"])))
    assert len(pixels) == len(np.unique(pixels, axis=0)) == 7


def test_never_without_data(plan: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = images.parent / "empty"
    empty.mkdir()
    output = plan.parent / "new"
    words = ["calibrate", str(plan), "--output", str(output)]
    assert main(words) == 2
    assert main([*words, "--data", str(empty)]) == 4
    assert main([*words, "--data", str(images), "--images", "0"]) == 2
    assert main([*words, "--data", str(images), "--observer", "median"]) == 2
    assert main([*words, "--data", str(images), "--keep-images", "4"]) == 2  # naive keeps none
    assert main([*words, "--data", str(images), "--seed=-1"]) == 2
    assert "take 0 to 4294967295" in capsys.readouterr().err
    assert main(["calibrate", str(plan), "--data", str(images), "--output", str(plan)]) == 2
    assert not output.exists()
    assert "own folder" in capsys.readouterr().err


def test_images_without_classes(
    plan: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one sub-folder; then in shards that have neither class names nor labels."""
    photos = plan.parent / "photos"
    shutil.copytree(images, photos / "holiday")
    shards = plan.parent / "shards"
    shards.mkdir()
    with tarfile.open(shards / "0.tar", "w") as archive:
        for file in sorted(images.iterdir()):
            archive.add(file, file.name)
    for data, observer in ((photos, "minmax"), (shards, "mse")):
        words = ["calibrate", str(plan), "--data", str(data), "--observer", observer, "--json"]
        assert main([*words, "--certificate-images", "2"]) == 0, capsys.readouterr().err
        assert json.loads(capsys.readouterr().out)["images"] == 7


def test_never_on_the_images_of_every_split(
    plan: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        shutil.copytree(images, plan.parent / "whole" / split)
    assert main(["calibrate", str(plan), "--data", str(plan.parent / "whole")]) == 4
    assert "are splits, not classes" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["deploy", "paper"])
@pytest.mark.parametrize("name", ["ptq4vit", "repqvit"])
def test_the_others_search_on_a_sample_of_the_stream(
    name: str, form: Form, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On as many images as are asked for, from the plan's own weights, certified."""
    encoder = tame_encoder()
    regcache = tiny_regcache(encoder)
    baseline = make_baseline(name, Bits(6, 5), form).fast()
    baseline.keep_float = frozenset({"blocks.1.mlp.fc1"})
    calibration = baseline.calibrate(encoder, encoder.embed(tiny_images(3)), regcache=regcache)
    before = make_plan(
        calibration,
        regcache_config=regcache.config,
        preprocess=PREPROCESS,
        provenance={"model": "tiny", "baseline": name},
        strict=form == "paper",
    )
    before.save(tmp_path / "run")
    words = ["calibrate", str(tmp_path / "run"), "--data", str(images), "--keep-images", "4"]
    assert main([*words, "--batch-size", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["kept_images"], found["observer"]) == (7, 4, None)
    assert found["observer_bytes"] == 4 * 3 * 32 * 24 * 4
    assert Path(found["plan"]).name == "run-sample"
    after = Plan.load(Path(found["plan"]))
    assert after.linears.keys() | after.published.keys() == (
        before.linears.keys() | before.published.keys()
    )
    assert "blocks.1.mlp.fc1" not in after.linears.keys() | after.published.keys()
    assert all(layer["before"] != layer["after"] for layer in found["layers"].values())
    assert bits_label(after) == "W6A5"
    assert main(["verify", found["bundle"]]) == 0
    assert main([*words, "--observer", "mse"]) == 2


def test_a_plan_that_no_stream_can_set(
    plan: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Plan.load(plan)
    replace(other, provenance={"baseline": "awq"}).save(plan)
    assert main(["calibrate", str(plan), "--data", str(images)]) == 2
    assert "--baseline naive" in capsys.readouterr().err
    tensorrt = ExportOptions(baseline="naive", target="tensorrt").to_json()
    kept = dict(other.provenance) | {"options": tensorrt}
    replace(other, provenance=kept).save(plan)
    assert main(["calibrate", str(plan), "--data", str(images)]) == 2
    assert "is for TensorRT" in capsys.readouterr().err
    assert not (plan.parent / "run-minmax").exists()
    tiny_plan(quantized=False).save(plan)
    assert main(["calibrate", str(plan), "--data", str(images)]) == 5


def test_the_graph_keeps_its_form() -> None:
    options = ExportOptions(baseline="naive", target="onnxruntime", bake_preprocess="nhwc", batch=2)
    plan = replace(tiny_plan(), provenance={"options": options.to_json()})
    assert graph_options_of(plan) == options.graph
    assert graph_options_of(tiny_plan()).target == "onnx"


def test_a_reservoir_keeps_a_fixed_number_whatever_the_batches() -> None:
    stream = torch.arange(1000.0).reshape(-1, 1)
    samples, held = [], []
    for size in (1, 7, 1000):
        reservoir = Reservoir(20, seed=3)
        for part in stream.split(size):
            reservoir.add(part)
        samples.append(reservoir.sample)
        held.append(reservoir.state_bytes)
    assert all(torch.equal(sample, samples[0]) for sample in samples)
    assert len(samples[0].unique()) == 20
    assert held == [20 * 4] * 3
    assert samples[0].max() > 500  # not the first ones alone
    short = Reservoir(20)
    short.add(stream[:5])
    assert torch.equal(short.sample, stream[:5])


def test_the_table_follows_the_observer() -> None:
    rows = tensor_table("naive", Bits(), SPEC)
    changed = with_observer(rows, "mse")
    other = [row for row in changed if not row["equal"]]
    assert len(other) == 12
    assert all(row["graph"] == "per tensor, symmetric, range by mse, 8 bits" for row in other)
    assert with_observer(with_observer(changed, "percentile"), "minmax") == rows


def test_the_text_tower_of_the_plans_bundle_comes_along(
    plan: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Bundle.open(text_bundle(plan / "own.regcache", plan=Plan.load(plan)))
    assert own.has_text
    words = ["calibrate", str(plan), "--data", str(images), "--batch-size", "4", "--json", "-q"]
    assert main(words) == 0
    found = Bundle.open(Path(json.loads(capsys.readouterr().out)["bundle"]))
    assert found.manifest["text"] == own.manifest["text"]
    name = next(name for name in own.manifest["files"] if name.startswith("text/"))
    assert found.read(name) == own.read(name)


def test_the_plan_of_another_bundle_is_not_replaced(
    plan: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    write_bundle(tiny_plan(), other / "other.regcache")
    tiny_plan().save(other)
    before = (other / "plan.json").read_bytes()
    words = ["calibrate", str(plan), "--data", str(images), "--output", str(other), "-q"]
    assert main(words) == 2
    assert "holds other.regcache with its plan beside it" in capsys.readouterr().err
    assert (other / "plan.json").read_bytes() == before


def test_probes_are_as_many_as_the_plan_has_codes_for(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan of `build` may have fewer INT8 linears than the one that asked for probes."""
    made = tiny_plan()
    places = probe_places(made)
    assert len(places) > 1
    kept = {name: quant for name, quant in made.linears.items() if name not in places[1:]}
    made = replace(made, linears=kept)
    made.provenance["options"] = {"probes": 3}
    made.save(tmp_path / "run")
    words = ["calibrate", str(tmp_path / "run"), "--data", str(images), "--json", "-q"]
    assert main(words) == 0
    bundle = Bundle.open(Path(json.loads(capsys.readouterr().out)["bundle"]))
    assert len(bundle.manifest["graph"]["probes"]) == len(probe_places(made)) < 3
