"""Said before an export: what this CPU does to 8-bit products."""

from __future__ import annotations

import logging
from pathlib import Path

from regcache_engines.cpu_flags import CPUINFO, may_saturate

logger = logging.getLogger(__name__)


def warn_about_saturation(weight_bits: int, cpuinfo: Path = CPUINFO) -> bool:
    """Warn where u8s8 products are not exact on this CPU; returns whether it did."""
    if weight_bits < 8 or not may_saturate(cpuinfo):
        return False
    logger.warning(
        "this CPU has no VNNI instructions: sums of two u8s8 products may saturate at 16 bits. Our "
        "Python engine asks ONNX Runtime for exact ones, which are slower; another program must "
        "set session.x64quantprecision=1 itself. --reduce-range needs neither"
    )
    return True
