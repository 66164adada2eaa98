"""Images from anywhere, decoded in threads a few ahead, in order; memory stays bounded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regcache_engines.ahead import map_ahead
from regcache_engines.preprocess import Pixels, Preprocess, reason

from ..errors import DataError
from .scan import MAX_UNREADABLE

MIN_BEFORE_REFUSAL = 200
"""A stream with too many unreadable images stops after this many, not at its end."""

MAX_UNREADABLE_SO_FAR = 0.1
"""The same share in the middle of a stream of unknown length: damage comes in clusters."""


@dataclass(frozen=True)
class Item:
    """One image that is not decoded yet.

    Attributes:
        key: its name in messages and results.
        source: a file, the file's bytes, or a function that gives a PIL image.
        label: class index, or None.
    """

    key: str
    source: Path | bytes | Callable[[], Any] = field(repr=False)
    label: int | None = None


@dataclass(frozen=True)
class Batch:
    """Images in order.

    Attributes:
        pixels: uint8 `[b, H, W, 3]`.
        keys: their names.
        labels: int64 `[b]`, or None.
        preprocess: the model's own.
    """

    pixels: Pixels
    keys: tuple[str, ...]
    labels: npt.NDArray[np.int64] | None
    preprocess: Preprocess = field(repr=False)

    def in_layout(self, layout: str | None) -> npt.NDArray[Any]:
        """As an encoder takes them: see `Preprocess.in_layout`."""
        return self.preprocess.in_layout(self.pixels, layout)

    @property
    def images(self) -> npt.NDArray[np.float32]:
        """Float32 `[b, 3, H, W]`, normalized."""
        return self.preprocess.normalized(self.pixels)


@dataclass
class ImageStream:
    """Images that are read once, in order.

    Attributes:
        items: what to read; iterated once per call of `batches`.
        preprocess: the model's own.
        source: for reports.
        class_names: what the labels index; empty without labels.
        length: number of items, where it is known.
        decoders: threads that decode; 0 takes one a core, at most 8.
        left_out: what was there and is not among the items, in words; how they were drawn where
            that was not from all.
        tried, skipped: of the last pass: items opened, and `key: reason` of unreadable ones.
    """

    items: Callable[[], Iterable[Item]]
    preprocess: Preprocess
    source: str
    class_names: tuple[str, ...] = ()
    length: int | None = None
    decoders: int = 0
    left_out: tuple[str, ...] = ()
    tried: int = 0
    skipped: list[str] = field(default_factory=list)

    def batches(self, size: int) -> Iterator[Batch]:
        """Decode in threads, a few images ahead, `size` images at a time.

        Raises:
            DataError: more than 1 % of the images cannot be read, or none is there.
        """
        self.tried, self.skipped = 0, []
        waiting: list[tuple[Item, Pixels]] = []
        for item, outcome in self._decoded():
            self.tried += 1
            if isinstance(outcome, str):
                self.skipped.append(f"{item.key}: {outcome}")
                self._check_unreadable(final=False)
                continue
            waiting.append((item, outcome))
            if len(waiting) == size:
                yield self._batch(waiting)
                waiting = []
        if not self.tried:
            raise DataError(f"{self.source} holds no images")
        self._check_unreadable(final=True)
        if waiting:
            yield self._batch(waiting)

    def warnings(self) -> tuple[str, ...]:
        """What was left out, and what could not be read in the last pass; a line each."""
        if not self.skipped:
            return self.left_out
        more = "; ..." if len(self.skipped) > 1 else ""
        return (
            *self.left_out,
            f"{len(self.skipped)} of {self.tried} images of {self.source} could not be read and "
            f"were left out ({self.skipped[0]}{more})",
        )

    def _decoded(self) -> Iterator[tuple[Item, Pixels | str]]:
        with warnings.catch_warnings():
            # odd metadata and sizes: what matters is whether the pixels can be had
            warnings.simplefilter("ignore")
            read = partial(decode, preprocess=self.preprocess)
            yield from map_ahead(read, self.items(), self.decoders)

    def _batch(self, items: Sequence[tuple[Item, Pixels]]) -> Batch:
        labels = [item.label for item, _ in items]
        known = [label for label in labels if label is not None]
        return Batch(
            np.stack([pixels for _, pixels in items]),
            tuple(item.key for item, _ in items),
            np.array(known, np.int64) if len(known) == len(labels) else None,
            self.preprocess,
        )

    def _check_unreadable(self, final: bool) -> None:
        share, total = MAX_UNREADABLE, self.tried
        if not final and self.length is not None:
            total = max(self.length, self.tried)  # more than all of them may have: no need to go on
        elif not final:
            share = MAX_UNREADABLE_SO_FAR
        enough = final or self.tried >= MIN_BEFORE_REFUSAL
        if enough and len(self.skipped) > share * total:
            raise DataError(
                f"{len(self.skipped)} of {self.tried} images of {self.source} could not be read "
                f"({'; '.join(self.skipped[:3])}); more than {MAX_UNREADABLE:.0%}: repair or "
                "remove them"
            )


def decode(item: Item, preprocess: Preprocess) -> Pixels | str:
    """Pixels uint8 `[H, W, 3]`, or why there are none."""
    try:
        if isinstance(item.source, (Path, bytes)):
            return preprocess.read(item.source)
        return preprocess(item.source())
    except DataError as error:
        return str(error)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on a damaged file
        return reason(error, Path(item.key))
