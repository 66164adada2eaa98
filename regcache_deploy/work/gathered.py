"""Rows that come batch by batch, in one array."""

from __future__ import annotations

import torch
from torch import Tensor


class Gathered:
    """Rows on the CPU, written behind each other into one array.

    A list of small tensors would lie in the heap between activations that come and go, and keep the
    memory of those from being given back: several times what the rows take. Not for several
    threads.
    """

    def __init__(self) -> None:
        self._array = torch.empty(0)
        self._count = 0

    def add(self, rows: Tensor) -> None:
        """Append `[m, ...]`, copied; all of one shape and type but for m."""
        end = self._count + len(rows)
        if end > len(self._array):
            size = max(end, 2 * len(self._array))
            grown = torch.empty((size, *rows.shape[1:]), dtype=rows.dtype)
            if self._count:
                grown[: self._count] = self._array[: self._count]
            self._array = grown
        self._array[self._count : end] = rows
        self._count = end

    @property
    def rows(self) -> Tensor:
        """All so far, `[n, ...]`: a view that later rows do not change."""
        return self._array[: self._count]
