"""The first images of a stream, decoded into memory."""

from __future__ import annotations

import logging
from itertools import chain

import numpy as np
import torch

from ..errors import DataError
from ..work.progress import Reporter
from .images import Images
from .scan import MIN_IMAGES
from .stream import Batch, ImageStream

BATCH = 64

log = logging.getLogger(__name__)


def load_stream(stream: ImageStream, limit: int | None, room: int, reporter: Reporter) -> Images:
    """At most `limit` images, in the stream's order, within `room` bytes.

    Raises:
        DataError: too few or unreadable images, or more of them than the room holds.
    """
    batches: list[Batch] = []
    held = 0
    for line in stream.left_out:
        log.warning("%s", line)
    with reporter.stage(f"reading images of {stream.source}", stream.length or limit) as advance:
        for batch in stream.batches(BATCH):
            batches.append(batch)
            held += batch.pixels.nbytes
            advance(len(batch.keys))
            if held > room:
                raise DataError(
                    f"more than {sum(len(b.keys) for b in batches)} images of {stream.source} do "
                    f"not fit into the {room / 2**30:.1f} GiB that pixels may take of this machine "
                    "or container; take fewer with --search-images and --limit"
                )
    found = list(chain.from_iterable(b.keys for b in batches))
    if len(found) < MIN_IMAGES:
        raise DataError(f"{stream.source}: only {len(found)} images could be read")
    # joined one by one, so that the pixels are not there twice
    pixels = torch.empty(len(found), *batches[0].pixels.shape[1:], dtype=torch.uint8)
    labels, start = [batch.labels for batch in batches], 0
    while batches:
        part = batches.pop(0).pixels
        pixels[start : start + len(part)] = torch.from_numpy(part)
        start += len(part)
    known = [each for each in labels if each is not None]
    preprocess = stream.preprocess
    return Images(
        pixels=pixels,
        mean=preprocess.mean,
        std=preprocess.std,
        source=stream.source,
        labels=torch.from_numpy(np.concatenate(known)) if len(known) == len(labels) else None,
        class_names=stream.class_names,
        tried=stream.tried,
        skipped=tuple(stream.skipped),
    )
