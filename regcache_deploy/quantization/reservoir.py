"""A sample of fixed size from a stream: what a method may look at that keeps whole tensors."""

from __future__ import annotations

import torch
from torch import Tensor


class Reservoir:
    """Every element of a stream is in the sample with the same chance (Vitter, algorithm R).

    Args:
        size: elements that are kept; a stream that is no longer is kept whole, in order.
        seed: of the choice; the same stream in other batches gives the same sample.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.seen = size, 0
        self._generator = torch.Generator().manual_seed(seed)
        self._kept: list[Tensor] = []

    def add(self, elements: Tensor) -> None:
        """Show it the next elements `[b, ...]`."""
        for element in elements:
            self.seen += 1
            if len(self._kept) < self.size:
                self._kept.append(element.clone())
                continue
            place = int(torch.randint(self.seen, (1,), generator=self._generator))
            if place < self.size:
                self._kept[place].copy_(element)

    @property
    def sample(self) -> Tensor:
        """`[min(size, seen), ...]`; at least one element must have been seen."""
        return torch.stack(self._kept)

    @property
    def state_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self._kept)
