"""What the outlier monitor takes for normal: saturated codes on the calibration images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regcache_engines.bundle import Bundle
from regcache_engines.preprocess import in_layout
from regcache_engines.probe_rates import probe_rates
from regcache_export.bundle_graph import graph_options

BATCH = 32


def monitor_entry(
    draft: Path,
    pixels: npt.NDArray[np.uint8],
    batch_size: int = BATCH,
    threads: int | None = None,
) -> dict[str, Any]:
    """The manifest's `monitor`, or nothing where the bundle has no probes.

    Args:
        draft: the bundle.
        pixels: images `[n, H, W, 3]` of the calibration.
        batch_size: images of a call, where the graph takes any number.
        threads: of ONNX Runtime.
    """
    bundle = Bundle.open(draft)
    options = graph_options(bundle)
    if not options.probes:
        return {}
    size, count = options.batch or batch_size, len(pixels)
    if options.batch:  # it is always full: the rest stays out, or too few images are repeated
        pixels = np.resize(pixels, (max(count // size, 1) * size, *pixels.shape[1:]))
    batches = (
        in_layout(pixels[start : start + size], options.pixels, bundle.preprocess)
        for start in range(0, len(pixels), size)
    )
    rates = probe_rates(bundle, batches, threads)
    return {"monitor": {"images": min(count, len(pixels)), "calibrated_rates": rates}}
