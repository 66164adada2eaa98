"""Rows that are collected batch by batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

FIRST = 4096
"""Rows of the first buffer."""


class Rows:
    """A float32 matrix that grows at its end, in one buffer that doubles.

    A list of small arrays would do, but each of them lands in the hole that a batch of images
    has just left, and the next batch no longer fits there: the process grows with every batch.
    """

    def __init__(self) -> None:
        self._buffer = np.empty((0, 0), np.float32)
        self._count = 0

    def append(self, rows: FloatArray) -> None:
        """Add `rows [b, E]`; E is that of the first ones."""
        needed = self._count + len(rows)
        if needed > len(self._buffer):
            grown = np.empty((max(FIRST, 2 * len(self._buffer), needed), rows.shape[1]), np.float32)
            if self._count:
                grown[: self._count] = self._buffer[: self._count]
            self._buffer = grown
        self._buffer[self._count : needed] = rows
        self._count = needed

    def array(self) -> FloatArray:
        """What was added, `[n, E]`."""
        return self._buffer[: self._count]
