"""Rows of float32 on disk, mapped into memory: hidden states that memory has no room for.

A file has no name any more once it is open, so nothing is left behind, however the process ends.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROWS = 256
"""In one file."""

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


@dataclass
class SpilledRows(MutableMapping[int, Tensor]):
    """Index -> tensor, all of one shape. What is read lies on the CPU.

    Raises:
        OSError: the disk is full.
    """

    folder: Path
    _files: list[np.memmap] = field(default_factory=list, repr=False)
    _places: dict[int, int] = field(default_factory=dict, repr=False)

    def __setitem__(self, index: int, value: Tensor) -> None:
        place = self._places.setdefault(index, len(self._places))
        number, row = divmod(place, ROWS)
        if number == len(self._files):
            self._files.append(self._open(tuple(value.shape)))
        self._files[number][row] = value.cpu().numpy()

    def __getitem__(self, index: int) -> Tensor:
        number, row = divmod(self._places[index], ROWS)
        return torch.from_numpy(np.array(self._files[number][row]))

    def __delitem__(self, index: int) -> None:
        raise TypeError("a row that was written stays")

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _open(self, shape: tuple[int, ...]) -> np.memmap:
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            # a full disk is an error here, and a dead process once pages are written
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, 4 * ROWS * math.prod(shape))
            mapped: np.memmap = np.memmap(file, np.float32, "w+", shape=(ROWS, *shape))
        return mapped
