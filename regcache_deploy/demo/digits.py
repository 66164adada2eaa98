"""Two-digit numbers 00..99 on small colour canvases, drawn from scikit-learn's handwritten digits.

The 1797 scanned digits that ship with scikit-learn are split once, per class and with a fixed
seed, into three disjoint parts, so that no handwritten digit is seen in two of them:

- ``train`` (75 %): the images that the demo encoder is trained, calibrated and searched on;
- ``search`` (5 %): digits that no weight was trained on, for a search on fresh images;
- ``heldout`` (20 %): evaluation.

Every canvas places two different digits side by side with random position, size, slant, colour,
contrast, background shading, small blots and pixel noise. Everything is seeded: image ``i`` of
``render(split, n, seed)`` is the same for every ``n``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

CANVAS = 48
"""Height and width of a canvas in pixels."""

SPLITS = ("train", "search", "heldout")
_SHARES = (0.75, 0.05, 0.20)
_SPLIT_SEED = 2510
_CHUNK = 512

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def number_name(number: int) -> str:
    """English name of a number in 0..99, for example ``forty-two``."""
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")


CLASS_NAMES: list[str] = [number_name(number) for number in range(100)]
"""Names of the 100 classes; class ``i`` is drawn with two digits (7 as ``07``)."""

TEMPLATES: tuple[str, ...] = (
    "a photo of the number {}.",
    "a picture of the number {}.",
    "the handwritten number {}.",
    "{}",
)
"""Prompt templates of the zero-shot head."""


@dataclass(frozen=True)
class Canvases:
    """A batch of renderings.

    ``images`` uint8 [n, 48, 48, 3]; ``labels`` int64 [n] in 0..99; ``ink`` float32 [n, 48, 48],
    how much of a pixel is covered by a digit or a blot (0 = empty background, 1 = full).
    """

    images: np.ndarray
    labels: np.ndarray
    ink: np.ndarray


@lru_cache(maxsize=1)
def _digit_bank() -> tuple[np.ndarray, dict[str, list[np.ndarray]]]:
    """All digits, float32 [1797, 10, 10] in 0..1 with an empty rim; indices by split and class."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    glyphs = np.pad(bunch.images.astype(np.float32) / 16.0, ((0, 0), (1, 1), (1, 1)))
    members: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    rng = np.random.default_rng(_SPLIT_SEED)
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(bunch.target == digit))
        stops = np.round(np.cumsum(_SHARES) * len(order)).astype(int)[:-1]
        for name, part in zip(SPLITS, np.split(order, stops), strict=True):
            members[name].append(np.sort(part))
    return glyphs, members


def split_indices(split: str) -> np.ndarray:
    """Indices into ``sklearn.datasets.load_digits()`` that a split may draw."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the demo has {', '.join(SPLITS)}")
    return np.sort(np.concatenate(_digit_bank()[1][split]))


def _warp(glyphs: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Sample glyphs [n, 10, 10] bilinearly on the canvas.

    ``affine`` [n, 2, 3] maps canvas pixels (y, x, 1) to glyph coordinates. Returns [n, 48, 48].
    """
    count, height, width = glyphs.shape
    grid = np.arange(CANVAS, dtype=np.float32) + 0.5
    rows = affine[:, :, 0, None, None] * grid[:, None]
    columns = affine[:, :, 1, None, None] * grid[None, :]
    points = rows + columns + affine[:, :, 2, None, None]
    y = np.clip(points[:, 0], 0, height - 1.001)
    x = np.clip(points[:, 1], 0, width - 1.001)
    top, left = y.astype(np.int32), x.astype(np.int32)
    fy, fx = y - top, x - left
    base = np.arange(count, dtype=np.int32)[:, None, None] * (height * width) + top * width + left
    flat = glyphs.reshape(-1)
    upper = flat[base] * (1 - fx) + flat[base + 1] * fx
    lower = flat[base + width] * (1 - fx) + flat[base + width + 1] * fx
    sampled: np.ndarray = upper * (1 - fy) + lower * fy
    return sampled


def _placements(rng: np.random.Generator, count: int) -> np.ndarray:
    """Affine maps [2, count, 2, 3] of the left and the right digit (canvas -> glyph)."""
    size = rng.uniform(21.0, 25.0, (1, count)) * rng.uniform(0.95, 1.05, (2, count))
    shift = rng.uniform(-1.5, 1.5, (1, count))
    half_gap = rng.uniform(8.0, 9.0, (1, count)) * size.mean(0) / 23.0
    side = np.array([[-1.0], [1.0]])
    centre_x = CANVAS / 2 + shift + side * half_gap
    centre_y = CANVAS / 2 + rng.uniform(-2.0, 2.0, (1, count)) + rng.uniform(-0.5, 0.5, (2, count))
    slant = rng.uniform(-0.22, 0.22, (2, count))
    angle = rng.uniform(-0.15, 0.15, (2, count))
    pixels = 8.0 / size
    cos, sin = np.cos(angle) * pixels, np.sin(angle) * pixels
    linear = np.stack([np.stack([cos, -sin], -1), np.stack([sin + slant * pixels, cos], -1)], -2)
    centre = np.stack([centre_y, centre_x], -1)
    offset = 4.5 - np.einsum("scij,scj->sci", linear, centre)
    return np.concatenate([linear, offset[..., None]], -1).astype(np.float32)


