"""The embedded demo's digits as `Images`, preprocessed for any encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from regcache_engines.preprocess import Preprocess

from ..errors import ConfigError
from ..work.progress import Reporter
from .images import Images


def load_demo_images(
    split: str,
    count: int,
    seed: int = 0,
    *,
    preprocess_cfg: Mapping[str, Any],
    reporter: Reporter | None = None,
) -> Images:
    """Draw `count` canvases with two-digit numbers.

    Args:
        split: `train`, `search` or `heldout`: disjoint sets of handwritten digits.
        count: canvases to draw; image `i` is the same for every count.
        seed: another seed draws other canvases from the same handwritten digits.
        preprocess_cfg: open_clip's; at the demo's own size the pixels stay as drawn.
        reporter: shows progress.

    Raises:
        ConfigError: unknown split, or a count below 1.
    """
    from PIL import Image

    from ..demo.digits import CLASS_NAMES, SPLITS, render

    if split not in SPLITS:
        raise ConfigError(f"the demo has no split '{split}'; take one of: {', '.join(SPLITS)}")
    if count < 1:
        raise ConfigError(f"cannot draw {count} images; take at least 1")
    preprocess = Preprocess(preprocess_cfg)
    with (reporter or Reporter(quiet=True)).stage(f"drawing digits ({split})", count) as advance:
        canvases, labels = render(split, count, seed)
        pixels = torch.empty(count, *preprocess.size, 3, dtype=torch.uint8)
        for index, canvas in enumerate(canvases):
            pixels[index] = torch.tensor(preprocess(Image.fromarray(canvas)))
            advance()
    return Images(
        pixels=pixels,
        mean=preprocess.mean,
        std=preprocess.std,
        source=f"demo digits, split {split}, seed {seed}",
        labels=torch.as_tensor(labels, dtype=torch.int64),
        class_names=tuple(CLASS_NAMES),
        tried=count,
    )
