"""A small JPEG may ask for hundreds of passes over many pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regcache_engines.errors import DataError
from regcache_engines.jpeg_scans import ALWAYS, MAX_SCANS, most_scans, too_many_scans
from regcache_engines.preprocess import Preprocess
from tests.data.awkward_images import jpeg_of_scans


def test_large_images_may_have_fewer() -> None:
    assert most_scans(1) == most_scans(1 << 20) == MAX_SCANS
    assert most_scans(16_000_000) == 32
    assert most_scans(89_000_000) == ALWAYS


@pytest.mark.parametrize("scans", [1, 31, 32, 33, 400])
def test_scans_are_counted(scans: int) -> None:
    assert too_many_scans(jpeg_of_scans(4000, scans), 4000 * 4000) is (scans > 32)


def test_a_photograph_has_few() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    for options in ({}, {"progressive": True}, {"quality": 100, "progressive": True}):
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "JPEG", **options)
        assert not too_many_scans(file.getvalue(), 89_000_000)


def test_it_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    read = Preprocess({"size": 32}).read
    assert read(jpeg_of_scans(64, 40)).shape == (32, 32, 3)
    path = tmp_path / "bomb.jpg"
    path.write_bytes(jpeg_of_scans(4000, 200))
    for source in (path, path.read_bytes()):
        with pytest.raises(DataError, match="too many scans"):
            read(source)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xda" * 600, b"\xff\xda\x00\x00" * 600])
def test_what_is_no_jpeg_ends(data: bytes) -> None:
    too_many_scans(data, 1)
