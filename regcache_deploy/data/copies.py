"""Sets of images with their altered copies (`alterations`)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .alterations import DEFAULT, Alterations, altered_pixels
from .images import Images

__all__ = ["Alterations", "altered", "with_copies"]


def altered(
    pixels: Tensor, seed: int = 0, first: int = 0, alterations: Alterations = DEFAULT
) -> Tensor:
    """`altered_pixels` of a tensor."""
    return torch.from_numpy(altered_pixels(pixels.numpy(), seed, first, alterations))


def with_copies(images: Images, seed: int = 0, alterations: Alterations = DEFAULT) -> Images:
    """The n images, then their n copies in the same order; without labels."""
    count = len(images)
    pixels = torch.empty(2 * count, *images.pixels.shape[1:], dtype=torch.uint8)
    pixels[:count] = images.pixels
    altered_pixels(images.pixels.numpy(), seed, 0, alterations, pixels[count:].numpy())
    return replace(
        images,
        pixels=pixels,
        labels=None,
        class_names=(),
        source=f"{images.source}, with altered copies (seed {seed})",
    )
