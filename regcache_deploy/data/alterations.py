"""Altered copies of images, for copy detection: a crop, a flip, other light and colour.

Every image has a random generator of its own, seeded by its index, so that its copy does not depend
on how many others there are or on how they are split into batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from regcache_engines.preprocess import Pixels


@dataclass(frozen=True)
class Alterations:
    """How strongly a copy differs. Ranges are drawn from uniformly.

    Attributes:
        area: share of the image that the crop keeps; its aspect stays.
        flip: probability of a horizontal flip.
        brightness, colour: factors, Pillow's `ImageEnhance`.
    """

    area: tuple[float, float] = (0.35, 0.6)
    flip: float = 0.5
    brightness: tuple[float, float] = (0.6, 1.4)
    colour: tuple[float, float] = (0.3, 1.5)


DEFAULT = Alterations()


def altered_pixels(
    pixels: Pixels,
    seed: int = 0,
    first: int = 0,
    alterations: Alterations = DEFAULT,
    out: Pixels | None = None,
) -> Pixels:
    """One altered copy of each image, resized back.

    Args:
        pixels: uint8 `[n, H, W, 3]`.
        seed: another one gives other copies.
        first: index of the first image, where `pixels` is a part of a set.
        alterations: how strong.
        out: where they go, of the same shape; None makes an array.

    Returns:
        uint8 `[n, H, W, 3]`.
    """
    out = np.empty_like(pixels) if out is None else out
    for row in range(len(pixels)):
        generator = np.random.default_rng([seed, first + row])
        out[row] = _alter(pixels[row], generator, alterations)
    return out


def _alter(pixels: Pixels, generator: np.random.Generator, how: Alterations) -> Pixels:
    """`[H, W, 3]` -> `[H, W, 3]`."""
    from PIL import Image, ImageEnhance

    height, width = pixels.shape[:2]
    side = generator.uniform(*how.area) ** 0.5
    h, w = max(1, round(height * side)), max(1, round(width * side))
    top = int(generator.integers(0, height - h + 1))
    left = int(generator.integers(0, width - w + 1))
    image = Image.fromarray(pixels)
    box = (left, top, left + w, top + h)
    image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    if generator.random() < how.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = ImageEnhance.Brightness(image).enhance(generator.uniform(*how.brightness))
    image = ImageEnhance.Color(image).enhance(generator.uniform(*how.colour))
    return np.array(image)
