"""Images from anywhere, decoded in threads a few ahead, in order; memory stays bounded."""

from __future__ import annotations

import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regcache_engines.container import within_cpu_limit

from ..errors import DataError
from .folder import MAX_UNREADABLE
from .preprocess import MAX_PIXELS, Pixels, Preprocess, reason

AHEAD = 4
"""Images decoded ahead, per worker."""

MIN_BEFORE_REFUSAL = 200
"""A stream with too many unreadable images stops after this many, not at its end."""


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
        images: float32 `[b, 3, H, W]`, normalized.
        pixels: uint8 `[b, H, W, 3]`.
        keys: their names.
        labels: int64 `[b]`, or None.
    """

    images: Tensor
    pixels: Tensor
    keys: tuple[str, ...]
    labels: Tensor | None


@dataclass
class ImageStream:
    """Images that are read once, in order.

    Attributes:
        items: what to read; iterated once per call of `batches`.
        preprocess: the model's own.
        source: for reports.
        class_names: what the labels index; empty without labels.
        length: number of items, where it is known.
        left_out: what was there and is not among the items, in words.
        tried, skipped: of the last pass: items opened, and `key: reason` of unreadable ones.
    """

    items: Callable[[], Iterable[Item]]
    preprocess: Preprocess
    source: str
    class_names: tuple[str, ...] = ()
    length: int | None = None
    workers: int = 0
    left_out: tuple[str, ...] = ()
    tried: int = 0
    skipped: list[str] = field(default_factory=list)
    most_in_flight: int = 0

    def batches(self, size: int) -> Iterator[Batch]:
        """Decode in threads, at most `AHEAD` images per worker and `size` images at a time.

        Raises:
            DataError: more than 1 % of the images cannot be read, or none is there.
        """
        self.tried, self.skipped, self.most_in_flight = 0, [], 0
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
        workers = self.workers or within_cpu_limit(min(8, os.cpu_count() or 1))
        flying: deque[tuple[Item, Future[Pixels | str]]] = deque()
        with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
            # odd metadata and sizes: what matters is whether the pixels can be had
            warnings.simplefilter("ignore")
            try:
                for item in self.items():
                    flying.append((item, pool.submit(decode, item, self.preprocess)))
                    self.most_in_flight = max(self.most_in_flight, len(flying))
                    if len(flying) >= workers * AHEAD:
                        first, future = flying.popleft()
                        yield first, future.result()
                while flying:
                    first, future = flying.popleft()
                    yield first, future.result()
            finally:
                for _, future in flying:
                    future.cancel()

    def _batch(self, items: Sequence[tuple[Item, Pixels]]) -> Batch:
        pixels = torch.from_numpy(np.stack([p for _, p in items]))
        config = self.preprocess.config
        mean, std = (torch.tensor(v, dtype=torch.float32) for v in (config.mean, config.std))
        scaled = pixels.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)
        images = scaled.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
        labels = [item.label for item, _ in items]
        known = [label for label in labels if label is not None]
        return Batch(
            images,
            pixels,
            tuple(item.key for item, _ in items),
            torch.tensor(known, dtype=torch.int64) if len(known) == len(labels) else None,
        )

    def _check_unreadable(self, final: bool) -> None:
        if len(self.skipped) <= MAX_UNREADABLE * self.tried:
            return
        if final or self.tried >= MIN_BEFORE_REFUSAL:
            raise DataError(
                f"{len(self.skipped)} of {self.tried} images of {self.source} could not be read "
                f"({'; '.join(self.skipped[:3])}); more than {MAX_UNREADABLE:.0%}: repair or "
                "remove them"
            )


def decode(item: Item, preprocess: Preprocess) -> Pixels | str:
    """Pixels uint8 `[H, W, 3]`, or why there are none."""
    from PIL import Image

    try:
        if isinstance(item.source, Path):
            return preprocess.read(item.source)
        if isinstance(item.source, bytes):
            with Image.open(io.BytesIO(item.source)) as image:
                if image.width * image.height > MAX_PIXELS:
                    return f"{image.width} x {image.height} pixels are too many"
                return preprocess(image)
        return preprocess(item.source())
    except DataError as error:
        return str(error)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on a damaged file
        return reason(error, Path(item.key))
