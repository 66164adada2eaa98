"""A batch in pieces of a few images, one piece for each thread at a time.

ONNX Runtime computes one operator over the whole batch before the next one begins, so between two
operators a large batch leaves the cache, and its integer products run through the output once for
every 384 input channels. A piece of about `ROWS` tokens stays. Images do not depend on one
another: the features are the same bit for bit. docs/cpu.md has the times.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np

from .container import within_cpu_limit
from .engine import Array, FloatArray

ROWS = 400
"""Tokens in one piece: two images of a ViT-B/16 at 224 pixels."""

Run = Callable[[Array], FloatArray]


def piece_size(tokens: int) -> int:
    """Images in one piece, where each has `tokens` tokens."""
    return max(1, ROWS // tokens)


def piece_counts(images: int, size: int, workers: int) -> list[int]:
    """Images of every piece: at most `size`, about equal, and every worker gets as many pieces."""
    pieces = -(-images // size)
    pieces = min(images, -(-pieces // workers) * workers)
    return [images // pieces + (index < images % pieces) for index in range(pieces)]


class PiecewiseRun:
    """Runs batches in pieces.

    With several workers and at least one image for each, every worker runs pieces of its own in
    one thread, and nobody waits for the other behind every operator. Smaller batches run whole:
    there all threads work on one operator.

    Args:
        size: most images in one piece.
        workers: threads.
        whole: runs images with all threads; used alone where `workers` is 1.
        open_single: loads what runs a piece in the calling thread alone. It is called once, by
            `open` or when the first batch needs it, and takes the model's memory a second time.
            None: there is one copy, and pieces for all threads run one after another.
    """

    def __init__(
        self, size: int, workers: int, whole: Run, open_single: Callable[[], Run] | None
    ) -> None:
        self._size, self._workers = size, workers
        self._whole, self._open_single = whole, open_single
        self._lock = Lock()
        self._single: Run | None = None
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, images: Array) -> FloatArray:
        """Features `[B, E]` of images `[B, ...]`, in their order."""
        if len(images) < max(self._workers, 2):
            return self._whole(images)
        if self._workers == 1 or self._open_single is None:
            counts = piece_counts(len(images), self._size, 1)
            parts = np.split(images, np.cumsum(counts)[:-1])
            return np.concatenate([self._whole(part) for part in parts])
        counts = piece_counts(len(images), self._size, self._workers)
        parts = np.split(images, np.cumsum(counts)[:-1])
        single, pool = self._single_threaded(self._open_single)
        return np.concatenate(list(pool.map(single, parts)))

    def open(self) -> None:
        """Load now what the first large batch would load."""
        if self._workers > 1 and self._open_single is not None:
            self._single_threaded(self._open_single)

    def _single_threaded(self, open_single: Callable[[], Run]) -> tuple[Run, ThreadPoolExecutor]:
        with self._lock:
            if self._single is None:
                self._single = open_single()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._workers, "regcache-piece")
            return self._single, self._pool

    def close(self) -> None:
        """End the threads and let go of the models."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown()
            self._pool = self._single = None


def physical_cores() -> int:
    """Cores that this process may use; the hardware threads of one core count once.

    A container's limit counts as well.
    """
    if hasattr(os, "sched_getaffinity"):
        threads = sorted(os.sched_getaffinity(0))
    else:
        threads = list(range(os.cpu_count() or 1))
    cores = set()
    for thread in threads:
        topology = Path(f"/sys/devices/system/cpu/cpu{thread}/topology/thread_siblings_list")
        try:
            cores.add(topology.read_text())
        except OSError:  # another system than Linux
            cores.add(str(thread))
    return within_cpu_limit(len(cores))
