"""What the outlier monitor takes for normal: saturated codes on the calibration images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regcache_engines.bundle import Bundle
from regcache_engines.engine import Array
from regcache_engines.monitor import probe_rates

from .data.images import Images
from .options import ExportOptions


def monitor_entry(options: ExportOptions, draft: Path, images: Images) -> dict[str, Any]:
    """The manifest's `monitor`, or nothing where the bundle has no probes.

    Args:
        options: of the export.
        draft: the bundle.
        images: those that the calibration took come first.
    """
    if not options.probes:
        return {}
    count = min(options.calibration_images, len(images))
    size = options.batch or options.batch_size
    if options.batch:
        count = max(count // size, 1) * size
    rates = probe_rates(
        Bundle.open(draft),
        _feed(images.subset(slice(0, count)), options.bake_preprocess, size),
        options.threads,
    )
    return {"monitor": {"images": count, "calibrated_rates": rates}}


def _feed(images: Images, layout: str | None, size: int) -> Iterator[Array]:
    """Batches as the graph takes them."""
    if layout is None:
        for batch in images.batches(size):
            yield batch.numpy()
        return
    pixels = images.pixels if layout == "nhwc" else images.pixels.permute(0, 3, 1, 2)
    for part in pixels.split(size):
        yield part.contiguous().numpy()
