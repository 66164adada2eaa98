"""What every device library looks like: buffers, and the functions an engine calls."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import EngineError

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class DeviceBuffer:
    """Memory on the GPU.

    Attributes:
        pointer: its address.
        size: bytes.
        owner: what keeps it alive; None where `release` must free it.
    """

    pointer: int
    size: int
    owner: Any = None


@dataclass(frozen=True)
class PinnedBuffer:
    """Page-locked memory on the host, which copies without staging.

    Attributes:
        array: uint8 view of all of it.
        owner: what keeps it alive.
    """

    array: Bytes
    owner: Any = None


class Device(Protocol):
    """What an engine needs of a GPU. A stream is its integer handle."""

    name: str
    captures: bool

    def current(self) -> AbstractContextManager[None]:
        """Make this the calling thread's GPU, and what was current before again afterwards.

        The current GPU is each thread's own, and TensorRT runs on it, whatever the engine is for.
        """
        ...

    def allocate(self, size: int) -> DeviceBuffer: ...

    def pinned(self, size: int) -> PinnedBuffer: ...

    def stream(self) -> int: ...

    def copy(
        self,
        target: DeviceBuffer | PinnedBuffer,
        source: DeviceBuffer | PinnedBuffer,
        size: int,
        stream: int,
    ) -> None:
        """Copy `size` bytes in stream order; one side is the GPU, the other pinned memory."""
        ...

    def synchronize(self, stream: int) -> None: ...

    def begin_capture(self, stream: int) -> None: ...

    def end_capture(self, stream: int) -> Any: ...

    def launch(self, graph: Any, stream: int) -> None: ...

    def release(self) -> None:
        """Give back everything that was allocated."""
        ...


def require(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise EngineError(
            f"{module} does not load ({error}); run: pip install 'regcache-deploy[{extra}]'"
        ) from error


def address(buffer: DeviceBuffer | PinnedBuffer) -> int:
    if isinstance(buffer, DeviceBuffer):
        return buffer.pointer
    return int(buffer.array.ctypes.data)
