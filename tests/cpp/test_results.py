"""The same pixels and embeddings as open_clip with Pillow and our Python engine give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from tests.cpp.programs import assert_equal_results, float_bundle
from tests.tiny_plans import tiny_plan

CONFIGS: dict[str, dict[str, Any]] = {
    "square": {"size": [32, 32], "interpolation": "bicubic", "resize_mode": "shortest"},
    "oblong": {"size": [32, 24], "interpolation": "bilinear", "resize_mode": "shortest"},
    "squash": {"size": [24, 40], "interpolation": "bilinear", "resize_mode": "squash"},
    "longest": {"size": 32, "interpolation": "bicubic", "resize_mode": "longest", "fill_color": 9},
    "timm": {"size": [32, 32], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"},
    "timm oblong": {"size": [32, 24], "interpolation": "bilinear", "crop_pct": 0.8},
    "timm squash": {"size": [32, 24], "interpolation": "bicubic", "crop_mode": "squash"},
    "timm border": {"size": [32, 24], "interpolation": "bilinear", "crop_mode": "border"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_and_embeddings_are_pythons(
    name: str, release: Path, images: list[Path], tmp_path: Path
) -> None:
    made = float_bundle(tmp_path / f"{name}.regcache", CONFIGS[name])
    assert_equal_results(release, made, images, tmp_path / "out")


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_bundle_that_takes_raw_pixels(
    layout: str, release: Path, images: list[Path], tmp_path: Path
) -> None:
    options = GraphOptions(pixels=layout)  # type: ignore[arg-type]
    made = write_bundle(tiny_plan(), tmp_path / "raw.regcache", options=options)
    assert_equal_results(release, made, images, tmp_path / "out")


def test_the_sanitized_build_reads_every_awkward_image(
    sanitized: Path, bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    assert_equal_results(sanitized, bundle, images, tmp_path / "out")
