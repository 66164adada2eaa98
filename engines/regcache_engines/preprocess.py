"""From an image to the pixels that an encoder takes, with Pillow and numpy alone.

The same pixels, bit for bit, as open_clip's evaluation transform and, where the configuration has
`crop_pct` or `crop_mode`, timm's. libregcache (`preprocess.cpp`) does the same in C++.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .errors import BundleError, ConfigError, DataError
from .jpeg_scans import too_many_scans
from .png_chunks import SIGNATURE, plain_png
from .preprocess_config import output_size, preprocess_problem

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 89_478_485
"""Pillow's own limit of harmless size (0.25 GiB of RGB): above it Pillow only warns at first."""

MAX_FILE = 1 << 30

MAX_RESIZED = 1 << 30
"""A photograph of 1 x 1,000,000 pixels would be resized to 224 x 224,000,000."""

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's CLIP; open_clip's defaults."""

JPEG = ("JPEG", "MPO")
"""Pillow's names of the format; the second one holds several pictures."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF")
"""What files may hold, whatever they are named. Pillow knows forty more: for PostScript it starts
Ghostscript, and in the rarest of them most faults of its decoders were found."""

TIMM_FIELDS = frozenset({"crop_pct", "crop_mode"})
"""Fields beside open_clip's that ask for timm's transform: resize to size / crop_pct, then crop."""

TIMM_CROP = 0.875
TIMM_MODES = {"squash": "squash", "border": "longest"}
"""timm's crop mode -> open_clip's resize mode; the others resize the shortest edge."""


def resizing(config: Mapping[str, Any]) -> tuple[str, str, float]:
    """Resize mode, crop mode, and the share of the resized image that the crop keeps.

    As `Preprocess` reads them: with one of timm's fields, the others are timm's, too.
    """
    if not TIMM_FIELDS & config.keys():
        return config.get("resize_mode") or "shortest", "center", 1.0
    crop, share = config.get("crop_mode", "center"), config.get("crop_pct", TIMM_CROP)
    return TIMM_MODES.get(crop, "shortest"), crop, share


