"""Probe, device libraries and ONNX Runtime's providers against fakes: there is no GPU here.

What the fakes answer is taken from the documentation of the CUDA driver, cuda.bindings and pycuda.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from regcache_engines import providers
from regcache_engines.errors import EngineError
from regcache_engines.tensorrt import probe as probing
from regcache_engines.tensorrt.device import CudaBindingsDevice, open_device
from regcache_engines.tensorrt.device_pycuda import PyCudaDevice
from regcache_engines.tensorrt.probe import Gpu, find_gpu, probe
from regcache_engines.tensorrt.trt_api import make_monitor

H100 = Gpu("NVIDIA H100", 90, 13000, 1)
SHAPE = (3, 4, 4)

# ---- probe --------------------------------------------------------------------------------------


def driver(**answers: Any) -> Any:
    """libcuda with one H100, or with an error code from a function."""

    def set_to(value: int) -> Callable[..., int]:
        def call(pointer: Any, *rest: Any) -> int:
            pointer._obj.value = value
            return 0

        return call

    def attribute(pointer: Any, which: int, device: Any) -> int:
        pointer._obj.value = {75: 9, 76: 0}[which]
        return 0

    def name(buffer: Any, size: int, device: Any) -> int:
        buffer.value = b"NVIDIA H100"
        return 0

    functions = {
        "cuInit": lambda flags: 0,
        "cuDeviceGetCount": set_to(1),
        "cuDeviceGet": set_to(0),
        "cuDeviceGetName": name,
        "cuDeviceGetAttribute": attribute,
        "cuDriverGetVersion": set_to(13000),
    }
    functions |= {key: (lambda *a, code=code: code) for key, code in answers.items()}
    return SimpleNamespace(**functions)


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        (driver(), ""),
        (driver(cuInit=100), "cuInit returned 100"),
        (driver(cuDeviceGetCount=3), "sees no GPU"),
        (driver(cuDeviceGetName=999), "error 999"),
        (SimpleNamespace(), "incomplete"),
        (None, "does not load"),
    ],
)
def test_find_gpu(monkeypatch: pytest.MonkeyPatch, library: Any, reason: str) -> None:
    def load(name: str) -> Any:
        if library is None:
            raise OSError(name)
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    gpu, why = find_gpu()
    assert gpu == (None if reason else H100)
    assert reason in why


def test_probe_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "find_gpu", lambda: (None, "no driver"))

    def missing(name: str) -> Any:
        raise EngineError(f"{name} is not installed")

    monkeypatch.setattr(probing, "import_runtime", missing)
    for name in probing.ENGINES:
        found = probe(name)
        assert "not installed" in str(found.build_refused)
        with pytest.raises(EngineError, match="not installed"):
            found.require_run()
    monkeypatch.setattr(probing, "import_runtime", lambda name: SimpleNamespace(__version__="11.4"))
    assert "needs an NVIDIA GPU" in str(probe("tensorrt").build_refused)
    # TensorRT-RTX compiles on a CPU
    assert probe("tensorrt_rtx").build_refused is None
    assert "no driver" in str(probe("tensorrt_rtx").run_refused)


NOTHING_HEAVY = """
import sys
import regcache_engines.tensorrt.engine, regcache_engines.tensorrt.builder
import regcache_engines.providers
heavy = {"torch", "onnx", "tensorrt", "tensorrt_rtx", "pycuda", "cuda", "onnxruntime"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""


def test_importing_touches_no_runtime() -> None:
    subprocess.run(
        [sys.executable, "-c", NOTHING_HEAVY], check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )


# ---- device libraries ---------------------------------------------------------------------------


class FakeCudart:
    """cuda.bindings.runtime: every function returns the error first."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.fails: set[str] = set()
        self.host: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            if name in self.fails:
                return (2, None)
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


def test_pycuda_uses_the_primary_context_and_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    depth, calls = [0], []

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
    fake_driver = SimpleNamespace(
        init=lambda: None,
        Device=lambda index: SimpleNamespace(
            retain_primary_context=lambda: SimpleNamespace(push=change(1))
        ),
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
    device = PyCudaDevice()
    memory, host, handle = device.allocate(8), device.pinned(8), device.stream()
    device.copy(memory, host, 8, handle)
    device.copy(host, memory, 8, handle)
    device.synchronize(handle)
    device.release()
    assert calls == ["mem_alloc", "Stream", "up", "down", "synchronize", "free"]
    assert depth == [0]
    with pytest.raises(EngineError, match="no CUDA graphs"):
        device.begin_capture(handle)


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


# ---- ONNX Runtime's providers -------------------------------------------------------------------


def test_providers_need_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(providers, "find_gpu", lambda: (None, "no driver"))
    for name in ("cuda", "tensorrt", "tensorrt_rtx"):
        with pytest.raises(EngineError, match="needs an NVIDIA GPU: no driver"):
            providers.load_provider_engine(tmp_path / "x.onnx", name)
    with pytest.raises(EngineError, match="unknown provider"):
        providers.load_provider_engine(tmp_path / "x.onnx", "rocm")


def test_the_plugin_must_really_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A registered plug-in whose session falls back to the CPU is an error."""
    model = tmp_path / "x.onnx"
    model.write_bytes(b"x")
    name = providers.PROVIDERS["tensorrt_rtx"]
    registered: list[str] = []
    running = ["CPUExecutionProvider"]

    def tensor(kind: str, shape: list[Any]) -> Any:
        return SimpleNamespace(name=kind, type="tensor(float)", shape=shape)

    session = SimpleNamespace(
        get_providers=lambda: running,
        get_inputs=lambda: [tensor("image", ["b", *SHAPE])],
        get_outputs=lambda: [tensor("features", ["b", 2])],
    )
    runtime = SimpleNamespace(
        SessionOptions=lambda: SimpleNamespace(add_provider_for_devices=lambda d, o: None),
        get_ep_devices=lambda: [SimpleNamespace(ep_name=x) for x in registered],
        register_execution_provider_library=lambda label, path: registered.append(label),
        InferenceSession=lambda path, options: session,
    )
    monkeypatch.setattr(providers, "find_gpu", lambda: (H100, ""))
    monkeypatch.setattr(providers, "plugin_library", lambda: Path("lib.so"))
    monkeypatch.setattr("regcache_engines.onnxruntime_engine.import_onnxruntime", lambda: runtime)
    with pytest.raises(EngineError, match="fell back to CPUExecutionProvider"):
        providers.load_provider_engine(model, "tensorrt_rtx")
    running[0] = name
    engine = providers.load_provider_engine(model, "tensorrt_rtx")
    assert engine.image_size == (4, 4)
    assert registered == [name]


def test_a_missing_plugin_names_its_package() -> None:
    if any(_installed(name) for name in providers.PLUGIN_DISTRIBUTIONS):
        pytest.skip("the plug-in is installed")
    with pytest.raises(EngineError, match="pip install onnxruntime-ep-nv-tensorrt-rtx"):
        providers.plugin_library()


def _installed(name: str) -> bool:
    from importlib import metadata

    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
