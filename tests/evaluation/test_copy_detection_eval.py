"""`regcache eval --task instances`: any folder, every runner, paired like top-1."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from regcache_deploy.cli.main import main
from regcache_deploy.data.alterations import altered_pixels
from regcache_deploy.data.altered_stream import AlteredStream
from regcache_deploy.data.sources import open_data
from regcache_deploy.errors import DataError
from regcache_deploy.evaluation.instance_records import instance_records
from regcache_deploy.evaluation.records import Embedded
from regcache_engines.preprocess import Preprocess
from regcache_export.bundle import write_bundle
from tests.tiny_plans import tiny_plan


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A plan, its bundle (random weights), and ten images without labels."""
    folder = tmp_path_factory.mktemp("run")
    plan = tiny_plan()
    plan.save(folder)
    write_bundle(plan, folder / "t.regcache")
    (folder / "data").mkdir()
    draw = np.random.default_rng(0)
    for index in range(10):
        pixels = draw.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((50, 40), Image.Resampling.BILINEAR)
        image.save(folder / "data" / f"{index}.png")
    return folder


def test_every_runner_is_paired_with_the_first(run_folder, capsys):
    command = ["eval", str(run_folder / "t.regcache"), "--data", str(run_folder / "data")]
    command += ["--task", "instances", "--on", "fp32,simulated,onnxruntime", "--batch-size", "4"]
    assert main([*command, "--json", "-q"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    copies = {r["on"]: r for r in results if r["task"] == "instances"}
    assert list(copies) == ["fp32", "simulated", "onnxruntime"]
    assert copies["fp32"]["paired"] is None
    assert copies["simulated"]["paired"]["n"] == copies["simulated"]["n"] == 10
    assert copies["simulated"]["metrics"] == copies["onnxruntime"]["metrics"]
    assert {r["task"] for r in results} == {"instances", "fidelity"}
    assert main([*command, "-q"]) == 0
    assert "copy detection on " in capsys.readouterr().out


def test_copies_of_a_stream_do_not_depend_on_the_batch(run_folder):
    cfg = {"size": [32, 32], "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3}
    cfg |= {"interpolation": "bicubic", "resize_mode": "squash"}
    preprocess = Preprocess(cfg)
    stream = open_data(str(run_folder / "data"), preprocess, labels=False)
    pixels = np.concatenate([batch.pixels for batch in stream.batches(10)])
    for size in (3, 10):
        copies = list(AlteredStream.of(stream, 5).batches(size))
        found = np.concatenate([b.pixels for b in copies])
        assert np.array_equal(found, altered_pixels(pixels, 5))
        wanted = (found.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5
        assert np.allclose(np.concatenate([b.images for b in copies]), wanted, atol=1e-6)
        assert all(batch.labels is None for batch in copies)


def test_records_by_hand():
    images = Embedded({"a": np.eye(3), "b": np.eye(3)}, ("x", "y", "z"), None)
    confused = np.eye(3)[[1, 0, 2]]
    copies = Embedded({"a": np.eye(3), "b": confused}, ("x", "y", "z"), None)
    first, second = instance_records("set", images, copies, 0)
    assert first.metrics == {"acc1": 1.0}
    assert second.metrics["acc1"] == pytest.approx(1 / 3)
    assert second.paired is not None
    assert (second.paired.lost, second.paired.won) == (2, 0)
    other = Embedded(copies.features, ("x", "z", "y"), None)
    with pytest.raises(DataError, match="changed while it was read"):
        instance_records("set", images, other, 0)
    single = Embedded({"a": np.eye(1)}, ("x",), None)
    with pytest.raises(DataError, match="at least two"):
        instance_records("set", single, single, 0)