def _blots(rng: np.random.Generator, count: int) -> np.ndarray:
    """Up to three soft round blots near the rim of each canvas, [count, 48, 48] in 0..1."""
    grid = np.arange(CANVAS, dtype=np.float32) + 0.5
    ink = np.zeros((count, CANVAS, CANVAS), np.float32)
    for _ in range(3):
        along = rng.uniform(2, CANVAS - 2, count)
        across = np.where(rng.random(count) < 0.5, 3.5, CANVAS - 3.5) + rng.normal(0, 0.7, count)
        flip = rng.random(count) < 0.5
        y, x = np.where(flip, along, across), np.where(flip, across, along)
        radius = rng.uniform(1.2, 2.4, count)
        present = (rng.random(count) < 0.5).astype(np.float32)
        dy = (grid[None, :] - y[:, None])[:, :, None]
        dx = (grid[None, :] - x[:, None])[:, None, :]
        distance = np.sqrt(dy**2 + dx**2) - radius[:, None, None]
        ink = np.maximum(ink, np.clip(0.5 - distance, 0, 1) * present[:, None, None])
    return ink.astype(np.float32)


def _render_chunk(split: str, seed: int, chunk: int) -> Canvases:
    glyphs, members = _digit_bank()
    rng = np.random.default_rng([SPLITS.index(split), seed, chunk])
    labels = rng.integers(0, 100, _CHUNK)
    ink = np.zeros((_CHUNK, CANVAS, CANVAS), np.float32)
    draws = rng.random((2, _CHUNK))
    for affine, digits, draw in zip(
        _placements(rng, _CHUNK), (labels // 10, labels % 10), draws, strict=True
    ):
        chosen = [
            members[split][d][int(r * len(members[split][d]))]
            for d, r in zip(digits, draw, strict=True)
        ]
        weight = rng.uniform(0.6, 1.5, (_CHUNK, 1, 1)).astype(np.float32)  # thick .. thin pen
        ink = np.maximum(ink, _warp(glyphs[np.array(chosen)], affine) ** weight)
    ink = np.maximum(ink, _blots(rng, _CHUNK))

    return Canvases(_paint(rng, ink), labels.astype(np.int64), ink)


def _paint(rng: np.random.Generator, ink: np.ndarray) -> np.ndarray:
    """Colour, shade and noise for ink [n, 48, 48]; returns uint8 [n, 48, 48, 3]."""
    count = len(ink)
    background = rng.uniform(0.05, 0.45, (count, 1, 1, 3))
    stroke = rng.uniform(0.35, 0.55, (count, 1, 1, 1)) * rng.uniform(0.6, 1.0, (count, 1, 1, 3))
    ramp = ((np.arange(CANVAS) + 0.5) / CANVAS - 0.5).astype(np.float32)
    slope = rng.normal(0, 0.05, (2, count, 1, 1)).astype(np.float32)
    shade = slope[0] * ramp[:, None] + slope[1] * ramp[None, :]
    colour = rng.standard_normal((count, CANVAS, CANVAS, 3), dtype=np.float32)
    colour *= rng.uniform(0.01, 0.05, (count, 1, 1, 1)).astype(np.float32)
    colour += ink[..., None] * stroke.astype(np.float32)
    colour += background.astype(np.float32)
    colour += shade[..., None]
    np.clip(colour, 0, 1, out=colour)
    colour *= 255
    colour += 0.5
    return colour.astype(np.uint8)


def render_canvases(split: str, n: int, seed: int = 0) -> Canvases:
    """Draw ``n`` canvases of a split with their ink masks."""
    split_indices(split)
    parts = [_render_chunk(split, seed, chunk) for chunk in range(-(-n // _CHUNK))]
    if not parts:
        parts = [_render_chunk(split, seed, 0)]
    return Canvases(
        *(
            np.concatenate([getattr(part, name) for part in parts])[:n]
            for name in ("images", "labels", "ink")
        )
    )


def render(split: str, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``n`` canvases: uint8 images [n, 48, 48, 3] (RGB) and int64 labels [n] in 0..99.

    ``split`` is ``train``, ``search`` or ``heldout``; other names raise ``ValueError``.
    """
    canvases = render_canvases(split, n, seed)
    return canvases.images, canvases.labels
