"""What every engine keeps, whatever runtime is behind it: its contract, and how it is closed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from .engine import Array, FloatArray
from .errors import EngineError

if TYPE_CHECKING:
    from typing_extensions import Self

Contract = tuple[tuple[int, int], int, "str | None"]
"""Image size, output length and pixel layout, as `engine.read_contract` gives them."""


class BaseEngine(ABC):
    """Base of the engines; `infer` is theirs."""

    _contract: Contract

    @property
    def image_size(self) -> tuple[int, int]:
        return self._contract[0]

    @property
    def output_dim(self) -> int:
        return self._contract[1]

    @property
    def pixels(self) -> str | None:
        return self._contract[2]

    @abstractmethod
    def close(self) -> None:
        """See `Engine.close`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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


def require_open(handle: object) -> None:
    """Raise EngineError where `close` has taken an engine's handle away."""
    if handle is None:
        raise EngineError("this engine is closed; load it again")


def check_threads(threads: int | None) -> None:
    """Raise EngineError for a number of threads below 1."""
    if threads is not None and threads < 1:
        raise EngineError(f"threads is {threads}; take at least 1, or None for all")
