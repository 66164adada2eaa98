"""Merging of tokens in numpy float64, beside `reference`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .merge import NORM_FLOOR
from .survivors import Array, Pairs

Float64 = npt.NDArray[np.float64]


def similarity_of(metric: Array) -> Float64:
    """Cosines `[B, |A|, |B|]` between the rows of `[B, P, C]` at even and at odd places."""
    wide = metric.astype(np.float64)
    length = np.sqrt((wide**2).sum(axis=-1, keepdims=True))
    unit = wide / np.maximum(length, NORM_FLOOR)
    cosines: Float64 = unit[:, ::2] @ unit[:, 1::2].transpose(0, 2, 1)
    return cosines


def merge_patches(patches: Float64, sizes: Array | None, pairs: Pairs) -> Float64:
    """Patches `[B, P, D]` behind a merge: a loop, no matrix.

    Args:
        patches: in front of it.
        sizes: patches that each stands for, `[B, P]`, or None.
        pairs: sources and destinations.
    """
    known = np.ones(patches.shape[:2]) if sizes is None else sizes
    result = []
    for x, size, order, found in zip(patches, known, pairs.order, pairs.destinations, strict=True):
        count, total = len(found), size[1::2].astype(np.float64)
        sums = x[1::2] * total[:, None]
        for source, target in zip(2 * order[:count], found, strict=True):
            sums[target] += size[source] * x[source]
            total[target] += size[source]
        result.append(np.concatenate([x[2 * order[count:]], sums / total[:, None]]))
    return np.stack(result)
