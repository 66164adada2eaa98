"""Preprocessing equals the model library's own, bit for bit, on awkward images (`golden`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from regcache_deploy.compat import import_open_clip
from regcache_deploy.data.stream import ImageStream, Item
from regcache_deploy.evaluation.bundle_evaluation import Session
from regcache_deploy.work.progress import Reporter
from regcache_engines.preprocess import Preprocess
from regcache_export.bundle import write_bundle
from tests.tiny_plans import tiny_plan

GOLDEN = sorted(p for p in (Path(__file__).parent / "golden").iterdir() if p.suffix != ".py")
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def open_clip_config(**changes: Any) -> dict[str, Any]:
    base = {"size": 224, "mode": "RGB", "mean": MEAN, "std": STD, "interpolation": "bicubic"}
    return base | {"resize_mode": "shortest", "fill_color": 0} | changes


def timm_config(crop_pct: float, size: int = 96) -> dict[str, Any]:
    crop = {"crop_pct": crop_pct, "crop_mode": "center"}
    return open_clip_config(size=[size, size], interpolation="bilinear") | crop


def library_transform(config: dict[str, Any]) -> Any:
    import_open_clip()
    if "crop_pct" in config:
        from timm.data.transforms_factory import create_transform

        return create_transform(
            input_size=(3, *config["size"]),
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )
    from open_clip.transform import PreprocessCfg, image_transform_v2

    values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    return image_transform_v2(PreprocessCfg(**values), is_train=False)


CONFIGS = {
    "clip": open_clip_config(),
    "siglip": open_clip_config(size=[64, 64], resize_mode="squash", mean=[0.5] * 3, std=[0.5] * 3),
    "longest": open_clip_config(size=80, resize_mode="longest", fill_color=127),
    "timm": timm_config(0.9),
    "timm dinov2": timm_config(1.0, 98),
}


def stream_of(config: dict[str, Any], paths: list[Path]) -> ImageStream:
    items = [Item(p.name, p) for p in paths]
    return ImageStream(lambda: items, Preprocess(config), "golden", decoders=2)


def images_of(stream: ImageStream, size: int) -> torch.Tensor:
    return torch.cat([torch.from_numpy(b.images) for b in stream.batches(size)])


@pytest.mark.parametrize("name", CONFIGS)
def test_streamed_pixels_equal_the_librarys(name):
    config = CONFIGS[name]
    got = images_of(stream_of(config, GOLDEN), 5)
    transform = library_transform(config)
    assert len(got) == len(GOLDEN) >= 12
    for path, ours in zip(GOLDEN, got, strict=True):
        with Image.open(path) as image:
            # timm's readers convert first; open_clip's transform does it itself
            theirs = transform(image.convert("RGB") if "crop_pct" in config else image)
        assert torch.equal(ours, theirs), path.name


def test_the_bundle_carries_the_same_preprocessing(tmp_path):
    from dataclasses import replace

    config = timm_config(0.9, 32) | {"size": [32, 24]}
    plan = replace(tiny_plan(), preprocess=config)
    plan.save(tmp_path)
    write_bundle(plan, tmp_path / "t.regcache")
    with Session(tmp_path / "t.regcache", ("fp32",), Reporter(quiet=True)) as session:
        items = [Item(p.name, p) for p in GOLDEN]
        stream = ImageStream(lambda: items, session.preprocess, "golden")
        got = images_of(stream, 64)
    expected = images_of(stream_of(config, GOLDEN), 64)
    assert torch.equal(got, expected)
    assert got.shape[2:] == (32, 24)


def test_golden_images_are_as_awkward_as_they_say():
    modes = {}
    for path in GOLDEN:
        with Image.open(path) as image:
            modes[path.name] = image.mode
            if path.name == "rotated.jpg":
                assert image.getexif()[0x0112] == 6
    assert {"L", "LA", "RGBA", "I;16", "CMYK", "P", "1", "RGB"} == set(modes.values())
    assert sum(p.stat().st_size for p in GOLDEN) < 1_000_000
