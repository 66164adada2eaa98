"""A stream whose images are the altered copies of another one's, in the same order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .alterations import altered_pixels
from .stream import Batch, ImageStream


@dataclass
class AlteredStream(ImageStream):
    """Copies of the images that a stream of the same `items` gives; without labels.

    Attributes:
        seed: of the alterations; image i of a pass is copy i for every batch size.
    """

    seed: int = 0

    @classmethod
    def of(cls, stream: ImageStream, seed: int = 0) -> AlteredStream:
        return cls(
            stream.items,
            stream.preprocess,
            f"altered copies of {stream.source}",
            length=stream.length,
            decoders=stream.decoders,
            seed=seed,
        )

    def batches(self, size: int) -> Iterator[Batch]:
        first = 0
        for batch in super().batches(size):
            pixels = altered_pixels(batch.pixels, self.seed, first)
            first += len(pixels)
            yield Batch(pixels, batch.keys, None, self.preprocess)
