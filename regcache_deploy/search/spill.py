"""Rows of float32, in memory or on disk: hidden states.

A file has no name any more once it is open, so nothing is left behind, however the process ends.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROWS = 256
"""In one slab."""

log = logging.getLogger(__name__)


@dataclass
class Spill:
    """Where rows go, and how many bytes of them.

    Attributes:
        folder: of the files; None has no room at all.
        limit: bytes.
        used: bytes that were granted.
    """

    folder: Path | None = None
    limit: int = 0
    used: int = 0

    def take(self, count: int) -> bool:
        """Reserve `count` bytes, or say that they are not there."""
        if self.folder is None or self.used + count > self.limit:
            return False
        if not self.used:
            log.info("hidden states beyond --memory go to %s, mapped into memory", self.folder)
        self.used += count
        return True


Slab = Callable[[tuple[int, ...]], Tensor]
"""Shape of a row -> float32 `[k, ...]` of any values."""


@dataclass
class Rows(MutableMapping[int, Tensor]):
    """Index -> tensor, all of one shape, in slabs of many rows.

    A tensor of its own for each row would lie in the heap between activations that come and go, and
    keep the memory of those from being given back.

    Attributes:
        slab: makes them; `memory_slab` or `file_slab`.

    Raises:
        OSError: the disk is full.
    """

    slab: Slab
    _slabs: list[Tensor] = field(default_factory=list, repr=False)
    _places: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False)
    _left: int = field(default=0, repr=False)  # rows of the last slab

    def __setitem__(self, index: int, value: Tensor) -> None:
        if index not in self._places:
            if not self._left:
                self._slabs.append(self.slab(tuple(value.shape)))
                self._left = len(self._slabs[-1])
            self._places[index] = len(self._slabs) - 1, len(self._slabs[-1]) - self._left
            self._left -= 1
        number, row = self._places[index]
        self._slabs[number][row] = value

    def __getitem__(self, index: int) -> Tensor:
        """A view of the row, not a copy."""
        number, row = self._places[index]
        return self._slabs[number][row]

    def __delitem__(self, index: int) -> None:
        raise TypeError("a row that was written stays")

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def memory_slab(row: tuple[int, ...], device: torch.device) -> Tensor:
    """Room on a device: on the CPU pages of its own, used once they are written.

    Elsewhere one row: what is asked for there is taken, and torch keeps it from falling to pieces.
    """
    if device.type != "cpu":
        return torch.empty((1, *row), device=device)
    size, private = 4 * ROWS * math.prod(row), {}
    if hasattr(mmap, "MAP_PRIVATE"):
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    return torch.frombuffer(mmap.mmap(-1, size, **private), dtype=torch.float32).view(ROWS, *row)


def file_slab(row: tuple[int, ...], folder: Path) -> Tensor:
    """Room in a file of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        # a full disk is an error here, and a dead process once pages are written
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, 4 * ROWS * math.prod(row))
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(ROWS, *row)))
