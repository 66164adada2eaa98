"""Observers of one tensor in constant memory: a histogram of fixed bins, and what clips by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError

Observer = Literal["minmax", "percentile", "mse"]
OBSERVERS: tuple[Observer, ...] = ("minmax", "percentile", "mse")

BINS = 4096
PERCENTILE = 0.9999
MSE_CANDIDATES = 64

CHUNK = 2**16
"""Values that are counted at a time. Their indices take 16 bytes each: those of a whole batch
would be the process's largest tensors, and leave holes in its heap."""


@dataclass
class Histogram:
    """Counts of |x| in bins of equal width over `[0, limit]`.

    Attributes:
        limit: largest |x|, from an earlier pass; larger values would count in the last bin.
        counts: int64 `[bins]`, on the CPU.
    """

    limit: float
    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))

    @property
    def bins(self) -> int:
        return len(self.counts)

    def update(self, x: Tensor) -> None:
        self.counts += self.count(x)

    def count(self, x: Tensor) -> Tensor:
        """Counts of the values of `x`, int64 `[bins]`, on the CPU."""
        counts = torch.zeros(self.bins, dtype=torch.int64, device=x.device)
        for part in x.flatten().split(CHUNK):
            index = (part.abs() * (self.bins / self.limit)).to(torch.int64)
            counts += torch.bincount(index.clamp_(max=self.bins - 1), minlength=self.bins)
        return counts.cpu()

    def percentile(self, fraction: float) -> float:
        """Least bin edge below which at least `fraction` of the values lie."""
        below = self.counts.cumsum(0)
        wanted = fraction * float(below[-1])
        index = int(torch.searchsorted(below.double(), torch.tensor(wanted).double()))
        return (min(index, self.bins - 1) + 1) * self.limit / self.bins

    def least_error(self, bits: int, candidates: int = MSE_CANDIDATES) -> float:
        """Clipping limit of least squared error, every value taken at the middle of its bin."""
        width = self.limit / self.bins
        middle = (torch.arange(self.bins, dtype=torch.float64) + 0.5) * width
        weights = self.counts.double()
        best, lowest = self.limit, float("inf")
        for step in range(candidates, 0, -1):
            limit = self.limit * step / candidates
            scale = limit / (2 ** (bits - 1) - 1)
            codes = torch.round(middle / scale).clamp_max(2 ** (bits - 1) - 1)
            error = float(((codes * scale - middle).square() * weights).sum())
            if error < lowest:
                best, lowest = limit, error
        return best

    def clipping(self, observer: Observer, bits: int) -> float:
        """Where `percentile` or `mse` clips |x|."""
        if observer == "percentile":
            return min(self.percentile(PERCENTILE), self.limit)
        return self.least_error(bits)


def check_observer(name: str) -> None:
    """Raise ConfigError unless `name` is an observer."""
    if name not in OBSERVERS:
        raise ConfigError(f"unknown observer '{name}'; take one of: {', '.join(OBSERVERS)}")


def symmetric_limit(x: Tensor, observer: Observer, bits: int) -> Tensor:
    """Where an observer clips |x| of one whole tensor, any shape; a scalar of its type."""
    largest = x.abs().max()
    if observer == "minmax" or largest == 0:
        return largest
    histogram = Histogram(float(largest))
    histogram.update(x)
    return x.new_full((), histogram.clipping(observer, bits))
