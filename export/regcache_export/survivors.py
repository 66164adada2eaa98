"""Which patches the tokens of a block stand for, in numpy: what deletion and merging leave."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Pairs:
    """Sources and destinations of one merge (see `merge`).

    Attributes:
        order: places `[B, |A|]` among the sources, most similar first.
        destinations: places `[B, r]` among the destinations of the first r, which go.
    """

    order: Array
    destinations: Array


@dataclass(frozen=True)
class Left:
    """The patches among the tokens at one place.

    Attributes:
        patches: how many there are.
        kept: which, `[B, patches]`; None while all are there in their order. A merged token has the
            index of its destination.
        sizes: how many patches each stands for, `[B, patches]`; None while it is one.
    """

    patches: int
    kept: Array | None = None
    sizes: Array | None = None

    def deleted(self, positions: Array) -> Left:
        """Only those at `positions [B, n]` among these."""
        sizes = self.sizes
        if sizes is not None:
            sizes = np.take_along_axis(sizes, positions, axis=1)
        return replace(self._at(positions), sizes=sizes)

    def merged(self, pairs: Pairs) -> Left:
        """Behind a merge."""
        rows, count = pairs.destinations.shape
        sizes = self.sizes if self.sizes is not None else np.ones((rows, self.patches))
        places = 2 * pairs.order
        gained = np.take_along_axis(sizes, places[:, :count], axis=1)
        total = sizes[:, 1::2].copy()
        for row in range(rows):
            np.add.at(total[row], pairs.destinations[row], gained[row])
        stays = places[:, count:]
        odd = np.broadcast_to(np.arange(1, self.patches, 2), (rows, self.patches // 2))
        left = self._at(np.concatenate([stays, odd], axis=1))
        staying = np.take_along_axis(sizes, stays, axis=1)
        return replace(left, sizes=np.concatenate([staying, total], axis=1))

    def _at(self, places: Array) -> Left:
        kept = places if self.kept is None else np.take_along_axis(self.kept, places, axis=1)
        return Left(places.shape[1], kept)