class Preprocess:
    """The evaluation transform of a preprocess_cfg, up to uint8 pixels.

    It holds no state, so any number of threads may share it.

    Args:
        config: open_clip's preprocess_cfg: size, mode, mean, std, interpolation, resize_mode,
            fill_color; with timm's crop_pct or crop_mode, timm's own transform.

    Attributes:
        config: with lists where open_clip has tuples.
        size: height and width of the result in pixels.
        mean, std: per channel, for pixels in [0, 1].

    Raises:
        ConfigError: an unknown field, or a value that open_clip or timm refuses.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in config.items()
        }
        if problem := preprocess_problem(self.config):
            raise ConfigError(f"the preprocessing {problem}: {self.config}")
        self.size = output_size(self.config)
        self.mean = tuple(map(float, self.config.get("mean", MEAN)))
        self.std = tuple(map(float, self.config.get("std", STD)))
        self._timm = bool(TIMM_FIELDS & self.config.keys())
        self._resize_for, self._mode = self.size, self.config.get("resize_mode")
        self._fill: int | tuple[int, ...] = self.config.get("fill_color", 0)
        if self._timm:
            part = self.config.get("crop_pct", TIMM_CROP)
            self._resize_for = (math.floor(self.size[0] / part), math.floor(self.size[1] / part))
            self._mode = TIMM_MODES.get(self.config.get("crop_mode", "center"))
            self._fill = tuple(min(max(round(255 * mean), 0), 255) for mean in self.mean)

    def __call__(self, image: Any) -> Pixels:
        """A PIL image of any mode -> uint8 `[H, W, 3]`, RGB.

        Raises:
            DataError: so long and narrow that resizing would take gigabytes.
        """
        size = self._resized_size(image)  # refuses before anything is decoded
        if self._timm:  # its readers convert first; open_clip resizes in the image's own mode
            image = image.convert("RGB")
        resized = self._resized(image, size)
        return np.asarray(self._cropped(resized).convert("RGB"), dtype=np.uint8)

    def opened(self, image: Any) -> Pixels:
        """A PIL image that may not be decoded yet -> uint8 `[H, W, 3]`, RGB.

        Raises:
            DataError: too many pixels, a JPEG of too many scans, PostScript, or as `__call__`.
        """
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"{image.width} x {image.height} pixels are too many")
        file = getattr(image, "fp", None)  # None once it is decoded
        if file is not None and image.format == "EPS":  # Pillow would start Ghostscript on it
            raise DataError("PostScript is a program, not an image; convert it")
        if file is not None and image.format in JPEG:
            place = file.tell()
            file.seek(0)
            if too_many_scans(file.read(), image.width * image.height):
                raise DataError("the file has too many scans")
            file.seek(place)
        return self(image)

    def read(self, source: Path | str | bytes) -> Pixels:
        """An image file of one of `FORMATS`, or its bytes -> uint8 `[H, W, 3]`, RGB.

        The pixels are taken as stored: like open_clip, it does not follow the EXIF orientation.

        Raises:
            DataError: it cannot be decoded; the message holds the reason alone.
        """
        from PIL import Image

        place = Path("the file") if isinstance(source, bytes) else Path(source)
        try:
            with _opened(source, place) as file, Image.open(file, formats=_formats()) as image:
                return self.opened(image)
        except (DataError, MemoryError):
            raise
        # A damaged file makes Pillow's decoders raise OSError, SyntaxError, struct.error,
        # ValueError, IndexError and more.
        except Exception as error:
            raise DataError(reason(error, place)) from error

    def normalized(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """uint8 `[B, H, W, 3]` -> float32 `[B, 3, H, W]`, as ToTensor and Normalize do it."""
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        scaled = pixels.astype(np.float32) / np.float32(255)
        scaled -= mean
        scaled /= std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def in_layout(self, pixels: Pixels, layout: str | None) -> npt.NDArray[Any]:
        """uint8 images `[B, H, W, 3]` as an encoder takes them.

        Args:
            pixels: raw.
            layout: `Engine.pixels`: `nchw` or `nhwc` for an encoder that takes raw pixels, None
                for normalized float32 `[B, 3, H, W]`.
        """
        if layout is None:
            return self.normalized(pixels)
        return np.ascontiguousarray(pixels if layout == "nhwc" else pixels.transpose(0, 3, 1, 2))

    def _resized_size(self, image: Any) -> tuple[int, int]:
        """Width and height before the crop."""
        height, width = self._resize_for
        if self._mode not in ("squash", "longest"):
            if height == width:  # torchvision truncates the longer side ...
                short, long = sorted(image.size)
                other = int(height * long / short)
                width, height = (height, other) if image.width <= image.height else (other, height)
            else:
                width, height = _ratio_kept(image.size, (width, height), min)
        elif self._mode == "longest":  # ... and timm rounds both
            width, height = _ratio_kept(image.size, (width, height), max)
        if width * height > MAX_RESIZED:
            raise DataError(
                f"{image.width} x {image.height} pixels are too long and narrow to be resized"
            )
        return width, height

    def _resized(self, image: Any, size: tuple[int, int]) -> Any:
        from PIL import Image

        if image.size == size:
            return image
        bilinear = self.config.get("interpolation") == "bilinear"
        height, width = self._resize_for
        if self._mode not in ("squash", "longest") and height != width:
            bilinear = bilinear and self._timm  # open_clip forgets the filter here
        kind = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
        return image.resize(size, kind)

    def _cropped(self, image: Any) -> Any:
        """The middle, with a border where the image is too small."""
        height, width = self.size
        lacking = max(width - image.width, 0), max(height - image.height, 0)
        if any(lacking):
            image = self._padded(image, lacking)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        if image.size == (width, height):
            return image
        return image.crop((left, top, left + width, top + height))

    def _padded(self, image: Any, lacking: Sequence[int]) -> Any:
        from PIL import ImageOps

        fill: int | tuple[int, ...] = self._fill if self._mode == "longest" else 0
        if isinstance(fill, int) and len(image.getbands()) > 1:
            fill = (fill,) * len(image.getbands())
        x, y = lacking
        return ImageOps.expand(image, (x // 2, y // 2, (x + 1) // 2, (y + 1) // 2), fill)


def in_layout(pixels: Pixels, layout: str | None, config: Mapping[str, Any]) -> npt.NDArray[Any]:
    """`Preprocess.in_layout` of a bundle's or a plan's preprocessing.

    Raises:
        BundleError: the preprocessing has no mean and std, or is none.
    """
    if layout is None and not {"mean", "std"} <= config.keys():
        raise BundleError("the preprocessing has no mean and std; export again")
    try:
        return Preprocess(config).in_layout(pixels, layout)
    except ConfigError as error:
        raise BundleError(str(error)) from error


def _opened(source: Path | str | bytes, place: Path) -> BinaryIO:
    """An image file for Pillow; a PNG without what its pixels do not depend on."""
    if not isinstance(source, bytes):
        if place.exists() and not place.is_file():
            raise DataError("not a file")  # a named pipe would be waited for
        if place.stat().st_size > MAX_FILE:
            raise DataError(f"{place.stat().st_size} bytes are too many")
    file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else place.open("rb")
    start = file.read(len(SIGNATURE))
    file.seek(0)
    if start != SIGNATURE:
        return file
    with file:
        return io.BytesIO(plain_png(file.read()))


def reason(error: Exception, path: Path) -> str:
    """One line on why an image was not read, without its path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.replace(repr(str(path)), "the file").replace(str(path), "the file")
    return re.sub(r"<_io\.\w+[^>]*>", "the file", text)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow knows; before 11.3 it had no AVIF."""
    return FORMATS if find_spec("PIL.AvifImagePlugin") else FORMATS[:-1]


def _ratio_kept(have: Sequence[int], want: Sequence[int], choose: Any) -> tuple[int, int]:
    ratio = choose(side / target for side, target in zip(have, want, strict=True))
    width, height = (round(side / ratio) for side in have)
    return width, height
