"""The probe against fakes of the CUDA driver, by its documentation: there is no GPU here."""

from __future__ import annotations

import ctypes
import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regcache_engines.errors import EngineError
from regcache_engines.tensorrt import probe as probing
from regcache_engines.tensorrt.lock import build_lock
from regcache_engines.tensorrt.probe import find_gpu, probe
from tests.engines.tensorrt_fakes import H100


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


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver())
    for device_id in (-1, 7):
        gpu, why = find_gpu(device_id)
        assert gpu is None
        assert f"device_id is {device_id}, and the NVIDIA driver sees 1 GPUs" in why


def test_probe_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "find_gpu", lambda device_id=0: (None, "no driver"))

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


def test_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Some of a network's have none; what the lock saves is a second build, no more."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with build_lock(tmp_path / "engines" / ".k.lock"):
        assert (tmp_path / "engines").is_dir()


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
