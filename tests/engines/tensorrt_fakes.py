"""Fakes of runtime and device: there is no GPU here.

What they answer is taken from the documentation of TensorRT.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from regcache_engines.files import sha256_bytes
from regcache_engines.tensorrt import engine as engine_module
from regcache_engines.tensorrt.device import DeviceBuffer, PinnedBuffer
from regcache_engines.tensorrt.probe import EngineName, Gpu, Probe
from regcache_engines.tensorrt.sidecar import Profile, Sidecar

H100 = Gpu("NVIDIA H100", 90, 13000, 1)
SHAPE = (3, 4, 4)
DATA = b"an engine"

SIDECAR = Sidecar(
    key="k",
    engine="tensorrt",
    version="11.4.0.106",
    onnx_sha256="0" * 64,
    engine_sha256=sha256_bytes(DATA),
    engine_bytes=len(DATA),
    image_shape=SHAPE,
    output_dim=2,
    input_name="image",
    output_name="image_features",
    profile=Profile(1, 4, 8),
    sms=(90,),
)


_current = threading.local()
"""The GPU of each thread: `device`, a FakeDevice."""


class FakeDevice:
    """Memory in a dictionary; a stream is a list of what was done on it, in order."""

    name = "fake"
    captures = True

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.log: list[str] = []
        self.capturing: list[Callable[[], None]] | None = None
        self.released = False

    @contextmanager
    def current(self) -> Iterator[None]:
        before, _current.device = getattr(_current, "device", None), self
        try:
            yield
        finally:
            _current.device = before

    def allocate(self, size: int) -> DeviceBuffer:
        pointer = 1000 + len(self.memory)
        self.memory[pointer] = np.zeros(size, np.uint8)
        return DeviceBuffer(pointer, size)

    def pinned(self, size: int) -> PinnedBuffer:
        return PinnedBuffer(np.zeros(size, np.uint8))

    def stream(self) -> int:
        return 7

    def copy(self, target: Any, source: Any, size: int, stream: int) -> None:
        assert stream == 7
        read = self.memory[source.pointer] if isinstance(source, DeviceBuffer) else source.array
        write = self.memory[target.pointer] if isinstance(target, DeviceBuffer) else target.array
        write[:size] = read[:size]

    def synchronize(self, stream: int) -> None:
        self.log.append("synchronize")

    def begin_capture(self, stream: int) -> None:
        self.capturing = []

    def end_capture(self, stream: int) -> Any:
        work, self.capturing = self.capturing, None
        self.log.append("capture")
        return work

    def launch(self, graph: Any, stream: int) -> None:
        self.log.append("launch")
        for kernel in graph:
            kernel()

    def release(self) -> None:
        self.released = True


class FakeContext:
    """Mean and largest pixel of every image."""

    def __init__(self, device: FakeDevice) -> None:
        self.device, self.addresses, self.count = device, dict[str, int](), 0

    def set_tensor_address(self, name: str, pointer: int) -> None:
        self.addresses[name] = pointer

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.count = shape[0]
        return shape[1:] == SHAPE and 1 <= shape[0] <= 8

    def infer_shapes(self) -> list[str]:
        return []

    def execute_async_v3(self, stream: int) -> bool:
        assert _current.device is self.device, "another GPU is current in this thread"
        count = self.count

        def kernel() -> None:
            memory = self.device.memory
            images = memory[self.addresses["image"]].view(np.float32).reshape(-1, *SHAPE)[:count]
            features = memory[self.addresses["image_features"]].view(np.float32).reshape(-1, 2)
            features[:count] = np.stack([images.mean((1, 2, 3)), images.max((1, 2, 3))], 1)

        if self.device.capturing is None:
            self.device.log.append(f"execute {count}")
            kernel()
        else:
            self.device.capturing.append(kernel)
        return True


class FakeTensorRT(SimpleNamespace):
    """The part of the module that running needs."""

    def __init__(self, device: FakeDevice) -> None:
        class Logger:
            INTERNAL_ERROR, ERROR = 0, 1

        def deserialize(data: bytes) -> Any:
            if data != DATA:
                return None
            return SimpleNamespace(create_execution_context=lambda: FakeContext(device))

        super().__init__(
            ILogger=Logger,
            Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize),
        )


def fake_machine(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """An H100 with TensorRT, as far as an engine looks."""
    device = FakeDevice()
    monkeypatch.setattr(engine_module, "import_runtime", lambda name: FakeTensorRT(device))
    monkeypatch.setattr(engine_module, "open_device", lambda name, device_id: device)
    have(monkeypatch)
    return device


def have(monkeypatch: pytest.MonkeyPatch, version: str = SIDECAR.version, gpu: Gpu = H100) -> None:
    def probe(name: EngineName, device_id: int) -> Probe:
        return Probe(name, version, gpu, None, None)

    monkeypatch.setattr(engine_module, "probe", probe)


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "k.engine"
    path.write_bytes(DATA)
    replace(SIDECAR, **changes).write(folder / "k.json")
    return path


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, *SHAPE), dtype=np.float32)


def expected(batch: np.ndarray) -> np.ndarray:
    return np.stack([batch.mean((1, 2, 3)), batch.max((1, 2, 3))], 1)
