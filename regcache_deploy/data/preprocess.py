"""Decode and preprocess one image exactly as open_clip or timm does, up to uint8 pixels.

open_clip's transform ends in ToTensor and Normalize. Those two are left to `Images.batches`, so
that a set of images is kept in a quarter of the memory and the deployed graph can be fed the same
bytes. Everything before them is open_clip's own code, not ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..compat import import_open_clip
from ..errors import ConfigError, DataError

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 89_478_485
"""Pillow's own limit of harmless size (0.25 GiB of RGB): above it Pillow only warns at first."""


TIMM_FIELDS = {"crop_pct", "crop_mode"}
"""Fields beside open_clip's that ask for timm's transform: resize to size / crop_pct, then crop."""


class Preprocess:
    """The evaluation transform of a preprocess_cfg, without ToTensor and Normalize.

    Args:
        config: open_clip's preprocess_cfg: size, mode, mean, std, interpolation, resize_mode,
            fill_color. With timm's crop_pct and crop_mode in it, timm's own transform is taken.

    Raises:
        ConfigError: a field that open_clip does not know, or a value it refuses.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        import_open_clip()
        from open_clip.transform import PreprocessCfg, image_transform_v2

        known = {field.name for field in fields(PreprocessCfg)}
        unknown = sorted(config.keys() - known - TIMM_FIELDS)
        if unknown:
            raise ConfigError(f"the preprocessing has unknown fields: {', '.join(unknown)}")
        try:
            # JSON has lists where open_clip has tuples.
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
            crop = {k: values.pop(k) for k in TIMM_FIELDS if k in values}
            self.config = PreprocessCfg(**values)
            steps = (
                _timm_steps(self.config, crop)
                if crop
                else image_transform_v2(self.config, is_train=False).transforms
            )
        except (AssertionError, TypeError, ValueError) as error:
            raise ConfigError(f"open_clip refuses the preprocessing {dict(config)}") from error
        names = [type(step).__name__ for step in steps[-2:]]
        if names != ["MaybeToTensor", "Normalize"]:
            raise ConfigError(
                f"this library ends its transform with {' and '.join(names)}; "
                "install open_clip_torch 3.x and timm 1.x"
            )
        self._steps: list[Callable[[Any], Any]] = steps[:-2]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result in pixels."""
        return cast("tuple[int, int]", tuple(self.config.input_size[1:]))

    def __call__(self, image: Any) -> Pixels:
        """A PIL image of any mode -> uint8 `[H, W, 3]`, RGB."""
        for step in self._steps:
            image = step(image)
        return np.asarray(image, dtype=np.uint8)

    def read(self, path: Path) -> Pixels:
        """Read an image file -> uint8 `[H, W, 3]`.

        The pixels are taken as stored: like open_clip, it does not follow the EXIF orientation.

        Raises:
            DataError: the file cannot be decoded; the message holds the reason alone.
        """
        from PIL import Image

        try:
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"{image.width} x {image.height} pixels are too many")
                return self(image)
        except (DataError, MemoryError):
            raise
        # A damaged file makes Pillow's decoders raise OSError, SyntaxError, struct.error,
        # ValueError, IndexError and more.
        except Exception as error:
            raise DataError(reason(error, path)) from error


def _timm_steps(config: Any, crop: Mapping[str, Any]) -> list[Callable[[Any], Any]]:
    """Steps of timm's evaluation transform, after the conversion to RGB that its readers do."""
    from timm.data.transforms_factory import create_transform

    transform = create_transform(
        input_size=config.input_size,
        is_training=False,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=crop.get("crop_pct"),
        crop_mode=crop.get("crop_mode"),
    )
    return [lambda image: image.convert("RGB"), *transform.transforms]


def reason(error: Exception, path: Path) -> str:
    """One line on why an image was not read, without its path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace(repr(str(path)), "the file").replace(str(path), "the file")
