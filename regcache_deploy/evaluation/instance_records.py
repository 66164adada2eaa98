"""Copy detection of several runners on one set of images, with paired statistics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .metrics import INSTANCES, margins, resolution_line
from .records import (
    Embedded,
    Record,
    compare,
)


def instance_records(dataset: str, images: Embedded, copies: Embedded, seed: int) -> list[Record]:
    """Symmetric copy detection of every runner; the first is the reference of paired statistics.

    Args:
        dataset: name for the records.
        images, copies: of the same images in the same order.
        seed: of the bootstrap.

    Raises:
        DataError: fewer than two images, or not the same ones.
    """
    if images.keys != copies.keys:
        raise DataError(f"{dataset} changed while it was read: other images in the second pass")
    if len(images.keys) < 2:
        raise DataError(f"{dataset}: copy detection needs at least two images")
    own, records = np.arange(len(images.keys)), list[Record]()
    reference: npt.NDArray[np.bool_] | None = None
    for name, features in images.features.items():
        found = margins(features, copies.features[name], own) > 0
        paired, line = None, None
        if reference is None:
            reference = found
        else:
            paired = compare(reference, found, seed)
            line = resolution_line(paired.n, paired.lost, paired.won)
        metrics = {"acc1": float(found.mean())}
        records.append(Record(dataset, INSTANCES, name, metrics, len(own), paired, line))
    return records
