"""Python takes the PNG files that libregcache takes, with the same pixels (`tests/cpp`)."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from regcache_engines.errors import DataError
from regcache_engines.png_chunks import plain_png
from regcache_engines.preprocess import Preprocess
from tests.data.odd_pngs import PIXELS, REFUSED, SIDE, TAKEN

READER = Preprocess({"size": SIDE, "mean": [0.5] * 3, "std": [0.5] * 3})


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = READER.read(TAKEN[name])
    black = name in ("a palette", "a transparent palette")
    np.testing.assert_array_equal(pixels, np.zeros_like(PIXELS) if black else PIXELS)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    with pytest.raises(DataError):
        READER.read(REFUSED[name])


def test_what_is_cut_anywhere_is_refused_or_plain() -> None:
    whole = TAKEN["plain"]
    last = len(whole) - 12
    for end in range(8, len(whole)):
        if end < last:
            with pytest.raises(ValueError, match="truncated"):
                plain_png(whole[:end])
        else:
            assert plain_png(whole[:end]) == whole


def test_an_animation_gives_its_picture() -> None:
    file = io.BytesIO()
    others = [Image.fromarray(255 - PIXELS)]
    Image.fromarray(PIXELS).save(file, "PNG", save_all=True, append_images=others)
    np.testing.assert_array_equal(READER.read(file.getvalue()), PIXELS)
