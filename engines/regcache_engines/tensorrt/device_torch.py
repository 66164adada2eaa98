"""Device memory and streams through torch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from ..errors import EngineError
from .device_memory import DeviceBuffer, PinnedBuffer, require


class TorchDevice:
    """torch tensors as memory, where torch is there anyway."""

    name = "torch"
    captures = True

    def __init__(self, device_id: int = 0) -> None:
        self._torch = require("torch", "search")
        if not self._torch.cuda.is_available():
            raise EngineError("this torch finds no GPU; install its CUDA build")
        self._id = device_id
        self._streams: dict[int, Any] = {}
        self._graphs: dict[int, Any] = {}

    def current(self) -> AbstractContextManager[None]:
        scope: AbstractContextManager[None] = self._torch.cuda.device(self._id)
        return scope

    def allocate(self, size: int) -> DeviceBuffer:
        tensor = self._torch.empty(size, dtype=self._torch.uint8, device=f"cuda:{self._id}")
        return DeviceBuffer(tensor.data_ptr(), size, tensor)

    def pinned(self, size: int) -> PinnedBuffer:
        tensor = self._torch.empty(size, dtype=self._torch.uint8, pin_memory=True)
        return PinnedBuffer(tensor.numpy(), tensor)

    def stream(self) -> int:
        stream = self._torch.cuda.Stream(device=self._id)
        self._streams[int(stream.cuda_stream)] = stream
        return int(stream.cuda_stream)

    def copy(
        self,
        target: DeviceBuffer | PinnedBuffer,
        source: DeviceBuffer | PinnedBuffer,
        size: int,
        stream: int,
    ) -> None:
        with self._torch.cuda.stream(self._streams[stream]):
            target.owner[:size].copy_(source.owner[:size], non_blocking=True)

    def synchronize(self, stream: int) -> None:
        self._streams[stream].synchronize()

    def begin_capture(self, stream: int) -> None:
        # not `torch.cuda.graph`: it waits for the whole GPU, which fails while another thread
        # captures, and lets no other thread allocate meanwhile
        graph = self._torch.cuda.CUDAGraph()
        with self._torch.cuda.stream(self._streams[stream]):
            graph.capture_begin(capture_error_mode="thread_local")
        self._graphs[stream] = graph

    def end_capture(self, stream: int) -> Any:
        graph = self._graphs.pop(stream)
        with self._torch.cuda.stream(self._streams[stream]):
            graph.capture_end()
        return graph

    def launch(self, graph: Any, stream: int) -> None:
        with self._torch.cuda.stream(self._streams[stream]):
            graph.replay()

    def release(self) -> None:
        self._streams.clear()
