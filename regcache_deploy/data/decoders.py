"""Decode images in processes of their own, a few batches ahead of who takes them, in order."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from types import TracebackType
from typing import Any

import numpy as np

from regcache_engines.ahead import default_workers
from regcache_engines.preprocess import Pixels, Preprocess

from ..errors import DataError
from .parts import Picture

AHEAD = 3
"""Batches in flight beside the one that is taken."""

NO_IMAGE = "the sample holds no image"

Decoded = tuple[Pixels, dict[int, str]]
"""Pixels uint8 `[m, H, W, 3]` of the images that could be read, and why which other could not."""

_preprocess: Preprocess | None = None  # of a worker


class Decoders:
    """Worker processes with a model's preprocessing. Use it as a context manager.

    Where this process is killed, they end by themselves.

    Args:
        preprocess: a bundle's preprocessing.
        workers: processes; 0 takes one a core, at most 8.
    """

    def __init__(self, preprocess: Mapping[str, Any], workers: int = 0) -> None:
        self.workers = workers or default_workers()
        # spawned: a fork would copy the threads' locks of the runtime that is loaded here
        self._pool = ProcessPoolExecutor(
            self.workers,
            multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(dict(preprocess),),
        )

    def batches(
        self, pictures: Iterable[Picture], size: int
    ) -> Iterator[tuple[list[Picture], Decoded]]:
        """Batches of `size` pictures, decoded, in their order; memory is bounded.

        Raises:
            DataError: a worker died.
        """
        flying: deque[tuple[list[Picture], list[Future[Decoded]]]] = deque()
        source = iter(pictures)
        try:
            while batch := list(itertools.islice(source, size)):
                flying.append((batch, self._submit(batch)))
                if len(flying) > AHEAD:
                    yield _joined(*flying.popleft())
            while flying:
                yield _joined(*flying.popleft())
        except BrokenProcessPool as error:
            raise DataError(
                "a process that decodes images died, most likely for want of memory; take fewer "
                "--decoders or a smaller --batch-size"
            ) from error
        finally:
            for _, futures in flying:
                for future in futures:
                    future.cancel()

    def _submit(self, batch: list[Picture]) -> list[Future[Decoded]]:
        each = -(-len(batch) // self.workers)
        starts = range(0, len(batch), each)
        return [
            self._pool.submit(_decode, [picture.source for picture in batch[i : i + each]])
            for i in starts
        ]

    def __enter__(self) -> Decoders:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=kind is None, cancel_futures=True)


def _joined(batch: list[Picture], futures: list[Future[Decoded]]) -> tuple[list[Picture], Decoded]:
    pixels, reasons, start = list[Pixels](), dict[int, str](), 0
    for future in futures:
        part, why = future.result()
        pixels.append(part)
        reasons |= {start + index: text for index, text in why.items()}
        start += len(part) + len(why)
    return batch, (np.concatenate(pixels), reasons)


def _start(preprocess: Mapping[str, Any]) -> None:
    """A worker's first act."""
    global _preprocess
    _preprocess = Preprocess(preprocess)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; one cleans up
    warnings.simplefilter("ignore")  # odd metadata and sizes: what matters are the pixels
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: Any) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _decode(sources: list[Any]) -> Decoded:
    assert _preprocess is not None
    pixels: list[Pixels] = []
    reasons: dict[int, str] = {}
    for index, source in enumerate(sources):
        try:
            if source is None:
                raise DataError(NO_IMAGE)
            pixels.append(_preprocess.read(source))
        except DataError as error:
            reasons[index] = str(error)
    if not pixels:
        return np.empty((0, *_preprocess.size, 3), np.uint8), reasons
    return np.stack(pixels), reasons
