"""Rows that are collected batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST = 4096
"""Rows of the first buffer."""


class Rows:
    """A float32 matrix that grows at its end, in one buffer that doubles.

    A list of small tensors would do, but each of them lands in the hole that a batch of images
    has just left, and the next batch no longer fits there: the process grows with every batch.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0, 0)
        self._count = 0

    def append(self, rows: Tensor) -> None:
        """Add `rows [b, E]`; E is that of the first ones."""
        needed = self._count + len(rows)
        if needed > len(self._buffer):
            grown = torch.empty(max(FIRST, 2 * len(self._buffer), needed), rows.shape[1])
            if self._count:
                grown[: self._count] = self._buffer[: self._count]
            self._buffer = grown
        self._buffer[self._count : needed] = rows
        self._count = needed

    def tensor(self) -> Tensor:
        """What was added, `[n, E]`."""
        return self._buffer[: self._count]
