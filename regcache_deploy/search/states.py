"""Hidden states at block inputs, within a memory budget.

A state that fits is kept as float32, in memory or else on disk; one that fits neither is computed
anew each time it is asked for, from the nearest earlier block that is kept. What a state costs is
booked apart from its computation, so that a resumed search, which skips finished parts, books what
an uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..work.count import Work
from .spill import Rows, Spill, file_slab, memory_slab

Embed = Callable[[Tensor], Tensor]
"""Image indices `[m]` -> tokens `[m, N, D]` at the input of block 0."""

Run = Callable[[Tensor, int, int], Tensor]
"""Tokens `[m, N, D]` at the input of a block, that block, a later one -> tokens there."""


@dataclass
class Budget:
    """Bytes that all states together may hold.

    Attributes:
        limit: bytes.
        used: bytes, which is also the most so far: a state that was granted room keeps it.
    """

    limit: int
    used: int = 0

    def take(self, count: int) -> bool:
        """Reserve `count` bytes, or say that they are not there."""
        if self.used + count > self.limit:
            return False
        self.used += count
        return True


@dataclass
class HiddenStates:
    """States of one image set under one model, by block.

    Attributes:
        embed: the tokens at block 0; no block runs for it.
        run: the model's blocks.
        bytes_per_image: of one state.
        budget: shared by several sets.
        work: where the blocks are booked.
        batch_size: images in flight at a time.
        spill: for states that the budget has no room for.
    """

    embed: Embed
    run: Run
    bytes_per_image: int
    budget: Budget
    work: Work
    batch_size: int
    spill: Spill = field(default_factory=Spill)
    _granted: dict[int, set[int]] = field(default_factory=dict)
    _on_disk: dict[int, set[int]] = field(default_factory=dict)
    _kept: dict[int, _Kept] = field(default_factory=dict)

    def book(self, block: int, rows: Tensor) -> None:
        """Book what it takes to have the states of `rows [m]` at `block`, and room for them."""
        granted = self._granted.setdefault(block, set())
        earlier = sorted((b for b in self._granted if b < block), reverse=True)
        for row in rows.tolist():
            if block == 0 or row in granted:
                continue
            nearest = next((b for b in earlier if row in self._granted[b]), 0)
            self.work.add(block - nearest)
            if self.budget.take(self.bytes_per_image):
                granted.add(row)
            elif self.spill.take(self.bytes_per_image):
                granted.add(row)
                self._on_disk.setdefault(block, set()).add(row)

    def at(self, block: int, rows: Tensor) -> Tensor:
        """Tokens `[m, N, D]` of the booked images `rows [m]` at the input of `block`."""
        if block == 0:
            return self.embed(rows)
        kept, granted = self._kept_at(block), self._granted.get(block, set())
        states: dict[int, Tensor] = {}
        missing = [row for row in rows.tolist() if row not in kept]
        for start in range(0, len(missing), self.batch_size):
            some = missing[start : start + self.batch_size]
            for row, state in zip(some, self._compute(block, some), strict=True):
                states[row] = state
                if row in granted:
                    kept[row] = state
        return torch.stack([states[row] if row in states else kept[row] for row in rows.tolist()])

    def _kept_at(self, block: int) -> _Kept:
        if block not in self._kept:
            self._kept[block] = _Kept(self._on_disk.setdefault(block, set()), self.spill.folder)
        return self._kept[block]

    def _compute(self, block: int, rows: list[int]) -> Tensor:
        earlier = [
            b for b, kept in self._kept.items() if b < block and all(row in kept for row in rows)
        ]
        if not earlier:
            return self.run(self.embed(torch.tensor(rows)), 0, block)
        nearest = max(earlier)
        return self.run(torch.stack([self._kept[nearest][row] for row in rows]), nearest, block)


class _Kept:
    """States of one block: in memory, on the device that computed them, and on disk."""

    def __init__(self, on_disk: set[int], folder: Path | None) -> None:
        self._on_disk = on_disk
        self._device = torch.device("cpu")
        self._held = Rows(lambda row: memory_slab(row, self._device))
        self._spilled = Rows(lambda row: file_slab(row, folder)) if folder else None

    def __contains__(self, row: int) -> bool:
        return row in self._held or (self._spilled is not None and row in self._spilled)

    def __setitem__(self, row: int, state: Tensor) -> None:
        self._device = state.device
        if self._spilled is not None and row in self._on_disk:
            self._spilled[row] = state
        else:
            self._held[row] = state

    def __getitem__(self, row: int) -> Tensor:
        if row in self._held or self._spilled is None:
            return self._held[row]
        return self._spilled[row].to(self._device)
