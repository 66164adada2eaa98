"""Hidden states at block inputs, within a memory budget.

A state that fits is kept as float32; one that does not is computed anew each time it is asked for,
from the nearest earlier block that is kept. What a state costs is booked apart from its
computation, so that a resumed search, which skips finished parts, books what an uninterrupted one
does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..work.count import Work

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
    """

    embed: Embed
    run: Run
    bytes_per_image: int
    budget: Budget
    work: Work
    batch_size: int
    _granted: dict[int, set[int]] = field(default_factory=dict)
    _kept: dict[int, dict[int, Tensor]] = field(default_factory=dict)

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

    def at(self, block: int, rows: Tensor) -> Tensor:
        """Tokens `[m, N, D]` of the booked images `rows [m]` at the input of `block`."""
        if block == 0:
            return self.embed(rows)
        kept, granted = self._kept.setdefault(block, {}), self._granted.get(block, set())
        states: dict[int, Tensor] = {}
        missing = [row for row in rows.tolist() if row not in kept]
        for start in range(0, len(missing), self.batch_size):
            some = missing[start : start + self.batch_size]
            for row, state in zip(some, self._compute(block, some), strict=True):
                states[row] = state
                if row in granted:
                    kept[row] = state.clone()
        return torch.stack([kept[row] if row in kept else states[row] for row in rows.tolist()])

    def _compute(self, block: int, rows: list[int]) -> Tensor:
        earlier = [b for b, kept in self._kept.items() if b < block and kept.keys() >= set(rows)]
        if not earlier:
            return self.run(self.embed(torch.tensor(rows)), 0, block)
        nearest = max(earlier)
        return self.run(torch.stack([self._kept[nearest][row] for row in rows]), nearest, block)
