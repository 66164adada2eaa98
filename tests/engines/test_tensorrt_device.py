"""Device libraries against fakes, by the documentation of cuda.bindings and pycuda: no GPU here."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from regcache_engines.errors import EngineError
from regcache_engines.tensorrt.device import CudaBindingsDevice, open_device
from regcache_engines.tensorrt.device_pycuda import PyCudaDevice
from regcache_engines.tensorrt.device_torch import TorchDevice
from regcache_engines.tensorrt.trt_api import make_monitor


class FakeCudart:
    """cuda.bindings.runtime: every function returns the error first."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.fails: set[str] = set()
        self.host: list[Any] = []
        self.current = 0

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            if name in self.fails:
                return (2, None)
            if name == "cudaSetDevice":
                self.current = arguments[0]
            if name == "cudaGetDevice":
                return 0, self.current
            if name == "cudaMallocHost":
                self.host.append(ctypes.create_string_buffer(arguments[0]))
                return 0, ctypes.addressof(self.host[-1])
            results = {"cudaMalloc": 4096, "cudaStreamCreateWithFlags": 11}
            results |= {"cudaStreamEndCapture": 21, "cudaGraphInstantiate": 22}
            return (0, results[name]) if name in results else (0,)

        return call


def test_cuda_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = FakeCudart()
    monkeypatch.setattr("regcache_engines.tensorrt.device.require", lambda module, extra: cudart)
    device = CudaBindingsDevice()
    memory, host, stream = device.allocate(64), device.pinned(64), device.stream()
    host.array[:] = 5
    device.copy(memory, host, 64, stream)
    device.copy(host, memory, 32, stream)
    address = host.array.ctypes.data
    copies = [arguments for name, arguments in cudart.calls if name == "cudaMemcpyAsync"]
    assert copies == [(4096, address, 64, 1, 11), (address, 4096, 32, 2, 11)]
    device.begin_capture(stream)
    graph = device.end_capture(stream)
    device.launch(graph, stream)
    device.synchronize(stream)
    assert ("cudaGraphLaunch", (22, 11)) in cudart.calls
    device.release()
    names = [name for name, _ in cudart.calls]
    for free in ("cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaGraphExecDestroy"):
        assert names.count(free) == 1
    cudart.fails = {"cudaMalloc"}
    with pytest.raises(EngineError, match="cudaMalloc failed: 2"):
        device.allocate(64)


def test_another_gpu_is_current_while_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = FakeCudart()
    cudart.current = 2
    monkeypatch.setattr("regcache_engines.tensorrt.device.require", lambda module, extra: cudart)
    device = CudaBindingsDevice(1)
    assert cudart.current == 2
    seen = []

    def fail() -> None:
        with device.current():
            seen.append(cudart.current)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (seen, cudart.current) == ([1], 2)


def test_pycuda_uses_the_primary_context_and_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    depth, calls, indices = [0], [], list[int]()

    def change(by: int) -> Callable[[], None]:
        def call() -> None:
            depth[0] += by

        return call

    class Memory:
        def __int__(self) -> int:
            return 4096

        def free(self) -> None:
            calls.append("free")

    def must_be_current(name: str, result: Any = None) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            assert depth[0] == 1
            calls.append(name)
            return result

        return call

    stream = SimpleNamespace(handle=11, synchronize=must_be_current("synchronize"))

    def gpu(index: int) -> Any:
        indices.append(index)
        context = SimpleNamespace(push=change(1))
        return SimpleNamespace(retain_primary_context=lambda: context)

    fake_driver = SimpleNamespace(
        init=lambda: None,
        Device=gpu,
        Context=SimpleNamespace(pop=change(-1)),
        mem_alloc=must_be_current("mem_alloc", Memory()),
        pagelocked_empty=lambda size, kind: np.zeros(size, kind),
        Stream=must_be_current("Stream", stream),
        memcpy_htod_async=must_be_current("up"),
        memcpy_dtoh_async=must_be_current("down"),
    )
    monkeypatch.setattr(
        "regcache_engines.tensorrt.device_pycuda.require", lambda module, extra: fake_driver
    )
    device = PyCudaDevice(3)
    assert indices == [3]
    memory, host, handle = device.allocate(8), device.pinned(8), device.stream()
    device.copy(memory, host, 8, handle)
    device.copy(host, memory, 8, handle)
    device.synchronize(handle)
    device.release()
    assert calls == ["mem_alloc", "Stream", "up", "down", "synchronize", "free"]
    assert depth == [0]
    with pytest.raises(EngineError, match="no CUDA graphs"):
        device.begin_capture(handle)


def test_torch_captures_beside_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever waits for the whole GPU, or forbids others to allocate, breaks a second context."""
    calls: list[str] = []
    current: list[Any] = []

    class Graph:
        def capture_begin(self, capture_error_mode: str = "global") -> None:
            assert current == [stream]
            calls.append(f"begin {capture_error_mode}")

        def capture_end(self) -> None:
            assert current == [stream]
            calls.append("end")

        def replay(self) -> None:
            assert current == [stream]
            calls.append("replay")

    @contextmanager
    def on(found: Any) -> Iterator[None]:
        current.append(found)
        yield
        current.pop()

    stream = SimpleNamespace(cuda_stream=11, synchronize=lambda: calls.append("wait for stream"))
    cuda = SimpleNamespace(
        is_available=lambda: True, Stream=lambda device: stream, stream=on, CUDAGraph=Graph
    )
    monkeypatch.setattr(
        "regcache_engines.tensorrt.device_torch.require",
        lambda module, extra: SimpleNamespace(cuda=cuda),
    )
    device = TorchDevice()
    handle = device.stream()
    device.begin_capture(handle)
    graph = device.end_capture(handle)
    device.launch(graph, handle)
    device.synchronize(handle)
    assert calls == ["begin thread_local", "end", "replay", "wait for stream"]
    assert not current


def test_open_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> Any:
        raise ImportError(module)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(EngineError, match=r"\[cuda\].*\[pycuda\].*torch"):
        open_device()
    with pytest.raises(EngineError, match=r"regcache-deploy\[pycuda\]"):
        open_device("pycuda")
    with pytest.raises(EngineError, match="unknown device library"):
        open_device("rocm")


def test_progress_comes_from_the_outer_phase_alone() -> None:
    told: list[tuple[str, int, int]] = []
    trt = SimpleNamespace(IProgressMonitor=object)
    monitor = make_monitor(trt, lambda phase, done, steps: told.append((phase, done, steps)))
    monitor.phase_start("Building", None, 2)
    monitor.phase_start("Tactics", "Building", 400)
    assert monitor.step_complete("Tactics", 0)
    assert monitor.step_complete("Building", 0)
    monitor.phase_finish("Tactics")
    monitor.phase_finish("Building")
    assert told == [("Building", 1, 2)]
