"""One execution context with its stream, its memory, and its captured graphs."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from ..engine import Array, FloatArray
from ..errors import EngineError
from .device import Device
from .sidecar import Sidecar

FLOAT_BYTES = 4

MOST_GRAPHS = 32
"""Batch sizes that are captured; each graph holds memory of its own. Others run without."""

log = logging.getLogger(__name__)


class Slot:
    """What one call of `infer` works with, alone.

    Args:
        engine: deserialized.
        device: memory and streams.
        sidecar: names, shapes, largest batch.
        cuda_graphs: capture each batch size once, up to `MOST_GRAPHS`, replay it afterwards.

    Raises:
        EngineError: out of memory.
    """

    def __init__(self, engine: Any, device: Device, sidecar: Sidecar, cuda_graphs: bool) -> None:
        self.device, self._sidecar = device, sidecar
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError("TensorRT makes no execution context; is the GPU's memory full?")
        self._image_bytes = int(np.prod(sidecar.image_shape)) * (
            1 if sidecar.input_dtype == "uint8" else FLOAT_BYTES
        )
        self._feature_bytes = sidecar.output_dim * FLOAT_BYTES
        largest = sidecar.profile.max
        # a stream of its own: on the default stream TensorRT synchronizes the whole device
        self._stream = device.stream()
        self._images = device.allocate(largest * self._image_bytes)
        self._features = device.allocate(largest * self._feature_bytes)
        self._staged_images = device.pinned(largest * self._image_bytes)
        self._staged_features = device.pinned(largest * self._feature_bytes)
        self._context.set_tensor_address(sidecar.input_name, self._images.pointer)
        self._context.set_tensor_address(sidecar.output_name, self._features.pointer)
        self._use_graphs = cuda_graphs and device.captures
        self._graphs: dict[int, Any] = {}
        self._batch = 0

    def run(self, images: Array) -> FloatArray:
        """Features `[B, E]` of contiguous images, at most the largest batch."""
        count, device, stream = len(images), self.device, self._stream
        size = count * self._image_bytes
        self._staged_images.array[:size] = images.reshape(-1).view(np.uint8)
        device.copy(self._images, self._staged_images, size, stream)
        graph = self._graphs.get(count)
        if graph is not None:
            device.launch(graph, stream)
        else:
            self._enqueue(count)
        size = count * self._feature_bytes
        device.copy(self._staged_features, self._features, size, stream)
        device.synchronize(stream)
        features = self._staged_features.array[:size].view(np.float32)
        result = features.reshape(count, self._sidecar.output_dim).copy()
        if graph is None and self._use_graphs and len(self._graphs) < MOST_GRAPHS:
            try:
                self._capture(count)
            except Exception as error:  # of whichever library; the features are there
                self._use_graphs = False
                log.warning(
                    "a batch of %d could not be captured (%s): no CUDA graphs", count, error
                )
        return result

    def close(self) -> None:
        self._graphs.clear()
        self._context = None

    def _enqueue(self, count: int) -> None:
        name = self._sidecar.input_name
        if count != self._batch:
            self._batch = 0  # the context's shape is not known where this fails
            if not self._context.set_input_shape(name, (count, *self._sidecar.image_shape)):
                raise EngineError(
                    f"a batch of {count} is outside of the engine's profile "
                    f"{self._sidecar.profile.min} to {self._sidecar.profile.max}"
                )
            missing = self._context.infer_shapes()
            if missing:
                raise EngineError(f"TensorRT cannot infer the shapes of {', '.join(missing)}")
            self._batch = count
        if not self._context.execute_async_v3(self._stream):
            raise EngineError("TensorRT failed to run the engine; is the GPU's memory full?")

    def _capture(self, count: int) -> None:
        """Record the kernels of a batch size whose first run has done all lazy set-up."""
        capturable = getattr(self._context, "is_stream_capturable", None)  # TensorRT-RTX
        if capturable is not None and not capturable(self._stream):
            return
        self.device.begin_capture(self._stream)
        try:
            self._enqueue(count)
        finally:
            graph = self.device.end_capture(self._stream)
        self._graphs[count] = graph
