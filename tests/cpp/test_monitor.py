"""The outlier monitor: its counts are Python's, and it warns at the right end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from regcache_deploy.data.images import Images
from regcache_engines import Bundle
from regcache_engines.preprocess import Preprocess
from regcache_engines.probe_rates import probe_rates
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from tests.cpp.damaging import changed
from tests.cpp.programs import dump, run
from tests.tiny_plans import tiny_plan


def noise_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed:03}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_probes_count_what_python_counts_and_change_no_feature(
    target: str, release: Path, images: list[Path], tmp_path: Path
) -> None:
    plain = write_bundle(
        tiny_plan(), tmp_path / "plain.regcache", options=GraphOptions(target=target)
    )
    options = GraphOptions(target=target, probes=3)
    watched = write_bundle(tiny_plan(), tmp_path / "watched.regcache", options=options)
    _, _, features = dump(release, plain, images, tmp_path / "plain")
    _, _, again = dump(release, watched, images, tmp_path / "watched")
    np.testing.assert_allclose(again, features, rtol=1e-5, atol=1e-6)

    opened = Bundle.open(watched)
    preprocess = Preprocess(opened.preprocess)
    pixels = torch.from_numpy(np.stack([preprocess.read(path) for path in images]))
    data = Images(pixels, preprocess.mean, preprocess.std, "test")
    rates = probe_rates(opened, (batch.numpy() for batch in data.batches(1)), threads=1)
    done = run(release / "regcache_dump", watched, tmp_path / "out", *images)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("probe ")]
    assert len(lines) == len(rates) == 3
    for (_, low, high, codes, *_), ends in zip(lines, rates.values(), strict=True):
        assert [int(low) / int(codes), int(high) / int(codes)] == pytest.approx(ends, abs=1e-4)
    # noise of full contrast is beyond what was calibrated
    assert max(high for _, high in rates.values()) > 0


@pytest.mark.parametrize(
    ("rates", "common", "warned"),
    [
        ((1e-9, 0.9), "low", "lower end"),
        # one end is full by nature, as behind GELU; the other one is still heard
        ((0.9, 1e-9), "high", "upper end"),
        ((0.9, 0.9), "high", None),
        # a bundle that does not say what is normal, or says what no share can be
        (None, "high", "upper end"),
        ((5.0, 5.0), "high", "upper end"),
    ],
)
def test_the_monitor_warns_where_the_data_leaves_the_calibrated_range(
    rates: tuple[float, float] | None,
    common: str,
    warned: str | None,
    release: Path,
    tmp_path: Path,
) -> None:
    images = noise_images(tmp_path / "noise", 40)
    made = write_bundle(tiny_plan(), tmp_path / "m.regcache", options=GraphOptions(probes=2))
    graph = Bundle.open(made).manifest["graph"]
    constants = {t.name: t for t in onnx.load(made / "model.onnx").graph.initializer}
    for probe in graph["probes"]:  # the code of zero is common
        name = probe["output"].replace("/QuantizeLinear", ".input_zero_point")
        probe[common] = int(onnx.numpy_helper.to_array(constants[name]))
    outputs = [probe["output"] for probe in graph["probes"]]
    found = {"calibrated_rates": dict.fromkeys(outputs, rates)} if rates else {}
    changed(graph=graph, monitor=found)(made)
    done = run(release / "regcache_dump", made, tmp_path / "out", *images)
    lines = done.stderr.splitlines()
    probes = [line.split(": ")[2].split(" has ")[0] for line in lines]
    assert bool(probes) == bool(warned), done.stderr
    assert len(set(probes)) == len(probes)  # once per probe
    for line in lines:
        assert "leave the calibrated range" in line
        assert warned is not None
        assert warned in line
        # a share that nobody measured is not told
        assert (" % on the calibration images" in line) is (rates is not None and rates[1] <= 1)
