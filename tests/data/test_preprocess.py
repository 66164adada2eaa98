"""Our preprocessing is open_clip's, bit for bit, also on awkward images."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from regcache_deploy.compat import import_open_clip
from regcache_deploy.data.images import Images
from regcache_deploy.errors import ConfigError, DataError
from regcache_engines.preprocess import Preprocess

CLIP: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "mode": "RGB",
    "fill_color": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "clip": {"size": 224, "interpolation": "bicubic", "resize_mode": "shortest"},
    "bilinear": {"size": 96, "interpolation": "bilinear", "resize_mode": "shortest"},
    "siglip": {
        "size": (64, 64),
        "interpolation": "bicubic",
        "resize_mode": "squash",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    },
    "longest": {
        "size": 80,
        "interpolation": "bicubic",
        "resize_mode": "longest",
        "fill_color": 127,
    },
    "oblong": {"size": [48, 96], "interpolation": "bicubic", "resize_mode": "shortest"},
}
SIZES = [(1, 1), (7, 300), (301, 11), (48, 48), (224, 224), (225, 223), (640, 427)]
MODES = ["RGB", "L", "LA", "RGBA", "P", "CMYK", "1", "I;16", "I", "F", "YCbCr"]


def picture(size: tuple[int, int], mode: str) -> Image.Image:
    """A noisy gradient of the given (width, height) in any of Pillow's modes."""
    width, height = size
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 4))
    ramp = np.linspace(0, 1, width)[None, :, None]
    values = (noise * 0.5 + ramp * 127).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if mode in ("RGBA", "CMYK"):
        return Image.frombytes(mode, size, values.tobytes())
    if mode == "LA":
        return Image.frombytes(mode, size, np.ascontiguousarray(values[..., :2]).tobytes())
    return Image.fromarray(values[..., :3]).convert(mode)


def open_clip_transform(config):
    import_open_clip()
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(**config), is_train=False)


def ours(config, image_or_path) -> torch.Tensor:
    preprocess = Preprocess(config)
    read = preprocess.read if isinstance(image_or_path, Path) else preprocess
    pixels = torch.tensor(read(image_or_path))[None]
    assert tuple(pixels.shape[1:3]) == preprocess.size
    return next(Images(pixels, preprocess.mean, preprocess.std, "test").batches(1))[0]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("mode", MODES)
def test_equals_open_clip(name, mode):
    config = CLIP | CONFIGS[name]
    for size in SIZES:
        image = picture(size, mode)
        assert torch.equal(ours(config, image), open_clip_transform(config)(image)), size


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_equals_open_clip_from_files(tmp_path, suffix):
    config = CLIP | CONFIGS["clip"]
    path = tmp_path / f"image.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees: open_clip does not turn it back, so nor do we
    picture((313, 127), "RGB").save(path, exif=exif)
    with Image.open(path) as image:
        expected = open_clip_transform(config)(image)
    assert torch.equal(ours(config, path), expected)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", "jpg"), ("I;16", "png"), ("RGBA", "png"), ("P", "gif")]
)
def test_equals_open_clip_from_files_of_other_modes(tmp_path, mode, suffix):
    config = CLIP | CONFIGS["clip"]
    path = tmp_path / f"image.{suffix}"
    picture((90, 200), mode).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
        expected = open_clip_transform(config)(image)
    assert torch.equal(ours(config, path), expected)


def test_truncated_file_says_why(tmp_path):
    path = tmp_path / "image.jpg"
    picture((200, 200), "RGB").save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match="truncated"):
        Preprocess(CLIP | CONFIGS["clip"]).read(path)


def test_no_file_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is named."""
    path, seen = tmp_path / "image.jpg", tmp_path / "seen"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 36\n%%EndComments\n%%EOF\n")
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {seen}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for source in (path, path.read_bytes()):
        with pytest.raises(DataError, match="cannot identify image file the file"):
            Preprocess(CLIP | CONFIGS["clip"]).read(source)
    assert not seen.exists()


@pytest.mark.parametrize("form", "jpeg mpo png webp gif bmp tiff ppm avif".split())
def test_a_file_is_what_it_holds_whatever_it_is_named(tmp_path: Path, form: str) -> None:
    if form == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / "image.jpg"
    more = {"save_all": True, "append_images": [picture((40, 30), "RGB")]} if form == "mpo" else {}
    picture((40, 30), "RGB").save(path, form, **more)
    assert Preprocess(CLIP | CONFIGS["clip"]).read(path).shape == (224, 224, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_image_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 5_000)).save(path)
    with pytest.raises(DataError, match="20000 x 5000 pixels are too many"):
        Preprocess(CLIP | CONFIGS["clip"]).read(path)


@pytest.mark.parametrize("more", [{}, {"crop_pct": 0.9}])
def test_an_image_too_long_to_be_resized_is_refused_before_it_is_decoded(more):
    file = io.BytesIO()
    Image.new("RGB", (1, 60_000)).save(file, "PNG")
    with Image.open(file) as image:
        with pytest.raises(DataError, match="too long and narrow"):
            Preprocess(CLIP | CONFIGS["clip"] | more)(image)
        assert image.fp is not None


@pytest.mark.parametrize(
    "change",
    [{"size": 224, "colour": "RGB"}, {"resize_mode": "crop"}, {"mode": "L"}],
)
def test_unknown_preprocessing_is_refused(change):
    with pytest.raises(ConfigError):
        Preprocess(CLIP | CONFIGS["clip"] | change)
