"""Device memory and streams: the same five functions over cuda.bindings, pycuda or torch.

`allocate`, `pinned`, `stream`, `copy`, `synchronize`; and three for CUDA graphs where the library
has them. None is imported before it is used. Whichever is chosen works in the device's primary
context, the one that TensorRT and torch use: pointers of a second context would mean nothing there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import EngineError
from .device_memory import Device, DeviceBuffer, PinnedBuffer, address, require
from .device_pycuda import PyCudaDevice
from .device_torch import TorchDevice

__all__ = ["DEVICES", "CudaBindingsDevice", "Device", "DeviceBuffer", "PinnedBuffer", "open_device"]


class CudaBindingsDevice:
    """NVIDIA's own cuda.bindings."""

    name = "cuda.bindings"
    captures = True

    def __init__(self, device_id: int = 0) -> None:
        self._cuda, self._id = require("cuda.bindings.runtime", "cuda"), device_id
        self._frees: list[Callable[[], Any]] = []
        with self.current():  # makes the primary context
            pass

    @contextmanager
    def current(self) -> Iterator[None]:
        before = int(self._do("cudaGetDevice"))
        self._do("cudaSetDevice", self._id)
        try:
            yield
        finally:
            if before != self._id:
                self._do("cudaSetDevice", before)

    def allocate(self, size: int) -> DeviceBuffer:
        pointer = self._do("cudaMalloc", size)
        self._frees.append(lambda: self._cuda.cudaFree(pointer))
        return DeviceBuffer(int(pointer), size)

    def pinned(self, size: int) -> PinnedBuffer:
        pointer = self._do("cudaMallocHost", size)
        self._frees.append(lambda: self._cuda.cudaFreeHost(pointer))
        memory = (ctypes.c_uint8 * size).from_address(int(pointer))
        return PinnedBuffer(np.ctypeslib.as_array(memory))

    def stream(self) -> int:
        stream = self._do("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
        self._frees.append(lambda: self._cuda.cudaStreamDestroy(stream))
        return int(stream)

    def copy(
        self,
        target: DeviceBuffer | PinnedBuffer,
        source: DeviceBuffer | PinnedBuffer,
        size: int,
        stream: int,
    ) -> None:
        kinds = self._cuda.cudaMemcpyKind
        down = isinstance(target, PinnedBuffer)
        kind = kinds.cudaMemcpyDeviceToHost if down else kinds.cudaMemcpyHostToDevice
        self._do("cudaMemcpyAsync", address(target), address(source), size, kind, stream)

    def synchronize(self, stream: int) -> None:
        self._do("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Any:
        graph = self._do("cudaStreamEndCapture", stream)
        executable = self._do("cudaGraphInstantiate", graph, 0)
        self._cuda.cudaGraphDestroy(graph)
        self._frees.append(lambda: self._cuda.cudaGraphExecDestroy(executable))
        return executable

    def launch(self, graph: Any, stream: int) -> None:
        self._do("cudaGraphLaunch", graph, stream)

    def release(self) -> None:
        while self._frees:
            self._frees.pop()()

    def _do(self, function: str, *arguments: Any) -> Any:
        """Call the runtime; its functions return the error first, then the results."""
        try:
            error, *results = getattr(self._cuda, function)(*arguments)
        except RuntimeError as failure:  # the driver library does not load
            raise EngineError(f"{function} failed: {failure}") from failure
        if int(error) != 0:
            raise EngineError(f"{function} failed: {error}")
        return results[0] if results else None


DEVICES: dict[str, type[CudaBindingsDevice] | type[PyCudaDevice] | type[TorchDevice]] = {
    "cuda": CudaBindingsDevice,
    "pycuda": PyCudaDevice,
    "torch": TorchDevice,
}


def open_device(name: str = "auto", device_id: int = 0) -> Device:
    """A device by library; `auto` takes the first that works, cuda.bindings before the others.

    Args:
        name: a key of `DEVICES`, or `auto`.
        device_id: which GPU.

    Raises:
        EngineError: unknown, not installed, or no GPU.
    """
    if name != "auto":
        if name not in DEVICES:
            raise EngineError(f"unknown device library '{name}'; take one of: {', '.join(DEVICES)}")
        return DEVICES[name](device_id)
    reasons = []
    for candidate in DEVICES:
        try:
            return DEVICES[candidate](device_id)
        except EngineError as error:
            reasons.append(str(error))
    raise EngineError("no library for device memory works: " + "; ".join(reasons))
