"""Device memory and streams through pycuda."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import EngineError
from .device_memory import DeviceBuffer, PinnedBuffer, address, require


class PyCudaDevice:
    """pycuda, in the primary context, which is retained here and popped again; never autoinit."""

    name = "pycuda"
    captures = False

    def __init__(self, device_id: int = 0) -> None:
        self._driver = require("pycuda.driver", "pycuda")
        try:
            self._driver.init()
            self._context = self._driver.Device(device_id).retain_primary_context()
        except Exception as error:  # pycuda.driver.Error is known only after the import
            raise EngineError(f"pycuda finds no GPU: {error}") from error
        self._streams: dict[int, Any] = {}
        self._owned: list[Any] = []

    @contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def allocate(self, size: int) -> DeviceBuffer:
        memory = self._call(lambda: self._driver.mem_alloc(size))
        self._owned.append(memory)
        return DeviceBuffer(int(memory), size, memory)

    def pinned(self, size: int) -> PinnedBuffer:
        array = self._call(lambda: self._driver.pagelocked_empty(size, np.uint8))
        return PinnedBuffer(array, array)

    def stream(self) -> int:
        stream = self._call(lambda: self._driver.Stream(self._nonblocking()))
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def copy(
        self,
        target: DeviceBuffer | PinnedBuffer,
        source: DeviceBuffer | PinnedBuffer,
        size: int,
        stream: int,
    ) -> None:
        on = self._streams[stream]
        if isinstance(target, PinnedBuffer):
            view = target.array[:size]
            self._call(lambda: self._driver.memcpy_dtoh_async(view, address(source), on))
        elif isinstance(source, PinnedBuffer):
            array = source.array[:size]
            self._call(lambda: self._driver.memcpy_htod_async(target.pointer, array, on))

    def synchronize(self, stream: int) -> None:
        self._call(self._streams[stream].synchronize)

    def begin_capture(self, stream: int) -> None:
        raise EngineError("pycuda captures no CUDA graphs; use cuda.bindings")

    def end_capture(self, stream: int) -> Any:
        raise EngineError("pycuda captures no CUDA graphs; use cuda.bindings")

    def launch(self, graph: Any, stream: int) -> None:
        raise EngineError("pycuda captures no CUDA graphs; use cuda.bindings")

    def release(self) -> None:
        def free() -> None:
            self._streams.clear()
            while self._owned:
                self._owned.pop().free()

        self._call(free)

    def _nonblocking(self) -> int:
        return int(getattr(getattr(self._driver, "stream_flags", None), "NON_BLOCKING", 1))

    def _call(self, action: Callable[[], Any]) -> Any:
        """Run with the primary context current in this thread, whatever was current before."""
        with self.current():
            try:
                return action()
            except Exception as error:
                raise EngineError(f"pycuda failed: {error}") from error
