"""When to leave a choice before it has seen every image: certain to lose, or almost certain."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

PIECE = 8
"""Images between two questions; also few enough for the CPU's cache."""

ROUNDING = 1e-9
"""Far below any difference of two choices, far above float64's error in a mean."""

LOOKS = (16, 24, 32, 48, 64, 96, 128, 192)
"""Images after which `NotBetter` tests, further apart as they grow."""


class Stop(Protocol):
    """Asked after every piece whether the rest of the images is still worth its work."""

    def pieces(self, rows: Tensor, batch_size: int) -> list[Tensor]:
        """Image indices `rows [n]`, in their order, in the batches to be evaluated."""
        ...

    def __call__(self, outcomes: Tensor, size: int) -> bool:
        """Whether to stop after `outcomes [m]` of the leading images of `size`."""
        ...

    def key(self) -> dict[str, Any]:
        """JSON values that decide its answers."""
        ...


@dataclass(frozen=True)
class Floor:
    """Stop when the mean of all images is certain to stay below `value`: none adds more than 1."""

    value: float

    def pieces(self, rows: Tensor, batch_size: int) -> list[Tensor]:
        """Small batches, the first one smallest."""
        size = min(PIECE, batch_size)
        head = max(1, size // 2)
        return [piece for piece in (rows[:head], *rows[head:].split(size)) if len(piece)]

    def __call__(self, outcomes: Tensor, size: int) -> bool:
        # A hair too high, so that rounding excludes no choice.
        return 1 - float((1 - outcomes).sum()) / size + ROUNDING < self.value

    def key(self) -> dict[str, Any]:
        return {"floor": self.value}


@dataclass(frozen=True)
class NotBetter:
    """Stop when a choice is not better than a leader, within a tolerance, beyond chance.

    A paired one-sided t-test on the same images, which have to be drawn at random, with the
    finite-population correction: what has been seen does not vary any more. Tested after `LOOKS`
    images, each time with an equal part of `error`.

    Attributes:
        leader: its outcomes `[n]` on the images in the order in which they are asked.
        tolerance: a choice whose loss (1 less the outcome) is this share smaller counts as better.
        error: chance that a choice which is better by more than that is left.
    """

    leader: Tensor
    tolerance: float
    error: float

    def pieces(self, rows: Tensor, batch_size: int) -> list[Tensor]:
        """Small batches that end at every look."""
        bounds = [0, *(look for look in LOOKS if look < len(rows)), len(rows)]
        size = min(PIECE, batch_size)
        return [
            piece
            for begin, end in itertools.pairwise(bounds)
            for piece in rows[begin:end].split(size)
        ]

    def __call__(self, outcomes: Tensor, size: int) -> bool:
        seen = len(outcomes)
        if seen not in LOOKS or seen >= size:
            return False
        return self.p_value(outcomes) < self.error / len(LOOKS)

    def p_value(self, outcomes: Tensor) -> float:
        """Of "the choice is better by more than the tolerance", after its leading images."""
        from scipy.stats import t

        seen, size = len(outcomes), len(self.leader)
        excess = (1 - outcomes) - (1 - self.leader[:seen]) / (1 + self.tolerance)
        mean = float(excess.mean())
        spread = float(excess.std()) * (max(1 - seen / size, 0.0) / seen) ** 0.5
        if not spread:
            return 0.0 if mean > 0 else 1.0
        return float(t.sf(mean / spread, seen - 1))

    def key(self) -> dict[str, Any]:
        leader = hashlib.sha256(self.leader.to(torch.float64).contiguous().numpy().tobytes())
        return {
            "leader": leader.hexdigest()[:16],
            "tolerance": self.tolerance,
            "error": self.error,
        }
