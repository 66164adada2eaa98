"""Watch a deployed encoder: how many integer codes leave the range that calibration foresaw.

The same counts and sentences as libregcache's (`monitor.cpp`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from .engine import Array

WINDOW = 32
"""Images; a single odd picture is no drift."""

FLOOR = 1e-3
"""Rates below it change nothing."""

UNKNOWN = 1e-2
"""What is normal where the bundle does not say."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeReport:
    """What one probe has seen.

    Attributes:
        name: of the quantized tensor.
        codes: integer codes seen.
        low, high: of these, at the lowest and at the highest code.
        calibrated_low_rate, calibrated_high_rate: share on the calibration images; NaN if unknown.
    """

    name: str
    codes: int
    low: int
    high: int
    calibrated_low_rate: float
    calibrated_high_rate: float

    @property
    def low_rate(self) -> float:
        """`low / codes`; 0 where no code was seen."""
        return self.low / self.codes if self.codes else 0.0

    @property
    def high_rate(self) -> float:
        """`high / codes`; 0 where no code was seen."""
        return self.high / self.codes if self.codes else 0.0


class Monitor:
    """Counts the codes at either end of their range; any number of threads may add.

    The ends are counted apart, because one of them may be full by nature: behind GELU, whose values
    end at -0.17, many codes are the lowest one.

    Args:
        manifest: of a checked bundle.
        factor: how many times the calibrated rate is too much; 0 never warns.
        warn: called with one sentence, each probe's at most once, from the thread that adds; None
            logs it.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        factor: float = 4.0,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self._probes: list[dict[str, Any]] = manifest["graph"].get("probes") or []
        rates = _object(_object(manifest.get("monitor")).get("calibrated_rates"))
        self._calibrated = [_rates(rates.get(probe["output"])) for probe in self._probes]
        self._factor = factor
        self._warn = warn or log.warning
        self._lock = Lock()
        shape = (len(self._probes), 3)  # codes, at the low end, at the high end
        self._all, self._recent = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._recent_images = self._pauses = 0
        self._warned = [False] * len(self._probes)

    @property
    def outputs(self) -> list[str]:
        """The graph's outputs that `add` takes, in its order."""
        return [probe["output"] for probe in self._probes]

    def add(self, codes: Sequence[Array], images: int) -> None:
        """Count the codes of `images` images, one int8 or uint8 array a probe."""
        counts = np.array(
            [_counts(part, probe) for part, probe in zip(codes, self._probes, strict=True)],
            np.int64,
        ).reshape(self._all.shape)
        for text in self._counted(counts, images):
            self._warn(text)

    def _counted(self, counts: Array, images: int) -> list[str]:
        with self._lock:
            if self._pauses:
                return []
            self._all += counts
            self._recent += counts
            self._recent_images += images
            if self._recent_images < WINDOW:
                return []
            recent, self._recent = self._recent, np.zeros_like(self._recent)
            self._recent_images = 0
            warnings = []
            for index, count in enumerate(recent.tolist()):
                text = None if self._warned[index] else self._judge(index, count)
                if text is not None:
                    self._warned[index] = True
                    warnings.append(text)
            return warnings

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing meanwhile, whoever runs it."""
        with self._lock:
            self._pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1

    def report(self) -> list[ProbeReport]:
        """Everything that was seen, one entry a probe."""
        with self._lock:
            counts = self._all.tolist()
        return [
            ProbeReport(probe["name"], codes, low, high, *known)
            for probe, (codes, low, high), known in zip(
                self._probes, counts, self._calibrated, strict=True
            )
        ]

    def _judge(self, index: int, count: list[int]) -> str | None:
        codes, *ends = count
        for known, seen, end in zip(self._calibrated[index], ends, ("lower", "upper"), strict=True):
            rate = seen / codes if codes else 0.0
            normal = UNKNOWN if math.isnan(known) else known
            if self._factor <= 0 or rate <= FLOOR or rate <= self._factor * normal:
                continue
            calibrated = ""
            if not math.isnan(known):
                calibrated = f", {100 * known:.3g} % on the calibration images"
            return (
                f"{self._probes[index]['name'][:100]} has {100 * rate:.3g} % of its codes at the "
                f"{end} end{calibrated}: these images leave the calibrated range; calibrate with "
                "such images"
            )
        return None


def _counts(codes: Array, probe: Mapping[str, Any]) -> tuple[int, int, int]:
    # a signed code has the same byte as its unsigned twin
    part = codes.view(np.uint8)
    low, high = (int(np.count_nonzero(part == probe[end] % 256)) for end in ("low", "high"))
    return part.size, low, high


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _rates(known: Any) -> tuple[float, float]:
    """As the manifest says them; what is no number is unknown."""
    if not isinstance(known, list) or len(known) != 2:
        return math.nan, math.nan
    shares = [type(rate) in (int, float) and 0 <= rate <= 1 for rate in known]
    low, high = (
        float(rate) if share else math.nan for rate, share in zip(known, shares, strict=True)
    )
    return low, high
