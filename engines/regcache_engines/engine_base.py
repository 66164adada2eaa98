"""What every engine keeps, whatever runtime is behind it: its contract, and how it is closed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import numpy as np

from .closing import Closing
from .engine import Array, FloatArray, check_features, check_images
from .errors import EngineError
from .gate import Gate, keep_in_children
from .heap import trim_heap

MAX_THREADS = 4096
"""ONNX Runtime waits for ever for threads that the system does not give."""

Contract = tuple[tuple[int, int], int, "str | None"]
"""Image size, output length and pixel layout, as `engine.read_contract` gives them."""


class BaseEngine(Closing):
    """Base of the engines: many threads at once, a close that waits, no work behind a fork.

    A subclass sets `_contract`, runs checked images in `_features`, and gives everything back in
    `_release`, which is called once, with nobody inside.
    """

    _contract: Contract
    names: tuple[str, str] | None = None
    """Of the graph's input and output; None where the runtime does not tell."""
    codes: frozenset[str] | None = None
    """Names of its outputs with integer codes; None where the runtime does not tell."""

    def __init__(self) -> None:
        self._gate = Gate()
        keep_in_children(self)

    @property
    def image_size(self) -> tuple[int, int]:
        return self._contract[0]

    @property
    def output_dim(self) -> int:
        return self._contract[1]

    @property
    def pixels(self) -> str | None:
        return self._contract[2]

    def infer(self, images: Array) -> FloatArray:
        """See `Engine.infer`."""
        with self._gate:
            check_images(images, self.image_size, self.pixels)
            return check_features(self._features(images), len(images), self.output_dim)

    def close(self) -> None:
        """See `Engine.close`."""
        if self._gate.shut():
            self._release()
            trim_heap()

    @abstractmethod
    def _features(self, images: Array) -> FloatArray:
        """Features of checked images; called by many threads at once."""

    @abstractmethod
    def _release(self) -> None:
        """Give the runtime's memory back."""


def in_fixed_batches(
    images: Array, size: int | None, run: Callable[[Array], FloatArray]
) -> FloatArray:
    """Run `images` in batches of exactly `size`; None takes them as they are.

    A last batch that is too short is filled up with its last image, whose features are dropped.
    """
    if size is None or len(images) == size:
        return run(images)
    parts = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        rest = np.repeat(part[-1:], size - len(part), axis=0)
        parts.append(run(np.concatenate([part, rest]))[: len(part)])
    return np.concatenate(parts)


def check_threads(threads: int | None) -> None:
    """Raise EngineError for a number of threads below 1 or beyond `MAX_THREADS`."""
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise EngineError(f"threads is {threads}; take 1 to {MAX_THREADS}, or None for all")
