"""What this machine has, found without a call that could kill the interpreter.

Without a driver, objects of full TensorRT are returned broken, and using one is a segmentation
fault that no `except` catches. So the CUDA driver is asked first, through ctypes alone.
"""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ..errors import EngineError

EngineName = Literal["tensorrt", "tensorrt_rtx"]

ENGINES: tuple[EngineName, ...] = ("tensorrt", "tensorrt_rtx")

INSTALL = {
    "tensorrt": "pip install 'regcache-deploy[trt]' (TensorRT 11; [trt10] for 10.x), from a "
    "machine that reaches NVIDIA's package index",
    "tensorrt_rtx": "pip install 'regcache-deploy[rtx]'",
}

_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_DRIVER_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")


@dataclass(frozen=True)
class Gpu:
    """The first CUDA device.

    Attributes:
        name: as the driver calls it.
        sm: compute capability, for example `90`.
        cuda: newest CUDA version of the driver, for example `13000`.
        count: visible devices.
    """

    name: str
    sm: int
    cuda: int
    count: int


@dataclass(frozen=True)
class Probe:
    """A runtime and a GPU, or why not.

    Attributes:
        engine: `tensorrt` or `tensorrt_rtx`.
        version: of the Python module, or None if it does not load.
        gpu: or None.
        build_refused: why this machine cannot build engines, or None.
        run_refused: why it cannot run them, or None.
    """

    engine: EngineName
    version: str | None
    gpu: Gpu | None
    build_refused: str | None
    run_refused: str | None

    def require_build(self) -> None:
        """Raise EngineError unless engines can be built here."""
        if self.build_refused:
            raise EngineError(self.build_refused)

    def require_run(self) -> None:
        """Raise EngineError unless engines can run here."""
        if self.run_refused:
            raise EngineError(self.run_refused)


def find_gpu(device_id: int = 0) -> tuple[Gpu | None, str]:
    """The GPU of that number, or None and the reason."""
    driver = None
    for library in _DRIVER_LIBRARIES:
        try:
            driver = ctypes.CDLL(library)
            break
        except OSError:
            continue
    if driver is None:
        return None, "no NVIDIA driver (libcuda.so.1 does not load)"
    try:
        return _ask(driver, device_id)
    except AttributeError as error:  # a stub library
        return None, f"the NVIDIA driver is incomplete ({error})"


def _ask(driver: Any, device_id: int) -> tuple[Gpu | None, str]:
    if code := driver.cuInit(0):
        return None, f"the NVIDIA driver does not start (cuInit returned {code})"
    count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None, "the NVIDIA driver sees no GPU"
    if not 0 <= device_id < count.value:
        return None, f"device_id is {device_id}, and the NVIDIA driver sees {count.value} GPUs"
    name = ctypes.create_string_buffer(128)
    major, minor = ctypes.c_int(), ctypes.c_int()
    failed = (
        driver.cuDeviceGet(ctypes.byref(device), device_id)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
        or driver.cuDriverGetVersion(ctypes.byref(version))
    )
    if failed:
        return None, f"the NVIDIA driver does not describe its GPU (error {failed})"
    sm = 10 * major.value + minor.value
    return Gpu(name.value.decode(errors="replace"), sm, version.value, count.value), ""


@cache
def import_runtime(engine: EngineName) -> Any:
    """The Python module of a runtime; importing it touches no GPU.

    Raises:
        EngineError: it is not installed, or its libraries do not load.
    """
    if engine not in ENGINES:
        raise EngineError(f"unknown engine '{engine}'; take one of: {', '.join(ENGINES)}")
    try:
        module = importlib.import_module(engine)
        _ = module.Builder, module.OnnxParser
    except (ImportError, AttributeError, OSError) as error:
        raise EngineError(
            f"{engine} is not installed or does not load ({error}); {INSTALL[engine]}"
        ) from error
    return module


def probe(engine: EngineName, device_id: int = 0) -> Probe:
    """Look at runtime and GPU. Never raises, never crashes."""
    gpu, no_gpu = find_gpu(device_id)
    try:
        version: str | None = str(import_runtime(engine).__version__)
        missing = None
    except EngineError as error:
        version, missing = None, str(error)
    without = f"{engine} needs an NVIDIA GPU, and this machine has none: {no_gpu}"
    # TensorRT-RTX compiles ahead of time on a CPU; full TensorRT times kernels on the GPU
    needs_gpu = engine != "tensorrt_rtx"
    return Probe(
        engine=engine,
        version=version,
        gpu=gpu,
        build_refused=missing or (without if gpu is None and needs_gpu else None),
        run_refused=missing or (without if gpu is None else None),
    )
